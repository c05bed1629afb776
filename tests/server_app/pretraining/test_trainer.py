"""The trainer: its schedule, and what it tells."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from server_app.pretraining import trainer
from server_app.pretraining.trainer import Objective, learning_rate, train


class Line(Objective):
    """Moves a weight to 3; a second one is not trained."""

    def __init__(self):
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    backbone = SimpleNamespace()

    def trained(self):
        return [self.weight]

    def batches(self, size, steps, generator):
        for _ in range(steps):
            yield {"noise": torch.randn(size, generator=generator)}

    def losses(self, batch):
        return {"near": (self.weight - 3).square().mean(), "far": (self.other - 9).square().mean()}

    def measure(self):
        assert not torch.is_grad_enabled()
        return {"weight": self.weight.item()}

    def describe(self, name, seed, done, reached):
        return done


def test_the_learning_rate_rises_and_falls():
    assert learning_rate(1, 100, 2.0) == 1.0
    assert learning_rate(2, 100, 2.0) == 2.0
    assert learning_rate(51, 100, 2.0) == pytest.approx(1.0)
    assert learning_rate(100, 100, 2.0) == pytest.approx(0.0)


def test_it_trains_what_the_objective_names_and_tells_what_is_reached(monkeypatch, capsys):
    monkeypatch.setattr(trainer, "MEASURE_EVERY", 40)
    line, kept = Line(), []
    train(
        line,
        steps=100,
        batch_size=2,
        peak=0.1,
        seed=0,
        keep=lambda step, reached: kept.append((step, reached)),
    )
    assert line.weight.item() == pytest.approx(3, abs=0.2)
    assert line.other.item() == 0
    assert [step for step, _ in kept] == [40, 80, 100]
    assert kept[-1][1] == {"weight": line.weight.item()}
    assert "step 40: losses: near " in capsys.readouterr().out


def test_the_first_step_is_as_long_as_the_schedule_says():
    line = Line()
    train(line, steps=1, batch_size=1, peak=0.25, seed=0)
    # AdamW's first step is the learning rate in the gradient's direction; of one step, the warm-up is whole
    # and the cosine is at its start.
    assert line.weight.item() == pytest.approx(0.25, rel=1e-4)
