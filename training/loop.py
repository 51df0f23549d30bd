"""The training loop. A stopped run resumes at the step where it ended, and a seed always gives the same steps.

* CIFAR-10 lies on the device as one uint8 tensor and is augmented there, a batch at a time. No workers are needed that
  load pictures beside the loop.
* Early epochs run on smaller pictures (`TrainConfig.sizes`). The tower is fully convolutional and takes any size, and
  on a CPU the size of the pictures is what the time goes into.
* The order and the augmentation of step i depend on (seed, i) alone, so that a resumed run repeats the steps of one
  that was never stopped.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.config import Teaching, TrainConfig
from training.data.augment import augment
from training.data.captions import all_prompts, make_captions, sample_prompts
from training.data.cifar10 import CLASSES, Pictures
from training.device import fast_bf16
from training.distil import check_teacher
from training.encoders import open_encoder
from training.encoders.dual import DualEncoder, load_model, save_model
from training.encoders.embeddings import save_test_embeddings
from training.encoders.files import NOTES, trained_fingerprint
from training.encoders.image_tower import Conv32
from training.encoders.text_tower import train_tokenizer
from training.encoders.trained import BATCH
from training.errors import SparsightError
from training.files import full_path, write_whole
from training.objective import Targets, objective
from training.resuming import data_identity, refuse_another_run
from training.schedule import lr_factor, make_optimizers, set_rates
from training.whole_words import teach_texts

CHECKPOINT, PROGRESS = "checkpoint.safetensors", "checkpoint.json"
SAVE_EVERY = 120.0  # seconds between checkpoints
SAMPLE = 5000  # pictures from which the first layer's whitening and the null direction are computed


class Trainer:
    """The state of a run: the model, its optimizers, and the number of steps done.

    run: the run's folder, for its checkpoints. bf16: whether the towers compute in bfloat16; None where the hardware
    decides. start: the encoder folder of an earlier stage, whose weights the run begins with.
    Raises `SparsightError` where that folder holds no encoder, or one of another image tower.
    """

    def __init__(
        self,
        pictures: Pictures,
        config: TrainConfig,
        run: Path,
        device: torch.device,
        bf16: bool | None = None,
        start: Path | None = None,
    ):
        torch.manual_seed(config.seed)
        earlier = load_model(start) if start is not None else None
        if earlier is not None:
            if earlier.config.image_tower != config.encoder.image_tower:
                raise SparsightError(
                    f"the encoder in {start} has the image tower {earlier.config.image_tower}, "
                    f"not {config.encoder.image_tower}; name it by --image-tower"
                )
            config = replace(config, encoder=earlier.config)
        self.config, self.run, self.device = config, run, device
        self.bf16 = fast_bf16(device) if bf16 is None else bf16
        self.captions = make_captions(pictures)
        self.made_from = data_identity(
            pictures.pixels, [*self.captions.concepts], trained_fingerprint(start) if start is not None else None
        )
        self.pixels = torch.as_tensor(pictures.pixels).permute(0, 3, 1, 2).contiguous().to(device)  # (n, 3, 32, 32)
        ids = (self.captions.parent, self.captions.of_class, self.captions.of_term)
        self.targets = Targets(*(torch.as_tensor(i).to(device) for i in ids))
        self.model = earlier if earlier is not None else self._new_model()
        self.model = self.model.to(device).to(memory_format=torch.channels_last)
        self.optimizers = make_optimizers(self.model, config)
        self.steps_done = 0
        self.seconds = 0.0
        self.batch_size = min(config.batch_size, len(pictures))
        self.steps_per_epoch = len(pictures) // self.batch_size

    def _new_model(self) -> DualEncoder:
        prompts = all_prompts([*self.captions.concepts, *self.captions.kinds])
        tokenizer = train_tokenizer(prompts, self.config.encoder.vocab_size)
        model = DualEncoder(self.config.encoder, tokenizer, pretrained=self.config.pretrained)
        if isinstance(model.image, Conv32):
            model.image.init_whitening(model.normalise(self.pixels[:SAMPLE].cpu()))
        model.log_scale.data.fill_(float(np.log(self.config.max_scale)))
        return model

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, those done included."""
        return self.config.epochs * self.steps_per_epoch

    def step(self) -> dict[str, float]:
        """Does one optimizer step; returns the loss and its parts by name.

        Raises `SparsightError` where the loss is no longer finite.
        """
        config, i = self.config, self.steps_done
        epoch, within = divmod(i, self.steps_per_epoch)
        order = np.random.default_rng((config.seed, 0, epoch)).permutation(len(self.pixels))
        rows = torch.as_tensor(order[within * self.batch_size : (within + 1) * self.batch_size], device=self.device)
        rng = np.random.default_rng((config.seed, 1, i))
        x = self.model.normalise(augment(self.pixels[rows], rows, epoch, config, rng))
        penalty = float(rng.uniform(*config.objective.penalties))
        prompts = sample_prompts(self.captions, rng)
        set_rates(self.optimizers, lr_factor(i / self.total_steps, config.warmup))
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            X, D = self.model.embed_images(x), self.model.embed_texts(prompts)
        scale = self.model.log_scale.exp()
        loss, parts = objective(X, D, scale, self.targets.of(rows), config.objective, penalty)
        if not torch.isfinite(loss):
            raise SparsightError(f"training diverged at step {i}: the loss is {float(loss)}; lower --lr")
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            self.model.log_scale.clamp_(max=float(np.log(config.max_scale)))
        self.steps_done += 1
        return {"loss": float(loss.detach()), **parts}

    @torch.inference_mode()
    def embed(self, n: int) -> np.ndarray:
        """Embeddings (n, d), unit rows, of the first n training pictures, each seen in one view."""
        self.model.eval()
        parts = self.pixels[:n].split(BATCH)
        return torch.cat([self.model.embed_images(self.model.normalise(p)).cpu() for p in parts]).numpy()

    def save_checkpoint(self) -> None:
        """Writes what a resumed run needs into the run's folder, as safetensors; the progress file is written last."""
        from safetensors.torch import save

        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for o, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{o}.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        self.run.mkdir(parents=True, exist_ok=True)
        write_whole(self.run / CHECKPOINT, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
        progress = {"step": self.steps_done, "seconds": self.seconds, "config": asdict(self.config)} | {
            "made from": self.made_from
        }
        write_whole(self.run / PROGRESS, json.dumps(progress, indent=2).encode())

    def resume(self) -> bool:
        """Takes up a stopped run from its last checkpoint; returns False where the folder holds none.

        Raises `SparsightError` where that run had other settings.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not (self.run / PROGRESS).is_file():
            return False
        try:
            progress = json.loads((self.run / PROGRESS).read_text())
            earlier = {**progress["config"], **progress["made from"]}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise SparsightError(f"{self.run / PROGRESS} is no checkpoint's; delete {self.run} to begin anew") from e
        refuse_another_run(self.run, earlier, asdict(self.config) | self.made_from)
        try:
            tensors = load_file(self.run / CHECKPOINT)
            self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        except (OSError, RuntimeError, SafetensorError) as e:
            raise SparsightError(f"{self.run / CHECKPOINT} cannot be read: {e}; delete {self.run} to begin anew") from e
        for o, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{o}."):
                    _, _, index, name = key.split(".")
                    state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.steps_done, self.seconds = progress["step"], progress["seconds"]
        return True


def train(
    pictures: Pictures,
    config: TrainConfig,
    run: Path,
    *,
    device: torch.device,
    bf16: bool | None = None,
    start: Path | None = None,
    teaching: Teaching | None = None,
    held_out: Pictures | None = None,
) -> DualEncoder:
    """Trains an encoder in the folder `run`, or goes on with what was begun there, and writes the encoder into it.

    A checkpoint is written every two minutes, at the end, and when the run is interrupted.

    pictures: the training pictures, 32 × 32. config: all settings of the run; where `start` is given, the encoder's
    own settings are taken from there. device: where to compute. bf16: compute the towers in bfloat16; None where the
    hardware decides. start: the encoder folder of an earlier stage, whose weights the run begins with; with no epochs
    in `config.sizes` they stay as they are. teaching: the teacher that gives the text tower a broad vocabulary once the
    steps are done (`training.distil`). held_out: pictures whose embeddings are saved beside the weights and whose
    zero-shot accuracy is printed at the end; they are never used to choose anything.

    Returns the trained model. Raises `SparsightError` where `start` or the teacher cannot be loaded, where `run` holds
    a run of other settings, and where the loss is no longer finite.
    """
    if teaching is not None:  # hours of training must not end at a missing teacher
        check_teacher(teaching, device)
    trainer = Trainer(pictures, config, run, device, bf16, start)
    if trainer.resume():
        print(f"resuming {run} at step {trainer.steps_done} of {trainer.total_steps}", file=sys.stderr)
    _run_steps(trainer)
    notes = _notes(trainer, start)
    if teaching is not None:
        notes |= {"teacher": _public_name(teaching.teacher), "distil": asdict(teaching.config)}
        notes |= {"whole words": asdict(teaching.words)} if teaching.wordnet else {}
        teach_texts(trainer.model, trainer.captions, trainer.embed(SAMPLE), teaching)
    save_model(trainer.model, run, trainer.captions.class_of, notes)
    if held_out is not None:
        accuracy = embed_held_out(run, held_out, device)
        print(f"zero-shot accuracy on {len(held_out)} held-out pictures: {accuracy:.4f}", file=sys.stderr)
    return trainer.model


def _run_steps(trainer: Trainer) -> None:
    """Does the steps that are left, with a progress bar and checkpoints."""
    bar = tqdm(total=trainer.total_steps, initial=trainer.steps_done, desc="train", unit="step", file=sys.stderr)
    saved = before = time.monotonic()
    try:
        while trainer.steps_done < trainer.total_steps:
            parts = trainer.step()
            now = time.monotonic()
            trainer.seconds, before = trainer.seconds + now - before, now
            bar.update()
            bar.set_postfix({k: f"{v:.3f}" for k, v in parts.items()}, refresh=False)
            if now - saved > SAVE_EVERY:
                trainer.save_checkpoint()
                saved = now
    finally:
        bar.close()
        trainer.save_checkpoint()


def _notes(trainer: Trainer, start: Path | None) -> dict[str, Any]:
    """What is written beside the weights of how they came about; the notes of the stage before are part of it."""
    return {
        "config": asdict(trainer.config),
        "start": json.loads((start / NOTES).read_text()) if start is not None else None,
        "steps": trainer.steps_done,
        "seconds": round(trainer.seconds, 1),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bf16": trainer.bf16,
    }


def _public_name(teacher: str) -> str:
    """A teacher's name for the notes: of a local folder its last part, for its path tells of the machine."""
    return full_path(teacher).name if full_path(teacher).is_dir() else teacher


def embed_held_out(folder: Path, pictures: Pictures, device: torch.device) -> float:
    """Writes the embeddings of held-out pictures beside an encoder's weights; returns their zero-shot accuracy, 0 … 1.

    Zero-shot: a picture is given the class whose prompts' mean is nearest to it.
    """
    encoder = open_encoder(str(folder), device)
    X = encoder.encode_images(pictures.pixels)
    ids = {c: i for i, c in enumerate(encoder.concepts)}
    save_test_embeddings(folder, X, pictures.labels, np.array([ids.get(t, -1) for t in pictures.terms]))
    T = encoder.encode_concepts(CLASSES)
    return float(((X @ T.T).argmax(1) == pictures.labels).mean())
