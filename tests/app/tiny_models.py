"""Tiny models of other people's libraries, made of configurations, with a batch and targets for each."""

from types import SimpleNamespace

import torch
import transformers
from peft import LoraConfig
from torch import nn

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 16, "pad_token_id": 0}
SEEN = {**SIZES, "image_size": 32, "patch_size": 16}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape):
    return torch.randint(4, 50, shape, generator=torch.Generator().manual_seed(0))


IDS, PIXELS = tokens(4, 7), drawn(4, 3, 32, 32)
ANSWERS = torch.where(torch.arange(7) < 3, -100, IDS)
CLASSES = torch.tensor([0, 2, 1, 2])


class Nobodys(nn.Module):
    """A module of nobody's library: it takes a tensor and gives one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).tanh())


class Clip(nn.Module):
    """A host's own classifier on both encoders of a CLIP."""

    def __init__(self):
        super().__init__()
        config = transformers.CLIPConfig(
            text_config={**TEXT, "bos_token_id": 2, "eos_token_id": 3}, vision_config=SEEN, projection_dim=16
        )
        self.clip, self.head = transformers.CLIPModel(config), nn.Linear(32, 3)

    def forward(self, **batch):
        output = self.clip(**batch)
        logits = self.head(torch.cat([output.image_embeds, output.text_embeds], 1))
        return SimpleNamespace(logits=2 * logits)  # the head is not the end


def blip_tokens(model, batch):
    seen = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
    asked = model.text_encoder(input_ids=batch["input_ids"], encoder_hidden_states=seen).last_hidden_state
    return model.text_decoder(input_ids=batch["answer"], encoder_hidden_states=asked).logits


def bert(**entries):
    config = transformers.BertConfig(**TEXT, num_labels=3, **entries)
    return transformers.BertForSequenceClassification(config), {"input_ids": IDS}, CLASSES


def vit():
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SEEN, num_labels=3))
    return model, {"pixel_values": PIXELS}, torch.eye(3)[CLASSES]


def siglip():
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=SEEN)
    config.num_labels = 3
    return transformers.SiglipForImageClassification(config), {"pixel_values": PIXELS}, CLASSES


def clip():
    # Read at the end token; at the first, attention has nothing to choose, and gradients are rounding alone.
    ends = torch.cat([IDS, torch.full((4, 1), 3)], dim=1)
    return Clip(), {"input_ids": ends, "pixel_values": PIXELS}, CLASSES


def blip():
    text = {**TEXT, "encoder_hidden_size": 32, "bos_token_id": 2, "sep_token_id": 3}
    model = transformers.BlipForQuestionAnswering(
        transformers.BlipConfig(text_config=text, vision_config=SEEN)
    )
    return model, {"input_ids": IDS, "pixel_values": PIXELS, "answer": IDS}, ANSWERS


def llama():
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS}, ANSWERS


def t5():
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))
    return model, {"input_ids": IDS, "decoder_input_ids": IDS.roll(1, 1)}, ANSWERS


def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SEEN),
        text_config=transformers.LlamaConfig(**TEXT, num_key_value_heads=1),
        image_token_index=3,
        vision_feature_layer=-1,
    )
    ids = torch.cat([torch.full((4, 4), 3), IDS], dim=1)
    targets = torch.cat([torch.full((4, 4), -100), ANSWERS], dim=1)
    return (
        transformers.LlavaForConditionalGeneration(config),
        {"input_ids": ids, "pixel_values": PIXELS},
        targets,
    )


def nobodys():
    return Nobodys(), drawn(4, 6), CLASSES


# Kind → what makes it, where LoRA goes, the head, the loss, the host's own forward.
KINDS = {
    "BERT": (bert, ["query", "value"], "classifier", "cross-entropy", None),
    "ViT": (vit, ["q_proj", "v_proj"], "classifier", "bce-scores", None),
    "SigLIP": (siglip, ["q_proj", "v_proj"], "classifier", "cross-entropy", None),
    "CLIP": (clip, ["q_proj", "v_proj"], "head", "cross-entropy", None),
    "BLIP": (blip, ["query", "value"], None, "next-token", blip_tokens),
    "causal LM": (llama, ["q_proj", "v_proj"], None, "next-token", None),
    "T5": (t5, ["q", "v"], None, "cross-entropy", None),
    "LLaVA": (llava, r".*language_model.*\.(q_proj|v_proj)", None, "next-token", None),
    "nobody's": (nobodys, ["first", "second"], "head", "cross-entropy", lambda model, batch: model(batch)),
}


def lora(targets, **entries):
    """Describe a LoRA whose B is not zero, as it would be at first."""
    return LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False, **entries)
