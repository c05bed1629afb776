"""Clients that share one device: over one base in one process, and each with a base of its own."""

import multiprocessing
import queue
import time
from collections.abc import Callable
from itertools import cycle
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from app.mkd import mkd_step

from .log import Log
from .speed import LEAST, pace, wait
from .subjects import Make, Subject

# Bases that the most of so many clients over one may hold.
NUMBERS, LIMIT = (1, 2, 4), 1.3
# Seconds that a process may take to start.
START = 90.0


def stepping(subject: Subject, batch: int, device: torch.device) -> Callable[[], Any]:
    """Return a client's step; one was taken, so that its optimizer has all its state."""
    learner, optimizer = subject.learner(device)
    _, kept, targets = subject.draw(batch, device)

    def step() -> Any:
        return mkd_step(learner, optimizer, kept, targets, subject.method())

    pace(step, device, seconds=0.0)
    return step


def allocated(device: torch.device, most: bool = False) -> int:
    """Return bytes of all tensors on a device; 0 on the CPU, which does not count them."""
    if device.type != "cuda":
        return 0
    wait(device)
    return torch.cuda.max_memory_allocated(device) if most else torch.cuda.memory_allocated(device)


def in_one_process(log: Log, tiny: bool, make: Make, batch: int) -> None:
    """Have clients of one process take steps in turn; say what they hold, and the most at once, in bases."""
    on_cuda, before = log.device.type == "cuda", allocated(log.device)
    subject = make(log.device, tiny)
    base = subject.size()
    clients: list[Callable[[], Any]] = []
    for number in NUMBERS:
        while len(clients) < number:
            clients.append(stepping(subject, batch, log.device))
        log.free()
        held = (allocated(log.device) - before) / base
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(log.device)
        turns = cycle(clients)
        each = pace(lambda turns=turns: next(turns)(), log.device, log.seconds)  # type: ignore[misc]
        most = (allocated(log.device, most=True) - before) / base
        what = f"{subject.name}, batch {batch}, {number} clients in one process"
        bases = {"bases held": held, "bases at most": most} if on_cuda else {}
        log.result(what, **{"samples/s": batch / each}, **bases)
    if on_cuda:
        log.goal(f"{subject.name}, bases held by {number} clients", held, LIMIT, most=True)


def work(
    make: Make, tiny: bool, device: str, batch: int, seconds: float, together: Barrier, results: Any
) -> None:
    """Take a client's steps in a process of its own, when all are ready, and say how many a second."""
    try:
        torch.set_num_threads(1)
        where = torch.device(device)
        step = stepping(make(where, tiny), batch, where)
        results.put("ready")
        together.wait(START)
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < 2 * seconds:
            pace(step, where, seconds=0.0)
            steps += LEAST
        results.put(steps * batch / (time.perf_counter() - began))
        together.wait(START)
    except Exception as error:
        together.abort()
        results.put(f"{type(error).__name__}: {error}")


def used(device: torch.device) -> int:
    """Return the bytes of a device that anybody uses; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def in_processes(log: Log, tiny: bool, make: Make, batch: int) -> None:
    """Have as many processes take steps at once, each with its own base, CUDA context and cache."""
    subject = make(torch.device("cpu"), tiny)
    for number in NUMBERS[:2] if tiny else NUMBERS:
        what = f"{subject.name}, batch {batch}, {number} clients in as many processes"
        start = log.seconds * (25 + 5 * number)

        def one(number: int = number) -> tuple[float, int]:
            return _together(log, make, tiny, batch, number)

        if found := log.attempt(what, start, one):
            rate, added = found
            bases = {"bases": added / subject.size()} if log.device.type == "cuda" else {}
            log.result(what, **{"samples/s": rate}, **bases)


def _together(log: Log, make: Make, tiny: bool, batch: int, number: int) -> tuple[float, int]:
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(number + 1), context.Queue()
    before = used(log.device)
    arguments = (make, tiny, str(log.device), batch, max(log.seconds, 0.1), together, results)
    processes = [context.Process(target=work, args=arguments, daemon=True) for _ in range(number)]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            _said(results, "ready")
        together.wait(START)
        rates = [_said(results) for _ in processes]
        added = used(log.device) - before
        together.wait(START)
        return sum(rates), added
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def _said(results: Any, expected: str = "") -> Any:
    try:
        word = results.get(timeout=START)
    except queue.Empty:
        raise ValueError(f"a process said nothing for {START:.0f} s") from None
    if isinstance(word, str) and word != expected:
        raise ValueError(word)
    return word
