"""The plans of `benchmarks.study`: which cells stand in a table, and what its caption says."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

CE: dict[str, Any] = {"align-beta": 0.0}
KL = {"align-labels": "none"}
POOLED = {"align-target": "pooled"}
PARTS: dict[str, dict[str, Any]] = {"CE": CE, "KL": KL, "CE + KL": {}, "CE + pooled KL (ours)": POOLED}


@dataclass(frozen=True)
class Cell:
    """One line of a table.

    Attributes
    ----------
    name : str
        What the table calls it.
    settings : dict
        What differs from the plan's settings.
    kind : {"run", "end", "server", "teacher"}
        A federation; the plain federation of the same seed, aligned after its last round; alignment alone, as
        often and as long as in a federation and from the same start; or the teacher model alone.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    kind: Literal["run", "end", "server", "teacher"] = "run"


@dataclass(frozen=True)
class Plan:
    """A table.

    Attributes
    ----------
    clients : int
        How many nodes there are.
    settings : dict
        What all cells have in common, besides the defaults.
    cells : tuple of Cell
        Its lines.
    columns : tuple of str
        Scores in the order of the table, in points.
    caption : str
        What a reader must know of it.
    """

    clients: int
    settings: dict[str, Any]
    cells: tuple[Cell, ...]
    columns: tuple[str, ...]
    caption: str


def _cells(plain: str, *, end: Literal["run", "end"], last_parts: Collection[str]) -> tuple[Cell, ...]:
    """Make a table's lines; `end` says how alignment at the end alone is had, see `Cell.kind`."""
    each = [
        Cell(f"{plain}, aligned each round: {part}", {"align": "each-round", **own})
        for part, own in PARTS.items()
    ]
    last = [
        Cell(f"{plain}, aligned at the end: {part}", {"align": "end", **PARTS[part]}, end)
        for part in last_parts
    ]
    controls = [
        Cell("server only: CE", {"align": "each-round", **CE}, "server"),
        Cell("server only: CE + KL", {"align": "each-round"}, "server"),
        Cell("teacher alone", {"align": "each-round"}, "teacher"),
    ]
    return (Cell(plain), *controls, *last, *each)


def _long_tail(imbalance: float) -> Plan:
    return Plan(
        clients=20,
        settings={
            "benchmark": "cifar10-lt",
            "imbalance-factor": imbalance,
            "dirichlet-alpha": 0.5,
            "method": "full",
            "head": "shared",
            "loss": "cross-entropy",
            "optimizer": "sgd",
            "schedule": "constant",
            "learning-rate": 0.05,
            "weight-decay": 0.0,
            "augment": True,
            "batch-size": 32,
            "fraction-train": 0.4,
            "num-rounds": 20,
            "local-epochs": 2,
            "test-examples": 2000,
            "evaluate-every": 20,
            "public-per-class": 2500,
            "public-examples": 1000,
            "align-steps": 20,
            "align-learning-rate": 0.002,
            "align-radius": 0.2,
        },
        cells=_cells("FedAvg", end="end", last_parts=PARTS),
        columns=("student", "many", "medium", "few"),
        caption=(
            f"CIFAR-10-LT, imbalance {imbalance:g}, Dirichlet 0.5, 20 clients of which 8 train a round, 20 "
            "rounds of 2 epochs, a narrow ResNet-8 that starts from six epochs of CIFAR-100, all of it "
            "averaged; n_max 2,500 (published: 5,000, 200 rounds of 10 epochs, random start). Balanced "
            "accuracy on 2,000 test images, over all classes and those with many, medium and few examples. "
            "The pool (800 images to align on, 200 held out) is no client's, not the teacher's, in no test "
            "set, and the start knows none of CIFAR-10. The teacher is a toy: a small network trained on "
            "20,000 other CIFAR-10 images."
        ),
    )


def _scenes() -> Plan:
    return Plan(
        clients=5,
        settings={
            "num-rounds": 4,
            "evaluate-every": 4,
            "public-examples": 1000,
            "align-learning-rate": 0.0005,
        },
        cells=_cells("FedDAT", end="run", last_parts=["CE + KL"]),
        columns=("mean", "worst"),
        caption=(
            "The default run on scenes but of four rounds, FedDAT with private heads, aligned by a head of "
            "the server's own; the student's score on the clients' test splits, mean and worst client. "
            "Controls answer the same questions without any client: the server's model through its own "
            "head, the teacher alone. The pool (800 questions to align on, 200 held out) is no client's and"
            " not in the backbone's pretraining. The teacher is a toy: a tiny LLaVA trained for minutes on "
            "public scenes."
        ),
    )


PLANS: dict[str, Plan] = {
    "cifar10-lt-100": _long_tail(100.0),
    "cifar10-lt-10": _long_tail(10.0),
    "scenes": _scenes(),
}
