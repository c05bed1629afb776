"""Time what a message costs a client where Flower starts a process for each: everything but the training.

    python -m benchmarks.startup --json figures.json

starts processes that each answer one message (`benchmarks.one_message`), with files of their own that go
away afterwards: the handshake and a first round of training, which have to make the data; then in turn an app
that does nothing, which is Flower's floor, later rounds, and evaluations. It prints the medians by phase, and
exits with 1 when a later round of training costs more than 5 CPU seconds above the floor, training apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from rich.console import Console
from rich.table import Table

from app import __version__
from app.backbones import open_backbone
from app.methods import METHODS, open_learner
from app.records import SCHEMA, to_record
from app.settings import read_settings
from app.source import source_hash

from .figures import machine_of, verdict, write_figures

ROOT = Path(__file__).parents[1]
LIMIT = 5.0
PHASES = {
    "process": "the interpreter",
    "Flower": "imports of flwr-clientapp",
    "import": "imports of the app",
    "message": "message unpacked",
    "backbone": "backbone loaded",
    "data": "examples loaded, processed",
    "adapters": "adapters, private state read",
    "compute": "training, evaluation",
    "state": "private state written",
    "reply": "reply packed",
    "end": "process ended",
}
# One after the other: what the first round keeps, the later ones find.
FIRST = ("query", "first train")
REPEATED = ("noop", "train", "evaluate")

Laps = dict[str, dict[str, float]]


def write_message(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what the server of a run would send to partition 0 of 5, as `benchmarks.one_message` reads it."""
    checked = read_settings(settings)
    arrays = to_record(METHODS[checked.method].travelling(open_learner(checked)))
    (folder / "objects").mkdir()
    for name, part in get_all_nested_objects(arrays).items():
        (folder / "objects" / name).write_bytes(part.deflate())
    identity = {
        "version": __version__,
        "schema": SCHEMA,
        "source": source_hash(),
        "backbone": open_backbone(checked).fingerprint,
    }
    facts = {
        "arrays": arrays.object_id,
        "config": {**identity, "run": "startup", "run-token": "0" * 32},
        "node-config": {"partition-id": 0, "num-partitions": 5, "backbone": checked.backbone},
        "run-config": dict(settings),
    }
    (folder / "message.json").write_text(json.dumps(facts))


def answered(kind: str, folder: Path, server_round: int) -> Laps:
    """Start a process for one message; return its seconds by phase and in all, on the clock and of CPU."""
    before, began = os.times(), time.time()
    command = [sys.executable, "-m", "benchmarks.one_message", kind, "--folder", str(folder)]
    ran = subprocess.run(
        [*command, "--round", str(server_round), "--began", repr(began)],
        cwd=ROOT,
        env={**os.environ, "FEDDAT_HOME": str(folder / "home"), "FLWR_TELEMETRY_ENABLED": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    wall, after = time.time() - began, os.times()
    cpu = sum(getattr(after, f"children_{k}") - getattr(before, f"children_{k}") for k in ("user", "system"))
    laps: Laps = json.loads(ran.stdout.splitlines()[-1])
    measured = {unit: sum(lap[unit] for lap in laps.values()) for unit in ("wall", "cpu")}
    laps["end"] = {"wall": wall - measured["wall"], "cpu": max(0.0, cpu - measured["cpu"])}
    return {**laps, "total": {"wall": wall, "cpu": cpu}}


def measure(settings: Mapping[str, Any], repeats: int) -> dict[str, list[Laps]]:
    """Answer messages in processes of their own; return the seconds of each by the kind of message."""
    seconds: dict[str, list[Laps]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_message(folder, settings)
        for kind in FIRST:
            seconds[kind].append(answered(kind.split()[-1], folder, 1))
        for turn in range(repeats):
            for kind in REPEATED:
                # A round is evaluated after its training.
                seconds[kind].append(answered(kind, folder, turn + 2))
    return seconds


def medians(seconds: Mapping[str, list[Laps]]) -> dict[str, Laps]:
    """Return the median seconds by kind of message, phase and clock."""
    return {
        kind: {
            phase: {unit: statistics.median(run[phase][unit] for run in runs) for unit in ("wall", "cpu")}
            for phase in runs[0]
        }
        for kind, runs in seconds.items()
    }


def overhead(found: Mapping[str, Laps], unit: str) -> float:
    """Return the seconds of a later round of training above Flower's floor, training itself apart."""
    train = found["train"]
    return train["total"][unit] - train["compute"][unit] - found["noop"]["total"][unit]


def table(found: Mapping[str, Laps], title: str) -> Table:
    """Lay the medians out: CPU seconds by phase, and in all those on the clock too."""
    drawn = Table("CPU seconds", title=title)
    for kind in found:
        drawn.add_column(kind, justify="right")
    for phase, words in (PHASES | {"total": "in all"}).items():
        drawn.add_row(
            words, *(f"{laps[phase]['cpu']:.2f}" if phase in laps else "" for laps in found.values())
        )
    drawn.add_row("on the clock", *(f"{laps['total']['wall']:.1f}" for laps in found.values()))
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--examples", type=int, default=160, help="training examples; half as many for tests")
    parser.add_argument("--backbone", default="tiny-vilt")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    settings = get_fused_config_from_dir(ROOT, {})
    settings |= {
        "run-name": "startup",
        "num-rounds": options.repeats + 1,
        "backbone": options.backbone,
        "train-examples": options.examples,
        "test-examples": options.examples // 2,
        "device": "cpu",
    }
    seconds = measure(settings, options.repeats)
    found = medians(seconds)
    machine = machine_of()
    title = f"{options.backbone}, {options.examples} examples, medians of {options.repeats}, {machine}"
    Console().print(table(found, title))
    above = {unit: overhead(found, unit) for unit in ("cpu", "wall")}
    write_figures(options.json, machine, {"above-floor": above, "medians": found, "seconds": seconds})
    return verdict(
        above["cpu"] <= LIMIT,
        f"a later round costs {above['cpu']:.2f} CPU seconds ({above['wall']:.2f} on the clock) "
        "above Flower's floor, training apart",
    )


if __name__ == "__main__":
    sys.exit(main())
