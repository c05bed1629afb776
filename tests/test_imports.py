"""What the apps import: a site starts a process for every message, a simulation its workers."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def said_by(program: str, **environment: str) -> list[str]:
    """Run a program of Python's in a process of its own and return what it prints."""
    command, machine = [sys.executable, "-c", program], {**os.environ, **environment}
    ran = subprocess.run(command, cwd=ROOT, env=machine, capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_a_client_imports_nothing_that_only_the_server_needs():
    loaded = {name.split(".")[0] for name in said_by("import sys, client_app.messages; print(*sys.modules)")}
    assert "torch" in loaded
    assert not loaded & {"matplotlib", "flwr_datasets", "server_app", "strategies", "ray"}
    # And nothing that reads data: where examples are kept, nobody does.
    assert not loaded & {"datasets", "pandas", "pyarrow"}


EXCHANGE = """
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from client_app.main import app

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
with TemporaryDirectory() as folder:
    node = {"partition-id": 0, "num-partitions": 3, "state-dir": folder + "/state", "policy": "open"}
    run = {"secure.aggregation": True, "secure.threshold": 0.66, "secure.bits": 20, "secure.range": 1.0}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run)
    from client_app.site_word import SITE_WORD, give_word
    config = {"step": "keys", "run-token": "a", "server-round": 1, "attempt": "b"}
    config[SITE_WORD] = give_word(context)
    asked = RecordDict({"config": ConfigRecord(config)})
    reply = app(Message(asked, dst_node_id=1, message_type="query.secure_aggregation"), context)
    print(*reply.content["secure"], *sys.modules)
"""


def test_what_comes_beside_training_under_secure_aggregation_does_without_torch(tmp_path):
    first, second, *loaded = said_by(EXCHANGE, FEDDAT_HOME=str(tmp_path / "home"))
    assert (first, second) == ("mask-key", "channel-key")
    assert not {name.split(".")[0] for name in loaded} & {"torch", "transformers", "ray"}


def test_a_simulation_starts_its_workers_beside_the_imports_of_the_server():
    # Flower loads both apps before it starts them, one after the other.
    assert "torch" not in said_by("import sys, server_app.main, client_app.main; print(*sys.modules)")


@pytest.mark.parametrize("module", ["client_app.messages", "server_app.federation"])
def test_what_an_app_imports_is_not_searched_for_garbage(module):
    program = (
        f"import gc, sys, {module}; print(gc.isenabled(), gc.get_freeze_count(), sys.getswitchinterval())"
    )
    enabled, frozen, patience = said_by(program)
    assert enabled == "True"
    assert int(frozen) > 100_000
    assert patience == "0.005"  # Python's own, as before


TRAINING_EXAMPLES = """
import json, os, sys
from flwr.app import Context, RecordDict
from client_app.client import Client

settings = json.loads(os.environ["SETTINGS"])
# An open site: a closed one reads no backbone whose path a run names.
node = {"partition-id": 0, "num-partitions": 1, "policy": "open"}
context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=settings)
print(len(Client.of(context).examples("train")), "datasets" in sys.modules)
"""


def test_a_second_process_needs_no_library_of_data(home, run_config):
    given = {"SETTINGS": json.dumps(run_config()), "FEDDAT_HOME": str(home)}
    assert said_by(TRAINING_EXAMPLES, **given) == ["12", "True"]
    assert said_by(TRAINING_EXAMPLES, **given) == ["12", "False"]


@pytest.mark.parametrize(
    "begun",
    [
        "import client_app.messages",
        "import server_app.federation",
        "from server_app.command.checkout import checkout; checkout()",
    ],
)
def test_what_libraries_say_of_their_own_build_is_not_shown(begun):
    pytest.importorskip("torchao", reason="the extra int8")
    command = [sys.executable, "-c", f"{begun}; from transformers import PreTrainedModel"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr == ""
