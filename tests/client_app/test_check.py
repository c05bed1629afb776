"""The dry check of a site: every line, and what makes each one fail."""

import shutil
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from client_app import check
from data_partitions.partition import Partition
from tests.data_partitions.given_files import llava, picture, write

NODE = "partition-id=1 num-partitions=5"


@pytest.fixture
def lines(home, small_backbone, capsys):
    """Run the check on a small benchmark; return its exit code and its lines by name."""

    def lines(*arguments, node=NODE, run=""):
        settings = f'train-examples=12 test-examples=8 device="cpu" {run}'
        node = node if "backbone" in node else f'{node} backbone="{small_backbone}"'
        code = check.main(["--node-config", node, "--run-config", settings, *arguments])
        out, last = capsys.readouterr()
        found = [line.split(maxsplit=2) for line in out.splitlines()]
        failed = [name.rstrip(":") for mark, name, _ in found if mark == "FAIL"]
        assert last == (f"failed: {', '.join(failed)}\n" if failed else "")
        return code, {name.rstrip(":"): (mark, said) for mark, name, said in found}

    return lines


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Make a CA and certificates of it: a good one, one for another machine, one whose time is over."""
    folder = tmp_path_factory.mktemp("certificates")

    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for ca in ("ca", "other-ca"):
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={ca}", "-days", "9"),
            *(
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",
                "-keyout",
                f"{ca}.key",
                "-out",
                f"{ca}.crt",
            ),
        )
    request = ("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test")
    openssl(*request, "-keyout", "server.key", "-out", "server.csr")
    for name, san, days in (
        ("server", "IP:127.0.0.1", "9"),
        ("elsewhere", "DNS:example.org", "9"),
        ("expired", "IP:127.0.0.1", "-1"),
    ):
        (folder / "ext").write_text(f"subjectAltName={san}\nauthorityKeyIdentifier=keyid\n")
        sign = ("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(*sign, "-extfile", "ext", "-days", days, "-out", f"{name}.pem")
    return folder


@pytest.fixture
def superlink(certificates):
    """Serve what a SuperLink answers to a check; return how to start one and get its address."""
    servers = []

    def start(certificate="server", ahead=0, tls=True):
        class Health(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response_only(200)
                now = datetime.now(UTC) + timedelta(seconds=ahead)
                self.send_header("Date", format_datetime(now, usegmt=True))
                self.end_headers()

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Health)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates / f"{certificate}.pem", certificates / "server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def asked(superlink, certificates, capsys):
    """Ask a SuperLink and return the exit code without the site's part, and the two lines on it."""

    def asked(*, address=None, ca="ca.crt", **keywords):
        address = address or superlink(**keywords)
        check.main(
            ["--node-config", "x=1", "--superlink", address, "--root-certificates", str(certificates / ca)]
        )
        found = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
        return {name.rstrip(":"): (mark, said) for mark, name, said in found if name != "node-config:"}

    return asked


def test_a_site_that_is_ready_passes_every_check(lines, superlink, certificates, tmp_path, small_backbone):
    state = tmp_path / "state"
    code, found = lines(
        *("--superlink", superlink(), "--root-certificates", str(certificates / "ca.crt")),
        node=f'{NODE} state-dir="{state}"',
    )
    assert code == 0
    assert " ".join(found) == "node-config home data backbone device state-dir leaves superlink clock"
    assert {mark for mark, _ in found.values()} == {"ok"}
    assert found["node-config"][1] == "partition 1 of 5, benchmark scenes"
    assert found["data"][1] == "sketch, 12 training, 4 validation and 8 test examples"
    assert found["backbone"][1].startswith(f"{small_backbone}, fingerprint ")
    assert found["device"][1].startswith("cpu, ")
    assert "data and examples at most 20 GB together" in found["home"][1]
    assert found["state-dir"][1].startswith(f"{state}, states of 0 runs, 0.0 MB, ")
    assert found["leaves"][1] == (
        "the shared adapter (dp none, requires none), as 'sketch', metrics: all, to 2 decimals and"
        " counts to 10s, errors without their reasons"
    )
    assert list(state.iterdir()) == []
    assert state.stat().st_mode & 0o777 == 0o700
    assert found["superlink"][1].startswith("reached over TLS, certificate valid until ")
    assert found["superlink"][1].endswith(" 8 days")


def test_without_a_node_config_all_clients_of_a_simulation_are_checked(
    home, small_backbone, capsys, tmp_path
):
    def checked(settings):
        code = check.main(["--run-config", f"backbone='{small_backbone}' device='cpu' {settings}"])
        return code, [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]

    code, lines = checked("train-examples=12 test-examples=8")
    assert code == 0
    assert {mark for mark, _, _ in lines} == {"ok"}
    said = [f"{name} {found}" for _, name, found in lines]
    assert said[0] == "node-config: none, so all clients of a simulation here, benchmark scenes"
    names = ("clean", "sketch", "noisy", "inverted", "low-resolution")
    counted = [f"data: {name}, 12 training, 4 validation and 8 test examples" for name in names]
    assert said[2:8] == ["clients: 5", *counted]

    code, lines = checked("benchmark='files' data-dir='/no/such'")
    assert code == 1
    (failed,) = (line for line in lines if line[0] == "FAIL")
    assert failed[1] == "clients:"
    assert failed[2].startswith("data-dir = '/no/such' does not exist; allowed: ")


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("partition-id=0", "num-partitions = None; allowed: a whole number"),
        (f"{NODE} data_dir='/data'", "data_dir is not a setting of a site; allowed: partition-id, "),
        (f"{NODE} device=cpu", "cannot be read"),
    ],
)
def test_a_node_config_that_cannot_be_used(lines, node, said):
    code, found = lines(node=node)
    assert code == 1
    assert list(found) == ["node-config"]
    assert found["node-config"][0] == "FAIL"
    assert said in found["node-config"][1]


@pytest.mark.parametrize(
    ("name", "node", "run", "said"),
    [
        (
            "data",
            "",
            "heterogeneity='color'",
            "heterogeneity = 'color'; allowed: domain, function, scene, task",
        ),
        ("backbone", "backbone='/nowhere'", "", "backbone = '/nowhere' cannot be loaded"),
        ("device", "device='cuda:99'", "", "device = 'cuda:99' is not available; allowed: auto, cpu"),
        ("state-dir", "state-dir='here'", "", "node-config: state-dir = 'here' is relative"),
        ("state-dir", "state-dir='/dev/null/here'", "", "Not a directory"),
    ],
)
def test_one_failure_is_one_line_and_the_other_checks_go_on(lines, name, node, run, said):
    code, found = lines(node=f"{NODE} {node}", run=run)
    assert code == 1
    assert [other for other, (mark, _) in found.items() if mark == "FAIL"] == [name]
    assert said in found[name][1]
    assert len(found) == (6 if name == "data" else 7)


def test_fewer_examples_than_the_sites_own_policy_wants(lines):
    code, found = lines(node=f"{NODE} min-examples=13")
    assert code == 1
    assert found["data"] == ("FAIL", "a site has fewer examples than its min-examples = 13")


def test_what_leaves_is_what_the_policy_says(lines):
    node = f'{NODE} site-name="B" share-metrics="none" policy="open" require-dp="local"'
    assert lines(node=node)[1]["node-config"] == (
        "FAIL",
        "a site has require-dp = 'local'; the run has dp.mode = 'none'",
    )
    found = lines(node=node, run='dp.mode="local"')[1]["leaves"][1]
    assert found.startswith("the shared adapter (dp local, requires local), as 'B', metrics: none, ")
    assert found.endswith(", whole errors")


def test_data_without_training_examples(lines, monkeypatch):
    monkeypatch.setattr(check.Client, "partition", Partition(1, "empty", (), [], [], [1]))
    assert lines()[1]["data"] == ("FAIL", "empty has no training examples")


BAD_DATA = {
    "no JSON of LLaVA": (
        [{"caption": "a"}],
        "has none of conversations, messages, prompt, question; it has c",
    ),
    "no answer": ([llava(0, images=(), conversations=[{"from": "human", "value": "?"}])], "no answer"),
    "an unknown role": (
        [{"messages": [{"role": "cat", "content": "a"}]}],
        "has a turn of role 'cat'; allowed: ",
    ),
    "too many pictures": ([llava(0, image=["a.png", "a.png"])], "has 2 pictures and 1 places for them"),
    "a picture elsewhere": ([llava(0, images=("../../a.png",))], "image '"),
    "two forms": (
        [{**llava(0), "prompt": "a", "completion": "b"}],
        "has conversations and prompt; allowed: one",
    ),
}


@pytest.mark.parametrize(("rows", "fault"), BAD_DATA.values(), ids=BAD_DATA)
def test_files_of_its_own_that_cannot_be_used(lines, tmp_path, rows, fault):
    picture(tmp_path / "data" / "a.png")
    write(tmp_path / "data" / "train.jsonl", rows)
    node = f'{NODE} data-dir="{tmp_path / "data"}"'
    code, found = lines(node=node, run="benchmark='files'")
    mark, said = found["data"]
    assert (code, mark) == (1, "FAIL")
    assert said.startswith(f"data-dir: train.jsonl line 1: {fault}")


def test_files_of_its_own(lines, tmp_path):
    picture(tmp_path / "data" / "a.png")
    for split, count in (("train", 12), ("test", 2)):
        write(tmp_path / "data" / f"{split}.jsonl", [llava(n) for n in range(count)])
    node = f'{NODE} data-dir="{tmp_path / "data"}"'
    assert lines(node=node, run="benchmark='files'")[1]["data"] == (
        "ok",
        "data, 12 training and 2 test examples",
    )


def test_a_hub_that_cannot_be_reached(lines, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    mark, said = lines(run="benchmark='files' hub-data='nobody/nothing'")[1]["data"]
    assert mark == "FAIL"
    assert said.startswith("hub-data = 'nobody/nothing' cannot be read (")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"address": "localhost"}, "superlink = 'localhost'; allowed: HOST:PORT"),
        ({"ca": "nothing.crt"}, "cannot be used: [Errno 2]"),
        ({"ca": "other-ca.crt"}, "; this machine's clock says "),
        ({"certificate": "expired"}, "certificate has expired; this machine's clock says "),
        ({"certificate": "elsewhere"}, "certificate is not valid for '127.0.0.1'"),
        ({"tls": False}, "does not answer over TLS"),
    ],
)
def test_a_superlink_that_cannot_be_trusted(asked, how, said):
    ((name, (mark, line)),) = asked(**how).items()
    assert (name, mark) == ("superlink", "FAIL")
    assert said in line


def test_a_superlink_that_is_not_there(asked, superlink):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        found = asked(address=f"127.0.0.1:{taken.getsockname()[1]}")
    assert found["superlink"][0] == "FAIL"
    assert "refused" in found["superlink"][1]


# A SuperLink takes what is signed up to 5 s in its future and 300 s in its past.
@pytest.mark.parametrize(("ahead", "mark"), [(-20, "FAIL"), (-3, "ok"), (200, "ok"), (320, "FAIL")])
def test_clocks_may_differ_by_what_a_superlink_bears(asked, ahead, mark):
    found = asked(ahead=ahead)
    assert found["superlink"][0] == "ok"
    assert found["clock"][0] == mark


@pytest.mark.parametrize(
    ("validated", "tests", "scored", "told"),
    [
        (0, 2, "test", "3 training and 2 test examples"),
        (4, 2, "test", "3 training, 4 validation and 2 test examples"),
        (0, 0, "test", "3 training and 0 test examples: it trains, and has no score"),
        (4, 4, "validation", "3 training and 4 validation examples"),
    ],
)
def test_a_client_that_cannot_be_scored_is_told(validated, tests, scored, told):
    policy = SimpleNamespace(require_examples=lambda count: None)
    partition = SimpleNamespace(name="school", train=range(3), validation=range(validated), test=range(tests))
    settings = SimpleNamespace(evaluate_on=scored)
    found = check.data(SimpleNamespace(partition=partition, policy=policy, settings=settings))
    assert found == f"school, {told}"
