"""The package as it is installed: what a wheel holds, and whether it works away from its sources."""

import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.common.constant import FAB_INCLUDE_PATTERNS

from app import __version__
from server_app.comparison import STUDY
from tests.conftest import ROOT
from tests.wheel import build, environment_with

# Runs where no source of ours is: what it imports comes from the wheel.
PROGRAM = """
import sys, feddat.app
from feddat.app.backbones import load_backbone
from feddat.app.adapters import adapt, adapter_config
from feddat import DualAdapter, FedDAT, FedDATClient, PrivateStore, mkd_step
from feddat.data_partitions.benchmarks import BENCHMARKS
assert feddat.app.__file__.startswith(sys.argv[1]), feddat.app.__file__
assert not {"app", "strategies", "data_partitions"} & sys.modules.keys()
backbone = load_backbone("tiny-vilt")
adapt(backbone, adapter_config("bottleneck", width=backbone.width))
"""


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


def test_what_the_strategies_need_is_all_that_every_install_gets():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} == {"flwr", "numpy"}


def test_flower_installs_the_whole_app_by_itself():
    """By ``uv sync``, which knows groups of dependencies and not extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["dependency-groups"]["app"] == ["feddat[app]"]
    assert project["tool"]["uv"]["default-groups"] == ["app"]


def test_flower_packs_every_file_of_the_app_but_weights():
    """It leaves out files of other kinds without a word, and a run would miss them at its end."""
    packed = {Path(pattern).suffix for pattern in FAB_INCLUDE_PATTERNS}
    folders = ("app", "client_app", "server_app", "strategies", "data_partitions")
    left_out = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in packed and not {"__pycache__", "assets"} & {*path.parts}
    }
    assert {Path(name).name for name in left_out} == {"py.typed"}


def test_flower_packs_the_study_that_the_default_runs_report_shows():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["fab-include"]
    assert STUDY.relative_to(ROOT).as_posix() in asked
    assert STUDY.suffix in {Path(pattern).suffix for pattern in FAB_INCLUDE_PATTERNS}


def test_the_command_that_an_install_makes_is_there(monkeypatch, capsys):
    """By the module that the script names, found where the package's sources are."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert read["project"]["scripts"].keys() == {"feddat"}
    module, _, function = read["project"]["scripts"]["feddat"].partition(":")
    sources = read["tool"]["setuptools"]["package-dir"][module]
    assert module in read["tool"]["setuptools"]["packages"]
    main = getattr(importlib.import_module(sources.replace("/", ".")), function)
    monkeypatch.setattr(sys, "argv", ["feddat", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.split()[0] == "Usage:"
    commands = set(re.findall(r"^  ([a-z]\w+) ", said, re.M))
    assert commands >= {
        "run",
        "runs",
        "report",
        "answer",
        "check",
        "settings",
        "annotate",
        "pretrain",
        "study",
    }


def test_what_an_extra_is_missing_for_is_said(tmp_path):
    bare = "import sys; sys.modules['torch'] = None\n"
    shadow = tmp_path / "feddat"
    shadow.mkdir()
    (shadow / "__init__.py").symlink_to(ROOT / "app" / "package" / "__init__.py")
    for folder in ("app", "strategies"):
        (shadow / folder).symlink_to(ROOT / folder)
    said = subprocess.run(
        [sys.executable, "-c", bare + "from feddat import FedDAT, FedDATClient"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    assert said.splitlines()[-1].endswith("FedDATClient needs torch: pip install 'feddat[client]'")


@pytest.mark.slow
def test_a_wheel_holds_the_library_with_its_weights_and_nothing_generic(tmp_path):
    wheel = build(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"feddat", f"feddat-{__version__}.dist-info"}
    for built_in in ("tiny-vilt", "tiny-vlm"):
        assert f"feddat/app/assets/{built_in}/model.safetensors" in names
    programs = environment_with(wheel, tmp_path / "venv")
    subprocess.run([programs / "python", "-c", PROGRAM, tmp_path / "venv"], check=True, cwd=tmp_path)
    # The command is there, and says what a wheel alone has not.
    command = [programs / "python", "-c", "from feddat.cli import main; main()", "run"]
    called = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (called.returncode, called.stdout) == (1, "")
    assert called.stderr.startswith("feddat: this needs a checkout of the project; ")
    assert len(called.stderr.splitlines()) == 1
