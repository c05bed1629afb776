"""The app's own settings as its `pyproject.toml` has them."""

from functools import cache
from pathlib import Path
from typing import Any

from flwr.common.config import get_fused_config_from_dir

CHECKOUT = Path(__file__).parents[1]


@cache
def default_settings() -> dict[str, Any]:
    """Return the defaults of all settings, flat; none where the app's own file is not there."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        return {}
    return dict(get_fused_config_from_dir(CHECKOUT, {}))
