"""Measure what a lower precision on the wire saves and what it costs in score.

    python -m benchmarks.wire --json wire.json

prints the bytes of the shared adapter of ViLT-B/32 (random weights) and the time that it takes to write
and read it; then it runs the default federation in this process with every precision and seed, and prints
bytes and scores. Cells that the file has already, under the same settings, are skipped: what was stopped
goes on. ``--set num-rounds=3 train-examples=100`` makes it smaller.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.task_identity import TaskIdentity
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import ViltConfig, ViltModel

from app.bottleneck import BottleneckConfig
from app.records import from_record, to_record
from app.wire_precision import ENCODINGS

from .figures import machine_of, write_figures
from .homes import scratch_home
from .in_process import Federation

ROOT = Path(__file__).parents[1]
PRECISIONS = ("float32", *ENCODINGS)
MB = 1e6


def vilt_b32_adapter() -> dict[str, torch.Tensor]:
    """Return a shared adapter of ViLT-B/32 with random values, by the names on the wire."""
    with torch.device("meta"):  # names and shapes are all that is wanted of it
        model = get_peft_model(ViltModel(ViltConfig()), BottleneckConfig(reduction_factor=16), "shared")
    random = np.random.default_rng(0)
    return {
        name.replace(".shared", ""): torch.from_numpy(random.normal(size=tuple(p.shape)).astype(np.float32))
        for name, p in model.named_parameters()
        if ".shared" in name
    }


def sizes(adapter: Mapping[str, torch.Tensor], repeats: int) -> dict[str, dict[str, float]]:
    """Return a record's bytes, names included, and the median milliseconds of CPU to write and to read it."""
    found = {}
    for precision in PRECISIONS:
        clock: dict[str, list[float]] = {"write": [], "read": []}
        for _ in range(repeats):
            started = time.process_time()
            record = to_record(adapter, precision)
            written = time.process_time()
            from_record(record)
            clock["write"].append(1000 * (written - started))
            clock["read"].append(1000 * (time.process_time() - written))
        medians = {f"{what}-ms": statistics.median(ms) for what, ms in clock.items()}
        found[precision] = {"bytes": float(record.count_bytes()), **medians}
    return found


def run(settings: Mapping[str, Any], clients: int) -> dict[str, float]:
    """Run a federation; return its last scores, and all bytes each way as its record counts them."""
    with scratch_home():
        folder = Federation(dict(settings), clients, wire=None).serve()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row["student"] for row in rows if row["round"] == settings["num-rounds"] and "student" in row]
    traffic = {way: sum(row.get(way, 0) for row in rows) for way in ("bytes-down", "bytes-up")}
    return {"mean": statistics.mean(last), "worst": min(last), **traffic}


def sizes_table(found: Mapping[str, Mapping[str, float]], machine: str) -> Table:
    """Show bytes and milliseconds by precision."""
    table = Table(
        "precision", "MB", "of float32", "write", "read", title=f"ViLT-B/32's adapter, CPU time, {machine}"
    )
    whole = found["float32"]["bytes"]
    for precision, one in found.items():
        clock = [f"{one[f'{what}-ms']:.1f} ms" for what in ("write", "read")]
        table.add_row(precision, f"{one['bytes'] / MB:.3f}", f"{one['bytes'] / whole:.3f}", *clock)
    return table


def scores_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """Show scores in points and a run's bytes by precision, mean ± standard deviation over the seeds."""
    table = Table(
        "precision", "seeds", "mean client", "worst client", "− float32, by seed", "MB down", "MB up"
    )
    plain = {cell["seed"]: 100 * cell["mean"] for cell in cells if cell["precision"] == "float32"}
    for precision in PRECISIONS:
        own = [cell for cell in cells if cell["precision"] == precision]
        if not own:
            continue
        line = []
        for key in ("mean", "worst"):
            points = [100 * cell[key] for cell in own]
            spread = f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
            line.append(f"{statistics.mean(points):.1f}{spread}")
        pairs = [(100 * cell["mean"], plain[cell["seed"]]) for cell in own if cell["seed"] in plain]
        line.append(", ".join(f"{points - before:+.1f}" for points, before in pairs))
        line += [f"{own[0][f'bytes-{way}'] / MB:.2f}" for way in ("down", "up")]
        table.add_row(precision, str(len(own)), *line)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__.splitlines()[0])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: sizes alone")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=9, help="of writing and reading")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings, as JSON")
    parser.add_argument("--json", type=Path, help="keep the figures in this file, cell by cell")
    options = parser.parse_args(arguments)
    defaults = get_fused_config_from_dir(ROOT, {})
    given = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in options.set)}
    settings = {**defaults, **given, "run-name": "wire"}
    conditions = {"clients": options.clients, "settings": settings}
    kept: dict[str, Any] = {}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text())
        kept = kept if kept["conditions"] == conditions else {}
    machine = machine_of()
    found = sizes(vilt_b32_adapter(), options.repeats)
    figures = {"conditions": conditions, "sizes": found, "cells": kept.get("cells", [])}
    Console().print(sizes_table(found, machine))
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as inside a Flower task
    logging.getLogger("flwr").setLevel(logging.WARNING)
    for seed in options.seeds:
        for precision in options.precisions:
            if any((cell["precision"], cell["seed"]) == (precision, seed) for cell in figures["cells"]):
                continue
            scores = run({**settings, "wire-precision": precision, "seed": seed}, options.clients)
            figures["cells"].append({"precision": precision, "seed": seed, **scores})
            write_figures(options.json, machine, figures)
            print(f"{precision}, seed {seed}: mean {100 * scores['mean']:.1f}", flush=True)
    write_figures(options.json, machine, figures)
    if figures["cells"]:
        Console().print(scores_table(figures["cells"]))


if __name__ == "__main__":
    main()
