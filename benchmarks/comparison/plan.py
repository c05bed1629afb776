"""A plan: methods × benchmarks × budgets × seeds, read from a TOML file (``recipes/study``).

    seeds = [0, 1, 2]
    budgets = ["steps", "flops"]        # as many rounds for all; or as many as cost what `reference` costs
    reference = "feddat"
    against = { student = "adapter", personal = "fedavg-ft" }   # whom the tests hold the others to
    over = ""                           # what a benchmark's `at` counts: scores are drawn over it
    pairs = [["feddat | teacher", "question alone"]]    # branches, each held to another one
    [settings]                          # of all cells, beside the defaults
    [benchmarks.scenes-domain]
    clients = 5
    at = 600                            # of `over`; none by default
    ranks = []                          # of LoRA, as the clients' nodes say, in turn
    newcomers = false                   # whether each client in turn never trains, see `Arena`
    settings = { benchmark = "scenes", heterogeneity = "domain" }
    [methods.feddat]
    personal = "teacher"                # the branch that is a client's own; none by default
    budgets = ["steps"]                 # the plan's by default
    settings = {}                       # method = its name, if it is not said

Names of benchmarks and methods are the plan's own.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Budget = Literal["steps", "flops"]
BETWEEN = " | "
BRANCHES = ("student", "local", "teacher", "mixed")
# What needs no training, and what a client's line calls it: the most frequent training answer to the same
# question; and the backbone by itself, where it answers without a head that has to be trained.
CONTROLS = {"question alone": "text-only", "before training": "untrained"}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Against(_Table):
    """Names of the methods that others are held to, by what is compared."""

    student: str
    personal: str


class Arena(_Table):
    """A benchmark of a plan; a relative ``data-dir`` among its settings lies in the command's.

    Attributes
    ----------
    clients : int
        How many.
    at : float, optional
        Where it stands on the axis that the plan's `over` names.
    ranks : list of int
        The ``lora-rank`` that each client's node says, in turn; by default none says any.
    newcomers : bool
        Whether there is a federation for each client in which it never trains, and which it is scored with.
    settings : dict
        What differs from the plan's.
    """

    clients: int = Field(gt=0)
    at: float | None = Field(None, gt=0)
    ranks: list[int] = []
    newcomers: bool = False
    settings: dict[str, Any] = {}


class Contestant(_Table):
    """A method of a plan.

    Attributes
    ----------
    personal : str
        The branch that is a client's own; "" if there is none.
    centralised : bool
        Whether it is the reference that is no federation, see `centralised`.
    budgets : list of str, optional
        Those of the plan's within which it is run; by default all.
    settings : dict
        What differs from the benchmark's.
    """

    personal: str = ""
    centralised: bool = False
    budgets: list[Budget] | None = Field(None, min_length=1)
    settings: dict[str, Any] = {}


class Comparison(_Table):
    """A plan as its file has it. Make one with `read`."""

    seeds: list[int] = Field(min_length=1)
    budgets: list[Budget] = ["steps"]
    reference: str
    against: Against
    over: str = ""
    pairs: list[tuple[str, str]] = []
    settings: dict[str, Any] = {}
    benchmarks: dict[str, Arena]
    methods: dict[str, Contestant]
    name: str

    @classmethod
    def read(cls, path: Path) -> "Comparison":
        """Read a file; its name is the plan's.

        Raises
        ------
        ValueError
            One line: the file cannot be read, or what is wrong in it.
        """
        try:
            plan = cls.model_validate({**tomllib.loads(path.read_text(encoding="utf-8")), "name": path.stem})
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"plan = {str(path)!r} cannot be read: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"plan = {str(path)!r}: {where}: {first['msg']}") from None
        if problem := next(plan._problems(), ""):
            raise ValueError(f"plan = {str(path)!r}: {problem}")
        return plan

    def _problems(self) -> Iterator[str]:
        """Say what does not go together."""
        for name in (self.reference, self.against.student, self.against.personal):
            if name not in self.methods:
                yield f"{name!r} is none of its methods"
        for side in chain.from_iterable(self.pairs):
            whose, _, branch = side.rpartition(BETWEEN)
            if side not in CONTROLS and (whose not in self.methods or branch not in BRANCHES):
                yield (
                    f"pairs: {side!r}; allowed: {', '.join(map(repr, CONTROLS))}, or a method and a branch,"
                    f" as in '{self.reference}{BETWEEN}student'"
                )
        for name, method in self.methods.items():
            if wrong := set(method.budgets or ()) - set(self.budgets):
                allowed = ", ".join(self.budgets)
                yield f"methods.{name}: budgets: {', '.join(sorted(wrong))}; allowed: the plan's, {allowed}"
        if "steps" not in (self.methods[self.reference].budgets or ["steps"]):
            yield "the reference is run at equal steps; allowed: with them"
        tuned = sorted(
            name
            for name, method in self.methods.items()
            if method.centralised or method.settings.get("method", name) == "fedavg-ft"
        )
        if tuned and any(arena.newcomers for arena in self.benchmarks.values()):
            names = ", ".join(tuned)
            yield f"newcomers with {names}, which trains on their examples; allowed: methods that do not"
        places = set()
        for name, arena in self.benchmarks.items():
            where = f"benchmarks.{name}"
            if (arena.at is None) == bool(self.over):
                yield f"{where}: `at` and `over` need each other; allowed: both or neither"
            if arena.at is None:
                continue
            if name == "over":
                yield f"{where} is a figure's name; allowed: another"
            if (place := (self.data_of(name), arena.at)) in places:
                yield f"{where}: another stands there too; allowed: one at {arena.at:g} of a data set"
            places.add(place)

    def data_of(self, benchmark: str) -> str:
        """Return the data set of one of its benchmarks."""
        return str({**self.settings, **self.benchmarks[benchmark].settings}.get("benchmark", benchmark))

    def cells(self) -> Iterator["Cell"]:
        """Yield the cells, those of the first budget first; the reference has as many rounds in any."""
        for budget in self.budgets:
            for benchmark in self.benchmarks:
                for method, own in self.methods.items():
                    if budget in (own.budgets or self.budgets) and (
                        budget == "steps" or method != self.reference
                    ):
                        yield Cell(self, benchmark, method, budget)


@dataclass(frozen=True)
class Cell:
    """One method on one benchmark within one budget."""

    plan: Comparison
    benchmark: str
    method: str
    budget: Budget

    @property
    def name(self) -> str:
        """What a line calls it."""
        return BETWEEN.join((self.benchmark, self.method, self.budget))

    @property
    def with_equal_steps(self) -> "Cell":
        """The same method on the same benchmark, in as many rounds as all."""
        return replace(self, budget="steps")

    @property
    def clients(self) -> int:
        """How many clients the benchmark has."""
        return self.plan.benchmarks[self.benchmark].clients

    @property
    def newcomers(self) -> bool:
        """Whether each client is scored with what a federation of the others has trained."""
        return self.plan.benchmarks[self.benchmark].newcomers

    @property
    def centralised(self) -> bool:
        """Whether its method is no federation."""
        return self.plan.methods[self.method].centralised

    def node_config(self, partition: int) -> dict[str, Any]:
        """Return what the node of a client says."""
        ranks = self.plan.benchmarks[self.benchmark].ranks
        return {"lora-rank": ranks[partition % len(ranks)]} if ranks else {}

    def settings(self, given: Mapping[str, Any], method: str = "") -> dict[str, Any]:
        """Return what differs from the defaults, of this method or another one of the plan.

        Parameters
        ----------
        given : Mapping
            The command's, which win; its ``data-dir`` is where the benchmarks' lie.
        """
        method = method or self.method
        own = {"method": method, **self.plan.methods[method].settings}
        settings = {**self.plan.settings, **self.plan.benchmarks[self.benchmark].settings, **own}
        root, wanted = given.get("data-dir", ""), settings.pop("data-dir", "")
        places = {"data-dir": str(Path(root, wanted))} if wanted else {}
        return {**settings, **{key: value for key, value in given.items() if key != "data-dir"}, **places}

    def depends_on(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all that says what is run, beside the defaults and the seed, as `settings` takes it."""
        settings = self.settings(given)
        return {
            "settings": settings | {"data-dir": str(Path(settings.get("data-dir", "")).resolve())},
            "clients": self.clients,
            "nodes": [self.node_config(partition) for partition in range(self.clients)],
            "centralised": self.centralised,
            "newcomers": self.newcomers,
            "budget": self.settings(given, self.plan.reference) if self.budget == "flops" else "",
        }
