"""Training: the loss falls, a stopped run resumes as if undisturbed, the encoder folder is checked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from indexer.coding import encode_sparse
from indexer.config import CoderConfig
from training.config import ObjectiveConfig
from training.data.augment import augment, cut_out, degrade
from training.data.captions import fill, make_captions, sample_prompts
from training.data.cifar10 import CLASSES
from training.encoders import open_encoder
from training.encoders.dual import DualEncoder
from training.encoders.text_tower import train_tokenizer
from training.errors import SparsightError
from training.loop import CHECKPOINT, PROGRESS, Trainer, train
from training.objective import Targets, objective, unrolled_code
from training.schedule import lr_factor, make_optimizers

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("template", "words", "prompt"),
    [
        ("an aerial camera {}.", ("eagle",), "an aerial camera eagle."),
        ("a photo of a {}.", ("eagle",), "a photo of an eagle."),
        ("a photo of a {}.", ("cat",), "a photo of a cat."),
        ("an {}", ("cat",), "a cat"),
        ("A {} there", ("owl",), "an owl there"),
        ("Is this A {}?", ("owl",), "is this An owl?"),
        ('a "{}"', ("eagle",), 'an "eagle"'),
        ("the data {}", ("ant",), "the data ant"),
        ("{} on a rock", ("Eagle",), "eagle on a rock"),
        ("{}, a kind of {}", ("a eagle", "animal"), "a eagle, a kind of animal"),
        ("a {} beside a {}", ("owl", "cat"), "an owl beside a cat"),
        ("{{a}} a {}", ("owl",), "{a} an owl"),
        ("a {}", ("{}",), "a {}"),
        ("a {}", ("éclair",), "an éclair"),
        ("vis-a {}", ("owl",), "vis-a owl"),
        ("a  {}", ("owl",), "an  owl"),
    ],
)
def test_an_article_is_that_right_before_the_word(template, words, prompt):
    assert fill(template, *words) == prompt


def test_the_loss_falls_on_a_handful_of_pictures(pictures, small_config, tmp_path):
    trainer = Trainer(pictures, small_config, tmp_path, CPU)
    losses = [trainer.step()["loss"] for _ in range(trainer.total_steps)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_a_stopped_run_resumes_as_if_undisturbed(pictures, small_config, tmp_path):
    config = replace(small_config, sizes=((12, 2),))
    whole = Trainer(pictures, config, tmp_path / "whole", CPU)
    for _ in range(8):
        whole.step()
    first = Trainer(pictures, config, tmp_path / "run", CPU)
    for _ in range(5):
        first.step()
    first.save_checkpoint()
    second = Trainer(pictures, config, tmp_path / "run", CPU)
    assert second.resume()
    assert second.steps_done == 5
    for _ in range(3):
        second.step()
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_an_interrupted_run_keeps_its_checkpoint(pictures, small_config, tmp_path, monkeypatch):
    real_step, done = Trainer.step, []

    def step(self):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return real_step(self)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(pictures, small_config, tmp_path, device=CPU)
    monkeypatch.undo()
    resumed = Trainer(pictures, small_config, tmp_path, CPU)
    assert resumed.resume()
    assert resumed.steps_done == 3
    assert not (tmp_path / "model.safetensors").exists()


def test_a_run_of_other_settings_is_not_continued(pictures, small_config, tmp_path):
    Trainer(pictures, small_config, tmp_path, CPU).save_checkpoint()
    with pytest.raises(SparsightError, match="other settings"):
        Trainer(pictures, replace(small_config, lr=0.01), tmp_path, CPU).resume()


def test_a_run_is_not_resumed_with_anything_else(pictures, small_config, small_encoder_dir, tmp_path):
    """Neither with other settings, nor other pictures, another vocabulary, or another start; the fault names which."""
    begun = Trainer(pictures, small_config, tmp_path, CPU)
    begun.save_checkpoint()
    term = pictures.terms[0].replace(" ", "_")
    renamed = replace(pictures, names=[name.replace(term, "walrus") for name in pictures.names])
    fewer = pictures.take(np.arange(len(pictures) - 3))
    repainted = replace(pictures, pixels=255 - pictures.pixels)
    for said, others in {
        "lr is .*, now it would be 0.01": Trainer(pictures, replace(small_config, lr=0.01), tmp_path, CPU),
        "its seed is": Trainer(pictures, replace(small_config, seed=7), tmp_path, CPU),
        r"its pictures \(--limit": Trainer(fewer, small_config, tmp_path, CPU),
        "its pixels is": Trainer(repainted, small_config, tmp_path, CPU),
        "its vocabulary is": Trainer(renamed, small_config, tmp_path, CPU),
        r"goes on from \(--from\) is None": Trainer(pictures, small_config, tmp_path, CPU, start=small_encoder_dir),
    }.items():
        with pytest.raises(SparsightError, match=said) as e:
            others.resume()
        assert "choose another --out" in str(e.value)
    for name in (CHECKPOINT, PROGRESS):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SparsightError, match="to begin anew"):
            Trainer(pictures, small_config, tmp_path, CPU).resume()
        (tmp_path / name).write_bytes(whole)
    assert Trainer(pictures, small_config, tmp_path, CPU).resume()


def test_a_stage_of_no_epochs_leaves_the_encoder_as_it_is(pictures, small_config, small_encoder_dir, tmp_path):
    train(pictures, replace(small_config, sizes=((32, 0),)), tmp_path, device=CPU, start=small_encoder_dir)
    before, after = open_encoder(str(small_encoder_dir)), open_encoder(str(tmp_path))
    np.testing.assert_array_equal(after.encode_images(pictures.pixels), before.encode_images(pictures.pixels))
    np.testing.assert_array_equal(after.encode_texts(["a cat"]), before.encode_texts(["a cat"]))


def test_a_stage_needs_what_it_goes_on_from(pictures, small_config, small_encoder_dir, tmp_path):
    other = replace(small_config, encoder=replace(small_config.encoder, image_tower="resnet10t"))
    with pytest.raises(SparsightError, match="--image-tower"):
        train(pictures, other, tmp_path, device=CPU, start=small_encoder_dir)
    with pytest.raises(SparsightError, match="no encoder in"):
        train(pictures, small_config, tmp_path, device=CPU, start=tmp_path / "none")


def test_any_timm_model_serves_as_image_tower(pictures, small_config, tmp_path):
    config = replace(small_config, encoder=replace(small_config.encoder, image_tower="resnet10t"), sizes=((32, 1),))
    trainer = Trainer(pictures.first(40), config, tmp_path, CPU)
    assert np.isfinite(trainer.step()["loss"])


def test_the_trained_encoder_tells_the_pictures_apart(pictures, small_encoder_dir):
    encoder = open_encoder(str(small_encoder_dir))
    X, T = encoder.encode_images(pictures.pixels), encoder.encode_concepts(CLASSES)
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(T, axis=1), 1, rtol=1e-5)
    assert ((X @ T.T).argmax(1) == pictures.labels).mean() > 0.8


def test_unrolled_steps_approach_the_exact_code():
    rng = np.random.default_rng(0)
    D = F.normalize(torch.tensor(rng.normal(size=(30, 16)), dtype=torch.float32), dim=1)
    X = F.normalize(torch.tensor(rng.normal(size=(8, 16)), dtype=torch.float32), dim=1)
    exact = encode_sparse(X.numpy(), D.numpy(), CoderConfig(l1=0.4, tol=1e-6)).W.toarray()
    np.testing.assert_allclose(unrolled_code(X, D, 0.4, 500).numpy(), exact, atol=1e-3)


def test_every_part_of_the_objective_reaches_both_towers():
    torch.manual_seed(0)
    m = 14
    parent = torch.cat([torch.arange(10), torch.tensor([0, 1, 2, 3])])
    zero = {"term_weight": 0.0, "structure_weight": 0.0, "code_weight": 0.0, "fidelity_weight": 0.0}
    for part, weight in [("term_weight", 1), ("structure_weight", 1), ("code_weight", 1), ("fidelity_weight", 1)]:
        raw_x, raw_d = torch.randn(6, 8, requires_grad=True), torch.randn(m, 8, requires_grad=True)
        labels = torch.arange(6)
        args = (torch.tensor(10.0), Targets(parent, labels, labels + 8))
        gradients = []
        for settings in (zero, {**zero, part: weight}):
            loss, _ = objective(
                F.normalize(raw_x, dim=1), F.normalize(raw_d, dim=1), *args, ObjectiveConfig(**settings), 0.5
            )
            gradients.append(torch.autograd.grad(loss, raw_d)[0])
        assert (gradients[1] - gradients[0]).abs().max() > 1e-6, part


def test_augmentation_mirrors_every_second_epoch_and_keeps_the_range(pictures, small_config):
    x = torch.as_tensor(pictures.pixels[:16]).permute(0, 3, 1, 2)
    rows, rng = torch.arange(16), np.random.default_rng(0)
    plain = replace(small_config, sizes=((32, 2),), shift=0)
    even, odd = (augment(x, rows, epoch, plain, rng) for epoch in (0, 1))
    torch.testing.assert_close(even, odd.flip(3))
    changed = augment(x, rows, 0, replace(small_config, sizes=((24, 1),), shift=2, cutout=8, degrade=0.5), rng)
    assert changed.shape == (16, 3, 24, 24)
    assert -0.01 <= changed.min() <= changed.max() <= 255.01


def test_about_the_asked_share_of_pictures_is_degraded():
    grey = torch.arange(32.0).mul(8).expand(200, 3, 32, 32)  # a ramp from black to white
    x = degrade(grey, 0.4, np.random.default_rng(0))
    changed = (x - grey).abs().amax((1, 2, 3)) > 1e-3
    assert 0.3 < changed.float().mean() < 0.5
    assert 0 <= x.min() <= x.max() <= 255


def test_cutout_hides_one_square_of_each_picture():
    white = torch.full((64, 3, 32, 32), 255.0)
    x = cut_out(white, 8, (0.0, 0.5, 1.0), np.random.default_rng(0))
    hidden = x[:, 0] == 0  # (64, 32, 32)
    sizes = hidden.sum((1, 2))
    assert sizes.max() == 64
    assert sizes.min() >= 16  # at a corner a quarter is left
    assert (hidden.any(1).sum(1) * hidden.any(2).sum(1) == sizes).all()
    assert torch.all(x[:, 1][hidden] == 127.5)
    assert torch.all(x[:, 1][~hidden] == 255)


def test_a_second_stage_begins_with_the_firsts_weights(pictures, small_config, small_encoder_dir, tmp_path):
    config = replace(small_config, sizes=((32, 1),), lr=1e-6, head_lr=1e-9, text_lr=1e-9)
    train(pictures, config, tmp_path, device=CPU, start=small_encoder_dir)
    first, second = open_encoder(str(small_encoder_dir)), open_encoder(str(tmp_path))
    X, Z = (e.encode_images(pictures.pixels) for e in (first, second))
    assert ((X * Z).sum(1) > 0.9).all()


@pytest.mark.parametrize("image_tower", ["conv32_tiny", "test_vit"])  # a vision transformer has one convolution
def test_every_trainable_weight_belongs_to_one_optimizer(small_config, image_tower):
    config = replace(small_config, encoder=replace(small_config.encoder, image_tower=image_tower))
    model = DualEncoder(config.encoder, train_tokenizer(["a cat"], 300))
    rates = {id(p): g["lr"] for o in make_optimizers(model, config) for g in o.param_groups for p in g["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert rates.keys() == {id(p) for p in trainable.values()}
    for name, p in trainable.items():
        wanted = config.text_lr if not name.startswith("image.") else config.lr if p.ndim == 4 else config.head_lr
        assert rates[id(p)] == wanted, name


def test_the_learning_rate_rises_then_falls_to_zero():
    factors = [lr_factor(i / 100, 0.1) for i in range(101)]
    assert max(factors) == pytest.approx(1)
    assert factors[100] == 0
    assert np.argmax(factors) == 10


def test_captions_hold_both_grains(pictures):
    captions = make_captions(pictures)
    assert captions.concepts[: len(CLASSES)] == list(CLASSES)
    assert len(set(captions.concepts)) == len(captions.concepts) == 20
    for term, label, concept in zip(pictures.terms, pictures.labels, captions.of_term, strict=True):
        assert captions.concepts[concept] == term
        assert captions.parent[concept] == label


def test_each_concept_has_one_prompt_and_about_half_of_the_terms_name_their_class(pictures):
    captions = make_captions(pictures)
    prompts = sample_prompts(captions, np.random.default_rng(0))
    assert len(prompts) == len(captions.concepts)
    assert all(concept in prompt for concept, prompt in zip(captions.concepts, prompts, strict=True))
    naming = [", a kind of " in prompt for prompt in prompts]
    assert not any(naming[: len(CLASSES)])
    assert 0 < sum(naming) < len(prompts) - len(CLASSES)


def test_prompts_mind_their_article():
    assert fill("a photo of a {}.", "airplane") == "a photo of an airplane."
    assert fill("a {}.", "cat") == "a cat."


@pytest.mark.parametrize("fault", ["missing", "truncated", "nan", "config", "tokenizer", "absent"])
def test_a_damaged_encoder_folder_is_named(small_encoder_dir, tmp_path, fault):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "encoder"
    shutil.copytree(small_encoder_dir, folder)
    weights = folder / "model.safetensors"
    if fault == "missing":
        weights.unlink()
    elif fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "nan":
        tensors = load_file(weights)
        tensors["image.head.weight"][0, 0] = float("nan")
        save_file(tensors, weights)
    elif fault == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dim": 48}))
    elif fault == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        shutil.rmtree(folder)
    with pytest.raises(SparsightError, match=r"encoder in .*encoder"):
        open_encoder(str(folder))
