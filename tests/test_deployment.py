"""A SuperLink and SuperNodes in separate processes, with TLS and known nodes."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.deployment import NEEDS_KEYS, Deployment, Site, as_at_a_site, make_certificates
from tests.private_files import folder_of
from tests.processes import DEADLINE, adapter_of

pytestmark = [pytest.mark.slow, NEEDS_KEYS]

SITES = 3


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, small_backbone):
    with Deployment(tmp_path_factory.mktemp("deployment"), SITES, small_backbone, tls=True) as deployment:
        deployment.start_superlink()
        for site in deployment.sites:
            site.register()
        deployment.start_sites(*deployment.sites)
        yield deployment


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def private(folder):
    """Return the arrays of a client's private states, by file."""
    return {path.name: load_file(path) for path in folder.iterdir()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, arrays in one.items():
        assert arrays.keys() == other[name].keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, other[name][key])


def test_strangers_are_refused_and_a_killed_site_comes_back_to_its_own_adapter(
    deployment, tmp_path, run_config, federation
):
    """Site 0 keeps the first round open until all strangers are refused, the second until site 1 is back."""
    settings = {
        "num-clients": SITES,
        "run_name": "killed",
        "num_rounds": 3,
        "evaluate_every": 3,
        "round_timeout": 180.0,
    }
    first, second, _ = deployment.sites
    first.hold()
    second.hold("killed")
    run_id = deployment.user.start(run_config(**settings))
    first.wait_training()
    refuse_strangers(deployment, tmp_path)
    (run,) = deployment.user.flwr("ls", "lab", "--run-id", run_id)["runs"]
    assert run["status"] == "running"

    first.hold("killed")
    second.wait_training()
    second.kill()
    second.release()
    deployment.start_sites(second)
    first.release()
    folder = deployment.finished(run_id, "killed")

    rows = rows_of(folder)
    took_part = [(row["round"], row["partition"]) for row in rows if "delta-shared" in row]
    assert took_part == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 2), (3, 0), (3, 1), (3, 2)]
    refused = [(row["round"], row["partition"], row["phase"]) for row in rows if "refused" in row]
    assert refused == [(2, 1, "train")]
    assert not any("state-recovered" in row for row in rows)

    trained = []

    def kill(node, reply):
        """Forget what partition 1 learned in its second round."""
        trained.extend([node] * (reply.metadata.message_type == "train"))
        if trained.count(node) != 2 or node != clients.node_id(1) or not is_training(reply):
            return reply
        (folder_of(home / "clients", "killed", 1) / "round-000002.safetensors").unlink()
        return None

    clients = federation(SITES, alter=kill, node_config=as_at_a_site(deployment.backbone), **settings)
    home = tmp_path / "home"
    assert adapter_of(clients.serve()) == adapter_of(folder)
    for site in deployment.sites:
        assert_equal(
            private(site.state("killed")), private(folder_of(home / "clients", "killed", site.partition))
        )


def is_training(reply):
    return reply.metadata.message_type == "train"


def refuse_strangers(deployment, folder):
    """Have four clients try to join that may not."""
    make_certificates(folder / "another-ca")
    strangers = {
        name: Site(deployment, name, 1, deployment.port)
        for name in ("unregistered", "revoked", "foreign", "plain")
    }
    revoked = strangers["revoked"]
    revoked.register()
    deployment.start_sites(revoked)
    deployment.user.flwr("supernode", "unregister", revoked.node_id, "lab")
    revoked.process.wait(DEADLINE)
    once = ("--max-retries", "0")  # else they try for ever
    strangers["foreign"].start(
        *("--root-certificates", str(folder / "another-ca" / "ca.crt")),
        *("--auth-supernode-private-key", str(deployment.sites[1].key), *once),
    )
    strangers["plain"].start("--insecure", *once)
    strangers["unregistered"].start()
    revoked.start()
    for site in (revoked, strangers["unregistered"]):
        assert "Failed to activate SuperNode" in site.refused()
    assert "CERTIFICATE_VERIFY_FAILED" in strangers["foreign"].refused()
    strangers["plain"].refused()


def test_a_run_goes_on_after_a_power_cut_as_if_there_had_been_none(deployment, run_config, federation):
    """In the second round of secure aggregation and alignment, with keys and shares exchanged.

    One client is in the middle of its training.
    """
    align = {"align.when": "each-round", "align.beta": 0.0, "align.steps": 2, "public.examples": 40}
    settings = {
        "num-clients": SITES,
        "run_name": "cut",
        "num_rounds": 2,
        "evaluate_every": 2,
        "round_timeout": 600.0,
        "server_device": "cpu",
        "secure.aggregation": True,
        **align,
    }
    first = deployment.sites[0]
    first.hold("cut")
    deployment.user.start(run_config(**settings))
    first.wait_training()
    deployment.power_cut()
    first.release()
    deployment.start_superlink()
    deployment.start_sites(*deployment.sites)
    run_id = deployment.user.start(run_config(**settings, resume="cut"))
    folder = deployment.finished(run_id, "cut")

    clients = federation(SITES, node_config=as_at_a_site(deployment.backbone), **settings)
    expected = clients.serve()
    assert adapter_of(folder) == adapter_of(expected)
    rows = rows_of(folder)
    assert [row["round"] for row in rows if "align/delta-norm" in row] == [1, 2]
    assert not any("refused" in row for row in rows)
    for site in deployment.sites:
        lines = (site.folder / "state" / f"summed-{site.partition}.txt").read_text().splitlines()
        assert [line.split(" ", 1)[1] for line in lines] == ["1 0 1 2", "2 0 1 2"]
        assert not list((site.folder / "state").glob("secure-*"))
        kept = folder_of(expected.parents[1] / "clients", "cut", site.partition)
        assert_equal(private(site.state("cut")), private(kept))
