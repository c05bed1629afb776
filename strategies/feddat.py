"""FedDAT's server: the shared adapters of a round's clients are averaged, and nothing else is let in or out.

Chen et al., "FedDAT: An Approach for Foundation Model Finetuning in Multi-Modal Heterogeneous Federated
Learning", AAAI 2024, https://arxiv.org/abs/2308.12305: after each round the server takes the mean of the
active clients' shared adapters A_s; the local adapters never leave a client.
"""

import logging
from collections.abc import Iterable
from typing import Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .checked import Checked, FederationOptions
from .names import is_named, is_private

log = logging.getLogger("flwr")


class FedDAT(Checked):
    """Federate the shared adapter with any Flower strategy.

    Parameters
    ----------
    strategy : Strategy
        What samples and aggregates: with `weighting="uniform"`, `FedAvg()` is the published method.
    private : Iterable[str], optional
        Names of what must not travel, a head's above all: each a part of an array's name between dots, or
        some in a row (``classifier``, ``decoder.out``). Arrays with such a name are left out of what is sent,
        and so of the result; a reply with one is refused. None: names with a part that begins with ``head``
        or ``clf_`` end the run before they are sent; with ``()`` these travel. Parts ``local`` and ``frozen``
        never do.
    **federation
        Of `Checked`: how clients weigh, who takes part, which replies count.

    Raises
    ------
    ValueError
        `private` has no names; or as `Checked`.

    Examples
    --------
    >>> strategy = FedDAT(FedAvg(), private=["classifier"], handshake=False)
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        private: Iterable[str] | None = None,
        **federation: Unpack[FederationOptions],
    ) -> None:
        super().__init__(strategy, **federation)
        self.private = _names(private)
        self._withheld: set[str] | None = None  # arrays of which it was said that they stay

    def is_private(self, name: str) -> bool:
        """Whether an array is a client's alone: of a local or frozen adapter, or a head."""
        return is_private(name, self.private)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy sample among the known partitions; what is private is not sent.

        Raises
        ------
        RuntimeError
            Nodes are missing or not what was expected, or fewer are sampled than must reply.
        ValueError
            An array with a private name was about to be sent.
        """
        return super().configure_train(server_round, self._public(arrays), config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy sample among the known partitions, as for training, when a round is evaluated."""
        return super().configure_evaluate(server_round, self._public(arrays), config, grid)

    def _public(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the arrays without those that `private` names, and say once which these are."""
        stay = [name for name in arrays if is_named(name, self.private or ())]
        if self._withheld is None:
            self._withheld = set()
            if unknown := [one for one in self.private or () if not any(is_named(n, [one]) for n in arrays)]:
                log.warning("private: no array is named %s", ", ".join(map(repr, unknown)))
        if unsaid := [name for name in stay if name not in self._withheld]:
            self._withheld.update(unsaid)
            log.info("private, and not sent: %s", ", ".join(unsaid))
        return ArrayRecord({n: a for n, a in arrays.items() if n not in stay}) if stay else arrays


def _names(private: Iterable[str] | None) -> tuple[str, ...] | None:
    if private is None:
        return None
    # One string would be taken for its letters, and then nothing would be private.
    names = None if isinstance(private, str) else tuple(private)
    if names is None or not all(isinstance(name, str) and name and name == name.strip(".") for name in names):
        raise ValueError(f"private is {private!r}; allowed: parts of names in a list, such as ['classifier']")
    return names
