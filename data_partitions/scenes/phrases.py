"""Words for objects: noun phrases, and the phrase that means one object of a scene and no other."""

from collections.abc import Mapping

import numpy as np

from .world import Scene, SceneObject

LOOKS = ("size", "color", "texture", "shape")


def noun(attributes: Mapping[str, str], plural: bool = False) -> str:
    """`{"color": "red", "size": "small"}` → "small red object"; the shape, where given, is the noun."""
    head = attributes.get("shape", "object")
    if plural:
        head += "es" if head == "cross" else "s"
    return " ".join([*(attributes[name] for name in LOOKS[:3] if name in attributes), head])


def looks(item: SceneObject, *names: str) -> dict[str, str]:
    """Named attributes of an object; all four looks if none is named."""
    return {name: getattr(item, name) for name in names or LOOKS}


def unique_looks(
    rng: np.random.Generator, scene: Scene, item: SceneObject, spare: str = ""
) -> dict[str, str] | None:
    """Few attributes, `spare` not among them, that this object alone has; None if there are none."""
    names = [name for name in LOOKS if name != spare]
    rng.shuffle(names)
    # The shape comes first in three cases of four: "the red circle" is what people say.
    if rng.random() < 0.75 and "shape" in names:
        names.sort(key=lambda name: name != "shape")
    for number in range(1, len(names) + 1):
        attributes = looks(item, *names[:number])
        if scene.count(attributes) == 1:
            return attributes
    return None
