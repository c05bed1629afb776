"""Which arrays are a client's alone, by their names."""

from collections.abc import Collection


def is_private(name: str, private: Collection[str] | None = None) -> bool:
    """Whether an array's name is of what belongs to a client alone: a local or frozen adapter, or a head.

    Parameters
    ----------
    name : str
        The array's, of parts between dots.
    private : Collection[str], optional
        What is a head: see `is_named`. None: what has a part that begins with ``head`` or ``clf_``.
    """
    parts = name.split(".")
    if any(part in ("local", "frozen") for part in parts):
        return True
    if private is None:
        return any(part.startswith(("head", "clf_")) for part in parts)
    return is_named(name, private)


def is_named(name: str, wanted: Collection[str]) -> bool:
    """Whether an array's name has one of the wanted ones in it, each a part or some in a row: ``a.b``."""
    return any(f".{one}." in f".{name}." for one in wanted)
