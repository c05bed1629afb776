"""A plain-text run with everything on its wire recorded, and one site slow, one cut off from the network."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import Federation, own_home
from tests.deployment import Deployment, as_at_a_site
from tests.processes import adapter_of, wait_until
from tests.proxy import Proxy
from tests.recorded import Recorded, read

pytestmark = pytest.mark.slow

SITES = 3
SLOW, CUT_OFF = 1, 2
LOST = (SLOW, CUT_OFF)
SETTINGS = {
    "num-clients": SITES,
    "num_rounds": 3,
    "evaluate_every": 3,
    # Long enough for the SuperLink to miss a site and find it again, while the slow one keeps the round open.
    "round_timeout": 150.0,
    "max_failure_rate": 0.7,
}
# Texts of some length that are others in every run.
RANDOM = ("run-token", "nonce", "site-word")
# HTTP's headers, Flower's ids and signs of life, and numpy's header around one part of a message.
FRAMING = 1500


@dataclass
class Run:
    """A run that is over: its folder, the sites' private states, and what was recorded of each site."""

    folder: Path
    private: list[dict[str, np.ndarray]]
    captured: list[bytes]
    recorded: list[Recorded]

    @property
    def rows(self):
        return rows_of(self.folder)


def rows_of(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_config, small_backbone):
    """Run three rounds; in the second site 1 is slow, and site 2 is cut off until the SuperLink notices."""
    folder = tmp_path_factory.mktemp("wire")
    with Deployment(folder, SITES, small_backbone, tls=False) as deployment, ExitStack() as wires:
        proxies = [wires.enter_context(Proxy(deployment.port)) for _ in range(SITES)]
        deployment.start_superlink()
        for site, proxy in zip(deployment.sites, proxies, strict=True):
            site.port = proxy.port
        deployment.start_sites(*deployment.sites)
        slow, cut_off = deployment.sites[SLOW], deployment.sites[CUT_OFF]
        for site in (slow, cut_off):
            site.hold("test")
        run_id = deployment.user.start(run_config(**SETTINGS))

        cut_off.wait_training()
        proxies[CUT_OFF].cut()
        wait_until(lambda: deployment.status(cut_off) == "offline")
        proxies[CUT_OFF].mend()
        wait_until(lambda: deployment.status(cut_off) == "online")
        left = folder / "coordinator" / "home" / "runs" / "test"
        wait_until(lambda: any("refused" in row for row in rows_of(left)))
        # Not before: a ServerApp asks every few seconds only, and might not have seen that the site was gone.
        for site in (slow, cut_off):
            site.release()
        deployment.finished(run_id, "test")
    return Run(
        left,
        [load_file(path) for site in deployment.sites for path in site.state("test").iterdir()],
        [b"".join(bytes(c.up) + bytes(c.down) for c in proxy.connections) for proxy in proxies],
        read(proxy.connections for proxy in proxies),
    )


@pytest.fixture(scope="module")
def in_process(tmp_path_factory, drawn, run_config, small_backbone):
    """Make the same run in one process, in which the replies of sites 1 and 2 are lost in round 2."""
    trained = []

    def lose(node, reply):
        if reply.metadata.message_type == "train":
            trained.append(node)
            if trained.count(node) == 2 and node in map(federation.node_id, LOST):
                return None
        return reply

    site = as_at_a_site(small_backbone)
    federation = Federation(run_config(**SETTINGS), SITES, node_config=site, alter=lose)
    with own_home(tmp_path_factory.mktemp("in-process"), drawn):
        return federation, federation.serve()


def test_who_is_slow_or_cut_off_is_left_out_after_the_deadline_and_taken_back(run, in_process):
    reasons = {row["partition"]: row["refused"] for row in run.rows if "refused" in row}
    assert reasons.keys() == set(LOST)
    assert reasons[SLOW] == "no reply in time"
    # Whichever comes first: the SuperLink misses its heartbeats, or the deadline.
    assert reasons[CUT_OFF] == "no reply in time" or "Node Unavailable" in reasons[CUT_OFF]
    took_part = [(row["round"], row["partition"]) for row in run.rows if "delta-shared" in row]
    assert took_part == [(1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (3, 1), (3, 2)]
    _, expected = in_process
    assert adapter_of(run.folder) == adapter_of(expected)


def content(message):
    """Return what a message holds: arrays to the byte, words, names of what was measured."""
    records = message.content
    return {
        "arrays": {
            name: {key: array.numpy().tobytes() for key, array in record.items()}
            for name, record in records.array_records.items()
        },
        "metrics": {name: sorted(record) for name, record in records.metric_records.items()},
        "config": {
            name: {key: len(value) if key in RANDOM else value for key, value in record.items()}
            for name, record in records.config_records.items()
        },
    }


def test_nothing_goes_over_the_wire_but_the_messages_of_the_same_run_in_one_process(run, in_process):
    """Of those, `test_wire` finds every one clean."""
    federation, _ = in_process
    for partition, recorded in enumerate(run.recorded):
        assert recorded.calls <= {
            *("register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat"),
            *("get-run", "get-fab", "pull-messages", "push-messages", "pull-object", "push-object"),
            "confirm-message-received",
        }
        node = federation.node_id(partition)
        for way in ("to client", "to server"):
            expected = [
                message
                for w, message in federation.wire
                if w == way and node in (message.metadata.dst_node_id, message.metadata.src_node_id)
            ]
            found = [message for w, message in recorded.messages if w == way]
            if partition in LOST and way == "to server":
                # If the late reply was sent, it is the one that the federation in one process lost.
                trained = [message for message in found if message.metadata.message_type == "train"]
                if len(trained) == 3:
                    found.remove(trained[1])
            kinds = ["query", "train", "train", *["train"] * (partition not in LOST or way == "to client")]
            assert [m.metadata.message_type for m in expected] == [*kinds, "evaluate"]
            assert list(map(content, found)) == list(map(content, expected))


def test_no_private_weights_are_among_the_recorded_bytes(run, in_process):
    """Neither as messages nor otherwise: no row of a local adapter or a head is found anywhere."""
    federation, _ = in_process
    everything = b"".join(run.captured)
    sent = [m.content["arrays"] for _, m in federation.wire if "arrays" in m.content]
    shared = {needle for arrays in sent for needle in needles({k: a.numpy() for k, a in arrays.items()})}
    assert sum(needle in everything for needle in shared) == len(shared) > 10
    private = {needle for arrays in run.private for needle in needles(arrays)}
    assert len(private) > 100
    assert not any(needle in everything for needle in private)


def needles(arrays):
    """Return the bytes of each array's last row, where its values differ."""
    rows = (array.reshape(-1, array.shape[-1])[-1] for array in arrays.values() if array.ndim)
    return [row.tobytes() for row in rows if len(set(row.tolist())) > 2]


def test_the_sizes_on_the_wire_are_those_reported_and_framing(run):
    for partition, recorded in enumerate(run.recorded):
        if partition in LOST:
            continue  # their late replies and repeated calls are on the wire, and in no row
        rows = [row for row in run.rows if row["partition"] == partition]
        reported = sum(row["bytes-down"] + row["bytes-up"] for row in rows)
        arrays = [r for _, m in recorded.messages for r in m.content.array_records.values()]
        assert reported == sum(record.count_bytes() for record in arrays)
        assert reported < recorded.size < reported + FRAMING * recorded.requests
