"""The stage of whole words: WordNet's tree, which words are misplaced, and tokens that learn while all else stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.config import WholeWordsConfig
from training.data.captions import TEMPLATES, Captions, embed_concepts, make_captions
from training.data.cifar10 import CLASSES
from training.data.wordnet import DATA, INDEX, read_nouns
from training.encoders.dual import load_model
from training.encoders.lexicon import Lexicon
from training.errors import SparsightError
from training.whole_words import TreePlacer, misplaced, parts_of, teach_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
VEHICLES = ("airplane", "automobile", "ship", "truck")
# noun → the noun above it, and WordNet's category of it: 3 for everything, 5 animals, 6 things, 13 food.
TREE = {
    "entity": ("", 3), "animal": ("entity", 5), "vehicle": ("entity", 6), "food": ("entity", 13),
    "feline": ("animal", 5), "flight": ("entity", 6), "catsup": ("food", 13), "lizard": ("animal", 5),
    **{c: ("vehicle" if c in VEHICLES else "feline" if c == "cat" else "animal", 6 if c in VEHICLES else 5)
       for c in CLASSES},
    "tabby": ("cat", 5), "siamese": ("cat", 5), "lion": ("feline", 5), "moggy": ("tabby", 5),
    **{f"food {i}": ("food", 13) for i in range(60)},
}  # fmt: skip


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    """A small WordNet, in the form of the real one's files."""
    folder = tmp_path_factory.mktemp("wordnet")
    at = {noun: f"{i:08}" for i, noun in enumerate(TREE)}
    data = ["  1 a licence"]
    for noun, (above, category) in TREE.items():
        pointers = f"002 @ {at[above]} n 0000 ~ {at[above]} n 0000" if above else "000"
        data.append(f"{at[noun]} {category:02} n 01 {noun.replace(' ', '_')} 0 {pointers} | what a {noun} is  ")
    lines = [f"{noun.replace(' ', '_')} n 1 2 @ ~ 1 0 {place}  " for noun, place in at.items()]
    (folder / DATA).write_text("\n".join(data))
    (folder / INDEX).write_text("\n".join(["  1 a licence", *lines]))
    return folder


@pytest.fixture(scope="module")
def tree(wordnet):
    concepts = [*CLASSES, "siamese", "tabby"]
    captions = Captions(concepts, np.array([*range(10), 3, 3]), np.zeros(0, int), np.zeros(0, int))
    config = replace(WholeWordsConfig(), strangers=30)
    return TreePlacer(read_nouns(wordnet), captions, np.eye(13, dtype=np.float32)[:12], np.eye(13)[12], config)


def test_a_class_is_rooted_at_the_smallest_synset_above_all_of_its_concepts(tree):
    names = {synset: noun for noun, (synset, *_) in tree.nouns.senses.items()}
    assert [names[root] for root in tree.roots] == list(CLASSES)
    assert tree.nouns.size[tree.roots[3]] == 4  # cat, tabby, siamese, moggy


def test_the_tree_places_a_noun_near_what_it_is_a_kind_of(tree):
    moggy, lion, lizard, catsup = (tree.place(noun) for noun in ("moggy", "lion", "lizard", "catsup"))
    assert (moggy.classes, moggy.relevance) == ({3}, 1)
    assert moggy.direction.argmax() == 11  # a tabby
    assert tree.wanted(moggy) @ tree.null == 0
    assert not lion.classes
    assert tree.nouns.definition[tree.nouns.senses["lion"][0]] == "what a lion is"
    assert lion.direction[[3, 10, 11]].min() > lion.direction[:3].max()
    assert 1 > lion.relevance > lizard.relevance > catsup.relevance == 0
    np.testing.assert_array_equal(tree.wanted(catsup), tree.null)
    for place in (moggy, lion, lizard, catsup):
        assert np.linalg.norm(tree.wanted(place)) == pytest.approx(1)


def test_what_lies_where_it_belongs_stays(tree):
    words = ["catsup", "food 3", "moggy", "tabby", "flight", "jumpy", "lion", "lizard", "animal"]
    S = np.zeros((len(words), 12))
    S[[0, 1, 2, 3, 4, 5, 6, 7, 8], [3, 3, 5, 3, 0, 7, 3, 6, 2]] = [0.9, 0.2, 0.9, 0.8, 0.9, 0.9, 0.4, 0.9, 0.9]
    found = misplaced(tree, words, S, {"flight", "jumpy"})
    assert set(found) == {"catsup", "moggy", "flight", "lizard"}  # "jumpy" is no noun, an animal no other thing
    np.testing.assert_array_equal(found["catsup"].wanted, found["catsup"].if_relevant)
    assert found["moggy"].wanted.argmax() == 11
    assert found["flight"].wanted @ tree.null == 1
    assert found["flight"].if_relevant[0] == pytest.approx(tree.config.associated)
    S[0, 3] = 0.6
    known = misplaced(tree, ["catsup"], S[:1], {"catsup"})["catsup"]  # of a frequent word the teacher knows more
    assert (known.wanted @ tree.null, known.if_relevant) == (1, None)


def test_a_part_of_a_concept_gets_no_token():
    assert parts_of(["pickerel frog", "fire-engine red"]) >= {"pickerel", "frog", "fire engine", "engine red", "red"}


@pytest.mark.parametrize("content", [None, "", "00000001 05\n"])
def test_a_folder_without_wordnet_is_named(tmp_path, content):
    if content is not None:
        for file in (DATA, INDEX):
            (tmp_path / file).write_text(content)
    if content == "":
        (tmp_path / INDEX).unlink()
    with pytest.raises(SparsightError, match=r"--wordnet .*wordnet-base"):
        read_nouns(tmp_path)


def test_tokens_learn_their_places_and_nothing_else_changes(pictures, small_encoder_dir):
    model = load_model(small_encoder_dir)
    captions = make_captions(pictures)
    D = embed_concepts(model.encode_texts, captions.concepts, TEMPLATES)
    wanted = np.stack([D[captions.concepts.index("ship")], D[captions.concepts.index("cat")]])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lexicon = Lexicon({"catsup": 0, "sea horse": 0, "tibert": 1})
    config = replace(WholeWordsConfig(), steps=60, batch_size=16, company=4, lr=0.05)
    teach_tokens(model, captions, lexicon, wanted, ["ship"], config)
    Z = model.encode_texts(["catsup", "a photo of a Sea Horse.", "two tiberts", "a tibert in the snow"])
    assert ((Z * wanted[[0, 0, 1, 1]]).sum(1) > 0.8).all()
    for key, value in model.state_dict().items():
        assert torch.equal(value[: len(before[key])] if value.ndim else value, before[key])
    np.testing.assert_array_equal(embed_concepts(model.encode_texts, captions.concepts, TEMPLATES), D)


def test_wordnet_is_refused_without_a_teacher_in_one_line(run, tmp_path):
    refused = run("train", "--wordnet", tmp_path, "--data", tmp_path, code=2)
    assert refused.stderr.strip().splitlines()[-1].startswith("Error: --wordnet needs a --teacher")
