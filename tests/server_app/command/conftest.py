"""Fixtures: somebody who uses the command."""

import pytest

from .command import Person


@pytest.fixture
def person(tmp_path):
    (tmp_path / "home").mkdir(mode=0o700)
    return Person(tmp_path)
