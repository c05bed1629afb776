"""The arithmetic of secure aggregation: who adds up masked vectors learns their sum, and no single one.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
https://eprint.iacr.org/2017/281, the protocol against an honest but curious server. A *party* writes its
change as whole numbers and adds, modulo 2^32, a mask of its own and one for each other party, which that one
subtracts. Of the seeds of its own mask and of its key for the others, every party holds a share: `threshold`
of them open the first if its vector is in the sum, or the second if it is not.

Needs NumPy and what Flower brings along: cryptography for keys, masks and sealed shares, PyCryptodome for
Shamir's shares. A party is known by a number, its partition.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flwr.app import Array, ArrayRecord

from .settings.secure import LEAST_PARTIES

WORD = np.dtype("<u4")  # whose arithmetic is modulo 2^32
MASKED = "feddat.masked"  # the `stype` of an array of such words
SEED_BYTES = SHARE_BYTES = 16
KEY_BYTES = 32
NONCE_BYTES, TAG_BYTES = 12, 16
SEALED_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES

_PURPOSE = b"feddat secure aggregation 1"


@dataclass(frozen=True)
class Codes:
    """Real numbers as whole ones that can be added.

    Attributes
    ----------
    bits : int
        Of a code.
    limit : float
        Numbers are clipped to [-limit, limit].
    """

    bits: int
    limit: float

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    @property
    def step(self) -> float:
        """How far apart two numbers are whose codes are neighbours."""
        return 2 * self.limit / self.top

    @property
    def most(self) -> int:
        """How many codes can be added without reaching the modulus."""
        return (2**32 - 1) // self.top

    def of(self, values: np.ndarray) -> np.ndarray:
        """Clip finite numbers, and round each up or down by chance, so that the mean is right.

        Chance is a hash of the numbers themselves: nobody who does not know them can tell it, and the same
        numbers have the same codes, so that a round that is run again has the same sum.
        """
        values = np.ascontiguousarray(values, np.float64)
        chance = np.random.default_rng(int.from_bytes(hashlib.sha256(values.tobytes()).digest()))
        exact = (np.clip(values, -self.limit, self.limit) + self.limit) / self.step
        lower = np.floor(exact)
        codes = lower + (chance.random(values.shape) < exact - lower)
        return np.minimum(codes, self.top).astype(WORD)

    def mean(self, total: np.ndarray, count: int) -> np.ndarray:
        """Return the mean of the numbers whose codes add up to `total`; ValueError if no codes can."""
        if (total > count * self.top).any():
            raise ValueError(
                f"the sum of {count} clients is not one of numbers from {-self.limit:g} to {self.limit:g}:"
                " one of them sent what it should not"
            )
        return total * (self.step / count) - self.limit


@dataclass(frozen=True)
class Roster:
    """Whose masks cancel: what all parties of one attempt at a round must agree on.

    Attributes
    ----------
    run : str
        The run's token.
    server_round : int
        The round.
    attempt : str
        Random.
    threshold : int
        How many shares open a secret: more than half of the parties, so that no two halves of them can be
        told different things.
    parties : tuple of int
        Ascending.
    mask_keys, channel_keys : tuple of bytes
        Each party's X25519 public keys: for the masks that it has in common with others, and for what is
        sealed for it.
    """

    run: str
    server_round: int
    attempt: str
    threshold: int
    parties: tuple[int, ...]
    mask_keys: tuple[bytes, ...]
    channel_keys: tuple[bytes, ...]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Roster":
        """Read the config of a message; ValueError says in one line what is wrong with it."""
        run, attempt = said.get("run-token", ""), said.get("attempt")
        server_round, threshold = said.get("server-round"), said.get("threshold")
        parties, *keys = (said.get(name) for name in ("parties", "mask-keys", "channel-keys"))
        if not (isinstance(run, str) and isinstance(attempt, str) and type(server_round) is int):
            raise ValueError("the message does not say of which run, round and attempt it is")
        if not (isinstance(parties, list) and all(type(one) is int for one in parties)):
            raise ValueError("the message does not say who the parties are")
        if parties != sorted(set(parties)) or len(parties) < LEAST_PARTIES:
            raise ValueError(f"{len(parties)} parties; allowed: at least {LEAST_PARTIES}, each once")
        least = max(LEAST_PARTIES, len(parties) // 2 + 1)
        if type(threshold) is not int or not least <= threshold <= len(parties):
            raise ValueError(
                f"threshold = {threshold!r} of {len(parties)} parties; allowed: {least} to {len(parties)}"
            )
        sizes = [KEY_BYTES] * len(parties)
        mask_keys, channel_keys = (
            tuple(own) if _are_bytes(own) and [len(key) for key in own] == sizes else None for own in keys
        )
        if mask_keys is None or channel_keys is None:
            raise ValueError(f"the message does not have {len(parties)} public keys of {KEY_BYTES} bytes")
        return cls(run, server_round, attempt, threshold, tuple(parties), mask_keys, channel_keys)

    @cached_property
    def transcript(self) -> bytes:
        """A hash of all of it; every key is derived with it, so that those told otherwise share none."""
        keys = [[key.hex() for key in own] for own in (self.mask_keys, self.channel_keys)]
        about = [self.run, self.server_round, self.attempt, self.threshold, self.parties, keys]
        return hashlib.sha256(json.dumps(about).encode()).digest()

    def place(self, party: int) -> int:
        """Return which of the parties it is, from 0."""
        return self.parties.index(party)


def _are_bytes(value: object) -> TypeGuard[list[bytes]]:
    return isinstance(value, list) and all(isinstance(one, bytes) for one in value)


def derived(secret: bytes, purpose: str, *context: bytes) -> bytes:
    """Derive a key of 32 bytes for one purpose from a secret."""
    info = b"|".join([_PURPOSE, purpose.encode(), *context])
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(secret)


def mask_key(seed: bytes) -> X25519PrivateKey:
    """Return the private key that a seed stands for; the seed is what is shared."""
    return X25519PrivateKey.from_private_bytes(derived(seed, "mask key"))


def stretched(key: bytes, length: int) -> np.ndarray:
    """Return `length` words that look random to all without the key (AES-256 in counter mode)."""
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(length * WORD.itemsize)), WORD)


def agreed(private: X25519PrivateKey, public: bytes, roster: Roster, purpose: str, *parties: int) -> bytes:
    """Return the key that two have in common; ValueError for a public key with which all have the same."""
    secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    return derived(secret, purpose, roster.transcript, *(str(party).encode() for party in parties))


def own_mask(seed: bytes, roster: Roster, length: int) -> np.ndarray:
    """Return a party's mask of its own."""
    return stretched(derived(seed, "own mask", roster.transcript), length)


def common_masks(
    party: int, private: X25519PrivateKey, others: Iterable[int], roster: Roster, length: int
) -> np.ndarray:
    """Return the sum of what a party adds for others: what each of them adds for it is the negative."""
    total = np.zeros(length, WORD)
    for other in others:
        low, high = sorted((party, other))
        key = agreed(private, roster.mask_keys[roster.place(other)], roster, "common mask", low, high)
        if party == low:
            total += stretched(key, length)
        else:
            total -= stretched(key, length)
    return total


def shares_of(seed: bytes, roster: Roster) -> list[bytes]:
    """Share a seed among the parties, in their order (Shamir, 1979)."""
    shares = Shamir.split(roster.threshold, len(roster.parties), seed, False)
    return [bytes(share) for _, share in sorted(shares)]


def opened(shares: Mapping[int, bytes], roster: Roster) -> bytes:
    """Return the seed of which parties hold these shares; there are `threshold` or more."""
    chosen = sorted(shares)[: roster.threshold]
    return bytes(Shamir.combine([(roster.place(party) + 1, shares[party]) for party in chosen], False))


def digest(share: bytes) -> bytes:
    """Return what is known of a share beforehand, so that nobody can give another."""
    return hashlib.sha256(_PURPOSE + share).digest()


def seal(key: bytes, shares: bytes) -> bytes:
    """Encrypt two shares for their holder (AES-256-GCM)."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, shares, None)


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """Decrypt what was sealed; None if it was not, with this key."""
    if len(sealed) != SEALED_BYTES:
        return None
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
    except InvalidTag:
        return None


def vector_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put arrays after one another, in the order of their names."""
    return np.concatenate([np.ravel(arrays[name]) for name in sorted(arrays)] or [np.zeros(0)])


def cut(vector: np.ndarray, like: ArrayRecord) -> dict[str, np.ndarray]:
    """Undo `vector_of`; the arrays are in the order and of the shapes of `like`."""
    ends, parts = 0, {}
    for name in sorted(like):
        shape = tuple(like[name].shape)
        size = math.prod(shape)
        parts[name] = vector[ends : ends + size].reshape(shape)
        ends += size
    return {name: parts[name] for name in like}


def as_masked(vector: np.ndarray, like: ArrayRecord) -> ArrayRecord:
    """Write words as arrays with the names, dtypes and shapes of what they stand for."""
    words = cut(vector.astype(WORD, copy=False), like)
    return ArrayRecord(
        {n: Array(like[n].dtype, like[n].shape, MASKED, w.tobytes()) for n, w in words.items()}
    )


def words_in(masked: ArrayRecord) -> np.ndarray:
    """Undo `as_masked`."""
    return vector_of({name: np.frombuffer(array.data, WORD) for name, array in masked.items()})


@dataclass(frozen=True)
class MaskedSum:
    """The server's part, see `strategies.SecureSum`."""

    codes: Codes

    @property
    def most(self) -> int:
        """How many changes can be added up."""
        return self.codes.most

    def expected(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return a reply's arrays as far as they are known: all but the words.

        Raises
        ------
        ValueError
            An array is not of real numbers.
        """
        for name, array in arrays.items():
            if np.dtype(array.dtype).kind != "f":
                raise ValueError(
                    f"array '{name}' is {array.dtype}; allowed under secure aggregation: real numbers"
                )
        return as_masked(np.zeros(sum(math.prod(a.shape) for a in arrays.values()), WORD), arrays)

    def fault_in_keys(self, *keys: object) -> str | None:
        """Say what is wrong with a party's public keys; None if nothing is."""
        for key in keys:
            if not isinstance(key, bytes) or len(key) != KEY_BYTES:
                return f"a public key is no {KEY_BYTES} bytes"
            try:
                X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
            except ValueError:
                return "a public key is one with which all have the same secret"
        return None

    def fault_in_shares(self, sealed: object, digests: object, place: int, parties: int) -> str | None:
        """Say what is wrong with what the party at a place deals; None if nothing is."""
        sizes = [SEALED_BYTES] * parties
        sizes[place] = 0  # what it holds itself it does not send
        for what, wanted in ((sealed, sizes), (digests, [KEY_BYTES] * 2 * parties)):
            if not _are_bytes(what):
                return "what it deals are no shares"
            if [len(one) for one in what] != wanted:
                return f"what it deals are not the shares of {parties} parties"
        return None

    def is_share(self, share: object, known: bytes) -> bool:
        """Whether this is the share of which the digest is known."""
        return isinstance(share, bytes) and len(share) == SHARE_BYTES and digest(share) == known

    def mean(
        self,
        sent: ArrayRecord,
        masked: Mapping[int, ArrayRecord],
        said: Mapping[str, Any],
        dealers: Sequence[int],
        shares: Mapping[int, Mapping[int, bytes]],
    ) -> ArrayRecord:
        """Return what was sent plus the mean of the changes.

        Parameters
        ----------
        sent : ArrayRecord
            What the parties were sent.
        masked : Mapping[int, ArrayRecord]
            What came back, by party.
        said : Mapping
            What all parties were told, see `Roster.of`.
        dealers : sequence of int
            The parties for whom each added a mask.
        shares : Mapping[int, Mapping[int, bytes]]
            By dealer and holder: of the seed of its own mask if it is in `masked`, else of its key's.

        Raises
        ------
        ValueError
            A seed is not the one that was shared, or the sum none of what honest parties send.
        """
        roster = Roster.of(said)
        total = np.zeros(sum(math.prod(array.shape) for array in sent.values()), WORD)
        for record in masked.values():
            total += words_in(record)
        for party in dealers:
            seed = opened(shares[party], roster)
            if party in masked:
                total -= own_mask(seed, roster, len(total))
                continue
            private = mask_key(seed)
            if private.public_key().public_bytes_raw() != roster.mask_keys[roster.place(party)]:
                raise ValueError(f"partition {party} shared another secret than its own")
            total += common_masks(party, private, masked, roster, len(total))
        change = cut(self.codes.mean(total, len(masked)), sent)
        return ArrayRecord(
            {name: Array(np.asarray(a.numpy() + change[name], a.dtype)) for name, a in sent.items()}
        )
