"""Studies: the runs of a plan with several seeds, one line a cell as it finishes, and their table.

Every cell is a whole run of the real apps in this process, or a control that needs no clients. Cells that the
file has already are skipped, so a study that was stopped goes on; several processes may share one file.

Run ``python -m benchmarks.study --plan cifar10-lt-100 --data-dir FOLDER --teacher FILE --out FILE.jsonl``.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from app.backbones import open_backbone
from app.examples import process
from app.home import closed_home
from app.processor import Processor
from app.records import from_record, to_record
from app.settings import Settings, feddat_home, read_settings
from app.tasks import TASKS
from data_partitions.benchmarks import DataOptions, Partition, load_partition
from server_app.alignment import PoolAligner, open_aligner
from server_app.central_evaluation import CentralEvaluation, accuracies, common_test
from server_app.checkpoints import Checkpoints
from server_app.opening import open_run
from server_app.teachers.annotating import annotate
from server_app.teachers.teacher import open_teacher

from .in_process import Federation
from .plans import PLANS, Cell, Plan

ROOT = Path(__file__).parents[1]
SCORED = TASKS["bce-scores"].score
Scores = dict[str, float]


def run_federation(settings: Mapping[str, Any], clients: int) -> tuple[Scores, ArrayRecord]:
    """Run the real apps; return the last scores (the server's own, or the clients') and arrays."""
    folder = Federation(dict(settings), clients, wire=None).serve()
    checkpoint = Checkpoints(folder / "checkpoints", lambda _: None).load(settings["num-rounds"])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["round"] == settings["num-rounds"] and "student" in row]
    if central := [row for row in last if row["partition"] < 0]:
        return {key: central[0][key] for key in ("student", "many", "medium", "few")}, checkpoint.arrays
    return mean_and_worst([row["student"] for row in last]), checkpoint.arrays


def run_alignment(settings: Settings, clients: int, start: ArrayRecord | None = None) -> Scores:
    """Align on the server alone: once from given arrays, else as often as a run would from its first."""
    test, processor = common_test(settings), open_backbone(settings).processor
    opening = open_run(settings)
    aligner = open_aligner(settings, opening.learner, opening.answers or None)
    arrays = start or to_record(opening.initial)
    for server_round in range(settings.num_rounds if start else 1, settings.num_rounds + 1):
        arrays, _ = aligner.align(server_round, arrays)
    if test:
        return CentralEvaluation(aligner.model, test, processor)(from_record(arrays))
    aligner.model.load(from_record(arrays))
    aligner.fit_head()
    return mean_and_worst(
        [_answered(aligner, partition, processor) for partition in _partitions(settings, clients)]
    )


def run_teacher(settings: Settings, clients: int) -> Scores:
    """Let the teacher model answer the test questions by itself."""
    teacher = open_teacher(settings.teacher.model, normalise=settings.teacher.normalise)

    def ask(rows: Any, answers: Sequence[str]) -> Tensor:
        prompts = [settings.teacher.prompt.replace("{question}", question) for question in rows["question"]]
        return annotate(teacher, [images[0] for images in rows["images"]], prompts, answers)

    if test := common_test(settings):
        chosen = ask(test.rows, test.answers).argmax(1)
        return accuracies(chosen, torch.tensor(test.rows["scores"]).argmax(1), test.groups)
    parts = _partitions(settings, clients)
    given = [SCORED(ask(part.test, part.answers), torch.tensor(part.test["scores"])) for part in parts]
    return mean_and_worst([float(scores.mean()) for scores in given])


def mean_and_worst(scores: Sequence[float]) -> Scores:
    """Return the mean and the smallest of the clients' scores."""
    return {"mean": float(np.mean(scores)), "worst": float(np.min(scores))}


def _partitions(settings: Settings, clients: int) -> list[Partition]:
    options = DataOptions.of(settings.run_config(), feddat_home() / "data")
    return [load_partition(settings.benchmark, index, clients, options) for index in range(clients)]


def _answered(aligner: PoolAligner, partition: Partition, processor: Processor) -> float:
    """Score the server's own head on a client's test split; it chooses among the client's answers."""
    rows = partition.test
    logits = aligner.model.all_logits(process(rows, processor))
    known = {answer: index for index, answer in enumerate(aligner.train.classes)}
    never = torch.full((len(logits),), float("-inf"))
    own = torch.stack(
        [logits[:, known[answer]] if answer in known else never for answer in partition.answers], dim=1
    )
    return float(SCORED(own, torch.tensor(rows["scores"])).mean())


class Study:
    """Runs the cells of a plan.

    Parameters
    ----------
    plan : Plan
        What to run.
    given : Mapping
        Settings that the command adds to the plan's.
    """

    def __init__(self, plan: Plan, given: Mapping[str, Any]) -> None:
        self.plan, self.given = plan, given
        self._plain: dict[int, ArrayRecord] = {}

    def run(self, cell: Cell, seed: int) -> Scores:
        """Return a cell's scores, in [0, 1]."""
        defaults = get_fused_config_from_dir(ROOT, {})
        own = {**self.plan.settings, **self.given, **cell.settings, "seed": seed, "run-name": "cell"}
        settings = {**defaults, **own}
        if cell.kind == "teacher":
            return run_teacher(read_settings(settings), self.plan.clients)
        if cell.kind == "server":
            return run_alignment(read_settings(settings), self.plan.clients)
        if cell.kind == "end":
            if seed not in self._plain:
                self.run(self.plan.cells[0], seed)
            return run_alignment(read_settings(settings), self.plan.clients, self._plain[seed])
        with scratch_home():
            scores, arrays = run_federation(settings, self.plan.clients)
        if cell == self.plan.cells[0]:
            self._plain[seed] = arrays
        return scores


@contextmanager
def scratch_home() -> Iterator[None]:
    """Give a run a FEDDAT_HOME that goes away afterwards; data and annotations are the real one's."""
    with tempfile.TemporaryDirectory() as scratch:
        with closed_home() as home:
            for kept in ("data", "annotations"):
                (home / kept).mkdir(parents=True, exist_ok=True)
                Path(scratch, kept).symlink_to(home / kept, target_is_directory=True)
        os.environ["FEDDAT_HOME"] = scratch
        try:
            yield
        finally:
            os.environ["FEDDAT_HOME"] = str(home)


def table(plan: Plan, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in Markdown: mean ± standard deviation over the seeds, in points."""
    text = [
        f"| | seeds | {' | '.join(plan.columns)} |",
        f"|---|---:|{'---:|' * len(plan.columns)}",
    ]
    for cell in plan.cells:
        found = [line["scores"] for line in lines if line["cell"] == cell.name]
        points = (np.array([100 * scores[column] for scores in found]) for column in plan.columns if found)
        cells = [f"{p.mean():.1f} ± {p.std(ddof=1) if len(p) > 1 else 0:.1f}" for p in points]
        text.append(f"| {cell.name} | {len(found)} | {' | '.join(cells or ['–'] * len(plan.columns))} |")
    return "\n".join([*text, "", plan.caption])


def complete(
    out: Path, plan: str, cells: Iterable[str], seeds: Iterable[int], run: Callable[[str, int], Scores]
) -> list[dict[str, Any]]:
    """Run the cells of a plan that a file does not have, seed by seed; return the plan's lines of it.

    Parameters
    ----------
    out : Path
        The file, one JSON object a line; other processes may add to it meanwhile.
    plan, cells
        Names that a line has.
    seeds : Iterable[int]
        What each cell is run with.
    run : Callable
        Cell and seed → scores, in [0, 1].
    """
    out.parent.mkdir(parents=True, exist_ok=True)

    def finished() -> list[dict[str, Any]]:
        text = out.read_text() if out.exists() else ""
        return [line for line in map(json.loads, text.splitlines()) if line["plan"] == plan]

    cells = list(cells)
    for seed in seeds:
        for cell in cells:
            if any((line["cell"], line["seed"]) == (cell, seed) for line in finished()):
                continue
            started = time.monotonic()
            scores = run(cell, seed)
            line = {
                "plan": plan,
                "cell": cell,
                "seed": seed,
                "scores": scores,
                "seconds": round(time.monotonic() - started, 1),
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            }
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            shown = ", ".join(f"{key} {100 * value:.1f}" for key, value in scores.items())
            print(f"{cell}, seed {seed}: {shown}; {line['seconds']} s", flush=True)
    return finished()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing of a plan, then print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.splitlines()[0])
    parser.add_argument("--plan", choices=sorted(PLANS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="file of the cells, one JSON object a line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-dir", default="", help="as the setting of that name")
    parser.add_argument("--teacher", default="", help="as the setting teacher.model")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings, as JSON")
    options = parser.parse_args(arguments)
    plan = PLANS[options.plan]
    given = {"data-dir": options.data_dir, "teacher.model": options.teacher}
    given |= {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in options.set)}
    study = Study(plan, given)
    cells = {cell.name: cell for cell in plan.cells}
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as inside a Flower task
    logging.getLogger("flwr").setLevel(logging.WARNING)
    lines = complete(
        options.out, options.plan, cells, options.seeds, lambda name, seed: study.run(cells[name], seed)
    )
    print(table(plan, lines))


if __name__ == "__main__":
    main()
