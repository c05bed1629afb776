"""What the files of a package define: one more file is one more kind, without a list to keep."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def kinds_in(package: str, path: Any, base: type[T]) -> Iterator[type[T]]:
    """Yield the concrete subclasses of `base` that the modules of a package define, by the files' names.

    Parameters
    ----------
    package, path
        The package's ``__name__`` and ``__path__``.
    base : type
        What they are subclasses of.
    """
    for info in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{info.name}")
        for kind in vars(module).values():
            own = inspect.isclass(kind) and kind.__module__ == module.__name__
            if own and issubclass(kind, base) and not inspect.isabstract(kind):
                yield kind
