"""What there is to say of a run beside its scores: what was sent, refused, clipped, and how private it is."""

from collections import Counter
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from app.methods import METHODS
from strategies.privacy import epsilon

from .rows import Rows, best_round, last_round, median_scores, names_of


def facts_of(folder: Path, settings: Mapping[str, Any], rows: Rows, seconds: float) -> dict[str, str]:
    """Return what there is to say of a run beside its scores, by what it is of."""
    full = METHODS[settings["method"]].artifact == "model"
    weights = folder / ("model/model.safetensors" if full else "adapter/adapter_model.safetensors")
    size = f", {_num_parameters(weights):,} parameters" if weights.is_file() else ""
    facts = {
        "rounds": f"{last_round(rows)} of {settings['num-rounds']}",
        "best round": _best(rows),
        "clients": ", ".join(names_of(rows).values()),
        "method": f"{settings['method']} under {settings['strategy']}, weighting {settings['weighting']}",
        "backbone": f"{settings['backbone']} ({settings['backbone-weights']} weights)",
        "adapter": ("none" if full else settings["adapter"]) + size,
        "note": METHODS[settings["method"]].note,
        "sent": _traffic(rows),
        "clipped": _clipped(rows),
        "alignment": _aligned(rows),
        "privacy": privacy_line(settings),
        "secure aggregation": _secure(settings),
        "time": f"{seconds / 60:.1f} minutes",
    }
    if resumed := settings.get("resumed-after"):
        facts["time"] += f" since the run was resumed after round {resumed[-1]}"
    return {key: value for key, value in facts.items() if value}


def refusals(rows: Rows) -> Counter[tuple[str, str, str]]:
    """Count the replies that did not count, by client, phase and reason."""
    names = names_of(rows)
    return Counter(
        (names.get(row["partition"], "not asked"), row["phase"], row["refused"])
        for row in rows
        if "refused" in row
    )


def privacy_line(settings: Mapping[str, Any]) -> str:
    """Say what the run's differential privacy amounts to; nothing without any."""
    if (kind := settings["dp.mode"]) == "none":
        return ""
    # A round that was repeated after a stop may have been released twice.
    releases = settings["num-rounds"] + len(settings.get("resumed-after", []))
    delta, multiplier = settings["dp.delta"], settings["dp.noise-multiplier"]
    what = "whether the adapter has one client's changes"
    if kind == "local":
        multiplier = sqrt(2 * log(1.25 / delta)) / settings["dp.epsilon"]
        what = "what one client's data are"
    # Rounded up: it must not claim more than there is.
    spent = Context(prec=3, rounding=ROUND_CEILING).create_decimal_from_float(
        epsilon(multiplier, releases, delta)
    )
    return f"{kind}, ε = {float(spent):g} at δ = {delta:g} for {what}, over {releases} rounds"


def _secure(settings: Mapping[str, Any]) -> str:
    """Say what the server knew of changes, if not each of them."""
    if not settings.get("secure.aggregation"):
        return ""
    return "the server learned the sum of a round's changes; none was held to the others"


def _traffic(rows: Rows) -> str:
    keys = {way: f"bytes-{way}" for way in ("down", "up")}
    # Before the first round nobody trains.
    ways = {way: [row[key] for row in rows if key in row and row["round"]] for way, key in keys.items()}
    mean = " and ".join(f"{np.mean(sent):,.0f} bytes {way}" for way, sent in ways.items() if sent)
    total = sum(row.get(key, 0) for row in rows for key in keys.values())
    return mean and f"{mean} per client and round, evaluation included; {total:,} in all"


def _clipped(rows: Rows) -> str:
    """Say how much of what clients changed was averaged."""
    left = [row for row in rows if "clipped" in row]
    if not left:
        return ""
    mean, most = np.mean([row["clipped"] for row in left]), min(left, key=lambda row: row["clipped"])
    who = f"{names_of(rows)[most['partition']]} in round {most['round']}"
    kept = f"{100 * mean:.0f} % of what a client changed was averaged, in the mean"
    return f"{kept}; least for {who}, {100 * most['clipped']:.2g} %"


def _aligned(rows: Rows) -> str:
    """Say how often the aligned aggregate was taken, and what became of its losses on held-out examples."""
    aligned = [row for row in rows if "align/accepted" in row]
    if not aligned:
        return ""
    taken, last = sum(row["align/accepted"] > 0 for row in aligned), aligned[-1]
    losses = (
        f"{key.upper()} from {last[f'align/{key}-before']:.3g} to {last[f'align/{key}']:.3g}"
        for key in ("ce", "kl")
    )
    became = " and ".join(losses)
    return f"taken in {taken} of {len(aligned)} rounds; the last took {became} on held-out public examples"


def _best(rows: Rows) -> str:
    best = best_round(rows, last_round(rows))
    if best is None:
        return ""
    return f"{best}, median student {100 * median_scores(rows)[best]:.1f}, kept as adapter-best"


def _num_parameters(weights: Path) -> int:
    with safe_open(weights, "np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
