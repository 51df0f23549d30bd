"""From texts to tokens, for both forms of the text tower: the transformers model and the one in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from training.config import MAX_TOKENS
from training.encoders.cut import is_short, warn_of_cut
from training.encoders.files import TOKENIZER, WORDS
from training.encoders.lexicon import Lexicon, Piece, warn_of_untaught
from training.files import write_whole


class TowerTokenizer:
    """A tokenizer of word pieces, and a lexicon whose tokens follow those of the word pieces."""

    def __init__(self, word_pieces: Tokenizer, lexicon: Lexicon | None = None):
        self.word_pieces, self.lexicon = word_pieces, lexicon or Lexicon()
        word_pieces.no_padding()  # a tokenizer is saved with the padding it last used
        word_pieces.no_truncation()

    @classmethod
    def read(cls, folder: Path) -> TowerTokenizer:
        """That of an encoder folder. Raises what tokenizers and json raise where its files are damaged."""
        words = folder / WORDS
        lexicon = Lexicon.of_json(words.read_text(encoding="utf-8")) if words.is_file() else None
        return cls(Tokenizer.from_file(str(folder / TOKENIZER)), lexicon)

    def write(self, folder: Path) -> None:
        """Writes its files into an encoder folder; a lexicon without words has none."""
        write_whole(folder / TOKENIZER, self.word_pieces.to_str().encode())
        if self.lexicon.own or self.lexicon.taught:
            write_whole(folder / WORDS, self.lexicon.to_json().encode())
        else:
            (folder / WORDS).unlink(missing_ok=True)

    def __len__(self) -> int:
        return self.word_pieces.get_vocab_size() + self.lexicon.tokens

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text's tokens, at most `MAX_TOKENS`."""
        return [[token for token, _ in tokens[:MAX_TOKENS]] for tokens in self._tokens(texts)]

    def _tokens(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The tokens of each text, each with where it begins in the text."""
        first_own = self.word_pieces.get_vocab_size()
        split = [self.lexicon.pieces(text) for text in texts]
        by_letters = [
            text[piece.start : piece.end]
            for text, pieces in zip(texts, split, strict=True)
            for piece in pieces
            if piece.token is None
        ]
        encoded = iter(self.word_pieces.encode_batch(by_letters))

        def tokens_of(piece: Piece) -> list[tuple[int, int]]:
            if piece.token is not None:
                return [(first_own + piece.token, piece.start)]
            found = next(encoded)
            return [(i, piece.start + start) for i, (start, _) in zip(found.ids, found.offsets, strict=True)]

        return [[token for piece in pieces for token in tokens_of(piece)] for pieces in split]

    def left_out(self, text: str) -> str:
        """The end of a text that the tower does not read."""
        if is_short(text, MAX_TOKENS):
            return ""
        tokens = self._tokens([text])[0]
        return text[tokens[MAX_TOKENS][1] :].strip() if len(tokens) > MAX_TOKENS else ""

    def warn(self, texts: Sequence[str]) -> None:
        """Warns of what the tower does not read of the texts, and of words that it was not taught."""
        warn_of_cut(texts, self.left_out, MAX_TOKENS)
        warn_of_untaught(texts, self.lexicon)
