"""What is read out of a run's rows."""

from math import nan

import pytest

from server_app.rows import best_round


def rows_of(*rounds):
    return [
        {"round": number, "partition": partition, "student": score}
        for number, scores in enumerate(rounds, start=1)
        for partition, score in enumerate(scores)
    ]


def test_two_of_seven_do_not_choose_the_best_round():
    """They say 1 after a bad round and 0 after a good one; in the mean the bad one is the better."""
    honest = [0.2] * 5, [0.5] * 5
    rows = rows_of([1.0, 1.0, *honest[0]], [0.0, 0.0, *honest[1]])
    assert best_round(rows, 2) == 2
    assert best_round(rows, 1) == 1


@pytest.mark.parametrize(
    ("rounds", "best"),
    [([], None), ([[nan]], None), ([[0.5], [0.5]], 1), ([[nan, 0.3], [0.2, nan]], 1), ([[], [0.1]], 2)],
)
def test_the_first_of_equals_and_none_without_scores(rounds, best):
    assert best_round(rows_of(*rounds), 9) == best
