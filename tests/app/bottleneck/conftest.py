"""Every architecture in turn, without a hub."""

import pytest

from tests.app.bottleneck.on_backbones import BACKBONES


@pytest.fixture(params=sorted(BACKBONES))
def kind(request) -> str:
    """Return the architecture's name."""
    return request.param


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    """Have nothing look at a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
