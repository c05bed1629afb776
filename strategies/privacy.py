"""Central differential privacy of clients: Flower's four wrappers, with noise that fits what is averaged.

Papers: McMahan et al., "Learning Differentially Private Recurrent Language Models", 2018,
https://arxiv.org/abs/1710.06963 (fixed clipping, the estimator with a fixed denominator); Andrew et al.,
"Differentially Private Learning with Adaptive Clipping", 2021, https://arxiv.org/abs/1905.03871.

Two federations are neighbours if one client's replies count in the one and not in the other, in as many
rounds as there are; the same clients are asked in both. What a round releases is the sum of the clipped
changes over the number of clients that the settings expect: whoever replies, one client moves it by
C / num_clients.

They belong inside FedDAT and around FedAvg: `FedDAT(ServerFixedClipping(FedAvg(), …))`.
"""

from collections.abc import Iterable, Mapping
from math import erfc, exp, hypot, log, sqrt
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from .outliers import changes, clipped, norm


def gaussian_delta(shift: float, epsilon: float) -> float:
    """Return the least δ for which two normal distributions are (ε, δ)-indistinguishable.

    δ = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ): Balle & Wang, 2018, https://arxiv.org/abs/1805.06530, theorem 8.

    Parameters
    ----------
    shift : float
        μ, the distance of their means over their standard deviation.
    epsilon : float
        ε, 0 or more.
    """
    near, far = (erfc((epsilon / shift + side * shift / 2) / sqrt(2)) / 2 for side in (-1, 1))
    # Where the second term is too small for a float, leaving it out errs to the safe side.
    return near - (exp(epsilon + log(far)) if far else 0.0)


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Return the least ε for which `releases` Gaussian releases are (ε, δ)-differentially private together.

    They are as one with μ = √releases / z, also where each is chosen by what the ones before it gave: Dong,
    Roth & Su, "Gaussian Differential Privacy", 2022, https://arxiv.org/abs/1905.02383, corollary 3.3.
    Sampling is not counted as an amplification.

    Parameters
    ----------
    noise_multiplier : float
        z, the noise's standard deviation over the sensitivity.
    releases : int
        How often an aggregate of the same clients was released.
    delta : float
        In (0, 1).
    """
    shift = sqrt(releases) / noise_multiplier
    low, high = 0.0, 1.0
    if gaussian_delta(shift, low) <= delta:
        return low
    while gaussian_delta(shift, high) > delta:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if gaussian_delta(shift, middle) > delta else (low, middle)
    return high


class _Calibrated:
    """Divide by the number of clients expected, and add noise for it, from the operating system's entropy.

    Flower divides by the number of replies: a client more or less then changes the share of all others too,
    and the mean by up to 2 C / n.
    """

    num_sampled_clients: int
    current_arrays: ArrayRecord

    def __init__(self, strategy: Strategy, **settings: Any) -> None:
        super().__init__(strategy, **settings)  # type: ignore[call-arg]
        self.num_clients = self.num_sampled_clients

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what the changes are changes of."""
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)  # type: ignore[misc]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip, add up, and add the noise."""
        replies = list(replies)
        self.num_sampled_clients = len(replies)  # or Flower warns of a noise that it does not add here
        # Flower draws from NumPy's global generator, and whoever seeded that could subtract the noise.
        np.random.seed()
        # A reply that changes nothing is divided by its norm, 0, and is not clipped.
        with np.errstate(divide="ignore"):
            return super().aggregate_train(server_round, replies)  # type: ignore[misc]

    def _add_noise_to_aggregated_arrays(self, mean: ArrayRecord) -> ArrayRecord:
        share = self.num_sampled_clients / self.num_clients
        arrays = mean if share == 1 else _rescaled(self.current_arrays, mean, share)
        self.num_sampled_clients = self.num_clients
        return super()._add_noise_to_aggregated_arrays(arrays)  # type: ignore[misc]


class _HeldToNorm(_Calibrated):
    """Clip what a client says that it has clipped: one that has not would move the mean by any length."""

    clipping_norm: float

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip, add up, and add the noise; what a client has clipped is left as it is, to the bit."""
        replies = list(replies)
        sent = {name: array.numpy() for name, array in self.current_arrays.items()}
        for reply in replies:
            for name, record in reply.content.array_records.items():
                reply.content[name] = _within(sent, record, float(self.clipping_norm))
        return super().aggregate_train(server_round, replies)


def _within(sent: Mapping[str, np.ndarray], received: ArrayRecord, most: float) -> ArrayRecord:
    """Scale a change to a norm if it is longer by more than a client's own rounding makes it."""
    norms = changes(sent, received)
    whole = hypot(*norms.values())
    eps = max((np.finfo(old.dtype).eps for old in sent.values() if old.dtype.kind in "fc"), default=0.0)
    if whole <= 1.001 * most + eps * norm(sent.values()):
        return received
    share = most / whole  # 0 where the change is too long to have a norm
    return clipped(sent, received, norms, {n: share * size if share else 0.0 for n, size in norms.items()})[0]


def _rescaled(sent: ArrayRecord, mean: ArrayRecord, share: float) -> ArrayRecord:
    """Multiply the change from `sent` to `mean` by `share`."""
    scaled = ArrayRecord()
    for name, array in mean.items():
        before, after = sent[name].numpy().astype(np.float64), array.numpy()
        scaled[name] = Array(np.asarray(before + share * (after - before), after.dtype))
    return scaled


class _Adaptive(_Calibrated):
    """Follow Andrew et al. where Flower 1.42 does not.

    Its norm moves away from the quantile (it shrinks when too many replies are clipped), its noise is scaled
    to the norm of the next round instead of the one that the replies were clipped to, and one client changes
    its count of clipped replies by 1 where its noise is made for 1/2.
    """

    clipping_norm: float
    clip_norm_lr: float
    clipped_count_stddev: float
    target_clipped_quantile: float

    def _noisy_fraction(self, count: int, total: int) -> float:
        """Take each reply as 1/2 more or less than one that is missing (Andrew et al., section 2.1)."""
        noisy = np.random.normal(count - total / 2, self.clipped_count_stddev)
        return 0.5 + float(noisy) / self.num_clients

    def _geometric_update(self, clipped_fraction: float) -> None:
        self._clipped_to = self.clipping_norm
        too_many = clipped_fraction - self.target_clipped_quantile
        self.clipping_norm = np.float64(self.clipping_norm * exp(self.clip_norm_lr * too_many))

    def _add_noise_to_aggregated_arrays(self, aggregated: ArrayRecord) -> ArrayRecord:
        following, self.clipping_norm = self.clipping_norm, self._clipped_to
        try:
            return super()._add_noise_to_aggregated_arrays(aggregated)
        finally:
            self.clipping_norm = following


class ServerFixedClipping(_Calibrated, DifferentialPrivacyServerSideFixedClipping):
    """Central privacy; the server clips every change to one norm."""


class ServerAdaptiveClipping(_Adaptive, DifferentialPrivacyServerSideAdaptiveClipping):
    """Central privacy; the server clips, and moves the norm to the median of the changes' norms."""


class ClientFixedClipping(_HeldToNorm, DifferentialPrivacyClientSideFixedClipping):
    """Central privacy; clients clip, with Flower's `fixedclipping_mod`, and the server what they did not."""


class ClientAdaptiveClipping(_HeldToNorm, _Adaptive, DifferentialPrivacyClientSideAdaptiveClipping):
    """The same with Flower's `adaptiveclipping_mod`; the norm follows the median."""


CENTRAL: dict[str, Any] = {
    "server-fixed": ServerFixedClipping,
    "server-adaptive": ServerAdaptiveClipping,
    "client-fixed": ClientFixedClipping,
    "client-adaptive": ClientAdaptiveClipping,
}


def central_privacy(
    kind: str, strategy: Strategy, noise_multiplier: float, clipping_norm: float, num_clients: int
) -> Strategy:
    """Wrap FedAvg, or a strategy with its mean, in central differential privacy.

    Parameters
    ----------
    kind : str
        A key of `CENTRAL`.
    strategy : Strategy
        What averages.
    noise_multiplier : float
        z of each release: standard deviation of the noise over `clipping_norm` over `num_clients`.
    clipping_norm : float
        C, the largest L2 norm of a client's change of all arrays together; where adaptive, that of the first
        round.
    num_clients : int
        What the sum of the changes is divided by: the clients expected in a round. With fewer replies the
        arrays move less far, with more of them farther; the noise is the same.
    """
    fit = {"noise_multiplier": noise_multiplier, "num_sampled_clients": num_clients}
    norm = np.float64(clipping_norm)  # a NumPy number, for Python's does not divide by 0
    if kind.endswith("adaptive"):
        # The count of clipped replies gets a noise of z; the arrays' is then 2/√3 z, for z in all (Andrew et
        # al., theorem 1). Flower's default, a twentieth of the clients, wants hundreds of them.
        return CENTRAL[kind](
            strategy, **fit, initial_clipping_norm=norm, clipped_count_stddev=noise_multiplier
        )
    return CENTRAL[kind](strategy, **fit, clipping_norm=norm)
