"""The arithmetic of secure aggregation."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Array, ArrayRecord
from scipy.stats import chi2

from app.secure_sum import (
    Codes,
    MaskedSum,
    Roster,
    agreed,
    common_masks,
    digest,
    mask_key,
    opened,
    own_mask,
    seal,
    shares_of,
    stretched,
    unseal,
)


def seed(number):
    return bytes([number]) * 16


def said(parties=(2, 5, 9, 11), threshold=3, **more):
    return {
        "run-token": "abc",
        "server-round": 1,
        "attempt": "0f",
        "threshold": threshold,
        "parties": list(parties),
        "mask-keys": [mask_key(seed(party)).public_key().public_bytes_raw() for party in parties],
        "channel-keys": [bytes([party]) * 32 for party in parties],
        **more,
    }


class TestCodes:
    def test_by_hand(self):
        """With 2 bits and a limit of 3 the codes 0 to 3 are −3, −1, 1, 3; beyond is clipped."""
        codes = Codes(2, 3.0)
        assert (codes.top, codes.step, codes.most) == (3, 2.0, (2**32 - 1) // 3)
        assert codes.of(np.array([-3.0, -1.0, 1.0, 3.0, -9.0, 9.0])).tolist() == [0, 1, 2, 3, 0, 3]
        assert codes.of(np.zeros(0)).tolist() == []
        assert codes.mean(np.array([0, 2, 6], np.uint32), 2).tolist() == [-3.0, -1.0, 3.0]

    def test_a_number_between_two_is_rounded_to_either_so_that_the_mean_is_right(self):
        codes = Codes(2, 3.0).of(np.full(100_000, -0.5))  # a quarter of the way from −1 to 1
        assert set(codes.tolist()) == {1, 2}
        assert codes.mean() == pytest.approx(1.25, abs=4 * np.sqrt(0.1875 / 100_000))

    def test_the_same_numbers_have_the_same_codes_and_others_have_other_chances(self):
        values = np.full(1000, 0.123)
        codes = Codes(8, 1.0)
        assert (codes.of(values) == codes.of(values.copy())).all()
        others = values.copy()
        others[0] = 0.5
        assert (codes.of(values)[1:] != codes.of(others)[1:]).any()

    def test_a_sum_that_no_codes_have_is_refused(self):
        with pytest.raises(ValueError, match=r"^the sum of 2 clients is not one of numbers from -3 to 3: "):
            Codes(2, 3.0).mean(np.array([7], np.uint32), 2)


class TestMasks:
    @pytest.fixture
    def roster(self):
        return Roster.of(said())

    def test_common_masks_cancel(self, roster):
        masks = [
            common_masks(p, mask_key(seed(p)), [q for q in roster.parties if q != p], roster, 100)
            for p in roster.parties
        ]
        assert all(mask.any() for mask in masks)
        assert not np.sum(masks, axis=0, dtype=np.uint32).any()

    def test_a_mask_is_of_its_round_alone(self, roster):
        other = Roster.of(said(**{"server-round": 2}))
        assert (own_mask(seed(1), roster, 8) != own_mask(seed(1), other, 8)).any()
        private = mask_key(seed(2))
        assert (common_masks(2, private, [5], roster, 8) != common_masks(2, private, [5], other, 8)).any()

    def test_any_change_of_what_parties_are_told_changes_every_key(self):
        told = [
            said(),
            said(**{"run-token": "abd"}),
            said(attempt="10"),
            said(threshold=4),
            said(**{"channel-keys": [b"\1" * 32, b"\2" * 32, b"\3" * 32, b"\4" * 32]}),
        ]
        assert len({Roster.of(one).transcript for one in told}) == len(told)

    def test_stretched_is_aes_in_counter_mode(self):
        """Its first block is AES-256 of zeros, with a key of zeros: the known answer of NIST's AESAVS."""
        assert stretched(bytes(32), 4).tobytes().hex() == "dc95c078a2408989ad48a21492842087"

    @pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31)], ids=["zero", "order 1"])
    def test_a_key_with_which_all_have_the_same_secret_is_refused(self, key, roster):
        with pytest.raises(ValueError):
            agreed(X25519PrivateKey.generate(), key, roster, "test")
        assert MaskedSum(Codes(8, 1.0)).fault_in_keys(key) == (
            "a public key is one with which all have the same secret"
        )


class TestUniform:
    """A single masked vector looks the same whatever it hides."""

    DRAWS, BINS = 200_000, 256

    def hidden(self, values, number):
        codes = Codes(20, 1.0).of(values)
        roster = Roster.of(said())
        own = own_mask(seed(number), roster, len(codes))
        return codes + own + common_masks(2, mask_key(seed(2)), [5, 9], roster, len(codes))

    def statistic(self, words, shift):
        counts = np.bincount((words >> shift) & 0xFF, minlength=self.BINS)
        expected = len(words) / self.BINS
        return float(((counts - expected) ** 2 / expected).sum())

    @pytest.mark.parametrize("shift", [0, 8, 16, 24])
    @pytest.mark.parametrize("change", [0.0, 1.0, -0.3])
    def test_every_byte_is_uniform(self, change, shift):
        """χ² with 255 degrees of freedom; without its own mask it is beyond any bound."""
        words = self.hidden(np.full(self.DRAWS, change), 40)
        low, high = chi2.ppf([1e-4, 1 - 1e-4], self.BINS - 1)
        assert low < self.statistic(words, shift) < high

    def test_it_would_be_seen_without_masks(self):
        words = Codes(20, 1.0).of(np.full(self.DRAWS, 0.3))
        assert self.statistic(words, 24) > 100 * chi2.ppf(1 - 1e-4, self.BINS - 1)

    def test_two_changes_cannot_be_told_apart(self):
        """Over many masks: the words of the one and of the other are distributed alike (two-sample χ²)."""
        one, other = (
            np.concatenate(
                [self.hidden(np.full(1000, change), number) for number in range(start, start + 60)]
            )
            for change, start in ((-1.0, 10), (1.0, 110))
        )
        counts = [np.bincount(words >> 24, minlength=256) for words in (one, other)]
        total = counts[0] + counts[1]
        statistic = float(((counts[0] - counts[1]) ** 2 / total).sum())
        assert statistic < chi2.ppf(1 - 1e-4, 255)


class TestShares:
    @pytest.mark.parametrize("holders", [(2, 5, 9), (2, 5, 11), (5, 9, 11), (2, 5, 9, 11)])
    def test_enough_open_the_seed(self, holders):
        roster = Roster.of(said())
        shares = dict(zip(roster.parties, shares_of(b"0123456789abcdef", roster), strict=True))
        assert opened({party: shares[party] for party in holders}, roster) == b"0123456789abcdef"

    def test_fewer_do_not(self):
        roster = Roster.of(said())
        shares = dict(zip(roster.parties, shares_of(seed(7), roster), strict=True))
        assert opened({party: shares[party] for party in (2, 5)}, roster) != seed(7)

    def test_what_is_sealed_is_for_one_key_alone(self):
        sealed = seal(b"k" * 32, b"s" * 32)
        assert unseal(b"k" * 32, sealed) == b"s" * 32
        assert unseal(b"l" * 32, sealed) is None
        assert unseal(b"k" * 32, sealed[:-1]) is None
        assert unseal(b"k" * 32, sealed[:-1] + bytes([sealed[-1] ^ 1])) is None
        assert seal(b"k" * 32, b"s" * 32) != sealed


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"parties": [2, 2, 5, 9]}, "4 parties; allowed: at least 3, each once"),
        ({"parties": [5, 2, 9, 11]}, "4 parties; allowed: at least 3, each once"),
        ({"parties": [2, 5]}, "2 parties; allowed: at least 3, each once"),
        ({"parties": None}, "the message does not say who the parties are"),
        ({"threshold": 2}, "threshold = 2 of 4 parties; allowed: 3 to 4"),
        ({"threshold": 5}, "threshold = 5 of 4 parties; allowed: 3 to 4"),
        ({"threshold": True}, "threshold = True of 4 parties; allowed: 3 to 4"),
        ({"mask-keys": [b"1" * 32] * 3}, "the message does not have 4 public keys of 32 bytes"),
        ({"channel-keys": [b"1" * 31] * 4}, "the message does not have 4 public keys of 32 bytes"),
        ({"attempt": 3}, "the message does not say of which run, round and attempt it is"),
    ],
)
def test_what_parties_are_told_is_checked(change, line):
    with pytest.raises(ValueError, match=f"^{line}$"):
        Roster.of(said() | change)


class TestServer:
    ARRAYS = ArrayRecord({"a": Array(np.zeros((2, 2), np.float32)), "b": Array(np.zeros(3, np.float32))})
    SUM = MaskedSum(Codes(8, 1.0))

    def test_what_is_not_of_real_numbers_is_refused(self):
        arrays = ArrayRecord({"n": Array(np.zeros(2, np.int64))})
        with pytest.raises(ValueError, match=r"^array 'n' is int64; allowed under secure aggregation"):
            self.SUM.expected(arrays)

    def test_what_is_dealt_is_checked(self):
        right, digests = [b"", b"1" * 60, b"1" * 60], [b"2" * 32] * 6
        assert self.SUM.fault_in_shares(right, digests, 0, 3) is None
        for wrong in (right[1:], [b"1" * 60] * 3, [*right[:2], b"1" * 59], "x", None, [1, 2, 3]):
            assert self.SUM.fault_in_shares(wrong, digests, 0, 3)
        for wrong in (digests[1:], [b"2" * 31] * 6, None):
            assert self.SUM.fault_in_shares(right, wrong, 0, 3)

    def test_a_share_is_known_by_its_digest(self):
        assert self.SUM.is_share(b"s" * 16, digest(b"s" * 16))
        for share in (b"t" * 16, b"s" * 15, "s" * 16, None):
            assert not self.SUM.is_share(share, digest(b"s" * 16))

    @pytest.mark.parametrize("key", [None, "k" * 32, b"k" * 31, b"k" * 33])
    def test_a_malformed_key_is_refused(self, key):
        assert self.SUM.fault_in_keys(b"k" * 32, key) == "a public key is no 32 bytes"
