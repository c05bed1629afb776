"""The compose files and the app image agree with each other and with the installed Flower."""

import re
from importlib import import_module

import pytest
import yaml

from tests.conftest import ROOT

ENV = {
    "SUPERLINK": "coordinator.example:8000",
    "NODE_CONFIG": 'partition-id=0 num-partitions=2 data-dir="/app/data" state-dir="/app/state/private"',
    "DATA_DIR": "/srv/feddat/data",
}
# The modules' names are hidden by the functions of the same names.
PARSERS = {
    "flwr/superlink": ("flwr.superlink.cli.flower_superlink", "_parse_args_run_superlink"),
    "flwr/supernode": ("flwr.supernode.cli.flower_supernode", "_parse_args_run_supernode"),
    "feddat": ("flwr.supercore.cli.flower_superexec", "_parse_args"),
}
FILES = ("docker-compose.yml", "docker-compose.site.yml")
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def compose(name):
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: ENV[found[1]], (ROOT / name).read_text())
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return yaml.safe_load(text)


SERVICES = [
    pytest.param(file, name, id=f"{file}:{name}") for file in FILES for name in compose(file)["services"]
]


def arguments(service):
    """Parse the service's command as its image will."""
    module, parser = PARSERS[service["image"].split(":")[0]]
    return getattr(import_module(module), parser)().parse_args(service["command"])


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_flower_takes_the_command_and_its_files_are_mounted(file, name):
    document = compose(file)
    service = document["services"][name]
    found = arguments(service)
    assert found.insecure is False
    secrets = {path for path in vars(found).values() if str(path).startswith("/run/secrets/")}
    assert secrets == {f"/run/secrets/{secret}" for secret in service["secrets"]}
    assert set(service["secrets"]) <= document["secrets"].keys()
    for secret in service["secrets"]:
        assert document["secrets"][secret]["file"] == f"./deployment/{secret}"


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_a_service_comes_back_and_says_how_it_is(file, name):
    service = compose(file)["services"][name]
    assert service["restart"] == "unless-stopped"
    assert "user" not in service
    found, probe = arguments(service), service["healthcheck"]["test"][-1]
    port = (found.health_server_address or f":{getattr(found, 'port', '')}").split(":")[1]
    assert f"'127.0.0.1', {port})" in probe
    compile(probe, name, "exec")


@pytest.mark.parametrize(
    ("file", "name", "link"),
    [
        ("docker-compose.yml", "serverapp", "superlink"),
        ("docker-compose.site.yml", "clientapp-gpu", "supernode"),
        ("docker-compose.site.yml", "clientapp-cpu", "supernode"),
    ],
)
def test_an_app_finds_its_link_which_waits_for_it(file, name, link):
    services = compose(file)["services"]
    app, other = arguments(services[name]), arguments(services[link])
    assert app.runtime_api_address == f"{link}:{other.port}"
    assert other.host == "0.0.0.0"
    assert other.isolation == "process"
    assert app.root_certificates == other.ssl_ca_certfile
    assert app.superexec_auth_secret_file == other.superexec_auth_secret_file
    assert list(services[name]["depends_on"]) == [link]


def test_the_coordinators_port_is_open_and_only_known_nodes_may_use_it():
    service = compose("docker-compose.yml")["services"]["superlink"]
    found = arguments(service)
    assert service["ports"] == [f"{found.port}:{found.port}"]
    assert found.enable_supernode_auth
    assert found.database.startswith(service["volumes"][0].split(":")[1])


@pytest.mark.parametrize("file", FILES)
def test_what_must_last_lies_in_named_volumes(file):
    document = compose(file)
    mounts = [mount for service in document["services"].values() for mount in service.get("volumes", [])]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith("/")}
    assert named == document["volumes"].keys()
    homes = re.findall(r"(?:FLWR|FEDDAT)_HOME=(\S+)", DOCKERFILE)
    assert len(homes) == 2
    for service in document["services"].values():
        if service["image"].startswith("feddat:"):
            (state,) = (mount for mount in service["volumes"] if not mount.endswith(":ro"))
            assert all(home.startswith(state.split(":")[1] + "/") for home in homes)


def test_a_site_has_a_gpu_or_none():
    services = compose("docker-compose.site.yml")["services"]
    (device,) = services["clientapp-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "deploy" not in services["clientapp-cpu"]


def test_versions_are_those_of_the_project():
    flower = re.search(r"^FROM flwr/superexec:(\S+)$", DOCKERFILE, re.M)[1]
    project = (ROOT / "pyproject.toml").read_text()
    assert f'flwr-version-target = "{flower}"' in project
    assert f"flwr=={flower}" in (ROOT / "constraints.txt").read_text().splitlines()
    images = {service["image"] for file in FILES for service in compose(file)["services"].values()}
    own = re.search(r'^version = "(.*)"$', project, re.M)[1]
    assert images == {f"flwr/superlink:{flower}", f"flwr/supernode:{flower}", f"feddat:{own}"}


def test_the_image_runs_as_flowers_user_and_takes_no_secret():
    assert "USER" not in DOCKERFILE
    assert re.findall(r"^COPY (.*)$", DOCKERFILE, re.M) == ["--chown=app:app . /app/feddat"]
    first, *taken = (ROOT / ".dockerignore").read_text().split()
    assert first == "*"
    code = {"!app", "!client_app", "!data_partitions", "!server_app", "!strategies"}
    assert set(taken) == code | {
        "!LICENSE",
        "!README.md",
        "!constraints.txt",
        "!pyproject.toml",
        "**/__pycache__",
    }
