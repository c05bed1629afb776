"""Time one training step of a generative model: ours, one LoRA's as usual, and the literal one.

    python -m benchmarks.step --task tokens

SmolVLM-256M's architecture with random weights, one picture of 512 × 512 pixels (64 tokens), a question of
64 tokens and an answer of 8. *Forward* and *one LoRA* are the whole model, vision and the logits of all
positions included, as general trainers do; *literal* is FedDAT in three such forwards and two updates. *Kept*
has the picture's features from before. *Logits* is the most that tensors over the vocabulary take at once.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import SmolVLMConfig

from app.adapters import Adapter, adapt
from app.backbones import Backbone
from app.chat import ChatProcessor
from app.conversations import FEATURES, TOLD, told_places
from app.dual_adapter import ROLES
from app.families.generative import Generative, image_features
from app.mkd import Distillation, adapter_step, make_optimizer, mkd_step, reference_step

from .architectures import SMOLVLM_256M

QUESTION, ANSWER = 64, 8
FORWARD, ONE, LITERAL, OURS, KEPT = "forward", "one LoRA, as usual", "literal", "ours", "ours, kept features"


def make_backbone(**entries: Any) -> Backbone:
    """Make a model of random weights; its processor is not used."""
    config = SmolVLMConfig(**{**SMOLVLM_256M, **entries})
    model = Generative().draw(config, 0).eval().requires_grad_(False)
    words = config.get_text_config().vocab_size
    processor = ChatProcessor(None, 0, config.image_token_id, words, frozenset())
    return Backbone("smolvlm-256m", model, processor, fingerprint="")


def make_variants(backbone: Backbone, batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return what is compared; each call takes one step from where the last one ended."""
    model, method = backbone.model.to(device), Distillation(loss="next-token")
    pixels, kept, targets = draw(backbone, batch, device)

    def trained() -> tuple[Any, Any]:
        adapter = adapt(backbone, Adapter("lora").config(backbone), device=device)
        generator = torch.Generator().manual_seed(0)
        for role in ROLES:  # as made, LoRA's B is zero, and all branches are the backbone
            state = adapter.state(role).items()
            adapter.load(role, {name: torch.randn(v.shape, generator=generator) * 0.1 for name, v in state})
        return adapter, make_optimizer(adapter, learning_rate=1e-4, weight_decay=1e-2)

    def forward() -> None:
        with torch.no_grad():
            backbone.features(model, pixels)

    def step(take: Callable[..., Any], learner: Any, optimizer: Any, inputs: Any) -> Callable[[], Any]:
        return lambda: take(learner, optimizer, inputs, targets, method)

    one, optimizer = trained()
    whole = whole_forwards(one)
    return {
        FORWARD: forward,
        ONE: step(adapter_step, whole, optimizer, pixels),
        LITERAL: step(reference_step, *trained(), pixels),
        OURS: step(mkd_step, *trained(), pixels),
        KEPT: step(mkd_step, *trained(), kept),
    }


def whole_forwards(learner: Any) -> Any:
    """Return a learner that is not parted: all of its model is computed, vision and all logits."""
    return SimpleNamespace(trunk=lambda given: given, features=learner, classify=lambda logits: logits)


def draw(
    backbone: Backbone, batch: int, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Draw inputs with pixels, the same with kept features, and the targets."""
    generator = torch.Generator().manual_seed(0)
    config = backbone.model.config
    side = config.vision_config.image_size
    pixels = torch.randn((batch, 1, 3, side, side), generator=generator).to(device)
    features = image_features(backbone.model, {"pixel_values": pixels})
    shown = torch.full((batch, features.shape[1] // batch), config.image_token_id)
    words = torch.randint(10, 1000, (batch, QUESTION + ANSWER), generator=generator)
    tokens = torch.cat([shown, words], dim=1).to(device)
    targets = tokens.clone()
    targets[:, :-ANSWER] = -100
    text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), TOLD: told_places(targets)}
    return {**text, "pixel_values": pixels}, {**text, FEATURES: features}, targets
