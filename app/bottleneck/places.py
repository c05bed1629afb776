"""Where adapters go in a model whose user names no places: after the feed-forward network of every block."""

import re
from collections.abc import Iterable

from torch import nn
from transformers.pytorch_utils import Conv1D


def feed_forward_places(model: nn.Module) -> list[str]:
    """Find the modules that end the feed-forward networks of a model, by structure.

    A block is an item of an `nn.ModuleList` or `nn.Sequential`. Its feed-forward network is a linear layer
    ``d → w`` (or ``2w``, where a gate and its value are one) and a later one ``w → d``, none of them a part
    of what is called attention; the last such pair counts. Its place is the block's own child that holds the
    second of them: the block's end where a module ends it, as in BERT and ViLT, else before the residual sum.

    Parameters
    ----------
    model : nn.Module
        Of any library; bottleneck adapters that it has already are passed over.

    Returns
    -------
    list of str
        Names in the model, one a block, in its order; empty where no block has such a network.
    """
    modules = dict(model.named_modules())
    linears: dict[str, list[tuple[str, int, int]]] = {}
    for name, module in modules.items():
        parts = name.split(".")
        sizes = _in_and_out(module)
        if sizes is None or any(part.startswith("bottleneck_") for part in parts):
            continue
        for end in range(len(parts) - 1, 0, -1):
            if isinstance(modules[".".join(parts[: end - 1])], nn.ModuleList | nn.Sequential):
                if not re.search("attention|attn", ".".join(parts[end:]), re.IGNORECASE):
                    child = ".".join(parts[: end + 1])
                    # A list cannot be called: its item is.
                    place = name if isinstance(modules[child], nn.ModuleList) else child
                    linears.setdefault(".".join(parts[:end]), []).append((place, *sizes))
                break
    found = (_last_of_pair(block) for block in linears.values())
    return [place for place in found if place is not None]


def as_expression(places: Iterable[str], model: nn.Module) -> str:
    r"""Write places as a regular expression for `target_modules` that matches them and no other module.

    Numbers stand as ``\d+`` where that is exact.
    """
    places, names = list(places), [name for name, _ in model.named_modules()]
    forms: dict[str, list[str]] = {}
    for place in places:
        parts = [r"\d+" if part.isdigit() else re.escape(part) for part in place.split(".")]
        forms.setdefault(r"\.".join(parts), []).append(place)
    for form, fitting in list(forms.items()):
        if {name for name in names if re.fullmatch(form, name)} != set(fitting):
            del forms[form]
            forms.update({re.escape(place): [place] for place in fitting})
    return "|".join(forms)


def _in_and_out(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return sizes if isinstance(sizes[0], int) and isinstance(sizes[1], int) else None  # type: ignore[return-value]


def _last_of_pair(block: list[tuple[str, int, int]]) -> str | None:
    for index in range(len(block) - 1, 0, -1):
        place, inner, outer = block[index]
        if any(d == outer and w in (inner, 2 * inner) for _, d, w in block[:index]):
            return place
    return None
