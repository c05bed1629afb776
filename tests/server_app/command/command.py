"""The command as a person starts it: the script that was installed, in a folder that is not the checkout."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Person:
    """Somebody with a folder, in which the home of everything that is kept lies too."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def command(self, *words: str) -> list[str]:
        return [str(SCRIPTS / "feddat"), *words]

    def environment(self, **variables: str) -> dict[str, str]:
        """Return that of a shell with an activated environment, and nothing of ours on the import path."""
        path = os.pathsep.join([str(SCRIPTS), os.environ["PATH"]])
        own = {"PATH": path, "PYTHONPATH": str(self.folder), "FEDDAT_HOME": str(self.home)}
        return {**os.environ, **own, **variables}

    def calls(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Call ``feddat WORDS`` to its end."""
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment(**variables),
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )

    def is_refused(self, *words: str, **variables: str) -> str:
        """Return the reason, the last line of one that is refused before anything but checks is done."""
        called = self.calls(*words, **variables)
        assert called.returncode == 1, called.stdout + called.stderr
        assert called.stdout in ("", "checking the settings\n")
        (line,) = called.stderr.splitlines()
        assert line.startswith("feddat: ")
        return line.removeprefix("feddat: ")
