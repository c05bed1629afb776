"""What Python imports at its start on a test's sites, for the test to know and hold what happens there.

Training waits after a step of its optimizer while the site has a file `hold` whose pattern a file there fits,
and says so by a file `training`. A SuperNode's heart beats for every 10 s, the least that Flower allows: the
SuperLink takes it for gone after 20 s of silence, and not after 60.
"""

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

SITE = Path(os.environ["FEDDAT_TEST_SITE"])
HEARTBEAT_SECONDS = 10


def wait(*_: object) -> None:
    with suppress(FileNotFoundError):  # nothing to wait for, or no longer
        while any(SITE.glob((SITE / "hold").read_text())):
            (SITE / "training").touch()
            threading.Event().wait(0.1)


def prepare(event: str, arguments: tuple) -> None:
    """Act just before a module is imported."""
    module = arguments[0] if event == "import" else None
    if module == "client_app.local_training":
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(wait)
    elif module == "flwr.supernode.start_client_internal":
        from flwr.supercore import heartbeat
        from flwr.supernode import fleet_http_connection

        for user in (heartbeat, fleet_http_connection):
            user.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT_SECONDS


sys.addaudithook(prepare)
