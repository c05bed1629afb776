"""What lines say that are to be given next."""

import sys

import pytest

from server_app.command.called import called


@pytest.fixture
def program(tmp_path):
    """Install a command, of no content."""
    path = tmp_path / "a venv" / "bin" / "feddat"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o755)
    return path


def test_it_is_called_by_its_path_unless_that_is_what_its_name_finds(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(program), "run"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert called() == f"'{program}'"
    monkeypatch.setenv("PATH", str(program.parent))
    assert called() == "feddat"


def test_one_that_was_removed_meanwhile_still_has_a_name(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/nowhere/feddat", "run"])
    monkeypatch.setenv("PATH", str(program.parent))
    assert called() == "/nowhere/feddat"


def test_a_module_of_the_checkout_is_called_by_the_commands_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["server_app/command/__main__.py", "run"])
    assert called() == "feddat"
