"""The adapters named shared, frozen and local on one backbone, with the branches that they form.

FedDAT (Chen et al., AAAI 2024, arXiv 2308.12305): the student branch has the shared adapter A_s in place,
the teacher branch (the dual-adapter teacher, DAT) the mean of Â_s, the frozen copy of A_s as received, and
of the client's own A_c.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .backbones import Backbone, choose_device, open_backbone
from .bottleneck import BottleneckConfig, BottleneckLayer
from .encoder import apply, apply_to_first, blocks, embed, pool
from .settings import Settings
from .trained_model import Branch, Role, TrainedModel

ROLES: tuple[Role, ...] = ("shared", "frozen", "local")

# Which adapters a branch activates, each with its share in the sum.
BRANCHES: dict[str, dict[str, float]] = {
    "student": {"shared": 1.0},
    "teacher": {"frozen": 0.5, "local": 0.5},
    "local": {"local": 1.0},
}


class Trunk(NamedTuple):
    """What all branches have in common: the frozen computation up to the first adapter."""

    hidden: Tensor
    mask: Tensor | None


# Query and value by their names in a ViLT and in a ViT.
LORA_TARGETS = {"vilt": ["query", "value"], "vit": ["q_proj", "v_proj"]}


def adapter_config(
    kind: str, *, reduction_factor: int = 16, lora_rank: int = 8, width: int, model_type: str = "vilt"
) -> PeftConfig:
    """Describe an adapter in PEFT's terms.

    Parameters
    ----------
    kind : str
        ``"bottleneck"`` (published: after the feed-forward network of every block) or ``"lora"`` (on query
        and value).
    reduction_factor : int
        Bottleneck: the backbone's width over the adapter's width.
    lora_rank : int
        LoRA: rank of the update.
    width : int
        The backbone's width.
    model_type : str
        The backbone's kind, as its configuration has it: ``"vilt"`` or ``"vit"``.

    Raises
    ------
    ValueError
        If the kind is unknown, `reduction_factor` does not divide `width`, or `lora_rank` exceeds `width`.
    """
    if kind == "bottleneck":
        if reduction_factor > width or width % reduction_factor:
            raise ValueError(
                f"reduction-factor = {reduction_factor}; allowed: a divisor of the backbone's width, {width}"
            )
        return BottleneckConfig(task_type="FEATURE_EXTRACTION", reduction_factor=reduction_factor)
    if kind == "lora":
        if lora_rank > width:
            raise ValueError(f"lora-rank = {lora_rank}; allowed: 1 to the backbone's width, {width}")
        return LoraConfig(
            task_type="FEATURE_EXTRACTION",
            r=lora_rank,
            lora_alpha=2 * lora_rank,
            target_modules=LORA_TARGETS[model_type],
        )
    raise ValueError(f"adapter = {kind!r}; allowed: 'bottleneck', 'lora'")


class DualAdapter(TrainedModel):
    """Three adapters of one kind on a frozen backbone.

    Parameters
    ----------
    backbone : Backbone
        Its weights are shared, not copied; it is left as it is.
    config : PeftConfig
        What an adapter is: the bottleneck, or PEFT's LoRA.
    seed : int
        The first weights of all adapters are a function of it. `frozen` starts as `shared`.

    Attributes
    ----------
    peft : PeftModel
        The backbone with the three adapters, named by their roles.
    parameters_of : dict
        Role → parameters by the name they have on the wire: PEFT's, without the adapter's name.
    initial_shared, initial_local : dict
        The adapters as they were made: the federation's first, and every client's first.
    """

    def __init__(self, backbone: Backbone, config: PeftConfig, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.peft: PeftModel = get_peft_model(backbone.fork(), config, adapter_name="shared")
            for role in ROLES[1:]:
                self.peft.add_adapter(role, config)
        self.peft.eval()
        self.parameters_of = {role: dict(_named(self.peft, role)) for role in ROLES}
        self._layers: list[Any] = [m for m in self.peft.modules() if isinstance(m, BaseTunerLayer)]
        # LoRA has a scale of its own; a branch's share multiplies it.
        self._scales = [dict(layer.scaling) for layer in self._layers]
        self._first, self._output = self._find_first_adapter()
        self.load("frozen", self.state("shared"))
        self.initial_shared, self.initial_local = self.state("shared"), self.state("local")
        for role in ROLES:
            for parameter in self.parameters_of[role].values():
                parameter.requires_grad_(role != "frozen")

    @property
    def model(self):
        """The backbone with the adapters inside, without PEFT's wrapping."""
        return self.peft.get_base_model()

    def receive(self, shared: Mapping[str, Tensor]) -> None:
        """Take A_s as it arrives from the server; Â_s becomes its copy."""
        self.load("shared", shared)
        self.load("frozen", shared)

    def train(self, mode: bool = True) -> "DualAdapter":
        """Compute as in evaluation, whatever `mode` is: the backbone is frozen, and has no dropout."""
        return super().train(False)

    def activate(self, branch: Branch | None) -> None:
        """Put a branch's adapters in place; None takes all out."""
        shares = BRANCHES[branch] if branch else {}
        for layer, scales in zip(self._layers, self._scales, strict=True):
            # PEFT's own `set_adapter` would switch gradients on and off as well.
            layer._active_adapter = list(shares)
            for role, share in shares.items():
                layer.scaling[role] = scales[role] * share

    def forward(self, inputs: Mapping[str, Tensor], branch: Branch) -> Tensor:
        """Compute a branch's features (batch, width) by one plain forward of the whole model."""
        self.activate(branch)
        return self.peft(**self._normalised(inputs)).pooler_output

    @torch.no_grad()
    def trunk(self, inputs: Mapping[str, Tensor]) -> Trunk:
        """Compute the frozen part up to the first adapter, the same for every branch."""
        self.activate(None)
        hidden, mask = embed(self.model, self._normalised(inputs))
        for block in blocks(self.model)[: self._first]:
            hidden = apply(block, hidden, mask)
        return Trunk(hidden, mask)

    def features(self, trunk: Trunk, branch: Branch) -> Tensor:
        """Compute a branch's features (batch, width) from the trunk on."""
        self.activate(branch)
        hidden = trunk.hidden if self._output is None else self._output.adapt(trunk.hidden)
        rest = blocks(self.model)[self._first :]
        for block in rest[:-1]:
            hidden = apply(block, hidden, trunk.mask)
        for block in rest[-1:]:
            hidden = apply_to_first(block, hidden, trunk.mask)
        return pool(self.model, hidden)

    def _find_first_adapter(self) -> tuple[int, BottleneckLayer | None]:
        """Return the number of blocks in the trunk, and the adapter right after it, if there is one."""
        for index, block in enumerate(blocks(self.model)):
            tuned = [module for module in block.modules() if isinstance(module, BaseTunerLayer)]
            last = getattr(block, "output", None)
            if tuned == [last] and isinstance(last, BottleneckLayer):
                return index + 1, last
            if tuned:
                return index, None
        raise ValueError("the adapter was placed in no Transformer block")


def open_adapter(settings: Settings) -> DualAdapter:
    """Return the process's dual adapter for a run's settings, with the run's first weights when it is made.

    Building one takes far longer than loading other weights into it, so clients of one process take turns
    with it.

    Raises
    ------
    ValueError
        If the settings' backbone, adapter or device cannot be had.
    """
    return _open_adapter(
        open_backbone(settings),
        settings.adapter,
        settings.reduction_factor,
        settings.lora_rank,
        settings.seed,
        str(choose_device(settings.device)),
    )


@functools.lru_cache(maxsize=1)
def _open_adapter(
    backbone: Backbone, kind: str, reduction_factor: int, lora_rank: int, seed: int, device: str
) -> DualAdapter:
    model_type = backbone.model.config.model_type
    if model_type not in LORA_TARGETS:
        raise ValueError(
            f"backbone = {backbone.name!r} has no Transformer blocks for adapters; "
            "allowed with method = 'full'"
        )
    config = adapter_config(
        kind,
        reduction_factor=reduction_factor,
        lora_rank=lora_rank,
        width=backbone.width,
        model_type=model_type,
    )
    return DualAdapter(backbone, config, seed).to(device)


def _named(model: PeftModel, role: str) -> Iterator[tuple[str, nn.Parameter]]:
    # Names of the backbone's own parameters may hold a role's name too, but not the tuner's prefix.
    marker, prefix = f".{role}", model.base_model.prefix
    for name, parameter in model.named_parameters():
        if f"{marker}." in f"{name}." and f".{prefix}" in name:
            yield name.replace(marker, "", 1), parameter
