"""Rivals: one step of each by leaf tensors, hooks and autograd alone; what of it travels, and what stays."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import softplus

from app.adapters import Adapter
from app.backbones import fingerprint
from app.heads import new_head
from app.methods import METHODS
from app.mkd import Distillation

RATE, PULL = 0.05, 0.7
SETTINGS = SimpleNamespace(
    personal=SimpleNamespace(pull=PULL, epochs=2),
    loss="bce-scores",
    update="alternating",
    step="fast",
    fraction_train=0.25,
)
CPU = torch.device("cpu")


@pytest.fixture
def scores():
    return torch.tensor([[1.0, 0.3, 0, 0, 0], [0, 0, 0.9, 0, 0.6], [0, 1.0, 0, 0, 0], [0, 0, 0, 1.0, 0]])


@pytest.fixture
def opened(backbone):
    """Open a method's learner with weights that matter everywhere, and a private head."""

    def build(name, kind="bottleneck"):
        learner = METHODS[name].open(backbone, Adapter(kind, 4, 3), 0, CPU)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weights in learner.parameters_of.values():
                for weight in weights.values():
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        learner.answer_with(new_head(32, 5, seed=2))
        return learner

    return build


def ce(z, scores):
    return (softplus(z) - scores * z).sum(1).mean()


def leaves_of(state):
    return {name: value.clone().requires_grad_() for name, value in state.items()}


def gradient_step(loss, *groups):
    """Take a step of gradient descent down a loss, over leaves or modules' parameters."""
    over = [leaf for group in groups for leaf in group]
    gradients = torch.autograd.grad(loss, over, allow_unused=True)
    with torch.no_grad():
        for leaf, gradient in zip(over, gradients, strict=True):
            if gradient is not None:
                leaf -= RATE * gradient


def take_step(name, learner, batch, scores):
    optimizer = torch.optim.SGD(learner.trained_parameters(), lr=RATE)
    return METHODS[name].step(learner, optimizer, batch, scores, Distillation(loss="bce-scores"), SETTINGS)


def assert_equal(ours, by_hand):
    assert ours.keys() == by_hand.keys()
    expected = {name: value.detach() for name, value in by_hand.items()}
    torch.testing.assert_close(dict(ours), expected, atol=2e-6, rtol=2e-4)


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_ditto_draws_the_own_adapter_to_the_one_that_was_received(
    opened, batch, scores, plain_features, kind
):
    learner = opened("ditto", kind)
    w, v, received = (leaves_of(learner.state(role)) for role in ("shared", "local", "frozen"))
    head = copy.deepcopy(learner.head)
    measured = take_step("ditto", learner, batch, scores)

    loss = ce(head(plain_features(batch, [(w, 1.0)])), scores)
    assert measured["ce-student"] == pytest.approx(float(loss), rel=1e-4)
    gradient_step(loss, w.values(), head.parameters())
    loss = ce(head(plain_features(batch, [(v, 1.0)])), scores)
    assert measured["ce-local"] == pytest.approx(float(loss), rel=1e-4)
    pull = sum(((v[name] - received[name].detach()) ** 2).sum() for name in v)
    gradient_step(loss + PULL / 2 * pull, v.values(), head.parameters())

    assert_equal(learner.state("shared"), w)
    assert_equal(learner.state("local"), v)
    assert_equal(learner.state("frozen"), received)
    assert_equal(learner.head.state_dict(), head.state_dict())


def test_feddpa_trains_the_local_adapter_beside_the_received_one(opened, batch, scores, plain_features):
    learner = opened("feddpa")
    shared, local, frozen = (leaves_of(learner.state(role)) for role in ("shared", "local", "frozen"))
    head = copy.deepcopy(learner.head)
    take_step("feddpa", learner, batch, scores)

    loss = ce(head(plain_features(batch, [(shared, 1.0)])), scores)
    gradient_step(loss, shared.values(), head.parameters())
    loss = ce(head(plain_features(batch, [(frozen, 0.5), (local, 0.5)])), scores)
    gradient_step(loss, local.values(), head.parameters())

    assert_equal(learner.state("shared"), shared)
    assert_equal(learner.state("local"), local)
    assert_equal(learner.head.state_dict(), head.state_dict())


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_feddpa_mixes_for_each_example_by_how_much_it_is_like_the_clients_own(
    opened, batch, plain_features, kind
):
    learner = opened("feddpa", kind)
    own = {name: value.roll(1, 0)[:3] for name, value in batch.items()}
    asked = []
    client = SimpleNamespace(some=lambda count: asked.append(count) or own)
    phases = METHODS["feddpa"].scored(learner, client, SETTINGS)
    branches = next(phases)
    with torch.no_grad():
        features = learner.features(learner.trunk(batch), "mixed")
        student = learner.features(learner.trunk(batch), "student")
        torch.testing.assert_close(learner(batch, "mixed"), learner.classify(features), atol=2e-5, rtol=1e-4)
    assert learner.branches["mixed"] == {"shared": 0.5, "local": 0.5}
    assert (list(phases), asked, branches) == ([], [5], ("student", "mixed"))
    assert learner.references is None

    shared, local = learner.state("shared"), learner.state("local")
    references = plain_features(own, [(local, 1.0)])
    seen = plain_features(batch, [(local, 1.0)])
    shares = []
    for row in range(4):
        alike = [seen[row] @ one / (seen[row].norm() * one.norm()) for one in references]
        shares.append(max(0.0, float(sum(alike)) / 3) / 2)
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        mix = [(shared, 1 - shares[-1]), (local, shares[-1])]
        torch.testing.assert_close(features[row], plain_features(alone, mix)[0], atol=2e-5, rtol=1e-4)
    assert max(shares) - min(shares) > 0.01
    torch.testing.assert_close(student, plain_features(batch, [(shared, 1.0)]), atol=2e-5, rtol=1e-4)


def test_fedavg_ft_tunes_a_copy_of_what_was_received_after_the_student_is_scored(
    opened, batch, scores, plain_features
):
    learner = opened("fedavg-ft")
    received, before = learner.state("shared"), copy.deepcopy(learner.head.state_dict())
    optimizer = torch.optim.SGD(learner.trained_parameters(), lr=RATE)
    calls = []

    def train(step, epochs):
        calls.append(epochs)
        for _ in range(epochs):
            step(optimizer, batch, scores)

    phases = METHODS["fedavg-ft"].scored(learner, SimpleNamespace(train=train), SETTINGS)
    assert next(phases) == ("student",)
    assert calls == []
    assert_equal(learner.head.state_dict(), before)
    assert next(phases) == ("local",)
    assert (calls, list(phases)) == ([2], [])

    tuned, head = leaves_of(received), copy.deepcopy(learner.head)
    head.load_state_dict(before)
    for _ in range(2):
        loss = ce(head(plain_features(batch, [(tuned, 1.0)])), scores)
        gradient_step(loss, tuned.values(), head.parameters())
    assert_equal(learner.state("local"), tuned)
    assert_equal(learner.head.state_dict(), head.state_dict())
    assert_equal(learner.state("shared"), received)


HALVES = {"fedsa-lora": ("A", "B"), "ffa-lora": ("B", ""), "plora": ("B", "A")}


@pytest.mark.parametrize("name", HALVES)
def test_one_half_of_a_lora_travels_and_the_other_is_its_clients_or_fixed(
    opened, backbone, batch, scores, plain_features, name
):
    learner, (sent, own) = opened(name, "lora"), HALVES[name]
    first = METHODS["adapter"].open(backbone, Adapter("lora", 4, 3), 0, CPU).state("shared")
    whole = {**first, **learner.state("shared"), **learner.state("local")}
    halves = {kind: {n for n in whole if f".lora_{kind}." in n} for kind in "AB"} | {"": set()}
    assert len(halves["A"]) == len(halves["B"]) == 2 * 3

    leaves, head = leaves_of(whole), copy.deepcopy(learner.head)
    take_step(name, learner, batch, scores)
    # Nothing is computed for what is fixed.
    fixed = [n for n, w in learner.peft.named_parameters() if ".shared." in n and w.grad is None]
    assert len(fixed) == len(whole) - len(halves[sent] | halves[own])
    moving = [leaves[n] for n in sorted(halves[sent] | halves[own])]
    gradient_step(ce(head(plain_features(batch, [(leaves, 1.0)])), scores), moving, head.parameters())

    travels = METHODS[name].travelling(learner)
    assert_equal(travels, {n: leaves[n] for n in halves[sent]})
    private = {n.removeprefix("local."): v for n, v in learner.private().items() if n.startswith("local.")}
    assert_equal(private, {n: leaves[n] for n in halves[own]})
    assert_equal(learner.head.state_dict(), head.state_dict())
    # A newcomer gets the half that travels beside the other as it was at first.
    exported = METHODS[name].exported(travels, backbone, Adapter("lora", 4, 3), 0)
    assert_equal(exported, {**first, **travels})


def test_scaffold_corrects_gradients_by_the_mean_of_a_clients_own_and_that_of_all(
    opened, batch, scores, plain_features
):
    """Two rounds of two steps: in the first no control is known, in the second both are."""
    learner, method = opened("scaffold"), METHODS["scaffold"]
    learner.load("local", {name: torch.zeros_like(value) for name, value in learner.state("local").items()})
    generator = torch.Generator().manual_seed(8)
    sent = {n: v for n, v in learner.state("shared").items() if not n.startswith("control.")}
    c = {n: torch.zeros_like(v) for n, v in sent.items()}
    own, head = c, copy.deepcopy(learner.head)
    batches = [batch, {name: value.roll(1, 0) for name, value in batch.items()}]
    for _ in range(2):
        method.receive(learner, {**sent, **{f"control.{n}": v for n, v in c.items()}})
        learner.load_private(learner.private())
        for inputs in batches:
            take_step("scaffold", learner, inputs, scores)

        y, gradients = leaves_of(sent), []
        for inputs in batches:
            loss = ce(head(plain_features(inputs, [(y, 1.0)])), scores)
            over = [*y.values(), *head.parameters()]
            found = torch.autograd.grad(loss, over)
            gradients.append(dict(zip(y, found, strict=False)))
            with torch.no_grad():
                for name, leaf in y.items():
                    leaf -= RATE * (gradients[-1][name] - own[name] + c[name])
                for leaf, gradient in zip(head.parameters(), found[len(y) :], strict=True):
                    leaf -= RATE * gradient
        before, own = own, {n: (gradients[0][n] + gradients[1][n]) / 2 for n in sent}
        assert max(v.abs().max() for v in own.values()) > 1e-3
        told = {f"control.{n}": c[n] + 0.25 * (own[n] - before[n]) for n in sent}
        assert_equal(method.travelling(learner), y | told)
        assert_equal(learner.state("local"), {f"control.{n}": v for n, v in own.items()})
        assert_equal(learner.head.state_dict(), head.state_dict())
        # What another client sent as well.
        sent = {n: v.detach().clone() for n, v in y.items()}
        c = {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in own.items()}


def test_scaffold_counts_a_step_that_does_not_touch_a_weight_as_a_gradient_of_0(opened):
    learner, method = opened("scaffold"), METHODS["scaffold"]
    touched, untouched = sorted(learner.adapter_names)[:2]
    method.receive(learner, method.travelling(learner))
    old, received = learner.state("local"), learner.state("shared")
    assert old[f"control.{untouched}"].abs().max() > 0.1
    weight = learner.parameters_of["shared"][touched]
    with learner.corrected(0.5):
        weight.sum().backward()
    own, sent = learner.state("local"), learner.state("shared")
    assert not own[f"control.{untouched}"].any()
    assert (own[f"control.{touched}"] == 1).all()
    for name in (f"control.{touched}", f"control.{untouched}"):
        torch.testing.assert_close(sent[name], received[name] + 0.5 * (own[name] - old[name]))


@pytest.mark.parametrize("there", [1, -1])
def test_scaffold_takes_all_control_variates_or_none(opened, there):
    learner, method = opened("scaffold"), METHODS["scaffold"]
    sent = method.travelling(learner)
    alone = {name: value for name, value in sent.items() if name in learner.adapter_names}
    method.receive(learner, alone)
    assert not any(v.any() for n, v in learner.state("shared").items() if n not in learner.adapter_names)
    controls = [name for name in sent if name not in alone]
    with pytest.raises(ValueError, match="missing or unknown arrays: control"):
        method.receive(learner, {**alone, **{name: sent[name] for name in controls[:there]}})


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("head", lambda name: False),
        ("bias", lambda name: name.endswith(".bias")),
        ("layernorm", lambda name: "layernorm" in name.lower()),
    ],
)
def test_some_of_the_backbones_own_weights_are_trained_and_sent(backbone, batch, scores, name, mine):
    learner = METHODS[name].open(backbone, Adapter(), 0, CPU)
    learner.answer_with(new_head(32, 5, seed=2))
    model, head = copy.deepcopy(backbone.model), copy.deepcopy(learner.head)
    expected = {n: p.requires_grad_() for n, p in model.named_parameters() if mine(n)}
    assert bool(expected) is (name != "head")
    with torch.no_grad():  # what enters a family's split is not normalised; a plain forward is the reference
        inputs = backbone.processor.inputs(batch)
    take_step(name, learner, batch, scores)

    loss = ce(head(model(**inputs).pooler_output), scores)
    gradient_step(loss, expected.values(), head.parameters())
    assert_equal(METHODS[name].travelling(learner), expected)
    assert_equal(learner.head.state_dict(), head.state_dict())
    assert {n for n in learner.private() if not n.startswith("head.")} == set()
    # The process's backbone is as it was, for whoever comes next.
    assert fingerprint(backbone.model) == backbone.fingerprint


def test_a_backbone_without_what_is_trained_is_refused():
    family = SimpleNamespace(left_alone=None)
    backbone = SimpleNamespace(model=torch.nn.Conv2d(1, 1, 1, bias=False), family=family)
    for name in ("bias", "layernorm"):
        with pytest.raises(ValueError, match=f"^method = '{name}': Conv2d has no such weights; allowed: "):
            METHODS[name].open(backbone, None, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    "name", ["ditto", "fedavg-ft", "feddpa", "scaffold", *HALVES, "head", "bias", "layernorm"]
)
def test_what_a_client_keeps_and_receives_comes_back(opened, batch, scores, name):
    learner = opened(name, "lora")
    take_step(name, learner, batch, scores)
    sent, kept = METHODS[name].travelling(learner), learner.private()
    learner.begin_anew()
    METHODS[name].receive(learner, sent)
    learner.load_private(kept)
    assert_equal(METHODS[name].travelling(learner), sent)
    assert_equal(learner.private(), kept)
