"""The benchmark `scenes`: drawn pictures of a few objects, and texts about them whose truth is known."""

import datasets
import numpy as np

from ..benchmark import Benchmark
from ..options import DataOptions
from ..partition import (
    SPLITS,
    Partition,
    Row,
    answer_list,
    client_name,
    pool_of,
    require_one_of,
    scored_split,
)
from ..store import Facts, cached
from .captions import captions
from .clients import CLIENTS, SceneClient
from .drawing import STYLES, draw, encode
from .questions import scene_for
from .world import World, pick, random_scene

# Changes with whatever changes a picture or a text, so that data kept by older code are not used.
VERSION = 2

# Second part of every seed: public data are drawn from chance that no client's split uses.
_STREAMS = {split: number for number, split in enumerate(SPLITS)}
_PUBLIC_STREAMS = {split: 10 + number for number, split in enumerate(SPLITS)}
_QUESTION_STREAMS = {split: 20 + number for number, split in enumerate(SPLITS)}


def names(options: DataOptions) -> list[str]:
    """Name the natural clients."""
    return list(_clients(options))


def load(partition_id: int, num_partitions: int, options: DataOptions) -> Partition:
    """Draw a client's data, or load what was drawn before; each partition draws scenes of its own."""
    clients = _clients(options)
    test = options.test_examples or 200
    sizes = {"train": options.train_examples or 600, "validation": (test + 1) // 2, "test": test}
    key = {
        "version": VERSION,
        "heterogeneity": options.heterogeneity,
        "partition": partition_id,
        "seed": options.seed,
        "sizes": sizes,
    }
    client = list(clients.values())[partition_id % len(clients)]
    splits, facts = cached(
        options.cache_dir / "scenes", key, lambda: _draw_client(client, options.seed, partition_id, sizes)
    )
    return Partition(
        partition_id=partition_id,
        name=client_name(clients, partition_id),
        answers=tuple(facts["answers"]),
        **splits,
        unanswerable=facts["unanswerable"],
        skipped=dict.fromkeys(SPLITS, 0),
    )


def load_public(options: DataOptions, num_images: int, split: str) -> datasets.Dataset:
    """Draw captioned scenes, or load what was drawn before: columns image, captions, example_id."""
    require_one_of("split", split, SPLITS)
    key = {"version": VERSION, "public": split, "seed": options.seed, "images": num_images}
    splits, _ = cached(
        options.cache_dir / "scenes", key, lambda: (_draw_public(options.seed, num_images, split), {})
    )
    return splits[split]


def load_public_questions(options: DataOptions, num_images: int, split: str, style: str) -> datasets.Dataset:
    """Draw scenes with a question each, or load what was drawn before: columns image, question, answer."""
    require_one_of("split", split, SPLITS)
    require_one_of("style", style, STYLES)
    key = {
        "version": VERSION,
        "questions": split,
        "style": style,
        "seed": options.seed,
        "images": num_images,
    }
    splits, _ = cached(
        options.cache_dir / "scenes",
        key,
        lambda: (_draw_questions(options.seed, num_images, split, style), {}),
    )
    return splits[split]


def load_pool(options: DataOptions) -> datasets.DatasetDict:
    """Draw the server's public examples, or load what was drawn before.

    No client and no pretraining has one of their scenes.
    """
    rows = load_public_questions(options, options.public_examples, "test", "varied")
    encoded = rows.cast_column("image", datasets.Image(decode=False))
    ids = [f"public/question/{index}" for index in range(len(rows))]
    return pool_of(encoded["image"], rows["question"], rows["answer"], ids)


def _clients(options: DataOptions) -> dict[str, SceneClient]:
    require_one_of("heterogeneity", options.heterogeneity, CLIENTS)
    return CLIENTS[options.heterogeneity]


def _draw_client(
    client: SceneClient, seed: int, partition_id: int, sizes: dict[str, int]
) -> tuple[datasets.DatasetDict, Facts]:
    drawn: dict[str, list[Row]] = {split: [] for split in sizes}
    for split, size in sizes.items():
        for index in range(size):
            rng = np.random.default_rng([seed, _STREAMS[split], partition_id, index])
            query = pick(rng, pick(rng, client.kinds))(rng, client.world)
            image = encode(draw(scene_for(rng, client.world, query), client.style, rng))
            example_id = f"{partition_id}/{split}/{index}"
            picture = {"bytes": image, "path": None}
            drawn[split].append(Row.asking(picture, query.text, query.answer, example_id))
    answers = answer_list(answer for row in drawn["train"] for answer in row.answers)
    splits, unanswerable = datasets.DatasetDict(), {}
    for split, rows in drawn.items():
        splits[split], unanswerable[split] = scored_split(rows, answers)
    return splits, {"answers": answers, "unanswerable": unanswerable}


def _draw_public(seed: int, num_images: int, split: str) -> datasets.DatasetDict:
    rows: dict[str, list] = {"image": [], "captions": [], "example_id": []}
    for index in range(num_images):
        rng = np.random.default_rng([seed, _PUBLIC_STREAMS[split], index])
        scene = random_scene(rng, World())
        rows["captions"].append(captions(scene, rng))
        rows["image"].append({"bytes": encode(draw(scene, "varied", rng)), "path": None})
        rows["example_id"].append(f"public/{split}/{index}")
    features = datasets.Features(
        image=datasets.Image(),
        captions=datasets.List(datasets.Value("string")),
        example_id=datasets.Value("string"),
    )
    return datasets.DatasetDict({split: datasets.Dataset.from_dict(rows, features=features)})


def _draw_questions(seed: int, num_images: int, split: str, style: str) -> datasets.DatasetDict:
    rows: dict[str, list] = {"image": [], "question": [], "answer": []}
    client = SceneClient(style=style)
    for index in range(num_images):
        rng = np.random.default_rng([seed, _QUESTION_STREAMS[split], index])
        query = pick(rng, pick(rng, client.kinds))(rng, client.world)
        image = encode(draw(scene_for(rng, client.world, query), client.style, rng))
        rows["image"].append({"bytes": image, "path": None})
        rows["question"].append(query.text)
        rows["answer"].append(query.answer)
    features = datasets.Features(
        image=datasets.Image(), question=datasets.Value("string"), answer=datasets.Value("string")
    )
    return datasets.DatasetDict({split: datasets.Dataset.from_dict(rows, features=features)})


SCENES = Benchmark(
    name="scenes",
    names=names,
    load=load,
    pool=load_pool,
    captions=load_public,
    questions=load_public_questions,
    needs_folder=False,
)
