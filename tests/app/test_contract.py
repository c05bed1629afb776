"""The library's contract on models of other people: the step is that of three plain forwards and two updates.

The other side is made of stock PEFT layers, of losses written out, and of PyTorch's autograd.
"""

import copy

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from app import Distillation, DualAdapter, mkd_step, reference_step
from tests.app.tiny_models import CLASSES, IDS, KINDS, bert, drawn, lora

METHOD = {"alpha": 0.7, "beta": 1.6, "temperature": 2.0}
RATE, STEPS = 1e-3, 4


class Plain:
    """Three stock LoRAs in a model, and the published step written out."""

    def __init__(self, model, config, head, loss, forward):
        self.peft = get_peft_model(model, config, adapter_name="shared")
        for name in ("frozen", "local"):
            self.peft.add_adapter(name, config)
        self.peft.eval()
        self.layers = [module for module in self.peft.modules() if isinstance(module, LoraLayer)]
        self.loss, self.forward = loss, forward or (lambda model, batch: model(**batch).logits)
        self.head = model.get_submodule(head).requires_grad_(True) if head else None

    def weights(self, role):
        named = self.peft.named_parameters()
        return {
            name.replace(f".{role}.", "."): p for name, p in named if f".{role}." in name and "lora_" in name
        }

    def logits(self, batch, shares):
        self.peft.base_model.set_adapter(list(shares))
        for layer in self.layers:
            for role, share in shares.items():
                layer.scaling[role] = 2.0 * share
        for parameter in (*self.weights("shared").values(), *self.weights("local").values()):
            parameter.requires_grad_(True)
        return self.forward(self.peft.get_base_model(), batch)

    def compare(self, z, targets):
        """Return the logits that count and the mean cross-entropy."""
        if self.loss == "next-token":
            z, targets = z[:, :-1], targets[:, 1:]
        if targets.is_floating_point():
            z = z.flatten(0, -2)
            terms = -(targets * z.sigmoid().log() + (1 - targets) * (1 - z.sigmoid()).log())
            return z, terms.sum(1).mean()
        z, targets = z.flatten(0, -2), targets.flatten()
        counts = targets >= 0
        z, targets = z[counts], targets[counts]
        return z, -z.log_softmax(1)[torch.arange(len(z)), targets].mean()

    def step(self, optimizer, batch, targets):
        def taught(z, other, weight):
            (z, ce), (other, _) = self.compare(z, targets), self.compare(other.detach(), targets)
            p, q = ((x / METHOD["temperature"]).softmax(1) for x in (other, z))
            return 0.5 * (ce + weight * METHOD["temperature"] ** 2 * (p * (p / q).log()).sum(1).mean())

        def descend(loss, role):
            optimizer.zero_grad()
            own = [*self.weights(role).values(), *(self.head.parameters() if self.head else ())]
            for weight, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
                weight.grad = gradient
            optimizer.step()

        teacher = {"frozen": 0.5, "local": 0.5}
        z_teacher = self.logits(batch, teacher).detach()
        z_s = self.logits(batch, {"shared": 1.0})
        descend(taught(z_s, z_teacher, METHOD["alpha"]), "shared")
        descend(taught(self.logits(batch, teacher), z_s, METHOD["beta"]), "local")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [mkd_step, reference_step], ids=["mkd", "reference"])
def test_four_steps_are_those_of_three_plain_forwards_and_two_updates(kind, step):
    build, targets_of, head, loss, forward = KINDS[kind]
    torch.manual_seed(0)
    model, batch, targets = build()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    plain = Plain(copy.deepcopy(model), lora(targets_of), head, loss, forward)
    dual = DualAdapter(model, lora(targets_of), head=head, seed=0, forward=forward)

    received = {name: drawn(*v.shape, seed=1) * 0.3 for name, v in dual.shared().items()}
    dual.receive(received)
    first = {name: drawn(*v.shape, seed=2) * 0.3 for name, v in dual.private().items()}
    dual.load_private(first)
    with torch.no_grad():
        for role in ("shared", "frozen", "local"):
            for name, weight in plain.weights(role).items():
                weight.copy_(first[f"local.{name}"] if role == "local" else received[name])
        for name, weight in plain.head.state_dict().items() if head else ():
            weight.copy_(first[f"head.{name}"])
    branches = {}
    for branch in ("student", "teacher", "local"):
        with dual.branch(branch), torch.no_grad():
            branches[branch] = dual.logits(batch)
    assert (branches["student"] - branches["teacher"]).abs().max() > 1e-3
    assert (branches["local"] - branches["teacher"]).abs().max() > 1e-3

    leaves = [*plain.weights("shared").values(), *plain.weights("local").values()]
    leaves += plain.head.parameters() if head else ()
    theirs = torch.optim.AdamW(leaves, lr=RATE)
    ours = torch.optim.AdamW(dual.trained_parameters(), lr=RATE)
    before = {**dual.shared(), **dual.private()}
    for _ in range(STEPS):
        step(dual, ours, batch, targets, Distillation(**METHOD, loss=loss))
        plain.step(theirs, batch, targets)
    after = {**dual.shared(), **dual.private()}
    assert [name for name in after if torch.equal(after[name], before[name])] == []
    for role in ("shared", "frozen", "local"):
        for name, weight in plain.weights(role).items():
            torch.testing.assert_close(dual.state(role)[name], weight.detach(), atol=5e-5, rtol=0)
    for name, weight in plain.head.state_dict().items() if head else ():
        torch.testing.assert_close(after[f"head.{name}"], weight, atol=5e-5, rtol=0)
    with dual.branch("student"), torch.no_grad():
        assert torch.equal(dual.logits(batch), dual(batch, "student"))


DROPOUT = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "classifier_dropout": 0.5}


@pytest.mark.parametrize("step", [mkd_step, reference_step], ids=["mkd", "reference"])
def test_dropout_is_left_out_also_in_training_mode(step):
    """A draw of its own in each of the passes would be among what the branches teach each other."""

    def trained(dropout, mode):
        torch.manual_seed(0)
        model, batch, targets = bert(**DROPOUT if dropout else dict.fromkeys(DROPOUT, 0.0))
        dual = DualAdapter(
            model, lora(["query", "value"], lora_dropout=0.5 if dropout else 0.0), head="classifier"
        )
        optimizer = torch.optim.AdamW(dual.trained_parameters(), lr=RATE)
        for _ in range(STEPS):
            mode(dual)
            step(dual, optimizer, batch, targets, Distillation(**METHOD))
        mode(dual)
        with dual.branch("teacher"), torch.no_grad():
            # The host's own test function, on the model itself.
            seen = {"logits": dual.logits(batch), "host's": dual.model(**batch).logits}
        return {**dual.shared(), **dual.private(), **seen}

    expected = trained(False, lambda dual: dual.eval())
    for mode in (lambda dual: dual.train(), lambda dual: dual.model.train(), lambda dual: dual.peft.train()):
        after = trained(True, mode)
        assert [name for name in expected if not torch.equal(after[name], expected[name])] == []

    model = bert(**DROPOUT)[0].train()
    assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)


class Namesake(nn.Module):
    """Its own parts bear the adapters' names."""

    def __init__(self):
        super().__init__()
        self.shared, self.frozen = nn.Sequential(nn.Linear(6, 8)), nn.Linear(8, 8)
        self.local, self.lora_ = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.lora_(self.local(self.frozen(self.shared(x).relu()).relu()).relu())


def test_parts_of_a_model_may_bear_the_adapters_names():
    dual = DualAdapter(
        Namesake(), lora(["0", "frozen", "local", "lora_"]), forward=lambda model, batch: model(batch)
    )
    names = [
        f"base_model.model.{part}.lora_{which}.weight"
        for part in ("frozen", "local", "lora_", "shared.0")
        for which in "AB"
    ]
    assert [sorted(dual.parameters_of[role]) for role in ("shared", "frozen", "local")] == [names] * 3
    trained = {id(weight) for weight in dual.trained_parameters()}
    assert len(trained) == 2 * len(names)
    layers = [module for module in dual.modules() if isinstance(module, LoraLayer)]
    for role in ("shared", "frozen", "local"):
        own = [layer.lora_A[role].weight for layer in layers] + [
            layer.lora_B[role].weight for layer in layers
        ]
        assert {id(weight) for weight in own} == {id(weight) for weight in dual.parameters_of[role].values()}
        assert (role == "frozen") == (not trained & {id(weight) for weight in own})
    before = dual.state("frozen"), dual.shared(), dual.private()
    optimizer = torch.optim.AdamW(dual.trained_parameters(), lr=RATE)
    mkd_step(dual, optimizer, drawn(4, 6), CLASSES, Distillation())
    after = dual.state("frozen"), dual.shared(), dual.private()
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    for was, has in zip(before[1:], after[1:], strict=True):
        assert not any(torch.equal(has[name], value) for name, value in was.items())
