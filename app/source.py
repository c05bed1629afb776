"""A hash of the source that runs, so that server and clients can tell whether they run the same."""

import functools
import hashlib
from pathlib import Path

FOLDERS = ("app", "client_app", "server_app", "strategies", "data_partitions")


@functools.cache
def source_hash() -> str:
    """Hash all Python files of the app beside this folder (SHA-256, hexadecimal).

    Flower's simulation imports a ClientApp from the folder in which the SuperLink was started, before the app
    that was sent: without a check, a run can train with another version of the code, silently.
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()
