"""The clients of `scenes`: four ways to differ, as in the four benchmarks of FedDAT (AAAI 2024)."""

from dataclasses import dataclass, field

from . import questions as ask
from . import statements
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
    tuple(statements.statement(asker) for asker in askers)
    for askers in ((ask.relation,), FUNCTIONS["logic"], FUNCTIONS["comparison"])
)


@dataclass(frozen=True)
class SceneClient:
    """What one client sees: a style of drawing, a world, and kinds of questions, all equally frequent."""

    style: str = "clean"
    world: World = field(default_factory=World)
    kinds: tuple[tuple[Asker, ...], ...] = _ALL


CLIENTS: dict[str, dict[str, SceneClient]] = {
    "domain": {
        name: SceneClient(style=name) for name in ("clean", "sketch", "noisy", "inverted", "low-resolution")
    },
    "function": {name: SceneClient(kinds=(askers,)) for name, askers in FUNCTIONS.items()},
    "scene": {
        "row": SceneClient(
            world=World(
                COLORS[:4], SHAPES[:3], layouts=_ROWS, counts=(2, 3), relations=("left of", "right of")
            )
        ),
        "column": SceneClient(
            world=World(COLORS[2:], SHAPES[2:], layouts=_COLUMNS, counts=(2, 3), relations=("above", "below"))
        ),
        "corners": SceneClient(world=World(COLORS[1:5], SHAPES[1:4], layouts=(_CORNERS,), counts=(2, 4))),
        "crowded": SceneClient(world=World(COLORS[::2] + COLORS[1:2], SHAPES[::2], counts=(5, 6))),
        "big": SceneClient(
            world=World(COLORS[1::2] + COLORS[:1], SHAPES[:2] + SHAPES[3:4], sizes=("large",), counts=(2, 4)),
            kinds=_ONE_SIZE,
        ),
        "small": SceneClient(
            world=World(COLORS[:2] + COLORS[4:], SHAPES[1:2] + SHAPES[3:], sizes=("small",)), kinds=_ONE_SIZE
        ),
    },
    "task": {
        "question-answering": SceneClient(),
        "true-or-false": SceneClient(kinds=(*_STATEMENTS, (statements.number_statement,))),
        "image-text-match": SceneClient(kinds=((statements.caption_match,),)),
        "entailment": SceneClient(kinds=((statements.look_entailment, statements.relation_entailment),)),
    },
}
