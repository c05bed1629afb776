"""What a study has found so far: its lines, by cell."""

from collections.abc import Mapping, Sequence
from typing import Any

from .plan import BETWEEN, CONTROLS, Budget, Comparison
from .statistics import Scores

Lines = Sequence[Mapping[str, Any]]


class Found:
    """A plan's lines, by cell.

    Parameters
    ----------
    plan : Comparison
        The plan.
    lines : sequence of dict
        Lines of a study's file; those of other plans count in nothing.
    """

    def __init__(self, plan: Comparison, lines: Lines) -> None:
        self.plan = plan
        self._by_cell: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            if line["plan"] == plan.name:
                self._by_cell.setdefault(line["cell"], []).append(line)

    def of(self, benchmark: str, method: str, budget: Budget) -> list[Mapping[str, Any]]:
        """Return a cell's lines, by seed; the reference's are the same in any budget."""
        own: Budget = "steps" if method == self.plan.reference else budget
        found = self._by_cell.get(BETWEEN.join((benchmark, method, own)), [])
        return sorted(found, key=lambda line: line["seed"])

    def methods(self, benchmark: str, budget: Budget) -> list[str]:
        """Return the methods with a line, in the plan's order."""
        return [method for method in self.plan.methods if self.of(benchmark, method, budget)]

    def branch(self, method: str, what: str) -> str:
        """Return the branch that is a method's ``student``, or its ``personal`` one; "" if there is none.

        A student of which a part is each client's own is personal.
        """
        personal = self.plan.methods[method].personal
        return personal if what == "personal" else "" if personal == "student" else "student"

    def scores(self, benchmark: str, method: str, budget: Budget, what: str) -> Scores:
        """Return the scores of a method's `what`, see `branch`, by seed and client, in points."""
        return self._of_branch(benchmark, method, budget, self.branch(method, what))

    def side(self, benchmark: str, side: str, budget: Budget) -> Scores:
        """Return the scores of one side of a plan's pair by seed and client, in points."""
        if side in CONTROLS:
            return self.control(benchmark, side)
        method, _, branch = side.rpartition(BETWEEN)
        return self._of_branch(benchmark, method, budget, branch)

    def _of_branch(self, benchmark: str, method: str, budget: Budget, branch: str) -> Scores:
        return {
            (line["seed"], client): 100 * scores[branch]
            for line in self.of(benchmark, method, budget)
            for client, scores in line["clients"].items()
            if branch in scores
        }

    def control(self, benchmark: str, control: str) -> Scores:
        """Return what one of `CONTROLS` gives by seed and client, in points, whatever method and budget.

        Of the reference where it has told it: before training an adapter of another kind is another start.
        """
        key = CONTROLS[control]
        return {
            (line["seed"], client): 100 * scores[key]
            for budget in self.plan.budgets
            for method in sorted(self.methods(benchmark, budget), key=self.plan.reference.__eq__)
            for line in self.of(benchmark, method, budget)
            for client, scores in line["clients"].items()
            if key in scores
        }
