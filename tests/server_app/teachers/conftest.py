"""Where answers are kept."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a file that is not there yet."""
    return tmp_path / "kept.parquet"
