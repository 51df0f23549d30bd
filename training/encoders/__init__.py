"""Encoders put pictures and words into one space of unit vectors, whoever trained it. This is light to import."""

from training.encoders.centring import CentredEncoder, Means, centre, mean_of, same_means
from training.encoders.cut import same_when_cut
from training.encoders.embeddings import SplitEmbeddings, embeddings_beside, has_test_embeddings, load_test_embeddings
from training.encoders.protocol import Encoder, TextEncoder
from training.encoders.resolve import fingerprint_of, open_encoder, open_for_photographs, open_text_encoder

__all__ = [
    "CentredEncoder",
    "Encoder",
    "Means",
    "SplitEmbeddings",
    "TextEncoder",
    "centre",
    "embeddings_beside",
    "fingerprint_of",
    "has_test_embeddings",
    "same_means",
    "same_when_cut",
    "load_test_embeddings",
    "mean_of",
    "open_encoder",
    "open_for_photographs",
    "open_text_encoder",
]
