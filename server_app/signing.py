"""Sign an app for sites that run only what somebody whom they trust has signed.

A site names those in the file of `flower-supernode --trusted-entities`: a name and a public key each. Who
has read the sources signs what `flwr build` makes of them; the coordinator's SuperLink hands it on::

    python -m server_app.signing sign FILE.fab KEY NAME > NAME.json
    python -m server_app.signing attach FILE.fab superlink.db NAME.json

Flower takes signatures from its own hub alone; this writes them to where its SuperLink keeps them, a table
of its database (Flower 1.42) which is no promise of Flower's. Signed is the code of an app, and nothing
else: not the settings of a run.
"""

import argparse
import hashlib
import json
import sqlite3
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from flwr.supercore.primitives.asymmetric_ed25519 import (
    create_message_to_sign,
    load_private_key,
    sign_message,
)

# `flwr run` stores an app without signatures, also one that is there.
KEEP = """
CREATE TRIGGER IF NOT EXISTS feddat_signatures_stay AFTER UPDATE OF verifications ON fab
WHEN NEW.verifications = '{}' AND OLD.verifications <> '{}'
BEGIN UPDATE fab SET verifications = OLD.verifications WHERE fab_hash = NEW.fab_hash; END
"""
STORE = """
INSERT INTO fab (fab_hash, content, verifications) VALUES (?, ?, ?)
ON CONFLICT (fab_hash) DO UPDATE SET verifications = excluded.verifications
"""


def sign(app: bytes, key: Path, name: str, signed_at: int) -> dict[str, str | int]:
    """Sign an app.

    Parameters
    ----------
    app : bytes
        The file that `flwr build` makes.
    key : Path
        The signer's private key, as `ssh-keygen -t ed25519` makes it, without a passphrase.
    name : str
        Of the signer, as sites know it.
    signed_at : int
        Seconds since 1970; part of what is signed.

    Returns
    -------
    dict
        Who signed which app, when, and the signature (URL-safe base64).

    Raises
    ------
    ValueError
        If the key is of another kind.
    """
    digest = hashlib.sha256(app)
    signature = sign_message(load_private_key(key), create_message_to_sign(digest.digest(), signed_at))
    return {
        "app": digest.hexdigest(),
        "name": name,
        "signed_at": signed_at,
        "signature": urlsafe_b64encode(signature).decode(),
    }


def attach(app: bytes, database: Path, signatures: Sequence[Mapping[str, str | int]]) -> None:
    """Have a SuperLink know an app by these signatures, in place of those that it had.

    Parameters
    ----------
    app : bytes
        The file that `flwr build` makes.
    database : Path
        The SuperLink's; it may be running.
    signatures : sequence of dict
        What `sign` returned.

    Raises
    ------
    ValueError
        If a signature is of another app, or the database is not a SuperLink's.
    """
    digest = hashlib.sha256(app).hexdigest()
    for signature in signatures:
        if signature["app"] != digest:
            raise ValueError(f"{signature['name']} signed the app {signature['app']}; this is {digest}")
    # As Flower's own hub says it.
    said = {str(s["name"]): json.dumps({k: s[k] for k in ("signature", "signed_at")}) for s in signatures}
    try:
        # A database that is not there is not made.
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True)) as link, link:
            link.execute(KEEP)
            link.execute(STORE, (digest, app, json.dumps({**said, "valid_license": "Valid"})))
    except sqlite3.Error as error:
        raise ValueError(f"{database}: not a SuperLink's database of Flower 1.42: {error}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two commands; errors end it with a line."""
    parser = argparse.ArgumentParser(prog="python -m server_app.signing", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    signing = commands.add_parser("sign", help="print a signature")
    attaching = commands.add_parser("attach", help="give signatures to a SuperLink")
    for command in (signing, attaching):
        command.add_argument("app", type=Path, help="what `flwr build` made")
    signing.add_argument("key", type=Path, help="private key: ssh-keygen -t ed25519")
    signing.add_argument("name", help="the signer's, as sites know it")
    attaching.add_argument("database", type=Path, help="the SuperLink's --database")
    attaching.add_argument("signature", type=Path, nargs="+", help="what `sign` printed")
    given = parser.parse_args(arguments)
    try:
        app = given.app.read_bytes()
        if given.command == "sign":
            print(json.dumps(sign(app, given.key, given.name, int(time.time()))))
        else:
            attach(app, given.database, [json.loads(path.read_text()) for path in given.signature])
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
