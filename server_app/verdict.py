"""What a run's scores say in plain words."""

from collections.abc import Callable
from statistics import fmean

from .rows import BRANCHES, TEST_EXAMPLES, Rows, central, is_scored, names_of, untrained

# Less than this between two means, in points, is no difference worth a word.
NOTHING = 0.5
NAMES = {"student": "student", "local": "local branch", "mixed": "mixed branch", "teacher": "teacher branch"}


def verdict(rows: Rows, written: Callable[[str], str] = str) -> list[str]:
    """Return a sentence for each thing that a reader of the table should not miss.

    Says whether the deployed branch is above what the question alone gives, and for whom it is not; what
    training added, where it was measured before; and whether the branches differ by more than half a point in
    the mean; last, on how many questions that rests. Nothing where clients send no scores. `written` makes of
    a client's name what may stand in the text.
    """
    last = {row["partition"]: row for row in rows if is_scored(row)}
    if central(rows) or not last:
        return []
    said = []
    branch = next(branch for branch in BRANCHES if any(branch in row for row in last.values()))
    gains = {
        partition: 100 * (row[branch] - row["text-only"])
        for partition, row in last.items()
        if row.keys() >= {branch, "text-only"}
    }
    if gains:
        mean = fmean(gains.values())
        below = [written(names_of(rows)[partition]) for partition, gain in gains.items() if gain <= 0]
        if mean <= 0:
            said.append(
                f"The {NAMES[branch]} learnt nothing from the pictures: it is {-mean:.1f} points below what"
                " the question alone gives"
            )
        else:
            said.append(f"The {NAMES[branch]} is {mean:.1f} points above what the question alone gives")
        said[-1] += f"; it is not above it for {', '.join(below)}." if below and mean > 0 else "."
    before = untrained(rows)
    trained = {partition: row[branch] for partition, row in last.items() if branch in row and row["round"]}
    if both := before.keys() & trained.keys():
        gained = 100 * fmean(trained[partition] - before[partition] for partition in both)
        if abs(gained) < NOTHING:
            said.append("Training changed nothing: the mean is within half a point of what it was before.")
        elif gained > 0:
            said.append(f"Training added {gained:.1f} points to what the backbone gave before it.")
        else:
            said.append(f"Training lost {-gained:.1f} points of what the backbone gave before it.")
    means = {
        other: 100 * fmean(row[other] for row in last.values() if other in row)
        for other in BRANCHES
        if any(other in row for row in last.values())
    }
    if len(means) > 1:
        spread = max(means.values()) - min(means.values())
        best = max(means, key=lambda other: means[other])
        if spread < NOTHING:
            said.append("The branches do not differ: their means are within half a point of each other.")
        elif best != branch:
            more = means[best] - means[branch]
            said.append(f"At the sites themselves the {NAMES[best]} is best, by {more:.1f} points.")
    if said and all(TEST_EXAMPLES in row for row in last.values()):
        questions = sum(row[TEST_EXAMPLES] for row in last.values())
        said.append(f"This rests on {questions:,} questions of {len(last)} client{'s' * (len(last) != 1)}.")
    return said
