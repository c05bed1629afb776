"""What a program within a time limit says and writes: each result at once, for it may be cut off."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..figures import machine_of, write_figures

Result = TypeVar("Result")


class Log:
    """Prints each result, and writes all that there are.

    Parameters
    ----------
    device : torch.device
        What is measured.
    minutes : float
        How long the program may take.
    path : Path, optional
        Where figures go, as JSON.
    seconds : float
        For how long one variant is timed.
    """

    def __init__(
        self, device: torch.device, minutes: float, path: Path | None = None, seconds: float = 1.0
    ) -> None:
        self.device, self.seconds, self._path = device, seconds, path
        self._end = time.monotonic() + 60 * minutes
        self.figures: dict[str, list[Any]] = {
            name: [] for name in ("checks", "results", "goals", "failed", "left-out")
        }

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    def say(self, line: str) -> None:
        """Print a line, and write what there is."""
        print(line, flush=True)
        write_figures(self._path, machine_of(self.device), self.figures)

    def result(self, what: str, **figures: Any) -> None:
        """Keep the figures of one variant."""
        self.figures["results"].append({"what": what, **figures})
        shown = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in figures.items()
        )
        self.say(f"  {what}: {', '.join(shown)}")

    def check(self, what: str, value: float, limit: float) -> None:
        """Hold a difference to its limit; what is not a number is beyond it."""
        passed = value <= limit
        self.figures["checks"].append({"what": what, "value": value, "limit": limit, "passed": passed})
        self.say(f"  {'passed' if passed else 'FAILED'}: {what} {value:.1e}, limit {limit:.0e}")

    def goal(self, what: str, reached: float, goal: float, most: bool = False) -> None:
        """Say whether a goal was met; `most`: whether it is the most that is allowed, not the least."""
        met = reached <= goal if most else reached >= goal
        self.figures["goals"].append({"what": what, "reached": reached, "goal": goal, "met": met})
        sign = "at most" if most else "at least"
        self.say(f"  goal {'met' if met else 'MISSED'}: {what}: {reached:.4g}, {sign} {goal:g}")

    def attempt(self, what: str, seconds: float, call: Callable[[], Result]) -> Result | None:
        """Call what takes some seconds, if they are left; one line where they are not, or where it fails."""
        if self.left < seconds:
            self.figures["left-out"].append(what)
            self.say(
                f"  left out: {what}, which takes some {seconds:.0f} s; {max(0.0, self.left):.0f} s are left"
            )
            return None
        try:
            return call()
        except Exception as error:  # out of memory, an operation that the device has not, ...
            first = next(iter(str(error).strip().splitlines()), "")
            reason = f"{type(error).__name__}: {first}"
        # Outside, where the error no longer holds on to what was on the device.
        self.figures["failed"].append({"what": what, "reason": reason})
        self.say(f"  did not run: {what}: {reason}")
        self.free()
        return None

    def free(self) -> None:
        """Give back what nobody holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
