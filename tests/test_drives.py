"""Drives that promise less than a local disk: no sync, no locks, no mapping, nothing that can be written."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from contents import make_contents

from indexer.store import Store, write_store, writing
from training.errors import SparsightError
from training.files import write_whole

fsync = os.fsync


@pytest.mark.parametrize("what", ["folders", "all"])
@pytest.mark.parametrize("code", ["EINVAL", "ENOTSUP", "ENOSYS", "EPERM", "EBADF", "EACCES"])
def test_a_drive_that_cannot_sync_is_written_all_the_same(tmp_path, monkeypatch, code, what):
    def refuse(handle: int) -> None:
        if what == "all" or stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    with writing(tmp_path, "index"):
        write_store(tmp_path, make_contents())
    with Store(tmp_path) as store:
        assert len(store) == 12


@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EDQUOT"])
def test_a_disk_that_fails_at_the_sync_keeps_the_earlier_file(tmp_path, monkeypatch, code):
    file = tmp_path / "file"
    write_whole(file, b"earlier")

    def fail(handle: int) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, code))):
        write_whole(file, b"later")
    assert file.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("code", ["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "EINVAL", "EIO", "EBADF"])
def test_a_lock_that_the_drive_cannot_give_is_told_as_that(tmp_path, monkeypatch, code):
    def refuse(handle: int, operation: int) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SparsightError) as e, writing(tmp_path, "index"):
        pytest.fail("there is no lock")
    assert "being changed" not in str(e.value)
    assert os.strerror(getattr(errno, code)) in str(e.value)
    assert "choose another --index" in str(e.value)


def test_a_drive_without_locks_is_locked_by_a_file(tmp_path, monkeypatch):
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with writing(tmp_path, "index"), pytest.raises(SparsightError, match="being changed by `sparsight index`"):
        other(tmp_path)
    with writing(tmp_path, "index"):
        pass


def other(folder: Path) -> None:
    with writing(folder, "add"):
        pytest.fail("it is locked")


@pytest.mark.parametrize("code", ["ENODEV", "EINVAL"])
def test_a_drive_that_maps_no_files_is_read(tmp_path, monkeypatch, code):
    write_store(tmp_path, make_contents())
    with Store(tmp_path) as store:
        X = np.array(store.embeddings())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(np, "memmap", refuse)
    with Store(tmp_path) as store:
        assert (store.embeddings() == X).all()
        assert (store.embeddings_of([3]) == X[3]).all()


NOBODY = """
import os, sys
sys.path.insert(0, os.getcwd())
import numba, training.compiled
numba.njit(lambda x: x)(1)  # what it needs is read while it can be
os.setuid(65534)
import double
assert double.double(21) == 42
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become a user without a home")
def test_an_installation_that_nobody_can_write_compiles_anew(tmp_path):
    (tmp_path / "double.py").write_text(
        "from training.compiled import compiled\n@compiled()\ndef double(x):\n    return 2 * x\n"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if "pytest" in str(folder):
            folder.chmod(0o755)
    env = {**os.environ, "HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent", "PYTHONPATH": os.getcwd()}
    env.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", NOBODY], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "NUMBA_CACHE_DIR" in done.stderr
