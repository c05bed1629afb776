"""Data sets as their owners publish them: which files, where they are to lie, what becomes of their records.

Each set has a folder of its own in `data-dir`, but for pictures that several sets are about: those of COCO in
``coco/``, of Visual Genome and GQA in ``GQA/images/``. All become records with image, question, answer or
answers, options.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pictures import BadRowError, one_line
from ..records import Record, records_of

Read = Callable[[Sequence[Path], str], Iterator[Record]]


@dataclass(frozen=True)
class Published:
    """A data set.

    Attributes
    ----------
    name : str
        What its client is called.
    files : mapping
        Split → its files, from `data-dir` on.
    images : sequence of str
        Where a path of a picture begins, from `data-dir` on.
    read : callable
        Yields the records of a split's files; errors call them by the name that it is given.
    address : str
        Where it is published.
    """

    name: str
    files: Mapping[str, Sequence[str]]
    images: Sequence[str]
    read: Read
    address: str

    def paths(self, root: Path) -> list[Path]:
        """Return all of its files; ValueError names the first that is not there."""
        names = [*(name for files in self.files.values() for name in files), *self.images[:1]]
        for name in names:
            if not (root / name).exists():
                raise ValueError(f"data-dir: {name} of {self.name} is not there; published: {self.address}")
        return [root / name for files in self.files.values() for name in files]

    def folders(self, root: Path) -> list[Path]:
        """Return where paths of pictures begin."""
        return [root / name for name in self.images]

    def records(self, root: Path, split: str) -> Iterator[Record]:
        """Yield a split's records; one that is not as published is a bad row.

        Raises
        ------
        ValueError
            A file cannot be read at all.
        """
        names = self.files[split]
        yield from self.read([root / name for name in names], names[0])


def _each(make: Callable[[dict[str, Any]], dict[str, Any]]) -> Read:
    """Make records of those of one file, JSON or JSON lines."""

    def read(paths: Sequence[Path], name: str) -> Iterator[Record]:
        for where, record in records_of(paths[0], name):
            yield where, record if isinstance(record, BadRowError) else _made(make, record)

    return read


def _made(make: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any] | BadRowError:
    try:
        return make(*given)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        missing = isinstance(error, KeyError)
        return BadRowError(
            f"has no {one_line(error)}" if missing else f"is not as published ({one_line(error)})"
        )


def _whole(path: Path, name: str, kind: type) -> Any:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"data-dir: {name} cannot be read ({one_line(error)})") from None
    if not isinstance(found, kind):
        raise ValueError(f"data-dir: {name} is a JSON {type(found).__name__}; published: {kind.__name__}")
    return found


def _vqa(paths: Sequence[Path], name: str, picture: str) -> Iterator[Record]:
    """Read questions, and annotators' answers to them, in VQA's two files."""
    questions, annotations = (_whole(path, path.name, dict) for path in paths)
    if not isinstance(questions.get("questions"), list) or not isinstance(
        annotations.get("annotations"), list
    ):
        raise ValueError(f"data-dir: {name} and {paths[1].name} have no lists 'questions' and 'annotations'")
    asked = {one.get("question_id"): one for one in questions["questions"] if isinstance(one, dict)}

    def make(annotation: dict[str, Any]) -> dict[str, Any]:
        question = asked[annotation["question_id"]]
        return {
            "image": picture.format(int(question["image_id"])),
            "question": question["question"],
            "answers": annotation["answers"],
        }

    for index, annotation in enumerate(annotations["annotations"]):
        yield f"{paths[1].name} annotation {index}", _made(make, annotation)


def _vqa_pictures(train: str, val: str) -> Read:
    return lambda paths, name: _vqa(paths, name, train if "train" in paths[0].name else val)


def _gqa(paths: Sequence[Path], name: str) -> Iterator[Record]:
    def make(one: dict[str, Any]) -> dict[str, Any]:
        return {"image": f"{one['imageId']}.jpg", "question": one["question"], "answer": one["answer"]}

    for number, one in _whole(paths[0], name, dict).items():
        yield f"{name} question {number}", _made(make, one)


def _coco_qa(paths: Sequence[Path], name: str) -> Iterator[Record]:
    """Read three files of as many lines: questions, answers, numbers of COCO's pictures."""
    try:
        lines = [path.read_text(encoding="utf-8").splitlines() for path in paths]
    except (OSError, ValueError) as error:
        raise ValueError(f"data-dir: {name} or its like cannot be read ({one_line(error)})") from None
    if len(set(map(len, lines))) > 1:
        counts = ", ".join(f"{path.name} {len(found)}" for path, found in zip(paths, lines, strict=True))
        raise ValueError(f"data-dir: {name} and its like differ in their numbers of lines ({counts})")
    folder = "train" if paths[0].parent.name == "train" else "val"

    def make(question: str, answer: str, number: str) -> dict[str, Any]:
        picture = f"{folder}2014/COCO_{folder}2014_{int(number):012d}.jpg"
        return {"image": picture, "question": question, "answer": answer}

    for number, parts in enumerate(zip(*lines, strict=True), 1):
        yield f"{name} line {number}", _made(make, *parts)


def _nlvr2(paths: Sequence[Path], name: str) -> Iterator[Record]:
    """Read lines of JSON, whatever the file's name says; training pictures lie in numbered folders."""

    def make(one: dict[str, Any]) -> dict[str, Any]:
        pair = one["identifier"].rpartition("-")[0]
        split = pair.partition("-")[0]
        folder = f"train/{one['directory']}" if split == "train" else split
        label = {"true": "true", "false": "false"}[str(one["label"]).lower()]
        return {
            "images": [f"{folder}/{pair}-img{side}.png" for side in (0, 1)],
            "question": one["sentence"],
            "answer": label,
            "options": ["true", "false"],
        }

    for where, record in records_of(paths[0], name, kind=".jsonl"):
        yield where, record if isinstance(record, BadRowError) else _made(make, record)


def _aqua(one: dict[str, Any]) -> dict[str, Any]:
    return {name: one[name] for name in ("image", "question", "answer")}


def _vizwiz(one: dict[str, Any]) -> dict[str, Any]:
    # Training pictures lie in train/, and so on, as their names say.
    folder = one["image"].split("_")[1]
    return {"image": f"{folder}/{one['image']}", "question": one["question"], "answers": one["answers"]}


def _clove(one: dict[str, Any]) -> dict[str, Any]:
    return {"image": f"{one['image_id']}.jpg", "question": one["question"], "answers": one["answers"]}


def _snli_ve(one: dict[str, Any]) -> dict[str, Any]:
    options = ["entailment", "neutral", "contradiction"]
    if one["gold_label"] not in options:
        raise ValueError(f"gold_label is {one['gold_label']!r}")
    picture = f"{one['Flickr30K_ID']}.jpg"
    return {"image": picture, "question": one["sentence2"], "answer": one["gold_label"], "options": options}


def _vcr(one: dict[str, Any]) -> dict[str, Any]:
    """Read question → answer; an object is called by its kind and, from 1, its number: ``person 2``."""

    def said(tokens: Sequence[Any]) -> str:
        words = (
            " and ".join(f"{one['objects'][number]} {number + 1}" for number in token)
            if isinstance(token, list)
            else str(token)
            for token in tokens
        )
        return " ".join(words)

    options = [said(choice) for choice in one["answer_choices"]]
    return {
        "image": one["img_fn"],
        "question": said(one["question"]),
        "answer": options[one["answer_label"]],
        "options": options,
    }


def clove(name: str, part: str) -> Published:
    """Return a part of CLOVE (Lei et al., AAAI 2023), of ``function`` or ``scene``."""
    files = {split: [f"CLOVE/json/{part}/fcl_mmf_{name}_{split}.json"] for split in ("train", "val")}
    renamed = {"train": files["train"], "validation": files["val"]}
    address = "https://github.com/showlab/CLVQA, pictures https://cs.stanford.edu/people/dorarad/gqa"
    return Published(name, renamed, ["GQA/images"], _each(_clove), address)


AQUA = Published(
    "AQUA",
    {
        split: [f"AQUA/{file}.json"]
        for split, file in (("train", "train"), ("validation", "val"), ("test", "test"))
    },
    ["SemArt/Images"],
    _each(_aqua),
    "https://github.com/noagarcia/ArtVQA, pictures https://noagarciad.com/SemArt",
)
ABSTRACT = Published(
    "abstract scenes",
    {
        split: [
            f"abstract/OpenEnded_abstract_v002_{year}_questions.json",
            f"abstract/abstract_v002_{year}_annotations.json",
        ]
        for split, year in (("train", "train2015"), ("validation", "val2015"))
    },
    ["abstract", *(f"abstract/scene_img_abstract_v002_{year}" for year in ("train2015", "val2015"))],
    _vqa_pictures("abstract_v002_train2015_{:012d}.png", "abstract_v002_val2015_{:012d}.png"),
    "https://visualqa.org/vqa_v1_download.html",
)
VIZWIZ = Published(
    "VizWiz",
    {"train": ["VizWiz/Annotations/train.json"], "validation": ["VizWiz/Annotations/val.json"]},
    ["VizWiz"],
    _each(_vizwiz),
    "https://vizwiz.org/tasks-and-datasets/vqa",
)
COCO_QA = Published(
    "COCO-QA",
    {
        split: [f"COCO-QA/{split}/{part}.txt" for part in ("questions", "answers", "img_ids")]
        for split in ("train", "test")
    },
    ["coco"],
    _coco_qa,
    "https://www.cs.toronto.edu/~mren/research/imageqa/data/cocoqa, pictures https://cocodataset.org",
)
GQA = Published(
    "GQA",
    {"train": ["GQA/train_balanced_questions.json"], "validation": ["GQA/val_balanced_questions.json"]},
    ["GQA/images"],
    _gqa,
    "https://cs.stanford.edu/people/dorarad/gqa",
)
VQA_V2 = Published(
    "VQAv2",
    {
        split: [
            f"VQAv2/v2_OpenEnded_mscoco_{year}_questions.json",
            f"VQAv2/v2_mscoco_{year}_annotations.json",
        ]
        for split, year in (("train", "train2014"), ("validation", "val2014"))
    },
    ["coco"],
    _vqa_pictures(*(f"{year}/COCO_{year}_{{:012d}}.jpg" for year in ("train2014", "val2014"))),
    "https://visualqa.org/download.html, pictures https://cocodataset.org",
)
NLVR2 = Published(
    "NLVR2",
    {
        split: [f"NLVR2/data/{file}.json"]
        for split, file in (("train", "train"), ("validation", "dev"), ("test", "test1"))
    },
    ["NLVR2/images"],
    _nlvr2,
    "https://lil.nlp.cornell.edu/nlvr",
)
SNLI_VE = Published(
    "SNLI-VE",
    {
        split: [f"SNLI-VE/snli_ve_{file}.jsonl"]
        for split, file in (("train", "train"), ("validation", "dev"), ("test", "test"))
    },
    ["flickr30k-images"],
    _each(_snli_ve),
    "https://github.com/necla-ml/SNLI-VE, pictures https://shannon.cs.illinois.edu/DenotationGraph",
)
VCR = Published(
    "VCR",
    {"train": ["VCR/train.jsonl"], "validation": ["VCR/val.jsonl"]},
    ["VCR/vcr1images"],
    _each(_vcr),
    "https://visualcommonsense.com/download",
)
