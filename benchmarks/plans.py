"""The plans of `benchmarks.study`: which cells stand in a table, and what its caption says."""

from dataclasses import dataclass, field
from typing import Any, Literal

CE: dict[str, Any] = {"align.beta": 0.0}
KL = {"align.labels": "none"}
POOLED = {"align.target": "pooled"}
HEAD = {"align.part": "head", "align.learning-rate": 0.003}
PLAIN = {"clip-change": 0.0}  # as published, and so comparable to it
Parts = dict[str, dict[str, Any]]
PUBLISHED: Parts = {"CE": CE, "KL": KL, "CE + KL": {}}
POOLED_PART: Parts = {"CE + pooled KL (ours)": POOLED}
HEAD_PART: Parts = {"CE + KL, head alone (ours)": HEAD}
BOTH_PART: Parts = {"CE + pooled KL, head alone (ours)": HEAD | POOLED}


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


def _cells(
    plain: str, *, server: Parts, last: Parts, each: Parts, end: Literal["run", "end"]
) -> tuple[Cell, ...]:
    """Make a table's lines; `end` says how alignment at the end alone is had, see `Cell.kind`."""
    controls = [
        Cell(f"server only: {part}", {"align.when": "each-round", **own}, "server")
        for part, own in server.items()
    ]
    controls.append(Cell("teacher alone", {"align.when": "each-round"}, "teacher"))
    at_end = [
        Cell(f"{plain}, aligned at the end: {part}", {"align.when": "end", **own}, end)
        for part, own in last.items()
    ]
    each_round = [
        Cell(f"{plain}, aligned each round: {part}", {"align.when": "each-round", **own})
        for part, own in each.items()
    ]
    return (Cell(plain), *controls, *at_end, *each_round)


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
            "schedule": "linear",
            "warmup": 0.05,
            "learning-rate": 0.05,
            "weight-decay": 0.0,
            "augment": True,
            "batch-size": 32,
            "fraction-train": 0.4,
            "num-rounds": 16,
            "local-epochs": 1,
            "evaluate-every": 16,
            "public-per-class": 2500,
            "public.examples": 250,
            "align.steps": 50,
            "align.learning-rate": 0.0005,
            "align.radius": 0.2,
            **PLAIN,
        },
        cells=_cells(
            "FedAvg",
            server={"CE": CE, "CE + KL": {}, "CE + KL, head alone": HEAD},
            last=PUBLISHED | POOLED_PART | HEAD_PART | BOTH_PART,
            each=PUBLISHED | HEAD_PART,
            end="end",
        ),
        columns=("student", "many", "medium", "few"),
        caption=(
            f"CIFAR-10-LT, imbalance {imbalance:g}, Dirichlet 0.5, 20 clients of which 8 train a round, 16 "
            "rounds of one epoch, a narrow ResNet-8 that starts from 14 epochs of CIFAR-100, all of it "
            "averaged; n_max 2,500 (published: 5,000, 200 rounds of 10 epochs, random start). Balanced "
            "accuracy on all 10,000 test images, over all classes and those with many, medium and few "
            "examples. The pool (200 images to align on, 50 held out, all labelled) is no client's, not the "
            "teacher's, in no test set, and the start knows none of CIFAR-10. The teacher is a toy: a small "
            "network trained on 1,000 other CIFAR-10 images. Server only takes as many steps of alignment as "
            "a run that is aligned each round."
        ),
    )


def _scenes() -> Plan:
    return Plan(
        clients=5,
        settings={
            "num-rounds": 4,
            "evaluate-every": 4,
            "public.examples": 1000,
            "align.learning-rate": 0.0005,
            **PLAIN,
        },
        cells=_cells(
            "FedDAT",
            server={"CE": CE, "CE + KL": {}},
            last={"CE + KL": {}},
            each=PUBLISHED | POOLED_PART,
            end="run",
        ),
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
