"""A teacher by its name: a model that is loaded when it is first asked, or a file of what one said."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .annotations import Annotations, Answer, candidates_json, image_sha256
from .models import TeacherModel, load_model, locate

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

    def captions(self, images: Sequence[Image.Image], prompts: str | Sequence[str]) -> list[str]:
        """Write a text about each image; `prompts` is one for all, or one for each."""

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

    def captions(self, images: Sequence[Image.Image], prompts: str | Sequence[str]) -> list[str]:
        """Write a text about each image."""
        return self.model.captions(images, prompts)

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

    def likeliest_words(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        texts: Sequence[Sequence[int]],
        words: int,
        most: int,
        temperature: float = 1.0,
    ) -> list[tuple[Tensor, Tensor]]:
        """Say how likely the likeliest words are at each token of texts, see `app.likelihood`."""
        found = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            found += self.model.likeliest_words(
                images[part], prompts[part], texts[part], words, most, temperature
            )
        return found

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
            raise ValueError(f"teacher.model = '{path}': no such file")
        self.name = str(path)
        kept = Annotations(path).answers
        revisions = {key.revision for key in kept}
        normalisations = {key.normalise for key in kept if key.candidates}
        if len(revisions) != 1 or len(normalisations) > 1:
            raise ValueError(
                f"teacher.model = '{path}' has the answers of {len(revisions)} revisions and "
                f"{len(normalisations)} normalisations; allowed: one of each"
            )
        self.revision, self.normalise = revisions.pop(), next(iter(normalisations), "")
        self._answers = {key[:3]: answer for key, answer in kept.items()}

    def captions(self, images: Sequence[Image.Image], prompts: str | Sequence[str]) -> list[str]:
        """Look up each image's caption."""
        asked = [prompts] * len(images) if isinstance(prompts, str) else prompts
        return [str(text) for text in self._find(images, asked, "")]

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
                f"teacher.model = '{self.name}': {len(missing)} of {len(keys)} answers are missing, first "
                f"image {image}, prompt {prompt!r}, {f'candidates {wanted}' if wanted else 'caption'}; "
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


def check_teacher(name: str) -> None:
    """Raise a ValueError as `open_teacher`, or where there is neither folder nor model of the name."""
    path = Path(name).expanduser()
    if name.endswith(".parquet"):
        RecordedTeacher(path)
    elif not path.is_dir():
        locate(name)


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
