"""Count the FLOPs of a training step of Qwen2.5-VL-3B's architecture, of which no weight is there.

    python -m benchmarks.large_step

counts what `benchmarks.token_step` times, for a model too large for that, on PyTorch's ``meta`` device, where
tensors have shapes and no values. Whatever is asked for values is there in full: the picture's grid, from
which its windows follow, and which tokens are answers. The model's check that pictures and places are as many
is left out, and attention is written out as matrix products. It exits with 1 when our step with kept features
takes more than 0.55 of the literal one's FLOPs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from app.adapters import Adapter, adapt
from app.backbones import Backbone
from app.chat import ChatProcessor
from app.conversations import FEATURES, GRIDS, TOLD, told_places
from app.families.generative import Generative, image_features
from app.mkd import Distillation, adapter_step, make_optimizer, mkd_step, reference_step
from app.tasks import Tokens

from .architectures import QWEN25_VL_3B
from .figures import machine_of, verdict, write_figures
from .step import count_flops
from .token_step import ANSWER, FORWARD, KEPT, LITERAL, ONE, OURS, QUESTION

LIMIT = 0.55
META = torch.device("meta")
# Patches of a picture of 504 × 504 pixels, four of which make a token.
ROWS = COLUMNS = 36


class _TokensThere(Tokens):
    """Next tokens of logits that are elsewhere than what says which of them count."""

    def pair(self, logits: Any, targets: Tensor) -> tuple[Any, Tensor]:
        logits, told = super().pair(logits, targets)
        device = logits.device if isinstance(logits, Tensor) else logits.hidden.device
        return logits, told.to(device)


class _Distillation(Distillation):
    task = _TokensThere()


def make_backbone(device: torch.device = META, **entries: Any) -> Backbone:
    """Make a model, on `meta` without values; its processor is not used."""
    config = Qwen2_5_VLConfig(**{**QWEN25_VL_3B, **entries})
    config._attn_implementation = "eager"
    with device:
        model = Generative().draw(config, 0).eval().requires_grad_(False)
    # Positions of patches are made of values; from here on they are where the model is.
    model.base_model.visual.rotary_pos_emb.register_forward_pre_hook(
        lambda _, given: (given[0], given[1].to(given[0].device))
    )
    words = config.get_text_config().vocab_size
    processor = ChatProcessor(None, 0, config.image_token_id, words, frozenset())
    return Backbone("qwen2.5-vl-3b", model, processor, fingerprint="")


def make_variants(
    backbone: Backbone, device: torch.device = META, grid: tuple[int, int] = (ROWS, COLUMNS)
) -> dict[str, Callable[[], Any]]:
    """Return what is compared, for one example with a picture of so many patches."""
    model, method = backbone.model, _Distillation(loss="next-token")
    seen = model.config.vision_config
    grids = torch.tensor([[1, *grid]])
    patch_values = seen.in_channels * seen.temporal_patch_size * seen.patch_size**2
    picture = {"pixel_values": torch.zeros(grid[0] * grid[1], patch_values, device=device), GRIDS: grids}
    features = image_features(model, picture)
    tokens = torch.full((1, features.shape[1] + QUESTION + ANSWER), 10)
    tokens[:, : features.shape[1]] = model.config.image_token_id
    targets = tokens.clone()
    targets[:, :-ANSWER] = -100
    text = {
        "input_ids": tokens.to(device),
        "attention_mask": torch.ones_like(tokens, device=device),
        "position_ids": torch.zeros((3, *tokens.shape), dtype=torch.long, device=device),
        TOLD: told_places(targets).to(device),
    }
    whole, kept = {**text, **picture}, {**text, GRIDS: grids, FEATURES: features}
    with device:
        adapter = adapt(backbone, Adapter("lora").config(backbone))
    optimizer = make_optimizer(adapter, learning_rate=1e-4, weight_decay=1e-2)
    one = SimpleNamespace(trunk=lambda given: given, features=adapter, classify=lambda logits: logits)

    def forward() -> None:
        with torch.no_grad():
            backbone.features(model, whole)

    def step(take: Callable[..., Any], learner: Any, inputs: Any) -> Callable[[], Any]:
        return lambda: take(learner, optimizer, inputs, targets, method)

    return {
        FORWARD: forward,
        ONE: step(adapter_step, one, whole),
        LITERAL: step(reference_step, adapter, whole),
        OURS: step(mkd_step, adapter, whole),
        KEPT: step(mkd_step, adapter, kept),
    }


def count(variants: dict[str, Callable[[], Any]]) -> dict[str, int]:
    """Return the FLOPs of each."""
    with patch.object(modeling_qwen2_5_vl, "torch_compilable_check", lambda *_, **__: None):
        return {name: count_flops(call) for name, call in variants.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print the table, return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    backbone = make_backbone()
    flops = count(make_variants(backbone))
    weights = sum(parameter.numel() for parameter in backbone.model.parameters())
    table = Table(
        "", "GFLOPs an example", "of literal", title=f"{backbone.name}, {weights / 1e9:.2f} billion"
    )
    for name, value in flops.items():
        table.add_row(name, f"{value / 1e9:.0f}", f"{value / flops[LITERAL]:.2f}")
    Console().print(table)
    write_figures(options.json, machine_of(), {"weights": weights, "flops": flops})
    share = flops[KEPT] / flops[LITERAL]
    return verdict(share <= LIMIT, f"{share:.2f} of the literal step's FLOPs, limit {LIMIT}")


if __name__ == "__main__":
    sys.exit(main())
