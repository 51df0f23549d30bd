"""The contents of small indexes, made by code: what a build hands to the store, with hostile names in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from indexer.coding import Dictionary
from indexer.config import CoderConfig
from indexer.store import Classes, Contents, Described, IndexMeta, Pictures


def unit_rows(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    X = rng.normal(size=(n, d)).astype(np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def make_pictures(n: int = 12, m: int = 5, d: int = 8, seed: int = 0, **described: Any) -> Pictures:
    """n pictures with random embeddings and codes; described: what is to be known of them beside the default."""
    rng = np.random.default_rng(seed)
    W = sparse.random(n, m, 0.4, format="csr", dtype=np.float32, random_state=rng)
    W.sort_indices()
    known = {
        "paths": [f"folder/é'{i}\n.png" for i in range(n)],
        "splits": ["test"] * n,
        "labels": [None if i % 2 else "a" for i in range(n)],
        "thumbnails": [bytes([i % 256, 0, 255]) for i in range(n)],
    }
    return Pictures(
        X=unit_rows(n, d, rng), W=W, l1=rng.random(n), gap=rng.random(n), described=Described(**known | described)
    )


def make_contents(
    n: int = 12, m: int = 5, d: int = 8, seed: int = 0, *, factory: str = "Flat", **more: Any
) -> Contents:
    """All that an index of n pictures holds; more: parts of it in place of the default."""
    rng = np.random.default_rng(1000 + seed)
    dictionary = Dictionary(
        names=["fire engine", "it's", 'a "b"', "émeu", "; DROP TABLE meta"][:m],
        aliases=[["fire truck", "x,y"], [], [], [], []][:m],
        parents=["a", None, "b", "b", None][:m],
        D=unit_rows(m, d, rng),
        source="words.txt",
    )
    meta = IndexMeta(
        d=d,
        dataset="pictures",
        root="/pictures",
        embedded="from the pictures",
        encoder_name="small",
        encoder_source="/nowhere/encoder",
        encoder_fingerprint="0123",
        trained_on="pictures made by code",
        dictionary=dictionary.source,
        dictionary_fingerprint=dictionary.fingerprint,
        templates=("{}",),
        coder=CoderConfig(l1=0.5),
        dense_factory=factory,
    )
    parts: dict[str, Any] = {
        "meta": meta,
        "pictures": make_pictures(n, m, d, seed),
        "dictionary": dictionary,
        "classes": Classes(["a", "b", "c"], unit_rows(3, d, rng)),
    }
    return Contents(**parts | more)
