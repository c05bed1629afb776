"""The compose files and the app image agree with each other and with the installed Flower."""

import re

import pytest
import yaml

from tests.conftest import ROOT
from tests.flower_programs import parse

ENV = {
    "SUPERLINK": "coordinator.example:8000",
    "NODE_CONFIG": 'partition-id=0 num-partitions=2 data-dir="/app/data" state-dir="/app/state/private"',
    "DATA_DIR": "/srv/feddat/data",
}
PROGRAMS = {
    "flwr/superlink": "flower-superlink",
    "flwr/supernode": "flower-supernode",
    "feddat": "flower-superexec",
}
FILES = ("docker-compose.yml", "docker-compose.site.yml")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NGINX = (ROOT / "nginx.conf").read_text()


def compose(name):
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: ENV[found[1]], (ROOT / name).read_text())
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return yaml.safe_load(text)


# Those that run Flower; the door is nginx.
SERVICES = [
    pytest.param(file, name, id=f"{file}:{name}")
    for file in FILES
    for name in compose(file)["services"]
    if name != "door"
]


def arguments(service):
    """Parse the service's command as its image will."""
    return parse(PROGRAMS[service["image"].split(":")[0]], service["command"])


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_flower_takes_the_command_and_its_files_are_mounted(file, name):
    document = compose(file)
    service = document["services"][name]
    found = arguments(service)
    # What crosses a network is encrypted; a site's app and its SuperNode have one to themselves.
    assert found.insecure is (service.get("networks") == ["inside"])
    secrets = {str(path) for path in vars(found).values() if str(path).startswith("/run/secrets/")}
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
    assert app.insecure is (other.ssl_certfile is None)
    assert app.superexec_auth_secret_file == other.superexec_auth_secret_file
    assert list(services[name]["depends_on"]) == [link]


def test_only_the_door_is_open_to_others_and_it_leads_to_the_superlink_which_asks_for_keys():
    services = compose("docker-compose.yml")["services"]
    assert [name for name, service in services.items() if "network_mode" in service] == ["door"]
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    found = arguments(services["superlink"])
    assert ports == {"superlink": [f"127.0.0.1:8001:{found.port}"]}
    assert found.enable_supernode_auth
    assert found.database.startswith(services["superlink"]["volumes"][0].split(":")[1])
    passed = re.findall(r"^ *(listen|proxy_pass) ([^;]*);", NGINX, re.M)
    assert passed == [
        ("listen", "8000 ssl"),
        ("proxy_pass", "https://127.0.0.1:8001/health"),
        ("proxy_pass", "https://127.0.0.1:8001/v1/fleet/"),
    ]


def test_the_door_finds_its_configuration_and_its_certificates():
    document = compose("docker-compose.yml")
    door = document["services"]["door"]
    assert door["restart"] == "unless-stopped"
    source, configuration, mode = door["volumes"][0].split(":")
    assert (source, mode) == ("./nginx.conf", "ro")
    assert door["command"] == ["nginx", "-e", "stderr", "-p", "/tmp/", "-c", configuration]
    # nginx takes them from beside its configuration.
    wanted = re.findall(r"^ *\w*ssl_\w*certificate(?:_key)? (\S+);", NGINX, re.M)
    given = [secret["target"] for secret in door["secrets"]]
    assert sorted(given) == sorted(f"{configuration.rpartition('/')[0]}/{path}" for path in wanted)
    assert {secret["source"] for secret in door["secrets"]} <= document["secrets"].keys()
    assert all(secret["target"].endswith(f"/{secret['source']}") for secret in door["secrets"])


def test_a_site_opens_no_port_runs_signed_apps_only_and_gives_them_no_way_out():
    document = compose("docker-compose.site.yml")
    services = document["services"]
    assert not any(key in service for service in services.values() for key in ("ports", "network_mode"))
    assert arguments(services["supernode"]).trusted_entities
    assert services["clientapp-gpu"]["networks"] == services["clientapp-cpu"]["networks"] == ["inside"]
    assert document["networks"] == {"inside": {"internal": True}}
    assert services["supernode"]["networks"] == ["inside", "default"]


@pytest.mark.parametrize("file", FILES)
def test_what_must_last_lies_in_named_volumes(file):
    document = compose(file)
    mounts = [mount for service in document["services"].values() for mount in service.get("volumes", [])]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(("/", "./"))}
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
    flowers = {f"flwr/superlink:{flower}", f"flwr/supernode:{flower}"}
    assert images == {*flowers, f"feddat:{own}", "nginx:1.28"}


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
        "!docs/results/rivals.jsonl",  # which the app packs
        "!pyproject.toml",
        "**/__pycache__",
    }
