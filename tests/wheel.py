"""The package as strangers get it: a built wheel, in an environment where no source of ours is."""

import os
import shutil
import site
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

from tests.conftest import ROOT

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def build(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, for a build leaves files beside them."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build")
    sources = shutil.copytree(ROOT, folder / "sources", ignore=ignored)
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    _run(*PIP, "wheel", *options, str(sources), folder=folder)
    shutil.rmtree(sources)
    (wheel,) = folder.glob("feddat-*.whl")
    return wheel


def install(wheel: Path, where: Path) -> None:
    """Install the wheel alone into a folder of packages."""
    _run(*PIP, "install", "--no-deps", "--no-index", "--target", str(where), str(wheel), folder=where.parent)


def environment_with(wheel: Path, folder: Path) -> Path:
    """Make a virtual environment with the wheel, and return where its programs lie.

    What else is installed here is found through a path, which leaves out our own package: it is installed
    editable here, and only `site` follows that.
    """
    venv.create(folder, symlinks=True)
    programs = folder / "bin"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    where = Path(_run(programs / "python", "-c", asked, folder=folder).strip())
    install(wheel, where)
    (where / "others.pth").write_text("\n".join(site.getsitepackages()))
    for entry in distribution("flwr").entry_points.select(group="console_scripts"):
        script = programs / entry.name
        called = f"import sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
        script.write_text(f"#!{programs / 'python'}\n{called}")
        script.chmod(0o755)
    return programs


def _run(*command: str | Path, folder: Path) -> str:
    # Not the folder of the tests, and no PYTHONPATH: our sources would be found by their folders' names.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(
        command, check=True, cwd=folder, env=environment, stdout=subprocess.PIPE, encoding="utf-8"
    )
    return ran.stdout
