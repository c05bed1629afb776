"""`--cpus` and `--gpus`: what each simulated client gets, as Flower reads it."""

import pytest
import torch
from flwr.common.config import parse_config_args
from flwr.supercore.utils import simulation_config_from_json

from server_app.command import app
from server_app.command import run as room
from server_app.command.refusal import Refusal


@pytest.fixture
def simulated(home, monkeypatch):
    """Return what Flower makes of the federation-config of a command."""

    def of(*words, has_gpu=False):
        def alone(root, scratch, port, options, log, screen):
            (config,) = (options[i + 1] for i, word in enumerate(options) if word == "--federation-config")
            seen.update(parse_config_args([config]))
            return "enough"

        seen: dict = {}
        monkeypatch.setattr(room, "_alone", alone)
        monkeypatch.setattr(room, "_check", lambda settings: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
        with pytest.raises(Refusal, match="enough"):
            app(["run", "num-clients=3", *words])
        return simulation_config_from_json({key.replace("-", "_"): value for key, value in seen.items()})

    return of


@pytest.mark.parametrize(
    ("words", "has_gpu", "cpus", "gpus"),
    [
        ((), False, 1, 0),
        ((), True, 1, 1),
        (("device=cpu",), True, 1, 0),
        (("--cpus", "2", "--gpus", "0.25"), True, 2, 0.25),
        (("--gpus", "0"), True, 1, 0),
    ],
)
def test_a_client_gets_what_is_said_or_one_cpu_and_the_gpu(simulated, words, has_gpu, cpus, gpus):
    config = simulated(*words, has_gpu=has_gpu)
    assert config.num_supernodes == 3
    assert (config.client_resources_num_cpus, config.client_resources_num_gpus) == (cpus, gpus)
