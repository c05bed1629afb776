"""What a client keeps to itself from round to round, in files that last."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .checked_files import read_checked, write_checked

KEPT_ROUNDS = 3


class PrivateStore:
    """Private states on a site's disk: one safetensors file a run, client and round.

    Parameters
    ----------
    folder : Path or str, optional
        Where they lie, closed to other users. None: ``FEDDAT_HOME/clients``, or ``~/.feddat/clients``.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        home = Path(os.environ.get("FEDDAT_HOME") or "~/.feddat").expanduser().absolute()
        self.folder = Path(folder).expanduser().absolute() if folder else home / "clients"

    def load(self, run: str, client: str, up_to: int) -> dict[str, Tensor]:
        """Return the newest state of a round up to `up_to`; ``{}`` if there is none."""
        for server_round in sorted(self._rounds(run, client), reverse=True):
            if server_round <= up_to:
                path = self._file(run, client, server_round)
                return read_checked(path, self._facts(run, client, server_round))
        return {}

    def save(self, run: str, client: str, server_round: int, state: Mapping[str, Tensor]) -> None:
        """Keep the state after a round, whole or not at all; those of older rounds go."""
        path = self._file(run, client, server_round)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_checked(path, state, self._facts(run, client, server_round))
        for old in sorted(self._rounds(run, client), reverse=True)[KEPT_ROUNDS:]:
            self._file(run, client, old).unlink(missing_ok=True)

    def _file(self, run: str, client: str, server_round: int) -> Path:
        return self.folder / run / client / f"round-{server_round:06d}.safetensors"

    def _rounds(self, run: str, client: str) -> list[int]:
        paths = (self.folder / run / client).glob("round-*.safetensors")
        return [int(path.stem.removeprefix("round-")) for path in paths]

    @staticmethod
    def _facts(run: str, client: str, server_round: int) -> dict[str, str]:
        return {"run": run, "client": client, "round": str(server_round)}
