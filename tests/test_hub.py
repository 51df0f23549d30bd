"""Encoders of transformers: tiny random CLIP, SigLIP and SigLIP 2 folders through every command.

Embeddings are held against plain transformers calls, centring against plain numpy; each fault is one line.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import FAMILIES, TOKENS, make_folder

from indexer.build import index_pictures
from indexer.config import IndexConfig
from indexer.store import Store
from training.data.captions import fill
from training.data.cifar10 import CLASSES
from training.encoders import centre, mean_of, open_encoder, open_text_encoder
from training.encoders import hub as hub_module
from training.encoders.hub import HubEncoder
from training.encoders.hub_files import hub_fingerprint
from training.errors import CutTextWarning, SparsightError


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {family: make_folder(family, root / f"tiny-{family}") for family in FAMILIES}


@pytest.fixture(scope="module", params=FAMILIES)
def index(request, folders, pictures, tmp_path_factory) -> tuple[Path, Path]:
    """(index, encoder folder) of a family."""
    folder = tmp_path_factory.mktemp(request.param)
    index_pictures(folder, pictures, open_encoder(str(folders[request.param])), IndexConfig(dictionary="classes"))
    return folder, folders[request.param]


@pytest.fixture
def copied(folders, tmp_path) -> Path:
    """A CLIP folder to damage."""
    return Path(shutil.copytree(folders["clip"], tmp_path / "copied"))


def reference(folder: Path, texts: list[str], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of texts and pictures by transformers' own processor and forward pass."""
    import torch
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    padding = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "padding_side": "right"}
    tokens = processor.tokenizer([t.lower() for t in texts], return_tensors="pt", **padding)
    if model.config.model_type != "clip":
        del tokens["attention_mask"]
    images = processor.image_processor([Image.fromarray(p) for p in pixels], return_tensors="pt")
    with torch.inference_mode():
        out = model(**tokens, **images)
    return tuple(  # type: ignore[return-value]
        torch.nn.functional.normalize(z.float(), dim=1).numpy() for z in (out.text_embeds, out.image_embeds)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_transformers_own(folders, family):
    encoder = open_encoder(str(folders[family]))
    texts = ["cat", "A photo of a Fire Engine!", "so long a text that it is cut off where the tower ends", "x"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    Z, X = reference(folders[family], texts, pixels)
    np.testing.assert_allclose(encoder.encode_texts(texts), Z, atol=2e-6)
    np.testing.assert_allclose(encoder.encode_images(pixels), X, atol=2e-6)
    assert encoder.dim == Z.shape[1] == encoder.encode_images(pixels[:0]).shape[1] == encoder.encode_texts([]).shape[1]
    assert encoder.image_size == 48
    assert np.ptp(Z @ Z.T) > 1e-3  # the texts differ


SHAPES = [(300, 100), (100, 300), (400, 100), (100, 400), (640, 480), (48, 48), (1200, 300), (7, 3), (1, 4), (3, 3)]


def shaped(width: int, height: int) -> Image.Image:
    """A picture whose edges differ from its middle and from each other."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    bands = [x * 255, y * 255, 127 + 127 * np.sin(9 * x) * np.cos(7 * y)]
    pixels = np.stack(bands, 2).astype(np.uint8)
    pixels[:, : width // 6], pixels[:, width - width // 6 :] = (250, 20, 20), (20, 20, 250)
    pixels[: height // 6] = (20, 250, 20)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def processed(folders, tmp_path_factory) -> dict[str, Path]:
    """The families, and a CLIP that squashes pictures instead of cropping them."""
    squashing = Path(shutil.copytree(folders["clip"], tmp_path_factory.mktemp("squash") / "clip"))
    settings = json.loads((squashing / "preprocessor_config.json").read_text())
    settings |= {"do_center_crop": False, "size": {"height": 48, "width": 48}}
    (squashing / "preprocessor_config.json").write_text(json.dumps(settings))
    return {**folders, "clip, squashed": squashing}


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize("family", [*FAMILIES, "clip, squashed"])
def test_pictures_of_any_shape_go_through_the_models_own_processor(processed, family, backend):
    import torch
    from transformers import AutoImageProcessor, AutoModel

    folder, pictures = processed[family], [shaped(*size) for size in SHAPES]
    encoder = open_encoder(str(folder))
    assert isinstance(encoder, HubEncoder)
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    encoder.processor = processor
    model = AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        own = [model.get_image_features(**processor(images=[p], return_tensors="pt")).pooler_output for p in pictures]
    R = torch.nn.functional.normalize(torch.cat(own).float(), dim=1).numpy()
    for given in (pictures, [np.asarray(p) for p in pictures]):
        assert (encoder.encode_images(given) * R).sum(1).min() > 0.9999
    cropped = encoder.encode_images([p.crop((100, 0, 200, 100)) for p in pictures[:1]])
    assert (cropped * R[:1]).sum() < 0.999 or family == "clip", "the test would not see that edges are lost"


@pytest.mark.parametrize("family", [*FAMILIES, "clip, squashed"])
def test_what_is_scaled_beforehand_is_what_the_processor_makes(processed, family):
    encoder = open_encoder(str(processed[family]))
    scaled = [hub_module.scaled(shaped(*size), encoder.processor) for size in SHAPES]
    assert all(isinstance(p, Image.Image) == (family == "siglip2") for p in scaled)
    for size in (*SHAPES, (48, 48), (7, 90), (48, 5), (1, 1)):
        picture = hub_module.reachable(shaped(*size), encoder.processor)
        own, ours = encoder.processor(images=[picture], return_tensors="pt"), encoder.prepare(picture)
        assert {key: v.tolist() for key, v in own.items()} == {key: v.tolist() for key, v in ours.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_index_of_files_holds_what_the_processor_makes_of_the_whole_pictures(run, folders, tmp_path, family):
    from PIL import ImageOps

    root = tmp_path / "pictures"
    root.mkdir()
    for i, size in enumerate([(300, 100), (100, 400), (640, 480)]):
        shaped(*size).save(root / f"{i}.png")
    turned = shaped(120, 360)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(root / "3.png", exif=exif)
    run("index", root, "--encoder", folders[family], "--dictionary", words_file(tmp_path), "--index", tmp_path / "i")
    pictures = [ImageOps.exif_transpose(Image.open(path)) for path in sorted(root.iterdir())]
    encoder = open_encoder(str(folders[family]))
    with Store(tmp_path / "i") as store:
        means = store.means()
        X = centre(encoder.encode_images(pictures), means.image)
        assert (store.embeddings() * X).sum(1).min() > 0.9999
        shapes = [Image.open(io.BytesIO(jpeg)).size for _, jpeg in sorted(store.thumbnails(range(4)).items())]
    assert shapes == [(128, 43), (32, 128), (128, 96), (128, 43)], "thumbnails are the whole picture, turned"


def words_file(folder: Path) -> Path:
    (folder / "words.txt").write_text("cat\nship\nred brick\n")
    return folder / "words.txt"


def test_a_very_long_picture_takes_little_memory(folders):
    """Its shorter side is scaled up before the crop: of 65000 × 1 pixels that would be 450 MB here, 10 GB in a CLIP."""
    encoder = open_encoder(str(folders["clip"]))
    for size in ((65_000, 1), (1, 65_000)):
        middle = hub_module.reachable(Image.new("RGB", size), encoder.processor)
        assert max(middle.size) <= 17
        assert encoder.prepare(Image.new("RGB", size))["pixel_values"].shape == (1, 3, 48, 48)


def test_a_model_that_takes_squares_and_gets_others_is_refused(run, copied):
    settings = json.loads((copied / "preprocessor_config.json").read_text())
    (copied / "preprocessor_config.json").write_text(json.dumps(settings | {"do_center_crop": False}))
    assert "gives each picture a size of its own" in fault(run, copied)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_tower_leaves_out_of_a_text_is_told(folders, family):
    encoder = open_encoder(str(folders[family]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_texts(["a cat", "x" * (TOKENS // 2)])
    text = "a text so long that The End is left out"
    end = encoder.left_out(text)
    assert text.lower().endswith(end)
    assert 3 < len(end) < len(text)
    read = text.lower().removesuffix(end)
    np.testing.assert_allclose(encoder.encode_texts([text]), encoder.encode_texts([read + "other"]), atol=1e-6)
    with pytest.warns(CutTextWarning, match=re.escape(repr(end))):
        encoder.encode_texts([text])
    with pytest.warns(CutTextWarning, match="left out"):
        encoder.encode_concepts([text])


def test_batches_make_no_difference(folders):
    encoder = open_encoder(str(folders["siglip"]))
    texts = [f"number {i}" for i in range(150)]
    one_by_one = np.vstack([encoder.encode_texts([t]) for t in texts[::29]])
    np.testing.assert_allclose(encoder.encode_texts(texts)[::29], one_by_one, atol=2e-6)


def test_concepts_are_the_mean_of_their_prompts(folders):
    encoder = open_encoder(str(folders["clip"]))
    templates = ("a photo of a {}.", "{}")
    D = encoder.encode_concepts(["cat", "airplane"], templates)
    for d, name in zip(D, ["cat", "airplane"], strict=True):
        mean = encoder.encode_texts([fill(t, name) for t in templates]).mean(0)
        np.testing.assert_allclose(d, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(encoder.encode_concepts(["cat"]), encoder.encode_texts(["a photo of a cat."]))


def test_an_index_is_centred_and_so_are_its_queries(run, index, pictures):
    folder, encoder_folder = index
    raw = open_encoder(str(encoder_folder))
    X, D = raw.encode_images(pictures.pixels), raw.encode_concepts(CLASSES)

    def unit(A):
        return A / np.linalg.norm(A, axis=1, keepdims=True)

    with Store(folder) as store:
        np.testing.assert_allclose(store.embeddings(), unit(X - X.mean(0)), atol=1e-4)
        np.testing.assert_allclose(store.classes().T, unit(D - D.mean(0)), atol=1e-4)
        np.testing.assert_allclose(store.dictionary(), unit(D - D.mean(0))[: len(store.concepts())], atol=1e-4)
        stored = store.embeddings()
    hits = json.loads(run("search", "a ship", "--mode", "dense", "-k", 1, "--all", "--json", "--index", folder).stdout)
    t = unit(raw.encode_texts(["a ship"]) - D.mean(0))[0]
    assert hits["score"] == pytest.approx(float((stored @ t).max()), abs=1e-4)
    assert hits["id"] == int((stored @ t).argmax())


def test_every_command_answers(run, index, pictures, tmp_path):
    folder, _ = index
    at = ("--index", folder, "--json")
    Image.fromarray(pictures.pixels[4]).save(tmp_path / "p.png")
    for mode in ("dense", "sparse"):
        found = run("search", "--picture", tmp_path / "p.png", "--mode", mode, "-k", 5, *at).stdout.splitlines()
        assert len(found) == 5
        if mode == "dense":
            assert json.loads(found[0])["score"] == pytest.approx(1, abs=0.01)  # upscaled as the indexed one was
        hits = [json.loads(line) for line in run("search", "a cat", "--all", "--mode", mode, *at).stdout.splitlines()]
        assert len(hits) == 10
        if mode == "sparse":
            assert all(
                sum(c["contribution"] for c in h["concepts"]) == pytest.approx(h["score"], abs=1e-5) for h in hits
            )
        result = json.loads(run("classify", tmp_path / "p.png", "--mode", mode, *at).stdout)
        assert result["label"] in CLASSES
    assert json.loads(run("classify", 3, "--classes", "cat,dog", *at).stdout)["label"] in ("cat", "dog")
    assert run("search", "--concept", "cat", *at).stdout or "no picture holds" in run("concepts", "cat", *at).stderr
    assert len(run("concepts", "kitten", "--near", "-k", 3, *at).stdout.splitlines()) == 3
    e = json.loads(run("explain", 7, "--for", "a deer", *at).stdout)
    assert sum(c["contribution"] for c in e["concepts"]) == pytest.approx(e["sparse_score"], abs=1e-5)


def test_the_report_is_written_and_says_what_the_encoder_saw(run, index, tmp_path):
    folder, encoder_folder = index
    run("eval", "--index", folder, "--out", tmp_path, "--data", tmp_path / "none")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["encoder"]["name"] == encoder_folder.name
    assert "CIFAR-10" not in report["encoder"]["zero_shot"]
    assert report["sparse"]["max_relative_gap"] <= 1e-3
    assert report["open_words"]["unseen"]["queries"] == 40


def test_templates_are_kept_with_the_index(folders, pictures, tmp_path):
    encoder = open_encoder(str(folders["clip"]))
    templates = ("{}", "one {} there")
    index_pictures(tmp_path, pictures.first(20), encoder, IndexConfig(dictionary="classes", templates=templates))
    from search.index import Index

    with Index(tmp_path, device="cpu") as searcher:
        assert searcher.store.meta.templates == templates
        D = encoder.encode_concepts(CLASSES, templates)
        expected = centre(encoder.encode_concepts(["zebra"], templates), D.mean(0))[0] @ searcher.D.T
        assert dict(searcher.near_concepts("zebra", 10)) == {
            c.name: pytest.approx(float(s), abs=1e-4) for c, s in zip(searcher.concepts(), expected, strict=True)
        }


def test_an_encoder_of_our_own_is_not_centred(small_index):
    with Store(small_index) as store:
        assert store.means() is None


@pytest.mark.parametrize("n", [1, 2])
def test_few_pictures_have_unit_embeddings(run, folders, pictures, tmp_path, n):
    index_pictures(tmp_path, pictures.first(n), open_encoder(str(folders["clip"])), IndexConfig(dictionary="classes"))
    with Store(tmp_path) as store:
        np.testing.assert_allclose(np.linalg.norm(store.embeddings(), axis=1), 1, atol=1e-5)
    assert run("search", "a cat", "--all", "--index", tmp_path).stdout


def test_centring_by_hand():
    rng = np.random.default_rng(0)
    A = rng.normal(1, 1, (50, 8)).astype(np.float32)
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    mean = mean_of(A)
    np.testing.assert_allclose(mean, A.mean(0), atol=1e-6)
    Z = centre(A, mean)
    np.testing.assert_allclose(Z, (A - A.mean(0)) / np.linalg.norm(A - A.mean(0), axis=1)[:, None], atol=1e-5)
    assert np.linalg.norm(Z.mean(0)) < 0.1 < np.linalg.norm(mean)
    assert not mean_of(A[:0]).any()
    assert not mean_of(A[:1]).any()
    assert not mean_of(A[[3, 3, 3]]).any()
    np.testing.assert_array_equal(centre(A[:1], A[0]), A[:1])


def test_the_fingerprint_follows_what_decides_the_output(copied):
    before = hub_fingerprint(copied)
    (copied / "README.md").write_text("about")
    assert hub_fingerprint(copied) == before
    config = (copied / "preprocessor_config.json").read_text()
    (copied / "preprocessor_config.json").write_text(config.replace("48", "47"))
    assert hub_fingerprint(copied) != before


def test_an_index_of_another_model_is_refused(run, index, folders):
    folder, own = index
    other = next(f for f in folders.values() if f != own)
    stderr = run("search", "cat", "--encoder", other, "--index", folder, code=1).stderr
    assert own.name in stderr
    assert other.name in stderr


def change_weights(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def fault(run, folder: Path) -> str:
    """The one line that `index` says of an encoder folder."""
    stderr = run("index", "--encoder", folder, "--bundled", "--index", folder / "index", code=1).stderr
    assert str(folder) in stderr
    return stderr


def test_missing_tensors(run, copied):
    change_weights(copied, lambda tensors: tensors.pop("text_projection.weight"))
    assert "tensor text_projection.weight is missing" in fault(run, copied)
    change_weights(copied, lambda tensors: tensors.pop("visual_projection.weight"))
    assert "and 1 more are missing" in fault(run, copied)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite(run, copied, value):
    change_weights(copied, lambda tensors: tensors["visual_projection.weight"][3, 4].fill_(value))
    assert "tensor visual_projection.weight has values that are not finite" in fault(run, copied)


def test_a_tensor_of_another_shape(run, copied):
    change_weights(copied, lambda t: t.update({"text_projection.weight": t["text_projection.weight"][:5].clone()}))
    said = fault(run, copied)
    assert "tensor text_projection.weight has the shape (5, 40), where config.json asks for (24, 40)" in said


def test_a_truncated_file(run, copied):
    data = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "damaged encoder" in fault(run, copied)


def test_a_pickle_offered_as_weights(run, copied):
    marker = copied / "run"
    (copied / "model.safetensors").unlink()
    payload = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    (copied / "pytorch_model.bin").write_bytes(payload)
    assert "pytorch_model.bin is a pickle" in fault(run, copied)
    (copied / "model.safetensors").write_bytes(payload)
    assert "damaged encoder" in fault(run, copied)
    assert not marker.exists()


def test_a_model_of_another_kind(run, copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    assert "of type bert" in fault(run, copied)


def test_a_models_own_code_is_not_run(copied):
    (copied / "evil.py").write_text(f"open({str(copied / 'run')!r}, 'w')\nclass Evil: pass\n")
    for name, part in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        config = json.loads((copied / name).read_text())
        value = ["evil.Evil", None] if part == "AutoTokenizer" else "evil.Evil"
        (copied / name).write_text(json.dumps({**config, "auto_map": {part: value, "AutoModel": "evil.Evil"}}))
    with suppress(SparsightError):  # refused, or loaded by transformers' own classes
        open_encoder(str(copied))
    assert not (copied / "run").exists()


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json"])
def test_a_missing_file_beside_the_weights(run, copied, name):
    (copied / name).unlink()
    assert f"{name} or " in fault(run, copied)


def test_a_tokenizer_that_does_not_fit_the_text_tower(run, copied):
    def cut(tensors):
        key = "text_model.embeddings.token_embedding.weight"
        tensors[key] = tensors[key][:20].clone()

    change_weights(copied, cut)
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["vocab_size"] = 20
    (copied / "config.json").write_text(json.dumps(config))
    assert "damaged encoder" in fault(run, copied)


def test_embeddings_do_not_come_with_a_hub_model(run, folders, tmp_path):
    stderr = run("index", "--encoder", folders["clip"], "--bundled", "--index", tmp_path, code=1).stderr
    assert "no embeddings of pictures come with tiny-clip" in stderr


def test_without_pictures_there_is_nothing_to_index(run, folders, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    at = ("--index", tmp_path / "index", "--data", tmp_path / "none")
    assert "no CIFAR-10 in" in run("index", "--encoder", folders["clip"], *at, code=1).stderr
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_on_a_gpu_is_close(folders, pictures, family):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    whole, half = open_encoder(str(folders[family])), open_encoder(str(folders[family]), "cuda")
    assert isinstance(half, HubEncoder)
    assert half.model.dtype in (torch.bfloat16, torch.float16)
    for embed in ("encode_images", "encode_texts"):
        given = pictures.pixels[:40] if embed == "encode_images" else list(CLASSES)
        cosines = (getattr(whole, embed)(given) * getattr(half, embed)(given)).sum(1)
        assert cosines.min() > 0.995


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{x}", "{} {", "{0}"])
def test_a_template_without_one_place(run, template, tmp_path):
    assert "--template" in run("index", "--template", template, "--index", tmp_path, code=2).stderr


def test_siglips_own_tokenizer(folders, tmp_path):
    """SigLIP's vocabulary is a sentencepiece model, its texts lose their punctuation."""
    spm = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    folder = Path(shutil.copytree(folders["siglip"], tmp_path / "siglip"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    sentences = iter([f"a photo of a {c}" for c in CLASSES] * 20)
    with (folder / "spiece.model").open("wb") as model:
        spm.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=model, vocab_size=60, hard_vocab_limit=False, bos_id=-1
        )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))
    texts = ["a photo of a cat", "A photo, of a CAT!", "a photo of a dog"]
    light = open_text_encoder(str(folder))
    assert not isinstance(light, HubEncoder)
    Z = open_encoder(str(folder)).encode_texts(texts)
    np.testing.assert_allclose(light.encode_texts(texts), Z, atol=1e-6)
    np.testing.assert_allclose(Z[0], Z[1], atol=1e-6)
    assert not np.allclose(Z[0], Z[2], atol=1e-4)


def test_a_folder_of_pictures_through_the_command_line(run, folders, pictures, tmp_path):
    for i in range(40):
        folder = tmp_path / "pictures" / CLASSES[pictures.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures.pixels[i]).resize((90, 60)).save(folder / f"{i}.png")
    words = tmp_path / "words.txt"
    words.write_text("cat\nship\ngreen field\nsnow\nred brick\n")
    at = ("--index", tmp_path / "index", "--dictionary", words, "--template", "a picture of {}")
    out = run("index", tmp_path / "pictures", "--labels", "folders", "--encoder", folders["siglip"], *at).stdout
    assert "40 pictures, 5 concepts" in out
    with Store(tmp_path / "index") as store:
        assert store.means() is not None
        assert store.meta.templates == ("a picture of {}",)
        np.testing.assert_allclose(np.linalg.norm(store.embeddings(), axis=1), 1, atol=1e-5)
    picture = tmp_path / "pictures" / CLASSES[pictures.labels[7]] / "7.png"
    hit = json.loads(run("search", "--picture", picture, "--mode", "dense", "-k", 1, "--json", *at[:2]).stdout)
    assert hit["path"].endswith("7.png")
    assert hit["score"] == pytest.approx(1, abs=1e-5)
