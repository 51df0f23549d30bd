"""A compact text tower: a transformers BERT of a few layers over the tokens of its own small tokenizer.

The tokenizer is a byte-level BPE (Sennrich et al. 2016) learned from the training texts. Every text can be written in
its tokens, so that no word is unknown; but a word that was not among the training texts means little to so small a
tower.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from training.config import HEAD_WIDTH, MAX_TOKENS
from training.encoders.tokens import TowerTokenizer

PADDING = 0  # the id of the token that fills up a short text


def train_tokenizer(captions: Iterable[str], vocab_size: int = 1024) -> TowerTokenizer:
    """Learns a tokenizer of at most `vocab_size` tokens from captions; it makes all texts lower case."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["[PAD]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return TowerTokenizer(tokenizer)


class TextTower(nn.Module):
    """A BERT encoder (Devlin et al. 2019), the mean over its tokens, and a linear projection into the shared space.

    vocab_size: tokens of the tokenizer. dim: dimensions of the shared space. width: dimensions of a token inside the
    tower; a head of attention has `HEAD_WIDTH` of them, and the inner layer twice as many. layers: transformer layers.
    It has no dropout and begins with random weights.
    """

    def __init__(self, vocab_size: int, dim: int, *, width: int = 128, layers: int = 2):
        super().__init__()
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // HEAD_WIDTH),
            intermediate_size=2 * width,
            max_position_embeddings=MAX_TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=PADDING,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.projection = nn.Linear(width, dim, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids (b, t) and their mask (b, t), 1 for a token and 0 for padding → (b, dim), not normalised."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (b, t, width)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1.0)
        return self.projection(pooled)


def tokenize(tokenizer: TowerTokenizer, texts: list[str], device: torch.device) -> dict[str, Tensor]:
    """The arguments of `TextTower.forward` for b texts, padded to the longest; more than `MAX_TOKENS` are cut off."""
    rows = tokenizer.ids(texts)
    longest = max(map(len, rows), default=0) or 1  # of a text of spaces the padding is left
    ids = torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.long)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
