"""The same projects with FedDAT plugged in: how little differs, and what then travels."""

import difflib
from pathlib import Path

import pytest

from benchmarks.in_process import Federation
from tests.conftest import ROOT, own_home
from tests.examples.conftest import forget, imported
from tests.examples.projects import CLIENTS, PLAIN, PLUGGED_IN, ROUNDS, config, files_of, name_of

projects = pytest.mark.parametrize("project", PLUGGED_IN, ids=name_of)


def differing(project: Path, file: Path) -> tuple[int, int]:
    """Count the lines of a file that only the plain project has, and those that only this one has."""
    lines = list(difflib.ndiff(*both(project, file)))
    return sum(line.startswith("- ") for line in lines), sum(line.startswith("+ ") for line in lines)


def both(project: Path, file: Path) -> tuple[list[str], list[str]]:
    """Return the lines of a file as the plain project has them, and as this one has them."""
    plain, plugged_in = ((folder / file).read_text().splitlines() for folder in (plain_of(project), project))
    return plain, plugged_in


def plain_of(project: Path) -> Path:
    """Return the project that a plugged-in one was."""
    return project.with_name("plain")


def test_every_project_is_plugged_in():
    assert [project.parent for project in PLUGGED_IN] == [project.parent for project in PLAIN]


@projects
def test_the_server_differs_in_two_lines_the_client_in_fifteen_and_nothing_else(project):
    assert files_of(project) == files_of(plain_of(project))
    for file in files_of(project):
        allowed = {"server_app.py": 2, "client_app.py": 15, "pyproject.toml": 1}.get(file.name, 0)
        assert max(differing(project, file)) <= allowed, file


@projects
def test_the_page_shows_what_differs(project):
    page = (ROOT / "docs" / "plug-in.md").read_text()
    for file in files_of(project):
        # Without the two lines that name the files, and with as little around as makes a place known.
        hunks = list(difflib.unified_diff(*both(project, file), n=1, lineterm=""))[2:]
        if hunks and file.name in ("client_app.py", "server_app.py"):
            assert f"```diff\n{chr(10).join(hunks)}\n```" in page, file


@projects
def test_only_the_shared_adapter_travels_and_clients_get_better(project, finished):
    run = finished(project)
    sent, replied = run.arrays("to client", "train"), run.arrays("to server", "train")
    assert len(sent) == len(replied) == CLIENTS * ROUNDS
    assert {frozenset(arrays) for arrays in [*sent, *replied]} == {frozenset(run.saved)}
    assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in run.saved)
    assert all(value.any() for value in run.saved.values())
    loss, accuracy = run.measured("train", "ce-student"), run.measured("evaluate", "eval_acc")
    assert (loss[-1] < loss[0]).all(), loss
    assert accuracy[-1].mean() > accuracy[0].mean(), accuracy


def mixed(server: Path, clients: Path, tmp_path: Path, drawn: Path) -> Federation:
    """Run one project's ServerApp with the clients of another; both have one package's name."""
    settings = config(server) | {"num-server-rounds": 1, "save-to": str(tmp_path / "saved.safetensors")}
    with own_home(tmp_path, drawn), imported(server) as (server_app, _):
        forget(server)
        with imported(clients) as (_, client_app):
            federation = Federation(settings, CLIENTS, client_app=client_app)
            federation.call(server_app)
    return federation


def test_a_feddat_server_ends_a_run_of_clients_that_want_its_head(tmp_path, drawn):
    """The head is private there; theirs is averaged with the rest, and PEFT misses it in the message."""
    (plugged_in,) = (project for project in PLUGGED_IN if project.parent.name == "text_classification")
    with pytest.raises(RuntimeError, match=r"0 of 2 clients gave a valid reply.*classifier\.weight"):
        mixed(plugged_in, plain_of(plugged_in), tmp_path, drawn)
    assert not (tmp_path / "saved.safetensors").exists()


def test_plugged_in_clients_take_no_head_of_a_plain_server(tmp_path, drawn):
    """Flower's own loop goes on after such rounds; each reply says what is wrong."""
    (plugged_in,) = (project for project in PLUGGED_IN if project.parent.name == "text_classification")
    federation = mixed(plain_of(plugged_in), plugged_in, tmp_path, drawn)
    trained = [m for to, m in federation.wire if to == "to server" and m.metadata.message_type == "train"]
    assert len(trained) == CLIENTS
    for message in trained:
        assert "missing or unknown arrays" in message.error.reason
        assert "classifier" in message.error.reason


def test_plugged_in_clients_under_a_plain_server_that_averages_what_they_share(tmp_path, drawn):
    """Where there is no head, any Flower strategy will do: checks are what is missing then."""
    (plugged_in,) = (project for project in PLUGGED_IN if project.parent.name == "language_model")
    federation = mixed(plain_of(plugged_in), plugged_in, tmp_path, drawn)
    replied = [message for where, message in federation.wire if where == "to server"]
    assert replied
    assert all(message.has_content() for message in replied)
    assert (tmp_path / "saved.safetensors").exists()
