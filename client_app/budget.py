"""What local differential privacy has cost a site: one line for every answer to a round, over all runs.

Each answer is a Gaussian release of the site's data; any two data sets shift its mean by at most μ standard
deviations. All together, also where each is chosen by what those before it gave, are as one with √Σ μ² (Dong,
Roth & Su, "Gaussian Differential Privacy", 2022, https://arxiv.org/abs/1905.02383, corollary 3.3). The
least δ of that at an ε is known exactly (Balle & Wang, 2018, https://arxiv.org/abs/1805.06530, theorem 8).
"""

from math import erfc, exp, log, sqrt
from pathlib import Path

from app.files import append_line
from app.home import closed_folder
from app.settings import SettingsError

from .policy import Policy, PublicError


def squared_shift(epsilon: float, delta: float) -> float:
    """Return μ² of noise with σ = Δ √(2 ln 1.25/δ) / ε, Δ the distance of any two changes: (Δ / σ)²."""
    return epsilon**2 / (2 * log(1.25 / delta))


def least_delta(squares: float, epsilon: float) -> float:
    """Return the least δ for which releases with this sum of μ² are (ε, δ)-private together."""
    if not (shift := sqrt(squares)):
        return 0.0
    near, far = (erfc((epsilon / shift + side * shift / 2) / sqrt(2)) / 2 for side in (-1, 1))
    # Where the second term is too small for a float, leaving it out errs to the safe side.
    return near - (exp(epsilon + log(far)) if far else 0.0)


def spend(ledger: Path, policy: Policy, squares: float, what: str) -> None:
    """Write down an answer before it is made.

    Parameters
    ----------
    ledger : Path
        The site's file; its folder must be the site's alone.
    policy : Policy
        Its max-epsilon and max-delta hold for all answers together.
    squares : float
        μ² of this one.
    what : str
        What it answers, on one line.

    Raises
    ------
    PublicError
        It would cost more than is left; then it is not written down.
    SettingsError
        The file is damaged, or the folder not the site's alone.
    """

    def refuse_beyond(spent: float) -> None:
        if least_delta(spent, policy.max_epsilon) > policy.max_delta:
            bound = f"max-epsilon = {policy.max_epsilon:g} at max-delta = {policy.max_delta:g}"
            raise PublicError(f"a site has spent its {bound}")

    closed_folder("state-dir", ledger.parent)
    refuse_beyond(_spent(ledger) + squares)
    append_line(ledger, f"{squares!r} {what}")
    # Two processes at once each find the other's line, or their own is the later one.
    refuse_beyond(_spent(ledger))


def _spent(ledger: Path) -> float:
    """Add up the lines."""
    if not ledger.exists():
        return 0.0
    text = ledger.read_text()
    try:
        squares = [float(line.split()[0]) for line in text.splitlines()]
        if not text.endswith("\n") or not all(one >= 0 for one in squares):
            raise ValueError
    except (ValueError, IndexError):
        raise SettingsError(
            f"{ledger} is damaged: nothing more is answered; allowed: the lines as they were written"
        ) from None
    return sum(squares)
