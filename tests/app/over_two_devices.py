"""A base over two devices by Accelerate's hooks: what is computed is what one device computes.

No machine of ours has two GPUs: one device is the host, the other that of `pretend_device`. Which of the two
has the beginning of the model, and so what a step is given, is tried both ways. `test_spreading` runs these
tests in a process of their own, in which that device is all that PyTorch takes for an accelerator.
"""

import functools

import accelerate
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import modeling_utils
from transformers.integrations import accelerate as integration

from app.adapters import Adapter
from app.backbones import load_backbone
from app.checkpointing import recompute_blocks
from app.families import generative
from app.families.generative import AnswerPositions, parts_of
from app.federated_client import FedDATClient
from app.likelihood import log_likelihoods
from app.methods import METHODS
from app.mkd import Distillation, make_optimizer, mkd_step
from app.settings import read_settings
from app.spreading import is_spread
from client_app.local_training import train_round
from tests.app.families.test_generative import picture
from tests.app.pretend_device import PRETEND, Pretending
from tests.app.tiny_generative import made, pictures_alone
from tests.app.tiny_models import CLASSES, IDS, TEXT

CPU = "cpu"
ANSWERS = ("no", "a small red square is there", "blue", "yes", "a red circle")


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    # Accelerate takes a CPU beside another device for a place where weights wait; and a mode is its thread's.
    on_both = functools.partial(accelerate.dispatch_model, main_device=CPU)
    monkeypatch.setattr(integration, "dispatch_model", on_both)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    # In inference mode PyTorch hands a device of Python no views.
    plain = torch.no_grad()(log_likelihoods.__wrapped__)
    monkeypatch.setattr(generative, "log_likelihoods", plain)
    with Pretending(), pictures_alone():
        yield


def halves(model, first, second, head):
    """Place all but the last layers and norm of the language model on the first device, as a device_map."""
    decoder, places = parts_of(model)["language"][0], {}

    def visit(module, before):
        for name, child in module.named_children():
            whole = before + name
            if f"{decoder}.".startswith(f"{whole}."):
                visit(child, f"{whole}.")
            elif whole == f"{decoder}.layers":
                places.update({f"{whole}.{i}": second if i else first for i in range(len(child))})
            else:
                places[whole] = second if whole == f"{decoder}.norm" else first

    visit(model, "")
    return places | {"lm_head": head}


@pytest.fixture(params=[("LLaVA", CPU, PRETEND), ("LLaVA", PRETEND, CPU), ("Qwen2.5-VL", CPU, PRETEND)])
def backbones(request, tmp_path_factory, monkeypatch):
    """Return a backbone on the host, and the same one over two devices."""
    name, first, second = request.param
    folder = str(made(name, tmp_path_factory.mktemp("spread")))
    asked = []

    def place(model, device_map, *_):
        asked.append(device_map)
        return halves(model, first, second, head=PRETEND)

    monkeypatch.setattr(modeling_utils, "_get_device_map", place)
    spread = load_backbone.__wrapped__(folder, device_map="balanced")
    assert asked == ["balanced"]
    return load_backbone.__wrapped__(folder), spread


def examples(backbone):
    columns = {
        "images": [[{"bytes": picture(seed), "path": None}] for seed in range(len(ANSWERS))],
        "messages": [[{"role": "user", "content": "<image>\nwhat is there ?"}]] * len(ANSWERS),
        "answers": [[answer] for answer in ANSWERS],
        "answer_scores": [[1.0]] * len(ANSWERS),
        "options": [[]] * len(ANSWERS),
    }
    return backbone.examples(Dataset.from_dict(columns), backbone.model.device)


def opened(backbone, method="feddat", kind="lora"):
    return METHODS[method].open(backbone, Adapter(kind, 4, 3), 0, torch.device(CPU))


def on_host(arrays):
    return {name: value.to(CPU) for name, value in arrays.items()}


def alike(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_layers_lie_on_both_and_adapters_beside_what_they_wrap(backbones):
    plain, spread = backbones
    assert is_spread(spread.model)
    assert not is_spread(plain.model)
    assert spread.fingerprint == plain.fingerprint
    examples(spread)
    assert {str(weight.device) for weight in spread.model.parameters()} == {CPU, PRETEND}
    for kind in ("lora", "bottleneck"):
        learner = opened(spread, kind=kind)
        for name, weight in learner.named_trained():
            layer = learner.model.get_submodule(name.removeprefix("base_model.model.").split(".layers.")[0])
            number = int(name.split(".layers.")[1][0])
            wrapped = next(p for n, p in layer.layers[number].named_parameters() if "base_layer" in n)
            assert weight.device == wrapped.device
        assert len({weight.device for weight in learner.trained_parameters()}) == 2


@pytest.mark.parametrize(
    ("method", "more"),
    [("feddat", {"gradient_accumulation": 2, "proximal_mu": 0.1, "strategy": "fedprox"}), ("ditto", {})],
)
def test_a_round_is_that_of_one_device(backbones, run_config, method, more):
    fixed = {"loss": "next-token", "adapter": "lora", "batch_size": 2, "device": "balanced"}
    settings = read_settings(run_config(method=method, **fixed, **more))
    ends = []
    for backbone in backbones:
        learner = opened(backbone, method)
        measured = train_round(learner, examples(backbone), settings, 2, 0)
        del measured["train-seconds"]
        ends.append((measured, on_host({**learner.shared(), **learner.private()}), learner.begin_anew()))
    (expected, weights, _), (found, on_both, _) = ends
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    alike(on_both, weights)


def test_so_is_one_of_bottlenecks_whose_blocks_are_computed_again(backbones):
    ends = []
    for backbone in backbones:
        learner = opened(backbone, kind="bottleneck")
        recompute_blocks(learner)
        before, optimizer = on_host(learner.shared()), make_optimizer(learner, 1e-3, 0.0)
        for _ in range(2):
            inputs, targets = examples(backbone).batch(torch.arange(3), learner.device)
            step = mkd_step(learner, optimizer, inputs, targets, Distillation(loss="next-token"))
        ends.append({"losses": step.losses.to(CPU), **on_host({**learner.shared(), **learner.private()})})
    assert not any(torch.equal(before[name], ends[1][name]) for name in before)
    alike(ends[1], ends[0])


def test_so_are_answers_and_likelihoods(backbones):
    ends = []
    for backbone in backbones:
        learner = opened(backbone)
        questions = examples(backbone).questions(torch.arange(3), learner.device)
        with torch.no_grad(), learner.branch("teacher"):
            parts = AnswerPositions(learner.model)
            written = parts.write(parts.trunk(questions), backbone.processor.stops, 4)
            ends.append((written, parts.likelihoods(questions, [[[20, 21], [22]]] * 3).to(CPU)))
    assert ends[1][0] == ends[0][0]
    torch.testing.assert_close(ends[1][1], ends[0][1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("first", "second"), [(CPU, PRETEND), (PRETEND, CPU)])
def test_a_host_s_own_spread_model_stays_where_it_is(first, second):
    def model():
        torch.manual_seed(0)
        made = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT, num_labels=3))
        return made.eval()

    places = {"bert.embeddings": first, "bert.encoder.layer.0": first, "bert.encoder.layer.1": second}
    places |= {"bert.pooler": second, "dropout": second, "classifier": second}
    over_two = accelerate.dispatch_model(model(), places, main_device=CPU)
    ends, config = [], LoraConfig(r=2, target_modules=["query", "value"])
    for client in (FedDATClient(one, config, "classifier") for one in (model(), over_two)):
        metrics = client.fit([({"input_ids": IDS}, CLASSES)] * 3, lr=1e-3)
        del metrics["train-seconds"]
        ends.append((metrics, on_host({**client.dual.shared(), **client.dual.private()})))
    assert {str(weight.device) for weight in over_two.parameters()} == {first, second}
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-5, abs=1e-6)
    alike(ends[1][1], ends[0][1])


def test_what_would_wait_elsewhere_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(integration, "dispatch_model", accelerate.dispatch_model)
    monkeypatch.setattr(
        modeling_utils, "_get_device_map", lambda model, *_: halves(model, PRETEND, CPU, PRETEND)
    )
    with pytest.raises(
        ValueError, match=r"^device = 'balanced': the GPUs have no memory for model.*layers\.1"
    ):
        load_backbone.__wrapped__(str(made("LLaVA", tmp_path)), device_map="balanced")
