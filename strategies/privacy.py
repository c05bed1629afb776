"""Central differential privacy of clients: Flower's four wrappers, with noise that fits what is averaged.

Papers: McMahan et al., "Learning Differentially Private Recurrent Language Models", 2018,
https://arxiv.org/abs/1710.06963 (fixed clipping); Andrew et al., "Differentially Private Learning with
Adaptive Clipping", 2021, https://arxiv.org/abs/1905.03871 (adaptive clipping).

They belong inside FedDAT and around FedAvg: `FedDAT(ServerFixedClipping(FedAvg(), …))`.
"""

from collections.abc import Iterable
from math import exp, log, sqrt

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Return the ε for which `releases` Gaussian releases are (ε, δ)-differentially private together.

    Each is 1/(2 z²)-zCDP, together they are their sum ρ, and ρ-zCDP is (ρ + 2 √(ρ ln 1/δ), δ)-DP: Bun &
    Steinke, 2016, https://arxiv.org/abs/1605.02065, propositions 1.3 and 1.6, lemma 1.7. Sampling is not
    counted as an amplification.

    Parameters
    ----------
    noise_multiplier : float
        z, the noise's standard deviation over the sensitivity.
    releases : int
        How often an aggregate of the same clients was released.
    delta : float
        In (0, 1).
    """
    rho = releases / (2 * noise_multiplier**2)
    return rho + 2 * sqrt(rho * log(1 / delta))


class _Calibrated:
    """Add noise for the replies that are really averaged, from the operating system's entropy.

    Flower scales the noise to a fixed number of clients: where fewer reply, the mean depends more on each of
    them than the noise hides. The number is that of the replies here.
    """

    num_sampled_clients: int

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip, average, and add the noise."""
        replies = list(replies)
        self.num_sampled_clients = len(replies)
        # Flower draws from NumPy's global generator, and whoever seeded that could subtract the noise.
        np.random.seed()
        # A reply that changes nothing is divided by its norm, 0, and is not clipped.
        with np.errstate(divide="ignore"):
            return super().aggregate_train(server_round, replies)  # type: ignore[misc]


class _Adaptive(_Calibrated):
    """Follow Andrew et al. where Flower 1.42 does not.

    Its norm moves away from the quantile (it shrinks when too many replies are clipped), and its noise is
    scaled to the norm of the next round instead of the one that the replies were clipped to.
    """

    clipping_norm: float
    clip_norm_lr: float
    target_clipped_quantile: float

    def _geometric_update(self, clipped_fraction: float) -> None:
        self._clipped_to = self.clipping_norm
        too_many = clipped_fraction - self.target_clipped_quantile
        self.clipping_norm = np.float64(self.clipping_norm * exp(self.clip_norm_lr * too_many))

    def _add_noise_to_aggregated_arrays(self, aggregated: ArrayRecord) -> ArrayRecord:
        following, self.clipping_norm = self.clipping_norm, self._clipped_to
        try:
            return super()._add_noise_to_aggregated_arrays(aggregated)  # type: ignore[misc]
        finally:
            self.clipping_norm = following


class ServerFixedClipping(_Calibrated, DifferentialPrivacyServerSideFixedClipping):
    """Central privacy; the server clips every change to one norm."""


class ServerAdaptiveClipping(_Adaptive, DifferentialPrivacyServerSideAdaptiveClipping):
    """Central privacy; the server clips, and moves the norm to the median of the changes' norms."""


class ClientFixedClipping(_Calibrated, DifferentialPrivacyClientSideFixedClipping):
    """Central privacy; clients clip, with Flower's `fixedclipping_mod`."""


class ClientAdaptiveClipping(_Adaptive, DifferentialPrivacyClientSideAdaptiveClipping):
    """Central privacy; clients clip, with Flower's `adaptiveclipping_mod`; the norm follows the median."""


CENTRAL = {
    "server-fixed": ServerFixedClipping,
    "server-adaptive": ServerAdaptiveClipping,
    "client-fixed": ClientFixedClipping,
    "client-adaptive": ClientAdaptiveClipping,
}


def central_privacy(kind: str, strategy: Strategy, noise_multiplier: float, clipping_norm: float) -> Strategy:
    """Wrap FedAvg, or a strategy with its mean, in central differential privacy.

    Parameters
    ----------
    kind : str
        A key of `CENTRAL`.
    strategy : Strategy
        What averages.
    noise_multiplier : float
        z of each release: standard deviation of the noise over `clipping_norm` over the number of replies.
    clipping_norm : float
        Largest L2 norm of a client's change of all arrays together; where adaptive, that of the first round.
    """
    # One client, until the replies are counted. A NumPy number, for Python's does not divide by 0.
    fit = {"noise_multiplier": noise_multiplier, "num_sampled_clients": 1}
    norm = np.float64(clipping_norm)
    if kind.endswith("adaptive"):
        # The count of clipped replies gets a noise of z; the arrays' is then 2/√3 z, for z in all (Andrew et
        # al., theorem 1). Flower's default, a twentieth of the clients, wants hundreds of them.
        return CENTRAL[kind](
            strategy, **fit, initial_clipping_norm=norm, clipped_count_stddev=noise_multiplier
        )
    return CENTRAL[kind](strategy, **fit, clipping_norm=norm)
