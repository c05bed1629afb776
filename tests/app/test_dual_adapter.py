"""Three adapters on one backbone: their names, the branches they form, and what may be trained."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import ViltConfig, ViltModel

from app.adapters import adapt, adapter_config
from app.backbones import Backbone, load_backbone
from app.bottleneck import BottleneckConfig
from app.dual_adapter import ROLES, DualAdapter
from app.families.vilt import keep_patch_order
from app.methods import open_learner
from app.settings import read_settings
from tests.app.tiny_models import bert, lora

KINDS = ("bottleneck", "lora", "prompt")
# Which adapters a branch has in place, with which share (FedDAT, section 3).
IN_PLACE = {
    "student": [("shared", 1.0)],
    "teacher": [("frozen", 0.5), ("local", 0.5)],
    "local": [("local", 1.0)],
}


def flags(adapter):
    """Return the roles of which all weights, and of which some weights, are trained."""
    trained = {role: [p.requires_grad for p in adapter.parameters_of[role].values()] for role in ROLES}
    return [r for r in ROLES if all(trained[r])], [r for r in ROLES if any(trained[r])]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
class TestWeights:
    def test_roles_are_peft_adapters(self, dual, kind):
        assert list(dual(kind).peft.peft_config) == ["shared", "frozen", "local"]

    @pytest.mark.parametrize("role", ROLES)
    def test_wire_names_are_pefts(self, dual, kind, role):
        adapter = dual(kind)
        assert same(adapter.state(role), get_peft_model_state_dict(adapter.peft, adapter_name=role))

    def test_first_weights_are_a_function_of_the_seed(self, backbone, kind):
        prompted = r"encoder\.layer\.\d+"
        config = adapter_config(kind, reduction_factor=4, width=32, prompted=prompted)
        torch.manual_seed(1)
        first, drawn = adapt(backbone, config, seed=5), torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(1), drawn)  # the caller's generator is left alone
        again, other = adapt(backbone, config, seed=5), adapt(backbone, config, seed=6)
        for role in ROLES:
            assert same(first.state(role), again.state(role))
            assert not same(first.state(role), other.state(role))
        assert same(first.state("frozen"), first.state("shared"))
        assert not same(first.state("local"), first.state("shared"))
        assert same(first.state("local"), first._first_local)

    def test_a_state_is_a_copy(self, dual, kind):
        adapter = dual(kind)
        before, taken = adapter.state("local"), adapter.state("local")
        for tensor in taken.values():
            tensor.zero_()
        assert same(adapter.state("local"), before)

    def test_loading_one_role_leaves_the_others(self, dual, kind):
        adapter = dual(kind)
        before = {role: adapter.state(role) for role in ROLES}
        new = {name: torch.full_like(tensor, 0.25) for name, tensor in before["local"].items()}
        adapter.load("local", new)
        assert same(adapter.state("local"), new)
        assert same(adapter.state("shared"), before["shared"])
        assert same(adapter.state("frozen"), before["frozen"])

    def test_receiving_refreshes_the_frozen_copy(self, dual, kind):
        adapter = dual(kind)
        local = adapter.state("local")
        new = {name: torch.full_like(tensor, 0.25) for name, tensor in local.items()}
        adapter.receive(new)
        assert same(adapter.state("shared"), new)
        assert same(adapter.state("frozen"), new)
        assert same(adapter.state("local"), local)
        next(iter(adapter.parameters_of["shared"].values())).data.zero_()
        assert same(adapter.state("frozen"), new)

    def test_other_names_and_shapes_are_refused(self, dual, kind):
        adapter = dual(kind)
        good = adapter.state("shared")
        name = sorted(good)[-1]
        for bad, said in (
            ({n: t for n, t in good.items() if n != name}, f"missing or unknown arrays: {name}"),
            ({**good, "head.weight": good[name]}, "missing or unknown arrays: head.weight"),
            ({}, "missing or unknown arrays"),
            ({**good, name: good[name][:-1]}, f"{name} has shape"),
        ):
            with pytest.raises(ValueError) as error:
                adapter.load("shared", bad)
            assert str(error.value).startswith("adapter 'shared': ")
            assert said in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
class TestBranches:
    @pytest.mark.parametrize("branch", IN_PLACE)
    def test_features_are_those_of_a_plain_model_with_hooks(self, dual, batch, plain_features, kind, branch):
        adapter = dual(kind)
        in_place = [(adapter.state(role), share) for role, share in IN_PLACE[branch]]
        expected = plain_features(batch, in_place)
        for other in IN_PLACE:  # shares are set anew by each branch, not multiplied
            adapter(batch, other)
        torch.testing.assert_close(adapter(batch, branch), expected, atol=2e-6, rtol=0)
        # The bound above would show another share or a missing adapter. Of prompts alone it cannot: blocks
        # normalise what they are given, its length with it.
        (weights, share), *others = in_place
        if kind != "prompt" or others:
            wrong = plain_features(batch, [(weights, 0.9 * share), *others])
            assert (wrong - expected).abs().max() > 1e-3

    def test_bytes_are_normalised(self, dual, batch, backbone, kind):
        adapter = dual(kind)
        pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        as_bytes = {**batch, "pixel_values": pixels}
        as_floats = {**batch, "pixel_values": backbone.processor.normalise(pixels)}
        assert torch.equal(adapter(as_bytes, "teacher"), adapter(as_floats, "teacher"))
        assert torch.equal(adapter.trunk(as_bytes).hidden, adapter.trunk(as_floats).hidden)
        assert as_bytes["pixel_values"] is pixels

    def test_branches_differ(self, dual, batch, kind):
        adapter = dual(kind)
        features = [adapter(batch, branch) for branch in IN_PLACE]
        assert min((a - b).abs().max() for a in features for b in features if a is not b) > 0.01


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_an_adapter_of_zeros_is_the_backbone(dual, batch, backbone, kind):
    adapter = dual(kind)
    adapter.receive({name: torch.zeros_like(t) for name, t in adapter.state("shared").items()})
    expected = backbone.model(**batch).pooler_output
    torch.testing.assert_close(adapter(batch, "student"), expected, atol=1e-6, rtol=0)


TUNED = {
    "bottleneck": adapter_config("bottleneck", reduction_factor=4, width=32),
    "lora": adapter_config("lora", lora_rank=3, width=32),
    "bottleneck of block 1": BottleneckConfig(reduction_factor=4, layers_to_transform=[1]),
    "lora of block 1": LoraConfig(target_modules=["query", "value"], layers_to_transform=[1]),
    "lora of feed-forward": LoraConfig(target_modules=["output.dense"]),
    "bottleneck in the attention": BottleneckConfig(
        reduction_factor=4, target_modules=r".*layer\.\d\.attention"
    ),
}
# The trunk ends before the first block that is tuned inside, or after the first that is tuned at its end.
BLOCKS_IN_TRUNK = dict(zip(TUNED, (1, 0, 2, 1, 0, 0), strict=True))


class TestTrunk:
    @pytest.fixture(params=TUNED)
    def name(self, request):
        return request.param

    @pytest.fixture
    def adapter(self, name, backbone):
        adapter = adapt(backbone, TUNED[name])
        generator = torch.Generator().manual_seed(0)
        for role in ROLES:
            state = adapter.state(role)
            adapter.load(role, {n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in state.items()})
        return adapter

    def test_from_the_trunk_on_is_the_whole_forward(self, adapter, batch):
        trunk = adapter.trunk(batch)
        hidden = trunk.hidden.clone()
        for branch in (*IN_PLACE, "student"):
            torch.testing.assert_close(
                adapter.features(trunk, branch), adapter(batch, branch), atol=1e-6, rtol=0
            )
        assert torch.equal(trunk.hidden, hidden)
        assert not trunk.hidden.requires_grad

    def test_gradients_are_those_of_the_whole_forward(self, adapter, batch):
        def gradients(features):
            adapter.zero_grad()
            (features * torch.linspace(-1, 1, 32)).sum().backward()
            return {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}

        for branch in ("student", "teacher"):
            whole = gradients(adapter(batch, branch))
            split = gradients(adapter.features(adapter.trunk(batch), branch))
            assert whole.keys() == split.keys()
            for name in whole:
                torch.testing.assert_close(split[name], whole[name], atol=1e-5, rtol=1e-5)

    def test_the_trunk_is_as_long_as_it_can_be(self, name, adapter, batch):
        ran = []
        for index, block in enumerate(adapter.model.encoder.layer):
            # Of the last block the parts are called, not the block.
            block.layernorm_before.register_forward_hook(lambda *_, index=index: ran.append(index))
        trunk = adapter.trunk(batch)
        assert ran == list(range(BLOCKS_IN_TRUNK[name]))
        adapter.features(trunk, "student")
        assert ran == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
class TestWhatIsTrained:
    def test_flags_stay_right_whatever_is_done(self, dual, batch, kind):
        adapter = dual(kind)
        assert flags(adapter) == (["shared", "local"], ["shared", "local"])
        for _ in range(2):
            for branch in (*IN_PLACE, None):
                adapter.activate(branch)
            with torch.no_grad():
                for branch in IN_PLACE:
                    adapter(batch, branch)
                    adapter.features(adapter.trunk(batch), branch)
            adapter.receive(adapter.state("shared"))
            adapter.load("local", adapter.state("local"))
            adapter.eval()
            assert flags(adapter) == (["shared", "local"], ["shared", "local"])

    @pytest.mark.parametrize(("branch", "trained"), [("student", "shared"), ("teacher", "local")])
    def test_a_branch_trains_its_own_adapter_after_an_evaluation(self, dual, batch, kind, branch, trained):
        adapter = dual(kind)
        with torch.no_grad():
            for other in IN_PLACE:
                adapter(batch, other)
        adapter.features(adapter.trunk(batch), branch).square().sum().backward()
        for role in ROLES:
            gradients = [parameter.grad for parameter in adapter.parameters_of[role].values()]
            if role == trained:
                assert all(gradient.abs().max() > 0 for gradient in gradients)
            else:
                assert gradients == [None] * len(gradients)

    def test_only_adapters_have_gradients(self, dual, backbone, kind):
        adapter = dual(kind)
        trained = {id(p) for p in adapter.parameters() if p.requires_grad}
        named = {id(p) for role in ("shared", "local") for p in adapter.parameters_of[role].values()}
        assert trained == named
        assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_two_on_one_backbone_do_not_disturb_each_other(dual, backbone, batch, kind):
    plain = backbone.model(**batch).pooler_output
    first = dual(kind)
    before = {branch: first(batch, branch).detach() for branch in IN_PLACE}
    second = dual("lora" if kind == "bottleneck" else kind, seed=8)
    second(batch, "teacher").sum().backward()
    with torch.no_grad():
        for parameter in second.parameters_of["local"].values():
            parameter.add_(1.0)
    for branch in reversed(IN_PLACE):
        second.activate(branch)
        assert torch.equal(first(batch, branch), before[branch])
    assert torch.equal(backbone.model(**batch).pooler_output, plain)
    storages = [
        {p.data_ptr() for name, p in a.named_parameters() if not set(name.split(".")) & set(ROLES)}
        for a in (first, second)
    ]
    assert storages[0] == storages[1] == {p.data_ptr() for p in backbone.model.parameters()}


def test_the_published_size():
    """ViLT-B/32 with r = 16: 894,528 shared parameters, 3.58 MB."""
    with torch.device("meta"):
        config = ViltConfig()
        assert (config.hidden_size, config.num_hidden_layers, config.patch_size) == (768, 12, 32)
        backbone = Backbone("vilt-b32", keep_patch_order(ViltModel(config)), None, "")
        adapter = adapt(backbone, adapter_config("bottleneck", width=768))
    for role in ROLES:
        assert sum(parameter.numel() for parameter in adapter.parameters_of[role].values()) == 894_528


class TestViT:
    @pytest.fixture
    def adapter(self, small_vit, kind):
        backbone = load_backbone(str(small_vit))
        config = adapter_config(
            kind, reduction_factor=4, lora_rank=3, width=32, lora_targets=("q_proj", "v_proj")
        )
        adapter = adapt(backbone, config)
        for role in ROLES:
            adapter.load(role, {name: torch.randn_like(v) * 0.3 for name, v in adapter.state(role).items()})
        return adapter

    @pytest.fixture
    def inputs(self):
        return {"pixel_values": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))}

    @pytest.mark.parametrize("kind", ["bottleneck", "lora"])
    def test_the_student_is_pefts_plain_forward(self, adapter, inputs, small_vit):
        plain = get_peft_model(
            load_backbone(str(small_vit)).fork(), adapter.peft.peft_config["shared"]
        ).eval()
        set_peft_model_state_dict(plain, adapter.state("shared"))
        with torch.no_grad():
            expected = plain(**inputs).pooler_output
            features = adapter.features(adapter.trunk(inputs), "student")
            bare = load_backbone(str(small_vit)).model(**inputs).pooler_output
        torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)
        assert (features - bare).abs().max() > 0.01

    @pytest.mark.parametrize("kind", ["bottleneck", "lora"])
    @pytest.mark.parametrize("branch", ["student", "teacher", "local"])
    def test_trunk_and_features_are_the_whole_forward(self, adapter, inputs, branch):
        with torch.no_grad():
            expected = adapter(inputs, branch)
            features = adapter.features(adapter.trunk(inputs), branch)
        torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize(
        ("kind", "size"), [("bottleneck", 8 * 32 + 8 + 32 * 8 + 32), ("lora", 4 * 3 * 32)]
    )
    def test_every_block_has_one(self, adapter, size):
        for role in ROLES:
            assert sum(p.numel() for p in adapter.parameters_of[role].values()) == 2 * size


class TestAdapterConfig:
    def test_bottleneck(self):
        config = adapter_config("bottleneck", reduction_factor=8, width=32)
        assert isinstance(config, BottleneckConfig)
        assert (config.reduction_factor, config.non_linearity, config.scaling) == (8, "relu", 1.0)
        assert (config.init_weights, config.init_std) == (True, 0.02)

    def test_lora(self):
        config = adapter_config("lora", lora_rank=5, width=32)
        assert isinstance(config, LoraConfig)
        assert (config.r, config.lora_alpha, config.lora_dropout) == (5, 10, 0.0)
        assert set(config.target_modules) == {"query", "value"}

    @pytest.mark.parametrize(
        ("kind", "options", "message"),
        [
            (
                "bottleneck",
                {"reduction_factor": 5},
                "reduction-factor = 5; allowed: a divisor of .* width, 32",
            ),
            ("bottleneck", {"reduction_factor": 64}, "reduction-factor = 64; allowed: a divisor of .* 32"),
            ("lora", {"lora_rank": 33}, "lora-rank = 33; allowed: 1 to the backbone's width, 32"),
            ("prefix", {}, "adapter = 'prefix'; allowed: 'bottleneck', 'lora', 'prompt'"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, kind, options, message):
        with pytest.raises(ValueError, match=f"^{message}$"):
            adapter_config(kind, width=32, **options)

    @pytest.mark.parametrize("options", [{"reduction_factor": 32}, {"lora_rank": 32}])
    def test_the_extremes_fit(self, options):
        kind = "lora" if "lora_rank" in options else "bottleneck"
        adapter_config(kind, width=32, **options)


class TestOpening:
    def test_settings_decide_and_one_is_made_a_process(self, run_config, small_backbone):
        settings = read_settings(run_config(seed=4))
        adapter = open_learner(settings)
        assert open_learner(read_settings(run_config(seed=4, alpha=0.5))) is adapter
        expected = adapt(load_backbone(str(small_backbone)), BottleneckConfig(reduction_factor=4), seed=4)
        assert same(adapter.state("shared"), expected.state("shared"))
        assert adapter.device.type == "cpu"

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"reduction_factor": 5}, "reduction-factor = 5"),
            ({"adapter": "lora", "lora_rank": 99}, "lora-rank = 99"),
            ({"device": "gpu"}, "device = 'gpu'"),
            ({"backbone": "no/such/folder"}, "backbone = 'no/such/folder'"),
        ],
    )
    def test_what_cannot_be_had_is_refused_in_one_line(self, run_config, changes, said):
        with pytest.raises(ValueError) as error:
            open_learner(read_settings(run_config(**changes)))
        assert str(error.value).startswith(said)
        assert "\n" not in str(error.value)


def test_making_one_warns_of_nothing():
    """PEFT reads what transformers has deprecated; the reader of a program can do nothing about it."""
    model, *_ = bert()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DualAdapter(model, lora(["query"]), head="classifier", seed=0)
