"""A run's folder: it appears whole or not at all, and one ServerApp at a time works in it."""

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from app.files import flush_folder
from app.settings import SettingsError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("flwr")

LOCK = ".lock"
_DRAFT = ".draft-"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the only ServerApp in a run's folder; the kernel ends that with the process, however it ends.

    Raises
    ------
    SettingsError
        Another one is, or a folder lies where it is said who.
    """
    with _opened(folder) as descriptors:
        descriptor = descriptors[-1]
        try:
            locked = _flock(*descriptors, wait=False)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            raise SettingsError(
                f"the run {folder.name!r} is already going in another ServerApp ({holder or 'unknown'});"
                " allowed: one at a time; wait until it ends, or stop it"
            ) from None
        if not locked:
            log.warning(
                "the file system of %s has no locks: make sure that no other ServerApp runs %r",
                folder,
                folder.name,
            )
        with suppress(OSError):  # it helps who comes second, and nothing depends on it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield


@contextmanager
def created(folder: Path, fill: Callable[[Path], None]) -> Iterator[None]:
    """Make a run's folder and be the only ServerApp in it.

    Parameters
    ----------
    folder : Path
        Where it will be. Before, and after any failure, there is nothing of that name.
    fill : Callable[[Path], None]
        Writes what a run must have to be gone on with, flushed, into the folder that it is given.

    Raises
    ------
    SettingsError
        There is such a folder.
    OSError
        The disk is full.
    """
    runs = folder.parent
    runs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as run_lock:
        with _opened(runs) as descriptors:
            if _flock(*descriptors, wait=True):
                # Whoever made them is dead: the living hold the lock.
                for draft in runs.glob(f"{_DRAFT}*"):
                    shutil.rmtree(draft, ignore_errors=True)
            draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=runs))
            try:
                run_lock.enter_context(held(draft))
                fill(draft)
                flush_folder(draft)
                if folder.exists():
                    raise SettingsError(
                        f"run-name = {folder.name!r} is taken: {folder}; allowed: another name"
                    )
                draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            flush_folder(runs)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[list[int]]:
    """Open what is locked: the folder, which stays whatever is deleted in it, and last the file in it."""
    path = folder / LOCK
    with ExitStack() as opened:

        def descriptor(path: Path, flags: int) -> int:
            number = os.open(path, flags, 0o600)
            opened.callback(os.close, number)
            return number

        try:
            # Systems without locks cannot open folders either.
            folders = [descriptor(folder, os.O_RDONLY)] if fcntl else []
            descriptors = [*folders, descriptor(path, os.O_RDWR | os.O_CREAT)]
        except IsADirectoryError:
            raise SettingsError(f"{path} is a folder; allowed: a file there, or nothing") from None
        yield descriptors


def _flock(*descriptors: int, wait: bool) -> bool:
    """Lock all that can be locked; False where the system can lock none. BlockingIOError: another has one.

    Some file systems of a network lock what was opened to be written alone, and so no folders.
    """
    if fcntl is None:
        return False
    locked = False
    for descriptor in descriptors:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = True
        except BlockingIOError:
            raise
        except OSError:
            continue
    return locked
