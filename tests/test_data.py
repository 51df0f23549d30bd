"""CIFAR-10 from disk, and pictures from files: the good, the damaged and the odd."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from indexer.coding import read_words
from indexer.pictures.files import read_picture, thumbnail
from training.data.cifar10 import MissingDataError, load_cifar10, term_of
from training.errors import SparsightError


def test_cifar10_with_its_search_terms(cifar_root):
    train = load_cifar10(cifar_root, ("train",))
    assert train.pixels.shape == (50_000, 32, 32, 3)
    assert len(set(train.terms)) == 389
    assert train.terms.count("dump truck") == 457
    assert np.bincount(train.labels).tolist() == [5000] * 10


def test_cifar10_agrees_with_torchvision(cifar_root):
    from torchvision.datasets import CIFAR10

    ours, theirs = load_cifar10(cifar_root, ("test",)), CIFAR10(str(cifar_root), train=False)
    np.testing.assert_array_equal(ours.pixels, theirs.data)
    assert ours.labels.tolist() == theirs.targets


def test_a_damaged_batch_is_named(cifar_root, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data = bytearray((cifar_root / folder.name / "test_batch").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "test_batch").write_bytes(data)
    with pytest.raises(SparsightError, match=r"damaged CIFAR-10 batch .*test_batch"):
        load_cifar10(tmp_path, ("test",))
    (folder / "test_batch").unlink()
    with pytest.raises(SparsightError, match="test_batch"):
        load_cifar10(tmp_path, ("test",))


def test_no_data_and_no_network_is_one_clear_fault(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(MissingDataError, match="SPARSIGHT_DATA"):
        load_cifar10(tmp_path / "none")


def test_terms_come_from_file_names():
    assert term_of("fire_engine_s_000148.png") == "fire engine"
    assert term_of("bufo_bufo_s_001250.png") == "bufo bufo"


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tif", "avif"])
@pytest.mark.parametrize("size", [(1, 1), (500, 40), (33, 77)])
def test_any_size_and_format_is_read(tmp_path, kind, size):
    path = tmp_path / f"p.{kind}"
    Image.new("RGB", size, (200, 30, 30)).save(path)
    picture = read_picture(path, 32)
    assert picture.size == size
    pixels = np.asarray(picture)
    assert np.abs(pixels.astype(int) - (200, 30, 30)).max() <= 12


def test_a_missing_picture_is_named(tmp_path):
    for path, reason in ((tmp_path / "p.png", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(SparsightError, match=rf"{path}: {reason}"):
            read_picture(path, 32)


def test_thumbnails_keep_their_picture(tmp_path):
    ramp = np.linspace(0, 255, 32)
    picture = np.stack([*np.meshgrid(ramp, ramp), np.full((32, 32), 90)], 2).astype(np.uint8)
    (tmp_path / "t.jpg").write_bytes(thumbnail(picture))
    shown = np.asarray(Image.open(tmp_path / "t.jpg")).astype(int)
    assert np.abs(shown - picture).mean() < 4


def test_word_lists(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# mine\n\nfire  engine\ncat\ncat\n", encoding="utf-8")
    assert read_words(path) == ["fire engine", "cat"]
    path.write_text("one\n")
    with pytest.raises(SparsightError, match="at least 2"):
        read_words(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SparsightError, match="UTF-8"):
        read_words(path)
    shutil.rmtree(tmp_path)
    with pytest.raises(SparsightError, match=r"words\.txt"):
        read_words(path)
