"""Dynamic weighted pretraining: a student takes over from a large encoder what a language model needs to see.

The objective of stage 1 of MLLM-LLaVA-FL (Zhang et al., WACV 2025, arXiv 2409.06067). With a_t falling,

    h = a_t · P_T(h_encoder) + (1 - a_t) · P_S(h_student),

a connector and a frozen language model, which is asked for the image's caption. No code was published. Ours:
a_t falls linearly from 0.9 to 0 over the first 80 % of the steps (at 1 the student would get no gradient);
both features are averaged to the coarser of the two grids of patches, so that they have the same tokens; a
projection is a linear layer and a LayerNorm, so that a_t weighs like with like; the connector is that of
LLaVA-1.5, two linear layers with a GELU between them (Liu et al., 2024, arXiv 2310.03744, section 3.2).

The student sees the image with an empty text; its features are the last hidden states of its patches.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers import PreTrainedModel

from app.backbones import Backbone
from app.dual_adapter import DualAdapter

from .frozen_models import FrozenEncoder, FrozenLanguageModel
from .trainer import Objective, vary

CARD = """
Then, for {done}, its image features were trained on {images:,} captioned public images by dynamic weighted
pretraining (MLLM-LLaVA-FL, arXiv 2409.06067), beside the frozen encoder `{encoder}` and under the frozen
language model `{language_model}`. From its features that model tells the next token of {held_out:,} held-out
captions at **{loss:.3f}** nats, and at {other_image:.3f} from the features of another image.
"""


def encoder_share(step: int, steps: int) -> float:
    """Compute a_t for a step, from 0: linear from 0.9 to 0 over the first 80 % of the steps."""
    return 0.9 * max(0.0, 1 - step / (0.8 * steps))


def average_to(features: Tensor, grid: int) -> Tensor:
    """Average patches' features (batch, patches, width) to (batch, grid², width), by place."""
    side = math.isqrt(features.shape[1])
    image = features.transpose(1, 2).unflatten(2, (side, side))
    return adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)


def split_aside(captioned: Dataset) -> tuple[Dataset, Dataset]:
    """Split off the last twentieth, at least 1 and at most 500 images, to measure on.

    Raises
    ------
    ValueError
        If there are no captions to learn from: one line that says what is missing.
    """
    if missing := {"image", "captions"} - set(captioned.column_names):
        raise ValueError(f"captioned images without column {min(missing)!r}; needed: image, captions")
    for index, captions in enumerate(captioned["captions"]):
        if isinstance(captions, str) or not captions or not all(captions):
            raise ValueError(
                f"captions of image {index} = {captions!r}; needed: a list of at least one text, none empty"
            )
    if len(captioned) < 2:
        raise ValueError(f"{len(captioned)} captioned images; needed: 2 or more, for one is measured on")
    start = len(captioned) - min(500, max(1, len(captioned) // 20))
    return captioned.select(range(start)), captioned.select(range(start, len(captioned)))


class Student(nn.Module):
    """What learns to see: a copy of a whole backbone or, given a dual adapter, its shared adapter alone.

    Parameters
    ----------
    backbone : Backbone
        The compact model.
    adapter : DualAdapter or None
        On the same backbone; its shared adapter is trained in place.
    """

    def __init__(self, backbone: Backbone, adapter: DualAdapter | None = None) -> None:
        super().__init__()
        self.processor, self.width = backbone.processor, backbone.width
        self.adapter = adapter
        self.model: PreTrainedModel = adapter.model if adapter else copy.deepcopy(backbone.model)
        config: Any = self.model.config
        if not hasattr(config, "image_size"):
            raise ValueError(
                f"backbone = {backbone.name!r} has no grid of patches to pretrain; allowed: a ViLT or a ViT"
            )
        self.grid = config.image_size // config.patch_size
        empty = self.processor.texts([""])
        # A backbone for images alone reads no text.
        length = int(empty["attention_mask"].sum()) if empty else 0
        self.empty = {key: value[:, :length] for key, value in empty.items()}
        if not adapter:
            # What a text's words mean is nothing that images with an empty text can tell.
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_("text_embeddings" not in name)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that learn."""
        if self.adapter:
            return [p for p in self.adapter.parameters_of["shared"].values() if isinstance(p, nn.Parameter)]
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def forward(self, pixels: Tensor) -> Tensor:
        """Map normalised pixels (batch, 3, height, width) to patches' features (batch, grid², width)."""
        if self.adapter:
            self.adapter.activate("student")
        text = {key: value.to(pixels.device).expand(len(pixels), -1) for key, value in self.empty.items()}
        return self.model(**text, pixel_values=pixels).last_hidden_state[:, -(self.grid**2) :]


class DynamicWeighting(Objective):
    """A student with projections and connector, between a frozen encoder and a frozen language model.

    Parameters
    ----------
    student : Student
        What is trained.
    encoder, language_model : FrozenEncoder, FrozenLanguageModel
        On the device where training will be.
    data, held_out : Dataset
        Columns image and captions (list of str), see `split_aside`.
    """

    def __init__(
        self,
        student: Student,
        encoder: FrozenEncoder,
        language_model: FrozenLanguageModel,
        data: Dataset,
        held_out: Dataset,
    ) -> None:
        super().__init__()
        self.student, self.processor = student, student.processor
        self.encoder, self.language_model = encoder, language_model
        self.data, self.held_out = data, held_out
        self.grid = min(student.grid, encoder.grid)
        width = language_model.width
        self.project_encoder, self.project_student = (
            nn.Sequential(nn.Linear(part.width, width), nn.LayerNorm(width)) for part in (encoder, student)
        )
        self.connector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    @property
    def backbone(self) -> PreTrainedModel:
        """The student's."""
        return self.student.model

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters of student, projections and connector."""
        ours = (self.project_encoder, self.project_student, self.connector)
        return [*self.student.trained(), *(parameter for part in ours for parameter in part.parameters())]

    def batches(self, size: int, steps: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Yield images with one of their captions each, drawn evenly, and the encoder's share a_t."""
        for step in range(steps):
            rows = self.data[torch.randint(len(self.data), (size,), generator=generator).tolist()]
            picks = torch.rand(size, generator=generator).tolist()
            chosen = [
                captions[int(pick * len(captions))]
                for captions, pick in zip(rows["captions"], picks, strict=True)
            ]
            batch = self._batch(rows["image"], chosen)
            batch["pixels"] = vary(batch["pixels"], generator)
            yield {**batch, "share": torch.tensor(encoder_share(step, steps))}

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the next-token loss of the captions, from the mixed features."""
        visual = self.mix(batch["pixels"], batch["encoder_pixels"], float(batch["share"]))
        return {"next token": self.language_model.loss(visual, batch["tokens"])}

    def mix(self, pixels: Tensor, encoder_pixels: Tensor, share: float) -> Tensor:
        """Compute the language model's visual tokens (batch, tokens, width).

        Parameters
        ----------
        pixels : Tensor
            The student's, normalised.
        encoder_pixels : Tensor
            The encoder's, uint8; not looked at where `share` is 0.
        share : float
            a_t, in [0, 1).
        """
        mixed = (1 - share) * self.project_student(average_to(self.student(pixels), self.grid))
        if share:
            mixed = mixed + share * self.project_encoder(average_to(self.encoder(encoder_pixels), self.grid))
        return self.connector(mixed)

    def measure(self) -> dict[str, float]:
        """Return the next-token loss of held-out first captions, in nats, from the student's features alone.

        Beside it the loss from the features of another image: what the language model says without looking.
        """
        sums, asked = [0.0, 0.0], 0
        for start in range(0, len(self.held_out), 50):
            rows = self.held_out[start : start + 50]
            batch = self._batch(rows["image"], [captions[0] for captions in rows["captions"]])
            batch = {key: value.to(self.backbone.device) for key, value in batch.items()}
            visual = self.mix(batch["pixels"], batch["encoder_pixels"], 0.0)
            tokens = int((batch["tokens"] >= 0).sum())
            for which, seen in enumerate((visual, visual.roll(1, 0))):
                sums[which] += tokens * self.language_model.loss(seen, batch["tokens"]).item()
            asked += tokens
        return {"loss": sums[0] / asked, "other_image": sums[1] / asked}

    def describe(self, name: str, seed: int, done: str, reached: dict[str, float]) -> str:
        """Write what a model card adds to that of the start."""
        return CARD.format(
            done=done,
            images=len(self.data),
            held_out=len(self.held_out),
            encoder=self.encoder.name,
            language_model=self.language_model.name,
            **reached,
        )

    def _batch(self, images: list[Any], captions: list[str]) -> dict[str, Tensor]:
        pixels = torch.stack([self.processor.image(image) for image in images])
        return {
            "pixels": self.processor.normalise(pixels),
            "encoder_pixels": torch.stack([self.encoder.processor.image(image) for image in images]),
            "tokens": self.language_model.tokens(captions),
        }
