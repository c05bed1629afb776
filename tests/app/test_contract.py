"""The library's contract on models of other people: the step is that of three plain forwards and two updates.

The other side is made of stock PEFT layers, of losses written out, and of PyTorch's autograd.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from app import Distillation, DualAdapter, mkd_step, reference_step

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 16, "pad_token_id": 0}
SEEN = {**SIZES, "image_size": 32, "patch_size": 16}
METHOD = {"alpha": 0.7, "beta": 1.6, "temperature": 2.0}
RATE, STEPS = 1e-3, 4


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


def bert():
    config = transformers.BertConfig(**TEXT, num_labels=3)
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


def lora(targets):
    return LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False)


class Plain:
    """Three stock LoRAs in a model, and the published step written out."""

    def __init__(self, model, config, head, loss, forward):
        self.peft = get_peft_model(model, config, adapter_name="shared")
        for name in ("frozen", "local"):
            self.peft.add_adapter(name, config)
        self.peft.eval()
        self.layers = [module for module in self.peft.modules() if isinstance(module, LoraLayer)]
        self.loss, self.forward = loss, forward or (lambda model, batch: model(**batch).logits)
        self.head = model.get_submodule(head).requires_grad_(True) if head else None

    def weights(self, role):
        named = self.peft.named_parameters()
        return {
            name.replace(f".{role}.", "."): p for name, p in named if f".{role}." in name and "lora_" in name
        }

    def logits(self, batch, shares):
        self.peft.base_model.set_adapter(list(shares))
        for layer in self.layers:
            for role, share in shares.items():
                layer.scaling[role] = 2.0 * share
        for parameter in (*self.weights("shared").values(), *self.weights("local").values()):
            parameter.requires_grad_(True)
        return self.forward(self.peft.get_base_model(), batch)

    def compare(self, z, targets):
        """Return the logits that count and the mean cross-entropy."""
        if self.loss == "next-token":
            z, targets = z[:, :-1], targets[:, 1:]
        if targets.is_floating_point():
            z = z.flatten(0, -2)
            terms = -(targets * z.sigmoid().log() + (1 - targets) * (1 - z.sigmoid()).log())
            return z, terms.sum(1).mean()
        z, targets = z.flatten(0, -2), targets.flatten()
        counts = targets >= 0
        z, targets = z[counts], targets[counts]
        return z, -z.log_softmax(1)[torch.arange(len(z)), targets].mean()

    def step(self, optimizer, batch, targets):
        def taught(z, other, weight):
            (z, ce), (other, _) = self.compare(z, targets), self.compare(other.detach(), targets)
            p, q = ((x / METHOD["temperature"]).softmax(1) for x in (other, z))
            return 0.5 * (ce + weight * METHOD["temperature"] ** 2 * (p * (p / q).log()).sum(1).mean())

        def descend(loss, role):
            optimizer.zero_grad()
            own = [*self.weights(role).values(), *(self.head.parameters() if self.head else ())]
            for weight, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
                weight.grad = gradient
            optimizer.step()

        teacher = {"frozen": 0.5, "local": 0.5}
        z_teacher = self.logits(batch, teacher).detach()
        z_s = self.logits(batch, {"shared": 1.0})
        descend(taught(z_s, z_teacher, METHOD["alpha"]), "shared")
        descend(taught(self.logits(batch, teacher), z_s, METHOD["beta"]), "local")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [mkd_step, reference_step], ids=["mkd", "reference"])
def test_four_steps_are_those_of_three_plain_forwards_and_two_updates(kind, step):
    build, targets_of, head, loss, forward = KINDS[kind]
    torch.manual_seed(0)
    model, batch, targets = build()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    plain = Plain(copy.deepcopy(model), lora(targets_of), head, loss, forward)
    dual = DualAdapter(model, lora(targets_of), head=head, seed=0, forward=forward)

    dual.receive({name: drawn(*v.shape, seed=1) * 0.3 for name, v in dual.shared().items()})
    first = {name: drawn(*v.shape, seed=2) * 0.3 for name, v in dual.private().items()}
    dual.load_private(first)
    with torch.no_grad():
        for role in ("shared", "frozen", "local"):
            state = dual.state(role)
            for name, weight in plain.weights(role).items():
                weight.copy_(state[name])
        for name, weight in plain.head.state_dict().items() if head else ():
            weight.copy_(first[f"head.{name}"])
    branches = {}
    for branch in ("student", "teacher", "local"):
        with dual.branch(branch), torch.no_grad():
            branches[branch] = dual.logits(batch)
    assert (branches["student"] - branches["teacher"]).abs().max() > 1e-3
    assert (branches["local"] - branches["teacher"]).abs().max() > 1e-3

    leaves = [*plain.weights("shared").values(), *plain.weights("local").values()]
    leaves += plain.head.parameters() if head else ()
    theirs = torch.optim.AdamW(leaves, lr=RATE)
    ours = torch.optim.AdamW(dual.trained_parameters(), lr=RATE)
    before = {**dual.shared(), **dual.private()}
    for _ in range(STEPS):
        step(dual, ours, batch, targets, Distillation(**METHOD, loss=loss))
        plain.step(theirs, batch, targets)
    after = {**dual.shared(), **dual.private()}
    assert [name for name in after if torch.equal(after[name], before[name])] == []
    for role in ("shared", "frozen", "local"):
        for name, weight in plain.weights(role).items():
            torch.testing.assert_close(dual.state(role)[name], weight.detach(), atol=5e-5, rtol=0)
    for name, weight in plain.head.state_dict().items() if head else ():
        torch.testing.assert_close(after[f"head.{name}"], weight, atol=5e-5, rtol=0)
    with dual.branch("student"), torch.no_grad():
        assert torch.equal(dual.logits(batch), dual(batch, "student"))
