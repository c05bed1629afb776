"""What a cell of a plan measures: a whole run of the real apps, and the FLOPs of its steps."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from math import floor
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message

from app.backbones import open_backbone
from app.conversations import Conversations
from app.heads import answer_with_new_head
from app.methods import METHODS, open_learner
from app.mkd import Distillation, make_optimizer
from app.settings import Settings, SettingsError, feddat_home, read_settings
from client_app.client import data_options
from data_partitions.benchmarks import load_partition

from ..in_process import Federation, own_client_app
from ..step import count_flops
from .centralised import centralised
from .plan import BRANCHES, CONTROLS, Cell

log = logging.getLogger("flwr")


@dataclass
class OneExample:
    """A client of one training example, which counts what a method computes on it before it is scored."""

    inputs: Any
    targets: torch.Tensor
    optimizer: torch.optim.Optimizer
    flops: int = field(default=0, init=False)

    def some(self, count: int) -> Any:
        """Return its one."""
        return self.inputs

    def train(self, step: Callable[..., Any], epochs: int) -> None:
        """Count the FLOPs of so many steps on it."""
        self.flops += epochs * count_flops(lambda: step(self.optimizer, self.inputs, self.targets))


@dataclass(frozen=True)
class Cost:
    """FLOPs of matrix products for one training example.

    Attributes
    ----------
    step : int
        Each time it is trained on in a round.
    after : int
        Once, before the result is scored.
    """

    step: int
    after: int

    def of(self, settings: Settings, num_rounds: int) -> int:
        """Return those of a run of so many rounds, for one example."""
        return num_rounds * settings.local_epochs * self.step + self.after


def cost_of(settings: Settings, clients: int) -> Cost:
    """Count on the first client's first example."""
    partition = load_partition(settings.benchmark, 0, clients, data_options(settings))
    backbone, learner, method = open_backbone(settings), open_learner(settings), METHODS[settings.method]
    first, answers = partition.train.select([0]), partition.answers
    examples = backbone.examples(first, learner.device, answers, partition.pictures)
    if isinstance(examples, Conversations):  # the backbone's own
        learner.answer_with(None)
    else:
        width = backbone.all_width(examples.pictures)
        answer_with_new_head(learner, width, len(answers), settings.seed, settings.head)
    learner.load_private({})
    inputs, targets = examples.batch(torch.tensor([0]), learner.device)
    optimizer = make_optimizer(learner, settings.learning_rate, settings.weight_decay, settings.optimizer)
    distillation = Distillation(loss=settings.loss, update=settings.update)
    step = count_flops(lambda: method.step(learner, optimizer, inputs, targets, distillation, settings))
    client = OneExample(inputs, targets, optimizer)
    for _ in method.scored(learner, client, settings):
        pass
    return Cost(step, client.flops)


def mean_cost(cell: Cell, settings: Mapping[str, Any]) -> Cost:
    """Return the mean over the clients of a cell, which may have ranks of their own."""
    nodes = [cell.node_config(partition) for partition in range(cell.clients)]
    # Without any they are alike.
    asked = nodes if any(nodes) else nodes[:1]
    costs = [cost_of(read_settings({**settings, **node}), cell.clients) for node in asked]
    return Cost(*(round(sum(each) / len(each)) for each in zip(*map(astuple, costs), strict=True)))


def measure(cell: Cell, seed: int, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Run a cell; return what its line says.

    Returns
    -------
    dict
        ``scores``: mean and worst client of each branch; ``clients``: name → branch → score, and what is
        known of `CONTROLS`; ``curve``: the same means after each round that was evaluated,
        with bytes and FLOPs up to it; ``rounds``, ``bytes`` (all clients, both ways), ``flops`` (all
        clients), ``train-seconds`` (all clients); ``resumed`` if it went on with a run that was stopped;
        ``refused``, how many replies did not count, if any.
    """
    settings = {**defaults, "seed": seed, "run-name": "cell", **cell.settings(given)}
    cost = mean_cost(cell, settings)
    settings["num-rounds"] = num_rounds(cell, given, defaults)
    if cell.centralised:
        rows, resumed = centralised(settings, cell.clients), False
    elif cell.newcomers:
        rows, resumed = newcomers(cell, settings)
    else:
        rows, resumed = federated(cell, settings)
    found = {**summary(rows, settings["local-epochs"], cost), "rounds": settings["num-rounds"]}
    refused = 0 if cell.newcomers else sum("refused" in row for row in rows)
    return found | ({"resumed": True} if resumed else {}) | ({"refused": refused} if refused else {})


def newcomers(cell: Cell, settings: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """Run a federation for each client, in which it never trains.

    Returns
    -------
    list of dict
        The rows of them all; only those of whom never trained are scored.
    bool
        Whether one of the runs was gone on with.
    """
    rows: list[dict[str, Any]] = []
    resumed = False
    for absent in range(cell.clients):
        run, again = federated(cell, {**settings, "run-name": f"{settings['run-name']}-{absent}"}, absent)
        scores = (*BRANCHES, *CONTROLS.values())
        rows += [
            {key: value for key, value in row.items() if key not in scores or row["partition"] == absent}
            for row in run
        ]
        resumed |= again
    return rows, resumed


def federated(cell: Cell, settings: Mapping[str, Any], absent: int = -1) -> tuple[list[dict[str, Any]], bool]:
    """Run the real apps, or go on with a run that was stopped.

    Parameters
    ----------
    cell : Cell
        Says how many clients there are, and what their nodes say.
    settings : Mapping
        A run's. What lies in FEDDAT_HOME under its ``run-name`` was begun with the same, and is gone on with
        if it can be.
    absent : int
        Partition of a client that fails whenever it is to train; -1 for none.

    Returns
    -------
    list of dict
        The rows of ``metrics.jsonl``.
    bool
        Whether some of them were there.
    """
    folder = feddat_home() / "runs" / settings["run-name"]

    def serve(**others: str) -> None:
        federation = Federation({**settings, **others}, cell.clients, wire=None)
        for context in federation.contexts.values():
            context.node_config.update(cell.node_config(int(context.node_config["partition-id"])))
        if absent >= 0:
            federation.client_app = partial(_only_scored, own_client_app(), absent)
        federation.serve()

    # The report is written last.
    resumed = (folder / "report.md").exists()
    if folder.exists() and not resumed:
        try:
            serve(**{"resume": settings["run-name"], "run-name": ""})
            resumed = True
        except SettingsError as error:
            log.warning("the run begins anew: %s", error)
    if not resumed:
        shutil.rmtree(folder, ignore_errors=True)
        serve()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], resumed


def _only_scored(
    app: Callable[[Message, Context], Message], absent: int, message: Message, context: Context
) -> Message:
    if message.metadata.message_type == "train" and context.node_config["partition-id"] == absent:
        raise RuntimeError("it never trains")
    return app(message, context)


def num_rounds(cell: Cell, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> int:
    """Return how many rounds a cell has: as many as all, or as come closest to the reference's FLOPs."""
    settings = {**defaults, **cell.settings(given)}
    if cell.budget == "steps":
        return int(settings["num-rounds"])
    theirs = {**defaults, **cell.settings(given, cell.plan.reference)}
    budget = mean_cost(cell, theirs).of(read_settings(theirs), theirs["num-rounds"])
    return rounds_within(budget, mean_cost(cell, settings), settings["local-epochs"])


def rounds_within(budget: int, cost: Cost, local_epochs: int) -> int:
    """Return how many rounds come closest to a budget, at least one."""
    return max(1, floor((budget - cost.after) / (local_epochs * cost.step) + 0.5))


def summary(rows: Sequence[Mapping[str, Any]], local_epochs: int, cost: Cost) -> dict[str, Any]:
    """Sum up the rows of a run, as `measure` says."""
    good = [row for row in rows if "refused" not in row]
    curve: list[dict[str, Any]] = []
    sent = trained = 0
    for server_round in sorted({row["round"] for row in good}):
        now = [row for row in good if row["round"] == server_round]
        sent += sum(row.get(key, 0) for row in now for key in ("bytes-up", "bytes-down"))
        trained += sum(row.get("num-examples", 0) for row in now)
        flops = trained * local_epochs * cost.step
        if means := {
            branch: float(np.mean([row[branch] for row in now if branch in row]))
            for branch in BRANCHES
            if any(branch in row for row in now)
        }:
            once = sum(row.get("num-examples", 0) for row in now)
            curve.append({"round": server_round, **means, "bytes": sent, "flops": flops + once * cost.after})
    last = max(row["round"] for row in good)
    scored = [row for row in good if any(branch in row for branch in BRANCHES)]
    before = {
        row["name"]: {"untrained": next(row[branch] for branch in BRANCHES if branch in row)}
        for row in scored
        if row["round"] == 0
    }
    clients = {
        row["name"]: {kind: row[kind] for kind in (*BRANCHES, *CONTROLS.values()) if kind in row}
        | before.get(row["name"], {})
        for row in scored
        if row["round"] == last
    }
    scores: dict[str, float] = {}
    for branch in BRANCHES:
        if found := [client[branch] for client in clients.values() if branch in client]:
            scores |= {f"{branch} mean": float(np.mean(found)), f"{branch} worst": min(found)}
    return {
        "scores": scores,
        "clients": clients,
        "curve": curve,
        "bytes": sent,
        "flops": curve[-1]["flops"],
        "train-seconds": round(sum(row.get("train-seconds", 0) for row in good), 1),
    }
