"""What a run's scores say in words; scores by hand."""

import pytest

from server_app.verdict import verdict


def rows(*clients):
    keys = ("student", "local", "teacher", "text-only")
    return [
        {"round": 3, "partition": index, "name": f"site {index}", **dict(zip(keys, scores, strict=False))}
        for index, scores in enumerate(clients)
    ]


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        (
            [(0.5, 0.5, 0.504, 0.3), (0.4, 0.401, 0.4, 0.3)],
            [
                "The student is 15.0 points above what the question alone gives.",
                "The branches do not differ: their means are within half a point of each other.",
            ],
        ),
        (
            [(0.5, 0.5, 0.6, 0.3), (0.3, 0.3, 0.35, 0.3)],
            [
                "The student is 10.0 points above what the question alone gives; it is not above it for"
                " site 1.",
                "At the sites themselves the teacher branch is best, by 7.5 points.",
            ],
        ),
        (
            [(0.5, 0.4, 0.45, 0.6), (0.3, 0.2, 0.25, 0.3)],
            [
                "The student learnt nothing from the pictures: it is 5.0 points below what the question alone"
                " gives."
            ],
        ),
        ([(0.5,), (0.75,)], []),
        ([()], []),
    ],
)
def test_scores_in_words(clients, said):
    assert verdict(rows(*clients)) == said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((0.40, 0.30), (0.5, 0.3), "Training added 5.0 points to what the backbone gave before it."),
        ((0.60, 0.30), (0.5, 0.3), "Training lost 5.0 points of what the backbone gave before it."),
        (
            (0.40, 0.392),
            (0.5, 0.3),
            "Training changed nothing: the mean is within half a point of what it was before.",
        ),
        # Whoever was not scored before does not count.
        ((0.20,), (0.5, 0.3), "Training added 30.0 points to what the backbone gave before it."),
    ],
)
def test_what_training_added_is_said(before, after, said):
    first = [
        {"round": 0, "partition": index, "name": f"site {index}", "student": score}
        for index, score in enumerate(before)
    ]
    last = rows(*((score,) for score in after))
    assert said in verdict([*first, *last])
    assert not any("Training" in one for one in verdict(first) + verdict(last))


def test_last_it_is_said_on_how_many_questions_that_rests():
    """Only where all who have a score say how many."""
    clients = [{**row, "test-examples": 600} for row in rows((0.5, 0.5, 0.5, 0.3), (0.4, 0.4, 0.4, 0.3))]
    assert verdict(clients)[2:] == ["This rests on 1,200 questions of 2 clients."]
    assert verdict(clients[:1])[2:] == ["This rests on 600 questions of 1 client."]
    del clients[0]["test-examples"]
    assert verdict(clients)[2:] == []
    assert verdict([{"round": 1, "partition": 0, "name": "a", "local": 0.75, "test-examples": 8}]) == []


def test_a_method_of_one_branch_is_called_by_it():
    own = [{"round": 1, "partition": 0, "name": "a", "local": 0.75, "text-only": 0.5}]
    assert verdict(own) == ["The local branch is 25.0 points above what the question alone gives."]


def test_what_the_server_measured_itself_says_nothing_of_clients():
    assert verdict([{"round": 1, "partition": -1, "student": 0.5}, *rows((0.5, 0.5, 0.5, 0.6))]) == []


def test_a_name_is_written_as_it_may_be():
    clients = rows((0.5, 0.5, 0.5, 0.3), (0.2, 0.2, 0.2, 0.3))
    said, _ = verdict(clients, repr)
    assert said.endswith("for 'site 1'.")
