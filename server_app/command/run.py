"""``feddat run``: a run by Flower's own programs, watched, and ended with all that it started."""

import json
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .called import called
from .checkout import checkout
from .refusal import Refusal

if TYPE_CHECKING:
    from app.settings import Settings

    from .given import Given
    from .screen import Screen

# Checkpoints, processed examples and the log of a small run take less.
LEAST_FREE = 500_000_000
# What lines say that each client may have, and what is shown in place of more of them than so many.
_OF_EACH = {" refused: ": "more were refused", " test questions have ": "so have more clients"}
_MOST = 6
# How long the ServerApp took without its start, which is not what whoever waits would call all.
_OWN_TIME = re.compile(r"; [\d:]+ in all$")


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...", help="A recipe of recipes/ or a file, and settings."
        ),
    ] = None,
    superlink: Annotated[
        str,
        typer.Option(help="A SuperLink of $FLWR_HOME/config.toml. Without it: one of the run's own, here."),
    ] = "",
    port: Annotated[int, typer.Option(help="Of the run's own SuperLink. 0: a free one.")] = 0,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of a simulated client.")] = 1,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="Share of a GPU of a simulated client. Default: 1 where there is one."),
    ] = None,
    compare: Annotated[
        str,
        typer.Option(metavar="METHOD,...", help="Run these methods first, and show them beside it."),
    ] = "",
) -> None:
    """Run the federation.

    By default with as many simulated clients as the benchmark has. Settings and their defaults: feddat
    settings. A run that was stopped goes on with resume=NAME.
    """
    root = checkout()
    from app.home import closed_home
    from app.settings import SettingsError

    from .processes import stopped_by_signals

    with ExitStack() as stack:
        try:
            home = stack.enter_context(closed_home())
        except SettingsError as error:
            raise Refusal(str(error)) from None
        stack.enter_context(stopped_by_signals())
        try:
            machine = Machine(superlink, port, cpus, gpus)
            _run(root, home, words or [], machine, [method for method in compare.split(",") if method])
        except KeyboardInterrupt:
            raise Refusal("stopped before the run began", code=130) from None


@dataclass(frozen=True)
class Machine:
    """Where a run runs: at a SuperLink that is there, or at one of its own with simulated clients."""

    superlink: str
    port: int
    cpus: int
    gpus: float | None

    @property
    def options(self) -> list[str]:
        """The command's options that name it, without those that are defaults."""
        given = {"superlink": self.superlink, "port": self.port, "cpus": self.cpus, "gpus": self.gpus}
        default = {"superlink": "", "port": 0, "cpus": 1, "gpus": None}
        return [f"--{key}={value}" for key, value in given.items() if value != default[key]]


def _run(root: Path, home: Path, words: list[str], machine: Machine, compare: Sequence[str]) -> None:
    """Run what is asked for, after the methods that it is compared with."""
    began = time.monotonic()
    from .screen import waiting

    with waiting("checking the settings"):
        given, name, others = _asked_for(root, home, words, machine, compare)

    from server_app.comparison import name_beside

    from .given import changed
    from .screen import Screen

    runs = home / "runs"
    if others:
        names = [*(one.settings.method for one in others), given.settings.method]
        typer.echo(f"one after the other: {', '.join(names)}; the last table has all")
    done = bool(others) and not given.settings.resume and _is_done(runs / name, given.settings)
    for other in others:
        beside = name_beside(name, other.settings.method)
        if _is_done(runs / beside, other.settings):
            continue
        key = "resume" if (runs / beside).exists() else "run-name"
        # Gone on with by itself, it would end without the run that it is to stand beside.
        again = _command(words, given.settings, name, machine, compare)
        one = changed(root, other, {key: beside})
        _federate(root, home, one, beside, machine, began, again, several=True)
    if done:
        show_result(runs / name, Screen(given.settings.num_rounds, given.settings.evaluate_every))
    else:
        # What is changed of a run that goes on is kept only once its clients are there.
        same = words if given.settings.resume else [f"resume={name}"]
        _federate(root, home, given, name, machine, began, _run_with(*same, *machine.options))


def _is_done(folder: Path, settings: "Settings") -> bool:
    """Whether a run is over; a Refusal if it is, but was another one than is asked for."""
    from app.source import source_hash
    from server_app.comparison import are_alike, is_over

    from .runs import find_run

    if not is_over(folder):
        return False
    wanted, theirs = {**settings.run_config(), "source-hash": source_hash()}, find_run(folder.name).settings
    if theirs.get("method") != settings.method or not are_alike(wanted, theirs):
        raise Refusal(
            f"the run {folder.name!r} has other settings or is of another source;"
            f" to make it anew: {called()} runs prune {folder.name}"
        )
    return True


def _asked_for(
    root: Path, home: Path, words: list[str], machine: Machine, compare: Sequence[str]
) -> tuple["Given", str, list["Given"]]:
    """Return what is to be run, its name, and what it is compared with; all are checked before one begins."""
    from server_app.comparison import is_over

    from .given import changed, read_given
    from .processes import is_taken

    if machine.port and is_taken(machine.port):
        raise Refusal(f"port = {machine.port} is taken; allowed: another one, or 0 for one that is free")
    free = shutil.disk_usage(home).free
    if free < LEAST_FREE:
        raise Refusal(
            f"FEDDAT_HOME = {str(home)!r} has {free // 10**6} MB free;"
            f" allowed: at least {LEAST_FREE // 10**6} MB"
        )
    given = read_given(root, words)
    if machine.superlink:
        from .superlink import check_superlink

        check_superlink(machine.superlink)
    settings, runs = given.settings, home / "runs"
    name = settings.resume or settings.run_name or _name(settings)
    over = is_over(runs / name)
    if not settings.resume and (runs / name).exists() and not (over and compare):
        more = " with more num-rounds" if over else ""
        raise Refusal(
            f"run-name = {name!r} is taken: {runs / name}; allowed: another name, or resume={name}{more}"
        )
    try:
        others = [changed(root, given, {"method": one, "run-name": "", "resume": ""}) for one in compare]
    except Refusal as refusal:
        raise Refusal(f"--compare: {refusal}") from None
    if not machine.superlink:  # that of a SuperLink elsewhere has files of its own
        for one in (given, *others):
            _check(one.settings)
    return given, name, others


def _check(settings: "Settings") -> None:
    """Refuse what the ServerApp, which will run here, would."""
    from server_app.beforehand import check_beforehand

    try:
        check_beforehand(settings)
    except (ValueError, OSError) as error:
        raise Refusal(str(error)) from None


def _command(
    words: list[str], settings: "Settings", name: str, machine: Machine, compare: Sequence[str]
) -> str:
    """Return the command that was given, with the name that the run has by now."""
    named = [] if settings.resume or settings.run_name else [f"run-name={name}"]
    return _run_with(*words, *named, *machine.options, f"--compare={','.join(compare)}")


def _run_with(*words: str) -> str:
    return f"{called()} run {shlex.join(words)}"


def _federate(
    root: Path,
    home: Path,
    given: "Given",
    name: str,
    machine: Machine,
    began: float,
    again: str,
    several: bool = False,
) -> None:
    """Run one federation to its end, and show what it gave, and how long since `began` that took.

    `again` is the command that goes on with it, or with all of `several`.
    """
    settings, superlink, folder = given.settings, machine.superlink, home / "runs" / name
    started = time.monotonic()
    overrides = given.overrides if settings.resume else {**given.overrides, "run-name": name}
    clients = 0 if superlink else _num_clients(settings)
    log = home / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)

    from .screen import Screen

    with ExitStack() as stack:
        screen = Screen(settings.num_rounds, settings.evaluate_every)
        who = _counted(clients, "simulated client") if clients else f"clients of {superlink}"
        screen.line(
            f"{settings.benchmark}: {who}, method {settings.method},"
            f" {_counted(settings.num_rounds, 'round')}, in {folder}"
        )
        screen.line(f"the full log: {log}")
        try:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".flower-", dir=home)))
            config = scratch / "run-config.toml"
            # A JSON string is one of TOML's too.
            config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in overrides.items()))
            options = ["--run-config", str(config)]
            if superlink:
                reason = _at(superlink, root, options, log, screen)
            else:
                share = _gpus(settings) if machine.gpus is None else machine.gpus
                resources = f"num-supernodes={clients} client-resources-num-cpus={machine.cpus}"
                resources += f" client-resources-num-gpus={share}" if share else ""
                options += ["--federation-config", resources]
                reason = _alone(root, scratch, machine.port, options, log, screen)
        except KeyboardInterrupt:
            how = _how_on(folder, superlink, f"to go on: {again}", always=several)
            raise Refusal(f"stopped; {how}", code=130) from None
        except Refusal as refusal:
            reason = str(refusal)
    if reason is not None:
        # Of several, which; and no promise: what is wrong with its settings is so the next time too.
        which = name if several else "the run"
        screen.line(f"{which} failed; {_how_on(folder, superlink, f'to try again: {again}')}")
        raise Refusal(f"{name}: {reason}" if several else reason)
    from server_app.report import clock

    since, what = (started, "for this run") if several else (began, "in all, since the command began")
    screen.line(f"{clock(time.monotonic() - since)} {what}")
    show_result(folder, screen)


def _alone(
    root: Path, scratch: Path, port: int, options: list[str], log: Path, screen: "Screen"
) -> str | None:
    """Run at a SuperLink of the run's own; return why the run failed."""
    from .following import FlowerRun
    from .processes import environment, free_port, started, wait_for

    port = port or free_port()
    flower, empty, shown = scratch / "flwr", scratch / "empty", scratch / "progress.json"
    flower.mkdir()
    # An app's modules are looked for first where the SuperLink was started: in a folder with none.
    empty.mkdir()
    (flower / "config.toml").write_text(
        f'[superlink]\ndefault = "own"\n[superlink.own]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    machine = environment(FLWR_HOME=str(flower), FEDDAT_PROGRESS=str(shown))
    command = (
        _program("flower-superlink"),
        "--insecure",
        "--simulation",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    )
    screen.line("starting Flower and its workers")
    with screen, started(command, log, empty, machine) as process, screen.stopping():
        try:
            wait_for(port, process, lambda: log.read_text(errors="replace"))
        except RuntimeError:
            raise Refusal(f"Flower's SuperLink does not start at port {port}: {log}") from None

        def meanwhile() -> None:
            if process.poll() is not None:
                raise Refusal(f"Flower's SuperLink ended before the run did: {log}")
            screen.clients(_read(shown))

        run = FlowerRun(_program("flwr"), "own", machine)
        with log.open("a") as lines:
            run.follow(root, options, lines, _teller(screen), meanwhile)
        return run.reason()


def _at(superlink: str, root: Path, options: list[str], log: Path, screen: "Screen") -> str | None:
    """Run at a SuperLink that is there; return why the run failed."""
    from .following import FlowerRun
    from .processes import environment

    run = FlowerRun(_program("flwr"), superlink, environment())
    try:
        with screen, log.open("a") as lines, screen.stopping():
            run.follow(root, options, lines, _teller(screen), lambda: None)
        return run.reason()
    except KeyboardInterrupt:
        run.stop()
        raise


def _teller(screen: "Screen") -> Any:
    """Return what shows a run's lines, but of those that each client may have not all."""
    met = dict.fromkeys(_OF_EACH, 0)

    def tell(line: str) -> None:
        for kind in (kind for kind in _OF_EACH if kind in line):
            met[kind] += 1
            if met[kind] == _MOST + 1:
                screen.line(f"{_OF_EACH[kind]}: see the log")
            if met[kind] > _MOST:
                return
        screen.line(_OWN_TIME.sub("", line))

    return tell


def show_result(folder: Path, screen: "Screen") -> None:
    """Show the table of scores, what it says, and where the run is."""
    if not folder.is_dir():
        screen.line(f"the run {folder.name!r} is in the FEDDAT_HOME of its SuperLink's machine")
        return
    from server_app import report
    from server_app.kept_rows import rows_in

    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    report.show_result(screen.console, folder, settings, rows_in(folder / "metrics.jsonl"))
    screen.line(f"the run is in {folder}")


def _name(settings: "Settings") -> str:
    return f"{settings.benchmark}-{settings.method}-{datetime.now():%Y%m%d-%H%M%S}"


def _num_clients(settings: "Settings") -> int:
    """Return how many clients are simulated: as many as are waited for, else as the benchmark has."""
    from app.settings import feddat_home
    from data_partitions.benchmarks import DataOptions, check_options, num_simulated

    options = DataOptions.of(settings.run_config(), feddat_home() / "data")
    try:
        check_options(settings.benchmark, options)
        found = num_simulated(settings.benchmark, options)
    except (ValueError, OSError) as error:
        raise Refusal(str(error)) from None
    return settings.num_clients or found


def _gpus(settings: "Settings") -> float:
    import torch

    return float(settings.device != "cpu" and torch.cuda.is_available())


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _how_on(folder: Path, superlink: str, how: str, *, always: bool = False) -> str:
    """Return `how` to go on with what is kept of a run; without, say so, and how only if `always`."""
    if (folder / "checkpoints").is_dir():
        return how
    kept = "nothing of it is kept: it had not begun"
    if superlink and not folder.exists():
        kept = "if it had begun, its folder is in the FEDDAT_HOME of its SuperLink's machine"
    return f"{kept}; {how}" if always else kept


def _program(name: str) -> str:
    """Return the path of a program of this environment, which need not be activated."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
