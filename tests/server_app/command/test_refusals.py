"""What cannot be done is refused by the real command in one line, before anything is started."""

import json
import re
import socket

import pytest

WRONG = [
    (
        "num-round=3",
        r"num-round = 3 is not a setting; all of them: feddat settings; did you mean num-rounds\?",
    ),
    ("align-steps=3", r"align-steps is now align\.steps"),
    ("--num-rounds=3", r"--num-rounds is no option but a setting: num-rounds=VALUE"),
    ("num-rounds=0", r"num-rounds = 0; allowed: greater than 0"),
    ("num-rounds=many", r"num-rounds = 'many'; allowed: a whole number"),
    ("align.steps=-1", r"align\.steps = -1; allowed: greater than or equal to 0"),
    ("strategy=fedsgd", r"strategy = 'fedsgd'; allowed: 'fedavg', .*"),
    ("data-dir=here", r"data-dir = 'here' is not a folder; allowed: one that is there"),
    ("lorra", r"'lorra' is not a recipe; allowed: .*lora, .*; did you mean lora\?"),
    ("missing.toml", r"recipe = 'missing\.toml' is not a file; allowed: .*lora, .*, or a file NAME\.toml"),
    ("num-rounds", r"num-rounds is a setting; allowed: num-rounds=VALUE, without spaces"),
    ("method=fedat", r"method = 'fedat'; allowed: 'adapter', .*; did you mean feddat\?"),
    ("method=fedavg", r"method = 'fedavg'; allowed: 'adapter', .*; did you mean adapter\?"),
    ("run-name=my run", r"run-name = 'my run'; allowed: letters, digits, .*"),
    ("resume=nix", r"resume = 'nix' is not a run in .*/home/runs; allowed: none yet"),
]


@pytest.mark.parametrize(("word", "reason"), WRONG, ids=[word for word, _ in WRONG])
def test_what_a_run_cannot_be_given(person, word, reason):
    assert re.fullmatch(reason, person.is_refused("run", word))
    assert list(person.home.iterdir()) == []


def test_what_does_not_go_together(person):
    reason = person.is_refused("run", "update=joint", "step=reference")
    assert reason == "update = 'joint' is not in the published step; allowed with step = 'fast' only"
    reason = person.is_refused("run", "generative", "adapter=prompt")
    assert reason == "adapter = 'prompt' with backbone = 'tiny-vlm'; allowed: 'bottleneck', 'lora'"


def test_a_setting_given_as_an_option(person):
    line = "--dp.mode is no option but a setting: dp.mode=VALUE"
    assert person.is_refused("check", "--dp.mode", "local") == line


def test_a_file_that_is_missing(person):
    (person.folder / "data").mkdir()
    words = ("benchmark=vqa-domains", f"data-dir={person.folder / 'data'}")
    reason = r"data-dir = '.*/data' has no parquet files; allowed: one or more"
    assert re.fullmatch(reason, person.is_refused("run", *words))


def test_a_name_that_is_taken(person):
    (person.home / "runs" / "mine").mkdir(parents=True, mode=0o700)
    reason = person.is_refused("run", "run-name=mine")
    assert re.fullmatch(r"run-name = 'mine' is taken: .*/runs/mine; allowed: another name, or .*", reason)


def test_a_port_that_is_taken(person):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        reason = person.is_refused("run", "--port", str(port))
    assert reason == f"port = {port} is taken; allowed: another one, or 0 for one that is free"


def test_a_disk_that_is_full(person):
    full = "import shutil\nshutil.disk_usage = lambda path: type('Usage', (), {'free': 3_000_000})\n"
    (person.folder / "sitecustomize.py").write_text(full)
    reason = person.is_refused("run")
    assert re.fullmatch(r"FEDDAT_HOME = '.*/home' has 3 MB free; allowed: at least 500 MB", reason)


def test_a_tracker_that_is_not_there(person):
    (person.folder / "sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n")
    assert person.is_refused("run", "tracker=wandb") == (
        "tracker = 'wandb' needs 'wandb', which is not installed; allowed: pip install wandb, or"
        " tracker = 'none'"
    )
    assert list(person.home.iterdir()) == []


def test_a_backbone_that_is_not_there(person):
    reason = r"backbone = '/no/such' cannot be loaded; allowed: tiny-vilt, .* \(.*/no/such.*\)"
    assert re.fullmatch(reason, person.is_refused("run", "backbone=/no/such"))
    assert list(person.home.iterdir()) == []


def test_a_home_that_others_may_write_in(person):
    person.home.chmod(0o777)
    assert re.match(r"FEDDAT_HOME = '.*' is open to other users \(777\)", person.is_refused("run"))


def test_settings_that_a_run_was_not_begun_with(person):
    folder = person.home / "runs" / "mine"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "settings.json").write_text(json.dumps({"learning-rate": 0.002, "num-rounds": 6}))
    reason = person.is_refused("run", "resume=mine", "learning-rate=0.1", "num-rounds=9")
    assert reason.startswith("learning-rate = 0.1 with resume = 'mine', which was begun with 0.002; allowed")


@pytest.mark.parametrize(
    "words", [("report", "nix"), ("runs", "compare", "nix", "nix"), ("runs", "prune", "nix")]
)
def test_a_run_that_is_not_there(person, words):
    assert re.fullmatch(r"'nix' is not a run in .*; allowed: none yet", person.is_refused(*words))


def test_no_start_waits_for_torch(person):
    """A wrong setting is said in a second, and so is help."""
    (person.folder / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    assert person.is_refused("run", "num-rounds=0") == "num-rounds = 0; allowed: greater than 0"
    called = person.calls("--help")
    assert called.returncode == 0
    assert "run" in called.stdout


def test_help_is_plain_and_whole(person):
    commands = person.calls("--help", COLUMNS="80").stdout.split("Commands:")[1]
    assert "run " in commands
    assert "..." not in commands
    shown = person.calls("run", "--help").stdout
    assert "[default: 1; x>=1]" in shown
    assert "\\" not in shown


def test_what_is_no_client_or_no_picture_of_a_run(person):
    asked = ("answer", "--question", "what ?", "--client", "7", "--image", "here.png", "--run")
    assert person.is_refused(*asked, "nix").startswith("'nix' is not a run in ")
    folder = person.home / "runs" / "mine"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "settings.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"round": 1, "partition": 7, "name": "clean"}\n')
    assert person.is_refused(*asked, "mine") == "image = 'here.png' is not a file; allowed: a picture"
    (folder / "metrics.jsonl").write_text('{"round": 1, "partition": 0, "name": "clean"}\n')
    assert person.is_refused(*asked, "mine") == "client = 7 is not in the run 'mine'; allowed: 0 (clean)"
