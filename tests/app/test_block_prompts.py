"""Prompts in every block: what a block makes of them, where they go, and what is saved of them."""

import importlib
import json
import math
import sys
from types import ModuleType

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model, get_peft_model_state_dict
from torch.nn.functional import gelu, layer_norm, linear
from transformers import GPT2Config, GPT2Model, ViTConfig, ViTModel

import app
from app.adapters import Adapter, adapt, adapter_config
from app.backbones import Backbone, fingerprint
from app.block_prompts import BlockPromptConfig, BlockPromptLayer, BlockPromptModel
from app.checkpointing import recompute_blocks
from app.families import FAMILIES
from app.families.vilt import fuse_attention, keep_patch_order
from app.heads import new_head
from app.mkd import Distillation, make_optimizer, mkd_step
from app.processor import Processor

TOKENS, WIDTH = 3, 32
FIRST = "base_model.model.encoder.layer.0.block_prompt_tokens"
VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 16,
}


@pytest.fixture
def prompted(small_vilt):
    """Build a ViLT with prompts; fused, its attention is this project's own."""

    def build(fused=False, names=("default",)):
        model = keep_patch_order(small_vilt())
        model = fuse_attention(model) if fused else model
        config = BlockPromptConfig(num_tokens=TOKENS, target_modules=r"encoder\.layer\.\d+", init_std=1.0)
        torch.manual_seed(4)
        adapted = get_peft_model(model, config, adapter_name=names[0])
        for name in names[1:]:
            adapted.add_adapter(name, config)
        return adapted.eval()

    return build


def layers(model):
    return [module for module in model.modules() if isinstance(module, BlockPromptLayer)]


def block_by_hand(block, hidden, tokens, mask):
    """Compute a ViLT's block whose own tokens attend to learnt ones too; what becomes of those is not."""

    def norm(x, module):
        return layer_norm(x, (WIDTH,), module.weight, module.bias, module.eps)

    def heads(x, module):
        return linear(x, module.weight, module.bias).unflatten(-1, (2, WIDTH // 2)).transpose(1, 2)

    attention = block.attention.attention
    asking = norm(hidden, block.layernorm_before)
    seen = torch.cat([asking, norm(tokens, block.layernorm_before).expand(len(hidden), -1, -1)], dim=1)
    logits = heads(asking, attention.query) @ heads(seen, attention.key).transpose(2, 3)
    hides = torch.cat([mask[:, :, :1], torch.zeros(len(hidden), 1, 1, TOKENS)], dim=3)
    shares = (logits / math.sqrt(WIDTH // 2) + hides).softmax(3)
    context = (shares @ heads(seen, attention.value)).transpose(1, 2).flatten(2)
    out = block.attention.output.dense
    hidden = hidden + linear(context, out.weight, out.bias)
    first, second = block.intermediate.dense, block.output.dense
    inner = gelu(linear(norm(hidden, block.layernorm_after), first.weight, first.bias))
    return hidden + linear(inner, second.weight, second.bias)


@pytest.mark.parametrize("fused", [False, True])
def test_a_blocks_own_tokens_attend_to_learnt_ones_that_no_mask_hides(prompted, states, fused):
    model, (hidden, mask) = prompted(fused), states
    assert (mask < 0).any()
    layer = layers(model)[0]
    output = layer(hidden, mask)
    output = output[0] if isinstance(output, tuple) else output
    expected = block_by_hand(layer.base_layer, hidden, layer.block_prompt_tokens["default"], mask)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_a_boolean_mask_lets_all_see_them_and_what_is_no_mask_is_handed_on():
    seen = {}

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(WIDTH)

        def forward(self, hidden, *args, **kwargs):
            seen.update(hidden=hidden, args=args, kwargs=kwargs)
            return hidden, "more"

    layer = BlockPromptLayer(Block(), "one", BlockPromptConfig(num_tokens=TOKENS))
    hidden, mask = torch.randn(2, 5, WIDTH), torch.zeros(2, 1, 1, 5, dtype=torch.bool)
    square, other = torch.zeros(2, 1, 5, 5), torch.randn(2, 5)
    counted = torch.ones(2, 1, 1, 5, dtype=torch.long)
    layer(hidden_states=hidden, mask=counted)
    assert seen["kwargs"]["mask"].tolist() == [[[[1] * (5 + TOKENS)]]] * 2
    output, more = layer(hidden, mask, other, mask=square, flag=True)
    assert torch.equal(output, hidden)
    assert more == "more"
    assert seen["hidden"].shape == (2, 5 + TOKENS, WIDTH)
    assert torch.equal(seen["hidden"][:, :5], hidden)
    assert seen["args"][0].tolist() == [[[[False] * 5 + [True] * TOKENS]]] * 2
    assert seen["args"][1] is other
    assert seen["kwargs"]["mask"].shape == (2, 1, 5 + TOKENS, 5 + TOKENS)
    assert seen["kwargs"]["flag"] is True


def test_active_prompts_are_added_each_with_its_scale(prompted, states):
    model, (hidden, mask) = prompted(names=("one", "two")), states
    layer = layers(model)[0]
    model.base_model.set_adapter(["one", "two"])
    layer.scaling.update(one=0.25, two=0.5)
    tokens = 0.25 * layer.block_prompt_tokens["one"] + 0.5 * layer.block_prompt_tokens["two"]
    output = layer(hidden, mask)
    output = output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(
        output, block_by_hand(layer.base_layer, hidden, tokens, mask), atol=1e-5, rtol=1e-5
    )


def test_without_any_the_model_is_as_it_was(prompted, small_vilt, batch):
    model = prompted()
    plain = keep_patch_order(small_vilt())(**batch).pooler_output
    assert (model(**batch).pooler_output - plain).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(model(**batch).pooler_output, plain)


def test_a_vit_in_two_parts_gives_what_it_gives_whole():
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**VIT)).eval().requires_grad_(False)
    processor = Processor(None, image_size=32, text_length=0, mean=(0.5,) * 3, std=(0.5,) * 3)
    backbone = Backbone("small", model, processor, fingerprint(model))
    adapter = adapt(backbone, Adapter("prompt", prompt_tokens=TOKENS).config(backbone))
    for role, scale in (("shared", 1.0), ("frozen", 2.0), ("local", 3.0)):
        shapes = adapter.state(role)
        adapter.load(role, {name: scale * torch.randn_like(value) for name, value in shapes.items()})
    assert [tuple(value.shape) for value in adapter.state("shared").values()] == [(TOKENS, WIDTH)] * 2
    pixels = {"pixel_values": torch.randn(4, 3, 32, 32)}
    found = {branch: adapter(pixels, branch) for branch in ("student", "teacher", "local")}
    for branch, features in found.items():
        parted = adapter.features(adapter.trunk(pixels), branch)
        torch.testing.assert_close(parted, features, atol=1e-5, rtol=1e-5)
    assert (found["student"] - found["local"]).abs().max() > 1e-2


def test_steps_whose_blocks_are_computed_again_are_the_same(backbone, batch):
    method, ends = Distillation(loss="cross-entropy"), []
    for recompute in (False, True):
        learner = adapt(backbone, Adapter("prompt", prompt_tokens=TOKENS).config(backbone))
        learner.answer_with(new_head(WIDTH, 3, seed=1))
        if recompute:
            recompute_blocks(learner)
        optimizer = make_optimizer(learner, 0.01, 0.0)
        for _ in range(2):
            mkd_step(learner, optimizer, batch, torch.tensor([0, 1, 2, 0]), method)
        ends.append({**learner.shared(), **learner.private()})
        assert not torch.equal(learner.state("shared")[FIRST], learner._first_shared[FIRST])
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-6, rtol=0)


def test_what_is_saved_is_loaded_again(prompted, small_vilt, batch, tmp_path):
    model = prompted(fused=True)
    model.save_pretrained(tmp_path)
    names = {f"base_model.model.encoder.layer.{i}.block_prompt_tokens" for i in range(3)}
    assert set(get_peft_model_state_dict(model)) == names
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["num_tokens"]) == ("BLOCK_PROMPT", TOKENS)
    loaded = PeftModel.from_pretrained(fuse_attention(keep_patch_order(small_vilt())), tmp_path).eval()
    assert isinstance(loaded.base_model, BlockPromptModel)
    assert torch.equal(loaded(**batch).pooler_output, model(**batch).pooler_output)


def test_a_second_copy_of_the_code_has_the_same_classes():
    package = ModuleType("elsewhere")
    package.__path__ = app.__path__
    sys.modules[package.__name__] = package
    try:
        twin = importlib.import_module("elsewhere.block_prompts")
        for name in ("BlockPromptConfig", "BlockPromptLayer", "BlockPromptModel"):
            assert getattr(twin, name) is globals()[name]
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
            del sys.modules[name]
    assert list(PeftType).count("BLOCK_PROMPT") == 1


def test_no_tokens_are_refused():
    with pytest.raises(ValueError, match="`num_tokens` must be a positive integer, got 0"):
        BlockPromptConfig(num_tokens=0)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (r"h\.\d+", "`target_modules` must not match GPT2Block, whose attention is causal"),
        (None, "`target_modules` must be given: the blocks"),
        (r"h\.\d+\.attn\.attn_dropout", "must match modules with a linear layer"),
    ],
)
def test_places_where_they_could_do_nothing_are_refused(targets, reason):
    model = GPT2Model(GPT2Config(n_embd=WIDTH, n_layer=1, n_head=2, vocab_size=8))
    with pytest.raises(ValueError, match=reason):
        get_peft_model(model, BlockPromptConfig(target_modules=targets))


def test_taken_out_again_the_model_is_as_it_was(prompted, small_vilt, batch):
    model = prompted().unload()
    plain = keep_patch_order(small_vilt())
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model(**batch).pooler_output, plain(**batch).pooler_output)


def test_torchs_own_encoder_reads_attributes_of_its_blocks_and_names_arguments():
    torch.manual_seed(0)
    block = torch.nn.TransformerEncoderLayer(WIDTH, 2, 48, batch_first=True, norm_first=True)
    model = torch.nn.TransformerEncoder(block, 2, enable_nested_tensor=False).eval()
    hidden = torch.randn(2, 5, WIDTH)
    plain = model(hidden)
    adapted = get_peft_model(
        model, BlockPromptConfig(num_tokens=TOKENS, target_modules=r"layers\.\d+", init_std=1.0)
    ).eval()
    assert adapted(hidden).shape == plain.shape
    assert (adapted(hidden) - plain).abs().max() > 1e-2


def test_they_cannot_be_merged(prompted):
    with pytest.raises(ValueError, match="BLOCK_PROMPT adapters cannot be merged"):
        prompted().merge_and_unload()


def test_a_family_that_takes_none_is_refused_in_one_line():
    assert {family.words for family in FAMILIES if family.prompted} == {"a ViLT", "a ViT"}
    for family in FAMILIES:
        if family.adapters and not family.prompted:
            with pytest.raises(ValueError) as error:
                Adapter("prompt").check(family, "mine")
            line = "adapter = 'prompt' with backbone = 'mine'; allowed: 'bottleneck', 'lora'"
            assert str(error.value) == line
    with pytest.raises(ValueError, match="adapter = 'prompt' without blocks"):
        adapter_config("prompt", width=WIDTH)
