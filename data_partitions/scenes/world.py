"""What a drawn scene may hold, and scenes drawn at random from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five")
RELATIONS = ("left of", "right of", "above", "below")

Item = TypeVar("Item")


@dataclass(frozen=True)
class SceneObject:
    """One object; attributes are words of the vocabularies above, `shift` is pixels down and right."""

    size: str
    color: str
    texture: str
    shape: str
    place: str
    shift: tuple[int, int] = (0, 0)

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column on the 3 x 3 grid."""
        return divmod(PLACES.index(self.place), 3)

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether every given attribute has the given value."""
        return all(getattr(self, name) == value for name, value in attributes.items())

    def stands(self, relation: str, other: "SceneObject") -> bool:
        """Whether this object is `left of`, `right of`, `above` or `below` the other, by row or column."""
        (row, column), (other_row, other_column) = self.cell, other.cell
        return {
            "left of": column < other_column,
            "right of": column > other_column,
            "above": row < other_row,
            "below": row > other_row,
        }[relation]


@dataclass(frozen=True)
class Scene:
    """Objects in reading order on paper of one RGB colour."""

    objects: tuple[SceneObject, ...]
    paper: tuple[int, int, int] = (235, 235, 235)

    def find(self, attributes: Mapping[str, str]) -> list[SceneObject]:
        """Objects that have all the given attributes."""
        return [item for item in self.objects if item.matches(attributes)]

    def count(self, attributes: Mapping[str, str]) -> int:
        """How many objects have all the given attributes."""
        return len(self.find(attributes))


@dataclass(frozen=True)
class World:
    """Which scenes occur: values of each attribute, how many objects, sets of places they may take."""

    colors: tuple[str, ...] = COLORS
    shapes: tuple[str, ...] = SHAPES
    sizes: tuple[str, ...] = SIZES
    textures: tuple[str, ...] = TEXTURES
    layouts: tuple[tuple[str, ...], ...] = (PLACES,)
    counts: tuple[int, int] = (2, 5)
    relations: tuple[str, ...] = RELATIONS

    def values(self, attribute: str) -> tuple[str, ...]:
        """Values that an attribute takes in this world."""
        if attribute == "place":
            return tuple(place for place in PLACES if any(place in layout for layout in self.layouts))
        values: tuple[str, ...] = getattr(self, f"{attribute}s")
        return values


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One item, each equally likely (far faster than `rng.choice`)."""
    return items[int(rng.integers(len(items)))]


def random_scene(rng: np.random.Generator, world: World, planted: Sequence[Mapping[str, str]] = ()) -> Scene:
    """Draw a scene; its objects look different wherever what is planted allows it.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all chance.
    world : World
        What may occur.
    planted : sequence of mappings
        Attributes of objects that must be there; what a mapping leaves out is drawn.

    Returns
    -------
    Scene
        As many objects as `world.counts` allows, more if more are planted.
    """
    places = [mapping["place"] for mapping in planted if "place" in mapping]
    layout = pick(rng, [layout for layout in world.layouts if set(places) <= set(layout)])
    low, high = world.counts
    number = max(len(planted), int(rng.integers(low, high + 1)))
    free = [place for place in layout if place not in places]
    rng.shuffle(free)
    looks = set()
    objects = []
    for index in range(number):
        given = planted[index] if index < len(planted) else {}
        place = given.get("place") or free.pop()
        for _ in range(20):
            size, color, texture, shape = (
                given.get(name) or pick(rng, world.values(name))
                for name in ("size", "color", "texture", "shape")
            )
            if (size, color, texture, shape) not in looks:
                break
        looks.add((size, color, texture, shape))
        # As far as an object can go without leaving its cell.
        reach = 2 if size == "large" else 4
        shift = (int(rng.integers(-reach, reach + 1)), int(rng.integers(-reach, reach + 1)))
        objects.append(SceneObject(size, color, texture, shape, place, shift))
    red, green, blue = (rng.integers(215, 250) + rng.integers(-5, 6, size=3)).tolist()
    return Scene(tuple(sorted(objects, key=lambda item: item.cell)), (red, green, blue))
