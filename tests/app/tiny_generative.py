"""Tiny generative models of every class that is promised, each with a processor, made of configurations.

Processors that could watch videos want a package for it; here they are made for pictures alone.
"""

import string
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.without_videos.no_videos import NoVideos
from tests.without_videos.no_videos import pictures_alone as without_videos

WORDS = (
    "what",
    "color",
    "is",
    "the",
    "small",
    "circle",
    "?",
    "there",
    "a",
    "red",
    "square",
    "blue",
    "yes",
    "no",
    "user",
    "assistant",
    ":",
)
SPECIAL = {
    "image_token": "<image>",
    "video_token": "<video>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
}
MARKS = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(SPECIAL.values())]
IMAGE, VIDEO, BEGIN, END = (MARKS.index(mark) for mark in ("<image>", "<video>", "<boi>", "<eoi>"))
# What Idefics3's and PaliGemma's processors add of their own lies behind the words.
VOCABULARY = 1400

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} :{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} IMAGE{% else %} {{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEEN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
QWEN_SEEN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_MARKS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": BEGIN,
    "vision_end_token_id": END,
}
SIZE = {"height": 32, "width": 32}


def tokenizer():
    """Make a tokenizer of a few words and all letters."""
    signs = string.ascii_lowercase + string.digits
    characters = [mark + sign for mark in ("", "##") for sign in signs]
    words = {word: index for index, word in enumerate(dict.fromkeys([*MARKS, *WORDS, *characters]))}
    made = Tokenizer(models.WordPiece(words, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=SPECIAL,
    )


def _llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SEEN),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    images = transformers.CLIPImageProcessorPil(size=SIZE, do_center_crop=False)
    processor = transformers.LlavaProcessor(
        images,
        tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _onevision():
    places = [[32, 32], [32, 64], [64, 32]]
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**SEEN, vision_use_head=False),
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=places,
    )
    processor = transformers.LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=places),
        tokenizer(),
        NoVideos(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def _idefics3():
    config = transformers.Idefics3Config(
        vision_config=SEEN, text_config=transformers.LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    template = TEMPLATE.replace("IMAGE", "<image>")
    processor = transformers.Idefics3Processor(images, tokenizer(), image_seq_len=1, chat_template=template)
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _smolvlm():
    config = transformers.SmolVLMConfig(
        vision_config=SEEN, text_config=transformers.LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2
    )
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    template = TEMPLATE.replace("IMAGE", "<image>")
    processor = transformers.SmolVLMProcessor(
        images, tokenizer(), NoVideos(), image_seq_len=1, chat_template=template
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def _qwen(kind, processor, vision, rope, **text):
    config = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, **rope}
    model = kind._from_config(
        kind.config_class(
            vision_config={**QWEN_SEEN, **vision},
            text_config={**TEXT, **text, "rope_parameters": config},
            **QWEN_MARKS,
        )
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 1024}
    )
    template = TEMPLATE.replace("IMAGE", "<boi><image><eoi>")
    return model, processor(images, tokenizer(), NoVideos(), chat_template=template)


def _qwen25():
    vision = {"depth": 2, "window_size": 16, "fullatt_block_indexes": [1]}
    classes = transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLProcessor
    return _qwen(*classes, vision, {})


def _qwen3():
    vision = {"depth": 3, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    classes = transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLProcessor
    return _qwen(*classes, vision, {"mrope_interleaved": True}, head_dim=16)


def _internvl():
    config = transformers.InternVLConfig(
        vision_config={**SEEN, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    processor = transformers.InternVLProcessor(
        GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=False),
        tokenizer(),
        NoVideos(),
        image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def _gemma3():
    config = transformers.Gemma3Config(
        vision_config={**SEEN, "vision_use_head": False},
        text_config={
            **TEXT,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
    )
    template = TEMPLATE.replace("IMAGE", "<boi>")
    images = Gemma3ImageProcessorPil(size=SIZE)
    processor = transformers.Gemma3Processor(images, tokenizer(), image_seq_length=4, chat_template=template)
    return transformers.Gemma3ForConditionalGeneration(config), processor


def _paligemma():
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**SEEN, vision_use_head=False),
        text_config=transformers.GemmaConfig(**TEXT, head_dim=16),
        image_token_index=IMAGE,
        projection_dim=32,
    )
    images = SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = 4
    template = TEMPLATE.replace("IMAGE", "<image>")
    processor = transformers.PaliGemmaProcessor(images, tokenizer(), chat_template=template)
    return transformers.PaliGemmaForConditionalGeneration(config), processor


MODELS = {
    "LLaVA": _llava,
    "LLaVA-OneVision": _onevision,
    "Idefics3": _idefics3,
    "SmolVLM": _smolvlm,
    "Qwen2.5-VL": _qwen25,
    "Qwen3-VL": _qwen3,
    "InternVL": _internvl,
    "Gemma 3": _gemma3,
    "PaliGemma": _paligemma,
}


@contextmanager
def pictures_alone():
    """Make and load processors without the packages that they want for videos."""
    with ExitStack() as stack:
        without_videos(lambda of, name, value: stack.enter_context(patch.object(of, name, value)))
        yield


def made(name, folder: Path) -> Path:
    """Save a model of large random weights, so that what it says depends on what it sees."""
    torch.manual_seed(0)
    with pictures_alone():
        model, processor = MODELS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder
