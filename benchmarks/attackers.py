"""What colluding attackers send: they know the defence, and here also what every other client sent.

Little is enough: Baruch et al., "A Little Is Enough: Circumventing Defenses For Distributed Learning", 2019,
https://arxiv.org/abs/1902.06156, algorithm 3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from strategies.outliers import usual_norms

NOBODY, FEW = "nobody attacks", ", 0.6 of the clients a round"
FAR = 1e3  # many times what any defence lets through: what is left is the defence's own limit


@dataclass(frozen=True)
class View:
    """What the attackers of a round see.

    Attributes
    ----------
    server_round : int
        From 1.
    count : int
        How many attackers are in the round.
    honest : list of dict
        What each honest client of the round changed, by array; there is at least one.
    own : list of dict
        What each attacker would have changed if it were honest; empty where the attack has no use for it.
    """

    server_round: int
    count: int
    honest: Sequence[Mapping[str, np.ndarray]]
    own: Sequence[Mapping[str, np.ndarray]]


Changes = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Attack:
    """How attackers answer.

    Attributes
    ----------
    send : Callable
        What they see → the change that each of them sends.
    trains : bool
        Whether they train as honest clients do first.
    settings : dict
        What the run differs in besides.
    every : int
        They attack in every so many rounds; in the others they send the honest clients' mean.
    """

    send: Callable[[View], Changes]
    trains: bool = False
    settings: dict[str, float] = field(default_factory=dict)
    every: int = 1

    def answer(self, view: View) -> Changes:
        """Return the change that each attacker of the round sends."""
        if not view.count:
            return []
        return view.count * [mean(view.honest)] if view.server_round % self.every else self.send(view)


def scaled(factor: float) -> Callable[[View], Changes]:
    """Send what was learned, `factor` times as far."""
    return lambda view: [{name: factor * change for name, change in own.items()} for own in view.own]


def against_the_mean(view: View) -> Changes:
    """All send the honest clients' mean with the other sign, each array just as far as is usual."""
    return view.count * [at_the_bar(view, {name: -change for name, change in mean(view.honest).items()})]


def one_direction(view: View) -> Changes:
    """All send one direction, drawn once, in every round: it adds up."""
    random = np.random.default_rng(0)
    drawn = {name: random.normal(size=change.shape) for name, change in view.honest[0].items()}
    return view.count * [at_the_bar(view, drawn)]


def one_array(view: View) -> Changes:
    """Spend the norm of the whole change in the array whose honest changes agree most, against them."""
    average = mean(view.honest)
    usual = usual_norms([norms_of(change) for change in view.honest])
    agreed = max((name for name in usual if usual[name]), key=lambda n: np.linalg.norm(average[n]) / usual[n])
    change = {name: np.zeros_like(value) for name, value in average.items()}
    whole = float(np.linalg.norm(list(usual.values())))
    change[agreed] = -average[agreed] * whole / float(np.linalg.norm(average[agreed]))
    return view.count * [change]


def lowered_median(view: View) -> Changes:
    """All but one change next to nothing, so that little is usual; one pushes against the mean."""
    (push, *_) = against_the_mean(view)
    return [push, *((view.count - 1) * [{name: 1e-6 * change for name, change in push.items()}])]


def little_is_enough(view: View) -> Changes:
    """All send mean − z · standard deviation of each value: a point that is still among the others.

    z is the paper's, for as many clients and attackers as there are. With `own`, they estimate both by what
    they learned themselves; without, they know all honest changes.
    """
    known = view.own or view.honest
    clients = len(view.honest) + view.count
    z = largest_z(clients, view.count)
    sent = {
        name: average - z * np.std([change[name] for change in known], axis=0)
        for name, average in mean(known).items()
    }
    return view.count * [sent]


def largest_z(clients: int, attackers: int) -> float:
    """Return z_max of n clients and m attackers: Φ(z) = (n − m − s) / (n − m), s = ⌊n/2 + 1⌋ − m."""
    supporters = clients // 2 + 1 - attackers
    share = (clients - attackers - supporters) / (clients - attackers)
    return NormalDist().inv_cdf(share) if 0 < share < 1 else 0.0


def mean(changes: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of changes, array by array."""
    return {name: np.mean([change[name] for change in changes], axis=0) for name in changes[0]}


def norms_of(change: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the norm of each array."""
    return {name: float(np.linalg.norm(value)) for name, value in change.items()}


def at_the_bar(view: View, direction: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scale each array of a direction to what will be cut nowhere: its lower median, attackers included."""
    norms = [norms_of(change) for change in view.honest]
    # As many again as there are attackers, above all others: their own.
    far = {name: FAR * max(own[name] for own in norms) for name in direction}
    usual = usual_norms([*norms, *(view.count * [far])])
    return {
        name: value * (usual[name] / size if (size := float(np.linalg.norm(value))) else 0.0)
        for name, value in direction.items()
    }


ATTACKS: dict[str, Attack] = {
    "sign flip × 1": Attack(scaled(-1), trains=True),
    "sign flip × 1.9": Attack(scaled(-1.9), trains=True),
    "sign flip × 9": Attack(scaled(-9), trains=True),
    "sign flip × 100": Attack(scaled(-100), trains=True),
    "scaled × 9": Attack(scaled(9), trains=True),
    "little is enough, by their own": Attack(little_is_enough, trains=True),
    "little is enough, by all": Attack(little_is_enough),
    "against the mean, at the bar": Attack(against_the_mean),
    "against the mean, one round in three": Attack(against_the_mean, every=3),
    f"against the mean{FEW}": Attack(against_the_mean, settings={"fraction-train": 0.6}),
    # No attack, but what the one above is held to.
    f"{NOBODY}{FEW}": Attack(scaled(1), trains=True, settings={"fraction-train": 0.6}),
    "one direction, at the bar": Attack(one_direction),
    "the whole norm in one array": Attack(one_array),
    "a lowered median": Attack(lowered_median),
}
