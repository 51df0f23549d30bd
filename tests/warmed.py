"""What a child that runs a command imports and loads first. The fork server of `killing` does it once for all."""

from __future__ import annotations

import duckdb  # noqa: F401
import faiss  # noqa: F401
import numpy as np
from scipy import sparse

import indexer.cli
import indexer.update  # noqa: F401
import training.encoders.trained  # noqa: F401, with torch, timm and transformers
from indexer.coding import encode_sparse
from indexer.config import CoderConfig
from indexer.store.postings import pack
from search.inverted import Inverted

D = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
D /= np.linalg.norm(D, axis=1, keepdims=True)
for refit in (False, True):
    W: sparse.csc_matrix = encode_sparse(D[:8], D, CoderConfig(l1=0.5, refit=refit)).W.tocsc()
W.sort_indices()
engine = Inverted(pack(W.indptr, W.indices, W.data, W.shape[0]))
engine.search(np.eye(40)[0], 5)
engine.search(np.ones(40), 5)
