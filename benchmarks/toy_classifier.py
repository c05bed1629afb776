"""A toy teacher for CIFAR: a small network trained on images that no client, pool or test set has.

It stands for a multimodal LLM where none can be had, and writes what it says of the pool and of the test set
as annotations (`server_app.teachers.annotations`), for ``teacher.model = "FILE.parquet"``. It learns from
rows ``--first`` to ``--last`` of each class, in their order: with `public-per-class` at least ``--last``
these are no client's, and with `public.examples` at most ``--first`` times the classes not the pool's.

Run ``python -m benchmarks.toy_classifier --file cifar10.parquet --out teacher.parquet``.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from data_partitions.long_tail import QUESTION
from server_app.teachers.annotations import Annotations, Key, candidates_json, image_sha256

BATCH = 64


def network(classes: int) -> nn.Sequential:
    """Make a convolutional network for 32 × 32 pixels."""

    def block(width: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    widths = [(3, 32), (32, 48), (48, 96), (96, 128)]
    blocks = [[*block(*pair), *([nn.MaxPool2d(2)] if index else [])] for index, pair in enumerate(widths)]
    layers = [layer for block in blocks for layer in block]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def varied(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the images (batch, 3, 32, 32) and shift all by up to four pixels."""
    flip = torch.rand(len(pixels), generator=generator) < 0.5
    pixels = torch.where(flip.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    down, right = torch.randint(0, 9, (2,), generator=generator).tolist()
    return pad(pixels, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]


def decode(images: Sequence[dict]) -> list[Image.Image]:
    """Open encoded images."""
    return [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in images]


def tensors(images: Sequence[Image.Image]) -> Tensor:
    """Return pixels (images, 3, 32, 32) of zero mean."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 128 - 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, annotate, and say how good the teacher is."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.toy_classifier", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--file", type=Path, required=True, help="cifar10.parquet or cifar100.parquet")
    parser.add_argument("--out", type=Path, required=True, help="parquet file for the annotations")
    parser.add_argument("--first", type=int, default=500, help="first training row of a class to learn from")
    parser.add_argument("--last", type=int, default=2500, help="the row after the last one")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)

    table = pq.read_table(options.file, columns=["image", "label", "label_name", "split"])
    label, split = table["label"].to_numpy(), np.array(table["split"].to_pylist())
    names = dict(sorted(zip(label.tolist(), table["label_name"].to_pylist(), strict=True)))
    by_class = [np.flatnonzero((label == one) & (split == "train")) for one in names]
    learnt = np.concatenate([rows[options.first : options.last] for rows in by_class])
    annotated = np.concatenate(
        [*(rows[: options.first] for rows in by_class), np.flatnonzero(split == "test")]
    )

    pixels = tensors(decode(table["image"].take(learnt).to_pylist()))
    labels = torch.from_numpy(label[learnt]).long()
    model = network(len(names))
    steps = options.epochs * len(learnt) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in track(range(steps), "training the toy teacher"):
        rows = torch.randint(len(learnt), (BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(varied(pixels[rows], generator)), labels[rows]).backward()
        optimizer.step()
        schedule.step()

    model.eval()
    images = decode(table["image"].take(annotated).to_pylist())
    with torch.no_grad():
        said = torch.cat(
            [model(tensors(images[i : i + 500])).log_softmax(1) for i in range(0, len(images), 500)]
        )
    right = said.argmax(1).numpy() == label[annotated]
    revision = (
        f"toy classifier, {options.epochs} epochs, rows {options.first}:{options.last}, seed {options.seed}"
    )
    candidates = candidates_json(list(names.values()))
    kept = Annotations(options.out)
    kept.add(
        "toy classifier",
        {
            Key(image_sha256(image), QUESTION, candidates, "sum", revision): row.numpy()
            for image, row in zip(images, said, strict=True)
        },
    )
    kept.merge()
    tested = split[annotated] == "test"
    print(
        f"learnt from {len(learnt)} images; right on {right[tested].mean():.1%} of {tested.sum()} test images"
    )
    print(f"annotated {len(images)} images in {options.out.resolve()}")


if __name__ == "__main__":
    main()
