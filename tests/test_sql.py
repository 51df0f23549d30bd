"""SQL on an index: it can touch nothing but the index it is asked of, and what it answers is valid JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
from contents import make_contents
from programs import begin

from indexer.exchange.sql import Query
from indexer.store import DATABASE, write_store
from training.errors import CallError, SparsightError


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sql") / "index"
    folder.mkdir()
    write_store(folder, make_contents())
    return folder


@pytest.fixture
def secret(tmp_path) -> Path:
    """A folder of files that no query may read."""
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "a.csv").write_text("a,b\n1,2\n")
    (folder / "a.json").write_text('{"a": 1}\n')
    duckdb.sql("SELECT 1 AS a").write_parquet(str(folder / "a.parquet"))
    with duckdb.connect(str(folder / "a.duckdb")) as con:
        con.execute("CREATE TABLE a AS SELECT 1 AS a")
    (folder / "link.csv").symlink_to(folder / "a.csv")
    return folder


SHUT = r"file system operations are disabled by configuration"
ONE = "one query at a time (SELECT, FROM, WITH, DESCRIBE, SHOW, SUMMARIZE), this is: "


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("FROM read_csv('{0}/a.csv')", SHUT),
        ("FROM read_csv('{0}/link.csv')", SHUT),
        ("FROM read_csv('/dev/stdin')", SHUT),
        ("FROM read_text('{0}/a.csv')", SHUT),
        ("FROM read_blob('{0}/../secret/a.csv')", SHUT),
        ("FROM read_json('{0}/a.json')", SHUT),
        ("FROM read_parquet('{0}/a.parquet')", SHUT),
        ("FROM parquet_metadata('{0}/a.parquet')", SHUT),
        ("FROM sniff_csv('{0}/a.csv')", SHUT),
        ("FROM glob('{0}/*')", SHUT),
        ("FROM '{0}/a.parquet'", SHUT),
        ("FROM '{0}/a.csv'", SHUT),
        ("FROM '/etc/passwd'", "Table with name /etc/passwd does not exist"),
        ("FROM 'https://example.org/a.parquet'", ""),
        ("SELECT * FROM query('FROM ''{0}/a.csv''')", SHUT),
        ("SELECT * FROM images WHERE path IN (SELECT content FROM read_text('{0}/a.csv'))", SHUT),
        ("SELECT getenv('HOME')", "getenv"),
        ("SELECT * FROM secret", "Table with name secret does not exist"),
        ("SELECT * FROM json_execute_serialized_sql(json_serialize_sql('FROM ''{0}/a.csv'''))", SHUT),
        ("COPY images TO '{0}/out.csv'", ONE + "COPY"),
        ("COPY (SELECT 1) TO '{1}.wal'", ONE + "COPY"),
        ("COPY (SELECT 1) TO '{1}'", ONE + "COPY"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{1}.wal'", ONE + "EXPLAIN"),
        ("ATTACH '{0}/a.duckdb' AS a", ONE + "ATTACH"),
        ("DETACH store", ONE + "DETACH"),
        ("EXPORT DATABASE '{0}/db'", ONE + "EXPORT"),
        ("IMPORT DATABASE '{0}/db'", ONE),
        ("INSTALL httpfs", ONE + "LOAD"),
        ("LOAD httpfs", ONE + "LOAD"),
        ("SET enable_external_access = true", ONE + "SET"),
        ("RESET lock_configuration", ONE + "SET"),
        ("SET memory_limit = '900GB'", ONE + "SET"),
        ("PRAGMA enable_profiling", ""),
        ("CALL enable_logging()", ONE + "CALL"),
        ("CREATE SECRET s (TYPE http)", ONE),
        ("CREATE TABLE x (i INTEGER)", ONE + "CREATE"),
        ("INSERT INTO skipped VALUES ('a', 'b')", ONE + "INSERT"),
        ("UPDATE images SET label = 'x'", ONE + "UPDATE"),
        ("DELETE FROM images", ONE + "DELETE"),
        ("DROP TABLE images", ONE + "DROP"),
        ("USE memory", ONE + "SET"),
        ("CHECKPOINT", ONE),
        ("SELECT 1; SELECT 2", ONE + "SELECT, SELECT"),
        ("SELECT 1; SET enable_external_access = true", ONE + "SELECT, SET"),
        ("SELECT 1) TO '{0}/out.csv'; --", "Parser Error"),
        ("", ONE + "nothing"),
        ("/* nothing */", ONE + "nothing"),
        ("SELEC 1", 'Parser Error: syntax error at or near "SELEC"'),
        ("SELECT nothing FROM images", "Binder Error"),
        ("SELECT 'x'::INTEGER", "Conversion Error"),
        ("SELECT ?", ""),
        ("SELECT '\udcff'", "not valid UTF-8"),
    ],
)
def test_sql_reads_the_index_and_nothing_else(run, index, secret, query, line):
    before = {p: p.read_bytes() for p in index.parent.rglob("*") if p.is_file()}
    result = run("sql", query.format(secret, index / DATABASE), "--index", index, code=2)
    assert line in result.stderr
    assert not result.stdout
    assert {p: p.read_bytes() for p in index.parent.rglob("*") if p.is_file()} == before


def test_the_lock_holds_without_the_look_at_the_statement(index, secret):
    """The second wall: what the first refuses is refused by the connection as well."""
    for query in (
        f"COPY images TO '{secret}/out.csv'",
        f"ATTACH '{secret}/a.duckdb' AS a",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "SET memory_limit = '900GB'",
        "INSERT INTO skipped VALUES ('a', 'b')",
        "DROP TABLE images",
        "LOAD httpfs",
        "INSTALL httpfs",
    ):
        with Query(index, "SELECT 1") as q, pytest.raises(duckdb.Error, match=r"disabled|locked|read-only"):
            q._con.execute(query)
    with Query(index, "SELECT current_setting('temp_directory'), current_setting('memory_limit')") as q:
        assert list(q.texts()) == [("", "953.6 MiB")]


def test_sql_prints_a_table_and_says_what_it_leaves_off(run, index):
    result = run("sql", "SELECT image_id, label FROM images ORDER BY image_id;", "--limit", 2, "--index", index)
    assert result.stdout.splitlines() == ["image_id  label", "0         a", "1         NULL"]
    assert "the first 2 rows" in result.stderr
    assert not run("sql", "FROM images LIMIT 2", "--limit", 2, "--index", index).stderr
    result = run("sql", "FROM range(200)", "--index", index)
    assert len(result.stdout.splitlines()) == 101
    assert "the first 100 rows" in result.stderr
    assert len(run("sql", "FROM range(200)", "--json", "--index", index).stdout.splitlines()) == 200


def test_sql_reads_stdin(index):
    for more in ([], ["-"]):
        done = subprocess.run(
            [sys.executable, "-c", "from sparsight import main; main()", "sql", *more, "--json", "--index", str(index)],
            input=b"SELECT count(*) AS n FROM images -- all; of them\n",
            capture_output=True,
            check=True,
        )
        assert json.loads(done.stdout) == {"n": 12}


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("NULL", None),
        ("'nan'::FLOAT", "NaN"),
        ("[1, '-inf'::DOUBLE, NULL]", [1.0, "-Infinity", None]),
        ("{'NaN': 'a \"NaN\" Infinity', 'b': 'nan'::FLOAT}", {"NaN": 'a "NaN" Infinity', "b": "NaN"}),
        ("0.1::FLOAT", float(np.float32(0.1))),
        ("1.50::DECIMAL(5, 2)", 1.5),
        ("170141183460469231731687303715884105727", 2**127 - 1),
        ("DATE '2026-11-25'", "2026-11-25"),
        ("'infinity'::DATE", "infinity"),
        ("TIMESTAMP '2026-11-25 01:02:03.000004'", "2026-11-25 01:02:03.000004"),
        ("TIME '24:00:00'", "24:00:00"),
        ("INTERVAL '1 month 3 days'", "1 month 3 days"),
        ("'00000000-0000-0000-0000-000000000001'::UUID", "00000000-0000-0000-0000-000000000001"),
        ("'\\xFF\\x00a'::BLOB", "/wBh"),
        ("MAP {1: 'a', 2: NULL}", {"1": "a", "2": None}),
        ("[{'a': [1, 2]}, NULL]", [{"a": [1, 2]}, None]),
        ("'{\"a\": 1}'::JSON", {"a": 1}),
        ("'101'::BIT", "101"),
        ("'é' || chr(10) || chr(0)", "é\n\0"),
        ("true", True),
    ],
)
def test_every_value_is_valid_json(index, sql, value):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    with Query(index, f"SELECT {sql} AS v") as q:
        (line,) = q.json_lines()
    assert json.loads(line, parse_constant=refuse) == {"v": value}


def test_columns_of_one_name_are_all_there(index):
    with Query(index, 'SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS "x""y"') as q:
        (line,) = q.json_lines()
        assert list(json.loads(line).values()) == [1, 2, 3, 4]
    with Query(index, "SHOW TABLES") as q:
        assert ("postings",) in list(q.texts())
    with Query(index, "SELECT unnest([2, 3, 1]) AS x ORDER BY x DESC") as q:
        assert list(q.texts()) == [("3",), ("2",), ("1",)]


def test_an_answer_streams(index):
    with Query(index, "SELECT i, repeat('x', 1000) FROM range(100000000) t(i)") as q:
        rows = q.json_lines()
        assert [json.loads(next(rows))["i"] for _ in range(2500)] == list(range(2500))


def test_a_query_beyond_its_memory_is_one_line(index):
    with (
        pytest.raises(SparsightError, match="Out of Memory") as e,
        Query(index, "SELECT list(repeat('x', 100000) || i) FROM range(100000) t(i)") as q,
    ):
        next(q.texts())
    assert not isinstance(e.value, CallError)


@pytest.mark.parametrize("query", ["SELECT count(*) FROM range(1000000000000) t(i) WHERE hash(i) = 7"])
def test_ctrl_c_ends_a_query(index, query):
    process = begin("sql", query, "--index", index)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.strip()) == (130, "Error: interrupted")
