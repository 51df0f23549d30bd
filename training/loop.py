"""The training loop: resumable at any step, the same steps for the same seed.

* CIFAR-10 lies as one uint8 tensor on the device and is augmented there, a batch at a time (flip alternating
  by epoch, reflected shift), so that no loader workers are needed.
* Early epochs run on smaller pictures (`sizes`): the tower is fully convolutional, and on a CPU that is where
  the time goes.
* Muon for the convolutions, AdamW for all else.
* Order and augmentation of step i depend on (seed, i) alone, so that a resumed run repeats an undisturbed one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from training.config import DistilConfig, TrainConfig
from training.data.captions import KIND_TEMPLATE, TEMPLATES, Captions, fill, make_captions
from training.data.cifar10 import CLASSES, Pictures
from training.device import fast_bf16
from training.encoders import open_encoder
from training.encoders.dual import DualEncoder, load_model, save_model
from training.encoders.embeddings import save_test_embeddings
from training.encoders.files import NOTES
from training.encoders.image_tower import Conv32
from training.encoders.text_tower import train_tokenizer
from training.errors import SparsightError
from training.files import write_whole
from training.muon import Muon
from training.objective import objective

MOST_NOISE = 0.12  # standard deviation, of the range 0 … 1
BLUR = (0.3, 1.1)  # standard deviation, pixels
BLUR_RADIUS = 3
CONTRAST = (0.12, 0.9)  # factor about a picture's mean
CHECKPOINT, PROGRESS = "checkpoint.safetensors", "checkpoint.json"


class Trainer:
    """The state of a run: the model, its optimizer, and the number of steps done."""

    def __init__(
        self,
        pictures: Pictures,
        config: TrainConfig,
        run: Path,
        device: torch.device,
        bf16: bool | None,
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
        self.pixels = torch.as_tensor(pictures.pixels).permute(0, 3, 1, 2).contiguous().to(device)  # (n, 3, 32, 32)
        self.of_class = torch.as_tensor(self.captions.of_class).to(device)
        self.of_term = torch.as_tensor(self.captions.of_term).to(device)
        self.parent = torch.as_tensor(self.captions.parent).to(device)
        self.model = earlier if earlier is not None else self._new_model()
        self.model = self.model.to(device).to(memory_format=torch.channels_last)
        self.optimizers = make_optimizers(self.model, config)
        self.steps_done = 0
        self.seconds = 0.0
        self.batch_size = min(config.batch_size, len(pictures))
        self.steps_per_epoch = len(pictures) // self.batch_size

    def _new_model(self) -> DualEncoder:
        tokenizer = train_tokenizer(_all_prompts(self.captions), self.config.encoder.vocab_size)
        model = DualEncoder(self.config.encoder, tokenizer, pretrained=self.config.pretrained)
        if isinstance(model.image, Conv32):
            model.image.init_whitening(model.normalise(self.pixels[:5000].cpu()))
        model.log_scale.data.fill_(float(np.log(self.config.max_scale)))
        return model

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    def step(self) -> dict[str, float]:
        """Does one optimizer step; returns the parts of its loss."""
        config, i = self.config, self.steps_done
        epoch, within = divmod(i, self.steps_per_epoch)
        order = np.random.default_rng((config.seed, 0, epoch)).permutation(len(self.pixels))
        rows = torch.as_tensor(order[within * self.batch_size : (within + 1) * self.batch_size], device=self.device)
        rng = np.random.default_rng((config.seed, 1, i))
        size = config.size_at(epoch)
        x = self.pixels[rows]
        if config.degrade:
            x = degrade(x, config.degrade, rng)
        x = augment(x, rows, epoch, size, config.shift, rng, config.cutout, config.encoder.mean)
        x = self.model.normalise(x)
        penalty = float(rng.uniform(*config.objective.penalties))
        prompts = sample_prompts(self.captions, rng)
        factor = lr_factor(i / self.total_steps, config.warmup)
        for group in (g for o in self.optimizers for g in o.param_groups):
            group["lr"] = group["base_lr"] * factor
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            X, D = self.model.embed_images(x), self.model.embed_texts(prompts)
        scale = self.model.log_scale.exp()
        loss, parts = objective(
            X, D, scale, self.parent, self.of_class[rows], self.of_term[rows], config.objective, penalty
        )
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
    def embed(self, n: int, batch_size: int = 500) -> np.ndarray:
        """Embeddings (n, d) of the first n training pictures."""
        self.model.eval()
        parts = self.pixels[:n].split(batch_size)
        return torch.cat([self.model.embed_images(self.model.normalise(p)).cpu() for p in parts]).numpy()

    def save_checkpoint(self) -> None:
        """Writes what a resumed run needs, as safetensors (never a pickle); the progress file goes last."""
        from safetensors.torch import save

        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for o, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{o}.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        self.run.mkdir(parents=True, exist_ok=True)
        write_whole(self.run / CHECKPOINT, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
        progress = {"step": self.steps_done, "seconds": self.seconds, "config": asdict(self.config)}
        write_whole(self.run / PROGRESS, json.dumps(progress, indent=2).encode())

    def resume(self) -> bool:
        """Takes up a stopped run of the same settings; returns False where there is none."""
        from safetensors.torch import load_file

        if not (self.run / PROGRESS).is_file():
            return False
        progress = json.loads((self.run / PROGRESS).read_text())
        if progress["config"] != json.loads(json.dumps(asdict(self.config))):
            raise SparsightError(f"{self.run} holds a run of other settings; choose another --out or delete it")
        tensors = load_file(self.run / CHECKPOINT)
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
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
    save_every: float = 120.0,
    held_out: Pictures | None = None,
    teacher: str | None = None,
    distil: DistilConfig | None = None,
    start: Path | None = None,
) -> DualEncoder:
    """Trains (or goes on training) in `run`, and writes the encoder folder there at the end.

    start: the encoder folder of an earlier stage, whose weights a new run begins with. save_every: seconds between
    checkpoints; one is also written on an interruption. held_out: pictures whose zero-shot accuracy is printed after
    the last epoch, never used to choose anything. teacher: a sentence encoder that teaches the text tower a broad
    vocabulary in a second stage (`distil.py`).
    """
    if teacher is not None:  # hours of training must not end at a missing teacher
        from training.distil import broad_vocabulary, distil_text, embed_by_teacher

        broad_vocabulary(1)
        embed_by_teacher(teacher, ["a cat"], device)
    trainer = Trainer(pictures, config, run, device, bf16, start)
    config = trainer.config
    if trainer.resume():
        print(f"resuming {run} at step {trainer.steps_done} of {trainer.total_steps}", file=sys.stderr)
    bar = tqdm(total=trainer.total_steps, initial=trainer.steps_done, desc="train", unit="step", file=sys.stderr)
    saved = before = time.monotonic()
    try:
        while trainer.steps_done < trainer.total_steps:
            parts = trainer.step()
            now = time.monotonic()
            trainer.seconds, before = trainer.seconds + now - before, now
            bar.update()
            bar.set_postfix({k: f"{v:.3f}" for k, v in parts.items()}, refresh=False)
            if now - saved > save_every:
                trainer.save_checkpoint()
                saved = now
    finally:
        bar.close()
        trainer.save_checkpoint()
    notes = {
        "config": asdict(config),
        "start": json.loads((start / NOTES).read_text()) if start is not None else None,
        "steps": trainer.steps_done,
        "seconds": round(trainer.seconds, 1),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bf16": trainer.bf16,
    }
    captions = trainer.captions
    concepts = {c: CLASSES[p] for c, p in zip(captions.concepts, captions.parent, strict=True)}
    if teacher is not None:
        distil = distil or DistilConfig(seed=config.seed)
        notes |= {"teacher": Path(teacher).name if Path(teacher).is_dir() else teacher, "distil": asdict(distil)}
        distil_text(trainer.model, captions, trainer.embed(5000), teacher, distil, device)
    save_model(trainer.model, run, concepts, notes)
    if held_out is not None:
        accuracy = embed_held_out(run, held_out, device)
        print(f"zero-shot accuracy on {len(held_out)} held-out pictures: {accuracy:.4f}", file=sys.stderr)
    return trainer.model


def make_optimizers(model: DualEncoder, config: TrainConfig) -> list[torch.optim.Optimizer]:
    convs = [p for p in model.image.parameters() if p.ndim == 4 and p.requires_grad]
    others = [p for p in model.image.parameters() if p.ndim != 4 and p.requires_grad]
    text = [*model.text.parameters(), model.log_scale]
    adam = torch.optim.AdamW(
        [{"params": others, "lr": config.head_lr}, {"params": text, "lr": config.text_lr}],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    optimizers: list[torch.optim.Optimizer] = [Muon(convs, lr=config.lr), adam] if convs else [adam]
    for group in (g for o in optimizers for g in o.param_groups):
        group["base_lr"] = group["lr"]
    return optimizers


def lr_factor(done: float, warmup: float) -> float:
    """Linear up over the first `warmup` of a run, then linear down to zero."""
    return max(done, 1e-3) / warmup if done < warmup else max(0.0, (1 - done) / (1 - warmup))


def augment(
    pixels: Tensor,
    rows: Tensor,
    epoch: int,
    size: int,
    shift: int,
    rng: np.random.Generator,
    cutout: int = 0,
    fill_colour: Sequence[float] = (0.5, 0.5, 0.5),
) -> Tensor:
    """uint8 pictures (b, 3, 32, 32) → float (b, 3, size, size): mirrored, shifted with reflection, a square of
    `cutout` pixels a side filled (DeVries & Taylor 2017), shrunk.

    A picture is mirrored in every second epoch (airbench's alternating flip), which half starts by its row number.
    """
    x = pixels.float()
    b, side = len(x), x.shape[-1]
    mirrored = ((rows * 2654435761 >> 7) + epoch) % 2 == 0
    x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    if shift:
        x = F.pad(x, (shift,) * 4, mode="reflect")
        dy, dx = (torch.as_tensor(d, device=x.device) for d in rng.integers(0, 2 * shift + 1, (2, b)))
        along = torch.arange(side, device=x.device)
        ys, xs = dy[:, None] + along, dx[:, None] + along  # (b, side)
        i = torch.arange(b, device=x.device)[:, None, None]
        x = x.permute(0, 2, 3, 1)[i, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2)
    if cutout:
        along = torch.arange(side, device=x.device)
        centres = torch.as_tensor(rng.integers(0, side, (2, b, 1)), device=x.device)
        ys, xs = ((along >= c - cutout // 2) & (along < c + (cutout + 1) // 2) for c in centres)  # (b, side)
        colour = 255 * torch.tensor(fill_colour, device=x.device).view(1, 3, 1, 1)
        x = torch.where((ys[:, :, None] & xs[:, None, :])[:, None], colour, x)
    if size != side:
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return x


def degrade(pixels: Tensor, fraction: float, rng: np.random.Generator) -> Tensor:
    """Pictures (b, 3, h, w) in 0 … 255 → float, about `fraction` of them as a poor camera would take them: half of
    those noisy, a quarter blurred, a quarter of low contrast, each by a strength of its own.
    """
    x = pixels.float()
    kind = torch.as_tensor(rng.choice(4, len(x), p=(1 - fraction, fraction / 2, fraction / 4, fraction / 4)))
    noisy, blurred, faint = (torch.nonzero(kind == k).flatten().to(x.device) for k in (1, 2, 3))

    def strengths(rows: Tensor, low: float, high: float) -> Tensor:
        return torch.as_tensor(rng.uniform(low, high, len(rows)), dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)

    waves = torch.as_tensor(rng.standard_normal((len(noisy), *x.shape[1:]), np.float32), device=x.device)
    x[noisy] += 255 * strengths(noisy, 0, MOST_NOISE) * waves
    along = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=x.device)
    kernel = torch.exp(-0.5 * (along / strengths(blurred, *BLUR)) ** 2)  # (r, 1, 1, taps)
    kernel = kernel / kernel.sum(3, keepdim=True)
    if len(blurred):
        y = F.pad(x[blurred], (BLUR_RADIUS,) * 4, mode="reflect").transpose(0, 1)  # one group a picture
        for taps in (kernel, kernel.transpose(2, 3)):
            y = F.conv2d(y, taps, groups=len(blurred))
        x[blurred] = y.transpose(0, 1)
    mean = x[faint].mean((1, 2, 3), keepdim=True)
    x[faint] = mean + strengths(faint, *CONTRAST) * (x[faint] - mean)
    return x.clamp_(0, 255)


def sample_prompts(captions: Captions, rng: np.random.Generator) -> list[str]:
    """One prompt for each concept, its template drawn anew; half of the terms name their class as well."""
    prompts = []
    for i, concept in enumerate(captions.concepts):
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        if i >= len(CLASSES) and rng.random() < 0.5:
            concept = KIND_TEMPLATE.format(concept, CLASSES[captions.parent[i]])
        prompts.append(fill(template, concept))
    return prompts


def _all_prompts(captions: Captions) -> list[str]:
    kinds = [KIND_TEMPLATE.format(c, CLASSES[p]) for c, p in zip(captions.concepts, captions.parent, strict=True)]
    return [fill(t, c) for c in (*captions.concepts, *kinds) for t in TEMPLATES]


def embed_held_out(folder: Path, pictures: Pictures, device: torch.device) -> float:
    """Writes the embeddings of held-out pictures beside an encoder's weights; returns their zero-shot accuracy."""
    encoder = open_encoder(str(folder), device)
    X = encoder.encode_images(pictures.pixels)
    ids = {c: i for i, c in enumerate(encoder.concepts)}
    save_test_embeddings(folder, X, pictures.labels, np.array([ids.get(t, -1) for t in pictures.terms]))
    T = encoder.encode_concepts(CLASSES)
    return float(((X @ T.T).argmax(1) == pictures.labels).mean())
