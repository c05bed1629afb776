"""What the server refuses before a run's first message, as far as nothing large need be loaded for it.

The ServerApp comes to all of it; whoever starts a run on the machine where that will be asks sooner.
"""

import torch

from app.backbones import choose_device
from app.methods import check_model
from app.settings import Settings, SettingsError, feddat_home
from data_partitions.benchmarks import BENCHMARKS, DataOptions, check_options

from .checkpoints import Checkpoints
from .resuming import last_checkpoint
from .run_folder import held


def check_beforehand(settings: Settings) -> None:
    """Raise a ValueError, of one line, for what the ServerApp on this machine would refuse.

    Not for what takes the weights of a model to find out.
    """
    check_benchmark(settings)
    if settings.tracker != "none":
        from .trackers import check_tracker  # with the report, which takes a second

        check_tracker(settings.tracker)
    check_model(settings)
    if not torch.cuda.is_available():  # where it is, asking takes memory of it
        choose_device(settings.device)
    if settings.align.when != "none" and settings.align.beta:
        from .teachers.teacher import check_teacher

        check_teacher(settings.teacher.model)
    if settings.resume and (folder := feddat_home() / "runs" / settings.resume).is_dir():
        with held(folder):
            last_checkpoint(settings, Checkpoints(folder / "checkpoints", lambda _: None))


def check_benchmark(settings: Settings) -> None:
    """Raise a SettingsError unless the benchmark is there and can give what the run asks of it."""
    name = settings.benchmark
    if name not in BENCHMARKS:
        raise SettingsError(f"benchmark = {name!r}; allowed: {', '.join(map(repr, BENCHMARKS))}")
    try:
        check_options(name, DataOptions.of(settings.run_config(), feddat_home() / "data"))
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if settings.pretrain.part == "adapter" and not BENCHMARKS[name].captions:
        others = " or ".join(repr(other) for other, found in BENCHMARKS.items() if found.captions)
        raise SettingsError(
            f"pretrain.part = 'adapter' with benchmark = {name!r}, which has no captioned public images; "
            f"allowed: 'none', or benchmark = {others}"
        )
