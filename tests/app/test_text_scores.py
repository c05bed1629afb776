"""What written answers are worth, by hand."""

import pytest

from app.text_scores import exact, normalised, rouge_l, text_score, token_f1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The red square.", ["red", "square"]),
        ("  Two   DOGS!", ["2", "dogs"]),
        ("1,000.5 km", ["1000.5", "km"]),
        ("don't know", ["dont", "know"]),
        ("none", ["0"]),
        ("a man, an apple; the sea", ["man", "apple", "sea"]),
        ("left-hand_side", ["left", "hand", "side"]),
        ("yes.", ["yes"]),
        ("a", []),
    ],
)
def test_words_are_compared_as_vqa_does(text, words):
    assert normalised(text) == words


def test_words_in_common_by_hand():
    written, right = ["the", "cat", "sat", "on", "mat"], ["on", "the", "mat", "sat", "a", "cat"]
    assert exact(written, right) == 0
    assert exact(right, right) == 1
    # Five in common of five and of six.
    assert token_f1(written, right) == pytest.approx(2 * (5 / 5) * (5 / 6) / (5 / 5 + 5 / 6))
    # "the sat cat" is not in both in order; "the mat" is, as is "on mat": two words.
    assert rouge_l(written, right) == pytest.approx(2 * (2 / 5) * (2 / 6) / (2 / 5 + 2 / 6))
    assert token_f1(["red", "red"], ["red"]) == pytest.approx(2 * (1 / 2) * 1 / (1 / 2 + 1))
    assert token_f1([], ["red"]) == rouge_l([], ["red"]) == 0
    assert token_f1([], []) == rouge_l([], []) == 1


def test_the_best_of_several_right_answers_counts_by_its_worth():
    wanted = {"blue": 0.3, "light blue": 1.0, "grey": 0.6}
    assert text_score("exact", "Blue.", wanted) == 0.3
    assert text_score("exact", "the light blue", wanted) == 1
    assert text_score("exact", "red", wanted) == 0
    # Of "blue" two thirds of "light blue".
    assert text_score("token-f1", "blue", wanted) == pytest.approx(2 / 3)
    assert text_score("exact", "blue", {}) == 0
