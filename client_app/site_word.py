"""The word by which a site knows its server.

Flower passes a message on to a site whoever of the registered sites sent it, if only it says that it is the
server's. So each site gives a random word of its own in the handshake, an answer that goes to the server
alone, and takes orders only with that word in them. It is another in each of Flower's runs, and the same for
every process of the site: made of the run's id and a secret that lies beside the private states.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from app.files import write_atomically
from app.home import closed_folder
from app.settings import feddat_home

from .policy import PublicError, in_simulation

# Where a site keeps what is private; no run may set it.
STATE_DIR = "state-dir"
SITE_WORD = "site-word"
# The server asks a site that says this for its word again.
UNKNOWN_WORD = "the message does not have this site's word"
_NUM_BYTES = 32


def state_dir(node_config: Mapping[str, Any]) -> Path:
    """Return the site's folder for what is private; ValueError if the node names a relative one."""
    given = node_config.get(STATE_DIR)
    folder = Path(str(given)).expanduser() if given else feddat_home() / "clients"
    if not folder.is_absolute():
        raise ValueError(f"node-config: {STATE_DIR} = {given!r} is relative; allowed: an absolute path")
    return folder


def give_word(context: Context) -> str:
    """Return the site's word of this run; its secret is made where there is none yet.

    Raises
    ------
    SettingsError
        The state-dir is not the site's alone.
    OSError
        The secret cannot be read or written.
    """
    folder = closed_folder("state-dir", state_dir(context.node_config))
    word = _kept_word(context)
    if word is None:
        write_atomically(_secret_file(folder, context), secrets.token_bytes(_NUM_BYTES))
        word = _kept_word(context)
    return str(word)


def obedient(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer a message that has the site's word, and refuse any other before anything is done.

    A simulation's nodes are the user's own, and need no words.
    """
    if not in_simulation():
        said = message.content.config_records.get("config", ConfigRecord()).get(SITE_WORD)
        word = _kept_word(context)
        if word is None or not isinstance(said, str) or not hmac.compare_digest(said.encode(), word.encode()):
            raise PublicError(UNKNOWN_WORD)
    return call_next(message, context)


def _kept_word(context: Context) -> str | None:
    """Return the word of this run, or None without a whole secret."""
    folder = state_dir(context.node_config)
    path = _secret_file(folder, context)
    if not os.path.lexists(path):
        return None
    closed_folder("state-dir", folder)
    secret = path.read_bytes()
    if len(secret) != _NUM_BYTES:
        return None
    return hmac.digest(secret, str(context.run_id).encode(), hashlib.sha256).hex()


def _secret_file(folder: Path, context: Context) -> Path:
    return folder / f".secret-{context.node_config.get('partition-id')}"
