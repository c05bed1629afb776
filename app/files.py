"""Files that are there complete or not at all."""

import errno
import os
import tempfile
from pathlib import Path

# What file systems say that keep no folders to flush, such as some of a network.
_UNKNOWN = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def write_atomically(path: Path, data: bytes | str, mode: int = 0o600) -> None:
    """Write a file under a temporary name beside it, flush it to the disk, rename it, flush its folder.

    Whoever reads `path`, and whatever interrupts the writing, finds the old content or the new; after it
    has returned, the new, even if the machine loses power.

    Parameters
    ----------
    path : Path
        Its folder exists.
    data : bytes or str
        The content; a string is written as UTF-8.
    mode : int
        The file's permissions; its owner's alone, if nothing else is said.
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
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder to the disk: which names are in it, and what they name.

    Raises
    ------
    OSError
        The disk did not take it. A system that cannot flush folders is no error.
    """
    if os.name != "posix":
        return  # elsewhere folders cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file of the user's alone, and let it reach the disk before anything else happens."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    flush_folder(path.parent)
