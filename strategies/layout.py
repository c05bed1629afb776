"""What a reply may hold: names, and the length of each axis."""

from collections.abc import Callable, Mapping

from flwr.app import ArrayRecord

# A length; or a name and the most that it may be, from 1: axes of one name have one length in a whole reply.
Axis = int | tuple[str, int]
Layout = Mapping[str, tuple[Axis, ...]]
# From the shapes of what a client is sent.
ReplyLayout = Callable[[Mapping[str, tuple[int, ...]]], Layout]


def shapes_of(arrays: ArrayRecord) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array."""
    return {name: tuple(array.shape) for name, array in arrays.items()}


def fits(shape: tuple[int, ...], axes: tuple[Axis, ...], lengths: dict[str, int]) -> bool:
    """Whether a shape is as declared; what named axes are long is put into `lengths`."""
    return len(shape) == len(axes) and all(
        length == axis
        if isinstance(axis, int)
        else 1 <= length <= axis[1] and lengths.setdefault(axis[0], length) == length
        for length, axis in zip(shape, axes, strict=True)
    )


def written(axes: tuple[Axis, ...], lengths: Mapping[str, int]) -> str:
    """Write down what `fits` allows, given the lengths that it found before."""
    said = [str(axis if isinstance(axis, int) else lengths.get(axis[0], f"1..{axis[1]}")) for axis in axes]
    return f"({', '.join(said)}{',' if len(said) == 1 else ''})"
