"""Which run may be gone on with: anything else ends with one line, before a client is asked anything."""

import json
import shutil
from contextlib import nullcontext

import pytest

from app.settings import SettingsError
from server_app.checkpoints import Checkpoints
from tests.conftest import default_run_config


@pytest.fixture
def folder(home, finished):
    """Return a finished run of two rounds."""
    return shutil.copytree(finished.folder, home / "runs" / "test")


@pytest.fixture
def resume(folder, federation, finished):
    """Go on with the run; keywords are settings."""

    def serve(**overrides):
        given = finished.federation.run_config | {"resume": "test", "run-name": ""}
        clients = federation(3, **given | {key.replace("_", "-"): value for key, value in overrides.items()})
        clients.serve()
        return clients

    return serve


@pytest.fixture
def refusal(folder, resume):
    """Return the line that going on ends with; nothing in the folder was touched."""

    def error(**overrides):
        before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
        with pytest.raises(SettingsError) as caught:
            resume(**overrides)
        assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return error


def change(folder, **facts):
    """Change what was kept of the run."""
    path = folder / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_settings_that_differ_are_listed(refusal):
    line = refusal(learning_rate=0.5, strategy="fedadam", num_rounds=9, evaluate_every=2, wait_seconds=1.0)
    assert line == (
        "resume = 'test' was begun with other settings (kept → given): learning-rate: 0.002 → 0.5,"
        " strategy: 'fedavg' → 'fedadam'; allowed to differ: device, evaluate-every, max-failure-rate,"
        " min-clients, node-partitions, num-rounds, resume, round-timeout, run-name, server-device,"
        " tracker, wait-seconds"
    )


def test_a_run_with_settings_of_old_names_is_refused_with_a_new_one(folder, refusal):
    path = folder / "settings.json"
    kept = json.loads(path.read_text())
    kept = {key.replace("align.", "align-"): value for key, value in kept.items()}
    path.write_text(json.dumps(kept))
    assert refusal(num_rounds=3) == (
        "resume = 'test' was begun with old names of settings: align-steps is now align.steps;"
        " allowed: the version of feddat that began it"
    )


def test_another_backbone_of_the_same_name_is_refused(folder, refusal):
    change(folder, **{"backbone-hash": "abc"})
    assert "(kept → given): backbone-hash: 'abc' → '" in refusal(num_rounds=3)


def test_another_name_is_refused(refusal):
    assert refusal(run_name="other") == "run-name = 'other' with resume = 'test'; allowed: '' or the same"


def test_an_unknown_run_is_refused_with_those_that_there_are(folder, refusal):
    assert refusal(resume="tset") == f"resume = 'tset' is not a run in {folder.parent}; allowed: test"


def test_settings_that_cannot_be_read_are_refused(folder, refusal):
    (folder / "settings.json").write_text("{")
    assert refusal().startswith("resume = 'test': its settings.json cannot be read: ")


def test_a_run_without_a_checkpoint_is_refused(folder, refusal):
    shutil.rmtree(folder / "checkpoints")
    assert refusal(num_rounds=3) == (
        f"resume = 'test' has no checkpoint that can be read in {folder / 'checkpoints'};"
        " allowed: a run with one, or '' to begin anew"
    )


@pytest.mark.parametrize("num_rounds", [1, 2])
def test_a_finished_run_is_refused(refusal, num_rounds):
    assert refusal(num_rounds=num_rounds) == (
        f"resume = 'test' is finished: round 2 is done and num-rounds = {num_rounds}; allowed: more rounds"
    )


def test_another_source_or_version_is_said(folder, resume, caplog):
    change(folder, **{"source-hash": "abc", "torch": "1.0"})
    resume(num_rounds=3)
    said = [message.split(" was ")[0] for message in caplog.messages if "when the run was begun" in message]
    assert said == ["source-hash", "torch"]
    kept = json.loads((folder / "settings.json").read_text())
    assert (kept["source-hash"], kept["num-rounds"]) == ("abc", 3)


def test_what_else_is_kept_of_a_run_stays(folder, resume):
    """Such as the token by which clients know it."""
    change(folder, **{"run-token": "0123abcd"})
    resume(num_rounds=3)
    assert json.loads((folder / "settings.json").read_text())["run-token"] == "0123abcd"


def test_a_cut_line_and_rows_of_later_rounds_are_cut_off(folder, resume):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    refused = json.dumps({"round": 1, "partition": -1, "phase": "train", "refused": "second reply"}) + "\n"
    nothing = json.dumps({"round": 2, "partition": 0, "student": None}) + "\n"
    later = json.dumps({"round": 3, "partition": 0}) + "\n"
    path.write_text("".join([refused, refused, *lines, nothing, later, later[:9]]))
    resume(num_rounds=3)
    after = path.read_text().splitlines(keepends=True)
    assert after[:-3] == [refused, refused, *lines, nothing]
    assert [json.loads(line)["name"] for line in after[-3:]] == ["clean", "sketch", "noisy"]


HOSTILE = {"round": 1, "partition": 0, "name": "clean", "student": 1.7e308, "refused": 1.0, "own": 0.5}
DAMAGES = {
    "missing": lambda path, lines: path.unlink(),
    "empty": lambda path, lines: path.write_bytes(b""),
    "cut": lambda path, lines: path.write_bytes(b"".join(lines)[:-400]),
    "no text": lambda path, lines: path.write_bytes(b"\x00\xff\n" * 9 + b"".join(lines)),
    "no rows": lambda path, lines: path.write_bytes(b'[1]\n"x"\n3\nnull\n{}\n' + b"".join(lines)),
    "a number of 400 digits": lambda path, lines: path.write_bytes(
        b"".join(lines) + b'{"round":1,"partition":0,"student":1' + b"0" * 400 + b"}\n"
    ),
    "nested": lambda path, lines: path.write_bytes(b"[" * 10**6 + b"\n" + b"".join(lines)),
    "of the old code": lambda path, lines: path.write_text(f"{json.dumps(HOSTILE)}\n" * 2),
    "wrong types": lambda path, lines: path.write_text(
        '{"round": "1", "partition": 0}\n{"round": 1, "partition": [0]}\n'
        '{"round": 1, "partition": 0, "name": {}, "student": "x", "local": 1e999, "phase": "train"}\n'
        '{"round": true, "partition": 0}\n{"round": -1, "partition": 0}\n{"round": 1, "partition": -2}\n'
    ),
    "a folder": lambda path, lines: (path.unlink(), path.mkdir(), (path / "x").touch()),
    "a client's count in the server's row": lambda path, lines: path.write_bytes(
        b"".join(lines) + b'{"round": 1, "partition": -1, "clipped": 0.5}\n'
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_no_metrics_file_keeps_a_run_from_going_on(folder, resume, caplog, damage):
    """What can be read stays, what is wrong is said in one line, and report and result are written."""
    from server_app.report import write_report

    path = folder / "metrics.jsonl"
    damage(path, path.read_bytes().splitlines(keepends=True))
    resume(num_rounds=3)
    said = [message for message in caplog.messages if message.startswith(f"{path}: ")]
    assert len(said) == 1
    assert said[0].isprintable()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["name"] for row in rows[-3:]] == ["clean", "sketch", "noisy"]
    assert all(row.keys().isdisjoint({"refused", "own", "phase"}) for row in rows)
    assert all(0 <= row.get("student", 0) <= 1 for row in rows)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    # A whole report can be made of what was kept.
    kept = json.loads((folder / "settings.json").read_text())
    write_report(folder, kept, rows, 1.0)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"3", b"\xff\x00", b"[" * 10**6, b'{"a": ' * 10**5, b'{"num-rounds": NaN}'],
)
def test_damaged_settings_are_one_line(folder, refusal, content):
    (folder / "settings.json").write_bytes(content)
    assert refusal(num_rounds=3).startswith("resume = 'test'")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"resumed-after": 3}, "settings.json has no resumed-after that can be read: "),
        ({"resumed-after": ["x"]}, "settings.json has no resumed-after that can be read: "),
        ({"run-token": None}, "settings.json has no run-token that can be read: clients do not find "),
        ({"run-token": "a" * 65}, "settings.json has no run-token that can be read: clients do not find "),
        ({"run-token": "../x"}, "settings.json has no run-token that can be read: clients do not find "),
        ({"source-hash": [3], "flwr": {}, "more": None}, "source-hash was [3] when the run was begun"),
    ],
)
def test_what_the_settings_only_tell_is_said_and_the_run_goes_on(folder, resume, caplog, facts, said):
    change(folder, **facts)
    resume(num_rounds=3)
    assert any(message.startswith(said) for message in caplog.messages)
    kept = json.loads((folder / "settings.json").read_text())
    assert kept["resumed-after"] == [2]
    assert len(kept["run-token"]) == 32


def test_a_run_stopped_before_its_report_is_finished(folder, resume):
    for name in ("report.md", "adapter/adapter_model.safetensors"):
        (folder / name).unlink()
    clients = resume()
    assert {message.metadata.message_type for _, message in clients.wire} == {"query"}
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_without_the_best_checkpoint_the_rest_is_exported(folder, resume, caplog, monkeypatch):
    shutil.rmtree(folder / "adapter-best")
    (folder / "report.md").unlink()
    newest = Checkpoints.newest

    def then_damage(store):
        checkpoint = newest(store)
        for path in store.folder.iterdir():
            path.write_bytes(b"")
        return checkpoint

    monkeypatch.setattr(Checkpoints, "newest", then_damage)
    resume()
    assert any(message.startswith("there is no adapter-best: ") for message in caplog.messages)
    assert (folder / "adapter").is_dir()
    assert not (folder / "adapter-best").exists()


def test_a_resumed_run_of_the_defaults_keeps_every_number(federation, caplog):
    """What the settings of other tests switch off is in its rows too, such as how much was clipped."""

    def rows_of(folder):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: row[key] for key in row if not key.endswith("-seconds")} for row in rows]

    def stop(node, reply):
        if reply.metadata.message_type == "train" and len(clients.wire) > 3 * 2 * 3:
            raise KeyboardInterrupt
        return reply

    defaults = {"clip-change": default_run_config()["clip-change"]}
    whole = federation(3, run_name="whole", **defaults).serve()
    clients = federation(3, run_name="cut", alter=stop, **defaults)
    with pytest.raises(KeyboardInterrupt):
        clients.serve()
    federation(3, run_name="", resume="cut", **defaults).serve()
    cut = whole.with_name("cut")
    assert rows_of(cut) == rows_of(whole)
    assert all("clipped" in row for row in rows_of(cut))
    assert not list(cut.glob("*.damaged-*"))
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("name", [".lock", "report.md"])
def test_a_folder_in_place_of_a_file_is_one_line(folder, refusal, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert str(folder / name) in refusal(num_rounds=3)


def test_what_lies_in_the_results_place_is_replaced(folder, resume, tmp_path):
    """And nothing of what a link leads to."""
    for name in ("adapter", "adapter-best"):
        shutil.rmtree(folder / name)
    (folder / "adapter").write_text("a file")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own").touch()
    (folder / "adapter-best").symlink_to(elsewhere)
    resume(num_rounds=3)
    for name in ("adapter", "adapter-best"):
        assert (folder / name / "adapter_model.safetensors").is_file()
        assert not (folder / name).is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["own"]


def test_a_folder_in_a_checkpoints_place_is_kept_aside(folder, resume, caplog):
    place = folder / "checkpoints" / "round-000003.safetensors"
    place.mkdir()
    (place / "own").touch()
    resume(num_rounds=3)
    assert place.is_file()
    assert (place.with_name(f"{place.name}.aside-1") / "own").exists()
    assert any(f"{place} is a folder" in message for message in caplog.messages)


def test_a_checkpoint_in_other_digits_is_none(folder, resume):
    (folder / "checkpoints" / "round-\u0660\u0660\u0660\u0660\u0660\u0667.safetensors").write_text("x")
    resume(num_rounds=3)


def test_a_run_whose_folder_has_another_name_finds_its_clients_states(federation, home):
    """A copy goes on as the run itself would have."""

    def stop(node, reply):
        if reply.metadata.message_type == "train" and last_round(clients) == stopped:
            raise KeyboardInterrupt
        return reply

    def last_round(clients):
        return clients.wire[-1][1].content["config"]["server-round"]

    federation(2, run_name="whole", num_rounds=3).serve()
    clients, stopped = federation(2, run_name="first", num_rounds=3, alter=stop), 2
    with pytest.raises(KeyboardInterrupt):
        clients.serve()
    for before, now in (("first", "second"), ("second", "third")):
        shutil.copytree(home / "runs" / before, home / "runs" / now)
        clients, stopped = federation(2, run_name="", resume=now, num_rounds=3, alter=stop), stopped + 1
        with pytest.raises(KeyboardInterrupt) if now == "second" else nullcontext():
            clients.serve()
    rows = (home / "runs" / "third" / "metrics.jsonl").read_text()
    assert "state-recovered" not in rows
    adapters = [home / "runs" / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "third")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert [path.name.rpartition("-")[0] for path in (home / "clients").glob("*-*")].count("first") == 1
