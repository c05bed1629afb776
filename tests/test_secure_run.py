"""Whole runs under secure aggregation: the sum is that of a plain run, and nothing else is known of it."""

import numpy as np
from safetensors.numpy import load_file

SECURE = {"secure.aggregation": True}


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_the_result_is_a_plain_runs_to_the_rounding(federation):
    plain = adapter_of(federation(4, num_rounds=1, run_name="plain").serve())
    secure = adapter_of(federation(4, num_rounds=1, run_name="secure", **SECURE).serve())
    assert plain.keys() == secure.keys()
    step = 2 / (2**20 - 1)
    for name, array in plain.items():
        assert np.abs(array - secure[name]).max() < step
