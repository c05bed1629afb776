"""Other tasks than answering questions: judging statements, matching captions, entailment."""

from collections.abc import Sequence

import numpy as np

from .phrases import LOOKS, looks, noun
from .questions import OPPOSITES, Asker, Look, Query, draw_look, draw_two_looks, only, varying, yes_no
from .world import NUMBER_WORDS, Scene, World, pick, random_scene


def statement(asker: Asker) -> Asker:
    """Make of a yes-or-no question the statement that it asks about, true or false."""

    def ask(rng: np.random.Generator, world: World) -> Query:
        query = asker(rng, world)
        truth = {"yes": "true", "no": "false"}[query.answer]
        return Query(query.statement, truth, query.planted, query.holds)

    return ask


def number_statement(rng: np.random.Generator, world: World) -> Query:
    """State how many objects look so; where that is false, the number is one off."""
    look, true = draw_look(rng, world, varying(world)), yes_no(rng)
    most = min(5, world.counts[1])
    stated = int(rng.integers(most + 1))
    actual = stated if true else pick(rng, [near for near in (stated - 1, stated + 1) if 0 <= near <= most])
    return Query(
        f"the number of {noun(look, plural=True)} is {NUMBER_WORDS[stated]}",
        "true" if true else "false",
        [look] * actual,
        lambda scene: scene.count(look) == actual,
    )


def caption_match(rng: np.random.Generator, world: World) -> Query:
    """Ask whether a caption of up to three objects fits; where it does not, one word of it is wrong."""
    described = random_scene(rng, world).objects[:3]
    text = " , ".join(f"{item.place} {noun(looks(item))}" for item in described)
    planted: list[Look] = [looks(item, *LOOKS, "place") for item in described]
    match = yes_no(rng)
    if not match:
        wrong, name = pick(rng, planted), pick(rng, varying(world))
        wrong[name] = pick(rng, [value for value in world.values(name) if value != wrong[name]])
    return Query(text, "yes" if match else "no", planted)


def _judgement(rng: np.random.Generator) -> str:
    return pick(rng, ("entailment", "neutral", "contradiction"))


def look_entailment(rng: np.random.Generator, world: World) -> Query:
    """State an attribute of an object; if that object is not in the picture, nobody can tell."""
    name, answer = pick(rng, varying(world)), _judgement(rng)
    look = draw_look(rng, world, varying(world, name))
    stated, other = rng.permutation(world.values(name))[:2].tolist()
    value = f"a {stated}" if name == "shape" else stated
    planted = {"entailment": [look | {name: stated}], "contradiction": [look | {name: other}], "neutral": []}[
        answer
    ]
    return Query(
        f"the {noun(look)} is {value}", answer, planted, lambda scene: scene.count(look) == len(planted)
    )


def relation_entailment(rng: np.random.Generator, world: World) -> Query:
    """State where an object stands; if it or the other is not in the picture, nobody can tell."""
    one, two = draw_two_looks(rng, world, varying(world))
    stated, answer = pick(rng, world.relations), _judgement(rng)
    planted: Sequence[Look] = [pick(rng, (one, two))] if answer == "neutral" else [one, two]

    def holds(scene: Scene) -> bool:
        if answer == "neutral":
            return [scene.count(look) for look in (one, two)] == [int(look in planted) for look in (one, two)]
        first, second = only(scene, one), only(scene, two)
        found = stated if answer == "entailment" else OPPOSITES[stated]
        return first is not None and second is not None and first.stands(found, second)

    return Query(f"the {noun(one)} is {stated} the {noun(two)}", answer, planted, holds)
