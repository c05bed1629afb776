"""A run's rows in the tools with which people follow runs."""

import json
import struct
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from app.settings import SettingsError
from server_app.trackers import TRACKERS, make_tracker
from server_app.trackers.tracker import Tracker, values_of

TOKEN_KEY = "run-token"


def rows_in(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensorboard(folder, home):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    values = {tag: {event.step: event.value for event in read.Scalars(tag)} for tag in read.Tags()["scalars"]}
    shown = (event.tensor_proto.string_val[0].decode() for event in read.Tensors("settings/text_summary"))
    return values, "".join(shown)


def mlflow(folder, home):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("feddat").experiment_id])
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    values = {
        name: {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    return values, json.dumps(run.data.params)


def records(path):
    """Yield what a LevelDB log holds, which an offline run of W&B is after seven bytes of its own."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield whole
            whole = b""


def wandb(folder, home):
    from wandb.proto.wandb_internal_pb2 import Record

    values, shown = {}, ""
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records(path):
            record = Record()
            record.ParseFromString(data)
            shown += str(record.run)
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for name, value in items.items():
                if not name.startswith("_"):
                    values.setdefault(name, {})[int(items["_step"])] = float(value)
    return values, shown


def trackio(folder, home):
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("feddat", folder.name)
    values = {}
    for row in rows:
        for name, value in row.items():
            if "/" in name:
                values.setdefault(name, {})[row["step"]] = value
    return values, json.dumps(SQLiteStorage.get_run_config("feddat", folder.name))


READ = {read.__name__: read for read in (tensorboard, mlflow, wandb, trackio)}


def test_every_tracker_is_read_here():
    assert set(TRACKERS) == set(READ)


@pytest.fixture(params=sorted(READ))
def tracked(request, federation, home, monkeypatch):
    """Run two rounds with a tracker, go on to a third; return its folder and what the tool has of it."""
    if not find_spec(request.param):
        pytest.skip(f"{request.param} is not installed")
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it takes its folder when it is imported
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "TRACKIO_DIR", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    clients = federation(2, num_rounds=2, tracker=request.param, test_examples=12, local_epochs=2)
    folder = clients.serve()
    clients.run_config |= {"resume": folder.name, "run-name": "", "num-rounds": 3}
    clients.serve()
    return folder, *READ[request.param](folder, home)


def test_a_tool_has_the_rows_of_the_runs_own_record_and_goes_on_with_it(tracked):
    folder, values, _ = tracked
    rows = rows_in(folder)
    assert {row["round"] for row in rows} == {1, 2, 3}
    assert all("ce-student.epoch-2" in row and "metrics-dropped" not in row for row in rows)
    for row in rows:
        who = f"{row['partition']} {row['name']}"
        for key in ("ce-student", "ce-student.epoch-2", "student", "delta-shared", "bytes-up"):
            assert (key in row) == (row["round"] in values.get(f"{key}/{who}", {}))
            if key in row:
                assert values[f"{key}/{who}"][row["round"]] == pytest.approx(row[key], rel=1e-6)
    pairs = ([row["ce-student"] for row in rows if row["round"] == number] for number in (1, 2, 3))
    expected = [sum(pair) / 2 for pair in pairs]
    means = values["ce-student/mean"]
    assert [means[number] for number in (1, 2, 3)] == pytest.approx(expected, rel=1e-6)


def test_a_tool_has_the_settings_and_not_the_runs_token(tracked):
    folder, _, shown = tracked
    kept = json.loads((folder / "settings.json").read_text())
    assert "learning-rate" in shown
    assert kept[TOKEN_KEY] not in shown
    assert TOKEN_KEY not in shown


class Broken(Tracker):
    name = "broken"

    def begin(self, done):
        pass

    def log(self, server_round, values):
        self.asked = [*getattr(self, "asked", []), server_round]
        raise ConnectionError("no such server")

    def end(self, well):
        raise AssertionError("it is not asked any more")


def test_a_tool_that_fails_is_said_once_and_the_run_goes_on(federation, monkeypatch, caplog):
    made = []
    monkeypatch.setitem(TRACKERS, "broken", lambda run: made.append(Broken(run)) or made[0])
    folder = federation(2, num_rounds=2, tracker="broken", test_examples=12).serve()
    assert made[0].asked == [1]
    said = [line for line in caplog.messages if "tracker" in line]
    assert said == [
        "tracker = 'broken' failed, and the run goes on without it: ConnectionError('no such server')"
    ]
    assert {row["round"] for row in rows_in(folder)} == {1, 2}


def test_a_tool_that_is_not_there_is_refused_before_anything(federation, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SettingsError) as caught:
        federation(2, tracker="wandb").serve()
    assert str(caught.value) == (
        "tracker = 'wandb' needs 'wandb', which is not installed; allowed: pip install wandb, or"
        " tracker = 'none'"
    )
    assert not list((home / "runs").glob("[!.]*"))


def test_a_name_that_is_no_trackers_is_refused():
    with pytest.raises(SettingsError) as caught:
        make_tracker("tensorbord", SimpleNamespace())
    assert str(caught.value) == (
        "tracker = 'tensorbord'; allowed: 'none', 'mlflow', 'tensorboard', 'trackio', 'wandb'"
    )


def test_numbers_have_the_clients_names_in_letters_that_all_tools_take():
    rows = [
        {"round": 1, "partition": 0, "name": "ward 3: café/<b>", "student": 0.5, "ce-student": float("nan")},
        {"round": 1, "partition": 1, "name": "b", "student": 0.75},
        {"round": 1, "partition": -1, "phase": "train", "refused": "of nobody"},
        {"round": 1, "partition": -1, "student": 0.7, "few": 0.25},
    ]
    assert values_of(rows, {0: "ward 3: café/<b>", 1: "b"}) == {
        "student/0 ward 3_ caf_ _b_".replace("caf_ ", "caf__"): 0.5,
        "student/1 b": 0.75,
        "student/server": 0.7,
        "few/server": 0.25,
        "student/mean": pytest.approx(0.65),
        "few/mean": 0.25,
        "refused/replies": 1.0,
    }
