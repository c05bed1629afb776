"""The commands of docs/deployment.md: the installed Flower takes them, and they open no door but the one."""

import re
import shlex

from tests.conftest import ROOT
from tests.flower_programs import parse

PAGE = (ROOT / "docs" / "deployment.md").read_text()


def commands():
    """Parse the page's commands as the programs will; return each with the program's name."""
    code = "\n".join(re.findall(r"```(?:bash|ini)\n(.*?)```", PAGE, re.S)).replace("\\\n", " ")
    for line in code.splitlines():
        if found := re.match(r"(?:ExecStart=\S*/)?(flower-\w+) (.*)", line.strip()):
            yield found[1], parse(found[1], shlex.split(found[2]))


def test_superlink_and_supernodes_hear_their_own_machine_only_and_ask_for_a_secret():
    said = [(name, given) for name, given in commands() if name != "flower-superexec"]
    assert {name for name, _ in said} == {"flower-superlink", "flower-supernode"}
    for name, given in said:
        assert (given.host, given.isolation, given.insecure) == ("127.0.0.1", "process", False)
        assert given.superexec_auth_secret_file
        if name == "flower-superlink":
            assert given.enable_supernode_auth
            assert f"proxy_pass https://127.0.0.1:{given.port}/" in (ROOT / "nginx.conf").read_text()
        else:
            assert given.auth_supernode_private_key
            assert given.trusted_entities


def test_what_runs_apps_knows_the_secret_and_goes_without_tls_on_its_own_machine_only():
    said = list(commands())
    ports = {str(given.port) for name, given in said if name != "flower-superexec"}
    apps = [given for name, given in said if name == "flower-superexec"]
    assert len(apps) == 3
    for given in apps:
        host, port = given.runtime_api_address.split(":")
        assert host in ("127.0.0.1", "localhost")
        assert port in ports
        assert given.superexec_auth_secret_file
        assert given.insecure is (given.root_certificates is None)
