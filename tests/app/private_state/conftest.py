"""Fixtures: a client's shelf, and how it is filled and read."""

import pytest

from app.private_state import Shelf, load_private_state, save_private_state
from tests.app.private_state.states import FIRST, state_of


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "clients", "test", "0123abcd", 3)


@pytest.fixture
def save(shelf):
    def save(*rounds, shelf=shelf):
        for server_round in rounds:
            save_private_state(shelf, server_round, state_of(float(server_round)))

    return save


@pytest.fixture
def load(shelf):
    """Load; return the round that a state is of, and how many were lost."""

    def load(up_to, expected=0, shelf=shelf, first=FIRST, **keywords):
        state, lost = load_private_state(shelf, up_to, first, expected, **keywords)
        return state.head["fc.bias"].item(), lost

    return load
