"""Captions: true, and with nothing in them that gives a word away."""

import itertools
from collections import Counter

import numpy as np

from data_partitions.scenes.captions import captions
from data_partitions.scenes.world import World, random_scene
from tests.data_partitions.scenes import oracle


def _pairs(number):
    for index in range(number):
        rng = np.random.default_rng(index)
        scene = random_scene(rng, World())
        yield scene, captions(scene, rng)


def test_all_sentences_are_true_by_a_second_opinion():
    for scene, sentences in _pairs(500):
        objects = oracle.seen(scene)
        for sentence in sentences[1:]:
            assert oracle.truth(sentence, objects), sentence


def test_the_first_caption_names_everything_in_reading_order():
    for scene, sentences in _pairs(100):
        expected = [
            f"{o['place']} {o['size']} {o['color']} {o['texture']} {o['shape']}" for o in oracle.seen(scene)
        ]
        order = [
            "top left",
            "top",
            "top right",
            "left",
            "center",
            "right",
            "bottom left",
            "bottom",
            "bottom right",
        ]
        expected.sort(key=lambda part: order.index(" ".join(part.split()[:-4])))
        assert sentences[0].split(" , ") == expected


def test_no_article_or_plural_gives_a_word_away():
    for _, sentences in _pairs(300):
        for sentence in sentences:
            assert " an " not in sentence
            assert " a o" not in sentence
            words = sentence.split()
            for before, word in itertools.pairwise(words):
                # "the number of red objects is one": the plural stands whatever the number is.
                assert before not in oracle.NUMBERS or word == "and"


def test_all_kinds_of_sentence_and_word_occur():
    words = Counter(
        word for _, sentences in _pairs(1000) for sentence in sentences for word in sentence.split()
    )
    vocabulary = [*oracle.NUMBERS, *(value for values in oracle.VOCABULARY.values() for value in values)]
    for word in (*vocabulary, "no", "more", "many", "same", "different", "larger", "left", "above", "below"):
        assert words[word] >= 5, word
