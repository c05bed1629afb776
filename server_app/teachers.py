"""Teachers: what a multimodal model on the server says about public images.

A teacher answers in two ways: a caption for an image, or log-probabilities over candidate answers to a prompt
about it. `open_teacher` gives one by name, `annotate` and `annotate_captions` ask it about many images, each
once, and keep what it said; a teacher whose every answer is kept is never loaded.

    teacher = open_teacher("llava-hf/llava-1.5-7b-hf", normalise="pmi")
    q = annotate(teacher, images, "what is in the picture ?", ["a cat", "a dog"], cache=Path("kept.parquet"))

Run ``python -m server_app.teachers --model NAME --data FILE --out FILE`` to annotate beforehand, elsewhere.
"""

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from app.settings import feddat_home
from data_partitions.benchmarks import BENCHMARKS, DataOptions, load_public

from .annotations import Annotations, Answer, Key, candidates_json, image_sha256
from .teacher_models import TeacherModel, load_model, locate

NORMALISATIONS = ("sum", "mean", "pmi")
# Mid-grey, of a size that every model's own resizing accepts.
BLANK = Image.new("RGB", (224, 224), (128, 128, 128))


class Teacher(Protocol):
    """What `annotate` asks of a teacher.

    Attributes
    ----------
    name : str
        The name it was opened by.
    normalise : str
        How it makes candidates' scores comparable.
    batch_size : int
        Images that it takes at once.
    """

    name: str
    normalise: str
    batch_size: int

    @property
    def revision(self) -> str:
        """Tells which weights answer: the same for the same, found without loading them."""

    def captions(self, images: Sequence[Image.Image], prompt: str) -> list[str]:
        """Write a text about each image."""

    def log_probabilities(
        self, images: Sequence[Image.Image], prompts: Sequence[str], candidates: Sequence[str]
    ) -> Tensor:
        """Return the logarithm of each candidate's probability, float32 (images, candidates)."""


class ModelTeacher:
    """A model by name, loaded when it is first asked.

    Parameters
    ----------
    name : str
        A folder or hub id, see `load_model`.
    normalise : str
        What is compared between candidates. ``"sum"``: their log-likelihoods. ``"mean"``: those divided by
        the number of tokens, so that long candidates are not the unlikely ones. ``"pmi"``: the sum minus that
        for a blank image, so that none wins that words alone make likely (pointwise mutual information).
    device : str
        As `app.backbones.choose_device` takes it.
    batch_size : int
        Images that it takes at once.
    """

    def __init__(self, name: str, normalise: str = "sum", device: str = "auto", batch_size: int = 8) -> None:
        if normalise not in NORMALISATIONS:
            raise ValueError(f"normalise = {normalise!r}; allowed: {', '.join(NORMALISATIONS)}")
        self.name, self.normalise, self.batch_size, self._device = name, normalise, batch_size, device
        self._blank: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    @functools.cached_property
    def revision(self) -> str:
        """A hash of the folder's files, or the hub's commit."""
        return locate(self.name).revision

    @functools.cached_property
    def model(self) -> TeacherModel:
        """The model, loaded at the first use."""
        return load_model(self.name, self._device)

    def captions(self, images: Sequence[Image.Image], prompt: str) -> list[str]:
        """Write a text about each image."""
        return self.model.captions(images, prompt)

    def log_probabilities(
        self, images: Sequence[Image.Image], prompts: Sequence[str], candidates: Sequence[str]
    ) -> Tensor:
        """Return the logarithm of each candidate's probability, float32 (images, candidates)."""
        scores, lengths = self.model.log_likelihoods(images, prompts, candidates)
        if self.normalise == "mean":
            scores = scores / lengths
        elif self.normalise == "pmi":
            scores = scores - self._blank_scores(prompts, candidates)
        return scores.log_softmax(-1)

    def _blank_scores(self, prompts: Sequence[str], candidates: Sequence[str]) -> Tensor:
        keys = [(prompt, tuple(candidates)) for prompt in prompts]
        if new := list(dict.fromkeys(key for key in keys if key not in self._blank)):
            asked = [prompt for prompt, _ in new]
            scores, _ = self.model.log_likelihoods([BLANK] * len(new), asked, candidates)
            self._blank.update(zip(new, scores, strict=True))
        return torch.stack([self._blank[key] for key in keys])


class RecordedTeacher:
    """Answers made elsewhere, in a file as `Annotations` describes it.

    Raises
    ------
    ValueError
        If the file cannot be read, or holds the answers of several teachers or normalisations.
    """

    batch_size = sys.maxsize

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"teacher = '{path}': no such file")
        self.name = str(path)
        kept = Annotations(path).answers
        revisions = {key.revision for key in kept}
        normalisations = {key.normalise for key in kept if key.candidates}
        if len(revisions) != 1 or len(normalisations) > 1:
            raise ValueError(
                f"teacher = '{path}' has the answers of {len(revisions)} revisions and {len(normalisations)} "
                "normalisations; allowed: one of each"
            )
        self.revision, self.normalise = revisions.pop(), next(iter(normalisations), "")
        self._answers = {key[:3]: answer for key, answer in kept.items()}

    def captions(self, images: Sequence[Image.Image], prompt: str) -> list[str]:
        """Look up each image's caption."""
        return [str(text) for text in self._find(images, [prompt] * len(images), "")]

    def log_probabilities(
        self, images: Sequence[Image.Image], prompts: Sequence[str], candidates: Sequence[str]
    ) -> Tensor:
        """Look up each image's distribution over the candidates."""
        found = self._find(images, prompts, candidates_json(candidates))
        return torch.from_numpy(np.stack(found))  # type: ignore[arg-type]

    def _find(self, images: Sequence[Image.Image], prompts: Sequence[str], candidates: str) -> list[Answer]:
        keys = [
            (image_sha256(image), prompt, candidates) for image, prompt in zip(images, prompts, strict=True)
        ]
        if missing := [key for key in keys if key not in self._answers]:
            image, prompt, wanted = missing[0]
            raise ValueError(
                f"teacher = '{self.name}': {len(missing)} of {len(keys)} answers are missing, first image "
                f"{image}, prompt {prompt!r}, {f'candidates {wanted}' if wanted else 'caption'}; "
                "it was made for other images, prompts or candidates"
            )
        return [self._answers[key] for key in keys]


def open_teacher(name: str, *, normalise: str = "sum", device: str = "auto", batch_size: int = 8) -> Teacher:
    """Return a teacher by name, without loading its weights.

    Parameters
    ----------
    name : str
        A ``.parquet`` file of annotations made elsewhere; or the folder or hub id of an image-text-to-text
        model (LLaVA, LLaVA-OneVision, Qwen-VL, SmolVLM, InternVL and others) or of a CLIP.
    normalise, device, batch_size
        As `ModelTeacher` takes them; a file has its own normalisation.

    Raises
    ------
    ValueError
        If an option is not allowed, or a file cannot be used. A model that cannot be loaded is found out when
        it is first asked.
    """
    if name.endswith(".parquet"):
        return RecordedTeacher(Path(name).expanduser())
    return ModelTeacher(name, normalise, device, batch_size)


def soften(log_probabilities: Tensor, temperature: float = 1.0, margin: float = 0.0) -> Tensor:
    """Make distributions of log-probabilities, and let the teacher abstain where it is unsure.

    Parameters
    ----------
    log_probabilities : Tensor
        Shape (images, candidates).
    temperature : float
        Above 1 evens the distribution out, below 1 sharpens it.
    margin : float
        It abstains where the most likely candidate is less than so much more probable than the second.

    Returns
    -------
    Tensor
        float32 (images, candidates): rows sum to 1. Where the teacher abstains the row is all zeros, which
        adds nothing to KL(q ‖ p); ``q.sum(1) > 0`` tells the others.
    """
    distribution = (log_probabilities.float() / temperature).softmax(-1)
    first, second = distribution.topk(2, dim=-1).values.unbind(-1)
    return distribution * (first - second >= margin)[:, None]


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
    teacher: Teacher, images: Sequence[Image.Image], prompt: str, *, cache: Path | None = None
) -> list[str]:
    """Ask a teacher for a caption of each image; as `annotate`, which has the parameters and errors."""

    def ask(some: Sequence[Image.Image], asked: Sequence[str]) -> list[Answer | None]:
        return [text.strip() or None for text in teacher.captions(some, prompt)]

    return [str(text) for text in _ask_once(teacher, images, [prompt] * len(images), "", "", ask, cache)]


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
                        f"teacher = {teacher.name!r} runs out of memory with a single image"
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
                        f"teacher = {teacher.name!r} gives {what} for image {keys[row].image} "
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


def load_images(data: str, limit: int) -> Dataset:
    """Load images to annotate.

    Parameters
    ----------
    data : str
        A parquet file with a column ``image`` of encoded images, or a benchmark with a public pool.
    limit : int
        At most so many; 0 for all of a file, for a pool it is the number to draw.

    Raises
    ------
    ValueError
        If there is no such file, column or pool.
    """
    if data in BENCHMARKS:
        if not limit:
            raise ValueError(f"--data {data}: say with --limit how many public images to draw")
        return load_public(data, DataOptions(cache_dir=feddat_home() / "data"), limit)
    if not Path(data).is_file():
        raise ValueError(f"--data {data}: no such file; allowed: a parquet file, or {', '.join(BENCHMARKS)}")
    dataset = Dataset.from_parquet(data)
    if "image" not in dataset.column_names:
        raise ValueError(f"--data {data}: no column image; it has {', '.join(dataset.column_names)}")
    return dataset.select(range(min(limit or len(dataset), len(dataset)))).cast_column("image", ImageColumn())


def _candidates(text: str) -> list[str]:
    """Read candidates from a file, one a line, or from a list with commas."""
    path = Path(text)
    parts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Annotate images and keep the answers in a file."""
    parser = argparse.ArgumentParser(
        prog="python -m server_app.teachers",
        description="Annotate images by a teacher; a run that was interrupted goes on where it was.",
    )
    parser.add_argument(
        "--model", required=True, help="folder or hub id of a model, or a parquet of annotations"
    )
    parser.add_argument(
        "--data", required=True, help="parquet with a column image, or a benchmark (its public pool)"
    )
    parser.add_argument("--out", type=Path, required=True, help="parquet file that keeps the answers")
    parser.add_argument(
        "--prompt", required=True, help="what to ask; for a CLIP, {} stands for the candidate"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--candidates", type=_candidates, help="answers to score: a list with commas, or a file"
    )
    what.add_argument("--captions", action="store_true", help="write captions")
    parser.add_argument("--normalise", choices=NORMALISATIONS, default="sum", help="see ModelTeacher")
    parser.add_argument("--temperature", type=float, default=1.0, help="for the summary; not kept")
    parser.add_argument("--margin", type=float, default=0.0, help="for the summary; not kept")
    parser.add_argument("--batch-size", type=int, default=8, help="images at once; halved when memory is out")
    parser.add_argument("--limit", type=int, default=0, help="at most so many images; 0: all of a file")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    try:
        if options.batch_size < 1 or options.limit < 0:
            raise ValueError("--batch-size must be at least 1, --limit at least 0")
        teacher = open_teacher(
            options.model, normalise=options.normalise, device=options.device, batch_size=options.batch_size
        )
        images = load_images(options.data, options.limit)["image"]
        if options.captions:
            captions = annotate_captions(teacher, images, options.prompt, cache=options.out)
            print("\n".join(captions[:3]))
        else:
            found = annotate(
                teacher,
                images,
                options.prompt,
                options.candidates,
                cache=options.out,
                temperature=options.temperature,
                margin=options.margin,
            )
            sure = found[found.sum(1) > 0]
            chosen = Counter(options.candidates[index] for index in sure.argmax(1).tolist())
            print(f"answers: {', '.join(f'{answer} {count}' for answer, count in chosen.most_common())}")
            print(f"abstained: {len(found) - len(sure)} of {len(found)}")
    except (ValueError, OSError) as error:  # the second where an image cannot be decoded
        parser.error(str(error))
    print(f"{len(images)} images annotated in {options.out.resolve()}")


if __name__ == "__main__":
    main()
