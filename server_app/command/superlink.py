"""A SuperLink that is there already, asked before a run whether the run can be started at it."""

import http.client
import json
import ssl
import tomllib
import urllib.error
import urllib.request
from typing import Any

from flwr.cli.constant import (
    LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE,
    LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE_IN_MEMORY,
    LOCAL_SUPERLINK_HTTP_API_PORT,
)
from flwr.supercore.utils import get_flwr_home
from flwr.supercore.version import package_version

from .refusal import Refusal

_OF_FLOWER = (LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE, LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE_IN_MEMORY)


def check_superlink(name: str) -> None:
    """Ask the SuperLink of a name in Flower's configuration which version it is.

    Flower starts a run at any, and one of another version then never begins: its parts refuse each other. One
    that does not tell, behind a door that lets no such question through, is taken as it is.

    Raises
    ------
    Refusal
        There is no such name, or nothing answers there, or another version does.
    """
    path = get_flwr_home() / "config.toml"
    if not path.exists():
        return  # Flower makes one, with names of its own
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from None
    connections = {key: value for key, value in known.items() if isinstance(value, dict)}
    if name not in connections:
        allowed = ", ".join(connections) or "none yet"
        raise Refusal(f"superlink = {name!r} is not in {path}; allowed: {allowed}")
    connection = connections[name]
    address = connection.get("address", LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE)
    if managed := address in _OF_FLOWER:
        connection, address = {"insecure": True}, f"127.0.0.1:{LOCAL_SUPERLINK_HTTP_API_PORT}"
    try:
        version = _version(address, connection)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if managed:
            return  # Flower starts it
        raise Refusal(
            f"superlink = {name!r}: {address} does not answer as a SuperLink of Flower {package_version} does"
            f" ({error}); allowed: one that runs"
        ) from None
    if version and version.split(".")[:2] != package_version.split(".")[:2]:
        raise Refusal(
            f"superlink = {name!r}: {address} is of Flower {version}, and this is Flower {package_version};"
            f" stop it and start it again with Flower {package_version}, or leave --superlink out"
        )


def _version(address: str, connection: dict[str, Any]) -> str:
    """Return the version that a SuperLink's description of itself names; "" where it gives none.

    Raises
    ------
    OSError, ValueError, HTTPException
        Whatever answers is no SuperLink that speaks HTTP, or nothing does.
    """
    scheme, trust = "http", None
    if not connection.get("insecure"):
        scheme, trust = "https", ssl.create_default_context(cafile=connection.get("root-certificates"))
    try:
        with urllib.request.urlopen(
            f"{scheme}://{address}/openapi.json", timeout=10, context=trust
        ) as answer:
            return str(dict(json.load(answer)).get("info", {}).get("version", ""))
    except urllib.error.HTTPError:
        return ""
