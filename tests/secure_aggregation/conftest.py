"""A federation of parties whose changes are known, in one process."""

import os

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(autouse=True)
def task(monkeypatch):
    """Messages can only be made inside a Flower task; and no machine here loses its power."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def changes():
    random = np.random.default_rng(0)
    return [random.uniform(-1, 1, 50) for _ in range(10)]
