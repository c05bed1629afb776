"""What a terminal shows while a run goes, and one without colours."""

import re
from types import SimpleNamespace

import pytest

from server_app.command.following import _TOLD
from server_app.command.run import _teller
from server_app.command.screen import Screen, waiting

NOW = {"round": 1, "asked": 4, "replied": 2, "phase": "train"}
COLOR = re.compile(r"\x1b\[[\d;]*[34]\d")


@pytest.fixture
def shown(monkeypatch, capsys):
    """Wait, show a round's clients and a line in a terminal of 60 columns; return what was written."""

    def show(**variables):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", "COLUMNS": "60", **variables}.items():
            monkeypatch.setenv(name, value)
        with waiting("checking the settings"):
            pass
        with Screen(num_rounds=3, evaluate_every=1) as screen:
            screen.clients(NOW)
            screen.line("round 1/3: student 50.0 mean")
            screen.clients({"round": 4, "asked": 0, "replied": 0, "phase": ""})
        return capsys.readouterr().out

    return show


def test_a_terminal_has_a_bar_for_the_round_and_its_clients(shown):
    text = shown(TTY_COMPATIBLE="1", TTY_INTERACTIVE="1")
    assert "checking the settings" in text.split("round 1/3: training 2/4 clients")[0]
    assert "writing the result and its report" in text
    assert COLOR.search(text)


def test_the_bar_does_not_fill_before_there_is_a_round(monkeypatch):
    """Who is there is asked of all clients, and training begins with none again."""
    for name, value in {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    done = []
    with Screen(num_rounds=2, evaluate_every=1) as screen:
        for phase, replied in [("query", 4), ("train", 0), ("train", 4), ("evaluate", 0), ("evaluate", 4)]:
            screen.clients({"round": 1, "asked": 4, "replied": replied, "phase": phase})
            done.append(screen._bar.tasks[0].completed)
    assert done[:2] == [0, 0]
    assert done == sorted(done)
    assert done[-1] == 1


def test_ctrl_c_is_answered_at_once(capsys):
    with pytest.raises(KeyboardInterrupt), Screen(1, 1) as screen, screen.stopping():
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "stopping\n"


def test_of_what_each_client_may_have_the_first_six_are_shown():
    """As a simulation's workers say it, in lines of theirs."""
    shown, line = [], "client c{}: 1 of 6 test questions have no right answer that fits"
    tell = _teller(SimpleNamespace(line=shown.append))
    for number in range(9):
        found = _TOLD.search(f"(ClientAppActor pid=4{number}) WARNING :      {line.format(number)}")
        tell(found[1])
    tell("round 2/2: student 50.0 mean, 40.0 worst (c1); 0:12 in all")
    assert shown == [
        *map(line.format, range(6)),
        "so have more clients: see the log",
        "round 2/2: student 50.0 mean, 40.0 worst (c1)",
    ]


@pytest.mark.parametrize(
    "variables", [{"TTY_COMPATIBLE": "1", "NO_COLOR": "1"}, {}], ids=["NO_COLOR", "a pipe"]
)
def test_without_colours_and_in_a_pipe_there_are_lines_alone(shown, variables):
    assert shown(**variables) == "checking the settings\nround 1/3: student 50.0 mean\n"
