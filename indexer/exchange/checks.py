"""What the tables of an export must hold, each by itself and together."""

from __future__ import annotations

from indexer.exchange.loading import Loaded
from training.errors import SparsightError


def check_tables(held: Loaded, d: int) -> None:
    """Raises `SparsightError` for the first thing in the tables that is not as it must be."""
    con, read = held.con, held.tables
    for table, key in {"images": "image_id", "concepts": "concept_id", "classes": "class_id", "meta": "key"}.items():
        held.refuse(table, f"SELECT {key} FROM {table} GROUP BY 1 HAVING count(*) > 1", f"{key} {{}} is there twice")
    held.refuse("images", "SELECT image_id FROM images WHERE image_id < 0", "image_id {} is below 0")
    for table, name in {"images": "path", "concepts": "name", "classes": "name"}.items():
        held.refuse(
            table, f"SELECT {name} FROM {table} GROUP BY 1 HAVING count(*) > 1", f"{name} {{!r}} is there twice"
        )
        sql = f"SELECT {name} FROM {table} WHERE trim({name}) = '' OR contains({name}, chr(0)) OR {name} IS NULL"
        held.refuse(table, sql, f"{name} {{!r}} names nothing")
    sql = "SELECT name FROM concepts WHERE contains(name, chr(10)) OR list_count(aliases) < len(aliases)"
    held.refuse("concepts", sql, "{!r}: its name or an alias is no line of text")
    for table, key in {"concepts": "concept_id", "classes": "class_id"}.items():
        count = f"(SELECT count(*) FROM {table})"
        sql = f"SELECT {key} FROM {table} WHERE {key} NOT BETWEEN 0 AND {count} - 1"
        held.refuse(table, sql, f"{key} {{}} is not of 0, 1, 2, …")
    held.refuse("concepts", "SELECT max(source) FROM concepts HAVING min(source) <> max(source)", "{}: a 2nd source")
    for table in sorted({"vectors", "thumbnails"} & read):
        held.refuse(table, f"SELECT image_id FROM {table} GROUP BY 1 HAVING count(*) > 1", "image {} is there twice")
        held.refuse(table, f"SELECT image_id FROM {table} ANTI JOIN images USING (image_id)", "no image has the id {}")
    if "vectors" in read:
        held.refuse("vectors", "SELECT image_id FROM images ANTI JOIN vectors USING (image_id)", "image {} has no row")
    for table, key, name in (
        ("vectors", "image_id", "embedding"),
        ("concepts", "concept_id", "atom"),
        ("classes", "class_id", "embedding"),
        ("means", "modality", "embedding"),
    ):
        if table not in read:
            continue
        sql = f"SELECT {key} FROM {table} WHERE len({name}) <> {d}"
        held.refuse(table, sql, f"{key} {{}}: its {name} has not d = {d} numbers")
        square = f"list_inner_product({name}::DOUBLE[], {name}::DOUBLE[])"
        bound = f"isfinite({square})" if table == "means" else f"abs(sqrt({square}) - 1) <= 1e-3"
        what = "is not finite" if table == "means" else "is no unit vector"
        held.refuse(table, f"SELECT {key} FROM {table} WHERE NOT ({bound})", f"{key} {{}}: its {name} {what}")
    if sorted(row[0] for row in con.execute("SELECT modality FROM means").fetchall()) not in ([], ["image", "text"]):
        raise SparsightError("means: it must hold image and text once each, or nothing; export again")
    if "codes" in read:
        _check_codes(held)


def _check_codes(held: Loaded) -> None:
    for key, table in (("image_id", "images"), ("concept_id", "concepts")):
        sql = f"SELECT {key} FROM codes ANTI JOIN {table} USING ({key})"
        held.refuse("codes", sql, f"no {table} row has {key} {{}}")
    for part in held.by_image("codes"):  # a picture's codes lie in one part
        sql = f"SELECT image_id FROM ({part.sql}) GROUP BY image_id, concept_id HAVING count(*) > 1"
        held.refuse("codes", sql, "image {} has a concept twice")
    bad = "SELECT image_id FROM codes WHERE NOT (isfinite(weight) AND weight >= 0)"
    held.refuse("codes", bad, "a weight of image {} is negative or not finite")
