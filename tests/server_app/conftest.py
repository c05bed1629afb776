"""A teacher of random weights, and pictures to show it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORDS = "what color is the small circle ? there a red square describe picture . yes no green two blue left"


@pytest.fixture(scope="session")
def random_llava(tmp_path_factory) -> Path:
    """Save a LLaVA of large random weights, so that what it says depends on what it sees."""
    import torch

    from server_app.toy_teacher import build

    torch.manual_seed(0)
    model, processor = build([WORDS])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Return six different pictures of noise."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(6)]
