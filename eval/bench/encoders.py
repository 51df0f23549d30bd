"""What encoding costs on a CPU: `python -m eval.bench --only encoders`.

A CLIP of base size with random weights stands for those of the hub: its speed does not depend on what the weights are,
its agreement in half precision only roughly. The bundled encoder stands beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.bench.common import Options, Row, Section
from training.encoders import Encoder, centre, mean_of, open_encoder, open_text_encoder

PATCHES = (32, 16)  # ViT-B/32; ViT-B/16, with --full
PICTURES, TEXTS, STARTS, REPEATS = 64, 64, 3, 3  # pictures and texts, cold starts, timings of a call
VOCABULARY = 49_408  # tokens, as CLIP has
START = """
import json, resource, sys, time
began = time.perf_counter()
from training.encoders import open_text_encoder, open_encoder
encoder = (open_encoder if sys.argv[2] == "both" else open_text_encoder)(sys.argv[1])
encoder.encode_texts(["a dog"])
used = resource.getrusage(resource.RUSAGE_SELF)
seconds, processor = time.perf_counter() - began, used.ru_utime + used.ru_stime
status = open("/proc/self/status").read() if sys.platform == "linux" else ""  # ru_maxrss there knows the parent's, too
peak = int(status.partition("VmHWM:")[2].split()[0]) if status else used.ru_maxrss
print(json.dumps({"s": seconds, "processor s": processor, "peak MB": peak / 1024}))
"""


def make_clip(folder: Path, patch: int) -> Path:
    """Writes a CLIP of base size with random weights, ViT-B/`patch`, as a hub would hold it."""
    import torch
    import transformers as tf

    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(c + "</w>" for c in letters)]
    words += [f"word{i}</w>" for i in range(VOCABULARY - 2 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = tf.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    torch.manual_seed(0)
    model = tf.CLIPModel(tf.CLIPConfig(vision_config={"patch_size": patch}))
    processor = tf.CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def pictures(n: int, side: int) -> list[Image.Image]:
    """Pictures of ever finer structure: noise of 2 to `side` pixels a side, enlarged."""
    rng = np.random.default_rng(0)
    sides = np.geomspace(2, side, n).astype(int)
    return [Image.fromarray(rng.integers(0, 256, (s, s, 3), np.uint8)).resize((side, side)) for s in sides]


def fastest(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the shortest of some times, in seconds: what others do only makes it longer."""
    call()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - began)
    return found, min(times)


def started(name: str, towers: str) -> Row:
    """An encoder from a cold process to its first text. towers: `text`, or `both`. The files are in memory already."""
    found = [
        json.loads(subprocess.run([sys.executable, "-c", START, name, towers], capture_output=True, check=True).stdout)
        for _ in range(STARTS)
    ]
    return {"towers": towers, **min(found, key=lambda row: row["s"])}


def precisions(encoder: Any, prepared: list[Any], name: str) -> list[Row]:
    """Pictures a second in float32, in bfloat16 where torch's autocast takes it, and in bfloat16 throughout.

    Each with its lowest cosine to float32, as the tower gives it and as an index holds it, which is centred.
    """
    import torch

    X, seconds = fastest(lambda: encoder.encode_images(prepared))
    mean = mean_of(X)
    rows: list[Row] = [{"encoder": name, "precision": "float32", "pictures / s": len(X) / seconds}]

    def mixed() -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return np.asarray(encoder.encode_images(prepared))

    found = [("bfloat16, autocast", fastest(mixed))]
    encoder.model.to(torch.bfloat16)
    found.append(("bfloat16", fastest(lambda: encoder.encode_images(prepared))))
    encoder.model.to(torch.float32)
    for kind, (Z, seconds) in found:
        row: Row = {"encoder": name, "precision": kind, "pictures / s": len(X) / seconds}
        centred = (centre(X, mean) * centre(Z, mean)).sum(1)
        rows.append(row | {"lowest cosine": float((X * Z).sum(1).min()), "lowest, centred": float(centred.min())})
    return rows


def _prepared(encoder: Encoder, shown: list[Image.Image]) -> list[Any]:
    return [encoder.prepare(picture) for picture in shown]


def texts_a_second(encoder: Any) -> float:
    texts = [f"a photo of {i} dogs" for i in range(TEXTS)]
    return TEXTS / fastest(lambda: encoder.encode_texts(texts))[1]


def run(options: Options) -> Section:
    """How fast pictures and texts are encoded, and how fast the first text is answered."""
    speeds: list[Row] = []
    half: list[Row] = []
    starts: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.out) as place:
        models = [("bundled", "bundled")]
        for patch in PATCHES if options.full else PATCHES[:1]:
            folder = make_clip(Path(place).absolute() / f"clip-b{patch}", patch)
            models.append((f"CLIP ViT-B/{patch}, random", str(folder)))
        for name, opened in models:
            encoder, light = open_encoder(opened), open_text_encoder(opened)
            shown = pictures(PICTURES, 2 * encoder.image_size)
            prepared, preparing = fastest(partial(_prepared, encoder, shown))
            _, seconds = fastest(partial(encoder.encode_images, prepared))
            speeds.append(
                {
                    "encoder": name,
                    "pictures / s": PICTURES / seconds,
                    "prepared / s, one thread": PICTURES / preparing,
                    "texts / s, torch": texts_a_second(encoder),
                    "texts / s, numpy": texts_a_second(light),
                    "agreement": float((encoder.encode_texts(["a dog"]) * light.encode_texts(["a dog"])).sum()),
                }
            )
            if opened != "bundled":
                half += precisions(encoder, prepared, name)
            starts += [{"encoder": name, **started(opened, towers)} for towers in ("text", "both")]
    return Section(
        {"pictures and texts": speeds, "precision": half, "from a cold process to the first text": starts},
        [_claim(row) for row in starts if row["towers"] == "text"],
        [f"the load of the machine was {os.getloadavg()[0]:.1f}"],
    )


def _claim(row: Row) -> Row:
    seconds = float(str(row["s"]))
    claim = f"{row['encoder']}: first text, s"
    return {"claim": claim, "bar": "≤ 3", "measured": seconds, "met": "yes" if seconds <= 3 else "NO"}
