"""Files that are there complete or not at all."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write a file under a temporary name beside it, flush it to the disk, and rename it.

    Whoever reads `path`, and whatever interrupts the writing, finds the old content or the new.

    Parameters
    ----------
    path : Path
        Its folder exists.
    data : bytes or str
        The content; a string is written as UTF-8.
    mode : int
        The file's permissions.
    """
    content = data.encode() if isinstance(data, str) else data
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    draft = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(mode)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
