"""A small ViLT in which every weight matters, what to feed it, and its branches computed in another way."""

import copy
import shutil
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, relu
from transformers import ViltConfig, ViltModel

from app.adapters import adapt, adapter_config
from app.backbones import Backbone, fingerprint, load_backbone
from app.dual_adapter import ROLES, DualAdapter
from app.families.vilt import ViltBlocks, keep_patch_order
from app.processor import Processor

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 16,
    "max_position_embeddings": 8,
    "vocab_size": 64,
}


@pytest.fixture(scope="session")
def small_vilt() -> Callable[..., ViltModel]:
    """Return a builder of untouched ViLTs; keywords are entries of the configuration."""

    def build(seed: int = 0, **entries) -> ViltModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ViltModel(ViltConfig(**{**SIZES, **entries})).eval().requires_grad_(False)
            # As it comes, positions are zero and biases too: nothing would show that they are left out.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
        return model

    return build


@pytest.fixture
def backbone(small_vilt) -> Backbone:
    """Return a backbone of random weights, without a tokenizer."""
    model = keep_patch_order(small_vilt())
    processor = Processor(None, image_size=32, text_length=8, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
    return Backbone("small", model, processor, fingerprint(model))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Return four processed examples, two of them with padded text."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[1, 4:] = mask[3, 2:] = 0
    return {
        "input_ids": torch.randint(0, 64, (4, 6), generator=generator),
        "attention_mask": mask,
        "pixel_values": torch.randn(4, 3, 32, 32, generator=generator),
    }


def parts(model) -> ViltBlocks:
    """Return a ViLT in its parts."""
    processor = Processor(None, image_size=32, text_length=8, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
    return ViltBlocks(model, processor)


@pytest.fixture
def states(small_vilt, batch) -> tuple[Tensor, Tensor]:
    """Return what enters the first block, and its mask."""
    hidden, mask = parts(keep_patch_order(small_vilt())).embed(batch)
    assert hidden.shape[1] == mask.shape[2] == mask.shape[3] == 6 + 1 + 4
    return hidden, mask


@pytest.fixture
def dual(backbone) -> Callable[..., DualAdapter]:
    """Return a builder of dual adapters whose three adapters differ visibly."""

    def build(kind: str = "bottleneck", on: Backbone = backbone, seed: int = 3) -> DualAdapter:
        config = adapter_config(
            kind,
            reduction_factor=4,
            lora_rank=3,
            prompt_tokens=3,
            width=on.width,
            prompted=on.family.prompted,
        )
        adapter = adapt(on, config)
        generator = torch.Generator().manual_seed(seed)
        for role in ROLES:
            state = adapter.state(role)
            adapter.load(role, {n: torch.randn(v.shape, generator=generator) * 0.3 for n, v in state.items()})
        return adapter

    return build


@pytest.fixture
def plain_features(small_vilt) -> Callable[..., Tensor]:
    """Return a plain forward of an untouched ViLT, to which hooks add what the adapters do.

    It takes the model inputs and, for every adapter in place, its weights by wire name with its share.
    """
    untouched = keep_patch_order(small_vilt())

    def features(inputs: Mapping[str, Tensor], adapters: list[tuple[Mapping[str, Tensor], float]]) -> Tensor:
        model = copy.deepcopy(untouched)
        for name, module in model.named_modules():
            prefix = f"base_model.model.{name}."
            if any(key.startswith(prefix + "bottleneck_down") for key in adapters[0][0]):
                module.register_forward_hook(_bottlenecks(prefix, adapters))
            if any(key.startswith(prefix + "lora_A") for key in adapters[0][0]):
                module.register_forward_hook(_loras(prefix, adapters))
            if f"{prefix}block_prompt_tokens" in adapters[0][0]:
                _prompt(module, prefix, adapters)
        return model(**inputs).pooler_output

    return features


def _bottlenecks(prefix: str, adapters):
    def hook(module, args, hidden):
        total = hidden
        for weights, share in adapters:
            down, up = (
                [weights[f"{prefix}bottleneck_{which}.{part}"] for part in ("weight", "bias")]
                for which in ("down", "up")
            )
            total = total + share * linear(relu(linear(hidden, *down)), *up)
        return total

    return hook


def _prompt(block, prefix: str, adapters):
    """Put tokens before those that enter a block, and cut off what it makes of them."""
    tokens = sum(share * weights[f"{prefix}block_prompt_tokens"] for weights, share in adapters)

    def before(module, args):
        hidden, mask = args[:2]
        longer = torch.cat([tokens.expand(len(hidden), -1, -1), hidden], dim=1)
        hides = mask[:, :, :1].expand(-1, -1, longer.shape[1], -1)
        sees = torch.zeros(*hides.shape[:3], len(tokens))
        return longer, torch.cat([sees, hides], dim=3), *args[2:]

    def after(module, args, output):
        if isinstance(output, tuple):
            return output[0][:, len(tokens) :], *output[1:]
        return output[:, len(tokens) :]

    block.register_forward_pre_hook(before)
    block.register_forward_hook(after)


def _loras(prefix: str, adapters):
    def hook(module, args, output):
        for weights, share in adapters:
            update = weights[f"{prefix}lora_B.weight"] @ weights[f"{prefix}lora_A.weight"]
            output = output + share * 2.0 * linear(args[0], update)  # lora_alpha / r is 2
        return output

    return hook


@pytest.fixture
def folder(small_backbone, tmp_path):
    """Return a backbone's folder that the test may damage."""
    return shutil.copytree(small_backbone, tmp_path / "backbone")


def fresh(name, *arguments):
    """Load without the cache."""
    return load_backbone.__wrapped__(str(name), *arguments)
