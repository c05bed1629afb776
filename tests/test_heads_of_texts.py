"""Runs whose answers are chosen by their texts: no head is trained, and none is private."""

import json
import re

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

from app.backbones import load_backbone
from app.records import from_record
from app.settings import read_settings
from client_app.asking import Asked
from client_app.client import Client, _examples, data_options
from data_partitions.benchmarks import load_partition
from tests.app.families.test_whole_forwards import make, save_small
from tests.bad_input.ends import error_of
from tests.cards import STOCK, code_of, imported, run_card
from tests.client_app.test_asking import example_of
from tests.private_files import newest_state
from tests.test_resume import finish, sites  # noqa: F401

KINDS = {"prompts": "clip", "decoder": "blip"}
BRANCHES = ("student", "local", "teacher")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=KINDS)
def head(request):
    return request.param


@pytest.fixture(scope="module")
def folder(head, tmp_path_factory, small_backbone):
    return save_small(KINDS[head], tmp_path_factory.mktemp(KINDS[head]), small_backbone)


@pytest.fixture
def fixed(head, folder):
    return {"head": head, "loss": "cross-entropy", "backbone": str(folder), "lora_rank": 3}


@pytest.fixture
def run(federation, fixed):
    """Build a federation on the model; keywords are settings."""
    return lambda count=2, **more: federation(count, **{**fixed, **more})


def expected_logits(clients, number, rows):
    """Return the frozen model's own logits of a client's rows."""
    settings = read_settings(clients.run_config)
    partition = load_partition("scenes", number, 2, data_options(settings))
    backbone = load_backbone(settings.backbone, head=settings.head, prompt=settings.answer_prompt)
    examples = backbone.examples(getattr(partition, rows), CPU, partition.answers)
    inputs, scores = examples.batch(torch.arange(len(examples)), CPU)
    with torch.no_grad():
        return backbone.features(backbone.model, inputs), scores


def test_scores_before_training_are_those_of_the_frozen_model(run):
    """A LoRA adds nothing at first, in round 0, and with a rate of nearly nothing goes on so."""
    clients = run(num_rounds=1, learning_rate=1e-20, adapter="lora")
    rows = [json.loads(line) for line in (clients.serve() / "metrics.jsonl").read_text().splitlines()]
    for number in (0, 1):
        logits, scores = expected_logits(clients, number, "test")
        expected = float(scores.gather(1, logits.argmax(1)[:, None]).mean())
        own = [row for row in rows if row["partition"] == number]
        assert [row["round"] for row in own] == [0, 1]
        assert [row[branch] for row in own for branch in BRANCHES] == pytest.approx([expected] * 6)


def test_what_is_private_is_the_local_adapter_alone_and_what_travels_the_shared_one(run, home):
    clients = run()
    clients.serve()
    assert set(newest_state(home / "clients", "test", 1)) == {"private-local"}
    sent = [message.content["arrays"] for _, message in clients.wire if "arrays" in message.content]
    assert all(".bottleneck_" in name for arrays in sent for name in arrays)


@pytest.mark.parametrize(
    ("adapter", "method"),
    [
        ("bottleneck", "feddat"),
        ("lora", "feddat"),
        ("bottleneck", "adapter"),
        ("bottleneck", "fedavg-ft"),
        ("bottleneck", "ditto"),
        ("lora", "fedsa-lora"),
        ("lora", "plora"),
        ("lora", "flexlora"),
    ],
)
def test_every_method_that_trains_an_adapter_lowers_the_loss(run, home, adapter, method):
    folder = run(adapter=adapter, method=method, num_rounds=4, learning_rate=0.01).serve()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["ce-student"] for row in rows if row["partition"] == 0 and "ce-student" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["bias", "layernorm"])
def test_part_of_the_model_is_trained_through_it(run, method):
    """And of no weight is sent what answers do not depend on, or what is to stay the backbone's."""
    clients = run(method=method)
    folder = clients.serve()
    before, after = ([m for way, m in clients.wire if way == "to client"][n].content for n in (2, -1))
    first, last = (from_record(one["arrays"]) for one in (before, after))
    assert [name for name in first if torch.equal(first[name], last[name])] == []
    assert not any(name.startswith(("text_model.", "text_decoder.cls.")) for name in first)
    exported = load_file(folder / "model" / "model.safetensors")
    assert exported
    assert "load_backbone(folder, head=" in (folder / "model" / "README.md").read_text()


def test_a_run_that_was_stopped_and_resumed_gives_the_same_bytes(sites, fixed, drawn):  # noqa: F811
    _, whole = finish(*sites(**fixed), drawn)
    _, stopped = finish(*sites(**fixed), drawn, ("before its checkpoint", 2))
    assert stopped == whole


@pytest.mark.parametrize("adapter", ["bottleneck", "lora"])
def test_the_cards_lines_give_the_students_logits(run, head, folder, adapter, tmp_path):
    clients = run(num_rounds=1, adapter=adapter, **{"answer_prompt": 'it\'s "{}"'})
    run_folder = clients.serve()
    kept = run_folder / "adapter"
    card = (kept / "README.md").read_text()
    assert "own private head" not in card
    purpose = {"prompts": "zero-shot-image-classification", "decoder": "visual-question-answering"}[head]
    assert f"\npipeline_tag: {purpose}\n" in card
    assert (imported(code_of(kept)) <= STOCK) == (adapter == "lora")
    Image.effect_noise((40, 30), 90).convert("RGB").save(picture := tmp_path / "picture.png")
    names, image = run_card(kept, picture), Image.open(picture)

    backbone = load_backbone(str(folder), head=head, prompt='it\'s "{}"')
    learner = learner_of(backbone, adapter)
    last = [m for way, m in clients.wire if way == "to client" and m.metadata.message_type == "evaluate"][-1]
    learner.receive(from_record(last.content["arrays"]))
    inputs = backbone.processor.texts(["what colour is the circle?"])
    inputs |= {"pixel_values": backbone.processor.image(image)[None]}
    inputs["answers"] = backbone.answers(["red", "green", "blue"])
    with torch.no_grad():
        torch.testing.assert_close(names["logits"], learner(inputs, "student"), atol=1e-5, rtol=0)
        plain = backbone.features(backbone.model, inputs)
    assert names["answer"] == ["red", "green", "blue"][names["logits"].argmax()]
    assert (names["logits"] - plain).abs().max() > 1e-4


def learner_of(backbone, kind):
    from app.adapters import Adapter, adapt

    return adapt(backbone, Adapter(kind, 4, 3).config(backbone))


def test_stock_peft_loads_the_adapter_on_the_stock_model(run, head, folder):
    kept = run(num_rounds=1, adapter="lora").serve() / "adapter"
    model = PeftModel.from_pretrained(type(make(KINDS[head])).from_pretrained(folder), kept)
    loaded = {name.replace(".default", ""): value for name, value in model.named_parameters()}
    exported = load_file(kept / "adapter_model.safetensors")
    assert all(torch.equal(value, loaded[name]) for name, value in exported.items())
    assert any(value.any() for name, value in exported.items() if "lora_B" in name)


def test_a_client_is_asked(run, tmp_path):
    clients = run(num_rounds=1, learning_rate=1e-20, adapter="lora")
    folder = clients.serve()
    question, answers = example_of(clients, 1, path := tmp_path / "picture.png")
    said = Asked.of_run(folder, 1, 2).answer(question, path, top=len(answers))
    expected = expected_logits(clients, 1, "test")[0][0].softmax(0)
    for chosen in said.values():
        assert dict(chosen) == pytest.approx(dict(zip(answers, expected.tolist(), strict=True)), abs=1e-5)
    assert tuple(said) == BRANCHES


def test_a_benchmark_of_classes_is_scored_by_its_clients(long_tailed, head, folder):
    clients = long_tailed(head=head, backbone=str(folder), num_rounds=1)
    rows = [json.loads(line) for line in (clients.serve() / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0] * 3 + [1] * 3
    assert all(row["partition"] >= 0 and set(BRANCHES) <= row.keys() for row in rows)


def test_other_prompts_are_other_examples(run, head):
    if head != "prompts":
        pytest.skip("a decoder has none")

    def answers(prompt):
        _examples.cache_clear()
        clients = run(answer_prompt=prompt)
        return Client.of(clients.contexts[clients.node_id(0)]).examples("test").answers

    assert torch.equal(answers("a {}"), answers("a {}"))
    assert not torch.equal(answers("a {}"), answers("the {}"))


def test_the_server_aligns_by_the_texts_of_the_pools_answers(run, home):
    sizes = {"public.examples": 40, "align.steps": 4, "server_device": "cpu"}
    aligned = {"align.when": "each-round", "align.beta": 0.0, **sizes}
    folder = run(num_rounds=1, **aligned).serve()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if "align/ce" in row]
    assert row["align/accepted"] == 1
    assert row["align/ce"] < row["align/ce-before"]


REFUSED = [
    ({"method": "head"}, r"head = '{head}' with method = 'head', .*; allowed: 'private', 'shared'"),
    ({"method": "feddpa"}, r"head = '{head}' with method = 'feddpa', .*; allowed: 'private', 'shared'"),
    ({"method": "full"}, r"head = '{head}' with method = 'full', .*; allowed: 'shared'"),
    (
        {"align.part": "head", "align.when": "end", "align.beta": 0.0},
        r"align\.part = 'head' with head = '{head}', .*; allowed: 'all', .*",
    ),
    ({"loss": "bce-scores"}, r"loss = 'bce-scores' with .* and head = '{head}'; allowed: 'cross-entropy'"),
    ({"backbone": "tiny-vilt"}, r"head = '{head}' with backbone = 'tiny-vilt'; allowed: 'private', 'shared'"),
    ({"answer-prompt": "one"}, r"answer-prompt = 'one'; allowed: a text with .. for the answer"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_what_does_not_go_with_it_is_named_before_any_client_is_asked(run, home, head, overrides, message):
    clients = run(**overrides)
    assert re.fullmatch(message.format(head=head), error_of(clients, home))
    assert clients.wire == []
