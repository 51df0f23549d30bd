"""What PATH may hold for a build on Ray: the same pictures, however they are packed; what cannot be read is named."""

from __future__ import annotations

import io
import json
import os
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import coloured_pictures
from PIL import Image

from indexer.config import IndexConfig
from indexer.pictures import Picture, Skipped
from indexer.ray import RayOptions
from indexer.ray.sources import Inputs, find_inputs
from indexer.ray.stages import Named, Read
from training.encoders import open_encoder
from training.errors import CallError, SparsightError

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
N, SIZE = 23, 5
OLD = 1_700_000_000  # a time of change long enough ago that a file is known by it
LABELS = ["red", "green", "dark blue"]


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


PNGS = [png(pixels) for pixels in coloured_pictures(N).pixels]
KINDS = ["tar", "parquet", "parquet bytes", "arrow", "one parquet file"]


def write_folder(root: Path) -> None:
    root.mkdir()
    for i, data in enumerate(PNGS):
        (root / f"{i:03d}.png").write_bytes(data)
        os.utime(root / f"{i:03d}.png", (OLD, OLD))


def write_tar(path: Path, rows: range) -> None:
    with tarfile.open(path, "w") as tar:
        for i in rows:
            parts = {"png": PNGS[i], "txt": b"a caption", "cls" if i % 2 else "json": b""}
            parts["cls" if i % 2 else "json"] = (
                f"{LABELS[i % 3]}\n".encode() if i % 2 else json.dumps({"label": LABELS[i % 3], "url": "x"}).encode()
            )
            for ending, data in parts.items():
                member = tarfile.TarInfo(f"{i:03d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def table_of(rows: range, *, struct: bool, names: bool) -> pa.Table:
    cells = [{"bytes": PNGS[i], "path": None} if struct else PNGS[i] for i in rows]
    labels = [i % 3 if names else LABELS[i % 3] for i in rows]
    table = pa.table({"number": list(rows), "image": cells, "label": labels})
    if not names:
        return table
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": LABELS}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def packed(kind: str, root: Path) -> Path:
    """The pictures in two shards; returns the PATH to give."""
    root.mkdir()
    for number, rows in enumerate([range(13), range(13, N)]):
        if kind == "tar":
            write_tar(root / f"{number:05d}.tar", rows)
        elif kind == "arrow":
            table = table_of(rows, struct=True, names=True)
            with (
                pa.OSFile(str(root / f"data-{number:05d}.arrow"), "wb") as f,
                pa.ipc.new_stream(f, table.schema) as out,
            ):
                out.write_table(table, max_chunksize=6)
            (root / "state.json").write_text("{}")
        elif kind == "one parquet file":
            pq.write_table(table_of(range(N), struct=True, names=False), root / "all.parquet", row_group_size=7)
        else:
            (root / "data").mkdir(exist_ok=True)
            table = table_of(rows, struct=kind == "parquet", names=kind == "parquet")
            pq.write_table(table, root / "data" / f"train-{number}.parquet", row_group_size=7)
    return root / "all.parquet" if kind == "one parquet file" else root


def inputs_of(root: Path, **more: str) -> Inputs:
    return find_inputs(root, IndexConfig(), RayOptions(**more), SIZE, labels=False)


def read(root: Path, encoder: object) -> tuple[list[Picture | Skipped], list[str | None]]:
    """What the stage that reads gives, called as a worker calls it."""
    stage, pictures, labels = Read(encoder.source, encoder.fingerprint), [], []
    for part in inputs_of(root).slices:
        assert 0 < len(part.paths) <= SIZE
        [(_, found, said)] = stage([Named(part, root.parent / "made" / part.key())])
        pictures, labels = pictures + found, labels + said
    return pictures, labels


@pytest.fixture(scope="module")
def encoder():
    return open_encoder()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_pictures_are_those_of_the_folder(tmp_path, encoder, kind):
    write_folder(tmp_path / "folder")
    expected, _ = read(tmp_path / "folder", encoder)
    found, labels = read(packed(kind, tmp_path / "packed"), encoder)
    assert [p.content_hash for p in found] == [p.content_hash for p in expected]
    assert all(np.array_equal(a.prepared, b.prepared) for a, b in zip(found, expected, strict=True))
    assert [p.thumbnail for p in found] == [p.thumbnail for p in expected]
    assert labels == [LABELS[i % 3] for i in range(N)]
    assert len({p.path for p in found}) == N
    assert not any(Path(p.path).is_absolute() for p in found)  # no file has such a path


def test_slices_of_a_group_of_rows_are_read_in_one_pass_and_some_may_be_left_out(tmp_path, encoder):
    table = table_of(range(N), struct=True, names=False)
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=N)
    slices = inputs_of(tmp_path / "all.parquet").slices
    assert len(slices) == 5
    assert {part.group for part in slices} == {0}
    stage, chosen = Read(encoder.source, encoder.fingerprint), [slices[1], slices[3], slices[4]]
    found = [p.path for _, some, _ in stage([Named(part, tmp_path / part.key()) for part in chosen]) for p in some]
    assert found == [path for part in chosen for path in part.paths]


def test_a_picture_that_cannot_be_read_is_skipped_with_its_reason(tmp_path, encoder):
    cells = [{"bytes": PNGS[0], "path": None}, {"bytes": b"", "path": None}, {"bytes": None, "path": None}]
    cells += [{"bytes": b"no picture", "path": None}, {"bytes": None, "path": "gone.png"}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "some.parquet")
    found, _ = read(tmp_path / "some.parquet", encoder)
    assert isinstance(found[0], Picture)
    reasons = [p.reason for p in found[1:]]
    assert reasons[0] == "it is empty"
    assert reasons[1] == "its row holds no picture"
    assert reasons[2].startswith("it is no picture that can be read")
    assert reasons[3] == "No such file or directory"


def test_one_picture_file_makes_a_folder_one_of_pictures(tmp_path):
    write_folder(tmp_path / "folder")
    write_tar(tmp_path / "folder" / "backup.tar", range(3))
    assert inputs_of(tmp_path / "folder").pictures == N


@pytest.mark.parametrize("kind", ["tar", "parquet", "arrow"])
def test_a_damaged_shard_is_named(tmp_path, encoder, kind):
    root = packed(kind, tmp_path / "packed")
    shard = sorted(p for p in root.rglob("*.*") if p.suffix in (".tar", ".parquet", ".arrow"))[1]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 2 // 3])
    with pytest.raises(SparsightError, match=rf"the shard .*{shard.name} cannot be read: .*; mend it or take it away"):
        read(root, encoder)


def test_a_shard_that_ends_while_it_is_read_is_named(tmp_path, encoder):
    root = packed("tar", tmp_path / "packed")
    part = inputs_of(root).slices[0]
    (root / "00000.tar").write_bytes(b"short")
    with pytest.raises(SparsightError, match=r"the shard .*00000.tar cannot be read: it ends within a picture"):
        list(Read(encoder.source, encoder.fingerprint)([Named(part, tmp_path / "made")]))


def test_the_column_of_pictures_is_found_or_asked_for(tmp_path):
    table = pa.table({"a": [PNGS[0]], "b": [PNGS[1]], "n": [1]})
    pq.write_table(table, tmp_path / "two.parquet")
    with pytest.raises(CallError, match="has columns a, b: name one with --column"):
        inputs_of(tmp_path)
    assert inputs_of(tmp_path, column="b").slices[0].column == "b"
    with pytest.raises(CallError, match=r"--column c: .* has a, b, n"):
        inputs_of(tmp_path, column="c")
    with pytest.raises(CallError, match=r"--column n: .* holds int64 there"):
        inputs_of(tmp_path, column="n")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "two.parquet")
    with pytest.raises(CallError, match="has no column of pictures among n"):
        inputs_of(tmp_path)


def test_a_slice_is_named_by_its_content(tmp_path):
    write_folder(tmp_path / "folder")
    before = [part.key("encoder") for part in inputs_of(tmp_path / "folder").slices]
    assert before == [part.key("encoder") for part in inputs_of(tmp_path / "folder").slices]
    assert set(before).isdisjoint(part.key("another") for part in inputs_of(tmp_path / "folder").slices)
    (tmp_path / "folder" / "007.png").write_bytes(PNGS[0] + b"longer")
    after = [part.key("encoder") for part in inputs_of(tmp_path / "folder").slices]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True, True]
