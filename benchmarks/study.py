"""Studies: the runs of a plan with several seeds, one line a cell as it finishes, and their table.

    python -m benchmarks.study --quick
    python -m benchmarks.study --plan recipes/study/main.toml --out FILE --page FILE --data-dir FOLDER
    python -m benchmarks.study --plan cifar10-lt-100 --out FILE --data-dir FOLDER --teacher FILE

A plan is a file that holds methods against each other (`comparison.plan`), or one of `plans`. Every cell is a
whole run of the real apps in this process, or a control that needs no clients. Cells that the file has
already are skipped, so a study that was stopped goes on, within a cell too if the plan is a file; several
processes may share one file.
"""

import argparse
import fcntl
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import flwr
import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from app.backbones import Backbone, open_backbone
from app.records import from_record, to_record
from app.settings import Settings, feddat_home, read_settings
from app.source import source_hash
from app.tasks import TASKS
from data_partitions.benchmarks import DataOptions, Partition, load_partition
from server_app.alignment import open_aligner
from server_app.central_evaluation import CentralEvaluation, accuracies, common_test
from server_app.checkpoints import Checkpoints
from server_app.global_model import GlobalModel
from server_app.opening import open_run
from server_app.public_pool import Pool
from server_app.teachers.annotating import annotate
from server_app.teachers.teacher import open_teacher

from .comparison.measuring import measure, num_rounds
from .comparison.page import write_page
from .comparison.plan import Comparison
from .homes import digest, forget, kept_home, scratch_home
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
    test, backbone = common_test(settings), open_backbone(settings)
    opening = open_run(settings)
    aligner = open_aligner(settings, opening.learner, opening.answers or None)
    arrays = start or to_record(opening.initial)
    for server_round in range(settings.num_rounds if start else 1, settings.num_rounds + 1):
        arrays, _ = aligner.align(server_round, arrays)
    if test:
        return CentralEvaluation(aligner.model, test, backbone.processor)(from_record(arrays))
    if not isinstance(aligner.train, Pool):
        raise ValueError(f"loss = {settings.loss!r} for the server alone; allowed: losses with answer lists")
    aligner.model.load(from_record(arrays))
    aligner.fit_head()
    classes = aligner.train.classes
    return mean_and_worst(
        [
            _answered(aligner.model, classes, partition, backbone)
            for partition in _partitions(settings, clients)
        ]
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


def _answered(model: GlobalModel, classes: Sequence[str], partition: Partition, backbone: Backbone) -> float:
    """Score the server's own head on a client's test split; it chooses among the client's answers."""
    rows = partition.test
    logits = model.all_logits(backbone.examples(rows, model.learner.device, classes))
    known = {answer: index for index, answer in enumerate(classes)}
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
    out: Path,
    plan: str,
    cells: Iterable[str],
    seeds: Iterable[int],
    run: Callable[[str, int], Mapping[str, Any]],
    written: Callable[[str, int], None] = lambda cell, seed: None,
) -> list[dict[str, Any]]:
    """Run the cells of a plan that a file does not have, seed by seed; return the plan's lines of it.

    Parameters
    ----------
    out : Path
        The file, one JSON object a line; other processes may add to it meanwhile, and take other cells.
    plan, cells
        Names that a line has.
    seeds : Iterable[int]
        What each cell is run with.
    run : Callable
        Cell and seed → what its line says, ``scores`` in [0, 1] among it; by default with its time.
    written : Callable
        Told of each cell and seed that has its line, to delete what was kept of it.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = list(cells)
    for seed in seeds:
        for cell in cells:
            with taken(out, plan, cell, str(seed)) as mine:
                if not mine:
                    continue
                if any((line["cell"], line["seed"]) == (cell, seed) for line in finished(out, plan)):
                    written(cell, seed)
                    continue
                started = time.monotonic()
                measured = run(cell, seed)
                line = {
                    "plan": plan,
                    "cell": cell,
                    "seed": seed,
                    "seconds": round(time.monotonic() - started, 1),
                    "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
                    **measured,
                }
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                written(cell, seed)
            shown = ", ".join(f"{key} {100 * value:.1f}" for key, value in measured["scores"].items())
            print(f"{cell}, seed {seed}: {shown}; {line['seconds']} s", flush=True)
    return finished(out, plan)


def finished(out: Path, plan: str) -> list[dict[str, Any]]:
    """Return a plan's lines of a file; none if there is no such file."""
    text = out.read_text() if out.exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if line["plan"] == plan]


@contextmanager
def taken(out: Path, *cell: str) -> Iterator[bool]:
    """Hold a cell of a file against other processes; False if one of them holds it."""
    lock = out.parent / f".{out.name}.{digest(*cell)}"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have deleted it meanwhile: then this is a lock on nothing.
            mine = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        try:
            yield mine
        finally:
            if mine:
                lock.unlink(missing_ok=True)


def compare(
    plan: Comparison,
    given: Mapping[str, Any],
    out: Path,
    seeds: Sequence[int],
    methods: Sequence[str],
    page: Path | None,
) -> None:
    """Run what is missing of a plan of methods, of these alone, then write its page.

    A cell at equal FLOPs that has as many rounds as at equal steps is the same run, and is not run again. One
    that was stopped goes on from its last round, unless something that it depends on, the source among it, is
    another one now: then it begins anew.
    """
    defaults = get_fused_config_from_dir(ROOT, {})
    cells = {cell.name: cell for cell in plan.cells() if cell.method in methods}
    for benchmark, arena in plan.benchmarks.items():
        if "data-dir" in arena.settings and not given.get("data-dir"):
            print(f"{benchmark} is left out: it needs --data-dir", flush=True)
            cells = {name: cell for name, cell in cells.items() if cell.benchmark != benchmark}

    def kept(name: str, seed: int) -> str:
        versions = [source_hash(), torch.__version__, flwr.__version__]
        depends = [cells[name].depends_on(given), dict(defaults), versions]
        return digest(str(out.resolve()), name, str(seed), json.dumps(depends, sort_keys=True, default=str))

    def run(name: str, seed: int) -> dict[str, Any]:
        cell = cells[name]
        twin = (cell.with_equal_steps.name, seed)
        for line in finished(out, plan.name) if cell.budget == "flops" else ():
            if (line["cell"], line["seed"]) == twin and line["rounds"] == num_rounds(cell, given, defaults):
                return {**line, "cell": name, "same-as": line["cell"]}
        with kept_home(kept(name, seed)):
            return measure(cell, seed, given, defaults)

    lines = complete(out, plan.name, cells, seeds, run, lambda name, seed: forget(kept(name, seed)))
    if page:
        write_page(page, plan, lines)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m benchmarks.study") -> int:
    """Run what is missing of a plan, then print its table or write its page; 1 if the plan cannot be used."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("--plan", help=f"a TOML file, or one of {', '.join(sorted(PLANS))}")
    parser.add_argument("--out", type=Path, help="file of the cells, one JSON object a line")
    parser.add_argument("--page", type=Path, help="page of a plan of methods, with its curves beside it")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default the plan's; 0 1 2 if it has none")
    parser.add_argument("--methods", nargs="+", help="of a plan of methods, these alone")
    parser.add_argument("--data-dir", default="", help="as the setting of that name")
    parser.add_argument("--teacher", default="", help="as the setting teacher.model")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings")
    parser.add_argument("--quick", action="store_true", help="recipes/study/quick.toml, in a new folder")
    options = parser.parse_args(arguments)
    quick = Path(tempfile.mkdtemp(prefix="study-")) if options.quick else None
    if quick:
        options.plan = options.plan or str(ROOT / "recipes" / "study" / "quick.toml")
        options.out, options.page = options.out or quick / "quick.jsonl", options.page or quick / "quick.md"
    if not options.plan or not options.out:
        parser.error("--plan and --out are needed, or --quick")
    given = {key: _value(text) for key, _, text in (pair.partition("=") for pair in options.set)}
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as inside a Flower task
    logging.getLogger("flwr").setLevel(logging.WARNING)
    if options.plan in PLANS:
        plan = PLANS[options.plan]
        study = Study(plan, {"data-dir": options.data_dir, "teacher.model": options.teacher, **given})
        cells = {cell.name: cell for cell in plan.cells}
        lines = complete(
            options.out,
            options.plan,
            cells,
            options.seeds or [0, 1, 2],
            lambda name, seed: {"scores": study.run(cells[name], seed)},
        )
        print(table(plan, lines))
        return 0
    try:
        comparison = Comparison.read(Path(options.plan))
    except ValueError as error:
        print(f"feddat: {error}; allowed: such a file, or {', '.join(sorted(PLANS))}", file=sys.stderr)
        return 1
    given |= {"data-dir": options.data_dir} if options.data_dir else {}
    methods = options.methods or list(comparison.methods)
    seeds = options.seeds or comparison.seeds
    # What is stopped could not be found again under a new folder's name.
    with scratch_home() if quick in options.out.parents else nullcontext():
        compare(comparison, given, options.out, seeds, methods, options.page)
    if quick:
        print(f"the page is {options.page}")
    return 0


def _value(text: str) -> Any:
    """Read a setting's value as JSON, or else as the text that it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
