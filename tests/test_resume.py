"""A run that was stopped at any moment and resumed is, to the byte, one that never stopped."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from server_app.checkpoints import Checkpoints
from server_app.run_log import RunLog
from strategies import FedDAT
from tests.conftest import ROOT, Federation, own_home
from tests.private_files import folder_of


class Stopped(BaseException):
    """Ends the server's process; nothing may catch it."""


@contextmanager
def stop(point: str, server_round: int, act: Callable[[], None]):
    """Act when the server comes to a point of a round."""
    save, configure = Checkpoints.save, FedDAT.configure_evaluate
    replace = Path.replace

    def saving(store, checkpoint):
        now = checkpoint.server_round == server_round
        if now and point == "before its checkpoint":
            act()
        save(store, checkpoint)
        if now and point == "after its checkpoint":
            act()

    def renaming(path, target):
        if point == "while its checkpoint is written" and f"round-{server_round:06d}" in target.name:
            act()
        return replace(path, target)

    def configuring(strategy, now, *rest):
        if now == server_round and point == "before its evaluation":
            act()
        return configure(strategy, now, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", saving)
        patch.setattr(Path, "replace", renaming)
        patch.setattr(FedDAT, "configure_evaluate", configuring)
        yield


POINTS = (
    "before its evaluation",
    "before its checkpoint",
    "while its checkpoint is written",
    "after its checkpoint",
)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome(home: Path) -> dict[str, Any]:
    """Return what a run leaves in a FEDDAT_HOME, without its token and how long things took."""
    folder, clients = home / "runs" / "test", folder_of(home / "clients", "test", 0).parent
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": digest(folder / "adapter" / "adapter_model.safetensors"),
        "best adapter": digest(folder / "adapter-best" / "adapter_model.safetensors"),
        "rows": [[pair for pair in row.items() if "seconds" not in pair[0]] for row in rows],
        "checkpoints": {path.name: digest(path) for path in (folder / "checkpoints").iterdir()},
        "private": {str(path.relative_to(clients)): private(path) for path in clients.glob("*/*")},
    }


def private(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return what one file of private state says, and the bytes of its arrays."""
    with safe_open(path, "np") as file:
        facts = json.loads(file.metadata()["about"])["facts"]
    del facts["run-token"]
    return facts, {name: array.tobytes() for name, array in load_file(path).items()}


@pytest.fixture
def sites(tmp_path, drawn, run_config, monkeypatch):
    """Build federations that share nothing but what they are made of; keywords are settings."""
    from server_app import federation as room

    monkeypatch.setattr(room, "write_report", lambda folder, *_: (folder / "report.md").touch())
    homes = iter(range(99))

    def build(num_clients=2, **overrides):
        (tmp_path / str(home := next(homes))).mkdir(mode=0o700)
        return tmp_path / str(home), Federation(run_config(**{"num_rounds": 3, **overrides}), num_clients)

    with own_home(tmp_path, drawn):
        yield build


def stopped() -> None:
    raise Stopped


def finish(home, federation, drawn, *stops, act=stopped):
    """Run to the end, stopped and resumed at each of `stops`; return the folder and what is left."""
    with own_home(home, drawn):
        for point, server_round in stops:
            with stop(point, server_round, act), pytest.raises(Stopped):
                federation.serve()
            federation.run_config["resume"] = "test"
        return federation.serve(), outcome(home / "home")


@pytest.fixture
def whole_and_stopped(sites, drawn):
    """Run the same settings without a stop and with; return both outcomes."""

    def both(*stops, **settings):
        _, whole = finish(*sites(**settings), drawn)
        _, stopped = finish(*sites(**settings), drawn, *stops)
        return whole, stopped

    return both


@pytest.fixture(scope="module")
def whole(tmp_path_factory, drawn, run_config):
    """Return the outcome of three rounds of two clients without a stop."""
    home = tmp_path_factory.mktemp("whole")
    _, whole = finish(home, Federation(run_config(num_rounds=3), 2), drawn)
    return whole


@pytest.mark.parametrize(
    ("point", "server_round"), [*((point, 2) for point in POINTS), (POINTS[0], 1), (POINTS[1], 3)]
)
def test_a_stop_in_any_round_changes_nothing(sites, whole, drawn, point, server_round):
    _, stopped = finish(*sites(), drawn, (point, server_round))
    assert stopped == whole


def test_a_stop_before_the_first_round_and_one_after_another_change_nothing(sites, whole, drawn):
    stops = ("after its checkpoint", 0), ("before its checkpoint", 1), ("before its evaluation", 1)
    folder, stopped = finish(*sites(), drawn, *stops, ("after its checkpoint", 3))
    assert stopped == whole
    assert json.loads((folder / "settings.json").read_text())["resumed-after"] == [0, 0, 0, 3]


@pytest.mark.parametrize("moment", ["in it", "after it", "after its checkpoint", "in the first round"])
def test_a_stop_in_pretraining_changes_nothing(sites, drawn, monkeypatch, moment):
    """The run is there before it: stopped in it, it is done again; done, it is not."""
    from server_app import federation as room

    runs, stops = [], []

    class Pretraining:
        def __init__(self, settings, adapter, captioned):
            self.adapter = adapter

        def run(self):
            runs.append(moment)
            if stops and moment == "in it":
                raise stops.pop()
            self.adapter.begin_anew()
            return {name: value + 0.01 for name, value in self.adapter.shared().items()}

    def noting(run, **facts):
        if "pretrained" in facts and stops and moment == "after its checkpoint":
            raise stops.pop()
        note(run, **facts)

    def saving(store, checkpoint):
        if stops and moment == "after it":
            raise stops.pop()
        if stops and moment == "in the first round" and checkpoint.server_round == 1:
            raise stops.pop()
        save(store, checkpoint)

    note, save = RunLog.note, Checkpoints.save
    monkeypatch.setattr(room, "AdapterPretraining", Pretraining)
    monkeypatch.setattr(room, "load_captions", lambda settings: None)
    monkeypatch.setattr(RunLog, "note", noting)
    monkeypatch.setattr(Checkpoints, "save", saving)
    given = {
        "pretrain.part": "adapter",
        "pretrain.encoder": "/an/encoder",
        "server_device": "cpu",
        "num_rounds": 1,
    }
    _, whole = finish(*sites(**given), drawn)
    home, federation = sites(**given)
    runs.clear()
    stops.append(Stopped)
    with own_home(home, drawn), pytest.raises(Stopped):
        federation.serve()
    folder = home / "home" / "runs" / "test"
    assert (folder / "checkpoints" / "round-000000.safetensors").is_file()
    federation.run_config["resume"] = "test"
    _, stopped = finish(home, federation, drawn)
    assert stopped == whole
    assert len(runs) == (1 if moment == "in the first round" else 2)
    assert json.loads((folder / "settings.json").read_text())["pretrained"] is True


ALIGNED = {"align.when": "each-round", "align.beta": 0.0, "align.steps": 3, "server_device": "cpu"}
KINDS = [
    *({"strategy": name} for name in ("fedadam", "fedyogi", "fedavgm")),
    {"num_clients": 4, "fraction_train": 0.5},
    {"evaluate_every": 2},
    ALIGNED,
    {"wire_precision": "int8"},
    {"wire_precision": "int4", "strategy": "fedadam", **ALIGNED},
    {"num_clients": 4, "secure.aggregation": True},
    {"method": "ditto"},
    {"method": "fedavg-ft"},
    {"method": "feddpa"},
    {"method": "scaffold"},
    {"method": "fedsa-lora", "adapter": "lora"},
    {"method": "feddat-flexlora", "adapter": "lora"},
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: " ".join(map(str, settings.values())))
def test_every_kind_of_run_goes_on_exactly(whole_and_stopped, settings):
    whole, stopped = whole_and_stopped(("before its checkpoint", 3), **settings)
    assert stopped == whole


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(sites, whole, drawn, caplog):
    """The clients have trained one round more: they go back by two."""
    home, federation = sites()
    newest = home / "home" / "runs" / "test" / "checkpoints" / "round-000002.safetensors"

    def damage():
        newest.write_bytes(newest.read_bytes()[:-1])
        raise Stopped

    caplog.set_level("INFO", "flwr")
    _, stopped = finish(home, federation, drawn, ("before its checkpoint", 3), act=damage)
    assert stopped == whole
    assert any(message.startswith(f"{newest} cannot be read") for message in caplog.messages)
    assert "going on after round 1 of 3" in caplog.messages


def test_the_norm_of_adaptive_clipping_goes_on(sites, drawn):
    """A norm of 10⁻⁶ clips both clients in each round and so grows by e^0.1; the count's noise is tiny."""
    settings = {
        "dp.mode": "server-adaptive",
        "num-clients": 2,
        "dp.clipping-norm": 1e-6,
        "dp.noise-multiplier": 1e-9,
        "num_rounds": 4,
    }
    folder, _ = finish(*sites(**settings), drawn, ("before its checkpoint", 3))
    kept = load_file(folder / "checkpoints" / "round-000004.safetensors")
    norm = kept["state/1.ServerAdaptiveClipping/clipping-norm"]
    assert norm == pytest.approx(1e-6 * np.exp(4 * 0.1))


def test_a_finished_run_goes_on_for_more_rounds(sites, drawn):
    home, federation = sites(num_rounds=2)
    folder, before = finish(home, federation, drawn)
    federation.run_config |= {"resume": "test", "num-rounds": 4, "evaluate-every": 4}
    folder, after = finish(home, federation, drawn, ("after its checkpoint", 4))
    assert after["rows"][:4] == before["rows"]
    assert [dict(row)["round"] for row in after["rows"]] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert after["adapter"] != before["adapter"]
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["num-rounds"], settings["resumed-after"]) == (4, [2, 4])


def test_the_best_round_is_exported_beside_the_last(sites, drawn, monkeypatch):
    """The median of the clients' scores is best in round 2, though one of them does better in round 3."""
    from client_app import messages

    scores = {(1, 0): 0.3, (1, 1): 0.3, (2, 0): 0.5, (2, 1): 0.4, (3, 0): 0.1, (3, 1): 0.7}
    evaluate, calls = messages.evaluate, iter(scores.values())
    monkeypatch.setattr(messages, "evaluate", lambda *args: evaluate(*args) | {"student": next(calls)})
    folder, left = finish(*sites(), drawn)
    assert left["best adapter"] != left["adapter"]
    for name, server_round in (("adapter", 3), ("adapter-best", 2)):
        kept = load_file(folder / "checkpoints" / f"round-{server_round:06d}.safetensors")
        exported = load_file(folder / name / "adapter_model.safetensors")
        assert {f"arrays/{key}" for key in exported} == {key for key in kept if key.startswith("arrays/")}
        for key, array in exported.items():
            np.testing.assert_array_equal(array, kept[f"arrays/{key}"])
    cards = [(folder / name / "README.md").read_text() for name in ("adapter", "adapter-best")]
    assert ["| mean | 40.0 |" in card for card in cards] == [True, False]
    assert ["| mean | 45.0 |" in card for card in cards] == [False, True]


def main(point: str, server_round: str, home: str, drawn: str, run_config: str) -> None:
    """Serve in a process of its own, which kills itself at a point; with no point it goes on to the end."""
    from server_app import federation as room

    room.write_report = lambda folder, *_: (folder / "report.md").touch()
    federation = Federation(json.loads(run_config), 2)
    killing = stop(point, int(server_round), lambda: os.kill(os.getpid(), signal.SIGKILL))
    with own_home(Path(home), Path(drawn)), killing:
        federation.serve()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "server_round", "settings"),
    [
        (POINTS[1], 1, {}),
        (POINTS[2], 2, {}),
        (POINTS[3], 3, {}),
        ("before its checkpoint", 2, {"strategy": "fedadam"}),
        ("before its checkpoint", 2, ALIGNED),
    ],
)
def test_a_killed_process_loses_nothing(tmp_path, sites, drawn, run_config, point, server_round, settings):
    _, whole = finish(*sites(**settings), drawn)
    (killed := tmp_path / "killed").mkdir(mode=0o700)
    config = run_config(num_rounds=3, **settings)
    for kill, resume, code in ((point, "", -signal.SIGKILL), ("", "test", 0)):
        arguments = [
            kill,
            str(server_round),
            str(killed),
            str(drawn),
            json.dumps(config | {"resume": resume}),
        ]
        process = subprocess.run(
            [sys.executable, "-c", "import sys, tests.test_resume as t; t.main(*sys.argv[1:])", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=240,
        )
        assert process.returncode == code, process.stderr.decode()[-2000:]
    assert outcome(killed / "home") == whole
