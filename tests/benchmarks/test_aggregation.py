"""The program that times aggregation: it aggregates what it says, and writes what it finds."""

import json

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from benchmarks import aggregation


@pytest.fixture(autouse=True)
def task(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.mark.parametrize("make", [aggregation.plain, aggregation.wrapped])
def test_what_is_timed_is_the_mean_of_the_replies(make, monkeypatch):
    """Ten clients send eight different payloads, the first two twice; they weigh 100 and 0 to 6 more."""
    seen = []

    def strategy():
        made = make()
        aggregate = made.aggregate_train

        def spy(*args):
            seen.append(aggregate(*args)[0])
            return seen[-1], None

        made.aggregate_train = spy
        return made

    seconds, _ = aggregation.rounds(strategy, clients=10, blocks=1, num_rounds=2)
    assert len(seconds) == 2
    weights = [100 + index % 7 for index in range(10)]
    payloads = [aggregation.adapter(1, 1 + index % 8) for index in range(10)]
    for arrays in seen:
        for name, array in arrays.items():
            mean = np.average([payload[name] for payload in payloads], axis=0, weights=weights)
            np.testing.assert_allclose(array.numpy(), mean, atol=1e-6)


def test_memory_is_that_of_a_few_adapters_whatever_the_number_of_clients():
    size = sum(values.nbytes for values in aggregation.adapter(1, 0).values())
    few, many = (aggregation.rounds(aggregation.wrapped, n, 1, 1, memory=True)[1] for n in (5, 50))
    assert many < few + size
    assert many < 6 * size


def test_the_program_writes_its_figures_and_draws(tmp_path, capsys):
    path, plot = tmp_path / "a.json", tmp_path / "a.svg"
    small = ["--clients", "2", "4", "--blocks", "1", "--rounds", "1", "--many-rounds", "2"]
    aggregation.main([*small, "--json", str(path), "--plot", str(plot)])
    figures = json.loads(path.read_text())
    assert [line["clients"] for line in figures["clients"]] == [2, 4]
    assert [line["reply-mb"] for line in figures["sizes"]] == [298_176 / 1e6]  # 74,544 values
    assert len(figures["rounds"]) == 2
    assert plot.stat().st_size < 200_000
    assert "2 rounds of 4 clients" in capsys.readouterr().out
