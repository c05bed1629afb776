"""Run the checks and measurements, as far as time goes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from app.backbones import choose_device

from ..figures import machine_of, verdict
from . import __doc__ as about
from .checks import EACH, parity
from .clients import in_one_process, in_processes
from .log import Log
from .speed import end_to_end, sweep
from .subjects import qwen, smolvlm, vilt
from .ways import MEMORY, SPEED, UPDATES, compare, quantised


class Measurement(NamedTuple):
    """What is measured, and how many seconds have to be left when it begins."""

    name: str
    seconds: float
    call: Callable[..., None]


MEASUREMENTS = (
    Measurement("parity of ViLT's step", 20, partial(parity, make=vilt)),
    Measurement("parity of SmolVLM's step", 30, partial(parity, make=smolvlm)),
    Measurement("ViLT's step", 30, partial(sweep, make=vilt)),
    Measurement("Qwen2.5-VL's step", 40, partial(sweep, make=qwen)),
    Measurement("SmolVLM's step", 20, partial(sweep, make=smolvlm)),
    Measurement("ViLT's step end to end", 20, partial(end_to_end, make=vilt)),
    Measurement("clients over one base, ViLT", 15, partial(in_one_process, make=vilt, batch=16)),
    Measurement("clients over one base, Qwen2.5-VL", 30, partial(in_one_process, make=qwen, batch=4)),
    Measurement("CUDA graphs and torch.compile, ViLT", 15, partial(compare, make=vilt, ways=SPEED)),
    Measurement("CUDA graphs and torch.compile, SmolVLM", 15, partial(compare, make=smolvlm, ways=SPEED)),
    Measurement("both branches in one batch, ViLT", 15, partial(compare, make=vilt, ways=UPDATES)),
    Measurement("both branches in one batch, SmolVLM", 15, partial(compare, make=smolvlm, ways=UPDATES)),
    Measurement("gradient checkpointing, ViLT", 15, partial(compare, make=vilt, ways=MEMORY)),
    Measurement("gradient checkpointing, Qwen2.5-VL", 30, partial(compare, make=qwen, ways=MEMORY)),
    Measurement("a base in 8 and 4 bits, Qwen2.5-VL", 40, partial(quantised, make=qwen)),
    Measurement("clients in processes, ViLT", 45, partial(in_processes, make=vilt, batch=16)),
)
# Checks that there are, of two models.
EXPECTED = 2 * EACH


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and measure; return the exit status."""
    assert about
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=about.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="what is not begun by then is left out")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models in their place, to try the program")
    parser.add_argument("--json", type=Path, help="write the figures to this file, after each of them")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    log = Log(device, options.minutes, options.json, seconds=0.0 if options.tiny else 1.0)
    log.say(f"{machine_of(device)}, {options.minutes:g} minutes")
    for name, seconds, call in MEASUREMENTS:
        print(f"{name}:", flush=True)
        log.attempt(name, min(seconds, 1.0) if options.tiny else seconds, partial(call, log, options.tiny))
        log.free()
    checks = log.figures["checks"]
    passed = sum(check["passed"] for check in checks)
    # One that could not be made has not passed.
    return verdict(passed == EXPECTED, f"{passed} of {EXPECTED} checks, {len(checks)} were made")


if __name__ == "__main__":
    sys.exit(main())
