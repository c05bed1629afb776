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
from app.settings import SettingsError, feddat_home, read_settings
from app.source import source_hash
from data_partitions.benchmarks import BENCHMARKS, DataOptions, load_public
from strategies import FedDAT

from .export import export_adapter
from .pretraining.initial_adapter import pretrain_adapter
from .report import model_card, results_table, write_report
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
    # Without pretraining only clients compute, and their device need not be here.
    device = "cpu" if settings.pretrain == "none" else settings.device
    adapter = open_adapter(settings.model_copy(update={"device": device}))
    identity: dict[str, Any] = {
        "backbone": adapter.backbone.fingerprint,
        "source": source_hash(),
        "version": __version__,
    }
    versions = {"flwr": flwr.__version__, "torch": torch.__version__}
    run = RunLog(settings, {f"{key}-hash": identity[key] for key in ("backbone", "source")} | versions)

    strategy = FedDAT(
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

    strategy.gather(grid)
    initial = adapter.initial_shared
    if settings.pretrain == "adapter":
        public = DataOptions(seed=settings.seed, cache_dir=feddat_home() / "data")
        captioned = load_public(settings.benchmark, public, settings.pretrain_images)
        initial = pretrain_adapter(settings, adapter, captioned)
    run.open()

    def end_round(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            run.end_round(server_round)

    result = strategy.start(
        grid,
        initial_arrays=to_record(initial),
        num_rounds=settings.num_rounds,
        timeout=settings.round_timeout,
        train_config=ConfigRecord(identity),
        evaluate_config=ConfigRecord(identity),
        evaluate_fn=end_round,
    )
    export_adapter(
        run.folder / "adapter", settings, from_record(result.arrays), model_card(run.facts, run.rows)
    )
    write_report(run.folder, run.facts, run.rows, run.seconds)
    Console().print(results_table(run.rows))
    log.info("the run is in %s", run.folder)
