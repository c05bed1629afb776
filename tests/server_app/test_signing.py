"""Signatures of apps, held to Flower's own check and store; `tests/test_doors.py` has a real site."""

import hashlib
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode.start_client_internal import _verify_fab

from server_app import signing

APP, OTHER = b"an app", b"an app\n"


def ssh(key, path):
    """Write a private key as ssh-keygen does; return its public half."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()


@pytest.fixture
def signer(tmp_path):
    """Return a signer's private key and what a site trusts."""
    path = tmp_path / "key"
    return path, {"reviewer": ssh(Ed25519PrivateKey.generate(), path)}


@pytest.fixture
def superlink(tmp_path):
    """Return the state of a SuperLink, and the path of its database."""
    path = tmp_path / "superlink.db"
    stores = ObjectStoreFactory(str(path))
    return LinkStateFactory(str(path), NoOpFederationManager(), stores).state(), path


def run(state, app):
    """Have the SuperLink store an app as `flwr run` does, and return what it hands to a site."""
    state.store_fab(Fab(hashlib.sha256(app).hexdigest(), app, {}))
    return state.get_fab(hashlib.sha256(app).hexdigest())


def accepted(fab, trusted):
    """Judge an app as a SuperNode does that was given trusted entities."""
    return bool(fab.verifications.get("valid_license")) and _verify_fab(fab, trusted)


@pytest.mark.parametrize("known", [False, True], ids=["attached before its first run", "after one"])
def test_a_site_accepts_the_signed_app_in_every_run_and_no_other(signer, superlink, tmp_path, known, capsys):
    (key, trusted), (state, database) = signer, superlink
    app, signature = tmp_path / "app.fab", tmp_path / "reviewer.json"
    app.write_bytes(APP)
    if known:
        assert not accepted(run(state, APP), trusted)
    signing.main(["sign", str(app), str(key), "reviewer"])
    signature.write_text(capsys.readouterr().out)
    signing.main(["attach", str(app), str(database), str(signature)])
    for _ in range(2):
        assert accepted(run(state, APP), trusted)
        assert not accepted(run(state, OTHER), trusted)
    stranger = {"reviewer": ssh(Ed25519PrivateKey.generate(), tmp_path / "stranger")}
    assert not accepted(run(state, APP), stranger)
    assert not accepted(run(state, APP), {"somebody else": trusted["reviewer"]})


def test_the_signature_of_one_app_is_of_no_use_for_another(signer, superlink):
    (key, trusted), (state, database) = signer, superlink
    signature = signing.sign(APP, key, "reviewer", 1)
    with pytest.raises(ValueError, match="reviewer signed the app"):
        signing.attach(OTHER, database, [signature])
    forged = {**signature, "app": hashlib.sha256(OTHER).hexdigest()}
    signing.attach(OTHER, database, [forged])
    assert not accepted(run(state, OTHER), trusted)
    signing.attach(APP, database, [{**signature, "signed_at": 2}])
    assert not accepted(run(state, APP), trusted)


def test_one_of_several_signatures_is_enough(signer, superlink, tmp_path):
    (key, trusted), (state, database) = signer, superlink
    ssh(Ed25519PrivateKey.generate(), tmp_path / "other")
    both = [signing.sign(APP, tmp_path / "other", "other", 1), signing.sign(APP, key, "reviewer", 1)]
    signing.attach(APP, database, both)
    assert accepted(run(state, APP), trusted)


def test_what_cannot_be_used_is_said_in_a_line(tmp_path, signer, capsys):
    key, _ = signer
    app, wrong = tmp_path / "app.fab", tmp_path / "ecdsa"
    app.write_bytes(APP)
    ssh(generate_private_key(SECP384R1()), wrong)
    signature = tmp_path / "reviewer.json"
    signature.write_text(json.dumps(signing.sign(APP, key, "reviewer", 1)))
    no_database = tmp_path / "nothing.db"
    for arguments, said in (
        (["sign", str(app), str(wrong), "reviewer"], "Private key is not Ed25519"),
        (["sign", str(tmp_path / "missing.fab"), str(key), "reviewer"], "missing.fab"),
        (["attach", str(app), str(no_database), str(signature)], "nothing.db: not a SuperLink's database"),
        (["attach", str(app), str(app), str(signature)], "app.fab: not a SuperLink's database"),
    ):
        with pytest.raises(SystemExit) as ended:
            signing.main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert not no_database.exists()
