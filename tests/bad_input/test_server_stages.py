"""What pretraining and alignment cannot use is named before any client is asked."""

import re
import shutil

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.bad_input.ends import error_of
from tests.bad_input.given import FULL, domain, write

ALIGN = {"align.when": "each-round", "align.beta": 0.0, "public.examples": 30}


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
        ("align.steps", -1, "greater than or equal to 0"),
        ("align.batch-size", 0, "greater than 0"),
        ("align.learning-rate", 0.0, "greater than 0"),
        ("align.beta", -0.5, "greater than or equal to 0"),
        ("align.temperature", 0.0, "greater than 0"),
        ("align.radius", 0.0, "greater than 0"),
        ("teacher.temperature", 0.0, "greater than 0"),
        ("teacher.margin", 1.0, "less than 1"),
        ("public.examples", 1, "greater than 1"),
        ("align.when", "always", "'none', 'each-round' or 'end'"),
    ],
)
def test_a_setting_of_the_servers_stages_is_named(patience, key, value, allowed):
    assert patience(**{**ALIGN, key: value}) == f"{key} = {value!r}; allowed: {allowed}"


STAGES = [
    (
        {**ALIGN, "align.beta": 1.0},
        r"teacher\.model = '' with align\.when = 'each-round'; allowed: a folder, .*",
    ),
    ({**ALIGN, "align.labels": "none"}, r"align\.labels = 'none' with align\.beta = 0.0 leaves nothing .*"),
    ({**ALIGN, "align.part": "head"}, r"align\.part = 'head' with head = 'private', .* allowed: 'all', .*"),
    (
        {"pretrain.part": "adapter", "pretrain.encoder": "/e", **FULL},
        r"pretrain\.part = 'adapter' with method = 'full', .*; allowed: 'none'",
    ),
    (
        {"pretrain.part": "adapter", "pretrain.encoder": "/e", "benchmark": "vqa-domains", "data_dir": "/d"},
        r"pretrain\.part = 'adapter' with benchmark = 'vqa-domains', which has no captioned "
        "public images; .*",
    ),
    (
        {"pretrain.part": "adapter", "pretrain.images": 20, "pretrain.encoder": "/no/such"},
        r"pretrain\.encoder = '/no/such' cannot be used .*; allowed: folder, or hub id .*",
    ),
    (
        {**ALIGN, "benchmark": "vqa-domains", "data_dir": "/d"},
        r"public\.data = '' and the benchmark 'vqa-domains' has no public examples .*; allowed: .*",
    ),
    ({**ALIGN, "public.data": "some.parquet"}, r"public\.data = 'some.parquet' is relative; allowed: .*"),
    (
        {**ALIGN, "public.data": "/no/such"},
        r"public\.data = '/no/such' is not a file; allowed: a parquet file",
    ),
    (
        {**ALIGN, "public.examples": 4},
        r"the public pool has no answer five times, .*; allowed: more examples",
    ),
    (
        {**ALIGN, "align.beta": 1.0, "teacher.model": "/no/such.parquet"},
        r"teacher\.model = '/no/such.parquet': no such file",
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
    align = {**ALIGN, "align.beta": 1.0}
    captions = {"pretrain.part": "adapter", "pretrain.images": 20, "pretrain.encoder": str(random_llava)}
    said = patience(**(align if stage == "align" else captions), teacher__model=name)
    assert said.startswith(f"teacher.model = '{name}' cannot be loaded (")
    assert "give the path of a local folder with config.json, weights in safetensors" in said


@pytest.mark.parametrize("other", ["images", "prompts", "candidates"])
def test_annotations_of_something_else_are_refused(patience, record, run_config, other):
    seed = 1 if other == "images" else 0
    prompt = "look: {question}" if other == "prompts" else "{question}"
    file = record(run_config(public__examples=30, seed=seed), prompt, more=other == "candidates")
    said = patience(**{**ALIGN, "align.beta": 1.0}, teacher__model=file)
    assert said.startswith(f"teacher.model = '{file}': ")
    assert said.endswith("it was made for other images, prompts or candidates")


def test_a_teacher_that_answers_nan_is_refused(patience, tmp_path, random_llava):
    shutil.copytree(random_llava, tmp_path / "nan")
    weights = load_file(random_llava / "model.safetensors")
    weights = {name: np.full_like(array, np.nan) for name, array in weights.items()}
    save_file(weights, tmp_path / "nan" / "model.safetensors", {"format": "pt"})
    align = {**ALIGN, "align.beta": 1.0, "teacher.model": str(tmp_path / "nan"), "server_device": "cpu"}
    said = patience(**align)
    assert said.startswith(
        f"teacher.model = '{tmp_path / 'nan'}' gives no distribution over the candidates for image"
    )


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["red", "green", "blue"], "has no example of class 'grey'; allowed: examples of all classes"),
        (
            ["red", "green", "blue", "grey", "pink"],
            "'pink' is not a class of the clients; allowed: red, green, blue, grey",
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
    clients = long_tailed(**FULL, **ALIGN, public__data=file)
    said = error_of(clients, home)
    assert clients.wire == []
    assert said.removeprefix(f"public.data = '{file}'").lstrip(": ") == message
