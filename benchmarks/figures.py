"""What becomes of a program's figures: a file that says what they were measured on, a verdict."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from app.files import write_atomically

CPU = torch.device("cpu")


def machine_of(device: torch.device = CPU) -> str:
    """Name what is computed on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} CPUs, {torch.get_num_threads()} CPU threads"


def write_figures(path: Path | None, machine: str, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, with the machine and versions; without a path do nothing."""
    if path is None:
        return
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    whole = {"machine": machine, "versions": versions, **figures}
    write_atomically(path, json.dumps(whole, indent=2) + "\n", mode=0o644)


def verdict(passed: bool, text: str) -> int:
    """Print whether a program's limit was kept; return its exit code."""
    print(f"{'passed' if passed else 'FAILED'}: {text}")
    return 0 if passed else 1
