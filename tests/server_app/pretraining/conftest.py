"""Tiny models and captioned images for stage 1."""

from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from app.backbones import load_backbone
from server_app.pretraining.dynamic_weighting import DynamicWeighting, Student, split_aside
from server_app.pretraining.frozen_models import load_frozen

COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}
SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
# As in `small_backbone`: with less the outputs hardly depend on the inputs.
SHAPE |= {"initializer_range": 0.2}
VISION = CLIPVisionConfig(**SHAPE, image_size=48, patch_size=16, projection_dim=8)


def tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "the", "picture", "is", *COLORS]
    model = Tokenizer(
        models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>")
    )
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def images() -> CLIPImageProcessor:
    half = [0.5, 0.5, 0.5]
    size = {"height": 48, "width": 48}
    return CLIPImageProcessor(size=size, do_center_crop=False, image_mean=half, image_std=half)


def llama() -> LlamaConfig:
    return LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=len(tokenizer()))


@pytest.fixture(scope="session")
def llava(tmp_path_factory) -> Path:
    """Save a LLaVA of a few thousand random weights."""
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(1)
    config = LlavaConfig(
        vision_config=VISION,
        text_config=llama(),
        image_token_id=4,
        image_seq_length=9,
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(images(), tokenizer(), patch_size=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """Save a CLIP, with its text half."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)
    text = {**SHAPE, "vocab_size": 20}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION.to_dict(), projection_dim=8)).save_pretrained(
        folder
    )
    images().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """Save a Llama."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(3)
    LlamaForCausalLM(llama()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def captioned() -> datasets.Dataset:
    """Return 40 images of one colour, with one or two captions that name it."""
    rows = []
    for index in range(40):
        color = list(COLORS)[index % 4]
        captions = [f"the picture is {color}", color][: 1 + index // 4 % 2]
        rows.append({"image": Image.new("RGB", (40, 20), COLORS[color]), "captions": captions})
    features = datasets.Features(image=datasets.Image(), captions=datasets.List(datasets.Value("string")))
    return datasets.Dataset.from_list(rows, features=features)


@pytest.fixture
def objective(small_backbone, llava, captioned) -> DynamicWeighting:
    """Return dynamic weighting of a whole backbone, with the two parts of the LLaVA."""
    torch.manual_seed(0)
    models = load_frozen(str(llava), str(llava), torch.device("cpu"))
    student = Student(load_backbone(str(small_backbone)))
    return DynamicWeighting(student, *models, *split_aside(captioned))
