"""What fails when Flower is started, by the real command: a code that is not 0, and last the reason."""

import re

import pytest

from tests.server_app.command.test_run import SMALL

# In place of Flower's programs, which every Python that is started here reads first.
DIES = """
import os, sys
if "flower-superlink" in map(os.path.basename, sys.orig_argv):
    os._exit(3)
"""
DIES_IN_A_RUN = """
import os, signal, socket, sys
programs = set(map(os.path.basename, sys.orig_argv))
if "flower-superlink" in programs:
    with socket.create_server(("127.0.0.1", int(sys.orig_argv[-1]))) as door:
        door.accept()
    os._exit(3)
if "flwr" in programs:
    signal.pause()
"""


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        (DIES, r"Flower's SuperLink does not start at port \d+: .*/home/logs/mine\.log"),
        (DIES_IN_A_RUN, r"Flower's SuperLink ended before the run did: .*/home/logs/mine\.log"),
    ],
    ids=["at its start", "in a run"],
)
def test_a_superlink_that_dies(person, programs, reason):
    (person.folder / "sitecustomize.py").write_text(programs)
    called = person.calls("run", "run-name=mine", *SMALL)
    assert called.returncode == 1
    (last,) = called.stderr.splitlines()
    assert re.fullmatch(f"feddat: {reason}", last)
    assert called.stdout.splitlines()[-1] == "the run failed; nothing of it is kept: it had not begun"
    assert {path.name for path in person.home.iterdir()} <= {"runs", "logs", "data"}
