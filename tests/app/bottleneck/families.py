"""Models of every family in their smallest, with where their bottlenecks belong, written down by hand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
    ViltConfig,
    ViltModel,
    ViTConfig,
    ViTModel,
)

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_TOKENS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_IMAGES = {"image_size": 32, "patch_size": 16}
_TEXT = {**_SIZES, **_TOKENS, "max_position_embeddings": 16}
_VISION = {**_SIZES, **_IMAGES, "hidden_size": 48, "num_hidden_layers": 3}
_T5 = {
    **_TOKENS,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}


def _blip() -> BlipForQuestionAnswering:
    # Its decoder attends to the text encoder with projections made for the image encoder: one width for all.
    text = {**_TEXT, **_NO_DROPOUT, "encoder_hidden_size": 32, "sep_token_id": 2}
    return BlipForQuestionAnswering(
        BlipConfig(
            text_config=text,
            vision_config={**_VISION, "hidden_size": 32},
            projection_dim=16,
            image_text_hidden_size=16,
        )
    )


class Block(nn.Module):
    """A block as somebody writes it at home."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
        hidden = hidden + self.mix(hidden)
        return hidden + self.narrow(torch.tanh(self.wide(hidden))), "beside it"


class Homemade(nn.Module):
    """A module of nobody's library, without a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleDict({"early": Block(16), "late": Block(16)})
        self.classifier = nn.Linear(16, 3)

    def forward(self, features: Tensor) -> Tensor:
        for stage in self.stages.values():
            features = stage(features)[0]
        return self.classifier(features)


class TorchEncoder(nn.Module):
    """torch's own Transformer with its fused path for evaluation."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, features: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.encoder(features, src_key_padding_mask=padding)


class Family(NamedTuple):
    make: Callable[[], nn.Module]
    inputs: str
    """What it takes, see `batch`."""
    places: dict[str, int]
    """Where a bottleneck belongs, and how wide the model is there."""
    targets: Any = None
    """`target_modules`, where it has to be told."""


def _each(form: str, count: int, width: int) -> dict[str, int]:
    return {form.format(i): width for i in range(count)}


_DUAL = _each("text_model.encoder.layers.{}.mlp", 2, 32) | _each("vision_model.encoder.layers.{}.mlp", 3, 48)
_T5_PLACES = _each("encoder.block.{}.layer.1.DenseReluDense", 2, 32) | _each(
    "decoder.block.{}.layer.2.DenseReluDense", 2, 32
)

FAMILIES = {
    "bert": Family(
        lambda: BertModel(BertConfig(**_SIZES, **_NO_DROPOUT, vocab_size=64)),
        "text",
        _each("encoder.layer.{}.output", 2, 32),
    ),
    "roberta": Family(
        lambda: RobertaForSequenceClassification(RobertaConfig(**_SIZES, **_NO_DROPOUT, vocab_size=64)),
        "text",
        _each("roberta.encoder.layer.{}.output", 2, 32),
    ),
    "distilbert": Family(
        lambda: DistilBertModel(
            DistilBertConfig(
                dim=32,
                n_layers=2,
                n_heads=2,
                hidden_dim=64,
                vocab_size=64,
                dropout=0.0,
                attention_dropout=0.0,
            )
        ),
        "text",
        _each("transformer.layer.{}.ffn", 2, 32),
    ),
    "vit": Family(
        lambda: ViTModel(ViTConfig(**_SIZES, **_NO_DROPOUT, **_IMAGES)),
        "image",
        _each("layers.{}.mlp", 2, 32),
    ),
    "deit": Family(
        lambda: DeiTModel(DeiTConfig(**_SIZES, **_NO_DROPOUT, **_IMAGES)),
        "image",
        _each("layers.{}.mlp", 2, 32),
    ),
    "dinov2": Family(
        lambda: Dinov2Model(
            Dinov2Config(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                mlp_ratio=2,
                layerscale_value=0.5,
                **_IMAGES,
            )
        ),
        "image",
        _each("encoder.layer.{}.mlp", 2, 32),
    ),
    "dinov2-swiglu": Family(
        lambda: Dinov2Model(
            Dinov2Config(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                use_swiglu_ffn=True,
                layerscale_value=0.5,
                **_IMAGES,
            )
        ),
        "image",
        _each("encoder.layer.{}.mlp", 2, 32),
    ),
    "swin": Family(
        lambda: SwinModel(
            SwinConfig(
                image_size=32,
                patch_size=4,
                embed_dim=16,
                depths=[1, 2],
                num_heads=[2, 4],
                window_size=4,
                drop_path_rate=0.0,
            )
        ),
        "image",
        _each("encoder.layers.0.blocks.{}.mlp", 1, 16) | _each("encoder.layers.1.blocks.{}.mlp", 2, 32),
    ),
    "clip": Family(
        lambda: CLIPModel(
            CLIPConfig(text_config={**_TEXT, "eos_token_id": 63}, vision_config=_VISION, projection_dim=16)
        ),
        "text and image",
        _DUAL,
    ),
    "clip-vision": Family(
        lambda: CLIPVisionModel(CLIPVisionConfig(**_VISION)), "image", _each("encoder.layers.{}.mlp", 3, 48)
    ),
    "siglip": Family(
        lambda: SiglipModel(
            SiglipConfig(text_config={**_TEXT, "projection_size": 48}, vision_config=_VISION)
        ),
        "text and image",
        _DUAL,
    ),
    "vilt": Family(
        lambda: ViltModel(ViltConfig(**_SIZES, **_NO_DROPOUT, **_IMAGES, vocab_size=64)),
        "text and image",
        _each("encoder.layer.{}.output", 2, 32),
    ),
    "blip": Family(
        _blip,
        "text, image and labels",
        _each("vision_model.encoder.layers.{}.mlp", 3, 32)
        | _each("text_encoder.encoder.layer.{}.output", 2, 32)
        | _each("text_decoder.bert.encoder.layer.{}.output", 2, 32),
    ),
    "t5": Family(lambda: T5ForConditionalGeneration(T5Config(**_T5)), "text and labels", _T5_PLACES),
    "t5-gated": Family(
        lambda: T5ForConditionalGeneration(T5Config(**_T5, feed_forward_proj="gated-gelu")),
        "text and labels",
        _T5_PLACES,
    ),
    "llama": Family(
        lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, **_TOKENS, num_key_value_heads=1)),
        "text",
        _each("model.layers.{}.mlp", 2, 32),
    ),
    "qwen2": Family(
        lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES, **_TOKENS, num_key_value_heads=1)),
        "text",
        _each("model.layers.{}.mlp", 2, 32),
    ),
    "gpt2": Family(
        lambda: GPT2LMHeadModel(
            GPT2Config(
                n_embd=32,
                n_layer=2,
                n_head=2,
                n_positions=32,
                **_TOKENS,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        ),
        "text",
        _each("transformer.h.{}.mlp", 2, 32),
    ),
    "torch": Family(TorchEncoder, "features of a sequence", _each("encoder.layers.{}.linear2", 2, 32)),
    "homemade": Family(
        Homemade, "features", {"stages.early": 16, "stages.late": 16}, targets=["early", "late"]
    ),
}
# Of these, what answers by generating.
GENERATIVE = ("blip", "t5", "t5-gated", "llama", "qwen2", "gpt2")


def base(family: str) -> nn.Module:
    """Make a family's model, always with the same weights."""
    torch.manual_seed(0)
    return FAMILIES[family].make().eval()


def batch(family: str) -> dict[str, Tensor]:
    """Return two examples."""
    generator = torch.Generator().manual_seed(1)
    kinds = FAMILIES[family].inputs
    if kinds == "features":
        return {"features": torch.randn(2, 16, generator=generator)}
    if kinds == "features of a sequence":
        return {"features": torch.randn(2, 5, 32, generator=generator)}
    inputs = {}
    if "text" in kinds:
        inputs["input_ids"] = torch.randint(4, 60, (2, 5), generator=generator)
        if family == "clip":
            inputs["input_ids"][:, -1] = 63  # it is read at the end of a text
    if "image" in kinds:
        inputs["pixel_values"] = torch.randn(2, 3, 32, 32, generator=generator)
    if "labels" in kinds:
        inputs["labels"] = torch.randint(4, 60, (2, 4), generator=generator)
    return inputs


def outputs(model: Any, family: str) -> Tensor:
    """Run a model on the batch and return what it computes, in one row."""
    torch.manual_seed(2)  # ViLT draws the order of its patches
    found = model(**batch(family))
    if isinstance(found, Tensor):
        return found.flatten()
    for names in (
        ("text_embeds", "image_embeds"),
        ("loss", "image_embeds"),
        ("logits",),
        ("last_hidden_state",),
    ):
        if all(getattr(found, name, None) is not None for name in names):
            return torch.cat([getattr(found, name).flatten() for name in names])
    raise AssertionError(type(found))


def objective(model: Any, family: str) -> Tensor:
    """Return a number that depends on every part of the model."""
    found = outputs(model, family)
    return found @ torch.randn(len(found), generator=torch.Generator().manual_seed(3))
