"""The ServerApp: runs the federation and leaves its result in the run's folder."""

import logging
from typing import Any

import flwr
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from app import __version__
from app.dual_adapter import open_adapter
from app.records import from_record, to_record
from app.settings import SettingsError, read_settings
from app.source import source_hash
from data_partitions.benchmarks import BENCHMARKS
from strategies import FedDAT, Resumable

from .checkpoints import Checkpoints, DamagedError
from .export import export_adapter
from .report import model_card, privacy_line, results_table, write_report
from .resuming import kept_facts, last_checkpoint
from .run_log import RunLog
from .strategy import make_strategy

log = logging.getLogger("flwr")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check the settings, federate, export the adapter, report."""
    settings = read_settings(context.run_config)
    if settings.benchmark not in BENCHMARKS:
        raise SettingsError(
            f"benchmark = {settings.benchmark!r}; allowed: {', '.join(map(repr, BENCHMARKS))}"
        )
    # Only clients compute; their device need not be here.
    adapter = open_adapter(settings.model_copy(update={"device": "cpu"}))
    identity: dict[str, Any] = {
        "backbone": adapter.backbone.fingerprint,
        "source": source_hash(),
        "version": __version__,
    }
    versions = {"flwr": flwr.__version__, "torch": torch.__version__}
    facts = {f"{key}-hash": identity[key] for key in ("backbone", "source")} | versions
    run = RunLog(settings, facts, kept_facts(settings, facts) if settings.resume else None)
    checkpoints = Checkpoints(run.folder / "checkpoints", run.best_round)
    checkpoint = last_checkpoint(settings, checkpoints) if settings.resume else None

    federation = FedDAT(
        make_strategy(settings),
        weighting=settings.weighting,
        expected_nodes=settings.num_clients or None,
        wait_seconds=settings.wait_seconds,
        seed=settings.seed,
        expected=identity,
        evaluate_on=lambda r: r % settings.evaluate_every == 0 or r == settings.num_rounds,
        observer=run,
        max_change=settings.max_change,
    )

    strategy = Resumable(federation, checkpoints, checkpoint)

    federation.gather(grid)
    if checkpoint:
        run.reopen(checkpoint.server_round)
    else:
        run.open()
    if private := privacy_line(run.facts):
        log.info("privacy: %s", private)

    def end_round(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            run.end_round(server_round)

    result = strategy.start(
        grid,
        initial_arrays=to_record(adapter.initial_shared),
        num_rounds=settings.num_rounds,
        timeout=settings.round_timeout,
        train_config=ConfigRecord(identity),
        evaluate_config=ConfigRecord(identity),
        evaluate_fn=end_round,
    )

    def export(name: str, arrays: ArrayRecord, last_round: int) -> None:
        rows = [row for row in run.rows if row["round"] <= last_round]
        export_adapter(run.folder / name, settings, from_record(arrays), model_card(run.facts, rows))

    export("adapter", result.arrays, settings.num_rounds)
    if best := run.best_round(settings.num_rounds):
        try:
            export("adapter-best", checkpoints.load(best).arrays, best)
        except DamagedError as error:
            log.warning("there is no adapter-best: %s", error)
    write_report(run.folder, run.facts, run.rows, run.seconds)
    Console().print(results_table(run.rows))
    log.info("the run is in %s", run.folder)
