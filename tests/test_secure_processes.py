"""Secure aggregation by Ray's processes: each message may come to another one.

A process for each, and a power cut, are in `test_deployment.py`.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load

from tests.processes import adapter_of, simulating_lab

pytestmark = pytest.mark.slow

CLIENTS = 4
SECURE = {"secure.aggregation": True}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with simulating_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def test_a_simulation_sums_what_one_process_does_and_goes_on(lab, run_config, federation):
    nodes = f"num-supernodes={CLIENTS} client-resources-num-cpus=1 init-args-num-cpus=2"
    folder = lab.folder / "home" / "runs" / "simulated"
    for more in ({"run_name": "simulated"}, {"resume": "simulated", "run_name": "", "num_rounds": 3}):
        run_id = lab.start(run_config(**SECURE, **more), "--federation-config", nodes)
        assert lab.wait(run_id)["status"] == "finished:completed"
        if "resume" not in more:
            ours = load(adapter_of(federation(CLIENTS, **SECURE).serve()))
            theirs = load(adapter_of(folder))
            for name, array in ours.items():
                # Equal to the bit with one thread; more threads may sum in another order.
                np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-5)
    rows = rows_of(folder)
    assert [row["round"] for row in rows if "ce-student" in row] == [1] * 4 + [2] * 4 + [3] * 4
    assert not any("refused" in row or "delta-shared" in row for row in rows)
    summed = (lab.folder / "home" / "clients" / "summed-0.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in summed] == ["1 0 1 2 3", "2 0 1 2 3", "3 0 1 2 3"]
    assert not list((lab.folder / "home" / "clients").glob("secure-*"))
