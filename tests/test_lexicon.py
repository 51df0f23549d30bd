"""Words with tokens of their own: how a text is taken apart, what is known, and that all else is read as before."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from tokenizers import Tokenizer

from training.data.cifar10 import CLASSES
from training.encoders import open_encoder
from training.encoders.dual import load_model, save_model
from training.encoders.files import TOKENIZER, WORDS
from training.encoders.lexicon import Lexicon, spelled
from training.encoders.numpy_text import NumpyTextEncoder
from training.encoders.tokens import TowerTokenizer
from training.errors import SparsightError, UntaughtWarning
from training.whole_words import forget_own_words, share_tokens

LEXICON = Lexicon(
    {
        "catsup": 0,
        "toad lily": 0,
        "lily": 1,
        "hoatzin": 2,
        "queen anne's lace": 1,
        "lip": 0,
        "st bernard": 1,
        "trailer": 2,
    },
    frozenset(
        {"lips", "photo", "picture", "image", "small", "snow", "frog", "the", "queen", "wheeler", "toad", *CLASSES}
    ),
    frozenset({"trailer"}),
)
PLAIN = ["cat", "A photo of a dark ship.", "ünknown “words” & 123", "", " ", "very " * 80, "scatsups", "toad's"]


def names_in(text: str) -> list[tuple[str, int]]:
    return [(text[p.start : p.end], p.token) for p in LEXICON.pieces(text) if p.token is not None]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a photo of a catsup.", [("catsup", 0)]),
        ("CATSUP", [("CATSUP", 0)]),
        ("two catsups and Hoatzins", [("catsups", 0), ("Hoatzins", 2)]),
        ("the catsup's colour", [("catsup's", 0)]),
        ("a Toad  Lily in the snow", [("Toad  Lily", 0)]),
        ("toad-lilies", [("toad-lilies", 0)]),
        ("a lily, no toad", [("lily", 1)]),
        ("toad, lily", [("lily", 1)]),  # no name goes over a comma
        ("Queen Anne’s lace", [("Queen Anne’s lace", 1)]),
        ("a St. Bernard", [("St. Bernard", 1)]),
        ("lips", []),  # taught as a word of its own
        ("a photo of the Trailers.", [("Trailers", 2)]),
        ("a trailer in the snow", []),  # a name for a text that has no other words
        ("scatsup catsupy", []),
        ("", []),
    ],
)
def test_names_are_found_as_whole_words_the_longest_first(text, names):
    assert names_in(text) == names


def test_the_rest_of_a_text_stays_whole():
    text = "a photo of a toad lily in the snow"
    assert [text[p.start : p.end] for p in LEXICON.pieces(text)] == ["a photo of a ", "toad lily", " in the snow"]
    assert [tuple(p) for p in LEXICON.pieces("no name here")] == [(0, 12, None)]


def test_words_that_were_not_taught_are_told_apart():
    assert LEXICON.untaught("A cat, the Shipton cats' 18-wheeler of St. Bernard's toad") == ["Shipton"]
    assert LEXICON.untaught("a catsup, a frog's lily; Frogs") == []
    assert Lexicon().untaught("shipton") == []


def test_a_lexicon_comes_back_from_its_file():
    assert Lexicon.of_json(LEXICON.to_json()) == LEXICON
    assert spelled("  St.  Bernard’s-Lily ") == "st bernard's lily"


@pytest.fixture(scope="module")
def with_words(small_encoder_dir, tmp_path_factory):
    """The small encoder with a lexicon whose tokens have random embeddings."""
    import torch

    folder = tmp_path_factory.mktemp("with-words")
    model = load_model(small_encoder_dir)
    weight = model.text.bert.embeddings.word_embeddings.weight.detach()
    more = torch.randn(LEXICON.tokens, weight.shape[1], generator=torch.Generator().manual_seed(0))
    model.text.bert.embeddings.word_embeddings.weight = torch.nn.Parameter(torch.cat([weight, more]))
    model.tokenizer = TowerTokenizer(model.tokenizer.word_pieces, LEXICON)
    save_model(model, folder, {}, {})
    return folder


def test_a_text_without_such_words_is_read_as_before_to_the_last_bit(small_encoder_dir, with_words):
    for opened in (NumpyTextEncoder, lambda folder: open_encoder(str(folder))):
        before, after = opened(small_encoder_dir), opened(with_words)
        for text in PLAIN:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                np.testing.assert_array_equal(before.encode_texts([text]), after.encode_texts([text]))
            assert before.left_out(text) == after.left_out(text)


def test_word_pieces_are_those_of_the_tokenizer_alone(small_encoder_dir):
    alone = Tokenizer.from_file(str(small_encoder_dir / TOKENIZER))
    alone.no_padding()
    alone.enable_truncation(48)
    assert TowerTokenizer.read(small_encoder_dir).ids(PLAIN) == [e.ids for e in alone.encode_batch(PLAIN)]


@pytest.mark.filterwarnings("ignore::training.errors.TextWarning")
def test_both_towers_agree_on_names(with_words):
    texts = ["a photo of a Toad Lily.", "catsup", "two hoatzins in the snow " * 12]
    light, whole = NumpyTextEncoder(with_words), open_encoder(str(with_words))
    np.testing.assert_allclose(light.encode_texts(texts), whole.encode_texts(texts), atol=2e-5)
    assert light.left_out(texts[2]) == whole.left_out(texts[2])
    assert texts[2].rstrip().endswith(light.left_out(texts[2]))
    assert light.fingerprint == whole.fingerprint
    same = light.encode_texts(["a catsup", "A Toad-lily", "a hoatzin"])
    np.testing.assert_array_equal(same[0], same[1])
    assert np.abs(same[0] - same[2]).max() > 1e-3


def test_an_untaught_word_is_told_by_both_towers(with_words):
    for encoder in (NumpyTextEncoder(with_words), open_encoder(str(with_words))):
        with pytest.warns(UntaughtWarning, match="not taught 'shipton', 'zwolle'"):
            encoder.encode_texts(["the Shipton", "a cat", "a Zwolle of Shipton"])


def test_an_untaught_word_of_a_query_is_a_note_and_the_index_is_built_without_one(with_words, pictures, run, tmp_path):
    from indexer.build import index_pictures
    from indexer.config import IndexConfig

    with warnings.catch_warnings():
        warnings.simplefilter("error", UntaughtWarning)  # the made-up words by which a cut-off is measured are no news
        index_pictures(tmp_path, pictures.first(40), open_encoder(str(with_words)), IndexConfig("classes"))
    found = run("search", "a shipton", "--all", "--index", tmp_path)
    assert found.stderr.count("note: the encoder was not taught 'shipton'") == 1
    assert "taught" not in run("search", "a catsup", "--all", "--index", tmp_path).stderr


def test_another_lexicon_is_another_encoder(with_words, tmp_path):
    model = load_model(with_words)
    model.tokenizer = TowerTokenizer(model.tokenizer.word_pieces, Lexicon({**LEXICON.own, "dogma": 0}, LEXICON.taught))
    save_model(model, tmp_path, {}, {})
    assert NumpyTextEncoder(tmp_path).fingerprint != NumpyTextEncoder(with_words).fingerprint


def test_an_encoder_that_forgets_its_words_is_the_one_before(small_encoder_dir, with_words, tmp_path):
    model = load_model(with_words)
    forget_own_words(model)
    save_model(model, with_words.parent / "forgotten", {}, {})
    assert not (with_words.parent / "forgotten" / WORDS).exists()
    texts = ["a toad lily", "catsup"]
    before, after = NumpyTextEncoder(small_encoder_dir), NumpyTextEncoder(with_words.parent / "forgotten")
    np.testing.assert_array_equal(before.encode_texts(texts), after.encode_texts(texts))


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"own": 3, "taught": "", "alone": ""})])
def test_a_damaged_lexicon_is_one_line(with_words, tmp_path, content):
    for file in with_words.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / WORDS).write_text(content)
    for opened in (NumpyTextEncoder, lambda folder: open_encoder(str(folder))):
        with pytest.raises(SparsightError, match=str(tmp_path)):
            opened(tmp_path)


def test_names_of_one_place_share_a_token():
    cat, dog, near_cat = np.eye(3)[0], np.eye(3)[1], np.array([0.999, 0.0447, 0])
    own, places = share_tokens({"tabby": cat, "Mutt": dog, "tom-cat": near_cat}, 0.98)
    assert own == {"tabby": 0, "mutt": 1, "tom cat": 0}
    np.testing.assert_allclose(places, [cat, dog])
