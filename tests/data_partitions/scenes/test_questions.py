"""Texts about scenes: right answers, and answers that the text does not tell."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from data_partitions.scenes import questions, statements
from data_partitions.scenes.clients import CLIENTS, FUNCTIONS
from data_partitions.scenes.questions import scene_for
from data_partitions.scenes.world import World
from tests.data_partitions.scenes import oracle

WORLDS = {name: (client.world, client.kinds) for name, client in CLIENTS["scene"].items()}
WORLDS["all"] = (World(), tuple(FUNCTIONS.values()))
YES_NO = [questions.relation, *FUNCTIONS["logic"], *FUNCTIONS["comparison"]]


@pytest.mark.parametrize("name", WORLDS)
def test_answers_are_right_in_the_scene_by_a_second_opinion(name):
    world, kinds = WORLDS[name]
    for asker in (asker for kind in kinds for asker in kind):
        for index in range(40):
            rng = np.random.default_rng(index)
            query = asker(rng, world)
            scene = scene_for(rng, world, query)
            assert oracle.answer(query.text, oracle.seen(scene)) == query.answer, query.text


@pytest.mark.parametrize("asker", YES_NO)
def test_statements_are_true_exactly_when_the_answer_is_yes(asker):
    for index in range(100):
        rng = np.random.default_rng(index)
        query = statements.statement(asker)(rng, World())
        objects = oracle.seen(scene_for(rng, World(), query))
        assert query.answer == ("true" if oracle.truth(query.text, objects) else "false"), query.text


def test_number_statements():
    for index in range(100):
        rng = np.random.default_rng(index)
        query = statements.number_statement(rng, World())
        objects = oracle.seen(scene_for(rng, World(), query))
        assert query.answer == ("true" if oracle.truth(query.text, objects) else "false"), query.text


@pytest.mark.parametrize("asker", [statements.look_entailment, statements.relation_entailment])
def test_entailment_is_neutral_where_something_named_is_absent(asker):
    for index in range(200):
        rng = np.random.default_rng(index)
        query = asker(rng, World())
        objects = oracle.seen(scene_for(rng, World(), query))
        # "the a is b" names one object, "the a is left of the b" two.
        named = re.findall(r"the (.+?)(?: is |$)", query.text)
        if all(oracle.find(phrase, objects) for phrase in named):
            expected = "entailment" if oracle.truth(query.text, objects) else "contradiction"
        else:
            expected = "neutral"
        assert query.answer == expected, query.text


def test_captions_match_unless_one_attribute_of_one_object_differs():
    answers = Counter()
    for index in range(200):
        rng = np.random.default_rng(index)
        query = statements.caption_match(rng, World())
        objects = {item.place: item for item in scene_for(rng, World(), query).objects}
        wrong = 0
        for part in query.text.split(" , "):
            *where, size, color, texture, shape = part.split()
            item = objects[" ".join(where)]
            wrong += (
                (item.size != size)
                + (item.color != color)
                + (item.texture != texture)
                + (item.shape != shape)
            )
        assert wrong == (0 if query.answer == "yes" else 1)
        answers[query.answer] += 1
    assert 70 < answers["yes"] < 130


@pytest.mark.parametrize("asker", YES_NO)
def test_no_word_of_a_question_tells_yes_from_no(asker):
    answers = defaultdict(Counter)
    for index in range(2000):
        query = asker(np.random.default_rng(index), World())
        for word in set(query.text.split()):
            answers[word][query.answer] += 1
    for word, counted in answers.items():
        if counted.total() >= 150:
            # Five standard deviations of a fair coin.
            assert abs(counted["yes"] / counted.total() - 0.5) < 2.5 / counted.total() ** 0.5, word


@pytest.mark.parametrize(
    ("asker", "start", "answers"),
    [
        (questions.number, "how many", 6),
        (questions.place, "where", 9),
        (questions.look_at_place, "what color", 6),
        (questions.look_of_object, "what shape", 5),
        (questions.look_beside, "what texture", 3),
    ],
)
def test_open_answers_are_even(asker, start, answers):
    queries = [asker(np.random.default_rng(index), World()) for index in range(4000)]
    counted = Counter(query.answer for query in queries if query.text.startswith(start))
    share = 1 / answers
    bound = 5 * (share * (1 - share) / counted.total()) ** 0.5
    assert len(counted) == answers
    assert all(abs(number / counted.total() - share) < bound for number in counted.values())


def test_texts_are_short_lower_case_and_have_no_mark_but_the_question_mark():
    for kinds in FUNCTIONS.values():
        for index in range(300):
            text = kinds[index % len(kinds)](np.random.default_rng(index), World()).text
            assert text.endswith("?")
            assert text[:-1].replace(" ", "").isalpha()
            assert text.islower()
            assert len(text.split()) <= 20
            assert " a o" not in text
