"""Encoders by their names: every kind keeps the protocol, and what centres one centres pictures and texts alike."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_hub import make_folder

from training.encoders import (
    CentredEncoder,
    Encoder,
    Means,
    TextEncoder,
    centre,
    fingerprint_of,
    open_encoder,
    open_text_encoder,
)
from training.encoders.batches import in_batches
from training.encoders.numpy_text import NumpyTextEncoder
from training.errors import SparsightError

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ("trained", "hub", "centred trained", "centred hub")
TEXTS = ["a cat", "a photo of a dark ship"]


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    return make_folder("clip", tmp_path_factory.mktemp("hub") / "tiny-clip")


@pytest.fixture(scope="module")
def names(small_encoder_dir, hub_folder) -> dict[str, str]:
    return {"trained": str(small_encoder_dir), "hub": str(hub_folder)}


def means_for(encoder: TextEncoder) -> Means:
    """Means of no modality in particular, of the length that an index's have."""
    d = encoder.encode_texts(["x"]).shape[1]
    image, text = np.random.default_rng(0).normal(0, 0.1, (2, d)).astype(np.float32)
    return Means(image, text)


@pytest.fixture(scope="module", params=KINDS)
def encoder(request, names) -> Encoder:
    name = names[request.param.split()[-1]]
    return open_encoder(name, means=means_for(open_encoder(name)) if "centred" in request.param else None)


def assert_unit_rows(A: np.ndarray, n: int, d: int) -> None:
    assert A.shape == (n, d)
    assert A.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(A, axis=1), 1, atol=1e-5)


def test_every_kind_keeps_the_protocol(encoder):
    assert isinstance(encoder, Encoder)
    text = (encoder.name, encoder.source, encoder.trained_on)
    assert all(isinstance(value, str) and value for value in text)
    assert len(bytes.fromhex(encoder.fingerprint)) == 32
    assert 0 <= encoder.known_from < 1
    assert all("{}" in template for template in encoder.templates)
    assert all(isinstance(part, str) for pair in encoder.concepts.items() for part in pair)
    assert isinstance(encoder.has_modality_gap, bool)
    assert encoder.device.type == "cpu"


def test_every_kind_encodes_into_unit_rows_any_number_of_things(encoder):
    side = encoder.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    for n in (0, 1, 3):
        assert_unit_rows(encoder.encode_images(pixels[:n]), n, encoder.dim)
    for n in (0, 1, 2):
        assert_unit_rows(encoder.encode_texts(TEXTS[:n]), n, encoder.dim)
    assert_unit_rows(encoder.encode_concepts(["cat", "ship"]), 2, encoder.dim)
    own = encoder.encode_concepts(["cat"], encoder.templates)
    np.testing.assert_allclose(encoder.encode_concepts(["cat"]), own, atol=1e-6)
    assert not np.allclose(encoder.encode_concepts(["cat"], ["there is no {} here"]), own, atol=1e-4)


@pytest.mark.parametrize("kind", ["trained", "hub"])
def test_an_encoder_opens_again_by_its_source(names, kind):
    encoder = open_encoder(names[kind])
    again = open_encoder(encoder.source)
    assert again.fingerprint == encoder.fingerprint == fingerprint_of(encoder.source)
    np.testing.assert_array_equal(again.encode_texts(TEXTS), encoder.encode_texts(TEXTS))


@pytest.mark.parametrize("kind", ["trained", "hub"])
def test_centring_moves_pictures_by_the_one_mean_and_texts_by_the_other(names, kind):
    plain = open_encoder(names[kind])
    means = means_for(plain)
    centred = open_encoder(names[kind], means=means)
    side = plain.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)

    def moved(A: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return (A - mean) / np.linalg.norm(A - mean, axis=1, keepdims=True)

    np.testing.assert_allclose(
        centred.encode_images(pixels), moved(plain.encode_images(pixels), means.image), atol=1e-5
    )
    np.testing.assert_allclose(centred.encode_texts(TEXTS), moved(plain.encode_texts(TEXTS), means.text), atol=1e-5)
    for templates in (None, ["{}", "a {} there"]):
        D = plain.encode_concepts(["cat", "ship"], templates)  # averaged over the prompts first
        np.testing.assert_allclose(centred.encode_concepts(["cat", "ship"], templates), moved(D, means.text), atol=1e-5)
    assert not centred.has_modality_gap
    kept = ("name", "source", "fingerprint", "known_from", "trained_on", "dim", "image_size", "templates", "concepts")
    assert {key: getattr(centred, key) for key in kept} == {key: getattr(plain, key) for key in kept}


def test_a_modality_gap_is_told_of_hub_models_alone(names):
    assert open_encoder(names["hub"]).has_modality_gap
    assert not open_encoder(names["trained"]).has_modality_gap


@pytest.mark.parametrize("kind", ["trained", "hub"])
@pytest.mark.parametrize("is_centred", [False, True])
def test_a_text_encoder_gives_what_the_whole_encoder_gives(names, kind, is_centred):
    means = means_for(open_encoder(names[kind])) if is_centred else None
    whole, light = open_encoder(names[kind], means=means), open_text_encoder(names[kind], means=means)
    assert isinstance(light, TextEncoder)
    assert not isinstance(light, Encoder)
    assert (light.name, light.fingerprint, light.known_from) == (whole.name, whole.fingerprint, whole.known_from)
    np.testing.assert_allclose(light.encode_texts(TEXTS), whole.encode_texts(TEXTS), atol=2e-5)
    np.testing.assert_allclose(light.encode_concepts(["ship"]), whole.encode_concepts(["ship"]), atol=2e-5)
    assert light.encode_texts([]).shape == whole.encode_texts([]).shape


def test_numpy_reads_the_texts_of_what_sparsight_trained(names):
    assert isinstance(open_text_encoder(names["trained"]), NumpyTextEncoder)


def test_a_centred_encoder_can_be_centred_again(names):
    plain = open_encoder(names["hub"])
    means = means_for(plain)
    twice = CentredEncoder(CentredEncoder(plain, means), means)
    once = centre(plain.encode_texts(TEXTS), means.text)
    np.testing.assert_allclose(twice.encode_texts(TEXTS), centre(once, means.text), atol=1e-6)


def test_the_bundled_encoders_fingerprint_is_read_without_opening_it():
    assert fingerprint_of("bundled") == open_text_encoder().fingerprint == open_encoder().fingerprint
    assert open_encoder().source == "bundled"


def test_fingerprints_follow_the_files(names, tmp_path):
    copied = Path(shutil.copytree(names["trained"], tmp_path / "copied"))
    assert fingerprint_of(str(copied)) == fingerprint_of(names["trained"])
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "known_from": 0.25}))
    assert fingerprint_of(str(copied)) != fingerprint_of(names["trained"])


def test_a_fingerprint_of_what_is_not_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fingerprint_of("org/model") is None
    with pytest.raises(OSError, match="none"):
        fingerprint_of(str(tmp_path / "none"))


def test_a_folder_goes_before_a_hub_model_of_its_name(hub_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(hub_folder, tmp_path / "org" / "model")
    encoder = open_encoder("org/model")
    assert (encoder.name, encoder.source) == ("model", str(tmp_path / "org" / "model"))
    assert fingerprint_of("org/model") == encoder.fingerprint


@pytest.mark.parametrize("opens", [open_encoder, open_text_encoder])
def test_a_folder_without_an_encoder_is_named(opens, tmp_path):
    with pytest.raises(SparsightError, match=str(tmp_path)):
        opens(str(tmp_path))


def test_batches_cover_everything_once_and_in_order():
    seen: list[int] = []

    def encode(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return batch.astype(np.float32)

    items = np.arange(10)[:, None]
    np.testing.assert_array_equal(in_batches(encode, items, 4, 1), items)
    assert seen == [4, 4, 2]
    assert in_batches(encode, items[:0], 4, 1).shape == (0, 1)


def views_of(encoder, pixels) -> np.ndarray:
    """The embeddings (6, n, d) of the views of pictures (n, s, s, 3), each made by numpy: the picture, shifted down and
    right, shifted up and left, and the mirror image of each."""
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    views = [pixels, padded[:, :-2, :-2], padded[:, 2:, 2:]]
    views += [view[:, :, ::-1] for view in views]
    return np.stack([one_view(encoder, view) for view in views])


def one_view(encoder, pixels) -> np.ndarray:
    x = encoder.model.normalise(torch.as_tensor(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2))
    with torch.inference_mode():
        return encoder.model.embed_images(x).numpy()


def unit(A: np.ndarray) -> np.ndarray:
    return A / np.linalg.norm(A, axis=1, keepdims=True)


@pytest.mark.parametrize("bar", ["none", "some"])
def test_pictures_in_doubt_alone_are_seen_in_all_views(names, bar, monkeypatch):
    monkeypatch.setattr("training.encoders.trained.fast_bf16", lambda device: False)
    encoder = open_encoder(names["trained"])
    side = encoder.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (12, side, side, 3), np.uint8)
    x, down, up, mirrored, down_mirrored, up_mirrored = views_of(encoder, pixels)
    two = (down + up_mirrored) / 2
    cosines = np.sort(unit(two) @ encoder.encode_concepts([*dict.fromkeys(encoder.concepts.values())]).T, axis=1)
    lead = cosines[:, -1] - cosines[:, -2]
    sure_from = float(np.median(lead)) if bar == "some" else 0.0
    encoder.model.config = replace(encoder.model.config, flip_average=True, shift_average=True, sure_from=sure_from)
    doubtful = lead < sure_from if bar == "some" else np.ones(len(pixels), bool)
    assert doubtful.sum() == (6 if bar == "some" else 12)
    six = two + x + mirrored + (up + down_mirrored) / 2
    wanted = unit(np.where(doubtful[:, None], six, two))
    np.testing.assert_allclose(encoder.encode_images(pixels), wanted, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_images(pixels[~doubtful]), wanted[~doubtful], atol=1e-5)
