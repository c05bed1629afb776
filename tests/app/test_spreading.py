"""A base over two devices, and what cannot be spread."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.backbones import choose_device
from app.settings import SettingsError, read_settings
from app.spreading import check_spread
from tests.conftest import ROOT


def test_a_base_over_two_devices_computes_what_one_computes():
    tests = Path(__file__).with_name("over_two_devices.py")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(tests)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_cannot_be_spread_is_refused_in_a_line(run_config):
    for changed, line in (
        ({"loss": "bce-scores"}, "device = 'balanced' with loss = 'bce-scores'; allowed: one device"),
        ({"backbone_weights": "random"}, "device = 'balanced' with backbone-weights = 'random'"),
        ({"server_device": "sequential"}, "server-device = 'sequential'; allowed: 'auto', 'cpu', 'cuda'"),
    ):
        with pytest.raises(SettingsError, match=line):
            read_settings(run_config(**{"loss": "next-token", "device": "balanced", **changed}))
    with pytest.raises(ValueError, match="device = 'sequential' without CUDA; allowed: auto, cpu"):
        choose_device("sequential")
    line = "device = 'balanced': the GPUs have no memory for 1.weight; allowed: more GPUs, or a backbone-prec"
    with pytest.raises(ValueError, match=line):
        check_spread(
            torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, device="meta")), "balanced"
        )
