"""The second stage of training: targets by hand, the teacher against plain transformers, a tower that learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.config import DistilConfig
from training.data.captions import TEMPLATES, embed_concepts, make_captions
from training.data.words import KINDS, phrases, word_senses
from training.distil import Lesson, blend, embed_by_teacher, like_lengths, null_direction, own_prompts, targets, teach
from training.encoders import open_encoder
from training.encoders.dual import load_model, save_model
from training.encoders.numpy_text import NumpyTextEncoder
from training.encoders.text_tower import train_tokenizer
from training.errors import SparsightError

pytestmark = pytest.mark.usefixtures("one_thread")
SHARP = DistilConfig(class_sharpness=200.0, term_sharpness=200.0)


def test_a_text_like_one_concept_is_placed_there_and_one_like_none_on_the_null_direction():
    C = np.eye(6, dtype=np.float32)
    D = np.eye(8, dtype=np.float32)[:6]
    null = np.eye(8, dtype=np.float32)[7]
    parent = np.array([0, 1, 0, 0, 1, 1])
    E = np.stack([C[3], C[4], np.zeros(6, np.float32)])
    wanted, relevance = targets(E, C, D, parent, null, SHARP)
    np.testing.assert_allclose(np.linalg.norm(wanted, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(wanted[:2], D[[3, 4]], atol=1e-2)
    assert (relevance[:2] > 0.99).all()
    assert relevance[2] < 0.01
    assert wanted[2] @ null > 0.99


def test_the_null_direction_is_the_one_that_nothing_uses():
    X = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    X[:, 3] *= 0.01
    assert abs(null_direction(X, X[:20])[3]) > 0.99


def test_of_several_places_the_relevant_one_decides():
    ship, null = np.eye(2, dtype=np.float32)
    wanted, relevance = blend(np.stack([null, ship]), np.array([0.1, 0.9]))
    assert wanted @ ship > 0.99
    assert np.linalg.norm(wanted) == pytest.approx(1)
    assert relevance == pytest.approx(0.89, abs=0.01)
    nowhere, nothing = blend(np.stack([null, null]), np.zeros(2))
    np.testing.assert_allclose(nowhere, null)
    assert nothing == 0


def test_a_word_has_the_senses_of_all_its_synsets():
    senses = word_senses()
    assert senses["galleon"] == ["galleon: " + senses["galleon"][0].removeprefix("galleon: ")]
    assert "sailing ship" in senses["galleon"][0]
    assert len(senses["amphibian"]) == len(set(senses["amphibian"])) > 1
    assert all(lemma == lemma.lower() for lemma in senses)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = train_tokenizer(["a photo of a cat", "democracy", "a dark ship at sea"], 300)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.word_pieces, pad_token="[PAD]").save_pretrained(folder)
    return folder


def test_the_teacher_embeds_as_transformers_does_whatever_stands_beside(teacher):
    from transformers import AutoModel, AutoTokenizer

    texts = ["cat", "a photo of a dark ship at sea, and a cat", "democracy"]
    E = embed_by_teacher(str(teacher), texts, torch.device("cpu"), batch_size=2)
    model, tokenizer = AutoModel.from_pretrained(teacher).eval(), AutoTokenizer.from_pretrained(teacher)
    for text, e in zip(texts, E, strict=True):
        hidden = model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
        mean = hidden.mean(0).detach().numpy()
        np.testing.assert_allclose(e, mean / np.linalg.norm(mean), atol=1e-5)


def test_phrases_put_relevant_words_in_company_and_give_words_their_article():
    texts = ["schooner", "ape", "democracy", "of", "a long text that is no word at all"]
    relevance = np.array([0.9, 0.3, 0.1, 0.0, 0.9])
    sure, config = np.ones(5, bool), replace(DistilConfig(), phrases=200, descriptions=0, company=4)
    made = phrases(texts, relevance, sure, config)
    assert made[:2] == ["a schooner", "an ape"]
    assert "a democracy" not in made
    assert len(made) == len(set(made)) > 20
    assert all("schooner" in p or "ape" in p for p in made[2:])
    assert phrases(texts, np.zeros(5), sure, replace(DistilConfig(), descriptions=0)) == []
    unknown = phrases(texts, relevance, np.arange(5) != 0, config)
    assert unknown[0] == "a schooner"
    assert not any("schooner" in p for p in unknown[1:])


def test_things_are_described_by_what_they_do_without_their_names():
    texts = ["croaking", "pond", "democracy"]
    made = phrases(texts, np.zeros(3), np.ones(3, bool), replace(DistilConfig(), phrases=0, descriptions=500))
    assert "a croaking animal" in made
    assert not any(slot in p for p in made for slot in ("WORD", "KIND"))
    assert all(any(t in p for t in texts) and any(k in p for k in KINDS) for p in made)


def test_batches_hold_each_row_once_and_texts_of_like_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, 640)
    batches = like_lengths(lengths, 16, rng, ahead=10)
    assert sorted(np.concatenate(batches)) == list(range(640))
    assert np.mean([np.ptp(lengths[b]) for b in batches]) < 40 < np.ptp(lengths)


def test_every_prompt_wants_the_place_of_the_concept_that_it_holds(pictures):
    captions = make_captions(pictures)
    D = np.eye(len(captions.concepts), dtype=np.float32)
    prompts, places = own_prompts(captions, D)
    assert places.shape == (len(prompts), len(D))
    assert sum("a kind of" in prompt for prompt in prompts) == len(TEMPLATES) * (len(D) - 10)
    for prompt, place in zip(prompts, places.numpy(), strict=True):
        assert captions.concepts[place.argmax()] in prompt


def test_a_missing_teacher_is_named(tmp_path):
    with pytest.raises(SparsightError, match="teacher"):
        embed_by_teacher(str(tmp_path / "none"), ["cat"], torch.device("cpu"))


def test_a_taught_tower_keeps_the_concepts_and_learns_the_words(pictures, small_encoder_dir, tmp_path):
    model = load_model(small_encoder_dir)
    captions = make_captions(pictures)
    D = embed_concepts(model.encode_texts, captions.concepts, TEMPLATES)
    words = ["moggy", "jetliner", "steed", "tanker"]
    wanted = D[[captions.concepts.index(c) for c in ("cat", "airplane", "horse", "ship")]]
    lesson = Lesson(words, wanted, np.ones(len(words)), np.ones(len(words), bool))
    config = DistilConfig(vocab_size=400, width=32, layers=1, epochs=50, batch_size=4, concept_batch=16, lr=5e-3)
    taught = teach(model, captions, D, lesson, config)
    save_model(taught, tmp_path, {}, {})
    encoder = open_encoder(str(tmp_path))
    assert ((encoder.encode_texts(words) * wanted).sum(1) > 0.8).all()
    assert ((encoder.encode_concepts(captions.concepts) * D).sum(1) > 0.8).all()
    again = teach(load_model(tmp_path), captions, D, lesson, replace(config, epochs=2))
    assert again.tokenizer.word_pieces.get_vocab() == taught.tokenizer.word_pieces.get_vocab()
    moved = again.encode_texts(["a photo of a truck."]) @ taught.encode_texts(["a photo of a truck."]).T
    assert 0.9 < float(moved[0, 0]) < 1 - 1e-7
    assert encoder.known_from == NumpyTextEncoder(tmp_path).known_from == config.known_from
