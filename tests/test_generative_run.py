"""Whole runs of the real apps on a generative backbone, in one process."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from app.adapters import Adapter, adapt
from app.backbones import load_backbone
from app.records import from_record
from server_app.run_log import RunLog
from tests.app.tiny_generative import MODELS, made, pictures_alone
from tests.cards import run_card
from tests.data_partitions.given_files import picture, write

FAST = ("LLaVA", "Qwen2.5-VL")
EACH = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


@pytest.fixture(scope="module", params=EACH)
def folder(request, tmp_path_factory):
    return made(request.param, tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return made("LLaVA", tmp_path_factory.mktemp("llava"))


@pytest.fixture
def writing(federation):
    """Build an in-process federation of clients that write; keywords are settings."""

    def build(folder, **overrides):
        fixed = {"backbone": str(folder), "loss": "next-token", "adapter": "lora", "lora_rank": 3}
        return federation(2, **{**fixed, "train_examples": 6, "test_examples": 3, **overrides})

    with pictures_alone():
        yield build


@pytest.mark.parametrize("parts", ["language", "language connector vision"])
def test_a_run_ends_in_an_adapter_that_stock_peft_loads(writing, folder, parts):
    if "Gemma3" in (folder / "config.json").read_text():  # its connector has no layer
        parts = parts.replace(" connector", "")
    clients = writing(folder, **{"writing.tokens": 4, "adapted_parts": parts})
    run = clients.serve()
    rows = rows_of(run)
    assert [(row["round"], row["partition"]) for row in rows] == [
        (server_round, partition) for server_round in range(3) for partition in range(2)
    ]
    assert not any("refused" in row for row in rows)
    assert all(row["delta-shared"] > 1e-4 and row["delta-local"] > 1e-4 for row in rows[2:])
    assert all(0 <= row[branch] <= 1 for row in rows for branch in ("student", "local", "teacher"))
    # The adapter with the stock model and the processor beside it, on a picture and a question.
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    stock = PeftModel.from_pretrained(base, run / "adapter").eval()
    processor = AutoProcessor.from_pretrained(run / "adapter")
    asked = [{"type": "image"}, {"type": "text", "text": "what color ?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(images=[Image.new("RGB", (40, 24), "red")], text=[text], return_tensors="pt")
    sent = [m for way, m in clients.wire if way == "to client" and m.metadata.message_type == "evaluate"][-1]
    backbone = load_backbone(str(folder), parts=parts)
    ours = adapt(backbone, Adapter("lora", lora_rank=3).config(backbone))
    ours.receive(from_record(sent.content["arrays"]))
    with torch.no_grad():
        expected = ours(dict(inputs), "student")
        assert (expected - backbone.model(**inputs).logits).abs().max() > 1e-4
        torch.testing.assert_close(stock(**inputs).logits, expected, atol=1e-5, rtol=0)
    # As the card says.
    space = run_card(run / "adapter")
    assert isinstance(space["answer"], str)
    merging = (run / "adapter" / "README.md").read_text().split("```python\n")[2]
    exec(merging.split("```")[0].replace('"merged"', repr(str(run / "merged"))), space)
    merged = AutoModelForImageTextToText.from_pretrained(run / "merged").eval()
    assert AutoProcessor.from_pretrained(run / "merged").chat_template == processor.chat_template
    # As lmms-eval opens it beside model and processor.
    assert AutoTokenizer.from_pretrained(run / "merged").get_vocab() == processor.tokenizer.get_vocab()
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-4, rtol=0)
    assert stock.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", ["LLaVA", "tiny-vlm"])
def test_a_run_on_a_byte_a_weight_ends_in_an_adapter_for_the_stock_model(writing, llava, name):
    """Which holds float32, be it the folder's own or, of a built-in one, beside the adapter."""
    pytest.importorskip("torchao", reason="the extra int8")
    folder = llava if name == "LLaVA" else name
    run = writing(folder, num_rounds=1, backbone_precision="int8").serve()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not any("refused" in row for row in rows)
    assert all(row["delta-shared"] > 1e-4 and row["delta-local"] > 1e-4 for row in rows)
    adapter, plain = run / "adapter", load_backbone(str(folder)).model
    base = AutoModelForImageTextToText.from_pretrained(llava if name == "LLaVA" else adapter / "base_model")
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in base.state_dict().items())
    assert {weight.dtype for weight in base.parameters()} == {torch.float32}
    ids = torch.randint(20, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = PeftModel.from_pretrained(base, adapter).eval()(input_ids=ids).logits
        assert (found - plain(input_ids=ids).logits).abs().max() > 1e-4


def test_no_head_is_kept_and_what_travels_is_the_shared_adapter_alone(writing, llava):
    clients = writing(llava, num_rounds=1)
    run = clients.serve()
    assert not (run / "adapter" / "classifier.safetensors").exists()
    down = [m for way, m in clients.wire if way == "to client" and m.metadata.message_type == "train"]
    assert all("lora_" in name and "language_model" in name for m in down for name in m.content["arrays"])


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_what_the_backbone_says_by_itself_is_measured_before_the_first_round(writing, llava, federation):
    clients = writing(llava, num_rounds=1)
    before = [row for row in rows_of(clients.serve()) if row["round"] == 0]
    assert [row["partition"] for row in before] == [0, 1]
    assert all("student" in row and "ce-student" not in row for row in before)
    kinds = [m.metadata.message_type for way, m in clients.wire if way == "to client"]
    assert kinds == ["query"] * 2 + ["evaluate"] * 2 + ["train"] * 2 + ["evaluate"] * 2
    first, trained = (clients.wire[at][1].content["arrays"] for at in (4, 8))
    assert all(np.array_equal(first[name].numpy(), trained[name].numpy()) for name in first)
    # A head that is to be trained says nothing yet.
    assert min(row["round"] for row in rows_of(federation(2, run_name="headed").serve())) == 1


@pytest.mark.parametrize("written", [False, True])
def test_what_was_measured_before_a_stop_is_not_measured_again(writing, llava, home, monkeypatch, written):
    ended = RunLog.round_ended

    def stopped(self, server_round):
        if written:
            ended(self, server_round)
        raise KeyboardInterrupt

    first = writing(llava, num_rounds=2, run_name="stopped")
    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "round_ended", stopped)
        with pytest.raises(KeyboardInterrupt):
            first.serve()
    clients = writing(llava, num_rounds=2, resume="stopped", run_name="")
    clients.serve()
    assert [row["round"] for row in rows_of(home / "runs" / "stopped")] == [0, 0, 1, 1, 2, 2]
    asked = [m for way, m in clients.wire if way == "to client" and m.metadata.message_type == "evaluate"]
    # After each of two rounds, and before them if it has to be.
    assert len(asked) == (4 if written else 6)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"batch_size": 2, "gradient_accumulation": 2}, {"adapted_parts": "language connector vision"}],
    ids=["batch by batch", "accumulated", "with pictures"],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(writing, llava, overrides):
    whole = writing(llava, num_rounds=2, run_name="whole", **overrides).serve()
    overrides = {"schedule": "constant", **overrides}
    writing(llava, num_rounds=1, run_name="stopped", **overrides).serve()
    straight = writing(llava, num_rounds=2, run_name="straight", **overrides).serve()
    writing(llava, num_rounds=2, resume="stopped", run_name="", **overrides).serve()
    runs = (straight, straight.with_name("stopped"), whole)
    files = [run / "adapter" / "adapter_model.safetensors" for run in runs]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


@pytest.mark.slow
def test_a_stopped_run_of_each_class_goes_on(writing, folder):
    short = {"schedule": "constant", "writing.tokens": 2}
    writing(folder, num_rounds=1, run_name="stopped", **short).serve()
    straight = writing(folder, num_rounds=2, run_name="straight", **short).serve()
    writing(folder, num_rounds=2, resume="stopped", run_name="", **short).serve()
    runs = (straight, straight.with_name("stopped"))
    files = [run / "adapter" / "adapter_model.safetensors" for run in runs]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "overrides",
    [
        {"backbone_precision": "bfloat16"},
        {"gradient_checkpointing": True},
        {"adapter": "bottleneck"},
        {"adapter": "bottleneck", "adapted_parts": "language vision", "gradient_checkpointing": True},
        {"adapted_parts": "connector", "backbone_precision": "bfloat16"},
        {"method": "adapter"},
        {"method": "local"},
        {"update": "joint", "writing.score": "rouge-l", "max_tokens": 100},
    ],
    ids=lambda overrides: " ".join(map(str, overrides.values())),
)
def test_every_kind_of_run_trains_and_writes(writing, llava, overrides):
    run = writing(llava, num_rounds=1, **overrides).serve()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not any("refused" in row for row in rows)
    assert all(row[name] > 1e-5 for row in rows for name in row if name.startswith("delta-"))


@pytest.fixture
def choosing(writing, llava, tmp_path):
    """Run on a file of questions with these columns, scored by choice; returns the rows."""

    def run(name, columns):
        for n in range(24):
            picture(tmp_path / "data" / f"{n}.png", 10 * n)
        records = [{"image": f"{n}.png", "question": "what color ?", **columns(n)} for n in range(24)]
        for split in ("train", "test"):
            write(tmp_path / "data" / f"{split}.jsonl", records)
        given = {"benchmark": "files", "data_dir": str(tmp_path / "data"), "num_rounds": 1, "run_name": name}
        folder = writing(llava, **given, test_examples=12, **{"writing.score": "choice"}).serve()
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return run


def test_among_an_examples_options_one_is_chosen(choosing):
    """Of ten annotators two say the one and two the other."""
    said = [*["grey"] * 6, *["red"] * 2, *["blue"] * 2]
    rows = choosing("own", lambda _: {"answers": said, "options": ["red", "blue"]})
    scores = [row[branch] for row in rows for branch in ("student", "local", "teacher")]
    # Before the round and after it, two clients.
    assert scores == [pytest.approx(0.6)] * 12


def test_without_options_one_of_the_clients_answers_is_chosen(choosing):
    answers = ("red", "blue", "yes")
    own = choosing("own", lambda n: {"answer": answers[n % 3], "options": sorted(answers)})
    listed = choosing("listed", lambda n: {"answer": answers[n % 3]})
    scores = [[row[branch] for row in rows for branch in ("student", "teacher")] for rows in (own, listed)]
    assert scores[0] == scores[1]
    assert 0 < min(scores[0]) <= max(scores[0]) < 1


def test_options_without_the_right_answer_are_refused_by_name(choosing):
    rows = choosing("none", lambda _: {"answer": "red", "options": ["green", "dark red"]})
    refused = [row["refused"] for row in rows if "refused" in row]
    assert len(refused) == 4
    assert all(
        "example 0 with writing.score = 'choice': none of its 2 options is right" in r for r in refused
    )


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"loss": "bce-scores"}, "loss = 'bce-scores' with backbone = .*; allowed: 'next-token'"),
        ({"method": "full"}, "method = 'full' with loss = 'next-token', whose pictures"),
        ({"head": "shared"}, "head = 'shared' with loss = 'next-token'; allowed: 'private'"),
        ({"augment": True}, "augment = true.* with loss = 'next-token'; allowed: false"),
        ({"align.when": "end"}, "teacher.model = '' with align.when = 'end'; allowed: a folder"),
        (
            {"align.when": "end", "align.labels": "none", "align.beta": 0.0},
            "teacher.model = '', align.labels = 'none' and align.when = 'end' with loss = 'next-token'",
        ),
        (
            {"align.when": "end", "teacher.model": "x", "align.target": "pooled"},
            "align.target = 'pooled' and align.when = 'end' with loss = 'next-token'; allowed: 'teacher'",
        ),
        (
            {"align.when": "end", "teacher.model": "x", "align.part": "head"},
            "align.part = 'head' with head = 'private'",
        ),
        (
            {"align.when": "end", "teacher.model": "x", "teacher.margin": 0.1},
            "teacher.margin = 0.1 and align.when = 'end' with loss = 'next-token'; allowed: 0.0",
        ),
        (
            {"align.when": "end", "teacher.model": "x", "teacher.temperature": 2.0},
            "teacher.temperature = 2.0 and align.when = 'end' with loss = 'next-token'; allowed: 1.0",
        ),
        ({"pretrain.part": "adapter", "pretrain.encoder": "x"}, "pretrain.part = 'adapter' with loss = "),
        (
            {"backbone": "tiny-vilt"},
            "loss = 'next-token' with backbone = 'tiny-vilt'; allowed: 'bce-scores', ",
        ),
        (
            {"adapted_parts": "language vision", "loss": "bce-scores"},
            "adapted-parts = 'language vision' with loss = 'bce-scores'; allowed: 'language', or",
        ),
        (
            {"backbone_precision": "int8", "backbone_weights": "random"},
            "backbone-weights = 'random' with backbone-precision = 'int8', .*; allowed: 'pretrained'",
        ),
        ({"backbone_precision": "nf4", "device": "cpu"}, "'nf4' with device = 'cpu'; allowed: 'int8', or"),
        ({"backbone_precision": "nf4", "device": "auto"}, "backbone-precision = 'nf4' without CUDA; allowed"),
        (
            {"adapted_parts": "vision language"},
            "adapted-parts = 'vision language'; allowed: 'language', 'con",
        ),
        (
            {"adapted_parts": "connector", "adapter": "bottleneck"},
            "adapter = 'bottleneck' with adapted-parts = 'connector': no place .* LlavaForCond.*; allowed",
        ),
        ({"backbone": "tiny-vilt", "backbone_precision": "bfloat16"}, "backbone-precision = 'bfloat16'"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_end_the_run_by_name(writing, llava, monkeypatch, overrides, line):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=line):
        writing(**{"folder": llava, **overrides}).serve()
