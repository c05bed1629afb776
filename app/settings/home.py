"""Where everything that is kept lies."""

import os
from pathlib import Path

from .section import SettingsError


def feddat_home() -> Path:
    """Return the folder for everything that is kept: ``FEDDAT_HOME``, else ``~/.feddat``.

    Raises
    ------
    SettingsError
        ``FEDDAT_HOME`` is relative: an app does not run in the folder that its user knows.
    """
    given = os.environ.get("FEDDAT_HOME") or "~/.feddat"
    home = Path(given).expanduser()
    if not home.is_absolute():
        raise SettingsError(f"FEDDAT_HOME = {given!r} is relative; allowed: an absolute path")
    return home
