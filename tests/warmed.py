"""What a child that runs a command imports and loads first. The fork server of `killing` does it once for all."""

from __future__ import annotations

import gc

import duckdb  # noqa: F401
import faiss  # noqa: F401
import numpy as np
import torch
from scipy import sparse

import indexer.cli
import indexer.update  # noqa: F401
from indexer.coding import encode_sparse
from indexer.config import CoderConfig
from indexer.store.postings import pack
from search.inverted import Inverted
from training.encoders import open_encoder

D = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
D /= np.linalg.norm(D, axis=1, keepdims=True)
for refit in (False, True):
    W: sparse.csc_matrix = encode_sparse(D[:8], D, CoderConfig(l1=0.5, refit=refit)).W.tocsc()
W.sort_indices()
engine = Inverted(pack(W.indptr, W.indices, W.data, W.shape[0]))
engine.search(np.eye(40)[0], 5)
engine.search(np.ones(40), 5)

torch.set_num_threads(1)  # no thread of torch's may be there when the server forks
encoder = open_encoder()
encoder.encode_texts(["a cat"])
encoder.encode_images(np.zeros((1, 32, 32, 3), np.uint8))
gc.collect()
gc.freeze()  # a child that looks for garbage would copy all that it was forked with
