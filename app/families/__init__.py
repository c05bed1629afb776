"""Kinds of foundation models: one file each, found by the ``model_type`` of a model's configuration."""

import importlib
import inspect
import pkgutil

from .family import Family

__all__ = ["FAMILIES", "Family", "family_of"]


def _found() -> tuple[Family, ...]:
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    kinds = (
        kind
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Family) and kind.__module__ == module.__name__
    )
    return tuple(kind() for kind in kinds if not inspect.isabstract(kind))


FAMILIES = _found()


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
