"""A run from its settings to its result in the run's folder."""

# Before anything that would import the same.
from app import heavy_imports  # noqa: F401

# isort: split
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from typing import Any

import flwr
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from rich.console import Console

from app import __version__
from app.backbones import open_backbone
from app.dual_adapter import DualAdapter
from app.files import write_atomically
from app.measurements import MEASURED
from app.methods import METHODS
from app.records import SCHEMA, WireCodec, from_record, to_record
from app.secure_sum import Codes, MaskedSum
from app.settings import Settings, SettingsError, feddat_home, read_settings
from app.source import source_hash
from strategies import (
    Admission,
    Checkpoint,
    FedDAT,
    Limits,
    MLLMAlignment,
    Quorum,
    Resumable,
    RoundObserver,
    SecureAggregation,
)
from strategies.membership import is_simulation

from .alignment import open_aligner
from .beforehand import check_benchmark
from .card import model_card
from .checkpoints import Checkpoints, DamagedError, write_checkpoint
from .export import export_result
from .facts import privacy_line, refusals
from .inner_strategy import make_strategy
from .opening import open_run
from .pretraining.initial_adapter import AdapterPretraining
from .progress import progress
from .public_captions import load_captions
from .report import show_result, write_report
from .resuming import kept_facts, last_checkpoint
from .rows import is_scored
from .run_folder import created, held
from .run_log import RunLog
from .trackers import make_tracker

log = logging.getLogger("flwr")


def federate(grid: Grid, context: Context) -> None:
    """Check the settings, federate, export the result, report."""
    settings = read_settings(context.run_config)
    check_benchmark(settings)
    if settings.num_clients == 0 and not is_simulation(grid):
        # Who comes first would say how many to wait for, and whose word on that is right.
        raise SettingsError(
            "num-clients = 0 with sites on machines of their own; allowed: how many sites the run waits for"
        )
    with ExitStack() as alone:
        _federate(grid, settings, alone)


def _federate(grid: Grid, settings: Settings, alone: ExitStack) -> None:
    """Federate; once the run's folder is there, `alone` keeps other ServerApps out of it."""
    opening = open_run(settings)
    evaluation = opening.evaluation
    identity: dict[str, Any] = {
        "version": __version__,
        "schema": SCHEMA,
        "source": source_hash(),
        "backbone": open_backbone(settings).fingerprint,
    }
    versions = {"flwr": flwr.__version__, "torch": torch.__version__}
    facts = {f"{key}-hash": identity[key] for key in ("backbone", "source")} | versions
    pretrains = settings.pretrain.part == "adapter" and isinstance(opening.learner, DualAdapter)
    if settings.resume:
        if (folder := feddat_home() / "runs" / settings.resume).is_dir():
            alone.enter_context(held(folder))
        run = RunLog(settings, facts, kept_facts(settings, facts))
    else:
        run = RunLog(settings, {**facts, **({"pretrained": False} if pretrains else {})})
    checkpoints = Checkpoints(run.folder / "checkpoints", run.best_round)
    checkpoint = last_checkpoint(settings, checkpoints) if settings.resume else None

    def evaluated(server_round: int) -> bool:
        return server_round % settings.evaluate_every == 0 or server_round == settings.num_rounds

    secure = None
    if settings.secure.aggregation:
        codes = Codes(settings.secure.bits, settings.secure.range)
        secure = SecureAggregation(MaskedSum(codes), settings.secure.threshold)
    observers: list[RoundObserver] = [run, *progress(grid), *make_tracker(settings.tracker, run)]
    federation = FedDAT(
        make_strategy(settings),
        weighting=settings.weighting,
        seed=settings.seed,
        admission=Admission(
            settings.num_clients or None, settings.wait_seconds, expected=identity, places=settings.places
        ),
        limits=Limits(settings.max_change, settings.clip_change or inf),
        quorum=Quorum(
            settings.min_clients,
            settings.max_failure_rate,
            # Under privacy each answer of a client is one more release of its data.
            try_again=settings.dp.mode == "none",
            round_timeout=settings.round_timeout,
        ),
        codec=None if settings.wire_precision == "float32" else WireCodec(settings.wire_precision),
        layout=None if secure else METHODS[settings.method].reply_layout,
        secure=secure,
        metrics=MEASURED,
        evaluate_on=lambda server_round: evaluation is None and evaluated(server_round),
        observers=observers,
    )
    strategy: Strategy = federation
    if settings.align.when != "none":
        aligner = open_aligner(settings, opening.learner, opening.answers or None)
        strategy = MLLMAlignment(
            federation,
            aligner,
            every=1 if settings.align.when == "each-round" else "end",
            last_round=settings.num_rounds,
            observers=observers,
        )
    resumable = Resumable(strategy, checkpoints, checkpoint)
    pretraining = None
    # A run that was stopped in it has its first checkpoint from before.
    if pretrains and run.facts.get("pretrained") is False and isinstance(opening.learner, DualAdapter):
        pretraining = AdapterPretraining(settings, opening.learner, load_captions(settings))

    alone.enter_context(told(observers, run, checkpoint.server_round if checkpoint else 0))
    federation.gather(grid)
    if checkpoint:
        run.reopen(checkpoint.server_round)
    else:
        first = resumable.first(to_record(opening.initial))
        alone.enter_context(created(run.folder, lambda draft: _begin(draft, run, first)))
    if private := privacy_line(run.facts):
        log.info("privacy: %s", private)
    initial = dict(opening.initial)
    if pretraining:
        initial |= pretraining.run()
        pretraining = None  # its frozen models would fill the memory during the whole federation
        resumable.checkpoint = resumable.first(to_record(initial))
        checkpoints.save(resumable.checkpoint)
        run.note(pretrained=True)

    def end_round(server_round: int, arrays: ArrayRecord) -> None:
        if not server_round:
            return
        if evaluation and evaluated(server_round):
            measured = evaluation(from_record(arrays))
            for observer in observers:
                observer.measured(server_round, measured)
        for observer in observers:
            observer.round_ended(server_round)

    config: dict[str, Any] = {**identity, "run": run.known_as, "run-token": run.token}
    begins = checkpoint is None or checkpoint.server_round == 0
    # A head that is to be trained says nothing yet, and under local privacy nobody does.
    answers = not settings.trains_head and settings.dp.mode != "local"
    # A run that was stopped may have asked already.
    if begins and answers and not any(map(is_scored, run.rows)):
        arrays = checkpoint.arrays if checkpoint else to_record(initial)
        federation.evaluate_untrained(arrays, ConfigRecord(config), grid, settings.round_timeout)
        for observer in observers:
            observer.round_ended(0)
    try:
        result = resumable.start(
            grid,
            initial_arrays=to_record(initial),
            num_rounds=settings.num_rounds,
            timeout=settings.round_timeout,
            train_config=ConfigRecord(config),
            evaluate_config=ConfigRecord(config),
            evaluate_fn=end_round,
        )
    finally:
        for (name, phase, reason), times in refusals(run.rows).most_common():
            log.warning("refused %d times: %s, %s: %s", times, name, phase, reason)
    _export(run, settings, checkpoints, result.arrays, opening.answers)
    write_report(run.folder, run.facts, run.rows, run.seconds)
    show_result(Console(), run.folder, run.facts, run.rows)
    log.info("the run is in %s", run.folder)


@contextmanager
def told(observers: Sequence[RoundObserver], run: RunLog, done: int) -> Iterator[None]:
    """Tell observers of the run's beginning and, whatever comes, of its end."""
    for observer in observers:
        observer.run_began(run.name, run.facts, done)
    try:
        yield
    except BaseException as error:
        for observer in observers:
            observer.run_ended(error)
        raise
    for observer in observers:
        observer.run_ended(None)


def _begin(folder: Path, run: RunLog, first: Checkpoint) -> None:
    """Write what a run must have to be gone on with."""
    write_atomically(folder / "settings.json", run.settings_json)
    (folder / "checkpoints").mkdir()
    write_checkpoint(folder / "checkpoints", first)


def _export(
    run: RunLog, settings: Settings, checkpoints: Checkpoints, last: ArrayRecord, answers: tuple[str, ...]
) -> None:
    """Export the result of the last round and of the best one; nothing where nothing is shared."""
    if not last:
        log.info("method = %r shares nothing: there is no result to export", settings.method)
        return
    name = METHODS[settings.method].artifact

    def export(folder: str, arrays: Mapping[str, torch.Tensor], server_round: int) -> None:
        rows = [row for row in run.rows if row["round"] <= server_round]
        card = model_card(run.facts, rows, open_backbone(settings), answers)
        export_result(run.folder / folder, settings, arrays, card, answers)

    export(name, from_record(last), settings.num_rounds)
    if best := run.best_round(settings.num_rounds):
        try:
            export(f"{name}-best", from_record(checkpoints.load(best).arrays), best)
        except DamagedError as error:
            log.warning("there is no %s-best: %s", name, error)
