"""The models that are measured, of random weights, each with inputs of any batch size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import Qwen2_5_VLConfig

from app.adapters import Adapter, adapt
from app.backbones import Backbone
from app.chat import ChatProcessor
from app.conversations import FEATURES, GRIDS, TOLD, told_places
from app.dual_adapter import ROLES, DualAdapter
from app.families.generative import Generative
from app.heads import answer_with_new_head
from app.mkd import Distillation, make_optimizer
from app.quantisation import tensors_in

from .. import step, token_step
from ..architectures import QWEN25_VL_3B
from ..token_step import ANSWER, QUESTION


class Drawn(NamedTuple):
    """A batch: inputs with pixels, inputs as a client keeps them, and targets."""

    whole: dict[str, Tensor]
    kept: dict[str, Tensor]
    targets: Tensor


@dataclass(frozen=True)
class Subject:
    """A model, what is trained in it, and what it is fed.

    Attributes
    ----------
    batches : tuple of int
        Batch sizes that are measured.
    draw : callable
        Makes inputs of a batch size, on a device.
    loss : str
        A key of `app.tasks.TASKS`.
    """

    name: str
    backbone: Backbone
    adapter: Adapter
    loss: str
    batches: tuple[int, ...]
    draw: Callable[[int, torch.device], Drawn]

    @property
    def writes(self) -> bool:
        """Whether it is a language model's step."""
        return self.loss == "next-token"

    def method(self, **settings: Any) -> Distillation:
        """Return the method's settings."""
        return Distillation(loss=self.loss, **settings)

    def size(self) -> int:
        """Return the bytes of its weights."""
        weights = self.backbone.model.parameters()
        return sum(part.nbytes for weight in weights for part in tensors_in(weight.detach()))

    def learner(
        self, device: torch.device, optimizer: str = "adamw", rate: float = 1e-4
    ) -> tuple[DualAdapter, Optimizer]:
        """Make three adapters that differ, and a head where the model has none; always the same."""
        backbone = self.backbone
        if backbone.model.device.type != device.type:  # what is quantised is not moved
            backbone.model.to(device)
        learner = adapt(backbone, self.adapter.config(backbone), device=device)
        if not self.writes:
            answer_with_new_head(learner, backbone.width, step.ANSWERS, 0, "private")
        generator = torch.Generator().manual_seed(0)
        for role in ROLES:  # as made, a LoRA computes nothing, and all branches are the backbone
            state = learner.state(role).items()
            learner.load(role, {name: torch.randn(v.shape, generator=generator) * 0.1 for name, v in state})
        return learner, make_optimizer(learner, rate, 1e-2, optimizer)


# Makes a subject, on a device where it is large; tiny, to try a program.
Make = Callable[[torch.device, bool], Subject]


def vilt(device: torch.device, tiny: bool) -> Subject:
    """Return ViLT-B/32, with bottlenecks."""
    backbone = step.make_backbone("tiny-vilt" if tiny else "vilt-b32")
    few = 8  # pictures are made by the CPU

    def draw(batch: int, where: torch.device) -> Drawn:
        _, _, inputs, scores = step.draw(backbone, min(batch, few), where)

        def filled(tensor: Tensor) -> Tensor:
            return torch.cat([tensor] * -(-batch // few))[:batch]

        inputs = {name: filled(value) for name, value in inputs.items()}
        return Drawn(inputs, inputs, filled(scores))

    batches = (1, 2) if tiny else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    return Subject("vilt-b32", backbone, Adapter(), "bce-scores", batches, draw)


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_TEXT = {**TINY, "num_key_value_heads": 1, "vocab_size": 1200, "pad_token_id": 2}


def smolvlm(device: torch.device, tiny: bool) -> Subject:
    """Return SmolVLM-256M's architecture, with LoRA."""
    small: dict[str, Any] = {
        "vision_config": {**TINY, "image_size": 64, "patch_size": 16},
        "text_config": {**TINY_TEXT, "model_type": "llama", "max_position_embeddings": 128},
        "scale_factor": 2,
        "image_token_id": 1100,
    }
    backbone = token_step.make_backbone(**(small if tiny else {}))

    def draw(batch: int, where: torch.device) -> Drawn:
        return Drawn(*token_step.draw(backbone, batch, where))

    batches = (1, 2) if tiny else (1, 4, 16, 64)
    return Subject("smolvlm-256m", backbone, Adapter("lora"), "next-token", batches, draw)


TINY_QWEN = {
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    },
    "text_config": {
        **TINY_TEXT,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    },
    "image_token_id": 1100,
    "video_token_id": 1101,
    "vision_start_token_id": 1102,
    "vision_end_token_id": 1103,
}


def qwen(device: torch.device, tiny: bool) -> Subject:
    """Return Qwen2.5-VL-3B's architecture in bfloat16, made where it is to compute, with LoRA."""
    entries: dict[str, Any] = TINY_QWEN if tiny else QWEN25_VL_3B
    config: Any = Qwen2_5_VLConfig(**entries)
    with device:
        model = Generative().draw(config, 0, torch.bfloat16).eval().requires_grad_(False)
    processor = ChatProcessor(None, 0, config.image_token_id, config.text_config.vocab_size, frozenset())
    backbone = Backbone("qwen2.5-vl-3b", model, processor, fingerprint="")
    side = 4 if tiny else 32  # patches; a picture of 448 × 448 pixels is 256 tokens

    def draw(batch: int, where: torch.device) -> Drawn:
        return _draw_qwen(model.base_model, side, batch, where)

    batches = (1, 2) if tiny else (1, 4, 16, 64)
    return Subject(backbone.name, backbone, Adapter("lora"), "next-token", batches, draw)


def _draw_qwen(model: Any, side: int, batch: int, device: torch.device) -> Drawn:
    config, seen = model.config, model.config.vision_config
    generator = torch.Generator().manual_seed(0)
    shown = (side // seen.spatial_merge_size) ** 2
    picture = [config.vision_start_token_id, *[config.image_token_id] * shown, config.vision_end_token_id]
    words = torch.randint(10, 1000, (batch, QUESTION + ANSWER), generator=generator)
    tokens = torch.cat([torch.tensor(picture).expand(batch, -1), words], dim=1)
    targets = tokens.clone()
    targets[:, :-ANSWER] = -100
    pixels = seen.in_channels * seen.temporal_patch_size * seen.patch_size**2
    text = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == config.image_token_id).long(),
        TOLD: told_places(targets),
        GRIDS: torch.tensor([[1, side, side]]).expand(batch, -1),
    }
    positions, _ = model.get_rope_index(
        tokens, mm_token_type_ids=text["mm_token_type_ids"], image_grid_thw=text[GRIDS]
    )
    text = {name: value.to(device) for name, value in text.items()}
    features = torch.randn((1, batch * shown, seen.out_hidden_size), generator=generator)
    patches = torch.randn((batch * side**2, pixels), generator=generator)
    whole = {**text, "pixel_values": patches.to(device, torch.bfloat16)}
    kept = {FEATURES: features.to(device, torch.bfloat16), "position_ids": positions.to(device)}
    return Drawn(whole, text | kept, targets.to(device))
