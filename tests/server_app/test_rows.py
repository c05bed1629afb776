"""What is read out of a run's rows."""

from math import isnan, nan

import pytest

from server_app.rows import best_round, have_none_in_common, side_by_side


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


def test_what_was_there_before_any_training_is_no_best_round():
    before = [{"round": 0, "partition": 0, "student": 0.9}]
    assert best_round([*before, *rows_of([0.2], [0.5])], 2) == 2
    assert best_round(before, 2) is None


def scored(*clients):
    return [
        {"round": 2, "partition": partition, "name": name, "student": score}
        for partition, (name, score) in enumerate(clients)
    ]


def test_clients_of_several_runs_are_matched_by_their_names():
    """Partition 0 of the one is another client than partition 0 of the other."""
    found = side_by_side([scored(("clean", 0.5), ("sketch", 0.25)), scored(("sketch", 0.75), ("anna", 1.0))])
    assert {name: [None if isnan(one) else one for one in scores] for name, scores in found.items()} == {
        "clean": [0.5, None],
        "sketch": [0.25, 0.75],
        "anna": [None, 1.0],
    }
    assert not have_none_in_common(found)
    assert have_none_in_common(side_by_side([scored(("clean", 0.5)), scored(("anna", 1.0))]))
    assert not have_none_in_common({})


def test_clients_of_one_name_are_told_apart_and_the_servers_score_is_over_all_classes():
    rows = [*scored(("a", 0.5), ("a", 0.25)), {"round": 2, "partition": -1, "student": 0.75}]
    assert side_by_side([rows]) == {"all classes": [0.75], "a (0)": [0.5], "a (1)": [0.25]}
