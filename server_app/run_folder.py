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
        Another one is.
    """
    with _file(folder / LOCK) as descriptor:
        try:
            locked = _flock(descriptor, wait=False)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            raise SettingsError(
                f"the run {folder.name!r} is being served by another ServerApp ({holder or 'unknown'});"
                " allowed: one a run: wait for its end, or stop it"
            ) from None
        if not locked:
            log.warning(
                "the file system of %s has no locks: see to it that no other ServerApp runs %r",
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
        with _file(runs / LOCK) as descriptor:
            if _flock(descriptor, wait=True):
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
def _file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _flock(descriptor: int, wait: bool) -> bool:
    """Lock a file; False where the system cannot. BlockingIOError: another has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
