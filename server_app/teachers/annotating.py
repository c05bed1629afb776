"""Ask a teacher about many images: each once, in batches that fit, and what it said is kept."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from .annotations import Annotations, Answer, Key, candidates_json, image_sha256
from .teacher import Teacher, soften


def annotate(
    teacher: Teacher,
    images: Sequence[Image.Image],
    prompts: str | Sequence[str],
    candidates: Sequence[str],
    *,
    cache: Path | None = None,
    temperature: float = 1.0,
    margin: float = 0.0,
) -> Tensor:
    """Ask a teacher which candidate answers each image's prompt.

    Parameters
    ----------
    teacher : Teacher
        It is asked for what the cache does not have; where that is nothing, its model is not loaded.
    images : sequence of Image
        Equal images are asked about once.
    prompts : str or sequence of str
        One for all images, or one for each.
    candidates : sequence of str
        At least two different answers.
    cache : Path or None
        File that keeps every answer; what another run put there is used. Temperature and margin are applied
        to what is kept, so they can be changed without asking again.
    temperature, margin : float
        See `soften`.

    Returns
    -------
    Tensor
        float32, shape (images, candidates): rows sum to 1, or are all zeros where the teacher abstains.

    Raises
    ------
    ValueError
        If the candidates or settings are not allowed, the teacher cannot be loaded, answers with something
        other than a distribution, lacks answers, or runs out of memory with a single image.
    """
    if len(candidates) < 2 or len(set(candidates)) < len(candidates) or not all(map(str.strip, candidates)):
        raise ValueError(f"candidates = {list(candidates)}; allowed: at least two, none empty, none twice")
    if not temperature > 0 or not 0 <= margin <= 1:
        raise ValueError(f"temperature = {temperature}, margin = {margin}; allowed: above 0, and from 0 to 1")

    def ask(some: Sequence[Image.Image], asked: Sequence[str]) -> list[Answer | None]:
        rows = teacher.log_probabilities(some, asked, candidates).float().cpu()
        # True for no NaN, and for nothing that is not a distribution.
        fine = (rows.logsumexp(-1).abs() < 1e-3).tolist()
        return [row.numpy() if good else None for row, good in zip(rows, fine, strict=True)]

    asked = [prompts] * len(images) if isinstance(prompts, str) else prompts
    answers = _ask_once(teacher, images, asked, candidates_json(candidates), teacher.normalise, ask, cache)
    rows = np.stack(answers) if answers else np.empty((0, len(candidates)))  # type: ignore[arg-type]
    return soften(torch.from_numpy(rows), temperature, margin)


def annotate_captions(
    teacher: Teacher,
    images: Sequence[Image.Image],
    prompts: str | Sequence[str],
    *,
    cache: Path | None = None,
) -> list[str]:
    """Ask a teacher for a text about each image; as `annotate`, which has the parameters and errors."""

    def ask(some: Sequence[Image.Image], asked: Sequence[str]) -> list[Answer | None]:
        return [text.strip() or None for text in teacher.captions(some, asked)]

    asked = [prompts] * len(images) if isinstance(prompts, str) else prompts
    return [str(text) for text in _ask_once(teacher, images, asked, "", "", ask, cache)]


def _ask_once(
    teacher: Teacher,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    candidates: str,
    normalise: str,
    ask: Callable[[Sequence[Image.Image], Sequence[str]], list[Answer | None]],
    cache: Path | None,
) -> list[Answer]:
    """Return every image's answer, after asking for those that are not kept, batch by batch."""
    kept = Annotations(cache)
    revision = _revision(teacher, kept)
    keys = [
        Key(image_sha256(image), prompt, candidates, normalise, revision)
        for image, prompt in zip(images, prompts, strict=True)
    ]
    pending = list({key: row for row, key in enumerate(keys) if key not in kept.answers}.values())
    size = min(teacher.batch_size, max(1, len(pending)))
    with Progress(disable=not pending, transient=True) as progress:
        task = progress.add_task("annotating", total=len(pending))
        while pending:
            rows = pending[:size]
            answers = None
            try:
                answers = ask([images[row] for row in rows], [prompts[row] for row in rows])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise ValueError(
                        f"teacher.model = {teacher.name!r} runs out of memory with a single image"
                    ) from None
            if answers is None:  # here the exception no longer holds the memory
                torch.cuda.empty_cache()
                size = max(1, len(rows) // 2)
                progress.console.print(f"out of memory with {len(rows)} images at once; going on with {size}")
                continue
            for row, answer in zip(rows, answers, strict=True):
                if answer is None:
                    what = "no distribution over the candidates" if candidates else "an empty caption"
                    raise ValueError(
                        f"teacher.model = {teacher.name!r} gives {what} for image {keys[row].image} "
                        f"(number {row}), prompt {prompts[row]!r}"
                    )
            kept.add(
                teacher.name,
                {keys[row]: answer for row, answer in zip(rows, answers, strict=True) if answer is not None},
            )
            pending = pending[size:]
            progress.advance(task, len(rows))
    kept.merge()
    return [kept.answers[key] for key in keys]


def _revision(teacher: Teacher, kept: Annotations) -> str:
    """Return the teacher's revision; where it cannot be reached, the one that answered before."""
    try:
        return teacher.revision
    except ValueError:
        if revision := kept.revision_of(teacher.name):
            return revision
        raise
