"""`feddat run --compare`: other methods first, with the run's own settings, under names made from its own."""

import json

import pytest

from app.source import source_hash
from server_app.command import run as room
from server_app.command.refusal import Refusal
from server_app.defaults import default_settings
from tests.conftest import ROOT

ALONE = room.Machine("", 0, 1, None)


def keep(home, name, **settings):
    """Leave a run that is over."""
    folder = home / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    kept = {**default_settings(), "source-hash": source_hash(), "run-name": name, **settings}
    (folder / "settings.json").write_text(json.dumps(kept))
    (folder / "report.md").touch()


@pytest.fixture
def begun(home, monkeypatch):
    """Collect what each federation is given instead of running it."""
    made = []

    def federate(root, home, given, name, machine, began):
        made.append((name, given.settings))

    monkeypatch.setattr(room, "_federate", federate)
    return made


def test_they_run_first_and_differ_in_their_method_alone(home, begun):
    room._run(ROOT, home, ["run-name=mine", "seed=4", "num-rounds=3"], ALONE, ["adapter", "local"])
    assert [name for name, _ in begun] == ["mine.adapter", "mine.local", "mine"]
    configs = [settings.run_config() for _, settings in begun]
    assert [config["method"] for config in configs] == ["adapter", "local", "feddat"]
    assert [config["run-name"] for config in configs] == ["mine.adapter", "mine.local", "mine"]
    for config in configs:
        del config["method"], config["run-name"]
    assert configs[0] == configs[1] == configs[2]
    assert (configs[0]["seed"], configs[0]["num-rounds"]) == (4, 3)


def test_one_that_is_over_is_not_run_again_and_one_that_was_stopped_goes_on(home, begun):
    for name in ("mine.adapter", "mine.local"):
        (home / "runs" / name).mkdir(parents=True)
    keep(home, "mine.adapter", method="adapter")
    room._run(ROOT, home, ["run-name=mine"], ALONE, ["adapter", "local"])
    assert [(name, settings.resume) for name, settings in begun] == [
        ("mine.local", "mine.local"),
        ("mine", ""),
    ]


@pytest.mark.parametrize("other", [{"num-rounds": 20}, {"source-hash": "0" * 64}], ids=str)
def test_one_that_is_over_with_other_settings_or_source_is_refused(home, begun, other):
    """It would not be shown beside the run."""
    keep(home, "mine.adapter", method="adapter", **other)
    with pytest.raises(Refusal) as caught:
        room._run(ROOT, home, ["run-name=mine"], ALONE, ["adapter"])
    assert str(caught.value) == (
        "the run 'mine.adapter' has other settings or is of another source;"
        " to make it anew: feddat runs prune mine.adapter"
    )
    assert begun == []


@pytest.mark.parametrize(
    ("words", "method", "reason"),
    [
        ([], "fedat", "method = 'fedat'; allowed: "),
        (["update=joint"], "adapter", "update = 'joint' is a step of two adapters"),
    ],
)
def test_all_are_checked_before_the_first_one_begins(home, begun, words, method, reason):
    with pytest.raises(Refusal) as caught:
        room._run(ROOT, home, ["run-name=mine", *words], ALONE, ["local", method])
    assert str(caught.value).startswith(reason)
    assert begun == []
