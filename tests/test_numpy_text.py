"""The numpy text tower against the transformers model that it stands for, and without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from training.encoders import open_encoder
from training.encoders.numpy_text import NumpyTextEncoder
from training.errors import SparsightError


def test_agrees_with_the_transformers_model(small_encoder_dir):
    reference, light = open_encoder(str(small_encoder_dir)), NumpyTextEncoder(small_encoder_dir)
    texts = ["cat", "a photo of a dark ship.", "ünknown “words” & 123", "very " * 80]
    np.testing.assert_allclose(
        light.encode_texts(texts), np.vstack([reference.encode_texts([t]) for t in texts]), atol=2e-5
    )
    names = ["cat", "airplane", "dark dog"]
    np.testing.assert_allclose(light.encode_concepts(names), reference.encode_concepts(names), atol=2e-5)
    assert light.fingerprint == reference.fingerprint


def test_imports_no_torch(small_encoder_dir):
    code = (
        "import sys; from pathlib import Path; from training.encoders.numpy_text import NumpyTextEncoder\n"
        f"NumpyTextEncoder(Path({str(small_encoder_dir)!r})).encode_texts(['a cat'])\n"
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(SparsightError, match=str(tmp_path)):
        NumpyTextEncoder(tmp_path)
