"""A run's rows in the tool with which somebody follows runs, as they come; one file a tool."""

from importlib.util import find_spec

from app.discovery import kinds_in
from app.settings import SettingsError
from strategies import RoundObserver

from ..run_log import RunLog
from .tracker import Tracker

TRACKERS: dict[str, type[Tracker]] = {
    kind.name: kind
    for kind in kinds_in(__name__, __path__, Tracker)  # type: ignore[type-abstract]
}


def check_tracker(name: str) -> None:
    """Look for the tracker that the setting `tracker` names, without loading it.

    Raises
    ------
    SettingsError
        There is no such tracker, or its package is not installed.
    """
    _check_name(name)
    if name != "none" and not find_spec(name):
        raise SettingsError(_missing(name, name))


def make_tracker(name: str, run: RunLog) -> list[RoundObserver]:
    """Make the tracker that the setting `tracker` names; none for ``'none'``.

    Raises
    ------
    SettingsError
        There is no such tracker, or what it needs is not installed.
    """
    _check_name(name)
    if name == "none":
        return []
    try:
        return [TRACKERS[name](run)]
    except ModuleNotFoundError as error:
        raise SettingsError(_missing(name, str(error.name))) from None


def _check_name(name: str) -> None:
    if name not in ("none", *TRACKERS):
        allowed = ", ".join(map(repr, ["none", *TRACKERS]))
        raise SettingsError(f"tracker = {name!r}; allowed: {allowed}")


def _missing(name: str, module: str) -> str:
    return (
        f"tracker = {name!r} needs {module!r}, which is not installed; "
        f"allowed: pip install {name}, or tracker = 'none'"
    )
