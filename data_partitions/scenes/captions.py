"""True sentences about a scene, dense enough that a masked word is found by looking and not by guessing.

No word gives another away: numbers stand where singular and plural do not show, and "a" never before a colour
(no "an" that says orange). So a sentence with one word exchanged is false without sounding false.
"""

import numpy as np

from .phrases import LOOKS, looks, noun, unique_looks
from .world import COLORS, NUMBER_WORDS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene, SceneObject, pick

_VALUES = {"size": SIZES, "color": COLORS, "texture": TEXTURES, "shape": SHAPES}


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Seven sentences: all in reading order, two objects, existence, numbers, a relation, a comparison."""
    first, second = (scene.objects[index] for index in rng.permutation(len(scene.objects))[:2])
    return [
        " , ".join(f"{item.place} {noun(looks(item))}" for item in scene.objects),
        _object(scene, rng, first),
        _object(scene, rng, second),
        _existence(scene, rng, first, second),
        _numbers(scene, rng),
        _relation(scene, rng, first, second),
        _comparison(scene, rng, first, second),
    ]


def _the(scene: Scene, rng: np.random.Generator, item: SceneObject, spare: str = "") -> str:
    attributes = unique_looks(rng, scene, item, spare)
    return f"the {noun(attributes)}" if attributes else f"the object at the {item.place}"


def _object(scene: Scene, rng: np.random.Generator, item: SceneObject) -> str:
    name = pick(rng, LOOKS)
    value = f"a {item.shape}" if name == "shape" else getattr(item, name)
    return pick(
        rng,
        (
            f"the object at the {item.place} is a {noun(looks(item))}",
            f"the object at the {item.place} is {value}",
            f"{_the(scene, rng, item, spare=name)} is {value}",
            f"{_the(scene, rng, item)} is at the {item.place}",
        ),
    )


def _random_looks(rng: np.random.Generator) -> dict[str, str]:
    """One or two attributes that may or may not occur."""
    names = rng.permutation(LOOKS)[: int(rng.integers(1, 3))].tolist()
    return {name: pick(rng, _VALUES[name]) for name in names}


def _existence(scene: Scene, rng: np.random.Generator, first: SceneObject, second: SceneObject) -> str:
    present, also, other = (
        looks(first, "size", "color", "shape"),
        looks(second, "size", "shape"),
        _random_looks(rng),
    )
    if scene.count(other):
        return f"there is a {noun(present)} and a {noun(also)}"
    return f"there is a {noun(present)} and no {noun(other)}"


def _numbers(scene: Scene, rng: np.random.Generator) -> str:
    name = pick(rng, LOOKS)
    seen = {name: getattr(pick(rng, scene.objects), name)}
    return " and ".join(
        f"the number of {noun(attributes, plural=True)} is {NUMBER_WORDS[scene.count(attributes)]}"
        for attributes in (seen, _random_looks(rng))
    )


def _relation(scene: Scene, rng: np.random.Generator, first: SceneObject, second: SceneObject) -> str:
    relation = pick(rng, [relation for relation in RELATIONS if first.stands(relation, second)])
    return f"{_the(scene, rng, first)} is {relation} {_the(scene, rng, second)}"


def _comparison(scene: Scene, rng: np.random.Generator, first: SceneObject, second: SceneObject) -> str:
    name = pick(rng, ("color", "texture", "shape"))
    one, two = (_the(scene, rng, item, spare=name) for item in (first, second))
    same = "the same" if getattr(first, name) == getattr(second, name) else "different"
    small, large = (
        _the(scene, rng, item, spare="size")
        for item in sorted((first, second), key=lambda item: item.size == "large")
    )
    size = "as large as" if first.size == second.size else "larger than"
    few, many = sorted(
        ({"shape": shape} for shape in rng.permutation(SHAPES)[:2].tolist()),
        key=lambda look: scene.count(look),
    )
    amount, link = ("as many", "as") if scene.count(few) == scene.count(many) else ("more", "than")
    return pick(
        rng,
        (
            f"the {name} of {one} and {two} is {same}",
            f"{large} is {size} {small}",
            f"there are {amount} {noun(many, plural=True)} {link} {noun(few, plural=True)}",
        ),
    )
