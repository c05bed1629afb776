"""The server's captioned public images: described by the teacher model, or by the benchmark itself."""

from datasets import Dataset

from app.settings import Settings, feddat_home
from data_partitions.benchmarks import DataOptions, load_public

from .teachers.annotating import annotate_captions
from .teachers.teacher import open_teacher


def load_captions(settings: Settings) -> Dataset:
    """Load public images with captions.

    Parameters
    ----------
    settings : Settings
        `pretrain.images`, and with a `teacher.model` what it is asked: its captions are taken, and kept.

    Returns
    -------
    Dataset
        Columns image, captions (list of str).

    Raises
    ------
    ValueError
        If there are no such images, or the teacher model cannot be used.
    """
    options = DataOptions.of(settings.run_config(), feddat_home() / "data")
    public = load_public(settings.benchmark, options, settings.pretrain.images).select_columns(
        ["image", "captions"]
    )
    if not settings.teacher.model:
        return public
    kept = feddat_home() / "annotations"
    kept.mkdir(parents=True, exist_ok=True)
    teacher = open_teacher(settings.teacher.model, device=settings.server_device)
    written = annotate_captions(
        teacher,
        public["image"],
        settings.teacher.caption_prompt,
        cache=kept / f"{settings.benchmark}-captions.parquet",
    )
    return public.remove_columns("captions").add_column("captions", [[text] for text in written])
