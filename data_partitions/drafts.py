"""From records to a partition: checked texts first, pictures only of the rows that a client keeps."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from .conversations import Conversation, conversation_of, form_of
from .options import DataOptions
from .partition import PLACE, SPLITS, Row, answer_list, scored_split
from .pictures import BadRowError, image_fault, read_file
from .records import Record
from .shares import capped, own_share, split_by_group
from .store import Facts, Source, source

SPLIT_OF = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
UNKNOWN = ""  # the split of rows that do not say theirs


@dataclass(frozen=True, eq=False)
class Origin:
    """Some records of one form, and where their pictures are.

    Attributes
    ----------
    records : callable
        Yields them, each time from the first.
    split : str
        The split of all of them; `UNKNOWN`: what each says, if it does.
    folders : sequence of Path
        Where a path of a picture begins; the first in which it is there counts.
    root : Path or None
        What all pictures must lie in; None: there are none but in the records.
    prefix : str
        What is before the place of a record in errors.
    """

    records: Callable[[], Iterator[Record]]
    split: str = UNKNOWN
    folders: Sequence[Path] = ()
    root: Path | None = None
    prefix: str = "data-dir: "


@dataclass(frozen=True)
class Draft:
    """An example whose pictures have not been read.

    Attributes
    ----------
    origin : Origin
        What it is of.
    index : int
        The number of its record there.
    where : str
        The same in words.
    split : str
        One of `SPLITS`, or `UNKNOWN`.
    said : Conversation
        Its texts; its pictures are a path each, or a checksum of what is in the record.
    """

    origin: Origin
    index: int
    where: str
    split: str
    said: Conversation

    @property
    def answer(self) -> str:
        """What is learned."""
        return next(iter(self.said.answers))


class Faults:
    """Rows that cannot be used: each ends the run, or is left out and counted.

    Parameters
    ----------
    on_bad_row : str
        "error" or "skip".
    """

    def __init__(self, on_bad_row: str) -> None:
        self.on_bad_row = on_bad_row
        self.skipped: Counter[str] = Counter()

    def add(self, origin: Origin, where: str, split: str, fault: BadRowError) -> None:
        """Take a fault; ValueError if it ends the run."""
        if self.on_bad_row == "error":
            raise ValueError(
                f"{origin.prefix}{where}: {fault} (on-bad-row = 'skip' leaves such rows out)"
            ) from None
        self.skipped[split or "unknown"] += 1


def drafts_of(origins: Iterable[Origin], faults: Faults) -> list[Draft]:
    """Read and check the texts of records.

    Raises
    ------
    ValueError
        Records cannot be read; or a fault that ends the run.
    """
    drafts = []
    for origin in origins:
        form = ""
        for index, (where, record) in enumerate(origin.records()):
            split = origin.split
            try:
                if isinstance(record, BadRowError):
                    raise record
                split = split or _split_of(record)
                found = form_of(record)
                if found != (form := form or found):
                    raise BadRowError(f"has {found}, where the lines before it have {form}")
                said = conversation_of(record, form)
                said = replace(said, pictures=[_key(picture) for picture in said.pictures])
                drafts.append(Draft(origin, index, where, split, said))
            except BadRowError as fault:
                faults.add(origin, where, split, fault)
    return drafts


def prepare(
    origins: Sequence[Origin], share: int, shares: int, partition_id: int, options: DataOptions
) -> tuple[datasets.DatasetDict, Facts]:
    """Make one client's splits of the records that are its own, or that it shares with others.

    Rows that do not say their split are split by a draw, so that no picture is in two splits. Where there are
    validation and no test rows, those are the test.

    Parameters
    ----------
    origins : sequence of Origin
        All records.
    share, shares : int
        Which of so many clients that share them.
    partition_id : int
        What its draws depend on besides the seed.
    options : DataOptions
        How they are shared, how many a client has, and which lack what.

    Raises
    ------
    ValueError
        Naming the file and the row that cannot be used.
    """
    faults = Faults(options.on_bad_row)
    drafts = _split(drafts_of(origins, faults), {origin.split for origin in origins}, options.seed)
    # What is wrong with the texts of what several share, counts for the first.
    skipped = faults.skipped if share == 0 else Counter()
    faults.skipped = Counter()
    trained = [draft.answer for draft in drafts if draft.split == "train"]
    answers = answer_list(trained, options.num_answers)
    if shares > 1:
        own = own_share([draft.answer for draft in drafts], share, shares, options)
        drafts = [drafts[row] for row in own]
    limits = {
        "train": options.train_examples,
        "validation": (options.test_examples + 1) // 2,
        "test": options.test_examples,
    }
    chosen = {}
    for split, limit in limits.items():
        rows = [row for row, draft in enumerate(drafts) if draft.split == split]
        chosen[split] = [drafts[row] for row in capped(rows, limit, options.seed)]
    sources: dict[str, Source] = {}
    splits, unanswerable = datasets.DatasetDict(), {}
    for split, part in chosen.items():
        rows_ = _with_pictures(part, faults, sources)
        if split == "train":
            rows_ = _lacking(rows_, options.missing_modality, [options.seed, partition_id])
        splits[split], unanswerable[split] = scored_split(rows_, answers)
    facts = {
        "answers": answers,
        "unanswerable": unanswerable,
        "skipped": dict.fromkeys(SPLITS, 0) | dict(skipped + faults.skipped),
        "sources": list(sources.values()),
    }
    return splits, facts


def _split_of(record: dict[str, Any]) -> str:
    split = record.get("split")
    if split is None:
        return UNKNOWN
    if split not in SPLIT_OF:
        raise BadRowError(f"split is not one of {', '.join(SPLIT_OF)}")
    return SPLIT_OF[split]


def _key(picture: Any) -> str:
    """Return a picture's path, or a checksum of its bytes, which no path is like."""
    if isinstance(picture, dict):
        if isinstance(picture.get("bytes"), bytes):
            return f"\0{hashlib.sha256(picture['bytes']).hexdigest()}"
        picture = picture.get("path")
    if not isinstance(picture, str) or not picture:
        raise BadRowError("no image bytes and no path of an image")
    if "\0" in picture:
        raise BadRowError("a path of an image with a NUL")
    return picture


def _split(drafts: list[Draft], said: set[str], seed: int) -> list[Draft]:
    """Give each its split; `said` are the splits that there are, though all rows of one may be bad."""
    said = said | {draft.split for draft in drafts}
    if said <= {UNKNOWN, "train"}:
        groups = [
            [os.path.normpath(picture) for picture in draft.said.pictures] or [row]
            for row, draft in enumerate(drafts)
        ]
        drawn = split_by_group(groups, seed)
        return [replace(draft, split=split) for draft, split in zip(drafts, drawn, strict=True)]
    drafts = [replace(draft, split=draft.split or "train") for draft in drafts]
    if "test" in said:
        return drafts
    return [replace(draft, split="test") if draft.split == "validation" else draft for draft in drafts]


def _with_pictures(part: list[Draft], faults: Faults, sources: dict[str, Source]) -> list[Row]:
    """Read and decode the pictures of drafts; those read from files of their own are added to `sources`."""
    inside = {origin: _inside(origin, part) for origin in {draft.origin for draft in part}}
    checked: dict[str, str] = {}
    rows = []
    for draft in part:
        try:
            images = []
            for number, picture in enumerate(draft.said.pictures):
                if picture.startswith("\0"):
                    encoded, key = inside[draft.origin][draft.index, number], picture
                else:
                    path = _found(draft.origin, picture)
                    before = source(path) if os.path.isfile(path) else None
                    encoded, key = read_file(path, draft.origin.root or path.parent), str(path)
                    if before:
                        sources[key] = before
                if key not in checked:
                    checked[key] = image_fault(encoded)
                if checked[key]:
                    raise BadRowError(checked[key])
                images.append({"bytes": encoded, "path": None})
            said = draft.said
            rows.append(Row(images, said.messages, said.answers, draft.where, said.options))
        except BadRowError as fault:
            faults.add(draft.origin, draft.where, draft.split, fault)
    return rows


def _inside(origin: Origin, part: list[Draft]) -> dict[tuple[int, int], bytes]:
    """Return the pictures that are in the records themselves, by number of the record and of the picture."""
    wanted = {
        draft.index
        for draft in part
        if draft.origin is origin and any(picture.startswith("\0") for picture in draft.said.pictures)
    }
    found: dict[tuple[int, int], bytes] = {}
    for index, (_, record) in enumerate(origin.records() if wanted else ()):
        if index in wanted and isinstance(record, dict):
            given = next(record[name] for name in ("image", "images") if record.get(name) is not None)
            for number, picture in enumerate(given if isinstance(given, list) else [given]):
                if isinstance(picture, dict) and isinstance(picture.get("bytes"), bytes):
                    found[index, number] = picture["bytes"]
    return found


def _found(origin: Origin, picture: str) -> Path:
    """Return where a picture's path leads; whether it may be read is for `read_file` to say."""
    if origin.root is None:
        raise BadRowError(f"image {picture!r} is a path, and there is no folder for it to lie in")
    paths = [folder / picture for folder in origin.folders]
    return next((path for path in paths if os.path.exists(path)), paths[0])


def _lacking(rows: list[Row], share: float, seed: list[int]) -> list[Row]:
    """Take from a share of the rows that have both their pictures, or, of every other one, their text."""
    both = [row for row, one in enumerate(rows) if one.images and one.question]
    drawn = np.random.default_rng(seed).permutation(both)[: round(share * len(both))].tolist()
    for number, row in enumerate(drawn):
        one = rows[row]
        if number % 2:
            rows[row] = replace(one, messages=[{"role": "user", "content": PLACE * len(one.images)}])
        else:
            turns = [{**turn, "content": turn["content"].replace(PLACE, "").strip()} for turn in one.messages]
            rows[row] = replace(one, images=[], messages=turns)
    return rows
