"""A second opinion on texts about scenes: reads the words, looks at positions in pixels, and answers."""

import re

VOCABULARY = {
    "size": ("small", "large"),
    "color": ("red", "green", "blue", "yellow", "purple", "orange"),
    "texture": ("plain", "striped", "dotted"),
    "shape": ("circle", "square", "triangle", "star", "cross"),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five")
SIDES = "left of|right of|above|below"


def seen(scene):
    """Objects as dictionaries, with their centres in pixels."""
    objects = []
    for item in scene.objects:
        row = 0 if "top" in item.place else 2 if "bottom" in item.place else 1
        column = 0 if "left" in item.place else 2 if "right" in item.place else 1
        looks = {name: getattr(item, name) for name in (*VOCABULARY, "place")}
        objects.append(looks | {"x": 21 * column + item.shift[1], "y": 21 * row + item.shift[0]})
    return objects


def find(phrase, objects):
    """Objects that a noun phrase, singular or plural, fits."""
    match = re.fullmatch(r"object at the (.+)", phrase)
    if match:
        return [item for item in objects if item["place"] == match[1]]
    words = [
        re.sub(r"(?<=cross)es$|(?<=[a-z])s$", "", word) if word != "cross" else word
        for word in phrase.split()
    ]
    wanted = {}
    for word in words:
        if word != "object":
            [name] = [name for name, values in VOCABULARY.items() if word in values]
            wanted[name] = word
    return [item for item in objects if all(item[name] == value for name, value in wanted.items())]


def the(phrase, objects):
    """Return the one object that is meant."""
    found = find(phrase, objects)
    assert len(found) == 1, f"{phrase!r} means {len(found)} objects"
    return found[0]


def stands(one, side, two):
    axis, sign = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[side]
    return sign * (one[axis] - two[axis]) > 10


def truth(text, objects):
    """Whether a statement, or what a yes-or-no question asks about, is true."""
    text = text.removesuffix("?")

    def read(pattern):
        return re.fullmatch(pattern, text)

    if match := read(r"(the number of .+) and (the number of .+)"):
        return truth(match[1], objects) and truth(match[2], objects)
    if match := read(r"the number of (.+) is (\w+)"):
        return len(find(match[1], objects)) == NUMBERS.index(match[2])
    if match := read(r"(?:is there|there is) no (.+)"):
        return not find(match[1], objects)
    if match := read(r"(?:is there|there is) an? (.+) and (an?|no) (.+)"):
        return bool(find(match[1], objects)) and bool(find(match[3], objects)) == (match[2] != "no")
    if match := read(r"(?:is there|there is) an? (.+) or an? (.+)"):
        return bool(find(match[1], objects) or find(match[2], objects))
    if match := read(r"(?:is there|there is) an? (.+)"):
        return bool(find(match[1], objects))
    if match := read(r"(?:are all objects|all objects are) (\w+)"):
        return len(find(match[1], objects)) == len(objects)
    if match := read(r"(?:are there|there are) more (.+) than (.+)"):
        return len(find(match[1], objects)) > len(find(match[2], objects))
    if match := read(r"there are as many (.+) as (.+)"):
        return len(find(match[1], objects)) == len(find(match[2], objects))
    if match := read(r"(?:do )?the (.+) and the (.+) have the same (\w+)"):
        return the(match[1], objects)[match[3]] == the(match[2], objects)[match[3]]
    if match := read(r"the (color|texture|shape) of the (.+) and the (.+) is (the same|different)"):
        return (the(match[2], objects)[match[1]] == the(match[3], objects)[match[1]]) == (
            match[4] == "the same"
        )
    if match := read(rf"(?:is )?the (.+?) (?:is )?({SIDES}) the (.+)"):
        return stands(the(match[1], objects), match[2], the(match[3], objects))
    if match := read(r"(?:is )?the (.+?) (?:is )?(larger than|smaller than|as large as) the (.+)"):
        one, two = (VOCABULARY["size"].index(the(match[i], objects)["size"]) for i in (1, 3))
        return {"larger than": one > two, "smaller than": one < two, "as large as": one == two}[match[2]]
    if match := read(r"the (.+) is at the (.+)"):
        return the(match[1], objects)["place"] == match[2]
    if match := read(r"the (.+) is (?:a )?(.+)"):
        return the(match[1], objects) in find(
            match[2] if match[2].split()[-1] in VOCABULARY["shape"] else f"{match[2]} object", objects
        )
    raise AssertionError(f"not understood: {text!r}")


def answer(question, objects):
    """Answer a question."""
    if match := re.fullmatch(r"where is the (.+)\?", question):
        return the(match[1], objects)["place"]
    if match := re.fullmatch(r"how many (.+) are there\?", question):
        return str(len(find(match[1], objects)))
    if match := re.fullmatch(rf"what (\w+) is the object ({SIDES}) the (.+)\?", question):
        other = the(match[3], objects)
        [found] = [item for item in objects if stands(item, match[2], other)]
        return found[match[1]]
    if match := re.fullmatch(r"what (\w+) is the (.+)\?", question):
        return the(match[2], objects)[match[1]]
    return "yes" if truth(question, objects) else "no"
