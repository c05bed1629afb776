"""`feddat check` given a run as `feddat run` is; what its lines say: tests/client_app/test_check.py."""

import pytest

from client_app import check as program
from server_app.command import app
from server_app.command.refusal import Refusal


def settings_of(monkeypatch, *words):
    """Return the settings with which the command has a simulation's clients checked."""
    seen = []

    def open_site(node_config, run_config):
        seen.append(read(node_config, run_config).client.settings)
        raise ValueError("enough")

    read = program.open_site
    monkeypatch.setattr(program, "open_site", open_site)
    with pytest.raises(SystemExit) as ended:
        app(["check", *words])
    assert ended.value.code == 1
    return seen[0]


@pytest.mark.parametrize(
    "words",
    [
        ("lora", "seed=4", "device=cpu"),
        ("--run-config", "adapter='lora' seed=4 device='cpu'"),
    ],
    ids=["words", "run-config"],
)
def test_a_run_is_named_as_for_run_or_as_for_flower(home, monkeypatch, words):
    settings = settings_of(monkeypatch, *words)
    assert (settings.adapter, settings.seed, settings.device) == ("lora", 4, "cpu")


def test_text_needs_no_quotes_of_its_own(home, tmp_path, monkeypatch):
    folder = tmp_path / "two words"
    folder.mkdir()
    settings = settings_of(monkeypatch, "benchmark=files", f"data-dir={folder}")
    assert (settings.benchmark, settings.data_dir) == ("files", str(folder))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("learning-rat=1",), "learning-rat = 1 is not a setting; all of them: "),
        (("nosuch",), "'nosuch' is not a recipe; allowed: "),
        (("lora", "--run-config", "seed=4"), "--run-config = 'seed=4' with lora; allowed: one of the two"),
    ],
)
def test_what_run_would_refuse_is_refused(home, words, reason):
    with pytest.raises(Refusal, match="^" + reason.replace("?", r"\?")):
        app(["check", *words])
