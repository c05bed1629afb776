"""Made-up clients take part in a real server's rounds."""

import pytest

from benchmarks import many_clients


@pytest.fixture(autouse=True)
def inside_a_task(home):
    """Messages can only be made inside a Flower task."""


def test_a_round_is_timed_without_its_clients(monkeypatch, capsys):
    seen = many_clients.follow(clients=6, sampled=2, num_rounds=5)
    assert (seen["clients"], seen["sampled"], seen["rounds"]) == (6, 2, 5)
    quarters = seen["median seconds of a round, by quarter"]
    assert len(quarters) == 4
    assert 0 < sum(quarters) < seen["seconds"]
    # Two rows a round; the last one evaluates all.
    assert seen["metrics.jsonl"] > 0
    assert seen["run folder"] > seen["metrics.jsonl"]

    # Clients that take their time are none of the server's.
    took = many_clients.Answering._train

    def slow(self, message, context):
        self._own += 1000
        return took(self, message, context)

    monkeypatch.setattr(many_clients.Answering, "_train", slow)
    slowed = many_clients.follow(clients=6, sampled=2, num_rounds=5)
    assert max(slowed["median seconds of a round, by quarter"]) < 0
    many_clients.show([seen])
    assert "6       │ 2       │ 5" in capsys.readouterr().out
