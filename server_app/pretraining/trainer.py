"""The trainer of stage 1: AdamW on whatever an objective trains."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedModel

MEASURE_EVERY = 250


class Objective(nn.Module, ABC):
    """What is learnt, from which data.

    Attributes
    ----------
    processor : Processor or ChatProcessor
        How the backbone's inputs are made.
    """

    processor: Any

    @property
    @abstractmethod
    def backbone(self) -> PreTrainedModel:
        """What is handed on; all else is thrown away after training."""

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that learn."""
        return list(self.parameters())

    @abstractmethod
    def batches(self, size: int, steps: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Yield `steps` batches of `size` rows on the CPU; all chance comes from `generator`."""

    @abstractmethod
    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return losses by name, whose sum is minimised."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Measure on held-out data, the same at every call."""

    @abstractmethod
    def describe(self, name: str, seed: int, done: str, reached: dict[str, float]) -> str:
        """Write the model card's part on this training: `done` is how much, `reached` the last `measure`."""


def vary(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Vary gain, offset and grain of normalised pixels, so that the backbone is not tied to one rendering."""
    shape = (len(pixels), 1, 1, 1)
    gain = 0.8 + 0.4 * torch.rand(shape, generator=generator)
    offset = 0.3 * (torch.rand(shape, generator=generator) - 0.5)
    grain = 0.1 * torch.rand(shape, generator=generator) * torch.randn(pixels.shape, generator=generator)
    return pixels * gain + offset + grain


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up linearly over the first 2 %, then fall along a cosine to zero."""
    warm = max(1, steps // 50)
    return peak * min(step / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))))


def train(
    objective: Objective,
    *,
    steps: int,
    batch_size: int,
    peak: float,
    seed: int,
    keep: Callable[[int, dict[str, float]], None] = lambda step, reached: None,
) -> None:
    """Train an objective in place, on the device where it is.

    Parameters
    ----------
    objective : Objective
        What to train.
    steps, batch_size : int
        How many batches of how many rows.
    peak : float
        The highest learning rate of the schedule, see `learning_rate`.
    seed : int
        Decides the batches.
    keep : callable
        Is told the step and what `Objective.measure` finds, now and then and at the end.
    """
    generator = torch.Generator().manual_seed(seed)
    trained = objective.trained()
    device = trained[0].device
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    columns = (
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, refresh_per_second=0.5) as progress:
        task = progress.add_task("pretraining", total=steps, state="")
        for step, batch in enumerate(objective.batches(batch_size, steps, generator), start=1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            with torch.autocast(device.type, torch.bfloat16):
                losses = objective.losses({key: value.to(device) for key, value in batch.items()})
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            state = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            if step % MEASURE_EVERY == 0 or step == steps:
                with torch.no_grad():
                    reached = objective.measure()
                keep(step, reached)
                found = ", ".join(f"{name} {value:.3f}" for name, value in reached.items())
                progress.console.print(f"step {step}: losses: {state}; held out: {found}")
            progress.update(task, advance=1, state=f"loss: {state}")
