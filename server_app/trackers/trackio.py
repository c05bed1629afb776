"""Trackio: a local database, which ``trackio show --project feddat`` shows; TRACKIO_DIR moves it."""

import os
from collections.abc import Mapping

from app.settings import feddat_home

from .tracker import RunLog, Tracker


class Trackio(Tracker):
    """Logs a row a round; a resumed run goes on in the same one."""

    name = "trackio"

    def __init__(self, run: RunLog) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(feddat_home() / "trackio"))
        import trackio

        super().__init__(run)
        self._trackio = trackio

    def begin(self, done: int) -> None:
        """Open the run under its name."""
        self._opened = self._trackio.init(
            project="feddat", name=self.run.name, config=self.settings, resume="allow", embed=False
        )

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Log the round."""
        self._opened.log(dict(values), step=server_round)

    def end(self, well: bool) -> None:
        """Write what is waiting, and close the run."""
        self._opened.finish()
