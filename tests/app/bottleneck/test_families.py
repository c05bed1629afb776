"""Bottlenecks in models of every family: their places, their numbers, and what is done with such models."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from app.bottleneck import BottleneckConfig, BottleneckLayer
from tests.app.bottleneck.families import FAMILIES, GENERATIVE, base, batch, objective, outputs

FACTOR = 8


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    """Return each family's name in turn."""
    return request.param


def config(family, **fields):
    # Larger weights than published, so that an adapter that is missing or wrong shows.
    given = {"reduction_factor": FACTOR, "target_modules": FAMILIES[family].targets, "init_std": 0.5}
    return BottleneckConfig(**(given | fields))


def adapted(family, names=("default",), **fields):
    torch.manual_seed(5)
    model = get_peft_model(base(family), config(family, **fields), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config(family, **fields))
    return model.eval()


def placed(model):
    """Return each place's layer by the name it has in the model that was adapted."""
    modules = model.get_base_model().named_modules()
    return {name: module for name, module in modules if isinstance(module, BottleneckLayer)}


def by_hand(model, family, shares):
    """Build the same with hooks and plain products: at each place h + Σ share · up(relu(down(h)))."""
    reference = base(family)
    for place, layer in placed(model).items():

        def add(module, args, output, layer=layer):
            h = output[0] if isinstance(output, tuple) else output
            total = h
            for name, share in shares.items():
                down, up = layer.bottleneck_down[name], layer.bottleneck_up[name]
                inner = torch.relu(h @ down.weight.T + down.bias)
                total = total + share * (inner @ up.weight.T + up.bias)
            return (total, *output[1:]) if isinstance(output, tuple) else total

        reference.get_submodule(place).register_forward_hook(add)
    return reference


def test_places_are_found_with_their_widths(family):
    found = {name: layer.hidden_size for name, layer in placed(adapted(family)).items()}
    assert found == FAMILIES[family].places
    for name, layer in placed(adapted(family)).items():
        assert layer.bottleneck_down["default"].weight.shape == (found[name] // FACTOR, found[name])
        assert layer.bottleneck_up["default"].weight.shape == (found[name], found[name] // FACTOR)


def test_a_second_adapter_finds_the_same_places(family):
    model = adapted(family, names=("first", "second"))
    assert placed(model).keys() == FAMILIES[family].places.keys()
    assert all([*layer.bottleneck_up] == ["first", "second"] for layer in placed(model).values())


@torch.no_grad()
def test_zero_up_starts_as_the_model_itself(family):
    expected = outputs(base(family), family)
    computed = outputs(adapted(family, init_weights="zero_up"), family)
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_it_computes_what_is_published(family):
    model = adapted(family)
    computed = outputs(model, family)
    torch.testing.assert_close(computed, outputs(by_hand(model, family, {"default": 1.0}), family))
    expected = outputs(base(family), family)
    assert not torch.allclose(computed, expected, atol=1e-3)
    with model.disable_adapter():
        torch.testing.assert_close(outputs(model, family), expected)
    assert torch.equal(outputs(model, family), computed)


@torch.no_grad()
def test_two_adapters_are_averaged_with_shares(family):
    model = adapted(family, names=("frozen", "local"))
    model.base_model.set_adapter(["frozen", "local"])
    for layer in placed(model).values():
        layer.scaling.update(frozen=0.25, local=0.75)
    reference = by_hand(model, family, {"frozen": 0.25, "local": 0.75})
    torch.testing.assert_close(outputs(model, family), outputs(reference, family))


def test_gradients_reach_every_array_of_the_active_adapter_and_nothing_else(family):
    model = adapted(family, names=("first", "second"))
    objective(model, family).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".first." in name), name
        # A ReLU of a width of 2 may let nothing through, but hardly everywhere.
        if name.endswith("bottleneck_up.first.bias"):
            assert parameter.grad.any(), name


def test_training_moves_the_adapters_alone(family):
    model = adapted(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    objective(model, family).backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("bottleneck_" in name for name in moved)


@torch.no_grad()
def test_saved_and_loaded_it_computes_the_same(family, tmp_path):
    model = adapted(family)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(base(family), tmp_path).eval()
    assert torch.equal(outputs(loaded, family), outputs(model, family))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.merge_and_unload(), "BOTTLENECK adapters cannot be merged"),
        (
            lambda model: model.add_weighted_adapter(["default"], [1.0], "sum"),
            r"cannot be added up in their weights.*`base_model.set_adapter\(\[...\]\)`",
        ),
    ],
    ids=["merge", "weighted"],
)
def test_what_cannot_be_is_refused_in_one_line(family, call, message):
    model = adapted(family)
    before = [*model.state_dict()]
    with pytest.raises(ValueError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)
    assert [*model.state_dict()] == before


def test_a_factor_that_does_not_divide_names_the_place_and_leaves_the_model_alone(family):
    model = base(family)
    before = [*model.state_dict()]
    place, width = next(iter(FAMILIES[family].places.items()))
    with pytest.raises(ValueError, match="`reduction_factor` must divide the hidden size") as error:
        get_peft_model(model, config(family, reduction_factor=7))
    assert str(error.value) == f"{place}: `reduction_factor` must divide the hidden size {width}, got 7."
    assert [*model.state_dict()] == before


def test_it_is_checked_at_every_place_before_the_first_is_changed():
    # 16 divides the 32 of CLIP's text tower, and not the 48 / 32 = 1.5 of the other.
    model = base("clip")
    before = [*model.state_dict()]
    with pytest.raises(ValueError, match=r"vision_model.encoder.layers.0.mlp: .* 48, got 32"):
        get_peft_model(model, config("clip", reduction_factor=32))
    assert [*model.state_dict()] == before


@pytest.mark.parametrize(
    "targets", [["nowhere"], "nowhere", ["nowhere", "mlp"]], ids=["list", "expression", "one of two"]
)
def test_a_target_that_fits_nothing_says_what_there_is(targets):
    model = base("gpt2")
    with pytest.raises(
        ValueError, match=r"`target_modules` = .*nowhere.* fits nothing in GPT2LMHeadModel"
    ) as error:
        get_peft_model(model, config("gpt2", target_modules=targets))
    assert "\n" not in str(error.value)
    listed = str(error.value).split("there are ")[1].rstrip(".")
    expected = "transformer, ln_1, attn, c_attn, c_proj, ln_2, mlp, c_fc, ln_f, lm_head"
    assert listed == expected
    assert not any(isinstance(module, BottleneckLayer) for module in model.modules())


def test_a_model_without_blocks_says_what_there_is():
    with pytest.raises(ValueError, match="`target_modules` must be given: no block of Homemade has") as error:
        get_peft_model(base("homemade"), BottleneckConfig())
    assert str(error.value).endswith("there are early, mix, wide, narrow, late, classifier.")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (r".*h\.\d+|.*mlp", "must not match a module and its part: transformer.h.0 and transformer.h.0.mlp"),
        (
            ["mlp", "c_fc"],
            "must not match a module and its part: transformer.h.0.mlp and transformer.h.0.mlp.c_fc",
        ),
    ],
)
def test_a_module_inside_another_is_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(base("gpt2"), config("gpt2", target_modules=targets))


def test_a_part_that_is_never_called_is_refused():
    with pytest.raises(ValueError, match=r"must not match transformer.h: an nn.ModuleList is never called"):
        get_peft_model(base("gpt2"), config("gpt2", target_modules=["h"]))
    with pytest.raises(ValueError, match=r"encoder.layers.0.self_attn.out_proj, which nn.MultiheadAttention"):
        get_peft_model(base("torch"), config("torch", target_modules=["out_proj"]))
    with torch.no_grad():
        model = adapted("torch", target_modules=["self_attn"])
        expected = outputs(by_hand(model, "torch", {"default": 1.0}), "torch")
        torch.testing.assert_close(outputs(model, "torch"), expected)


def test_conv1d_may_be_named():
    layers = placed(adapted("gpt2", target_modules=["c_fc", "c_attn"]))
    widths = {name.rpartition(".")[2]: layer.hidden_size for name, layer in layers.items()}
    assert widths == {"c_fc": 128, "c_attn": 96}


def test_whole_blocks_may_be_named():
    """Qwen2's model, like torch's encoder, reads attributes of its blocks."""
    for family, targets in (
        ("qwen2", r".*layers\.\d+"),
        ("torch", r".*layers\.\d+"),
        ("t5", r".*block\.\d+\.layer\.[12]"),
    ):
        model = adapted(family, target_modules=targets)
        with torch.no_grad():
            expected = outputs(by_hand(model, family, {"default": 1.0}), family)
            torch.testing.assert_close(outputs(model, family), expected)


def test_an_output_of_another_width_is_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return torch.cat(2 * [super().forward(x)], dim=-1)

    model = get_peft_model(
        nn.ModuleDict({"odd": Doubled(4, 4)}), BottleneckConfig(target_modules=["odd"], reduction_factor=2)
    )
    message = r"must match modules that return \(..., 4\).*; Doubled returned \(3, 8\)"
    with pytest.raises(ValueError, match=message):
        model.base_model.model["odd"](torch.zeros(3, 4))


@torch.no_grad()
def test_torch_does_not_pass_an_adapter_by_in_evaluation():
    """Without gradients, nn.TransformerEncoder would take the weights and call none of its parts."""
    model = adapted("torch")
    features, padding = batch("torch")["features"], torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    found = model(features=features, padding=padding)
    reference = by_hand(model, "torch", {"default": 1.0})
    with torch.enable_grad():
        expected = reference(features, padding)
    torch.testing.assert_close(found[~padding], expected[~padding])
    assert not torch.allclose(found[~padding], base("torch")(features, padding)[~padding], atol=1e-2)


@pytest.mark.parametrize("family", GENERATIVE)
def test_generation_with_a_cache_gives_what_it_gives_without(family):
    model = adapted(family)
    inputs = {key: value for key, value in batch(family).items() if key != "labels"}

    def logits(generating, **kwargs):
        generated = generating.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=4,
            min_new_tokens=4,
            output_logits=True,
            return_dict_in_generate=True,
            **kwargs,
        )
        return torch.stack(generated.logits)

    with_cache = logits(model, use_cache=True)
    assert with_cache.shape == (4, 2, 64)
    torch.testing.assert_close(with_cache, logits(model, use_cache=False))
    torch.testing.assert_close(with_cache, logits(by_hand(model, family, {"default": 1.0})))


def gradients(family, checkpointing=None):
    model = adapted(family)
    if checkpointing is not None:
        model.gradient_checkpointing_enable(checkpointing)
        if family == "blip":  # it adds to its embeddings in place, where transformers asks for gradients
            model.disable_input_require_grads()
    # Checkpointing acts in training mode only; nothing here has dropout.
    objective(model.train(), family).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


CHECKPOINTED = [name for name in FAMILIES if name not in ("torch", "homemade")]


@pytest.mark.parametrize(
    ("family", "reentrant"), [*((name, False) for name in CHECKPOINTED), ("bert", True), ("llama", True)]
)
def test_gradients_are_the_same_with_checkpointing(family, reentrant):
    plain = gradients(family)
    assert any(gradient.any() for gradient in plain.values())
    torch.testing.assert_close(gradients(family, {"use_reentrant": reentrant}), plain)


@torch.no_grad()
def test_t5_in_half_precision_keeps_its_habits(tmp_path):
    """Its `wo` is kept in float32 by transformers, in a model that is float16 otherwise."""
    base("t5").save_pretrained(tmp_path)
    half = type(base("t5")).from_pretrained(tmp_path, dtype=torch.float16)
    assert half.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    model = get_peft_model(half, config("t5", init_std=0.1)).eval()
    computed = outputs(model, "t5")
    assert computed.dtype == torch.float16
    reference = get_peft_model(base("t5"), config("t5")).eval()
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(computed.float(), outputs(reference, "t5"), atol=0.05, rtol=0.01)
