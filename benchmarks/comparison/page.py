"""The page of a plan of methods, in Markdown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .curves import draw, draw_over, save
from .found import Found, Lines
from .plan import BETWEEN, CONTROLS, Budget, Comparison
from .statistics import LEVEL, Difference, difference, holm

HEADINGS: dict[Budget, str] = {
    "steps": "equal steps",
    "flops": "equal FLOPs (as many rounds as come closest to the reference's)",
}
PAIRS = "Branch against branch, paired as above; p is of each alone, not corrected for how many there are:"
_CENTRALISED = """\
*centralised* is no federation: one adapter, with a head for each client, takes the same steps on the
examples of all clients in one random order, so that it is moved as often as all clients' adapters together,
and its optimizer is never made anew. It says what one adapter gains by that at the run's learning rate, which
was not chosen for so many steps, and is no upper bound."""
_UNEQUAL = """\
Not all methods have as many seeds. A method's mean and its curve are over those that it has, and a seed that
is hard for all is missing where it was not run: look at the differences, which are paired."""
_SAME = """\
What is the same run in two tables, as that of a method whose steps cost what the reference's do, which has as
many rounds at equal FLOPs as at equal steps, or in two plans, was run once:
its line stands twice and says of which it is one (`same-as`)."""
_NEWCOMERS = """\
In {where} each client in turn never trains, and is scored with what a federation of the others has trained;
bytes and FLOPs are of all these federations together. A branch that would be a newcomer's own is then as it
was before any training."""
_REFUSED = """\
Replies were refused in {where}: what these clients had trained in that round is not in the mean."""
_RESUMED = """\
Of the time of cells that were stopped and went on, only the last part counts."""
# Whom it concerns, and what is to be known of them.
_NOTES = (
    (
        {"feddat", "ditto", "feddpa"},
        """\
Equal steps are equal batches: *feddat* (but for its joint update), *ditto* and *feddpa* take two updates on
each, and both move the head.""",
    ),
    (
        {"fedavg-ft"},
        """\
*fedavg-ft* trains on before its own branch is scored (in TFLOP it is counted), an epoch or as many as the
plan's `personal.epochs`, at the run's learning rate, which was not chosen for that. Where its own branch is
below its student, tuning did harm, and its student is the harder rival to what is a client's own.""",
    ),
)


def write_page(path: Path, plan: Comparison, lines: Lines) -> None:
    """Write a page in Markdown, and beside it the curves, ``<page>-<benchmark>-<budget>.svg``.

    And ``<page>-over-<budget>.svg``, if the plan says over what.
    """
    found = Found(plan, lines)
    own = [line for line in lines if line["plan"] == plan.name]
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"# Methods against each other: `{plan.name}`", _preamble(plan, own)]
    for budget in plan.budgets if plan.over else ():
        if sum(_is_shown(found, benchmark, budget) for benchmark in plan.benchmarks) > 1:
            picture = path.with_name(f"{path.stem}-over-{budget}.svg")
            save(draw_over(found, budget), picture)
            parts += [
                f"![scores over {plan.over}, {budget}]({picture.name})",
                "Means over the seeds that each point has; bars are the standard deviation over these seeds.",
            ]
    for benchmark in plan.benchmarks:
        for budget in plan.budgets:
            if not _is_shown(found, benchmark, budget):
                continue
            picture = path.with_name(f"{path.stem}-{benchmark}-{budget}.svg")
            save(draw(found, benchmark, budget), picture)
            parts += [
                f"## {benchmark}, {HEADINGS[budget]}",
                table(found, benchmark, budget),
                f"![scores over rounds, bytes and FLOPs]({picture.name})",
                "Each curve is of one run, whose learning rate falls to 0 in its own last round.",
                *pairs(found, benchmark, budget),
                "Each client, mean over the seeds, student / a client's own branch:",
                by_client(found, benchmark, budget),
            ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _is_shown(found: Found, benchmark: str, budget: Budget) -> bool:
    """Whether there is something to tell: the reference alone is the same within any budget."""
    methods = found.methods(benchmark, budget)
    return bool(methods) and (budget == "steps" or methods != [found.plan.reference])


def table(found: Found, benchmark: str, budget: Budget) -> str:
    """Return the table of a benchmark within a budget, a method a line."""
    methods, against = found.methods(benchmark, budget), found.plan.against
    tests = {
        "student": compared(found, benchmark, budget, "student", against.student),
        "personal": compared(found, benchmark, budget, "personal", against.personal),
    }
    header = [
        *("method", "seeds", "student", "worst", "own branch", "own", "worst"),
        *(f"student − {against.student}", f"own − {against.personal}"),
        *("rounds", "MB sent", "TFLOP", "minutes"),
    ]
    rows = []
    for method in methods:
        lines = found.of(benchmark, method, budget)
        row = [method, str(len(lines))]
        for what in ("student", "personal"):
            branch = found.branch(method, what)
            row += [branch or "–"] if what == "personal" else []
            values = [line["scores"].get(f"{branch} mean") for line in lines]
            worst = [line["scores"].get(f"{branch} worst") for line in lines]
            tested = tests[what].get(method)
            better = tested is not None and tested[0].mean > 0 and tested[1] < LEVEL
            row += [_mean(values, bold=better), _mean(worst)]
        row += [_difference(tests[what].get(method)) for what in ("student", "personal")]
        row += [f"{np.mean([line['rounds'] for line in lines]):g}"]
        row += [f"{np.mean([line['bytes'] for line in lines]) / 1e6:.1f}"]
        row += [f"{np.mean([line['flops'] for line in lines]) / 1e12:.2f}"]
        row += [f"{np.mean([line['seconds'] for line in lines]) / 60:.1f}"]
        rows.append(row)
    for control in CONTROLS:
        if not (alone := found.control(benchmark, control)):
            continue
        by_seed = [[v for (of, _), v in alone.items() if of == seed] for seed in {seed for seed, _ in alone}]
        shown = [_mean(float(np.mean(s)) / 100 for s in by_seed), _mean(min(s) / 100 for s in by_seed)]
        rows.append([control, str(len(by_seed)), *["–"] * 3, *shown, *["–"] * (len(header) - 7)])
    return _markdown(header, rows)


def compared(
    found: Found, benchmark: str, budget: Budget, what: str, rival: str
) -> dict[str, tuple[Difference, float]]:
    """Hold each method to a rival; return differences, and p-values corrected for how many there are."""
    theirs = found.scores(benchmark, rival, budget, what)
    differences = {
        method: gap
        for method in found.methods(benchmark, budget)
        if method != rival
        and (gap := difference(found.scores(benchmark, method, budget, what), theirs)) is not None
    }
    corrected = holm([gap.p for gap in differences.values()])
    return {method: (gap, p) for (method, gap), p in zip(differences.items(), corrected, strict=True)}


def pairs(found: Found, benchmark: str, budget: Budget) -> list[str]:
    """Return the table of the plan's pairs of branches, and what to know of it; nothing without any."""
    rows = []
    for pair in found.plan.pairs:
        this, that = (found.side(benchmark, side, budget) for side in pair)
        if gap := difference(this, that):
            rows.append([" − ".join(side.replace(BETWEEN, ": ") for side in pair), _difference((gap, gap.p))])
    return [PAIRS, _markdown(["branches", "difference"], rows)] if rows else []


def by_client(found: Found, benchmark: str, budget: Budget) -> str:
    """Return the table of clients, a column for each control and method."""
    methods = found.methods(benchmark, budget)
    each = {
        (method, what): found.scores(benchmark, method, budget, what)
        for method in methods
        for what in ("student", "personal")
    }
    controls = {name: found.control(benchmark, name) for name in CONTROLS}
    controls = {name: given for name, given in controls.items() if given or name == next(iter(CONTROLS))}
    clients = list(dict.fromkeys(client for scores in each.values() for _, client in scores))
    rows = [
        [
            client,
            *(
                _points(value for (_, name), value in given.items() if name == client)
                for given in controls.values()
            ),
            *(
                " / ".join(
                    _points(value for (_, name), value in each[method, what].items() if name == client)
                    for what in ("student", "personal")
                )
                for method in methods
            ),
        ]
        for client in clients
    ]
    return _markdown(["client", *controls, *methods], rows)


def _preamble(plan: Comparison, lines: Lines) -> str:
    wanted = sum(1 for _ in plan.cells()) * len(plan.seeds)
    machines = sorted({line["machine"] for line in lines})
    hours = sum(line["seconds"] for line in lines if "same-as" not in line) / 3600
    scored = " and ".join(sorted({cell.settings({}).get("evaluate-on", "test") for cell in plan.cells()}))
    measured = {line["cell"].split(BETWEEN)[1] for line in lines}
    kinds = {plan.methods[name].settings.get("method", name) for name in measured}
    notes = [note for names, note in _NOTES if kinds & names]
    notes += [_CENTRALISED] if any(plan.methods[name].centralised for name in measured) else []
    seeds = Counter(line["cell"] for line in lines)
    notes += [_UNEQUAL] if len(set(seeds.values())) > 1 else []
    if where := [name for name, arena in plan.benchmarks.items() if arena.newcomers]:
        notes.append(_NEWCOMERS.format(where=" and ".join(where)))
    notes += [_SAME] if any("same-as" in line for line in lines) else []
    if refused := [
        f"{line['cell']}, seed {line['seed']} ({line['refused']})" for line in lines if line.get("refused")
    ]:
        notes.append(_REFUSED.format(where="; ".join(refused)))
    notes += [_RESUMED] if any(line.get("resumed") for line in lines) else []
    text = f"""Made by `python -m benchmarks.study --plan recipes/study/{plan.name}.toml` of {len(lines)}
of the plan's {wanted} cells and seeds ({", ".join(machines)}; {hours:.1f} hours in all, beside other work);
every figure is of a line in the file of results. What the plan does not set is as by default.
Scores are of the last round, on each client's own {scored} questions, in points: mean ± standard
deviation over the seeds of the clients' mean, and of the worst client. *Own* is the branch that is a client's
own, named by the plan before anything was measured; where a part of the student is each client's own, it is
the student.

Differences are paired by seed and client. A client's is its mean over the seeds, and clients are what is
tested: the mean, its 95 % interval (Student's t over clients, of this one comparison alone), p of a
two-sided permutation test, and in how many seeds the mean has this sign. p is corrected for the methods
measured so far in this column of this table (Holm), not for other columns and tables. Bold: better with
p < {LEVEL}; with five clients p is never below 0.062. Clients of one seed share a shared adapter, so that p
is still too small rather than too large.

A method that is below *question alone* has not been shown to see anything; one that is below *before
training*, where the backbone answers without a head that has to be trained, would better not have trained.

TFLOP are those of training's matrix products, counted by torch on one example and multiplied by how many
there were. Minutes are with other work on the machine, not alike for all: they compare nothing."""
    return "\n\n".join([text, *notes])


def _difference(tested: tuple[Difference, float] | None) -> str:
    if tested is None:
        return "–"
    gap, p = tested
    # A permutation never gives 0.
    return (
        f"{gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}], p = {p:.2g} ({gap.agreeing}/{gap.seeds} seeds)"
    )


def _mean(values: Iterable[float | None], bold: bool = False) -> str:
    points = [100 * value for value in values if value is not None]
    if not points:
        return "–"
    spread = f" ± {np.std(points, ddof=1):.1f}" if len(points) > 1 else ""
    return f"**{np.mean(points):.1f}**{spread}" if bold else f"{np.mean(points):.1f}{spread}"


def _points(values: Iterable[float]) -> str:
    found = list(values)
    return f"{np.mean(found):.1f}" if found else "–"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
