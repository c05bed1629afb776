"""Fixtures: a folder of data."""

import pytest

from data_partitions.benchmarks import DataOptions


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def options(tmp_path, folder):
    return DataOptions(cache_dir=tmp_path / "cache", data_dir=str(folder))
