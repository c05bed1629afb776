"""Questions about scenes, drawn so that their text says nothing about their answer.

Each kind of question is a function that draws a text, then an answer evenly from all that the text allows,
and names the objects that the scene needs for it. The scene is drawn last, until the answer holds in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .phrases import LOOKS, noun
from .world import RELATIONS, Scene, SceneObject, World, pick, random_scene

Look = dict[str, str]

OPPOSITES = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))


@dataclass(frozen=True)
class Query:
    """A text, its answer, and what a scene must be like for that answer to be right.

    Attributes
    ----------
    text, answer : str
        What is asked, and the true answer.
    planted : sequence of dict
        Attributes of objects that the scene must have.
    holds : callable
        Whether the question makes sense in a scene (what it names is there, once) and has this answer.
    statement : str
        For questions of yes and no: the sentence that "yes" affirms.
    """

    text: str
    answer: str
    planted: Sequence[Look]
    holds: Callable[[Scene], bool] = lambda scene: True
    statement: str = ""


Asker = Callable[[np.random.Generator, World], Query]


def scene_for(rng: np.random.Generator, world: World, query: Query) -> Scene:
    """Draw scenes until the query's answer holds in one."""
    while not query.holds(scene := random_scene(rng, world, query.planted)):
        pass
    return scene


def varying(world: World, *without: str) -> list[str]:
    """Name the looks that differ between objects of a world, except those given."""
    return [name for name in LOOKS if name not in without and len(world.values(name)) > 1]


def draw_look(rng: np.random.Generator, world: World, names: Sequence[str]) -> Look:
    """Draw a value for one of the named attributes or, as often, for two."""
    chosen = rng.permutation(names)[: int(rng.integers(1, 3))].tolist()
    return {name: pick(rng, world.values(name)) for name in chosen}


def draw_two_looks(rng: np.random.Generator, world: World, names: Sequence[str]) -> tuple[Look, Look]:
    """Draw two different looks of the same one or two attributes, so that no object has both.

    They are never "small" and "large" alone: each object is one of the two, which would leave few scenes.
    """
    while set(one := draw_look(rng, world, names)) == {"size"}:
        pass
    while (two := {name: pick(rng, world.values(name)) for name in one}) == one:
        pass
    return one, two


def yes_no(rng: np.random.Generator) -> bool:
    """Toss a fair coin."""
    return bool(rng.integers(2))


def only(scene: Scene, look: Look) -> SceneObject | None:
    """Return the one object that looks so; None if there is none or several."""
    found = scene.find(look)
    return found[0] if len(found) == 1 else None


def article(phrase: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _claim(statement: str, true: bool, planted: Sequence[Look], holds: Callable[[Scene], bool]) -> Query:
    """Turn "the x is y" or "there is x" into the question "is the x y?" or "is there x?"."""
    subject, verb, rest = statement.partition(" is ") if " is " in statement else statement.partition(" are ")
    text = f"{verb.strip()} {subject} {rest}?"
    return Query(text, "yes" if true else "no", planted, holds, statement)


def place(rng: np.random.Generator, world: World) -> Query:
    """Ask where an object is."""
    look, answer = draw_look(rng, world, varying(world)), pick(rng, world.values("place"))
    return Query(
        f"where is the {noun(look)}?",
        answer,
        [look | {"place": answer}],
        lambda scene: bool(only(scene, look)),
    )


def look_at_place(rng: np.random.Generator, world: World) -> Query:
    """Ask for an attribute of the object at a place."""
    name, where = pick(rng, varying(world)), pick(rng, world.values("place"))
    answer = pick(rng, world.values(name))
    return Query(f"what {name} is the object at the {where}?", answer, [{"place": where, name: answer}])


def look_of_object(rng: np.random.Generator, world: World) -> Query:
    """Ask for an attribute of the object with other attributes."""
    name = pick(rng, varying(world))
    look, answer = draw_look(rng, world, varying(world, name)), pick(rng, world.values(name))
    return Query(
        f"what {name} is the {noun(look)}?",
        answer,
        [look | {name: answer}],
        lambda scene: bool(only(scene, look)),
    )


def number(rng: np.random.Generator, world: World) -> Query:
    """Ask how many objects look so."""
    look = draw_look(rng, world, varying(world))
    answer = int(rng.integers(min(5, world.counts[1]) + 1))
    return Query(
        f"how many {noun(look, plural=True)} are there?",
        str(answer),
        [look] * answer,
        lambda scene: scene.count(look) == answer,
    )


def relation(rng: np.random.Generator, world: World) -> Query:
    """Ask whether one object is left of, right of, above or below another."""
    one, two = draw_two_looks(rng, world, varying(world))
    asked, true = pick(rng, world.relations), yes_no(rng)

    def holds(scene: Scene) -> bool:
        first, second = only(scene, one), only(scene, two)
        found = asked if true else OPPOSITES[asked]
        return first is not None and second is not None and first.stands(found, second)

    return _claim(f"the {noun(one)} is {asked} the {noun(two)}", true, [one, two], holds)


def look_beside(rng: np.random.Generator, world: World) -> Query:
    """Ask for an attribute of the one object on some side of another."""
    asked, name = pick(rng, world.relations), pick(rng, varying(world))
    look, answer = draw_look(rng, world, varying(world, name)), pick(rng, world.values(name))

    def holds(scene: Scene) -> bool:
        other = only(scene, look)
        beside = [item for item in scene.objects if other and item.stands(asked, other)]
        return len(beside) == 1 and beside[0].matches({name: answer})

    text = f"what {name} is the object {asked} the {noun(look)}?"
    return Query(text, answer, [look, {name: answer}], holds)


def existence(rng: np.random.Generator, world: World) -> Query:
    """Ask whether an object is there, or is not there."""
    look, there, negated = draw_look(rng, world, varying(world)), yes_no(rng), yes_no(rng)
    phrase = f"no {noun(look)}" if negated else article(noun(look))
    return _claim(
        f"there is {phrase}",
        there != negated,
        [look] if there else [],
        lambda scene: bool(scene.find(look)) == there,
    )


def conjunction(rng: np.random.Generator, world: World) -> Query:
    """Ask whether two objects are both there."""
    looks, true = draw_two_looks(rng, world, varying(world)), yes_no(rng)
    one, two = (article(noun(look)) for look in looks)
    return _claim(
        f"there is {one} and {two}",
        true,
        looks if true else [pick(rng, looks)],
        lambda scene: all(scene.count(look) for look in looks) == true,
    )


def disjunction(rng: np.random.Generator, world: World) -> Query:
    """Ask whether at least one of two objects is there."""
    looks, true = draw_two_looks(rng, world, varying(world)), yes_no(rng)
    one, two = (article(noun(look)) for look in looks)
    return _claim(
        f"there is {one} or {two}",
        true,
        [pick(rng, looks)] if true else [],
        lambda scene: any(scene.count(look) for look in looks) == true,
    )


def universality(rng: np.random.Generator, world: World) -> Query:
    """Ask whether all objects share an attribute; where they do not, all but one do."""
    name, true = pick(rng, varying(world)), yes_no(rng)
    look = {name: pick(rng, world.values(name))}
    alike = int(rng.integers(world.counts[0], world.counts[1] + 1)) - (not true)
    value = noun(look, plural=True) if name == "shape" else look[name]
    return _claim(
        f"all objects are {value}",
        true,
        [look] * alike,
        lambda scene: len(scene.objects) - scene.count(look) == (not true),
    )


def more(rng: np.random.Generator, world: World) -> Query:
    """Ask whether there are more objects of one kind than of another."""
    name, true = pick(rng, varying(world)), yes_no(rng)
    one, two = ({name: value} for value in rng.permutation(world.values(name))[:2].tolist())
    most = min(5, world.counts[1])
    numbers = [(i, j) for i in range(most + 1) for j in range(most + 1 - i) if i + j and (i > j) == true]
    first, second = pick(rng, numbers)
    statement = f"there are more {noun(one, plural=True)} than {noun(two, plural=True)}"
    return _claim(
        statement,
        true,
        [one] * first + [two] * second,
        lambda scene: (scene.count(one) > scene.count(two)) == true,
    )


def larger(rng: np.random.Generator, world: World) -> Query:
    """Ask whether one object is larger than another; where it is not, it is smaller or as large."""
    one, two = draw_two_looks(rng, world, varying(world, "size"))
    asked, true = pick(rng, ("larger", "smaller")), yes_no(rng)
    fitting = ("large", "small") if asked == "larger" else ("small", "large")
    alike = pick(rng, world.sizes)
    sizes = fitting if true else pick(rng, (fitting[::-1], (alike, alike)))
    return _claim(
        f"the {noun(one)} is {asked} than the {noun(two)}",
        true,
        [one | {"size": sizes[0]}, two | {"size": sizes[1]}],
        lambda scene: bool(only(scene, one) and only(scene, two)),
    )


def same(rng: np.random.Generator, world: World) -> Query:
    """Ask whether two objects share an attribute."""
    name, true = pick(rng, varying(world)), yes_no(rng)
    one, two = draw_two_looks(rng, world, varying(world, name))
    first, second = rng.permutation(world.values(name))[:2].tolist()
    return Query(
        f"do the {noun(one)} and the {noun(two)} have the same {name}?",
        "yes" if true else "no",
        [one | {name: first}, two | {name: first if true else second}],
        lambda scene: bool(only(scene, one) and only(scene, two)),
        statement=f"the {noun(one)} and the {noun(two)} have the same {name}",
    )
