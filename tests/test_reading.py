"""Reading pictures at the decoder's speed: what must not cost, and must stay the same; progress as people see it."""

from __future__ import annotations

import io
import re
import struct
import sys
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import jpeg
from PIL import Image

from indexer.encode import encode_files
from indexer.pictures.bare import PictureError, bare
from indexer.pictures.files import decode, read_file
from indexer.pictures.folders import Picture, read_pictures
from indexer.store import Journal
from training import terminal
from training.encoders import open_encoder
from training.terminal import progress

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8))


def test_a_file_is_read_with_no_more_memory_than_it_has(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x" * 100_000)
    tracemalloc.start()
    data = read_file(tmp_path / "a.jpg")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data == b"x" * 100_000
    assert peak < 1_000_000


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no file here says that it is empty and is not")
def test_a_file_with_more_in_it_than_its_size_says_is_read_to_its_end():
    assert read_file("/proc/self/status").endswith(b"\n")


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_blocks": 8}])
def test_a_jpeg_is_what_pillow_alone_makes_of_it(settings):
    data = jpeg((0xFFE2, b"a profile"), image=NOISE, **settings)
    assert len(data) > 4 * 65536  # Pillow gives its decoder so many bytes at a time
    with Image.open(io.BytesIO(data)) as file:
        file.draft("RGB", (256, 256))
        assert np.array_equal(np.asarray(file), np.asarray(decode(data, 256)))
        assert file.size == (400, 300)


def test_a_picture_of_one_scan_is_not_searched_for_more():
    """libjpeg refuses any scan after one that holds all channels, so that nobody needs to count what follows."""
    data = jpeg((0xFFE2, b"a profile"), image=NOISE)
    plain = jpeg(image=NOISE)
    behind = b"".join(b"\xff\xda\0\x0c" + bytes(10) + b"\0" * 20 for _ in range(1000))
    assert bare(data + behind).getvalue() == plain + behind
    assert bare(data[:-2] + behind).getvalue() == plain[:-2] + behind
    with pytest.raises(PictureError, match="damaged"):
        decode(data[:-2] + behind)


@pytest.mark.parametrize("frame", [0xC0, 0xC1, 0xC2, 0xC9])
def test_scans_of_a_channel_each_are_counted(frame):
    """They are kept apart from scans that hold all channels by the frame's own count of these."""
    sof = bytes([0xFF, frame]) + struct.pack(">HBHHB", 17, 8, 30, 40, 3) + bytes(9)
    scan = b"\xff\xda\0\x08\x01" + bytes(5) + b"abc"
    with pytest.raises(PictureError, match="too many scans"):
        bare(b"\xff\xd8" + sof + scan * 101 + b"\xff\xd9")
    bare(b"\xff\xd8" + sof + scan * 100 + b"\xff\xd9")


def test_torch_computes_alone_in_threads_that_read(tmp_path):
    """It would start as many threads again beside each of them; what it does elsewhere is left as it was."""
    NOISE.save(tmp_path / "a.png")
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(3)
        read = read_pictures([str(tmp_path / "a.png")] * 6, lambda p: torch.get_num_threads(), 32, ahead=2, workers=2)
        assert [p.prepared for p in read if isinstance(p, Picture)] == [1] * 6
        assert torch.get_num_threads() == 3
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [3]
    finally:
        torch.set_num_threads(before)


def test_progress_for_a_file_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    with progress("encode", 1500) as step:
        for n in (1000, 200, 300):
            step(n)
    err = capsys.readouterr().err
    assert "\r" not in err
    numbers = r"[\d.e+]+ pic/s"
    wanted = [
        rf"encode    : 1,000 of 1,500, {numbers}, 0:00:0\d left",
        rf"encode    : 1,200 of 1,500, {numbers}, 0:00:0\d left",
        rf"encode    : 1,500 of 1,500 in 0:00:0\d, {numbers}",
    ]
    assert all(re.fullmatch(w, line) for w, line in zip(wanted, err.splitlines(), strict=True)), err


def test_short_works_say_so_once(capsys):
    with progress("code", 10, "row") as step:
        for _ in range(10):
            step(1)
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_shows_the_rate_and_the_time_left(monkeypatch):
    import fcntl
    import os
    import pty
    import termios

    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))  # rows and columns
    with os.fdopen(writing, "w") as terminal_like:
        monkeypatch.setattr(sys, "stderr", terminal_like)
        with progress("encode", 4) as step:
            step(1)
            threading.Event().wait(0.6)  # tqdm draws no more often than each half second
            step(1)
    shown = ""
    with suppress(OSError):  # Linux's answer at the end, once nobody writes
        while chunk := os.read(reading, 65536):
            shown += chunk.decode()
    os.close(reading)
    assert re.search(r"encode +: +50%.*2/4 \[00:00<00:\d\d, +[\d.]+pic/s\]", shown), shown


def test_each_file_counts_as_it_is_read(tmp_path, small_encoder_dir, capsys, monkeypatch):
    """A batch takes long where pictures are large; nothing would be seen to move until its end."""
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    paths = sorted(map(str, tmp_path.iterdir()))
    encoder = open_encoder(str(small_encoder_dir))
    (tmp_path / "index").mkdir()
    read = encode_files(paths, encoder, Journal(tmp_path / "index", encoder), batch_size=100)
    assert list(read.seen) == paths
    told = re.findall(r"(\d) of 6", capsys.readouterr().err)
    assert told == ["1", "2", "3", "4", "5", "6"]
