"""Attack whole runs of the real apps: what a minority of poisoning clients takes from the others' score.

    python -m benchmarks.attacks --out FILE.jsonl --seeds 0 1 2

The last clients attack, as `benchmarks.attackers` has it; the score is the mean of the honest clients'
students after the last round, each on its own test questions. Cells that the file has already are skipped.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.task_identity import TaskIdentity

from server_app import federation as room

from .attackers import ATTACKS, FEW, NOBODY, Attack, View
from .figures import verdict
from .homes import scratch_home
from .in_process import Federation
from .study import ROOT, Scores, complete, mean_and_worst

CLIENTS = 7
DEFENCES: dict[str, dict[str, Any]] = {
    "default": {},
    "no clipping": {"clip-change": 0.0},
    "fedmedian, no clipping": {"clip-change": 0.0, "strategy": "fedmedian"},
    "fedtrimmedavg, no clipping": {"clip-change": 0.0, "strategy": "fedtrimmedavg"},
    "krum, no clipping": {"clip-change": 0.0, "strategy": "krum"},
    # A control: where a score owes little to the shared adapter, to slow that down costs little.
    "nothing is learned together": {"clip-change": 1e-6},
}
ALONE = "the honest ones alone"
MOST_LOST, MOST_PAID = 2.0, 0.3  # points


@dataclass
class Attacked(Federation):
    """A federation whose last nodes attack once they have seen what the others send.

    Attributes
    ----------
    attack : Attack or None
        What they do. None: they are honest.
    attackers : int
        How many.
    """

    attack: Attack | None = None
    attackers: int = 0
    _round: int = field(default=0, init=False)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Ask the honest clients first; attackers say who they are, train as they like, evaluate nothing."""
        attack = self.attack
        if attack is None:
            return super().send_and_receive(messages, timeout=timeout)
        evil = {self.node_id(self.num_clients - 1 - index) for index in range(self.attackers)}
        messages = list(messages)
        asked = [message for message in messages if message.metadata.dst_node_id in evil]
        replies = super().send_and_receive([m for m in messages if m not in asked], timeout=timeout)
        kind = messages[0].metadata.message_type if messages else ""
        if kind == "query" or (kind == "train" and attack.trains):
            own = super().send_and_receive(asked, timeout=timeout)
        else:
            own = []
        if kind != "train":
            return replies + own
        self._round += 1
        sent = {name: array.numpy() for name, array in _arrays(messages[0]).items()}
        honest = [_changes(reply, sent) for reply in replies]
        view = View(self._round, len(asked), honest, [_changes(reply, sent) for reply in own])
        return replies + [
            _forged(message, replies[0], sent, change)
            for message, change in zip(asked, attack.answer(view), strict=True)
        ]


def _arrays(message: Message) -> ArrayRecord:
    return message.content.array_records["arrays"]


def _changes(reply: Message, sent: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = _arrays(reply)
    return {name: arrays[name].numpy().astype(float) - before for name, before in sent.items()}


def _forged(
    asked: Message, pattern: Message, sent: Mapping[str, np.ndarray], change: Mapping[str, np.ndarray]
) -> Message:
    """Make a reply that looks like an honest one."""
    arrays = {name: Array((before + change[name]).astype(before.dtype)) for name, before in sent.items()}
    content = pattern.content.copy()
    content["arrays"] = ArrayRecord(arrays)
    reply = Message(content, reply_to=asked)
    reply.metadata.__dict__["_src_node_id"] = asked.metadata.dst_node_id
    return reply


def run(defence: str, attack: str, attackers: int, seed: int, given: Mapping[str, Any]) -> Scores:
    """Run one cell.

    Returns
    -------
    dict
        ``mean`` and ``worst`` of the honest clients' students, and ``kept``, how much of their changes was
        averaged; all in [0, 1].
    """
    defaults = get_fused_config_from_dir(ROOT, {})
    own = ATTACKS.get(attack)
    settings = {**defaults, **given, **DEFENCES[defence], **(own.settings if own else {})}
    settings |= {"seed": seed, "run-name": "cell", "evaluate-every": settings["num-rounds"]}
    honest = CLIENTS - attackers
    # Left out, attackers are still counted: the others keep the partitions that they have.
    nodes, config = (honest, {"num-partitions": CLIENTS}) if attack == ALONE else (CLIENTS, {})
    settings["num-clients"] = nodes
    with scratch_home():
        folder = Attacked(settings, nodes, config, wire=None, attack=own, attackers=attackers).serve()
        text = (folder / "metrics.jsonl").read_text()
    rows = [row for row in map(json.loads, text.splitlines()) if 0 <= row["partition"] < honest]
    scores = [row["student"] for row in rows if "student" in row]
    if len(scores) != honest:
        raise RuntimeError(f"{len(scores)} of {honest} honest clients have a score")
    kept = [row.get("clipped", 1.0) for row in rows if "delta-shared" in row]
    return mean_and_worst(scores) | {"kept": float(np.mean(kept))}


def cell_name(defence: str, attack: str, attackers: int) -> str:
    """Name a cell as its line does."""
    return f"{defence} | {attack} | {attackers} of {CLIENTS}"


def by_cell(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[int, Scores]]:
    """Return the scores of each seed by share of attackers, defence and attack."""
    found: dict[tuple[str, str, str], dict[int, Scores]] = {}
    for line in lines:
        defence, attack, share = line["cell"].split(" | ")
        found.setdefault((share, defence, attack), {})[line["seed"]] = line["scores"]
    return found


def clean_of(
    found: Mapping[tuple[str, str, str], dict[int, Scores]], share: str, defence: str, attack: str
) -> dict[int, Scores]:
    """Return what a cell is held to: the same without an attack; without one, the same without a defence."""
    nobody = NOBODY + FEW * attack.endswith(FEW)
    return found.get((share, "no clipping" if attack == nobody else defence, nobody), {})


def less(scores: Mapping[int, Scores], than: Mapping[int, Scores]) -> list[float]:
    """Return by how many points the seeds that both have are below the other, to a millionth."""
    both = [(own["mean"], than[seed]["mean"]) for seed, own in sorted(scores.items()) if seed in than]
    return [round(100 * (other - own), 6) for own, other in both]


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in Markdown, in points; what is lost is against `clean_of`."""
    text = [
        "| attackers | defence | attack | seeds | honest students | lost | of honest changes kept |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    found = by_cell(lines)
    for (share, defence, attack), scores in sorted(found.items(), key=lambda cell: cell[0][:2]):
        points = np.array([100 * own["mean"] for own in scores.values()])
        spread = f" ± {points.std(ddof=1):.1f}" if len(points) > 1 else ""
        lost = less(scores, clean_of(found, share, defence, attack))
        shown = f"{_points(float(np.mean(lost)))} ({', '.join(map(_points, lost))})" if lost else "–"
        kept = [100 * own["kept"] for own in scores.values() if "kept" in own]
        cells = [share, defence, attack, str(len(points)), f"{points.mean():.1f}{spread}", shown]
        text.append(f"| {' | '.join([*cells, f'{np.mean(kept):.0f} %' if kept else '–'])} |")
    return "\n".join(text)


def _points(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # no -0.0


def judge(lines: Sequence[Mapping[str, Any]]) -> int:
    """Print whether the default keeps to what it may cost and lose, of what was run; return an exit code."""
    found, codes = by_cell(lines), []
    for (share, defence, attack), scores in found.items():
        if defence != "default" or attack == ALONE:
            continue
        limit = MOST_PAID if attack.startswith(NOBODY) else MOST_LOST
        if lost := less(scores, clean_of(found, share, defence, attack)):
            text = f"{attack}, {share}: {np.mean(lost):.1f} points lost, {limit} allowed ({len(lost)} seeds)"
            codes.append(verdict(bool(np.mean(lost) <= limit), text))
    return max(codes, default=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table; 1 if the default defence lost or cost more than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file of the cells, one JSON object a line")
    parser.add_argument("--benchmark", default="scenes", help="as the setting of that name")
    parser.add_argument("--data-dir", default="", help="as the setting of that name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attackers", type=int, default=2, help=f"of {CLIENTS} clients")
    parser.add_argument("--defences", nargs="+", choices=DEFENCES, default=["no clipping", "default"])
    parser.add_argument(
        "--attacks", nargs="+", choices=[NOBODY, ALONE, *ATTACKS], default=[NOBODY, ALONE, *ATTACKS]
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings, as JSON")
    options = parser.parse_args(arguments)
    given = {"benchmark": options.benchmark, "data-dir": options.data_dir}
    given |= {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in options.set)}
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as inside a Flower task
    logging.getLogger("flwr").setLevel(logging.ERROR)
    room.write_report = lambda *_: None
    cells = {
        cell_name(defence, attack, options.attackers): (defence, attack)
        for defence in options.defences
        for attack in options.attacks
    }
    lines = complete(
        options.out,
        " ".join([options.benchmark, *options.set]),
        cells,
        options.seeds,
        lambda name, seed: {"scores": run(*cells[name], options.attackers, seed, given)},
    )
    print(table(lines))
    return judge(lines)


if __name__ == "__main__":
    sys.exit(main())
