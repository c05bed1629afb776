"""Whether a run can be gone on with, and from where."""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from app.settings import Settings, SettingsError, feddat_home, old_name_in
from strategies import Checkpoint, one_line

from .checkpoints import Checkpoints

log = logging.getLogger("flwr")

# How long the run is, what it shows, for whom it waits, whom it takes in, what it puts up with, and what
# computes it: a run that failed by one of these can go on.
MAY_CHANGE = {
    "run-name",
    "resume",
    "num-rounds",
    "evaluate-every",
    "wait-seconds",
    "round-timeout",
    "min-clients",
    "max-failure-rate",
    "node-partitions",
    "device",
    "server-device",
    "tracker",
}


def kept_facts(settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``settings.json`` of the run that `settings.resume` names.

    Parameters
    ----------
    settings : Settings
        Must be that run's, but for what `MAY_CHANGE` names.
    facts : Mapping
        What runs now: versions and fingerprints. Another backbone is an error, anything else is said.

    Raises
    ------
    SettingsError
        There is no such run, or its settings differ.
    """
    kept = kept_settings(settings.resume)
    given = settings.run_config() | {"backbone-hash": facts["backbone-hash"]}
    differing = [
        f"{key}: {kept.get(key)!r} → {value!r}"
        for key, value in given.items()
        if key not in MAY_CHANGE and kept.get(key) != value
    ]
    if differing:
        raise SettingsError(
            f"resume = {settings.resume!r} was begun with other settings (kept → given):"
            f" {', '.join(differing)}; allowed to differ: {', '.join(sorted(MAY_CHANGE))}"
        )
    for key, value in facts.items():
        if key in kept and kept[key] != value:
            log.warning("%s was %s when the run was begun and is %s now", key, kept[key], value)
    return _without_damage(kept)


def kept_settings(name: str) -> dict[str, Any]:
    """Return what ``settings.json`` of the run to resume holds.

    Raises
    ------
    SettingsError
        There is no such run, or none that this version can go on with.
    """
    runs = feddat_home() / "runs"
    try:
        kept = json.loads((runs / name / "settings.json").read_text(encoding="utf-8"))
        if not isinstance(kept, dict):
            raise ValueError("it holds no settings")
    except FileNotFoundError:
        names = sorted(path.parent.name for path in runs.glob("[!.]*/settings.json"))
        raise SettingsError(
            f"resume = {name!r} is not a run in {runs}; allowed: {', '.join(names) or 'none yet'}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"resume = {name!r}: its settings.json cannot be read: {one_line(error)}"
        ) from None
    if line := old_name_in(kept):
        raise SettingsError(
            f"resume = {name!r} was begun with old names of settings: {line}; allowed: the"
            " version of feddat that began it"
        )
    return kept


def _without_damage(kept: dict[str, Any]) -> dict[str, Any]:
    """Drop what the run itself wrote and does not read as it wrote it, saying what that costs."""
    token, resumed = kept.get("run-token"), kept.get("resumed-after", [])
    damage = {}
    if not isinstance(token, str) or not re.fullmatch("[0-9a-f]{1,64}", token):
        damage["run-token"] = "clients do not find their private states of this run and begin anew"
    if not isinstance(resumed, list) or not all(type(number) is int for number in resumed):
        damage["resumed-after"] = "earlier stops are not known, and no privacy budget counts them"
    for key, cost in damage.items():
        log.warning("settings.json has no %s that can be read: %s", key, cost)
    return {key: value for key, value in kept.items() if key not in damage}


def last_checkpoint(settings: Settings, checkpoints: Checkpoints) -> Checkpoint:
    """Return the checkpoint to go on from.

    Raises
    ------
    SettingsError
        There is none, nothing is left to do after it, or a folder lies where the report will be.
    """
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        raise SettingsError(
            f"resume = {settings.resume!r} has no checkpoint that can be read in {checkpoints.folder};"
            " allowed: a run with one, or '' to begin anew"
        )
    done, report = checkpoint.server_round, checkpoints.folder.parent / "report.md"
    if report.is_dir():
        raise SettingsError(f"{report} is a folder; allowed: a file there, or nothing")
    # A run that was stopped after its last round has its result still to write.
    if done > settings.num_rounds or (done == settings.num_rounds and report.exists()):
        raise SettingsError(
            f"resume = {settings.resume!r} is finished: round {done} is done and num-rounds = "
            f"{settings.num_rounds}; allowed: more rounds"
        )
    return checkpoint
