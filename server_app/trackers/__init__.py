"""A run's rows in the tool with which somebody follows runs, as they come; one file a tool."""

from app.discovery import kinds_in
from app.settings import SettingsError
from strategies import RoundObserver

from ..run_log import RunLog
from .tracker import Tracker

TRACKERS: dict[str, type[Tracker]] = {
    kind.name: kind
    for kind in kinds_in(__name__, __path__, Tracker)  # type: ignore[type-abstract]
}


def make_tracker(name: str, run: RunLog) -> list[RoundObserver]:
    """Make the tracker that the setting `tracker` names; none for ``'none'``.

    Raises
    ------
    SettingsError
        There is no such tracker, or what it needs is not installed.
    """
    if name == "none":
        return []
    if name not in TRACKERS:
        allowed = ", ".join(map(repr, ["none", *TRACKERS]))
        raise SettingsError(f"tracker = {name!r}; allowed: {allowed}")
    try:
        return [TRACKERS[name](run)]
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"tracker = {name!r} needs {error.name!r}, which is not installed; "
            f"allowed: pip install {name}, or tracker = 'none'"
        ) from None
