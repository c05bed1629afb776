"""Time log-likelihood scoring from a shared prefill against a full forward for every candidate.

    python -m benchmarks.scoring

builds a LLaVA with random weights and as many image tokens as the published one (24 × 24), scores the same
candidates both ways in turn, and prints the largest difference and the ratio of median times. It exits with 1
when the scores differ by more than the tolerance.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from app.backbones import choose_device
from app.likelihood import log_likelihoods, reference_log_likelihoods

from .figures import machine_of, verdict, write_figures

TOLERANCE = 1e-5
GRID, PATCH, WIDTH, VOCABULARY, IMAGE_TOKEN = 24, 4, 64, 1000, 999
PROMPT_TOKENS, LONGEST_ANSWER = 16, 4


def build(device: torch.device) -> LlavaForConditionalGeneration:
    """Make a LLaVA of random weights in float32; they are large, so that scores depend on the image."""
    shape: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**shape, num_hidden_layers=2, image_size=GRID * PATCH, patch_size=PATCH)
    language = LlamaConfig(
        **shape,
        num_hidden_layers=4,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=language, image_token_index=IMAGE_TOKEN)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().to(device)  # type: ignore[arg-type]


def draw(
    images: int, candidates: int, generator: torch.Generator, device: torch.device
) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Draw images with a prompt each, and candidates of one to `LONGEST_ANSWER` tokens."""
    words = torch.randint(IMAGE_TOKEN, (images, PROMPT_TOKENS), generator=generator)
    ids = torch.cat([torch.full((images, GRID * GRID), IMAGE_TOKEN), words], dim=1)
    pixels = torch.randn((images, 3, GRID * PATCH, GRID * PATCH), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    answers = [
        torch.randint(IMAGE_TOKEN, (1 + index % LONGEST_ANSWER,), generator=generator).tolist()
        for index in range(candidates)
    ]
    return {name: value.to(device) for name, value in inputs.items()}, answers


def measure(candidates: int, images: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Score both ways in turn; return seconds (medians), their ratio and the largest difference."""
    torch.manual_seed(0)
    model = build(device)
    inputs, answers = draw(images, candidates, torch.Generator().manual_seed(0), device)
    ways = {
        "shared": lambda: log_likelihoods(model, inputs, [answers] * images),
        "full": lambda: reference_log_likelihoods(model, inputs, answers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, Tensor] = {}
    for repeat in range(repeats + 1):
        for name, score in ways.items():
            started = time.perf_counter()
            scores[name] = score().cpu()
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # Whatever else the machine does, it does to both halves of a pair.
    ratio = statistics.median(
        full / shared for full, shared in zip(seconds["full"], seconds["shared"], strict=True)
    )
    difference = float((scores["shared"] - scores["full"]).abs().max())
    return {"candidates": candidates, **medians, "ratio": ratio, "difference": difference}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, nargs="+", default=[2, 10, 30], help="how many, a row each")
    parser.add_argument("--images", type=int, default=2, help="images at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    rows = [measure(number, options.images, options.repeats, device) for number in options.candidates]
    machine = machine_of(device)
    table = Table(
        *("candidates", "full forwards", "shared prefill", "times as fast", "largest difference"),
        title=f"{options.images} images of {GRID * GRID} tokens, float32, {machine}",
    )
    for row in rows:
        table.add_row(
            f"{row['candidates']:.0f}",
            f"{row['full']:.3f} s",
            f"{row['shared']:.3f} s",
            f"{row['ratio']:.1f}",
            f"{row['difference']:.1e}",
        )
    Console().print(table)
    write_figures(options.json, machine, {"images": options.images, "rows": rows})
    passed = all(row["difference"] <= TOLERANCE for row in rows)
    return verdict(passed, f"tolerance {TOLERANCE:.0e}")


if __name__ == "__main__":
    sys.exit(main())
