"""Coding: the concept dictionary, and pictures as a few weighted concepts of it. Imports torch."""

from indexer.coding.codes import Codes
from indexer.coding.dictionary import (
    NOUNS,
    Dictionary,
    concepts_of,
    make_dictionary,
    meaningful,
    merge_same,
    read_nouns,
    read_words,
)
from indexer.coding.encode import choose_l1, encode_path, encode_sparse
from indexer.coding.estimator import SparseCoder

__all__ = [
    "NOUNS",
    "Codes",
    "Dictionary",
    "SparseCoder",
    "choose_l1",
    "concepts_of",
    "encode_path",
    "encode_sparse",
    "make_dictionary",
    "meaningful",
    "merge_same",
    "read_nouns",
    "read_words",
]
