"""Small backbones of four architectures with bottleneck adapters."""

import torch
from peft import (
    get_peft_model,
)
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ViltConfig,
    ViltModel,
    ViTConfig,
    ViTModel,
)

from app.bottleneck import BottleneckConfig, BottleneckLayer

HIDDEN, LAYERS, WIDTH = 32, 3, 4
ADAPTER_PARAMETERS = 2 * HIDDEN * WIDTH + HIDDEN + WIDTH
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
IMAGES = {"image_size": 32, "patch_size": 16}
BACKBONES = {
    "vilt": lambda: ViltModel(ViltConfig(**SIZES, **IMAGES, vocab_size=64)),
    "bert": lambda: BertModel(BertConfig(**SIZES, vocab_size=64)),
    "vit": lambda: ViTModel(ViTConfig(**SIZES, **IMAGES)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, **IMAGES)),
}
PLACES = {
    "vilt": "encoder.layer.{}.output",
    "bert": "encoder.layer.{}.output",
    "vit": "layers.{}.mlp",
    "clip": "encoder.layers.{}.mlp",
}
# CLIP stands for a model whose modules are named by the user.
TARGETS = {"vilt": None, "bert": None, "vit": None, "clip": ["mlp"]}


def backbone(kind, seed=0):
    torch.manual_seed(seed)
    return BACKBONES[kind]().eval()


def config(kind, **fields):
    # Larger weights than published, so that an adapter that is missing or wrong shows.
    fields = {"reduction_factor": HIDDEN // WIDTH, "target_modules": TARGETS[kind], "init_std": 0.5} | fields
    return BottleneckConfig(**fields)


def adapted(kind, adapters=("default",), **fields):
    model = get_peft_model(backbone(kind), config(kind, **fields), adapter_name=adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, config(kind, **fields))
    return model.eval()


def batch(kind):
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    if kind != "bert":
        inputs["pixel_values"] = torch.randn(3, 3, 32, 32, generator=generator)
    if kind in ("bert", "vilt"):
        inputs["input_ids"] = torch.randint(0, 64, (3, 5), generator=generator)
    return inputs


def run(model, kind, rows=slice(None), **kwargs):
    torch.manual_seed(2)  # ViLT draws the order of its patches
    return model(**{k: v[rows] for k, v in batch(kind).items()}, **kwargs).last_hidden_state


def layers(model):
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


def linear(layer, role, adapter="default"):
    return getattr(layer, f"bottleneck_{role}")[adapter]
