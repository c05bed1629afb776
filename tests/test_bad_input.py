"""Bad input ends a run with one line before anything is trained, or is refused and reported while it runs."""

import io
import json
import re
import shutil

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flwr.app import Array
from PIL import Image
from safetensors.numpy import load_file, save_file

from app.backbones import load_backbone
from app.records import SCHEMA
from app.source import source_hash
from strategies import membership


def error_of(clients, home):
    """Run to the error and return its one line; nothing was trained, and nothing is left behind."""
    with pytest.raises((ValueError, RuntimeError)) as caught:
        clients.serve()
    assert all(message.metadata.message_type == "query" for _, message in clients.wire)
    assert not (home / "runs").exists()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


SETTINGS = [
    (
        "benchmark",
        "scene",
        r"benchmark = 'scene'; allowed: 'scenes', 'vqa-domains', 'cifar10-lt', 'cifar100-lt'",
    ),
    ("strategy", "fedsgd", r"strategy = 'fedsgd'; allowed: 'fedavg', .*'krum'"),
    ("adapter", "prompt", r"adapter = 'prompt'; allowed: 'bottleneck' or 'lora'"),
    ("method", "fedavg", r"method = 'fedavg'; allowed: 'feddat', 'adapter' or 'full'"),
    ("num-rounds", 0, r"num-rounds = 0; allowed: greater than 0"),
    ("num-rounds", -3, r"num-rounds = -3; allowed: greater than 0"),
    ("num-rounds", 2.5, r"num-rounds = 2\.5; allowed: .*integer"),
    ("num-clients", -1, r"num-clients = -1; allowed: greater than or equal to 0"),
    ("learning-rate", 0.0, r"learning-rate = 0\.0; allowed: greater than 0"),
    ("learning-rate", -0.1, r"learning-rate = -0\.1; allowed: greater than 0"),
    ("learning-rate", "fast", r"learning-rate = 'fast'; allowed: .*number"),
    ("batch-size", 0, r"batch-size = 0; allowed: greater than 0"),
    ("fraction-train", 0.0, r"fraction-train = 0\.0; allowed: greater than 0"),
    ("reduction-factor", 5, r"reduction-factor = 5; allowed: a divisor of the backbone's width, 32"),
    ("reduction-factor", 64, r"reduction-factor = 64; allowed: a divisor of the backbone's width, 32"),
    ("max-change", 0.0, r"max-change = 0\.0; allowed: greater than 0"),
    ("min-clients", 0, r"min-clients = 0; allowed: greater than 0"),
    ("max-failure-rate", 1.5, r"max-failure-rate = 1\.5; allowed: less than or equal to 1"),
    ("run-name", "../elsewhere", r"run-name = '\.\./elsewhere'; allowed: .*"),
    ("rounds", 3, r"rounds = 3 is not a setting; allowed: .*num-rounds.*"),
]


@pytest.mark.parametrize(("key", "value", "message"), SETTINGS, ids=lambda part: str(part)[:16])
def test_a_wrong_setting_is_named_before_any_client_is_asked(federation, home, key, value, message):
    clients = federation(**{key: value})
    assert re.fullmatch(message, error_of(clients, home))
    assert clients.wire == []


def test_a_rank_beyond_the_backbones_width_is_named(federation, home):
    message = "lora-rank = 33; allowed: 1 to the backbone's width, 32"
    assert error_of(federation(adapter="lora", lora_rank=33), home) == message


FULL = {"method": "full", "head": "shared", "backbone": "resnet8", "backbone_weights": "random"}
COMBINATIONS = [
    ({"head": "shared"}, r"head = 'shared' needs one answer list .* benchmark = 'scenes' has not; .*"),
    ({**FULL, "head": "private"}, r"head = 'private' with method = 'full', .*; allowed: 'shared'"),
    (
        {**FULL, "strategy": "fedadam"},
        r"strategy = 'fedadam' with method = 'full' .*; allowed: strategies .*",
    ),
    (
        {"backbone": "resnet8", "backbone_weights": "random"},
        r"backbone = 'resnet8' has no Transformer blocks for adapters; allowed with method = 'full'",
    ),
    (
        {"backbone": "resnet8"},
        r"backbone-weights = 'pretrained' with backbone = 'resnet8'; allowed: 'random'",
    ),
    ({"benchmark": "cifar10-lt"}, r"data-dir = '' with benchmark = 'cifar10-lt'; allowed: the absolute .*"),
    (
        {**FULL, "benchmark": "cifar10-lt", "data_dir": "/no/such"},
        r"data-dir = '/no/such' is no folder; allowed: one with cifar10.parquet",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), COMBINATIONS)
def test_what_does_not_go_together_is_named_before_any_client_is_asked(federation, home, overrides, message):
    clients = federation(**overrides)
    assert re.fullmatch(message, error_of(clients, home))
    assert clients.wire == []


@pytest.mark.parametrize("name", ["no-such-vilt", "/no/such/folder"])
def test_an_unknown_backbone_is_named(federation, home, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    clients = federation(backbone=name)
    assert error_of(clients, home).startswith(f"backbone = '{name}' cannot be loaded; allowed: tiny-vilt, ")
    assert clients.wire == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("heterogeneity", "color", "heterogeneity = 'color'; allowed: domain, function, scene, task"),
        ("device", "cuda:99", "device = 'cuda:99' is not available; allowed: auto, cpu, cuda, cuda:N"),
    ],
)
def test_what_only_clients_can_tell_is_named_too(federation, home, key, value, message):
    assert error_of(federation(1, **{key: value}), home) == f"node 1000: error in the handshake: {message}"


def test_a_name_that_is_taken_is_refused_and_the_run_of_that_name_kept(federation, home):
    folder = federation().serve()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = federation()
    with pytest.raises(ValueError, match=r"^run-name = 'test' is taken: .*; allowed: another name, or ''.*$"):
        again.serve()
    assert again.wire == []
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock that waiting for nodes looks at."""
    now = [0.0]
    monkeypatch.setattr(membership, "monotonic", lambda: now[0])
    monkeypatch.setattr(membership, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_clients_that_do_not_come_are_not_waited_for_forever(federation, home, clock):
    clients = federation(2, **{"num-clients": 5, "wait-seconds": 3.0})
    message = error_of(clients, home)
    assert message.startswith("expected nodes: 5, but 2 came within 3 s")
    assert "num-clients, wait-seconds" in message
    assert clock[0] == 3.0
    assert clients.wire == []


def test_nodes_that_the_federation_promised_are_waited_for(federation, home, clock):
    clients = federation(2, node_config={"num-partitions": 4}, **{"wait-seconds": 2.0})
    assert error_of(clients, home).startswith("expected nodes: 4, but 2 came within 2 s")


def test_two_nodes_with_one_partition_are_refused(federation, home):
    clients = federation(2, node_config={"partition-id": 0})
    assert error_of(clients, home) == (
        "nodes 993 and 1000 both hold partition 0: give each its own partition-id"
    )


# --- Another backbone or source at a client ---


@pytest.mark.parametrize("key", ["backbone", "source", "version", "schema"])
def test_a_client_that_runs_something_else_ends_the_run(federation, home, small_backbone, key):
    other = {"version": "0.0.9", "schema": 99}.get(key, "f" * 64)
    said = str(other)[:12]

    def alter(node, reply):
        if node == 993:
            reply.content["handshake"][key] = other
        return reply

    servers = {
        "backbone": load_backbone(str(small_backbone)).fingerprint[:12],
        "source": source_hash()[:12],
        "version": "0.1.0",
        "schema": SCHEMA,
    }[key]
    assert error_of(federation(3, alter=alter), home) == (
        f"partition 1 (node 993): {key} is {said} on the client but {servers} on the server: "
        f"give both the same {key}"
    )


# --- Real data ---


def png(value):
    noise = np.random.default_rng(value).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def domain(train=8, val=2, test=4, name="x-ray"):
    """Make rows in the format of the real data."""
    return [
        {
            "image": {"bytes": png(index), "path": f"{index}.png"},
            "image_id": str(index),
            "group_id": str(index),
            "question": f"what is {index % 3}?",
            "answer": ("yes", "no")[index % 2],
            "answer_raw": ("Yes", "No")[index % 2],
            "answer_type": "closed",
            "question_type": "presence",
            "options": None,
            "domain": name,
            "subdomain": "chest",
            "split": split,
            "source": "https://example.org",
            "license": "CC0-1.0",
        }
        for index, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test)
    ]


def write(folder, rows, name):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with one good domain, `a`."""
    write(tmp_path / "vqa", domain(name="art"), "a")
    return tmp_path / "vqa"


@pytest.fixture
def on_data(federation):
    return lambda data_dir, **more: federation(
        2, benchmark="vqa-domains", data_dir=str(data_dir), num_answers=2, **more
    )


def test_good_data_run(on_data, folder):
    """Otherwise what follows fails for another reason."""
    write(folder, domain(), "b")
    rows = rows_of(on_data(folder).serve())
    assert [(row["name"], row["num-examples"]) for row in rows] == [("art", 8), ("x-ray", 8)] * 2


def test_no_folder_is_named(on_data, home):
    clients = on_data("")
    assert error_of(clients, home) == (
        "data-dir = '' with benchmark = 'vqa-domains'; allowed: the absolute path of a folder"
    )
    assert clients.wire == []


def test_a_relative_folder_is_refused(on_data, home):
    clients = on_data("data/vqa")
    assert error_of(clients, home) == "data-dir = 'data/vqa' is relative; allowed: an absolute path"
    assert clients.wire == []


def test_a_folder_that_is_not_there_is_named(on_data, home):
    message = "data-dir = '/no/such/folder' is no folder; allowed: a folder of parquet files"
    assert message in error_of(on_data("/no/such/folder"), home)


def test_an_empty_folder_is_named(on_data, home, tmp_path):
    (tmp_path / "e").mkdir()
    message = error_of(on_data(tmp_path / "e"), home)
    assert f"data-dir = '{tmp_path / 'e'}' has no parquet files; allowed: one or more" in message


def test_a_broken_image_is_named_by_file_and_row(on_data, home, folder):
    rows = domain()
    rows[5]["image"]["bytes"] = rows[5]["image"]["bytes"][:300]
    write(folder, rows, "b")
    message = error_of(on_data(folder), home)
    assert "data-dir: b.parquet row 5: image cannot be decoded" in message
    assert "on-bad-row = 'skip' leaves such rows out" in message


def test_a_broken_image_may_be_skipped_and_is_counted(on_data, folder, caplog):
    rows = domain()
    rows[5]["image"]["bytes"] = rows[5]["image"]["bytes"][:300]
    write(folder, rows, "b")
    caplog.set_level("INFO", "flwr")
    run = on_data(folder, on_bad_row="skip").serve()
    rows = rows_of(run)
    assert [row["num-examples"] for row in rows] == [8, 7, 8, 7]
    assert any("x-ray: 1 row" in message for message in caplog.messages)


def test_a_file_that_is_no_parquet_is_named(on_data, home, folder):
    (folder / "b.parquet").write_bytes(b"PAR1 and then nothing")
    assert "data-dir: b.parquet is not a readable parquet file" in error_of(on_data(folder), home)


def test_a_missing_column_is_named(on_data, home, folder):
    write(folder, [{k: v for k, v in row.items() if k != "answer"} for row in domain()], "b")
    assert "data-dir: b.parquet has no column 'answer'" in error_of(on_data(folder), home)


def test_a_client_without_training_rows_is_named(on_data, home, folder):
    write(folder, domain(train=0), "b")
    message = error_of(on_data(folder), home)
    assert "partition-id = 1: 'x-ray' (b.parquet) has no training rows" in message


def test_a_site_with_data_of_its_own_has_one_domain(on_data, home, folder):
    write(folder, domain(), "b")
    message = error_of(on_data("/somewhere", node_config={"data-dir": str(folder)}), home)
    assert f"node-config: data-dir = '{folder}' holds 2 domains; allowed: one" in message


def test_a_site_with_data_of_its_own_trains_on_all_of_it(on_data, folder):
    run = on_data("/somewhere", node_config={"data-dir": str(folder)}).serve()
    rows = rows_of(run)
    assert [(row["partition"], row["num-examples"]) for row in rows] == [(0, 8), (1, 8)] * 2


def test_a_client_without_test_rows_trains_and_is_reported(on_data, folder):
    write(folder, domain(test=0), "b")
    run = on_data(folder).serve()
    rows = rows_of(run)
    refused = [row for row in rows if "refused" in row]
    reason = "partition 1 has no test rows to evaluate on"
    assert refused == [{"round": r, "partition": 1, "phase": "evaluate", "refused": reason} for r in (1, 2)]
    assert [row["partition"] for row in rows if "delta-shared" in row] == [0, 1, 0, 1]


# --- Replies that must not reach the aggregate ---

NAME = "base_model.model.encoder.layer.0.output.bottleneck_down.bias"


def missing(arrays, metrics):
    del arrays[NAME]


def extra(arrays, metrics):
    arrays["x"] = Array(np.zeros(2, np.float32))


def misshapen(arrays, metrics):
    arrays[NAME] = Array(np.zeros(3, np.float32))


def double(arrays, metrics):
    arrays[NAME] = Array(arrays[NAME].numpy().astype(np.float64))


def not_a_number(arrays, metrics):
    values = arrays[NAME].numpy().copy()
    values[-1] = np.nan
    arrays[NAME] = Array(values)


def infinite(arrays, metrics):
    arrays[NAME] = Array(np.full_like(arrays[NAME].numpy(), np.inf))


def local(arrays, metrics):
    arrays[NAME.replace("bias", "local.bias")] = arrays[NAME]


def head(arrays, metrics):
    arrays["head.clf_fc0.weight"] = Array(np.zeros((2, 2), np.float32))


def weightless(arrays, metrics):
    metrics["num-examples"] = 0


BAD = [
    (missing, f"array '{NAME}' is missing"),
    (extra, "array 'x' was not sent"),
    (misshapen, f"array '{NAME}' has shape (3,), sent as (8,)"),
    (double, f"array '{NAME}' is float64, sent as float32"),
    (not_a_number, f"array '{NAME}' has values that are not finite"),
    (infinite, f"array '{NAME}' has values that are not finite"),
    (local, f"array '{NAME.replace('bias', 'local.bias')}' has a private name"),
    (head, "array 'head.clf_fc0.weight' has a private name"),
    (weightless, "metric 'num-examples' is 0; a positive number is needed"),
]


def altered(change, nodes):
    def alter(node, reply):
        if node in nodes and reply.metadata.message_type == "train":
            change(reply.content["arrays"], reply.content["metrics"])
        return reply

    return alter


@pytest.mark.parametrize(("change", "reason"), BAD, ids=[change.__name__ for change, _ in BAD])
def test_a_bad_reply_is_reported_and_the_others_are_averaged(federation, change, reason):
    clients = federation(3, num_rounds=1, alter=altered(change, {993}))
    folder = clients.serve()
    rows = rows_of(folder)
    assert [row for row in rows if "refused" in row] == [
        {"round": 1, "partition": 1, "phase": "train", "refused": reason}
    ]
    assert [row["partition"] for row in rows if "delta-shared" in row] == [0, 2]

    good = [
        message.content["arrays"]
        for way, message in clients.wire
        if (way, message.metadata.message_type) == ("to server", "train")
        and message.metadata.src_node_id != 993
    ]
    assert len(good) == 2
    exported = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert exported.keys() == set(good[0])
    for name, array in exported.items():
        mean = (good[0][name].numpy().astype(np.float64) + good[1][name].numpy()) / 2
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-9)


def test_a_reply_that_leaps_is_refused(federation):
    def leap(arrays, metrics):
        arrays[NAME] = Array(np.full((8,), 1e6, np.float32))

    folder = federation(3, num_rounds=1, alter=altered(leap, {993})).serve()
    rows = rows_of(folder)
    (refused,) = [row for row in rows if "refused" in row]
    assert refused["partition"] == 1
    assert refused["refused"].startswith("changes the arrays by 2.83e+06 in norm, more than ")
    exported = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert np.abs(exported[NAME]).max() < 1


def test_a_run_of_bad_replies_alone_fails(federation, home):
    clients = federation(2, alter=altered(missing, {993, 1000}))
    with pytest.raises(RuntimeError) as caught:
        clients.serve()
    assert str(caught.value) == (
        "round 1, tried twice: 0 of 2 clients gave a valid reply, with min_clients = 1,"
        f" max_failure_rate = 0.5: array '{NAME}' is missing"
    )
    assert not (home / "runs" / "test" / "adapter").exists()
    assert not any(message.metadata.message_type == "evaluate" for _, message in clients.wire)


def test_a_bad_evaluation_is_reported_and_the_run_goes_on(federation):
    def alter(node, reply):
        if node == 993 and reply.metadata.message_type == "evaluate":
            reply.content["metrics"]["num-examples"] = float("nan")
        return reply

    folder = federation(3, num_rounds=1, alter=alter).serve()
    rows = rows_of(folder)
    assert [(row["partition"], row["phase"]) for row in rows if "refused" in row] == [(1, "evaluate")]
    assert [row["partition"] for row in rows if "student" in row] == [0, 2]
    assert [row["partition"] for row in rows if "delta-shared" in row] == [0, 1, 2]


# --- The server's own stages ---

ALIGN = {"align": "each-round", "align_beta": 0.0, "public_examples": 30}


@pytest.fixture
def patience(federation, home):
    """Return the line in which a run ends that no client was asked to take part in."""

    def line(**overrides):
        clients = federation(**overrides)
        said = error_of(clients, home)
        assert clients.wire == []
        return said

    return line


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("align-steps", -1, "greater than or equal to 0"),
        ("align-batch-size", 0, "greater than 0"),
        ("align-learning-rate", 0.0, "greater than 0"),
        ("align-beta", -0.5, "greater than or equal to 0"),
        ("align-temperature", 0.0, "greater than 0"),
        ("align-radius", 0.0, "greater than 0"),
        ("teacher-temperature", 0.0, "greater than 0"),
        ("teacher-margin", 1.0, "less than 1"),
        ("public-examples", 1, "greater than 1"),
        ("align", "always", "'none', 'each-round' or 'end'"),
    ],
)
def test_a_setting_of_the_servers_stages_is_named(patience, key, value, allowed):
    assert patience(**{**ALIGN, key.replace("-", "_"): value}) == f"{key} = {value!r}; allowed: {allowed}"


STAGES = [
    ({**ALIGN, "align_beta": 1.0}, r"teacher = '' with align = 'each-round'; allowed: a folder, .*"),
    ({**ALIGN, "align_labels": "none"}, r"align-labels = 'none' with align-beta = 0.0 leaves nothing .*"),
    ({**ALIGN, "align_part": "head"}, r"align-part = 'head' with head = 'private', .* allowed: 'all', .*"),
    (
        {"pretrain": "adapter", "pretrain_encoder": "/e", **FULL},
        r"pretrain = 'adapter' with method = 'full', .*; allowed: 'none'",
    ),
    (
        {"pretrain": "adapter", "pretrain_encoder": "/e", "benchmark": "vqa-domains", "data_dir": "/d"},
        r"pretrain = 'adapter' with benchmark = 'vqa-domains', which has no captioned public images; .*",
    ),
    (
        {"pretrain": "adapter", "pretrain_images": 20, "pretrain_encoder": "/no/such"},
        r"pretrain-encoder = '/no/such' cannot be used .*; allowed: folder, or hub id .*",
    ),
    (
        {**ALIGN, "benchmark": "vqa-domains", "data_dir": "/d"},
        r"public-data = '' and the benchmark 'vqa-domains' has no public examples .*; allowed: .*",
    ),
    ({**ALIGN, "public_data": "some.parquet"}, r"public-data = 'some.parquet' is relative; allowed: .*"),
    ({**ALIGN, "public_data": "/no/such"}, r"public-data = '/no/such' is no file; allowed: a parquet file"),
    (
        {**ALIGN, "public_examples": 4},
        r"the public pool has no answer five times, .*; allowed: more examples",
    ),
    (
        {**ALIGN, "align_beta": 1.0, "teacher": "/no/such.parquet"},
        r"teacher = '/no/such.parquet': no such file",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), STAGES)
def test_what_the_servers_stages_cannot_use_is_named_before_any_client_is_asked(patience, overrides, message):
    assert re.fullmatch(message, patience(**overrides))


@pytest.mark.parametrize("name", ["no-such/teacher", "/no/such/folder"])
@pytest.mark.parametrize("stage", ["align", "captions"])
def test_a_teacher_that_cannot_be_loaded_is_named_and_how_to_give_one(
    patience, monkeypatch, random_llava, name, stage
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    align = {**ALIGN, "align_beta": 1.0}
    captions = {"pretrain": "adapter", "pretrain_images": 20, "pretrain_encoder": str(random_llava)}
    said = patience(**(align if stage == "align" else captions), teacher=name)
    assert said.startswith(f"teacher = '{name}' cannot be loaded (")
    assert "give the path of a local folder with config.json, weights in safetensors" in said


@pytest.mark.parametrize("other", ["images", "prompts", "candidates"])
def test_annotations_of_something_else_are_refused(patience, record, run_config, other):
    seed = 1 if other == "images" else 0
    prompt = "look: {question}" if other == "prompts" else "{question}"
    file = record(run_config(public_examples=30, seed=seed), prompt, more=other == "candidates")
    said = patience(**{**ALIGN, "align_beta": 1.0}, teacher=file)
    assert said.startswith(f"teacher = '{file}': ")
    assert said.endswith("it was made for other images, prompts or candidates")


def test_a_teacher_that_answers_nan_is_refused(patience, tmp_path, random_llava):
    shutil.copytree(random_llava, tmp_path / "nan")
    weights = load_file(random_llava / "model.safetensors")
    weights = {name: np.full_like(array, np.nan) for name, array in weights.items()}
    save_file(weights, tmp_path / "nan" / "model.safetensors", {"format": "pt"})
    align = {**ALIGN, "align_beta": 1.0, "teacher": str(tmp_path / "nan"), "server_device": "cpu"}
    said = patience(**align)
    assert said.startswith(
        f"teacher = '{tmp_path / 'nan'}' gives no distribution over the candidates for image"
    )


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["red", "green", "blue"], "has no example of class 'grey'; allowed: examples of all classes"),
        (
            ["red", "green", "blue", "grey", "pink"],
            "'pink' is no class of the clients; allowed: red, green, blue, grey",
        ),
    ],
    ids=["too few classes", "too many"],
)
def test_a_pool_of_other_classes_than_the_clients_is_refused(long_tailed, home, tmp_path, answers, message):
    rows = domain(train=6 * len(answers), val=0, test=0)
    for index, row in enumerate(rows):
        row["answer"] = answers[index % len(answers)]
    write(tmp_path / "public", rows, "pool")
    file = str(tmp_path / "public" / "pool.parquet")
    clients = long_tailed(**FULL, **ALIGN, public_data=file)
    said = error_of(clients, home)
    assert clients.wire == []
    assert said.removeprefix(f"public-data = '{file}'").lstrip(": ") == message
