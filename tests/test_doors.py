"""The doors of a deployment, with real processes: a run goes through them, a stranger gets nothing at any."""

import hashlib
import http.client
import json
import os
import shutil
import sqlite3
import ssl
import subprocess
from contextlib import closing

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from app import __version__
from app.backbones import load_backbone
from app.records import SCHEMA
from app.source import source_hash
from client_app.site_word import SITE_WORD, UNKNOWN_WORD
from server_app import signing
from tests.conftest import ROOT
from tests.deployment import NEEDS_KEYS, Deployment, needs
from tests.hostile_site import guess, hostile
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, NEEDS_KEYS]
NEEDS_NGINX = needs("nginx")

SETTINGS = {"num_clients": 1, "num_rounds": 1, "evaluate_every": 1}
FLEET = "/v1/fleet/"
INNER = ("/v1/runtime/acquire-task", "/v1/control/start-run", "/docs")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, small_backbone):
    """Start a SuperLink that knows the app as signed, and a site that runs no other; no app runs yet."""
    folder = tmp_path_factory.mktemp("doors")
    key, trusted = folder / "reviewer", folder / "trusted.yaml"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key], check=True)
    trusted.write_text(f"reviewer: {key.with_suffix('.pub').read_text()}")
    with Deployment(folder, 1, small_backbone, tls=True, trusted=trusted) as deployment:
        deployment.start_superlink(app=False)
        app = deployment.user.build()
        signature = folder / "reviewer.json"
        signature.write_text(json.dumps(signing.sign(app.read_bytes(), key, "reviewer", 1)))
        signing.main(["attach", str(app), str(deployment.database), str(signature)])
        (site,) = deployment.sites
        site.register()
        deployment.start_sites(site, app=False)
        yield deployment


def acquire_task(port, root_certificates=None, secret=None):
    """Ask for a task, as those do who run apps; return the status and the token that is given with a task."""
    method = "/flwr.proto.Runtime/AcquireTask"
    knows = [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[method])] if secret else []
    client = RuntimeHttpClient.from_server_address(
        f"127.0.0.1:{port}",
        insecure=root_certificates is None,
        root_certificates=root_certificates and root_certificates.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), *knows],
    )
    try:
        asked = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP, TaskType.CLIENT_APP])
        return 200, client.AcquireTask(asked).token
    except httpx.HTTPStatusError as error:
        return error.response.status_code, ""
    finally:
        client.close()


def test_a_run_comes_through_and_a_stranger_gets_no_task_at_any_port(deployment, run_config):
    """While a task waits, first the ServerApp's, then the ClientApp's."""
    (site,) = deployment.sites
    at_door, at_superlink = (deployment.port, deployment.ca), (deployment.inner_port, deployment.ca)
    run_id = deployment.user.start(run_config(**SETTINGS, run_name="signed"))
    for secret in (None, os.urandom(32)):
        assert acquire_task(*at_superlink, secret) == (401, "")
        if deployment.door:
            assert acquire_task(*at_door, secret) == (404, "")
    deployment.start_app()

    wait_until(lambda: "Receiving: query message" in site.log)
    for secret in (None, os.urandom(32)):
        assert acquire_task(site.own_port, None, secret) == (401, "")
    site.start_app()

    deployment.finished(run_id, "signed")
    assert list(site.state("signed").iterdir())
    # Who knows the secrets is heard: what was refused above was a task.
    inside, of_site = (deployment.folder / f"{name}.secret" for name in ("coordinator", site.name))
    assert acquire_task(*at_superlink, inside.read_bytes()) == (200, "")
    assert acquire_task(site.own_port, None, of_site.read_bytes()) == (200, "")


def test_a_site_refuses_the_app_with_one_more_line(deployment, tmp_path, run_config):
    """A comment in the sources: without a signature, and under the one of the app without it."""
    (site,) = deployment.sites
    deployment.start_app()
    site.start_app()
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "tests")
    other = shutil.copytree(ROOT, tmp_path / "other", ignore=ignored)
    with (other / "client_app" / "main.py").open("a") as sources:
        sources.write("# one more line\n")
    signature = json.loads((deployment.folder / "reviewer.json").read_text())
    kept = list((site.folder / "state").glob("*"))
    for name, refusal in (("unsigned", "could not be verified"), ("forged", "FAB verification failed")):
        if name == "forged":
            changed = deployment.user.build(other).read_bytes()
            forged = {**signature, "app": hashlib.sha256(changed).hexdigest()}
            signing.attach(changed, deployment.database, [forged])
        assert refusal not in site.log
        # The ServerApp waits so long for a site that may take part.
        refused = run_config(**SETTINGS, run_name=name, wait_seconds=30.0)
        run_id = deployment.user.start(refused, app=other)
        assert deployment.user.wait(run_id)["status"] == "finished:failed"
        assert refusal in site.log
        assert list((site.folder / "state").glob("*")) == kept


def test_at_a_sites_own_port_every_call_wants_a_secret_or_a_tasks_token(deployment):
    (site,) = deployment.sites
    served = json.loads(ask(None, "GET", "/openapi.json", port=site.own_port)[1])["paths"]
    calls = [(method.upper(), path) for path, methods in served.items() for method in methods]
    assert ("POST", INNER[0]) in calls
    for method, path in calls:
        assert ask(None, method, path, port=site.own_port)[0] == (200 if path == "/health" else 401), path


@NEEDS_NGINX
def test_the_door_passes_the_fleet_and_health_and_nothing_else(deployment):
    """Of all that the SuperLink itself says it serves."""
    served = json.loads(ask(deployment, "GET", "/openapi.json", port=deployment.inner_port)[1])["paths"]
    calls = [(method.upper(), path) for path, methods in served.items() for method in methods]
    apis = {path.split("/")[2] for path in served if path.startswith("/v1/")}
    assert apis >= {"fleet", "runtime", "control"}
    for method, path in [*calls, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/")]:
        status, body = ask(deployment, method, path)
        if path == "/health":
            assert status == 200
        elif path.startswith(FLEET):
            assert status == 401, path  # the SuperLink asks for a node's key
        else:
            assert (status, b"nginx" in body) == (404, True), path


@NEEDS_NGINX
@pytest.mark.parametrize("inner", INNER)
def test_no_way_of_writing_a_path_leads_past_the_door(deployment, inner):
    rest = inner.removeprefix("/v1")
    up = "/../.." if inner == rest else "/.."
    for path in (
        f"/v1/fleet{up}{rest}",
        f"/v1/fleet/.{up}{rest}",
        f"/v1/fleet{up.replace('..', '%2e%2e')}{rest}",
        f"/v1/fleet{up.replace('/', '%2f')}{rest}",
        f"/v1/fleet{up.replace('..', '%252e%252e')}{rest}",
        f"/v1/fleet/..;/{rest}",
        f"/v1/fleet/..\\{rest}",
        f"/health{up}{inner}",
        f"/{inner}",
        f"{inner}/",
        f"{inner}?/v1/fleet/",
        f"{inner}#/v1/fleet/",
        inner.replace("/", "//"),
        inner.upper(),
        inner.replace("/", "/%2e/"),
        f"https://localhost{inner}",
    ):
        for method in ("GET", "POST"):
            assert ask(deployment, method, path)[0] in (400, 404), path


@NEEDS_NGINX
def test_no_header_leads_past_the_door_or_past_the_question_for_a_key(deployment):
    for path in ("/v1/fleet/get-run", "/v1/fleet/pull-messages"):
        for name, value in (
            ("Host", "localhost/health?"),
            ("Host", "localhost/v1/runtime/acquire-task?"),
            ("X-Original-URL", "/v1/control/start-run"),
            ("X-Rewrite-URL", "/v1/control/start-run"),
            ("X-Forwarded-Prefix", "/v1/control"),
        ):
            assert ask(deployment, "POST", path, **{name: value})[0] in (400, 401), (path, name)


def ask(deployment, method, path, port=None, **headers):
    """Return the status and body of an answer; the path goes out as it is. No `deployment`: no TLS."""
    if deployment is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    else:
        context, port = ssl.create_default_context(cafile=str(deployment.ca)), port or deployment.port
        connection = http.client.HTTPSConnection("localhost", port, timeout=60, context=context)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in {"Content-Type": "application/protobuf", "Content-Length": "0", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_registered_site_gives_no_orders_and_answers_in_no_others_name(
    tmp_path, run_config, small_backbone, monkeypatch
):
    """It comes through the door with a key of its own, and knows the app, the run and its own messages."""
    with Deployment(tmp_path, 2, small_backbone, tls=True) as deployment:
        deployment.start_superlink()
        for site in deployment.sites:
            site.register()
        victim, other = deployment.sites
        deployment.start_sites(victim)
        victim.hold()
        settings = run_config(run_name="attacked", num_rounds=2, evaluate_every=9, num_clients=2)
        run_id = deployment.user.start(settings)
        with hostile(other, run_id, monkeypatch) as site:
            said = {
                **{"partition-id": 1, "num-partitions": 2, "version": __version__, "schema": SCHEMA},
                **{"source": source_hash(), "backbone": load_backbone(str(small_backbone)).fingerprint},
            }
            site.answer(site.receive(), RecordDict({"handshake": ConfigRecord(said)}))

            # While the victim trains: a reply in its name, to the message that it must have got. Its
            # time, within milliseconds of the own one, it is told here, not left to try.
            asked, node_id = site.receive(), int(victim.node_id)
            arrays = asked.content["arrays"]
            forged = {name: Array(array.numpy() + np.float32(0.125)) for name, array in arrays.items()}
            assert guess(asked, site.node_id, asked.metadata.created_at) == asked.metadata.message_id
            metrics = MetricRecord({"num-examples": 10, "train-seconds": 4711.0})
            content = RecordDict({"arrays": ArrayRecord(forged), "metrics": metrics})
            for created_at in times_of_messages(deployment.database, node_id):
                assert not site.answer(asked, content, node_id, guess(asked, node_id, created_at))

            victim.release()
            counted = MetricRecord({"num-examples": 10})
            site.answer(asked, RecordDict({"arrays": arrays, "metrics": counted}))
            asked = site.receive()
            state = victim.state("attacked")
            wait_until((state / "round-000002.safetensors").exists)

            # While it waits for the next round: an order to train for the first one again.
            kept = {path.name: path.read_bytes() for path in state.iterdir()}
            word = ConfigRecord({**asked.content["config"], "server-round": 1, SITE_WORD: "guessed"})
            count = victim.log.count("Receiving: train message")
            assert site.order(RecordDict({"arrays": ArrayRecord(forged), "config": word}), node_id, "train")
            wait_until(lambda: victim.log.count("Receiving: train message") > count)
            wait_until(lambda: UNKNOWN_WORD in victim.app_log, 60)
            assert {path.name: path.read_bytes() for path in state.iterdir()} == kept
            site.answer(asked, RecordDict({"arrays": asked.content["arrays"], "metrics": counted}))
            # The last round is evaluated.
            site.answer(site.receive(), RecordDict({"metrics": counted}))
        folder = deployment.finished(run_id, "attacked")
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert sorted((row["round"], row["partition"]) for row in rows if "refused" not in row) == [
            (round_, partition) for round_ in (1, 2) for partition in (0, 1)
        ]
        assert all(row.get("train-seconds") != 4711.0 for row in rows)


def times_of_messages(database, node_id):
    """Return when the messages to a node were made, as the SuperLink keeps it."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        signed = node_id - 2**64 if node_id >= 2**63 else node_id
        found = connection.execute("SELECT created_at FROM message_ins WHERE dst_node_id = ?", (signed,))
        times = [created_at for (created_at,) in found]
    assert times
    return times
