"""Clients who do not keep to the rules: they are refused, and the others go on."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from app.secure_sum import MASKED
from tests.secure_sites import BOUND, Sites, federate, mean_of, refusals
from tests.strategies.conftest import Notes


def saying(**said):
    """Change an answer of the exchange."""

    def change(reply):
        reply.content["secure"] = ConfigRecord({**reply.content["secure"], **said})
        return reply

    return change


def with_array(array):
    def change(reply):
        reply.content["arrays"] = ArrayRecord({"x": array})
        return reply

    return change


def with_share(reply):
    given = list(reply.content["secure"]["shares"])
    given[5] = bytes(16)
    return saying(shares=given)(reply)


def with_sealed(reply):
    return saying(sealed=[b"1" * 59 if sealed else b"" for sealed in reply.content["secure"]["sealed"]])(
        reply
    )


HOSTILE = {
    "a short key": ("keys", saying(**{"mask-key": b"1" * 31}), "a public key is no 32 bytes"),
    "no key": ("keys", saying(**{"channel-key": 3}), "a public key is no 32 bytes"),
    "a key with which all have one secret": (
        "keys",
        saying(**{"channel-key": bytes(32)}),
        "a public key is one with which all have the same secret",
    ),
    "no shares": ("deal", saying(sealed="x"), "what it deals are no shares"),
    "shares of another length": ("deal", with_sealed, "what it deals are not the shares of 10 parties"),
    "digests of another number": (
        "deal",
        saying(digests=[b"1" * 32]),
        "what it deals are not the shares of 10 parties",
    ),
    "another shape": (
        "train",
        with_array(Array("float32", (49,), MASKED, bytes(196))),
        "array 'x' has shape (49,), sent as (50,)",
    ),
    "another modulus": (
        "train",
        with_array(Array("float32", (50,), MASKED, bytes(400))),
        "array 'x' holds 400 bytes instead of 200",
    ),
    "another type": (
        "train",
        with_array(Array("uint64", (50,), MASKED, bytes(400))),
        "array 'x' is uint64, sent as float32",
    ),
    "no mask": (
        "train",
        with_array(Array(np.zeros(50, np.float32))),
        f"array 'x' is written as 'numpy.ndarray', sent as '{MASKED}'",
    ),
    "a share that was not dealt": (
        "open",
        with_share,
        "its share of partition 5's secret is not the one that was dealt",
    ),
    "a share too few": ("open", saying(shares=[b"1" * 16]), "it gives no 10 shares"),
}


@pytest.mark.parametrize(("step", "change", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_malformed_is_refused_and_the_others_go_on(tmp_path, changes, step, change, reason):
    notes = Notes()
    sites = Sites(tmp_path, changes, lambda s, p, reply: change(reply) if (s, p) == (step, 3) else reply)
    result = federate(sites, observers=[notes])
    counted = mean_of(changes) if step == "open" else mean_of(changes, 3)
    assert np.abs(result.arrays["x"].numpy() - counted).max() < BOUND + 2**-23
    assert refusals(notes) == {(3, reason)}


def test_shares_that_cannot_be_read_cost_their_dealer_alone(tmp_path, changes):
    """Partition 3 seals nothing that partition 4 can read; nine others can."""

    def spoil(step, party, reply):
        if (step, party) == ("deal", 3):
            sealed = list(reply.content["secure"]["sealed"])
            sealed[4] = bytes(60)
            return saying(sealed=sealed)(reply)
        return reply

    notes = Notes()
    result = federate(Sites(tmp_path, changes, spoil), observers=[notes])
    assert np.abs(result.arrays["x"].numpy() - mean_of(changes)).max() < BOUND + 2**-23
    assert refusals(notes) == set()


def test_a_vector_that_is_no_masked_change_ends_the_run_with_a_line(tmp_path, changes):
    """Nobody can tell whose it is."""
    random = np.random.default_rng(1).integers(0, 2**32, 50, np.uint32)
    hostile = with_array(Array("float32", (50,), MASKED, random.tobytes()))
    sites = Sites(tmp_path, changes, lambda s, p, r: hostile(r) if (s, p) == ("train", 3) else r)
    with pytest.raises(
        RuntimeError, match="the sum of 10 clients is not one of numbers from -1 to 1: one of"
    ):
        federate(sites)
