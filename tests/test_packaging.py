"""The package as it is installed: what a wheel holds, and whether it works away from its sources."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from app import __version__

ROOT = Path(__file__).parents[1]

# Runs where no source of ours is: what it imports comes from the wheel.
PROGRAM = """
import sys, feddat.app
from feddat.app.backbones import load_backbone
from feddat.app.dual_adapter import DualAdapter, adapter_config
from feddat.strategies import FedDAT
from feddat.data_partitions.benchmarks import BENCHMARKS
assert feddat.app.__file__.startswith(sys.argv[1]), feddat.app.__file__
assert not {"app", "strategies", "data_partitions"} & sys.modules.keys()
backbone = load_backbone("tiny-vilt")
DualAdapter(backbone, adapter_config("bottleneck", width=backbone.width))
"""


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


@pytest.mark.slow
def test_a_wheel_holds_the_library_with_its_weights_and_nothing_generic(tmp_path):
    def python(*arguments: str, **keywords) -> None:
        # `pip install -e` left a way to the sources; the wheel's folder comes before it.
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
        subprocess.run([sys.executable, *arguments], check=True, cwd=tmp_path, env=environment, **keywords)

    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    # A build leaves files beside the sources, so it gets a copy.
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build")
    sources = shutil.copytree(ROOT, tmp_path / "sources", ignore=ignored)
    python(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(sources))
    (wheel,) = tmp_path.glob("feddat-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"feddat", f"feddat-{__version__}.dist-info"}
    assert "feddat/app/assets/tiny-vilt/model.safetensors" in names
    python(*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    python("-c", PROGRAM, str(tmp_path / "site"))
