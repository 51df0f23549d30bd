"""The text towers of hub models in numpy: against the whole model, without torch, and with no other weight read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import FAMILIES, make_folder

from indexer.build import index_pictures
from indexer.config import IndexConfig
from search.index import Index
from training import digests
from training.encoders import open_encoder, open_text_encoder
from training.encoders.hub import HubEncoder
from training.encoders.hub_files import hub_fingerprint
from training.encoders.hub_text import DEFAULTS, HubTextEncoder
from training.encoders.numpy_layers import ACTIVATIONS
from training.encoders.tensors import Tensors
from training.errors import SparsightError

TEXTS = ["cat", "A photo of a Fire Engine!", "", "ünknown “words”", "so long a text that it is cut off at the end"]
pytestmark = pytest.mark.filterwarnings("ignore::training.errors.CutTextWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {family: make_folder(family, root / f"tiny-{family}") for family in FAMILIES}


@pytest.fixture
def copied(folders, tmp_path) -> Path:
    """A CLIP folder to change."""
    return Path(shutil.copytree(folders["clip"], tmp_path / "copied"))


def settings(folder: Path, name: str, **changed: object) -> None:
    """Changes settings in one of a folder's files; None takes one away."""
    told = json.loads((folder / name).read_text()) | changed
    (folder / name).write_text(json.dumps({k: v for k, v in told.items() if v is not None}))


def assert_same(folder: Path, atol: float = 1e-6) -> None:
    """The light encoder is one, and gives what the whole one gives."""
    light, whole = open_text_encoder(str(folder)), open_encoder(str(folder))
    assert type(light) is HubTextEncoder
    assert isinstance(whole, HubEncoder)
    assert (light.name, light.fingerprint, light.dim) == (whole.name, whole.fingerprint, whole.dim)
    np.testing.assert_allclose(light.encode_texts(TEXTS), whole.encode_texts(TEXTS), atol=atol)
    np.testing.assert_allclose(light.encode_concepts(["ship"]), whole.encode_concepts(["ship"]), atol=atol)
    assert [light.left_out(t) for t in TEXTS] == [whole.left_out(t) for t in TEXTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_embedded_as_by_the_whole_model(folders, family):
    assert_same(folders[family])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("parts", [1, 3])
def test_weights_of_any_precision_in_one_file_or_in_several(copied, dtype, parts):
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(copied).to(getattr(torch, dtype))
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="5GB" if parts == 1 else "70KB")
    assert len(list(copied.glob("*.safetensors"))) >= parts
    assert_same(copied)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation(copied, activation):
    told = json.loads((copied / "config.json").read_text())["text_config"]
    settings(copied, "config.json", text_config=told | {"hidden_act": activation})
    assert_same(copied)


def test_early_configurations_of_clip(copied):
    """They name a wrong token for the end of a text, and hold a second form of their settings."""
    told = json.loads((copied / "config.json").read_text())["text_config"]
    settings(copied, "config.json", text_config=told | {"eos_token_id": 2})
    tokens = json.loads((copied / "tokenizer.json").read_text())
    last = len(tokens["model"]["vocab"]) - 1
    vocabulary = tokens["model"]["vocab"]
    moved = next(t for t, i in vocabulary.items() if i == last)
    vocabulary["<|endoftext|>"], vocabulary[moved] = last, 1
    for added in tokens["added_tokens"]:
        added["id"] = vocabulary[added["content"]]
    (copied / "tokenizer.json").write_text(json.dumps(tokens))
    assert_same(copied)
    settings(copied, "config.json", text_config=None, text_config_dict=told | {"eos_token_id": 2})
    assert_same(copied)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_configuration_leaves_out_is_what_transformers_assumes(family):
    import transformers

    kinds = {"clip": "CLIPTextConfig", "siglip": "SiglipTextConfig", "siglip2": "Siglip2TextConfig"}
    assumed = getattr(transformers, kinds[family])()
    assert {key: getattr(assumed, key) for key in DEFAULTS[family]} == DEFAULTS[family]


@pytest.mark.parametrize(
    ("family", "named"),
    [
        ("clip", "CLIPTokenizerFast"),
        ("clip", None),
        ("siglip", "GemmaTokenizerFast"),
        ("siglip", "Siglip2Tokenizer"),
        ("siglip2", "GemmaTokenizer"),
        ("siglip2", None),
    ],
)
def test_the_tokenizer_is_the_one_that_transformers_opens(folders, tmp_path, family, named):
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(folders[family], tmp_path / "copied"))
    settings(folder, "tokenizer_config.json", tokenizer_class=named)
    light = open_text_encoder(str(folder))
    assert type(light) is HubTextEncoder
    assert type(light.tokenizer) is type(AutoTokenizer.from_pretrained(folder))
    assert_same(folder)


def test_a_model_that_numpy_cannot_read_is_opened_whole(copied):
    told = json.loads((copied / "config.json").read_text())["text_config"]
    settings(copied, "config.json", text_config=told | {"hidden_act": "relu"})
    assert isinstance(open_text_encoder(str(copied)), HubEncoder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_query_imports_no_torch(folders, family):
    code = (
        "import sys; from training.encoders import open_text_encoder\n"
        f"open_text_encoder({str(folders[family])!r}).encode_texts(['a cat'])\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def change_weights(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_other_tower_is_not_read(copied):
    """Nor a row of the vocabulary that no token of the text names: what is broken there is not seen."""

    def spoil(tensors):
        tensors["vision_model.post_layernorm.weight"][:] = float("nan")
        tensors["text_model.embeddings.token_embedding.weight"][60] = float("nan")

    before = open_text_encoder(str(copied)).encode_texts(["cat"])
    change_weights(copied, spoil)
    light = open_text_encoder(str(copied))
    np.testing.assert_array_equal(light.encode_texts(["cat"]), before)
    with pytest.raises(SparsightError, match=r"token_embedding.weight has values that are not finite") as e:
        light.encode_texts(["[["])  # the first of the two is token 60
    assert str(copied) in str(e.value)


@pytest.mark.parametrize("name", ["final_layer_norm.bias", "encoder.layers.1.mlp.fc1.weight"])
def test_a_damaged_text_tower_is_told_as_of_the_whole_model(copied, name):
    key = f"text_model.{name}"
    change_weights(copied, lambda t: t[key].view(-1)[3:4].fill_(float("nan")))
    with pytest.raises(SparsightError, match=f"tensor {key} has values that are not finite"):
        open_text_encoder(str(copied))
    change_weights(copied, lambda t: t.pop(key))
    with pytest.raises(SparsightError, match=f"tensor {key} is missing"):
        open_text_encoder(str(copied))


def test_a_cut_file_is_told(copied):
    data = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(SparsightError, match="damaged encoder"):
        open_text_encoder(str(copied))


def test_rows_of_a_matrix_are_read_alone(copied):
    tensors = Tensors([copied / "model.safetensors"])
    name = "text_model.embeddings.token_embedding.weight"
    ids = np.array([[3, 0, 3], [7, 1, 0]])
    np.testing.assert_array_equal(tensors.rows(name)[ids], tensors.read(name)[ids])
    for beyond in (10_000, -1):
        with pytest.raises(IndexError, match="rows"):
            tensors.rows(name)[np.array([beyond])]


def test_the_hash_of_a_large_file_is_remembered_until_the_file_changes(copied, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 1000)
    monkeypatch.setattr(digests, "SETTLED", -60.0)  # as if some time had passed since the file was written
    weights = copied / "model.safetensors"
    before = hub_fingerprint(copied)
    notes = list(digests.cache_folder().iterdir())
    assert notes
    read: list[Path] = []
    hashed = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda f, kind: read.append(Path(f.name)) or hashed(f, kind))
    assert hub_fingerprint(copied) == before
    assert weights not in read
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    times = weights.stat()
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hub_fingerprint(copied) != before
    data[-1] ^= 1
    weights.write_bytes(data)
    for note in notes:
        note.write_text("damaged")
    assert hub_fingerprint(copied) == before
    assert weights in read


def test_a_file_that_has_just_changed_is_not_remembered(copied, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 1000)
    (copied / "model.safetensors").touch()
    before = hub_fingerprint(copied)
    assert not list(tmp_path.glob("cache/*/*.json"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made there
    monkeypatch.setattr(digests, "SETTLED", -60.0)
    assert hub_fingerprint(copied) == before


def test_an_index_takes_over_no_encoder_that_is_centred_otherwise(folders, pictures, tmp_path):
    encoder = open_encoder(str(folders["clip"]))
    for name, n in (("a", 20), ("b", 20), ("c", 30)):
        index_pictures(tmp_path / name, pictures.first(n), encoder, IndexConfig(dictionary="classes"))
    a, same, other = (Index(tmp_path / name, device="cpu") for name in "abc")
    with a, same, other:
        same.take_encoders(a)  # which has opened none yet
        opened = a.text_encoder
        for index in (same, other):
            index.take_encoders(a)
        assert same.text_encoder is opened
        assert other.text_encoder is not opened
