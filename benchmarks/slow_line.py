"""Time rounds of a site behind a slow line: a real SuperLink, a real SuperNode, and the line between them.

    python -m benchmarks.slow_line

runs the app on one site over loopback, through a proxy that carries 10 Mbit/s each way and takes 100 ms there
and back, with every precision on the wire in turn, and once beside the line. A round lasts from one training
message to the next; the first round of a run is left out. ``reduction-factor=1`` makes the adapter of
`tiny-vilt` as large as would be seen on such a line.
"""

import argparse
import asyncio
import re
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from app.wire_precision import ENCODINGS

from .figures import machine_of, write_figures
from .real_processes import Line as Read
from .real_processes import free_port, superlink

ROOT = Path(__file__).parents[1]
UP, DOWN = "up", "down"
BESIDE = "float32, beside the line"
CHUNK = 1 << 14
TRAINING = re.compile(r"Receiving: train message")


class SlowLine:
    """Carries what goes to a port of this machine, at most so much a second each way, and later.

    Parameters
    ----------
    target : int
        The port.
    rate : float
        Bytes a second, each way, of all connections together.
    delay : float
        Seconds from the one end to the other.

    Attributes
    ----------
    port : int
        Where it listens.
    carried : dict
        Bytes so far, by way.
    """

    def __init__(self, target: int, rate: float, delay: float) -> None:
        self._target, self._rate, self._delay = target, rate, delay
        self.carried = {UP: 0, DOWN: 0}
        self._free = {UP: 0.0, DOWN: 0.0}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connect, "127.0.0.1", 0), self._loop
        )
        self.port: int = serving.result().sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _connect(self, site: asyncio.StreamReader, to_site: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(self._way(site, to_server, UP), self._way(server, to_site, DOWN))

    async def _way(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        arriving = asyncio.create_task(self._arrive(under_way, sink))
        try:
            while data := await source.read(CHUNK):
                # The line is taken for as long as it needs for this, whoever else wants it.
                self._free[way] = max(self._loop.time(), self._free[way]) + len(data) / self._rate
                self.carried[way] += len(data)
                sent = self._free[way]
                await asyncio.sleep(sent - self._loop.time())
                under_way.put_nowait((sent + self._delay, data))
        except ConnectionError:
            pass
        under_way.put_nowait((self._loop.time() + self._delay, b""))
        await arriving

    async def _arrive(
        self, under_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - self._loop.time())
                if not data:
                    break
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()


def rounds(lines: Iterable[Read]) -> list[float]:
    """Return the seconds from each training message that a SuperNode heard of to the next."""
    return [
        later - before for before, later in pairwise(read for read, line in lines if TRAINING.search(line))
    ]


def measure(
    precisions: Sequence[str], repeats: int, options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Run with every precision in turn; return seconds and bytes of each round but a run's first."""
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in precisions}
    with ExitStack() as programs:
        machine = programs.enter_context(
            superlink(Path(programs.enter_context(tempfile.TemporaryDirectory())))
        )
        rate, delay = options.megabits * 1e6 / 8, options.milliseconds / 2000
        line = programs.enter_context(SlowLine(machine.port, rate, delay))
        for _ in range(repeats):
            for name in precisions:
                port = machine.port if name == BESIDE else line.port
                node = ("--node-config", 'partition-id=0 num-partitions=1 policy="open"')
                command = ("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", *node)
                with machine.program(*command, "--port", str(free_port())) as site:
                    before, precision = sum(line.carried.values()), name.split(",")[0]
                    own = f"num-clients=1 num-rounds={options.rounds} evaluate-every={options.rounds}"
                    _, rows = machine.flwr_run(
                        ROOT, "--run-config", f'{own} wire-precision="{precision}" {options.set}'
                    )
                    time.sleep(1)  # for what the SuperNode says last
                    trained = [row for row in rows if "train-seconds" in row]
                    figures = found[name]
                    figures["seconds"] += rounds(site.lines)
                    figures["training"] += [row["train-seconds"] for row in trained[:-1]]
                    figures["bytes"] += [row["bytes-down"] + row["bytes-up"] for row in trained]
                    # The whole run's, with handshake, evaluation and the app itself.
                    figures["carried"].append(sum(line.carried.values()) - before)
                print(f"{name}: {', '.join(f'{each:.1f} s' for each in figures['seconds'])}", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.slow_line", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--megabits", type=float, default=10.0, help="a second, each way")
    parser.add_argument("--milliseconds", type=float, default=100.0, help="there and back")
    parser.add_argument("--rounds", type=int, default=4, help="of each run; the first is left out")
    parser.add_argument(
        "--precisions", nargs="+", default=["float32", *ENCODINGS], help="on the wire, in turn"
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs with each precision")
    parser.add_argument(
        "--set",
        default="reduction-factor=1 train-examples=16 test-examples=4",
        metavar="KEY=VALUE ...",
        help="other settings of the run-config",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    found = measure((BESIDE, *options.precisions), options.repeats, options)
    title = f"{options.megabits:g} Mbit/s, {options.milliseconds:g} ms, medians, {machine_of()}"
    table = Table(
        "wire-precision", "MB a round", "on the line at least", "a round", "least–most", title=title
    )
    for name, figures in found.items():
        seconds, size = figures["seconds"], statistics.median(figures["bytes"])
        table.add_row(
            name,
            f"{size / 1e6:.2f}",
            "" if name == BESIDE else f"{size * 8e-6 / options.megabits:.1f} s",
            f"{statistics.median(seconds):.1f} s",
            f"{min(seconds):.1f}–{max(seconds):.1f} s",
        )
    Console().print(table)
    conditions: dict[str, Any] = {key: value for key, value in vars(options).items() if key != "json"}
    write_figures(options.json, machine_of(), {"conditions": conditions, "found": found})


if __name__ == "__main__":
    main()
