"""The benchmark `scenes`: drawn pictures of a few objects, and sentences about them whose truth is known."""

import datasets
import numpy as np

from .captions import captions
from .drawing import draw, encode
from .partition import SPLITS, DataOptions, require_one_of
from .store import cached
from .world import COLORS, NUMBER_WORDS, PLACES, SHAPES, SIZES, TEXTURES, World, random_scene

__all__ = ["COLORS", "NUMBER_WORDS", "PLACES", "SHAPES", "SIZES", "TEXTURES", "load_public"]

# Changes with the drawing code, so that pictures kept by an older one are not used.
VERSION = 1

# Part of every seed, so that no split shares its chance with another.
_STREAMS = {"train": 0, "validation": 1, "test": 2}
_PUBLIC_STREAM = 10


def load_public(options: DataOptions, num_images: int, split: str) -> datasets.Dataset:
    """Load captioned scenes that no client holds: columns image, captions (list of str), example_id."""
    require_one_of("split", split, SPLITS)
    key = {"version": VERSION, "public": split, "seed": options.seed, "images": num_images}
    splits, _ = cached(
        options.cache_dir / "scenes",
        key,
        lambda: (datasets.DatasetDict({split: _draw_public(options.seed, num_images, split)}), {}),
    )
    return splits[split]


def _draw_public(seed: int, num_images: int, split: str) -> datasets.Dataset:
    rows: dict[str, list] = {"image": [], "captions": [], "example_id": []}
    for index in range(num_images):
        rng = np.random.default_rng([seed, _PUBLIC_STREAM + _STREAMS[split], index])
        scene = random_scene(rng, World())
        rows["captions"].append(captions(scene, rng))
        rows["image"].append({"bytes": encode(draw(scene, "varied", rng)), "path": None})
        rows["example_id"].append(f"public/{split}/{index}")
    features = datasets.Features(
        image=datasets.Image(),
        captions=datasets.List(datasets.Value("string")),
        example_id=datasets.Value("string"),
    )
    return datasets.Dataset.from_dict(rows, features=features)
