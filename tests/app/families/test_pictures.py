"""Several pictures an example, for every family: its features, parted and whole, and the step on them."""

import copy

import pytest
import torch
from transformers import ViltForImagesAndTextClassification

from app.adapters import Adapter, adapt
from app.backbones import Backbone, fingerprint, load_backbone
from app.dual_adapter import ROLES
from app.families.vilt import fuse_attention, keep_patch_order
from app.heads import answer_with_new_head
from app.methods.feddpa import MixedAdapters
from app.mkd import Distillation, make_optimizer, mkd_step, reference_step
from tests.app.families.test_whole_forwards import IMAGES, save_small

BRANCHES = ("student", "teacher", "local")


@pytest.fixture(scope="module")
def pair():
    """Return four examples of two pictures each, as bytes."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[1, 4:] = mask[3, 2:] = 0
    return {
        "input_ids": torch.randint(4, 60, (4, 6), generator=generator) * mask,
        "attention_mask": mask,
        "pixel_values": torch.randint(0, 256, (4, 2, 3, 32, 32), generator=generator).to(torch.uint8),
    }


@pytest.fixture(scope="module", params=["vilt", "vit", *sorted(IMAGES)])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def each(kind, tmp_path_factory, small_backbone, small_vit):
    """Return a small backbone of a family."""
    if kind in ("vilt", "vit"):
        return load_backbone(str({"vilt": small_backbone, "vit": small_vit}[kind]))
    return load_backbone(str(save_small(kind, tmp_path_factory.mktemp(kind), small_backbone)))


def differing(on, config=None, kind="bottleneck", learner=None):
    """Return an adapted backbone whose three adapters differ visibly."""
    adapter = adapt(on, config or Adapter(kind, 4, 3).config(on), **({"kind": learner} if learner else {}))
    generator = torch.Generator().manual_seed(1)
    for role in ROLES:
        state = adapter.state(role)
        adapter.load(role, {n: torch.randn(v.shape, generator=generator) * 0.2 for n, v in state.items()})
    return adapter


class TestVilt:
    """Against transformers' model for NLVR2 on the same weights, which shuffles the patches."""

    @pytest.fixture
    def stock(self, small_vilt):
        def build(weights):
            made = ViltForImagesAndTextClassification(copy.deepcopy(weights.config)).eval()
            made.vilt.load_state_dict(weights.state_dict())
            return made

        return build

    @staticmethod
    def expected(stock, backbone, pair):
        """Return what the stock model's classifier is given."""
        given = []
        hook = stock.classifier.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        with torch.no_grad():
            stock(**{**pair, "pixel_values": backbone.processor.normalise(pair["pixel_values"])})
        hook.remove()
        return given[0]

    @pytest.fixture
    def of(self, backbone):
        """Return a backbone, as this project prepares it, of a ViLT."""

        def of(model):
            model = fuse_attention(keep_patch_order(model))
            return Backbone("small", model, backbone.processor, fingerprint(model))

        return of

    @pytest.mark.parametrize("types", [3, 2])
    def test_features_are_what_the_model_for_nlvr2_gives_its_classifier(
        self, small_vilt, stock, of, pair, types
    ):
        weights = small_vilt(modality_type_vocab_size=3, num_images=2)
        table, model = (
            weights.embeddings.token_type_embeddings.weight,
            small_vilt(modality_type_vocab_size=types),
        )
        if types == 2:  # of which the published code makes three so
            table[2] = table[1]
        own = {"embeddings.token_type_embeddings.weight": table[:types]}
        model.load_state_dict({**weights.state_dict(), **own})
        ours = of(model)
        expected = self.expected(stock(weights), ours, pair)
        assert expected.shape == (4, 64)
        assert (expected[:, :32] - expected[:, 32:]).abs().max() > 0.01
        torch.testing.assert_close(ours.features(ours.model, pair), expected, atol=1e-5, rtol=0)
        # Parted: adapters of zeros change nothing.
        adapter = adapt(ours, Adapter("bottleneck", 4, 3).config(ours))
        adapter.receive({name: torch.zeros_like(value) for name, value in adapter.shared().items()})
        found = adapter.features(adapter.trunk(pair), "student")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_the_second_picture_is_of_a_type_of_its_own(self, small_vilt, of, pair):
        ours = of(small_vilt(modality_type_vocab_size=3))
        first, second = ours.features(ours.model, pair).chunk(2, dim=1)
        turned = {**pair, "pixel_values": pair["pixel_values"].flip(1)}
        other_first, other_second = ours.features(ours.model, turned).chunk(2, dim=1)
        assert (first - other_second).abs().amax(1).min() > 1e-3
        assert (second - other_first).abs().amax(1).min() > 1e-3

    def test_one_picture_is_one_pass(self, backbone, dual, pair):
        adapter, calls = dual(), []
        backbone.model.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
        adapter.model.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
        one = {**pair, "pixel_values": pair["pixel_values"][:, 0]}
        for batch, passes in ((one, 1), (pair, 2)):
            for compute in (
                lambda batch=batch: backbone.features(backbone.model, batch),
                lambda batch=batch: adapter.features(adapter.trunk(batch), "student"),
            ):
                calls.clear()
                compute()
                assert len(calls) == passes


def test_their_order_and_each_of_them_matters(each, kind, pair):
    features, pixels = each.features(each.model, pair), pair["pixel_values"]
    assert features.shape == (4, each.all_width(2))
    for other in (pixels.flip(1), pixels[:, [0, 0]], pixels[:, [1, 1]]):
        found = each.features(each.model, {**pair, "pixel_values": other})
        assert ((found - features).abs().amax(1) > 1e-3).all()
    # The first one's features come first, as if it were alone.
    one = each.features(each.model, {**pair, "pixel_values": pixels[:, 0]})
    assert one.shape == (4, each.width)
    alone = each.width // 3 if kind in ("clip", "siglip") else each.width
    torch.testing.assert_close(features[:, :alone], one[:, :alone], atol=1e-6, rtol=0)


@pytest.mark.parametrize("adapters", ["bottleneck", "lora"])
def test_parted_or_whole_every_branch_is_the_same(each, pair, adapters):
    adapter = differing(each, kind=adapters)
    for branch in BRANCHES:
        whole = adapter(pair, branch)
        torch.testing.assert_close(adapter.features(adapter.trunk(pair), branch), whole, atol=1e-5, rtol=0)
    assert (adapter(pair, "student") - adapter(pair, "teacher")).abs().max() > 1e-3


@pytest.mark.parametrize("adapters", ["bottleneck", "lora"])
def test_the_step_is_the_published_one(each, pair, adapters):
    scores = torch.eye(5)[[0, 1, 2, 1]]
    ends = []
    for step in (mkd_step, reference_step):
        adapter = differing(each, kind=adapters)
        answer_with_new_head(adapter, each.all_width(2), 5, 0, "private")
        before = {**adapter.shared(), **adapter.private()}
        optimizer = make_optimizer(adapter, 1e-3, 0.0)
        for _ in range(4):
            step(adapter, optimizer, pair, scores, Distillation(alpha=0.7, beta=1.6))
        ends.append({**adapter.shared(), **adapter.private()})
        assert [key for key in before if torch.equal(before[key], ends[-1][key])] == []
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "siglip"], indirect=True)
def test_two_encoders_have_an_embedding_of_each_image_and_read_the_text_once(each, kind, pair):
    read = []
    hook = each.model.text_model.register_forward_hook(lambda *_: read.append(1))
    features = each.features(each.model, pair)
    hook.remove()
    assert len(read) == 1
    pixels = each.processor.normalise(pair["pixel_values"])
    width = each.width // 3
    texts = {key: pair[key] for key in ("input_ids", "attention_mask")}

    def unit(embedding):
        return embedding / embedding.pow(2).sum(1, keepdim=True).sqrt()

    text = unit(each.model.get_text_features(**texts).pooler_output)
    one, two = (unit(each.model.get_image_features(pixel_values=pixels[:, n]).pooler_output) for n in (0, 1))
    expected = torch.cat([one, two, text, one * text, two * text], dim=1)
    assert expected.shape == (4, 5 * width)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("adapters", ["bottleneck", "lora"])
def test_shares_of_each_example_are_those_of_both_its_pictures(each, pair, adapters):
    """FedDPA has shares for each row: no row may get another's."""
    adapter = differing(each, kind=adapters, learner=MixedAdapters)
    adapter.references = adapter.features(adapter.trunk(pair), "local")[:2]
    together = adapter.features(adapter.trunk(pair), "mixed")
    for row in range(4):
        alone = {key: value[row : row + 1] for key, value in pair.items()}
        found = adapter.features(adapter.trunk(alone), "mixed")
        torch.testing.assert_close(together[row : row + 1], found, atol=1e-5, rtol=0)
