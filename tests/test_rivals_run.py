"""Runs of the rivals: each says what its paper says, and no more; what it keeps is in its private file."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.private_files import newest_state

LORA = {"adapter": "lora"}
# Method, settings, what is in each name that travels, and in each of a client's own but for the head's.
RIVALS = [
    ("ditto", {}, ".bottleneck_", ".bottleneck_"),
    ("fedavg-ft", {}, ".bottleneck_", ".bottleneck_"),
    ("feddpa", {}, ".bottleneck_", ".bottleneck_"),
    ("fedsa-lora", LORA, ".lora_A.", ".lora_B."),
    ("ffa-lora", LORA, ".lora_B.", None),
    ("plora", LORA, ".lora_B.", ".lora_A."),
    ("feddat", {"adapter": "prompt"}, ".block_prompt_tokens", ".block_prompt_tokens"),
    ("head", {}, None, None),
    ("bias", {}, "bias", None),
    ("layernorm", {}, "layernorm", None),
]


@pytest.mark.parametrize(("method", "settings", "travels", "stays"), RIVALS, ids=[r[0] for r in RIVALS])
def test_only_what_the_paper_sends_travels(federation, home, method, settings, travels, stays):
    clients = federation(2, method=method, num_rounds=1, **settings)
    folder = clients.serve()
    records = [record for _, message in clients.wire for record in message.content.array_records.values()]
    names = {name for record in records for name in record}
    assert bool(names) is bool(travels)
    assert all(travels in name.lower() or travels in name for name in names)

    states = [newest_state(home / "clients", "test", partition) for partition in range(2)]
    for state in states:
        assert "private-head" in state
        assert ("private-local" in state) is bool(stays)
        assert all(stays in name for name in state.get("private-local", {}))
    # No array of a private state is in any message, in whole.
    replies = {array.data for record in records for array in record.values()}
    private = [array for state in states for part in state.values() for array in part.values()]
    telling = {array.data for array in private if np.ptp(array.numpy()) > 0}
    assert telling
    assert not replies & telling

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["partition"] for row in rows} == {0, 1}
    assert not any("refused" in row or "metrics-dropped" in row for row in rows)
    assert all(0 <= row["student"] <= 1 for row in rows)


def arrays_of(clients, where):
    messages = [m.content["arrays"] for to, m in clients.wire if to == where and "arrays" in m.content]
    return [{name: array.numpy() for name, array in message.items()} for message in messages]


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_scaffolds_server_has_the_mean_of_all_clients_control_variates(federation, home, fraction):
    """Those never asked have zeros; in each round one of two, or both, are asked."""
    clients = federation(2, method="scaffold", num_rounds=3, evaluate_every=3, fraction_train=fraction)
    folder = clients.serve()
    asked, told = arrays_of(clients, "to client"), arrays_of(clients, "to server")
    each = round(2 * fraction)
    assert len(told) == 3 * each
    adapter = {name for name in asked[0] if not name.startswith("control.")}
    controls = asked[0].keys() - adapter
    assert controls == {f"control.{name}" for name in adapter}

    states = [home.glob(f"clients/*/{i}/*.safetensors") for i in range(2)]
    there = [i for i, files in enumerate(states) if any(files)]
    kept = [newest_state(home / "clients", "test", i)["private-local"] for i in there]
    for name in controls:
        assert not asked[0][name].any()
        last = sum(one[name] for one in told[-each:]) / each
        assert last.any()
        np.testing.assert_allclose(last, sum(one[name].numpy() for one in kept) / 2, atol=1e-6)
    # A control is no change of the adapter.
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    changes = [row["delta-shared"] for row in rows if row["round"] == 1 and "delta-shared" in row]
    norms = [np.sqrt(sum(((one[n] - asked[0][n]) ** 2).sum() for n in adapter)) for one in told[:each]]
    assert sorted(changes) == pytest.approx(sorted(norms), rel=1e-4)
    exported = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert exported.keys() == adapter


@pytest.mark.parametrize("method", ["fedsa-lora", "ffa-lora", "plora"])
def test_an_exported_half_is_beside_the_others_first_weights(federation, method):
    clients = federation(2, method=method, num_rounds=1, adapter="lora")
    exported = load_file(clients.serve() / "adapter" / "adapter_model.safetensors")
    halves = [{name for name in exported if f".lora_{kind}." in name} for kind in "AB"]
    assert len(halves[0]) == len(halves[1]) > 0
    last = [m for where, m in clients.wire if where == "to client"][-1].content["arrays"]
    assert all((exported[name].numpy() == array.numpy()).all() for name, array in last.items())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"method": "fedsa-lora"}, "adapter = 'bottleneck' with method = 'fedsa-lora'; allowed: 'lora'"),
        ({"method": "bias", "loss": "next-token"}, "method = 'bias' with loss = 'next-token'"),
        ({"method": "feddpa", "loss": "next-token"}, "method = 'feddpa' with loss = 'next-token'"),
        ({"method": "scaffold", "strategy": "fedadam"}, "strategy = 'fedadam' with"),
        ({"method": "scaffold", "clip_change": 1.0}, "clip-change = 1.0 with"),
        ({"method": "scaffold", "gradient_accumulation": 2}, "gradient-accumulation = 2 with"),
        ({"method": "scaffold", "dp.mode": "server-fixed"}, "dp.mode = 'server-fixed' with"),
        ({"method": "ditto", "update": "joint"}, "update = 'joint' is a step of two adapters"),
        ({"method": "ditto", "personal__pull": -1.0}, "personal.pull = -1.0; allowed: "),
    ],
)
def test_settings_that_a_rival_cannot_work_with_are_refused(run_config, settings, line):
    from app.settings import SettingsError, read_settings

    with pytest.raises(SettingsError) as error:
        read_settings(run_config(**settings))
    assert line in str(error.value)
