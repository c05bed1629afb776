"""The clients of `scenes`: four ways to differ, as in the four benchmarks of FedDAT (AAAI 2024)."""

from dataclasses import dataclass, field

from . import questions as ask
from . import tasks
from .questions import Asker
from .world import COLORS, PLACES, SHAPES, World

_ROWS = (PLACES[0:3], PLACES[3:6], PLACES[6:9])
_COLUMNS = (PLACES[0::3], PLACES[1::3], PLACES[2::3])
_CORNERS = ("top left", "top right", "bottom left", "bottom right")

FUNCTIONS: dict[str, tuple[Asker, ...]] = {
    "attribute": (ask.look_at_place, ask.look_of_object, ask.place),
    "counting": (ask.number,),
    "relation": (ask.relation, ask.look_beside),
    "logic": (ask.existence, ask.conjunction, ask.disjunction, ask.universality),
    "comparison": (ask.more, ask.larger, ask.same),
}
_ALL = tuple(FUNCTIONS.values())
# Where all objects are of one size, none is larger than another.
_ONE_SIZE = (*_ALL[:4], (ask.more, ask.same))
_STATEMENTS = tuple(
    tuple(tasks.statement(asker) for asker in askers)
    for askers in ((ask.relation,), FUNCTIONS["logic"], FUNCTIONS["comparison"])
)


@dataclass(frozen=True)
class Client:
    """What one client sees: a style of drawing, a world, and kinds of questions, all equally frequent."""

    style: str = "clean"
    world: World = field(default_factory=World)
    kinds: tuple[tuple[Asker, ...], ...] = _ALL


CLIENTS: dict[str, dict[str, Client]] = {
    "domain": {
        name: Client(style=name) for name in ("clean", "sketch", "noisy", "inverted", "low-resolution")
    },
    "function": {name: Client(kinds=(askers,)) for name, askers in FUNCTIONS.items()},
    "scene": {
        "row": Client(
            world=World(
                COLORS[:4], SHAPES[:3], layouts=_ROWS, counts=(2, 3), relations=("left of", "right of")
            )
        ),
        "column": Client(
            world=World(COLORS[2:], SHAPES[2:], layouts=_COLUMNS, counts=(2, 3), relations=("above", "below"))
        ),
        "corners": Client(world=World(COLORS[1:5], SHAPES[1:4], layouts=(_CORNERS,), counts=(2, 4))),
        "crowded": Client(world=World(COLORS[::2] + COLORS[1:2], SHAPES[::2], counts=(5, 6))),
        "big": Client(
            world=World(COLORS[1::2] + COLORS[:1], SHAPES[:2] + SHAPES[3:4], sizes=("large",), counts=(2, 4)),
            kinds=_ONE_SIZE,
        ),
        "small": Client(
            world=World(COLORS[:2] + COLORS[4:], SHAPES[1:2] + SHAPES[3:], sizes=("small",)), kinds=_ONE_SIZE
        ),
    },
    "task": {
        "question-answering": Client(),
        "true-or-false": Client(kinds=(*_STATEMENTS, (tasks.number_statement,))),
        "image-text-match": Client(kinds=((tasks.caption_match,),)),
        "entailment": Client(kinds=((tasks.look_entailment, tasks.relation_entailment),)),
    },
}
