"""Too few valid replies: the round is tried once more, with others if there are any; then the run fails."""

import pytest
from flwr.serverapp import strategy as flower

from strategies import Admission, FedDAT
from strategies.quorum import Quorum


@pytest.mark.parametrize(
    ("asked", "valid", "enough"),
    [(5, 3, True), (5, 2, False), (4, 2, True), (2, 2, True), (3, 2, True), (2, 1, False), (0, 0, True)],
)
def test_two_clients_and_half_of_those_asked(asked, valid, enough):
    assert (Quorum(2, 0.5).lack(asked, valid, ["x"]) is None) == enough


def test_what_is_missing_is_one_line_with_three_reasons():
    lack = Quorum(4, 0.25).lack(6, 1, ["a", "b", "a", "c", "d"])
    assert lack == (
        "1 of 6 clients gave a valid reply, with min_clients = 4, max_failure_rate = 0.25:"
        " a; b; c; and 1 other reasons"
    )


@pytest.fixture
def grid(toy):
    """Six clients with a step of their partition; node ids are ten times it."""
    return toy.Grid({10 * p: toy.Client(p, step=float(p)) for p in range(6)})


def failing(grid, *partitions, times=10**6):
    """Let clients answer with an error so many times in all."""
    left = [times]

    def alter(content):
        if "arrays" not in content:
            return content
        left[0] -= 1
        return "out of memory" if left[0] >= 0 else content

    for partition in partitions:
        grid.nodes[10 * partition].alter = alter


def feddat(fraction=1.0, notes=(), wait_seconds=120, **quorum):
    inner = flower.FedAvg(fraction_train=fraction, fraction_evaluate=0.0)
    admission = Admission(expected_nodes=6, wait_seconds=wait_seconds)
    return FedDAT(inner, observers=notes, admission=admission, quorum=Quorum(**quorum))


def test_the_same_clients_are_asked_again_when_there_are_no_others(toy, grid, arrays, caplog):
    notes = toy.Notes()
    failing(grid, 0, 1, 2, 3, times=4)
    result = feddat(notes=[notes], max_failure_rate=0.5).start(grid, arrays, num_rounds=1)
    assert toy.value(result) == 2.5  # of all six, each once
    assert sorted(grid.asked("train")) == sorted([*range(0, 60, 10)] * 2)
    assert [note[:3] for note in notes if isinstance(note[3], str)] == [(1, "train", p) for p in range(4)]
    assert [note[2] for note in notes if isinstance(note[3], dict)] == [0, 1, 2, 3, 4, 5]
    assert any(
        "2 of 6 clients gave a valid reply" in text and "trying once more" in text for text in caplog.messages
    )


def test_others_are_asked_first(toy, grid, arrays):
    """Three of six are sampled and fail; the second time it is the other three, in one message each."""
    asked = grid.asked
    failing(grid, *range(6), times=3)
    result = feddat(0.5, max_failure_rate=0.5).start(grid, arrays, num_rounds=1)
    first, second = asked("train")[:3], asked("train")[3:]
    assert sorted(first + second) == [0, 10, 20, 30, 40, 50]
    assert toy.value(result) == pytest.approx(sum(second) / 30)


def test_the_others_are_filled_up_with_those_asked_before(toy, grid, arrays):
    failing(grid, *range(6), times=4)
    feddat(0.67, max_failure_rate=0.5).start(grid, arrays, num_rounds=1)
    first, second = grid.asked("train")[:4], grid.asked("train")[4:]
    assert len(second) == len(set(second)) == 4
    assert set(second) >= set(grid.nodes) - set(first)


def test_who_is_asked_the_second_time_is_a_function_of_the_seed(toy, arrays):
    def second(seed, order):
        grid = toy.Grid({(7 * p + order) % 101: toy.Client(p) for p in range(12)})
        for client in grid.nodes.values():
            client.alter = lambda content: "full" if "arrays" in content else content
        strategy = FedDAT(
            flower.FedAvg(fraction_train=0.25), seed=seed, admission=Admission(expected_nodes=12)
        )
        with pytest.raises(RuntimeError):
            strategy.start(grid, arrays, num_rounds=1)
        return [strategy.partitions[node] for node in grid.asked("train")[3:]]

    assert second(0, 0) == second(0, 50)
    assert len({tuple(second(seed, 0)) for seed in range(4)}) > 1


def test_the_second_try_waits_as_long_as_the_first(toy, grid, arrays, monkeypatch):
    timeouts, send = [], grid.send_and_receive
    monkeypatch.setattr(
        grid, "send_and_receive", lambda messages, *, timeout=None: timeouts.append(timeout) or send(messages)
    )
    failing(grid, *range(6), times=6)
    feddat(round_timeout=12.5, wait_seconds=7).start(grid, arrays, num_rounds=1, timeout=12.5)
    assert timeouts == [7, 12.5, 12.5, 12.5]  # handshake, two tries, evaluation of nobody


@pytest.mark.parametrize(
    ("dead", "settings", "reason"),
    [
        (
            4,
            {"max_failure_rate": 0.5},
            "2 of 6 clients gave a valid reply, with min_clients = 1, max_failure_rate = 0.5",
        ),
        (
            4,
            {"min_clients": 3},
            "2 of 6 clients gave a valid reply, with min_clients = 3, max_failure_rate = 1",
        ),
        (6, {}, "0 of 6 clients gave a valid reply, with min_clients = 1, max_failure_rate = 1"),
    ],
)
def test_a_run_fails_after_the_second_time_with_one_line(toy, grid, arrays, dead, settings, reason):
    """A dead worker of a simulation fails every message it gets, as here."""
    failing(grid, *range(dead))
    with pytest.raises(RuntimeError) as error:
        feddat(**settings).start(grid, arrays, num_rounds=3)
    assert str(error.value) == f"round 1, tried twice: {reason}: out of memory"
    assert len(grid.asked("train")) == 12
    assert grid.asked("evaluate") == []


def test_a_third_of_the_clients_failing_in_each_round_ends_nothing(toy, grid, arrays):
    notes = toy.Notes()
    failing(grid, 1, 4)
    result = feddat(notes=[notes], max_failure_rate=0.5, min_clients=3).start(grid, arrays, num_rounds=10)
    assert toy.value(result) == 10 * (0 + 2 + 3 + 5) / 4
    refused = [(note[0], note[2]) for note in notes if isinstance(note[3], str)]
    assert refused == [(r, p) for r in range(1, 11) for p in (1, 4)]
    assert len(grid.asked("train")) == 60


def test_a_failing_evaluation_is_not_tried_again(toy, grid, arrays):
    for client in grid.nodes.values():
        client.alter = lambda content: content if "arrays" in content else "no test split"
    strategy = FedDAT(flower.FedAvg(), quorum=Quorum(min_clients=2, max_failure_rate=0.0))
    strategy.start(grid, arrays, num_rounds=1)
    assert len(grid.asked("evaluate")) == 6


def test_fewer_clients_than_must_reply_are_not_asked(toy, grid, arrays):
    with pytest.raises(
        RuntimeError, match=r"^round 1: 3 clients are sampled, fewer than min_clients = 4: .*"
    ):
        feddat(0.5, min_clients=4).start(grid, arrays)
    assert grid.asked("train") == []


def test_a_strategy_that_makes_nothing_of_the_replies_ends_the_run(toy, grid, arrays):
    """Flower's Bulyan returns None for fewer than 4 f + 3 replies; the old arrays would be trained on."""
    strategy = FedDAT(flower.Bulyan(num_malicious_nodes=1), admission=Admission(expected_nodes=6))
    with pytest.raises(RuntimeError, match=r"^round 1: Bulyan gives no result for 6 valid replies$"):
        strategy.start(grid, arrays)
