"""A client under secure aggregation: its change leaves it masked, and it helps to open one sum a round.

The exchange is in `strategies/secure_aggregation.py`, the arithmetic in `app/secure_sum.py`. Each message
may come to another process, so what must last from one to the next lies in a file of the site's own, until
the sum is opened or another attempt begins. Each step is answered once, in its order, even if by a refusal:
no mask is used twice, and of no party are both secrets' shares given.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from app import secure_sum
from app.files import append_line, write_atomically
from app.home import closed_folder
from app.secure_sum import SEED_BYTES, SHARE_BYTES, Codes, Roster
from app.settings import SettingsError
from app.settings.secure import SecureSettings

from .policy import Policy, PublicError
from .site_word import state_dir

ANSWER = "secure"
# What is left of an attempt that nobody went on with is deleted with the next one, if it is as old as this.
_STALE_SECONDS = 24 * 3600

Kept = dict[str, Any]


def exchange(message: Message, context: Context) -> Message:
    """Answer a step of the exchange before or after training.

    Raises
    ------
    PublicError
        The step is not the next one of this attempt, or asks for what no honest server does.
    """
    config: dict[str, Any] = dict(message.content.config_records["config"])
    settings = SecureSettings.of(context.run_config)
    if not settings.aggregation:
        raise PublicError("the run has secure.aggregation = false")
    match config.get("step"):
        case "keys":
            answer = _keys(config, context)
        case "deal":
            answer = _deal(config, context, settings)
        case "open":
            answer = _open(config, context)
        case step:
            raise PublicError(f"step = {str(step)[:20]!r}; allowed: 'keys', 'deal', 'open'")
    return Message(RecordDict({ANSWER: ConfigRecord(answer)}), reply_to=message)


def masked(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Train, and put the masked change in the place of the arrays; a mod for the train function.

    Without secure aggregation it changes nothing.

    Raises
    ------
    PublicError
        Training is not the next step of this attempt, or too few others dealt.
    """
    settings = SecureSettings.of(context.run_config)
    if not settings.aggregation:
        return call_next(message, context)
    config: dict[str, Any] = dict(message.content.config_records["config"])
    kept, own = _taken(config, context, after="deal"), _own(context)
    roster = Roster.of(kept["said"])
    dealers = _parties(config.get("dealers"), roster)
    if own not in dealers or len(dealers) < roster.threshold:
        raise PublicError(f"dealers = {dealers}; allowed: this site and as many others as open a secret")
    dealt = _dealt(config, kept, roster, dealers, own)
    (sent,) = message.content.array_records.values()
    reply = call_next(message, context)
    ((name, trained),) = reply.content.array_records.items()
    words = Codes(settings.bits, settings.range).of(_change(sent, trained))
    words += secure_sum.own_mask(kept["own"], roster, len(words))
    others = [dealer for dealer in dealers if dealer != own]
    words += secure_sum.common_masks(own, secure_sum.mask_key(kept["mask"]), others, roster, len(words))
    # Of its own secrets nothing is kept.
    _keep(context, {"about": kept["about"], "done": "train", "said": kept["said"], "dealt": dealt})
    reply.content[name] = secure_sum.as_masked(words, sent)
    return reply


def _keys(config: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Make the secrets of a new attempt; those of the run's last one are gone."""
    own, mask, channel = os.urandom(SEED_BYTES), os.urandom(SEED_BYTES), X25519PrivateKey.generate()
    about = _about(config)
    _forget_stale(context)
    made = {"own": own, "mask": mask, "channel": channel.private_bytes_raw()}
    _keep(context, {"about": about, "done": "keys", **made})
    return {
        "mask-key": secure_sum.mask_key(mask).public_key().public_bytes_raw(),
        "channel-key": channel.public_key().public_bytes_raw(),
    }


def _deal(config: Mapping[str, Any], context: Context, settings: SecureSettings) -> dict[str, Any]:
    """Share the secrets among all parties."""
    kept, own = _taken(config, context, after="keys"), _own(context)
    try:
        roster = Roster.of(config)
    except ValueError as error:
        raise PublicError(str(error)) from None
    parties = roster.parties
    _require(context, len(parties))
    if len(parties) > (most := Codes(settings.bits, settings.range).most):
        raise PublicError(f"{len(parties)} parties with secure.bits = {settings.bits}; allowed: up to {most}")
    channel = X25519PrivateKey.from_private_bytes(kept["channel"])
    mine = [key.public_key().public_bytes_raw() for key in (secure_sum.mask_key(kept["mask"]), channel)]
    if own not in parties or mine != [
        keys[roster.place(own)] for keys in (roster.mask_keys, roster.channel_keys)
    ]:
        raise PublicError("this site's own keys are not among the parties'")
    owns, masks = (secure_sum.shares_of(kept[name], roster) for name in ("own", "mask"))
    pairs = {party: one + other for party, one, other in zip(parties, owns, masks, strict=True)}
    sealed = [
        secure_sum.seal(_channel_key(channel, roster, party, own, party), pair) if party != own else b""
        for party, pair in pairs.items()
    ]
    _keep(context, {**kept, "done": "deal", "said": _said(config), "held": pairs[own]})
    return {"sealed": sealed, "digests": [secure_sum.digest(share) for share in (*owns, *masks)]}


def _open(config: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Give the shares that open the sum of those whose changes came, and forget the attempt."""
    kept, own = _taken(config, context, after="train"), _own(context)
    roster, dealt = Roster.of(kept["said"]), kept["dealt"]
    dealers, came = sorted(map(int, dealt)), _parties(config.get("came"), roster)
    if own not in came or len(came) < roster.threshold or not set(came) <= set(dealers):
        raise PublicError(
            f"came = {came}; allowed: this site and others that dealt, {roster.threshold} or more"
        )
    _require(context, len(came))
    _once(context, kept["about"], came)
    # Never both of one party: for whom came, of the mask of its own; for the others, of the key.
    parts = {dealer: slice(SHARE_BYTES) if dealer in came else slice(SHARE_BYTES, None) for dealer in dealers}
    return {"shares": [dealt[str(dealer)][part] for dealer, part in parts.items()]}


def _dealt(
    config: Mapping[str, Any], kept: Kept, roster: Roster, dealers: Sequence[int], own: int
) -> dict[str, bytes]:
    """Read what the others sealed for this site, by dealer; nothing where that cannot be read."""
    sealed = config.get("sealed")
    if not isinstance(sealed, list) or len(sealed) != len(dealers):
        raise PublicError(f"{len(dealers)} dealers, but not as many sealed shares")
    channel, dealt = X25519PrivateKey.from_private_bytes(kept["channel"]), {}
    for dealer, one in zip(dealers, sealed, strict=True):
        key = _channel_key(channel, roster, dealer, dealer, own)
        pair = kept["held"] if dealer == own else secure_sum.unseal(key, one)
        dealt[str(dealer)] = pair or b""
    return dealt


def _channel_key(private: X25519PrivateKey, roster: Roster, other: int, sender: int, receiver: int) -> bytes:
    public = roster.channel_keys[roster.place(other)]
    return secure_sum.agreed(private, public, roster, "channel", sender, receiver)


def _change(sent: ArrayRecord, trained: ArrayRecord) -> np.ndarray:
    before, after = (
        secure_sum.vector_of({name: array.numpy() for name, array in record.items()})
        for record in (sent, trained)
    )
    change = after.astype(np.float64) - before
    if not np.isfinite(change).all():
        raise PublicError("a change is not finite")
    return change


def _parties(said: Any, roster: Roster) -> list[int]:
    """Return what are some of the parties, each once, ascending; PublicError for anything else."""
    if not isinstance(said, list) or said != [party for party in roster.parties if party in said]:
        raise PublicError("the message names clients that are not parties, or not in the parties' order")
    return said


def _require(context: Context, parties: int) -> None:
    least = Policy.of(context.node_config).require_secure_aggregation
    if parties < least:
        raise PublicError(f"a site has require-secure-aggregation = {least}; a sum would be of {parties}")


def _own(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _about(config: Mapping[str, Any]) -> list[Any]:
    about = [config.get(name) for name in ("run-token", "server-round", "attempt")]
    if [type(one) for one in about] != [str, int, str]:
        raise PublicError("the message does not say of which run, round and attempt it is")
    return about


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all parties were told, without what is for this site alone."""
    names = ("run-token", "server-round", "attempt", "threshold", "parties", "mask-keys", "channel-keys")
    return {name: config[name] for name in names}


def _taken(config: Mapping[str, Any], context: Context, after: str) -> Kept:
    """Return what is kept of the attempt that a message is of, once, if it is the step's turn."""
    about = _about(config)
    path = _file(context, about)
    try:
        kept = _read(path)
        if (kept["about"], kept["done"]) == (about, after):
            # Of two processes with one message each, one alone can rename it.
            taken = path.rename(path.with_suffix(f".{secrets.token_hex(8)}"))
            kept = _read(taken)
            taken.unlink()
            if (kept["about"], kept["done"]) == (about, after):
                return kept
    except FileNotFoundError:
        pass
    raise PublicError(f"no attempt at a sum waits here for what follows '{after}'")


def _read(path: Path) -> Kept:
    kept: Kept = json.loads(path.read_text(), object_hook=_from_hex)
    return kept


def _keep(context: Context, kept: Kept) -> None:
    path = _file(context, kept["about"])
    closed_folder("state-dir", path.parent)
    write_atomically(path, json.dumps(kept, default=lambda value: {"hex": value.hex()}))


def _from_hex(value: dict[str, Any]) -> Any:
    return bytes.fromhex(value["hex"]) if value.keys() == {"hex"} else value


def _file(context: Context, about: Sequence[Any]) -> Path:
    run = hashlib.sha256(about[0].encode()).hexdigest()[:16]
    return state_dir(context.node_config) / f"secure-{_own(context)}-{run}.json"


def _forget_stale(context: Context) -> None:
    for path in state_dir(context.node_config).glob(f"secure-{_own(context)}-*"):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            path.unlink(missing_ok=True)


def _once(context: Context, about: Sequence[Any], came: Sequence[int]) -> None:
    """Write down whose sum is opened; of one round no sum over others is ever opened.

    The difference of two such sums would be the change of those who are in one of them.
    """
    run, server_round, _ = about
    run = hashlib.sha256(run.encode()).hexdigest()
    parties = " ".join(map(str, came))
    path = state_dir(context.node_config) / f"summed-{_own(context)}.txt"

    def summed_before() -> bool:
        text = path.read_text() if path.exists() else ""
        lines = [line.split(" ", 2) for line in text.splitlines()]
        if text and not (text.endswith("\n") and all(len(line) == 3 for line in lines)):
            raise SettingsError(
                f"{path} is damaged: no sum is opened; allowed: the lines as they were written"
            )
        before = [summed for *of, summed in lines if of == [run, str(server_round)]]
        if other := next((summed for summed in before if summed != parties), None):
            raise PublicError(
                f"round {server_round} was summed over partitions {other} before; allowed: the same ones"
            )
        return bool(before)

    if summed_before():
        return
    append_line(path, f"{run} {server_round} {parties}")
    # Two processes at once each find the other's line, or their own is the later one.
    summed_before()
