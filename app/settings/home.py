"""Where everything that is kept lies."""

import os
from pathlib import Path


def feddat_home() -> Path:
    """Return the folder for everything that is kept: ``FEDDAT_HOME``, else ``~/.feddat``."""
    return Path(os.environ.get("FEDDAT_HOME") or "~/.feddat").expanduser().absolute()
