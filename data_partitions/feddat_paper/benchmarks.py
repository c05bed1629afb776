"""Whose data are which: natural clients of the four benchmarks."""

from collections.abc import Sequence
from pathlib import Path

from ..benchmark import Benchmark
from ..drafts import Origin
from ..natural import Natural, load_natural
from ..options import DataOptions
from ..partition import Partition
from .published import ABSTRACT, AQUA, COCO_QA, GQA, NLVR2, SNLI_VE, VCR, VIZWIZ, VQA_V2, Published, clove

# Changes with whatever changes the rows that come out, so that data kept by older code are not used.
VERSION = 1
_SCENES = (
    "a#ShopAndDining", "b#Workplace", "c#HomeOrHotel", "d#Transportation", "e#SportAndLeisure", "f#Outdoors",
)  # fmt: skip


def _folder(one: Published, options: DataOptions) -> Path:
    return options.folder(f"one with {one.files['train'][0]}")


def _natural(one: Published, options: DataOptions) -> Natural:
    root = _folder(one, options)

    def origins(_: Path) -> list[Origin]:
        return [
            Origin(lambda split=split: one.records(root, split), split, one.folders(root), root)  # type: ignore[misc]
            for split in one.files
        ]

    return Natural(origins, one.paths(root))


def _benchmark(name: str, parts: Sequence[Published]) -> Benchmark:
    def names(options: DataOptions) -> list[str]:
        _folder(parts[0], options)
        return [one.name for one in parts]

    def load(partition_id: int, num_partitions: int, options: DataOptions) -> Partition:
        # Only a client's own data need be there.
        index = partition_id % len(parts)
        clients = {
            one.name: _natural(one, options) if place == index else Natural(lambda _: [])
            for place, one in enumerate(parts)
        }
        return load_natural(name, VERSION, clients, partition_id, num_partitions, options)

    return Benchmark(name=name, names=names, load=load, uses=("missing_modality",))


DOMAIN = _benchmark("feddat-domain", (AQUA, ABSTRACT, VIZWIZ, COCO_QA, GQA))
FUNCTION = _benchmark(
    "feddat-function",
    [clove(name, "function") for name in ("attribute", "knowledge", "logical", "object", "relation")],
)
SCENE = _benchmark("feddat-scene", [clove(name, "scene") for name in _SCENES])
TASK = _benchmark("feddat-task", (VQA_V2, NLVR2, SNLI_VE, VCR))
