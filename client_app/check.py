"""What a site can find out before it joins: ``python -m client_app.check --node-config '…'``.

One line a check, `ok` or `FAIL`; the exit code is 1 if any failed, and the last line says which. Without a
node-config, the clients of a simulation on this machine are checked.
"""

import argparse
import http.client
import os
import shutil
import ssl
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast

import torch
from flwr.app import Context, RecordDict
from flwr.common.config import get_fused_config_from_dir, parse_config_args
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

from app.backbones import choose_device
from app.caches import CACHES, cache_limit, prune
from app.home import closed_folder, closed_home

from .client import SITE_KEYS, Client
from .policy import POLICY_KEYS
from .site_word import STATE_DIR
from .written_answers import unwritable

NODE_KEYS = ("partition-id", "num-partitions", *SITE_KEYS, STATE_DIR, *POLICY_KEYS)
# Of a client whose number of others is still to be found; nothing is kept from oneself at home.
_SIMULATED = "partition-id=0 num-partitions=1 policy='open'"
_GIB = 2**30
_WEIGHTS = {
    "adapter": "the shared adapter",
    "head": "the shared adapter and the head of all clients",
    "all": "all weights",
}


def main(arguments: list[str] | None = None, prog: str = "python -m client_app.check") -> int:
    """Print the checks' lines; return the exit code."""
    parser = argparse.ArgumentParser(prog, description="Check a site before it joins.")
    parser.add_argument(
        "--node-config",
        default="",
        help="as flower-supernode gets it; without it all clients of a simulation here are checked",
    )
    parser.add_argument("--run-config", default="", help="as flwr run gets it")
    parser.add_argument("--superlink", help="HOST:PORT; without it no SuperLink is asked")
    parser.add_argument("--root-certificates", help="file of the SuperLink's CA; without it the system's")
    given = parser.parse_args(arguments)
    failed: list[str] = []

    def line(name: str, check: Callable[..., Any], *subjects: Any) -> Any:
        """Print what a check finds and return it; None if it failed."""
        try:
            found = check(*subjects)
            print(f"ok    {name}: {found}", flush=True)
            return found
        except (ValueError, OSError) as error:
            failed.append(name)
            print(f"FAIL  {name}: {' '.join(str(error).split()).removeprefix(f'{name}: ')}", flush=True)
            return None

    if site := line("node-config", open_site, given.node_config, given.run_config):
        line("home", home)
        clients = (line("clients", simulated, site.client) or []) if site.simulated else [site.client]
        read = all([line("data", data, client) for client in clients])
        loaded = line("backbone", backbone, site.client)
        for client in clients if loaded and read else ():
            if client.settings.loss == "next-token":
                line("answers", answers, client)
        found = line("device", device, site.client)
        line("state-dir", state_dir, site.client)
        if read and not site.simulated:  # of a simulation nothing leaves this machine
            line("leaves", leaves, site.client, bool(loaded and found))
    if given.superlink and (
        answer := line("superlink", ask_superlink, given.superlink, given.root_certificates)
    ):
        line("clock", clock, answer)
    if failed:
        print(f"failed: {', '.join(dict.fromkeys(failed))}", file=sys.stderr)
    return int(bool(failed))


@dataclass(frozen=True)
class Site:
    """The client that a node's and a run's configuration make; without the former one of a simulation."""

    client: Client
    simulated: bool

    def __str__(self) -> str:
        client = self.client
        if self.simulated:
            return f"none, so all clients of a simulation here, benchmark {client.settings.benchmark}"
        where = f"partition {client.partition_id} of {client.num_partitions}"
        return f"{where}, benchmark {client.settings.benchmark}"


def read_node_config(text: str) -> dict[str, Any]:
    """Read a node-config as flower-supernode does; ValueError if it cannot be, or has an unknown key."""
    node = _pairs("node-config", text)
    for key in node:
        if key not in NODE_KEYS:
            raise ValueError(f"{key} is not a setting of a site; allowed: {', '.join(NODE_KEYS)}")
    return node


def open_site(node_config: str, run_config: str) -> Site:
    """Read the site's settings, on top of the app's with `run_config`; ValueError if they cannot be used."""
    node = read_node_config(node_config or _SIMULATED)
    defaults = get_fused_config_from_dir(Path(__file__).parents[1], {})
    settings = {**defaults, **_pairs("run-config", run_config)}
    context = Context(run_id=0, node_id=0, node_config=node, state=RecordDict(), run_config=settings)
    return Site(Client.of(context), simulated=not node_config)


class Simulated(list[Client]):
    """All clients of a simulation on this machine."""

    def __str__(self) -> str:
        return str(len(self))


def simulated(one: Client) -> Simulated:
    """Return all clients of the simulation that a client is of; ValueError if the data cannot be found."""
    from data_partitions.benchmarks import check_options, num_simulated

    settings, options = one.settings, one.share.options
    check_options(settings.benchmark, options)
    count = settings.num_clients or num_simulated(settings.benchmark, options)
    return Simulated(
        replace(
            one, partition_id=index, num_partitions=count, share=replace(one.share, index=index, count=count)
        )
        for index in range(count)
    )


def _pairs(key: str, text: str) -> dict[str, Any]:
    try:
        return parse_config_args([text])
    except Exception as error:  # Flower's own names no type
        raise ValueError(f"{key} = {text!r} cannot be read: {error}") from None


def data(client: Client) -> str:
    """Read the examples; ValueError if there are too few to train on."""
    found = client.partition
    if not len(found.train):
        raise ValueError(f"{found.name} has no training examples")
    client.policy.require_examples(len(found.train))
    unscored = "" if len(found.test) else ": it trains, and has no score"
    counts = [f"{len(found.train)} training"]
    scored = client.settings.evaluate_on
    if len(found.validation) and scored == "test":
        counts.append(f"{len(found.validation)} validation")
    return f"{found.name}, {', '.join(counts)} and {len(found.test)} {scored} examples{unscored}"


def answers(client: Client) -> str:
    """Say whether right answers can be written in as many tokens as the run has a client write."""
    allowed = f"writing.tokens = {client.settings.writing.tokens}"
    return unwritable(client) or f"client {client.partition.name}: all test questions have one for {allowed}"


def leaves(client: Client, can_open: bool = True) -> str:
    """Say what leaves the site under its policy in such a run; ValueError if that does not let it.

    Which weights it is, is known where the backbone can be opened.
    """
    weights = "what the method shares"
    if can_open:
        client.policy.admit_weights(client.weights_sent)
        weights = _WEIGHTS[client.weights_sent]
    if client.settings.secure.aggregation:
        weights += ", masked"
    policy, dp = client.policy, client.settings.dp.mode
    metrics = policy.share_metrics or ("none" if dp == "local" else "all")
    errors = "whole errors" if policy.policy == "open" else "errors without their reasons"
    return (
        f"{weights} (dp {dp}, requires {policy.require_dp}),"
        f" as {client.name!r}, metrics: {metrics},"
        f" to {policy.metric_decimals} decimals and counts to {policy.min_examples}s, {errors}"
    )


def backbone(client: Client) -> str:
    """Load the backbone; its fingerprint must be the server's."""
    return f"{client.settings.backbone}, fingerprint {client.backbone.fingerprint}"


def device(client: Client) -> str:
    """Find the device that training will use; ValueError if it is not there."""
    chosen = choose_device(client.settings.device)
    if chosen.type == "cuda":
        free, total = (number / _GIB for number in torch.cuda.mem_get_info(chosen))
        return f"{chosen}, {torch.cuda.get_device_name(chosen)}, {free:.1f} of {total:.1f} GiB free"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    return f"{chosen}, {total:.1f} GiB of memory"


def state_dir(client: Client) -> str:
    """Write into the folder of the private states; OSError if that fails."""
    folder = closed_folder("state-dir", client.state_dir)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()
    runs = sum(path.is_dir() for path in folder.iterdir())
    free = shutil.disk_usage(folder).free / _GIB
    return f"{folder}, states of {runs} run{'s' * (runs != 1)}, {_megabytes(folder)}, {free:.1f} GiB free"


def home() -> str:
    """Say what lies where; ValueError if others may see it."""
    with closed_home() as folder:
        limit = cache_limit()
        prune(folder, limit)
        kept = (f"{path.name} {_megabytes(path)}" for path in sorted(folder.glob("[!.]*")) if path.is_dir())
        caches = f"{' and '.join(CACHES)} at most {limit / 1e9:g} GB together"
        return f"{folder}: {', '.join(kept) or 'nothing'}; {caches}"


def _megabytes(folder: Path) -> str:
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    return f"{size / 1e6:.1f} MB"


@dataclass(frozen=True)
class Answer:
    """What a SuperLink's answer says: its certificate's end, its clock when it came, and ours."""

    expires: datetime
    server: datetime
    own: datetime

    def __str__(self) -> str:
        days = (self.expires - self.own).days
        return f"reached over TLS, certificate valid until {self.expires:%F %T} UTC, {days} days"


def ask_superlink(address: str, root_certificates: str | None) -> Answer:
    """Ask for the SuperLink's health over TLS; ValueError says what stands in the way."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"superlink = {address!r}; allowed: HOST:PORT")
    try:
        context = ssl.create_default_context(cafile=root_certificates)
    except OSError as error:
        raise ValueError(f"root-certificates = {root_certificates!r} cannot be used: {error}") from None
    connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=10, context=context)
    try:
        connection.connect()
        certificate = cast(ssl.SSLSocket, connection.sock).getpeercert()
        connection.request("HEAD", "/health")
        date = connection.getresponse().getheader("Date")
    except ssl.SSLCertVerificationError as error:
        now = f"{datetime.now(UTC):%F %T} UTC"
        raise ValueError(f"{address}: {error.verify_message}; this machine's clock says {now}") from None
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{address} does not answer over TLS: {error}") from None
    finally:
        connection.close()
    if not certificate or not date:
        raise ValueError(f"{address} does not answer as a SuperLink does")
    expires = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return Answer(datetime.fromtimestamp(expires, UTC), parsedate_to_datetime(date), datetime.now(UTC))


def clock(answer: Answer) -> str:
    """Compare the clocks; ValueError where a SuperLink refuses messages for their time."""
    ahead = (answer.own - answer.server).total_seconds()
    found = f"{ahead:+.0f} s from the SuperLink's"
    # One more, for the server's time is cut to seconds.
    if not -TIMESTAMP_TOLERANCE <= ahead <= SYSTEM_TIME_TOLERANCE + 1:
        allowed = f"{TIMESTAMP_TOLERANCE} s behind to {SYSTEM_TIME_TOLERANCE} s ahead"
        raise ValueError(f"{found}; allowed: {allowed}")
    return found


if __name__ == "__main__":
    sys.exit(main())
