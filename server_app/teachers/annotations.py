"""A parquet file of annotations: what a teacher said about which image, each asked for once.

A row is one answer. Its columns:

- ``image``: SHA-256 of the image, see `image_sha256`;
- ``prompt``: what was asked;
- ``candidates``: the candidate answers as a JSON list in their order; ``""`` for a caption;
- ``normalise``: how scores were made comparable (``sum``, ``mean``, ``pmi``); ``""`` for a caption;
- ``revision``: a hash or commit that tells which weights answered; ``teacher``: the name it was asked by;
- ``log_probabilities``: for each candidate the logarithm of its probability; null for a caption;
- ``caption``: a text; null where there are candidates.

While annotating goes on, each batch is a file of its own in the folder ``FILE.parts``; at the end they are
merged into FILE, sorted, so that the same answers give the same bytes however often it was interrupted.
"""

import functools
import hashlib
import io
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from app.files import write_atomically

Answer = np.ndarray | str
SCHEMA = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("image", "prompt", "candidates", "normalise", "revision", "teacher")
        ),
        ("log_probabilities", pa.list_(pa.float32())),
        ("caption", pa.string()),
    ]
)


class Key(NamedTuple):
    """What an answer depends on."""

    image: str
    prompt: str
    candidates: str
    normalise: str
    revision: str


def image_sha256(image: Image.Image) -> str:
    """Hash an image's content: SHA-256 of ``"{width}x{height}:"`` and its RGB bytes, in hexadecimal.

    It does not depend on the file format that kept the pixels.
    """
    rgb = image.convert("RGB")
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def candidates_json(candidates: Sequence[str]) -> str:
    """Write candidates as the column of that name has them; ``""`` for none."""
    return json.dumps(list(candidates), ensure_ascii=False) if candidates else ""


class Annotations:
    """Answers by key, kept in a parquet file.

    Parameters
    ----------
    path : Path or None
        The file, which need not exist yet. None: nothing is kept.

    Attributes
    ----------
    answers : dict
        A text, or log-probabilities (candidates,) in float32, by key.
    teachers : dict
        Name of the teacher by revision.

    Raises
    ------
    ValueError
        If the file is no such file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.answers: dict[Key, Answer] = {}
        self.teachers: dict[str, str] = {}
        self._path = path
        self._parts = path.with_name(f"{path.name}.parts") if path else None
        self._unmerged = self._parts is not None and any(self._parts.glob("*.parquet"))
        if path and path.exists():
            self._read(path)
        if self._parts and self._unmerged:
            for part in self._parts.glob("*.parquet"):
                self._read(part)

    def add(self, teacher: str, answers: Mapping[Key, Answer]) -> None:
        """Keep some answers of a teacher: all of them or none, whatever interrupts it."""
        self.answers |= answers
        for key in answers:
            self.teachers.setdefault(key.revision, teacher)
        if self._parts:
            self._parts.mkdir(parents=True, exist_ok=True)
            write_atomically(self._parts / f"{uuid.uuid4().hex}.parquet", self._encode(answers))
            self._unmerged = True

    def merge(self) -> None:
        """Write one file of all answers, if any was added since there was one."""
        if self._path and self._parts and self._unmerged:
            write_atomically(self._path, self._encode(self.answers))
            shutil.rmtree(self._parts, ignore_errors=True)
            self._unmerged = False

    def revision_of(self, teacher: str) -> str | None:
        """Return the one revision that answered under a teacher's name; None for none or several."""
        revisions = [revision for revision, name in self.teachers.items() if name == teacher]
        return revisions[0] if len(revisions) == 1 else None

    def _encode(self, answers: Mapping[Key, Answer]) -> bytes:
        rows = []
        for key in sorted(answers):
            answer = answers[key]
            said = {"caption": answer} if isinstance(answer, str) else {"log_probabilities": answer}
            rows.append({**key._asdict(), "teacher": self.teachers[key.revision], **said})
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file, compression="zstd")
        return file.getvalue()

    def _read(self, path: Path) -> None:
        try:
            table = pq.read_table(path, columns=SCHEMA.names).cast(SCHEMA)
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"annotations {path} cannot be read ({str(error).splitlines()[0]}); needed are the columns "
                + ", ".join(SCHEMA.names)
            ) from None
        for number, row in enumerate(table.to_pylist()):
            needed = [*Key._fields, "teacher", *([] if row["candidates"] else ["caption"])]
            if (missing := next((name for name in needed if row[name] is None), None)) is not None:
                raise ValueError(f"annotations {path}: row {number} has no {missing}")
            key = Key(*(row[name] for name in Key._fields))
            answer = row["caption"]
            if key.candidates:
                answer = np.asarray(row["log_probabilities"], dtype=np.float32)
                if answer.shape != (_count(key.candidates),) or np.isnan(answer).any():
                    raise ValueError(
                        f"annotations {path}: image {key.image} needs a log-probability for each of "
                        f"{key.candidates}"
                    )
            self.answers[key] = answer
            self.teachers.setdefault(key.revision, row["teacher"])


@functools.cache
def _count(candidates: str) -> int:
    try:
        return len(json.loads(candidates))
    except (ValueError, TypeError):
        return -1  # no list
