"""The run's settings: read once from Flower's run-config, typed and checked.

Keys, defaults and what each trades are documented in one place: ``[tool.flwr.app.config]`` of
``pyproject.toml``. Each concern is one file with its fields and its own checks; `Settings` is made of them.
"""

from .federation import Strategy
from .home import feddat_home
from .reading import OLD_NAMES, old_name_in, one_line_of, read_settings
from .run import RUN_NAME
from .section import SettingsError
from .settings import Settings

__all__ = [
    "OLD_NAMES",
    "RUN_NAME",
    "Settings",
    "SettingsError",
    "Strategy",
    "feddat_home",
    "old_name_in",
    "one_line_of",
    "read_settings",
]
