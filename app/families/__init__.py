"""Kinds of foundation models: one file each, found by the ``model_type`` of a model's configuration."""

from ..discovery import kinds_in
from .family import Family

__all__ = ["FAMILIES", "Family", "family_of"]


# Without architectures a kind is how another one answers, see `Family.answering_by`.
FAMILIES: tuple[Family, ...] = tuple(
    kind()
    for kind in kinds_in(__name__, __path__, Family)  # type: ignore[type-abstract]
    if kind.architectures
)


def family_of(model_type: str) -> Family:
    """Return the family of models with this ``model_type``.

    Raises
    ------
    ValueError
        There is none.
    """
    for family in FAMILIES:
        if model_type in family.architectures:
            return family
    raise ValueError(f"its model_type is {model_type!r}")
