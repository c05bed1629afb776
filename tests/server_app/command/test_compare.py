"""`feddat run --compare`: other methods first, with the run's own settings, under names made from its own."""

import json

import pytest

from app.source import source_hash
from server_app.command import app
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

    def federate(root, home, given, name, *_, **__):
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


def test_a_run_that_is_over_gets_what_is_missing_beside_it_and_is_shown(home, begun, monkeypatch):
    shown = []
    monkeypatch.setattr(room, "show_result", lambda folder, screen: shown.append(folder.name))
    keep(home, "mine")
    keep(home, "mine.adapter", method="adapter")
    room._run(ROOT, home, ["run-name=mine"], ALONE, ["adapter", "local"])
    assert [name for name, _ in begun] == ["mine.local"]
    assert shown == ["mine"]


@pytest.mark.parametrize("other", [{"num-rounds": 20}, {"method": "ditto"}], ids=str)
def test_but_not_one_of_other_settings(home, begun, other):
    keep(home, "mine", **other)
    with pytest.raises(Refusal, match=r"^the run 'mine' has other settings .*: feddat runs prune mine$"):
        room._run(ROOT, home, ["run-name=mine"], ALONE, ["adapter"])
    assert begun == []


def test_a_name_that_is_taken_by_one_that_is_over_can_go_on_with_more_rounds_alone(home, begun):
    keep(home, "mine")
    with pytest.raises(Refusal, match=r"allowed: another name, or resume=mine with more num-rounds$"):
        room._run(ROOT, home, ["run-name=mine"], ALONE, [])
    (home / "runs" / "mine" / "report.md").unlink()
    for compare in ([], ["adapter"]):
        with pytest.raises(Refusal, match=r"allowed: another name, or resume=mine$"):
            room._run(ROOT, home, ["run-name=mine"], ALONE, compare)


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
        ([], "fedat", "--compare: method = 'fedat'; allowed: "),
        (["update=joint"], "adapter", "--compare: update = 'joint' is a step of two adapters"),
    ],
)
def test_all_are_checked_before_the_first_one_begins(home, begun, words, method, reason):
    with pytest.raises(Refusal) as caught:
        room._run(ROOT, home, ["run-name=mine", *words], ALONE, ["local", method])
    assert str(caught.value).startswith(reason)
    assert begun == []


@pytest.fixture
def stopped(home, monkeypatch):
    """Stop the first federation after its first round, or have it fail; return a call of the command."""

    def call(*words, reason=None, begun=True):
        def alone(*_):
            if begun:
                (home / "runs" / "mine.adapter" / "checkpoints").mkdir(parents=True, exist_ok=True)
            if reason is None:
                raise KeyboardInterrupt
            return reason

        monkeypatch.setattr(room, "_alone", alone)
        with pytest.raises(Refusal) as caught:
            app(["run", *words])
        return str(caught.value)

    return call


def test_one_that_is_stopped_says_the_command_that_makes_the_run_too(stopped):
    """The same one: to go on with what it is compared with alone would end without it."""
    words = ("lora", "run-name=mine", "--cpus", "2", "--compare", "adapter,local")
    assert stopped(*words) == (
        "stopped; to go on: feddat run lora run-name=mine --cpus=2 --compare=adapter,local"
    )


def test_a_run_that_was_given_no_name_is_called_by_the_one_that_it_has(home, stopped, monkeypatch):
    monkeypatch.setattr(room, "_name", lambda settings: "mine")
    said = stopped("seed=4", "--compare", "adapter")
    assert said == "stopped; to go on: feddat run seed=4 run-name=mine --compare=adapter"


def test_one_that_is_stopped_before_it_begins_is_not_all_that_there_is(stopped):
    assert stopped("run-name=mine", "--compare", "adapter", begun=False) == (
        "stopped; nothing of it is kept: it had not begun;"
        " to go on: feddat run run-name=mine --compare=adapter"
    )


@pytest.mark.parametrize(
    ("begun", "how"),
    [
        (True, "to try again: feddat run run-name=mine --compare=adapter"),
        (False, "nothing of it is kept: it had not begun"),  # nor would it the next time
    ],
)
def test_one_that_fails_is_named_with_its_reason(stopped, capsys, begun, how):
    said = stopped("run-name=mine", "--compare", "adapter", reason="no client replied", begun=begun)
    assert said == "mine.adapter: no client replied"
    assert capsys.readouterr().out.splitlines()[-1] == f"mine.adapter failed; {how}"


def test_a_run_that_goes_on_with_more_rounds_is_gone_on_with_by_the_same_command(home, stopped, monkeypatch):
    """Its folder says so only once its clients are there; by its name alone it would be finished."""
    keep(home, "mine.adapter", method="adapter")
    monkeypatch.setattr(room, "_check", lambda settings: None)  # of checkpoints, of which there are none
    assert stopped("resume=mine.adapter", "num-rounds=99") == (
        "stopped; to go on: feddat run resume=mine.adapter num-rounds=99"
    )


def test_the_run_itself_goes_on_by_its_name(home, stopped):
    assert stopped("run-name=mine.adapter", "--cpus", "2") == (
        "stopped; to go on: feddat run resume=mine.adapter --cpus=2"
    )
