"""The project's checkout, which has what no wheel has: both apps, their settings, recipes, programs."""

import sys
from pathlib import Path

from .refusal import Refusal


def checkout() -> Path:
    """Return the root of the checkout that this package lies in, with its folders on the import path.

    Raises
    ------
    Refusal
        The package was installed from a wheel.
    """
    root = Path(__file__).resolve().parents[2]
    if not all((root / name).exists() for name in ("pyproject.toml", "server_app", "client_app")):
        raise Refusal(
            "this needs a checkout of the project; in its folder: pip install -c constraints.txt -e '.[app]'"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    from app import quiet_imports  # noqa: F401, for whatever a command imports of it

    return root
