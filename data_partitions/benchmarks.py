"""Benchmarks by name: the clients of each, and their data."""

from collections.abc import Callable
from dataclasses import dataclass

import datasets

from . import scenes
from .partition import DataOptions, Partition, require_one_of

__all__ = ["DataOptions", "Partition", "load_public"]


def load_public(
    benchmark: str, options: DataOptions, num_images: int, split: str = "train"
) -> datasets.Dataset:
    """Load captioned images for the server, which no client holds."""
    require_one_of("benchmark", benchmark, ["scenes"])
    return scenes.load_public(options, num_images, split)
