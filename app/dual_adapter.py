"""The adapters named shared, frozen and local in one model, with the branches that they form.

FedDAT (Chen et al., AAAI 2024, arXiv 2308.12305): the student branch has the shared adapter A_s in place,
the teacher branch (the dual-adapter teacher, DAT) the mean of Â_s, the frozen copy of A_s as received, and
of the client's own A_c.
"""

import copy
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, cast

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .learner import Branch, Learner, Role

ROLES: tuple[Role, ...] = ("shared", "frozen", "local")

# Which adapters a branch activates, each with its share in the sum: a number, or one for each row of a batch.
Shares = Mapping[Role, float | Tensor]
BRANCHES: dict[Branch, Shares] = {
    "student": {"shared": 1.0},
    "teacher": {"frozen": 0.5, "local": 0.5},
    "local": {"local": 1.0},
    "mixed": {"shared": 0.5, "local": 0.5},
}

Forward = Callable[[Any, Any], Tensor]


class Split(Protocol):
    """A model's forward in two parts, of which the branches share the first."""

    def trunk(self, batch: Any) -> Any:
        """Compute the frozen part up to the first adapter; no adapter is in place."""

    def features(self, trunk: Any) -> Tensor:
        """Compute the features (n, width) from the trunk on, with whichever adapters are in place."""


class Whole(NamedTuple):
    """Features that were not computed: of a model that cannot be parted before its head."""

    batch: Any
    branch: Branch


class DualAdapter(Learner):
    """Three adapters of one kind in a frozen model.

    Branches are computed as in evaluation, also after `train`: dropout would draw anew in each of the passes
    that the method compares, and the teacher's two passes would not agree.

    Parameters
    ----------
    model : nn.Module
        Any model that PEFT can adapt. The adapters are put into it, and its own weights are frozen.
    config : PeftConfig
        What an adapter is: LoRA, this project's bottleneck, or another kind whose layers have a scale. It is
        left as it is. Its `modules_to_save` may name the head, and nothing else that the model has.
    head : str, optional
        Name of the submodule that is trained in full and stays private. None: there is none.
    seed : int
        The first weights of all adapters are a function of it. `frozen` starts as `shared`.
    forward : callable, optional
        Model and batch → logits (n, classes); ``model(**batch).logits`` if not given.
    split : callable, optional
        Makes a `Split` of the adapted model, where its family knows how. Results are those of `forward`.

    Attributes
    ----------
    peft : PeftModel
        The model with the three adapters, named by their roles.
    branches : dict
        Branch → shares of the adapters in it.
    parameters_of : dict
        Role → parameters by the name they have on the wire: PEFT's, without the adapter's name.

    Raises
    ------
    ValueError
        One line: the model has adapters already, PEFT finds no place in it, the kind of adapter has no scale,
        or the head is not there or is adapted itself.

    Examples
    --------
    >>> dual = DualAdapter(model, LoraConfig(r=8, target_modules=["query", "value"]), head="classifier")
    >>> with dual.branch("teacher"):
    ...     logits = dual.logits(batch)
    >>> logits.shape  # (batch, classes)
    torch.Size([4, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        config: PeftConfig,
        head: str | None = None,
        seed: int = 0,
        *,
        forward: Forward | None = None,
        split: Callable[[Any], Split | None] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ValueError(f"model: {type(model).__name__}; allowed: a torch.nn.Module")
        if head is not None:  # before the model is changed: with the right name it can be given again
            _check_head(model, head)
        self.peft = _adapted(model, config, head, seed)
        self.peft.eval()
        self.parameters_of = {role: dict(_named(self.peft, role)) for role in ROLES}
        self._layers: list[Any] = [m for m in self.peft.modules() if isinstance(m, BaseTunerLayer)]
        for layer in self._layers:
            if not isinstance(getattr(layer, "scaling", None), dict):
                raise ValueError(
                    f"config: adapters of type {config.peft_type} have no scale, and no mean of two; allowed:"
                    " LORA, BOTTLENECK, BLOCK_PROMPT"
                )
        # LoRA has a scale of its own; a branch's share multiplies it.
        self._scales = [dict(layer.scaling) for layer in self._layers]
        self.branches = dict(BRANCHES)
        self._forward = forward or _logits_of
        self._inner = False
        if head is not None:
            self.answer_with(_unadapted(self.model, head).requires_grad_(True))
            self._inner = True
        self.load("frozen", self.state("shared"))
        for role in ROLES:
            for parameter in self.parameters_of[role].values():
                cast(nn.Parameter, parameter).requires_grad_(role != "frozen")
        self._split = split(self.model) if split else None
        # Whether the head inside comes last: then its input is all that the logits need. Found at first use.
        self._head_is_last: bool | None = None
        self.remember_first_weights()
        self.activate("student")

    @property
    def model(self) -> Any:
        """The model with the adapters inside, without PEFT's wrapping."""
        return self.peft.get_base_model()

    @property
    def adapter_names(self) -> frozenset[str]:
        """Names, among what is shared, of an adapter's weights."""
        return frozenset(self.parameters_of["shared"])

    def receive(self, arrays: Mapping[str, Tensor]) -> None:
        """Take A_s, and a head that travels, as they arrive from the server; Â_s becomes a copy of A_s."""
        super().receive(arrays)
        self.load("frozen", self.state("shared"))

    def train(self, mode: bool = True) -> "DualAdapter":
        """Compute as in evaluation, whatever `mode` is."""
        return super().train(False)

    def activate(self, branch: Branch | None) -> None:
        """Put a branch's adapters in place; None takes all out."""
        if branch is not None and branch not in BRANCHES:
            raise ValueError(f"branch = {branch!r}; allowed: {', '.join(map(repr, BRANCHES))}")
        if branch is not None:
            super().activate(branch)
        if self.model.training:  # by the host's own hand: `model.train()`
            self.peft.eval()
        shares = self.branches[branch] if branch else {}
        for layer, scales in zip(self._layers, self._scales, strict=True):
            # PEFT's own `set_adapter` would switch gradients on and off as well.
            layer._active_adapter = list(shares)
            for role, share in shares.items():
                if role in scales:  # PEFT may place an adapter in some layers only
                    layer.scaling[role] = scales[role] * share

    def forward(self, batch: Any, branch: Branch) -> Tensor:
        """Compute a branch's logits by one plain forward of the whole model."""
        logits = self._run(batch, branch)
        return logits if self._inner else self.classify(logits)

    @torch.no_grad()
    def trunk(self, batch: Any) -> Any:
        """Compute the frozen part up to the first adapter, the same for every branch."""
        if self._split is None:
            return batch
        with self.branch(self._branch):
            self.activate(None)
            return self._split.trunk(batch)

    def features(self, trunk: Any, branch: Branch) -> Any:
        """Compute what the head takes, from the trunk on; a `Whole` where the head is not the model's end."""
        if self._split is not None:
            with self.branch(branch):
                return self._split.features(trunk)
        if not self._inner:
            return self._run(trunk, branch)
        if self._head_is_last is None:
            with torch.no_grad():
                self._head_is_last = self._run_to_head(trunk, branch)[1]
        if self._head_is_last:
            return self._run_to_head(trunk, branch)[0]
        return Whole(trunk, branch)

    def classify(self, features: Any) -> Tensor:
        """Compute the logits (n, classes) of features."""
        return self(*features) if isinstance(features, Whole) else super().classify(features)

    def _run(self, batch: Any, branch: Branch) -> Tensor:
        with self.branch(branch):
            return self._forward(self.model, batch)

    def _run_to_head(self, batch: Any, branch: Branch) -> tuple[Any, bool]:
        """Return what the head inside is given, and whether it takes that alone and gives the logits."""
        calls: list[tuple[Any, bool, Any]] = []
        hook = cast(nn.Module, self.head).register_forward_hook(
            lambda _, args, kwargs, output: calls.append((args, bool(kwargs), output)), with_kwargs=True
        )
        try:
            logits = self._run(batch, branch)
        finally:
            hook.remove()
        if len(calls) != 1:
            return None, False
        (args, named, output) = calls[0]
        return args[0] if args else None, len(args) == 1 and not named and output is logits


def _adapted(model: nn.Module, config: PeftConfig, head: str | None, seed: int) -> PeftModel:
    """Put three adapters into a model."""
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("the model has adapters already; allowed: a model without, one for each DualAdapter")
    config = copy.deepcopy(config)  # PEFT writes into it
    if saved := getattr(config, "modules_to_save", None):
        if not _is_head(model, saved, head):
            raise ValueError(
                f"config: modules_to_save = {saved!r}; allowed: None, and `head` for what is trained in full"
            )
        cast(Any, config).modules_to_save = None
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT asks transformers by a name that it is about to give up; whoever reads it can do nothing.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            torch.manual_seed(seed)
            # Not `get_peft_model`: for some task types it has heads of its own.
            peft = PeftModel(model, copy.deepcopy(config), adapter_name="shared")
            for role in ROLES[1:]:
                peft.add_adapter(role, copy.deepcopy(config))
    except Exception as error:  # whatever a model lacks; a module without weights ends in StopIteration
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{type(model).__name__} cannot be adapted by PEFT: {reason}") from error
    return peft


def _is_head(model: nn.Module, saved: Collection[str], head: str | None) -> bool:
    """Whether modules to save are the head; the names that PEFT adds for a task may be of nothing here."""

    def is_named(module: str, name: str) -> bool:
        return f".{module}".endswith(f".{name}")

    others = [name for name in saved if head is None or not is_named(head, name)]
    there = [module for module, _ in model.named_modules()]
    return len(others) < len(saved) and not any(is_named(module, name) for module in there for name in others)


def _check_head(model: nn.Module, name: str) -> None:
    """Refuse a head that is not there, or of which a part is frozen elsewhere."""
    try:
        head = model.get_submodule(name) if name else None
    except AttributeError:
        head = None
    if head is None:
        there = ", ".join(child for child, _ in model.named_children())
        raise ValueError(f"head = {name!r} is not a submodule of {type(model).__name__}; it has {there}")
    if shared := _tied(model, head):
        raise ValueError(
            f"head = {name!r} shares a weight with {shared!r}, which must not be trained; allowed: a head of"
            " its own weights, or None"
        )


def _unadapted(model: nn.Module, name: str) -> nn.Module:
    """Return the head, in and around which no adapter may be."""
    head, parts = model.get_submodule(name), name.split(".")
    around = [model.get_submodule(".".join(parts[:end])) for end in range(1, len(parts))]
    if any(isinstance(module, BaseTunerLayer) for module in (*around, *head.modules())):
        raise ValueError(
            f"head = {name!r} is adapted as well; allowed: a submodule that `target_modules` leaves alone"
        )
    return head


def _tied(model: nn.Module, head: nn.Module) -> str | None:
    """Name a weight outside the head that is also the head's."""
    own = {id(parameter) for parameter in head.parameters()}
    inside = {id(module) for module in head.modules()}
    for path, module in model.named_modules():
        if id(module) not in inside:
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in own:
                    return f"{path}.{name}"
    return None


def _logits_of(model: Any, batch: Any) -> Tensor:
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"batch: {type(batch).__name__}; allowed: a mapping of model inputs, or `forward` that takes it"
        )
    output = model(**batch)
    logits = getattr(output, "logits", None)
    if logits is None:
        kind = type(output).__name__
        raise ValueError(f"the model gives {kind} without logits; give `forward`, model and batch → logits")
    return logits


def _named(model: PeftModel, role: str) -> Iterator[tuple[str, nn.Parameter]]:
    # Modules of the model may bear a role's name as well: the adapter's name is the one after the tuner's.
    prefix = re.escape(cast(Any, model.base_model).prefix)
    marker = re.compile(rf"(.*\.{prefix}\w*)\.{role}(\..*)?")
    for name, parameter in model.named_parameters():
        if found := marker.fullmatch(name):
            yield found[1] + (found[2] or ""), parameter
