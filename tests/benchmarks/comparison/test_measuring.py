"""What a cell measures: sums and means by hand, and FLOPs against other steps'."""

import json
import shutil

import pytest

from app.settings import read_settings
from benchmarks.comparison import measuring
from benchmarks.comparison.measuring import Cost, cost_of, mean_cost, measure, rounds_within, summary
from benchmarks.comparison.plan import Comparison

ROWS = [
    {"round": 1, "partition": 0, "name": "a", "num-examples": 10, "bytes-up": 5, "train-seconds": 1.0},
    {"round": 1, "partition": 1, "phase": "train", "refused": "late"},
    {
        "round": 2,
        "partition": 0,
        "name": "a",
        "num-examples": 10,
        "bytes-up": 5,
        "bytes-down": 7,
        "train-seconds": 2.0,
        "student": 0.5,
        "local": 0.75,
    },
    {
        "round": 2,
        "partition": 1,
        "name": "b",
        "num-examples": 20,
        "bytes-up": 5,
        "student": 0.25,
        "local": 1.0,
    },
]


def only_cell(method, benchmark):
    """Return the cell of a plan that has one."""
    plan = {
        "name": "toy",
        "seeds": [0],
        "reference": method,
        "against": {"student": method, "personal": method},
        "benchmarks": {"b": benchmark},
        "methods": {method: {}},
    }
    (cell,) = Comparison.model_validate(plan).cells()
    return cell


def test_the_rows_of_a_run_are_summed_up():
    found = summary(ROWS, local_epochs=2, cost=Cost(step=100, after=3))
    assert found["scores"] == {
        "student mean": 0.375,
        "student worst": 0.25,
        "local mean": 0.875,
        "local worst": 0.75,
    }
    assert found["clients"] == {"a": {"student": 0.5, "local": 0.75}, "b": {"student": 0.25, "local": 1.0}}
    # 10 + 30 examples, twice each; and what follows, once for each example of the round.
    assert found["curve"] == [
        {"round": 2, "student": 0.375, "local": 0.875, "bytes": 22, "flops": 40 * 2 * 100 + 30 * 3}
    ]
    assert (found["bytes"], found["flops"], found["train-seconds"]) == (22, 8090, 3.0)


@pytest.mark.parametrize(
    ("budget", "cost", "epochs", "rounds"),
    [
        (600, Cost(100, 0), 1, 6),
        (600, Cost(50, 0), 1, 12),
        (600, Cost(50, 50), 1, 11),
        (600, Cost(50, 0), 3, 4),
        (600, Cost(70, 0), 1, 9),  # 8.57
        (600, Cost(5000, 0), 1, 1),
    ],
)
def test_as_many_rounds_as_come_closest_to_a_budget(budget, cost, epochs, rounds):
    assert rounds_within(budget, cost, epochs) == rounds


def test_flops_of_a_step_and_of_what_follows(home, run_config):
    """Fine-tuning costs another step for each epoch; of FedDAT's two branches both are counted."""

    def cost(**settings):
        return cost_of(read_settings(run_config(**settings)), 2)

    adapter, tuned = cost(method="adapter"), cost(method="fedavg-ft", personal__epochs=3)
    assert adapter.after == 0
    assert tuned == Cost(adapter.step, 3 * adapter.step)
    assert 1.3 * adapter.step < cost(method="feddat").step < 2 * adapter.step
    assert cost(method="local") == adapter


def test_flops_of_backbones_that_write(home, run_config):
    """A branch costs another pass, the teacher's a second adapter too; what the picture gives is kept."""

    def cost(**settings):
        writes = {"backbone": "tiny-vlm", "loss": "next-token", "adapter": "lora"}
        return cost_of(read_settings(run_config(**writes, **settings)), 2)

    adapter = cost(method="adapter")
    assert 2 * adapter.step < cost(method="feddat").step < 2.1 * adapter.step
    assert cost(method="local") == adapter


def test_what_clients_of_several_ranks_cost_is_their_mean(home, run_config):
    cell = only_cell("flexlora", {"clients": 2, "ranks": [1, 5]})
    settings = run_config(method="flexlora", adapter="lora", lora_rank=6)
    each = [cost_of(read_settings({**settings, "lora-rank": rank}), 2).step for rank in (1, 5)]
    assert each[0] < each[1]
    assert mean_cost(cell, settings) == Cost(round(sum(each) / 2), 0)


def test_a_newcomer_is_scored_by_what_the_others_have_trained(home, run_config, monkeypatch):
    cell = only_cell("adapter", {"clients": 3, "newcomers": True})
    app, trained = measuring.own_client_app(), []

    def watched(message, context):
        if message.metadata.message_type == "train":
            trained.append(context.node_config["partition-id"])
        return app(message, context)

    monkeypatch.setattr(measuring, "own_client_app", lambda: watched)
    # A step large enough to change what is answered.
    writes = {"backbone": "tiny-vlm", "loss": "next-token", "adapter": "lora", "learning-rate": 0.05}
    line = measure(cell, 0, {}, {**run_config(num_rounds=1, train_examples=6), **writes})
    assert [sorted(trained[start : start + 2]) for start in (0, 2, 4)] == [[1, 2], [0, 2], [0, 1]]
    assert len(trained) == 6
    runs = [
        [
            json.loads(row)
            for row in (home / "runs" / f"cell-{absent}" / "metrics.jsonl").read_text().splitlines()
        ]
        for absent in range(3)
    ]
    before, rows = ([[row for row in run if row["round"] == now] for run in runs] for now in (0, 1))
    rows = [[row for row in run if "student" in row] for run in rows]
    # Who trains in one run and not in another has several scores, of which one is meant.
    assert len({run[0]["student"] for run in rows}) > 1
    assert line["clients"] == {
        (row := rows[absent][absent])["name"]: {
            "student": row["student"],
            "text-only": row["text-only"],
            "untrained": before[absent][absent]["student"],
        }
        for absent in range(3)
    }
    each = cost_of(read_settings({**run_config(), **writes, "method": "adapter"}), 3).step
    assert line["flops"] == 6 * 6 * each


def test_a_line_says_how_many_replies_did_not_count(home, run_config, monkeypatch):
    cell = only_cell("adapter", {"clients": 3})
    real = measuring.federated
    settings = run_config(num_rounds=2, train_examples=6)
    assert "refused" not in measure(cell, 0, {}, settings)
    shutil.rmtree(home / "runs")
    monkeypatch.setattr(measuring, "federated", lambda cell, settings: real(cell, settings, absent=1))
    assert measure(cell, 0, {}, settings)["refused"] == 2
