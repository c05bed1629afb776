"""Masked captions: what the model starts from."""

import torch

from server_app.pretraining.masked_captions import sine_positions


def test_positions_tell_every_place_apart():
    positions = sine_positions(8, 192)
    assert positions.shape == (64, 192)
    assert torch.cdist(positions, positions).fill_diagonal_(9).min() > 0.5
