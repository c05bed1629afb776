"""A wrong setting ends a run with one line before any client trains."""

import re

import huggingface_hub
import pytest

from tests.bad_input.ends import error_of
from tests.bad_input.given import FULL

SETTINGS = [
    (
        "benchmark",
        "scene",
        r"benchmark = 'scene'; allowed: .*'cifar10-lt', 'cifar100-lt', 'scenes', 'vqa-domains'",
    ),
    ("strategy", "fedsgd", r"strategy = 'fedsgd'; allowed: 'fedavg', .*'krum'; did you mean fedavg\?"),
    ("adapter", "prefix", r"adapter = 'prefix'; allowed: 'bottleneck', 'lora' or 'prompt'"),
    ("method", "fedavg", r"method = 'fedavg'; allowed: 'adapter', 'bias', .*"),
    ("num-rounds", 0, r"num-rounds = 0; allowed: greater than 0"),
    ("num-rounds", -3, r"num-rounds = -3; allowed: greater than 0"),
    ("num-rounds", 2.5, r"num-rounds = 2\.5; allowed: a whole number"),
    ("num-clients", -1, r"num-clients = -1; allowed: greater than or equal to 0"),
    ("learning-rate", 0.0, r"learning-rate = 0\.0; allowed: greater than 0"),
    ("learning-rate", -0.1, r"learning-rate = -0\.1; allowed: greater than 0"),
    ("learning-rate", "fast", r"learning-rate = 'fast'; allowed: .*number"),
    ("batch-size", 0, r"batch-size = 0; allowed: greater than 0"),
    ("fraction-train", 0.0, r"fraction-train = 0\.0; allowed: greater than 0"),
    ("reduction-factor", 5, r"reduction-factor = 5; allowed: a divisor of the backbone's width, 32"),
    ("reduction-factor", 64, r"reduction-factor = 64; allowed: a divisor of the backbone's width, 32"),
    ("max-change", 0.0, r"max-change = 0\.0; allowed: greater than 0"),
    ("clip-change", -1.0, r"clip-change = -1\.0; allowed: greater than or equal to 0"),
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
        r"data-dir = '/no/such' does not exist; allowed: one with cifar10.parquet",
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
