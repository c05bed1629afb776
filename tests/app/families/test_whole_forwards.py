"""Every family that computes by whole forwards: features, adapters, a run on it, what stock PEFT loads."""

import shutil

import pytest
import torch
import transformers
from peft import PeftModel

from app.adapters import Adapter, adapt
from app.backbones import load_backbone
from app.dual_adapter import ROLES
from app.examples import Examples
from app.heads import answer_with_new_head
from app.mkd import Distillation, make_optimizer, mkd_step, reference_step
from tests.cards import run_card

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = {**TOWER, "image_size": 32, "patch_size": 16}
READ = {**TOWER, "vocab_size": 200, "max_position_embeddings": 16, "pad_token_id": 0}
LLAMA = {**READ, "num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3}


def make(name):
    """Return a model of a few thousand random weights."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    dual = {"text_config": {**READ, **ends}, "vision_config": {**SEEN, "hidden_size": 64}}
    models = {
        "clip": lambda: transformers.CLIPModel(transformers.CLIPConfig(**dual, projection_dim=24)),
        "siglip": lambda: transformers.SiglipModel(
            transformers.SiglipConfig(
                text_config={**READ, **ends, "projection_size": 64}, vision_config={**SEEN, "hidden_size": 64}
            )
        ),
        "blip": lambda: transformers.BlipForQuestionAnswering(
            transformers.BlipConfig(
                text_config={**READ, "encoder_hidden_size": 32, "bos_token_id": 2, "sep_token_id": 3},
                vision_config=SEEN,
            )
        ),
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**READ), add_pooling_layer=False),
        "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**READ)),
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(
                dim=32, hidden_dim=48, n_layers=2, n_heads=2, vocab_size=200, max_position_embeddings=16
            )
        ),
        "gpt2": lambda: transformers.GPT2Model(
            transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=200, n_positions=16)
        ),
        "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(**LLAMA)),
        "qwen2": lambda: transformers.Qwen2Model(transformers.Qwen2Config(**LLAMA)),
    }
    model = models[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # as drawn, features hardly depend on inputs
    return model


NAMES = ("clip", "siglip", "blip", "bert", "roberta", "distilbert", "gpt2", "llama", "qwen2")
IMAGES = {"clip", "siglip", "blip"}
PICTURES = ("pixels", "image_of")


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


def save_small(name, folder, tokenizer):
    """Save a model with the tokenizer of another."""
    make(name).save_pretrained(folder)
    for path in tokenizer.iterdir():
        if "token" in path.name or path.name == "vocab.txt":
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory, small_backbone):
    return save_small(name, tmp_path_factory.mktemp(name), small_backbone)


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(str(folder))


@pytest.fixture(scope="module")
def batch(backbone):
    questions = ["what color is the small circle ?", "a red square", "is there", "the circle"]
    batch = backbone.processor.texts(questions)
    if size := backbone.processor.image_size:
        generator = torch.Generator().manual_seed(0)
        batch["pixel_values"] = torch.randint(0, 256, (4, 3, size, size), generator=generator).to(torch.uint8)
    return batch


def test_features_have_their_width_and_depend_on_every_input(name, backbone, batch):
    features = backbone.features(backbone.model, batch)
    assert features.shape == (4, backbone.width)
    # Another example's text, and for those that see another's picture, change them.
    changed = [{"input_ids", "attention_mask"}, *([{"pixel_values"}] if name in IMAGES else [])]
    for keys in changed:
        other = {key: value.roll(1, 0) if key in keys else value for key, value in batch.items()}
        assert ((backbone.features(backbone.model, other) - features).abs().amax(1) > 1e-3).all()
    assert (backbone.processor.image_size > 0) == (name in IMAGES)


def test_it_is_the_same_in_every_process(folder, backbone):
    """Whatever its checkpoint lacks is not drawn: clients and server compare fingerprints."""
    torch.manual_seed(1)
    load_backbone.cache_clear()
    assert load_backbone(str(folder)).fingerprint == backbone.fingerprint


def test_an_examples_features_do_not_depend_on_the_others_of_its_batch(backbone):
    texts = backbone.processor.texts(["a", "what color is the small circle ?"])
    side = backbone.processor.image_size
    picture = torch.arange(3 * side * side).remainder(251).to(torch.uint8).view(1, 3, side, side)
    pixels = {"pixels": picture, "image_of": torch.tensor([0, 0])} if side else dict.fromkeys(PICTURES)
    examples = Examples(**pixels, **texts, scores=torch.eye(2))

    def features(*rows):
        inputs, _ = examples.batch(torch.tensor(rows), torch.device("cpu"))
        return backbone.features(backbone.model, inputs)[0]

    torch.testing.assert_close(features(0, 1), features(0), atol=1e-5, rtol=0)
    assert (features(1) - features(0)).abs().max() > 1e-2


def test_siglip_reads_a_text_as_its_library_pads_it(tmp_path, small_backbone):
    """However questions are cut: its published processor pads to one length, and gives no mask."""
    folder = str(save_small("siglip", tmp_path / "model", small_backbone))
    for backbone, question in (
        (load_backbone(folder), "the small circle"),
        (load_backbone(folder, max_tokens=4), "the small"),
    ):
        texts = {**backbone.processor.texts(["the small circle"])}
        texts["pixel_values"] = torch.zeros(1, 3, 32, 32)
        told = backbone.processor.tokenizer(
            question, padding="max_length", max_length=16, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            expected = backbone.model(input_ids=told, pixel_values=texts["pixel_values"]).text_embeds
            found = backbone.features(backbone.model, texts).chunk(3, dim=1)[1]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_padding_changes_nothing(backbone, batch):
    longest = int(batch["attention_mask"].sum(1).max())
    texts = ("input_ids", "attention_mask")
    cut = {key: value[:, :longest] if key in texts else value for key, value in batch.items()}
    if backbone.model.config.model_type == "siglip":
        pytest.skip("SigLIP was trained on texts of one length, padding included")
    torch.testing.assert_close(
        backbone.features(backbone.model, cut), backbone.features(backbone.model, batch), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_the_step_is_the_published_one_and_moves_every_array(backbone, batch, kind):
    scores = torch.eye(5)[[0, 1, 2, 1]]
    ends = []
    for step in (mkd_step, reference_step):
        adapter = adapt(backbone, Adapter(kind, 4, 3).config(backbone))
        generator = torch.Generator().manual_seed(1)
        for role in ROLES:
            state = adapter.state(role)
            adapter.load(role, {n: torch.randn(v.shape, generator=generator) * 0.2 for n, v in state.items()})
        answer_with_new_head(adapter, backbone.width, 5, 0, "private")
        before = {**adapter.shared(), **adapter.private()}
        optimizer = make_optimizer(adapter, 1e-3, 0.0)
        for _ in range(4):
            step(adapter, optimizer, batch, scores, Distillation(alpha=0.7, beta=1.6))
        ends.append({**adapter.shared(), **adapter.private()})
        assert [key for key in before if torch.equal(before[key], ends[-1][key])] == []
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_a_run_ends_in_an_adapter_that_stock_peft_loads(federation, name, folder, backbone, batch, kind):
    if name not in ("blip", "clip", "bert", "qwen2"):
        pytest.skip("one of each kind")
    clients = federation(backbone=str(folder), adapter=kind, lora_rank=3, num_rounds=1, batch_size=6)
    run = clients.serve()
    loaded = PeftModel.from_pretrained(backbone.fork(), str(run / "adapter"))
    adapter = adapt(backbone, Adapter(kind, 4, 3).config(backbone))
    last = [m for way, m in clients.wire if way == "to client" and m.metadata.message_type == "evaluate"][-1]
    from app.records import from_record

    adapter.receive(from_record(last.content["arrays"]))
    with torch.no_grad():
        expected = adapter(batch, "student")
        found = backbone.features(loaded.get_base_model(), batch)
        assert (expected - backbone.features(backbone.model, batch)).abs().max() > 1e-5
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    # By the card of the run, on its own picture and question.
    names = run_card(run / "adapter")
    asked = backbone.processor.texts([names["question"]])
    if name in IMAGES:
        asked["pixel_values"] = backbone.processor.image(names["image"])[None]
    with torch.no_grad():
        torch.testing.assert_close(names["features"], adapter(asked, "student"), atol=1e-5, rtol=0)
