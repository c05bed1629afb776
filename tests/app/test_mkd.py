"""The method: losses by hand, and steps against a plain implementation with PyTorch's autograd alone."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from app.dual_adapter import ROLES
from app.heads import new_head
from app.mkd import (
    Distillation,
    adapter_step,
    make_optimizer,
    mkd_step,
    reference_step,
)
from app.tasks import TASKS, divergence

KINDS = ("bottleneck", "lora", "prompt")
FORMS = ("bce-scores", "cross-entropy")
# No value is another's default, so that one that is passed over shows.
UNEVEN = Distillation(alpha=0.7, beta=1.6, temperature=2.0)

LN2, LN3 = math.log(2), math.log(3)
LOGITS = torch.tensor([[0.0, LN3, -LN3], [0.0, 0.0, 0.0]])


@pytest.fixture
def scores():
    """Return answer scores of four examples over five answers; the last has none."""
    return torch.tensor(
        [[1.0, 0.3, 0, 0, 0], [0, 0, 0.9, 0, 0.6], [0, 1.0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.float32
    )


@pytest.fixture
def head():
    return new_head(32, 5, seed=2)


def answering(adapter, head):
    """Give an adapter a head that stays private, and return it."""
    adapter.answer_with(head)
    return adapter


def weights(adapter, head):
    """Return everything that could move, by role."""
    return {**{role: adapter.state(role) for role in ROLES}, "head": copy.deepcopy(head.state_dict())}


def moved(before, after):
    """Return for each role whether all, some or none of its arrays changed."""
    words = {}
    for role in before:
        changed = [not torch.equal(before[role][name], after[role][name]) for name in before[role]]
        words[role] = "all" if all(changed) else "some" if any(changed) else "none"
    return words


def distance(first, second):
    return max((first[role][n] - second[role][n]).abs().max().item() for role in first for n in first[role])


class TestTaskLoss:
    def test_bce_scores_by_hand(self):
        scores = torch.tensor([[1.0, 0.3, 0.0], [0.0, 1.0, 0.6]])
        # log(1 + e^z) - y·z. First row: ln 2, ln 4 - 0.3 ln 3, ln 4/3; second: ln 2 thrice. Mean.
        expected = (LN2 + (2 * LN2 - 0.3 * LN3) + (2 * LN2 - LN3) + 3 * LN2) / 2
        assert TASKS["bce-scores"].loss(LOGITS, scores).item() == pytest.approx(expected, rel=1e-6)

    def test_cross_entropy_by_hand(self):
        # softmax of (0, ln 3, -ln 3) is (3, 9, 1) / 13.
        rows = (math.log(13 / 3) + 0.3 * math.log(13 / 9)) + 1.6 * LN3
        scores = torch.tensor([[1.0, 0.3, 0.0], [0.0, 1.0, 0.6]])
        assert TASKS["cross-entropy"].loss(LOGITS, scores).item() == pytest.approx(rows / 2, rel=1e-6)

    def test_a_row_without_scores(self):
        none = torch.zeros(2, 3)
        assert TASKS["cross-entropy"].loss(LOGITS, none) == 0
        # Every answer is pushed down: the sum of log(1 + e^z).
        expected = (LN2 + 2 * LN2 + (2 * LN2 - LN3) + 3 * LN2) / 2
        assert TASKS["bce-scores"].loss(LOGITS, none).item() == pytest.approx(expected, rel=1e-6)


class TestDivergence:
    def test_by_hand_teacher_first(self):
        # At T = 3: teacher (1/4, 1/2, 1/4), student uniform; the second row agrees. Mean of rows, times T².
        teacher = torch.tensor([[0.0, 3 * LN2, 0.0], [1.0, 2.0, 3.0]])
        student = torch.tensor([[5.0, 5.0, 5.0], [11.0, 12.0, 13.0]])
        teacher_first = 0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2)
        student_first = math.log(32 / 27) / 3
        assert abs(teacher_first - student_first) > 0.002
        assert divergence(student, teacher, 3.0).item() == pytest.approx(9 * teacher_first / 2, rel=1e-4)
        assert divergence(teacher, student, 3.0).item() == pytest.approx(9 * student_first / 2, rel=1e-4)

    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_gradient_is_of_the_student_alone(self, temperature):
        student, teacher = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
        student.requires_grad_(), teacher.requires_grad_()
        divergence(student, teacher, temperature).backward()
        assert teacher.grad is None
        # d/ds T²·KL = T · (softmax(s / T) - softmax(t / T)), a row's share of the batch.
        gap = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
        torch.testing.assert_close(student.grad, temperature * gap / 2)


def plain_step(plain_features, before, head, batch, scores, method, lr, decay):
    """Take the published step with leaf tensors, hooks and formulas alone; return weights and terms.

    ``joint`` is one step on the sum of both losses.
    """
    state = {role: {n: t.clone().requires_grad_() for n, t in before[role].items()} for role in ROLES}
    head = copy.deepcopy(head)
    leaves = [*state["shared"].items(), *state["local"].items(), *head.named_parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [t for n, t in leaves if not n.endswith("bias")], "weight_decay": decay},
            {"params": [t for n, t in leaves if n.endswith("bias")], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.98),
        eps=1e-8,
    )

    def student():
        return head(plain_features(batch, [(state["shared"], 1.0)]))

    def teacher():
        return head(plain_features(batch, [(state["frozen"], 0.5), (state["local"], 0.5)]))

    def ce(z):
        if method.loss == "bce-scores":
            return (softplus(z) - scores * z).sum(1).mean()
        return -(scores * (z - z.logsumexp(1, keepdim=True))).sum(1).mean()

    def kl(of, to):
        p, q = (of.detach() / method.temperature).softmax(1), (to / method.temperature).softmax(1)
        return method.temperature**2 * (p * (p / q).log()).sum(1).mean()

    def descend(loss, over):
        own = [leaf for name, leaf in leaves if any(leaf is t for t in over)]
        for _, leaf in leaves:
            leaf.grad = None
        for leaf, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
            leaf.grad = gradient
        optimizer.step()

    a_s, a_c, h = list(state["shared"].values()), list(state["local"].values()), list(head.parameters())
    if method.update == "joint":
        z_s, z_dat = student(), teacher()
        terms = [ce(z_s), kl(z_dat, z_s), ce(z_dat), kl(z_s, z_dat)]
        total = 0.5 * (terms[0] + method.alpha * terms[1] + terms[2] + method.beta * terms[3])
        descend(total, [*a_s, *a_c, *h])
        logits = (z_s, z_dat, z_dat)
    else:
        z_teacher, z_s = teacher(), student()
        terms = [ce(z_s), kl(z_teacher, z_s)]
        descend(0.5 * (terms[0] + method.alpha * terms[1]), [*a_s, *h])
        z_dat = teacher()
        terms += [ce(z_dat), kl(z_s, z_dat)]
        descend(0.5 * (terms[2] + method.beta * terms[3]), [*a_c, *h])
        logits = (z_s, z_teacher, z_dat)
    after = {role: {n: t.detach() for n, t in state[role].items()} for role in ROLES}
    after["head"] = head.state_dict()
    return after, [term.item() for term in terms], [z.detach() for z in logits]


VARIANTS = [
    pytest.param(reference_step, "alternating", id="reference"),
    pytest.param(mkd_step, "alternating", id="fast"),
    pytest.param(mkd_step, "joint", id="joint"),
]


class TestOneStep:
    @pytest.mark.parametrize(("step", "update"), VARIANTS)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "method",
        [
            replace(UNEVEN, loss="bce-scores"),
            replace(UNEVEN, loss="cross-entropy"),
            replace(UNEVEN, alpha=0.0),
            replace(UNEVEN, beta=0.0),
        ],
        ids=["bce-scores", "cross-entropy", "alpha 0", "beta 0"],
    )
    def test_is_that_of_a_plain_implementation(
        self, dual, head, batch, scores, plain_features, step, update, kind, method
    ):
        method = replace(method, update=update)
        adapter = dual(kind)
        before = weights(adapter, head)
        settings = {"lr": 1e-3, "decay": 0.3}
        after, terms, logits = plain_step(plain_features, before, head, batch, scores, method, **settings)
        optimizer = make_optimizer(answering(adapter, head), settings["lr"], settings["decay"])
        outcome = step(adapter, optimizer, batch, scores, method)
        assert outcome.losses.tolist() == pytest.approx(terms, rel=1e-5, abs=1e-5)
        for ours, plain in zip((outcome.student, outcome.teacher, outcome.dat), logits, strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
            assert not ours.requires_grad
        assert distance(before, after) > 9e-4
        assert distance(weights(adapter, head), after) < 2e-5

    @pytest.mark.parametrize(("step", "update"), VARIANTS)
    @pytest.mark.parametrize(("without", "role"), [("alpha", "shared"), ("beta", "local")])
    def test_without_a_weight_an_adapter_learns_from_the_answers_alone(
        self, dual, head, batch, scores, step, update, without, role
    ):
        def learned(other_seed, **weight):
            """Return an adapter after a step beside another one, which is what could teach it."""
            adapter, own = dual(), copy.deepcopy(head)
            other = dual(seed=other_seed).state("shared" if role == "local" else "local")
            adapter.load("shared" if role == "local" else "local", other)
            if update != "joint" and role == "local":  # the head moves in between; here it must not
                own.requires_grad_(False)
            optimizer = make_optimizer(answering(adapter, own), 1e-3, 0.0)
            step(adapter, optimizer, batch, scores, replace(UNEVEN, update=update, **weight))
            return {role: adapter.state(role)}

        assert distance(learned(1, **{without: 0.0}), learned(2, **{without: 0.0})) < 1e-6
        assert distance(learned(1), learned(2)) > 1e-4

    @pytest.mark.parametrize("step", [reference_step, mkd_step])
    @pytest.mark.parametrize("kind", KINDS)
    def test_alternating_moves_one_adapter_in_each_half(self, dual, head, batch, scores, step, kind):
        adapter = dual(kind)
        optimizer = make_optimizer(answering(adapter, head), 1e-3, 0.01)
        seen = [weights(adapter, head)]
        optimizer.register_step_post_hook(lambda *_: seen.append(weights(adapter, head)))
        step(adapter, optimizer, batch, scores, UNEVEN)
        assert len(seen) == 3
        assert moved(seen[0], seen[1]) == {"shared": "all", "frozen": "none", "local": "none", "head": "all"}
        assert moved(seen[1], seen[2]) == {"shared": "none", "frozen": "none", "local": "all", "head": "all"}
        # Nor does the momentum of the first step move them in the next.
        step(adapter, optimizer, batch, scores, UNEVEN)
        assert moved(seen[2], seen[3])["local"] == moved(seen[3], seen[4])["shared"] == "none"

    def test_joint_moves_all_at_once(self, dual, head, batch, scores):
        adapter = dual()
        optimizer = make_optimizer(answering(adapter, head), 1e-3, 0.01)
        before, steps = weights(adapter, head), []
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        mkd_step(adapter, optimizer, batch, scores, replace(UNEVEN, update="joint"))
        assert len(steps) == 1
        expected = {"shared": "all", "frozen": "none", "local": "all", "head": "all"}
        assert moved(before, weights(adapter, head)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_mkd_step_is_the_reference_step(dual, head, batch, scores, kind, form):
    method = replace(UNEVEN, loss=form)
    ends, outcomes = [], []
    for step in (reference_step, mkd_step):
        adapter, own = dual(kind), copy.deepcopy(head)
        optimizer = make_optimizer(answering(adapter, own), 1e-3, 0.01)
        start = weights(adapter, own)
        outcomes.append([step(adapter, optimizer, batch, scores, method) for _ in range(6)])
        ends.append(weights(adapter, own))
    assert distance(*ends) <= 1e-6
    assert distance(start, ends[0]) > 4e-3
    for slow, fast in zip(*outcomes, strict=True):
        for term in ("student", "teacher", "dat", "losses"):
            torch.testing.assert_close(getattr(fast, term), getattr(slow, term), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("step", "update"), VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_both_adapters_learn_in_every_round_also_after_an_evaluation(
    dual, head, batch, scores, step, update, kind
):
    """In the published code the local adapter stays as it is from the first evaluation on."""
    adapter = dual(kind)
    for _ in range(3):
        adapter.receive(adapter.state("shared"))
        optimizer = make_optimizer(answering(adapter, head), 1e-3, 0.01)
        before = weights(adapter, head)
        for _ in range(2):
            step(adapter, optimizer, batch, scores, replace(UNEVEN, update=update))
        expected = {"shared": "all", "frozen": "none", "local": "all", "head": "all"}
        assert moved(before, weights(adapter, head)) == expected
        with torch.no_grad():
            for branch in ("student", "teacher", "local"):
                adapter(batch, branch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_baseline_trains_one_adapter_on_the_answers(
    dual, head, batch, scores, plain_features, kind, form
):
    adapter = dual(kind)
    before = weights(adapter, head)
    z = head(plain_features(batch, [(before["shared"], 1.0)]))
    rows = softplus(z) - scores * z if form == "bce-scores" else -scores * z.log_softmax(1)
    optimizer = make_optimizer(answering(adapter, head), 1e-3, 0.01)
    loss = adapter_step(adapter, optimizer, batch, scores, replace(UNEVEN, loss=form))
    assert loss.item() == pytest.approx(rows.sum(1).mean().item(), rel=1e-5)
    assert not loss.requires_grad
    expected = {"shared": "all", "frozen": "none", "local": "none", "head": "all"}
    assert moved(before, weights(adapter, head)) == expected


class Normed(nn.Module):
    """A head with a norm under the name that the published code spares."""

    def __init__(self):
        super().__init__()
        self.LayerNorm = nn.LayerNorm(32)
        self.fc = nn.Linear(32, 5)


class TestOptimizer:
    @pytest.mark.parametrize(
        ("kind", "decayed"),
        [("bottleneck", 3 * 2 * 2), ("lora", 3 * 2 * 2 * 2), ("prompt", 3 * 2)],
        ids=KINDS,
    )
    def test_decay_goes_by_name(self, dual, head, kind, decayed):
        adapter = dual(kind)
        optimizer = make_optimizer(answering(adapter, head), 0.02, 0.3)
        with_decay, without = optimizer.param_groups
        assert (with_decay["weight_decay"], without["weight_decay"]) == (0.3, 0.0)
        for group in optimizer.param_groups:
            assert (group["lr"], group["betas"], group["eps"]) == (0.02, (0.9, 0.98), 1e-8)
        # The head's norm weight is decayed, as published; every weight of the adapters too.
        in_decay = {id(parameter) for parameter in with_decay["params"]}
        in_head = {name for name, parameter in head.named_parameters() if id(parameter) in in_decay}
        assert in_head == {"clf_fc0.weight", "clf_norm0.weight", "clf_fc1.weight"}
        assert len(in_decay) == decayed + 3
        spared = {id(parameter) for parameter in without["params"]}
        assert {id(p) for name, p in head.named_parameters() if name.endswith("bias")} <= spared
        trained = [*adapter.parameters_of["shared"].values(), *adapter.parameters_of["local"].values()]
        assert in_decay | spared == {id(parameter) for parameter in (*trained, *head.parameters())}
        assert not in_decay & spared

    def test_a_norm_by_the_published_name_is_spared(self, dual):
        head = Normed()
        spared = make_optimizer(answering(dual(), head), 0.1, 0.1).param_groups[1]["params"]
        assert any(parameter is head.LayerNorm.weight for parameter in spared)
        assert not any(parameter is head.fc.weight for parameter in spared)

    def test_the_first_step_by_hand(self, dual, head):
        optimizer = make_optimizer(answering(dual(), head), 0.1, 0.5)
        with torch.no_grad():
            head.clf_norm0.weight.fill_(2.0)
            head.clf_norm0.bias.fill_(2.0)
        head.clf_norm0.weight.grad = torch.full((64,), -3.0)
        head.clf_norm0.bias.grad = torch.full((64,), -3.0)
        optimizer.step()
        # Decay: 2 - 0.1 · 0.5 · 2; then the first step of Adam is the learning rate against the sign.
        assert head.clf_norm0.weight[0].item() == pytest.approx(2.0, abs=1e-6)
        assert head.clf_norm0.bias[0].item() == pytest.approx(2.1, abs=1e-6)

    def test_sgd_has_no_momentum(self, dual):
        head = torch.nn.Linear(2, 1)
        optimizer = make_optimizer(answering(dual(), head), 0.1, 0.5, "sgd")
        with torch.no_grad():
            head.weight.fill_(2.0)
            head.bias.fill_(2.0)
        for _ in range(2):
            head.weight.grad, head.bias.grad = torch.full((1, 2), 3.0), torch.full((1,), 3.0)
            optimizer.step()
        # Twice w - 0.1 · (3 + 0.5 · w) = 0.95 · w - 0.3; a bias is not decayed: 2 - 2 · 0.3.
        assert head.weight[0, 0].item() == pytest.approx(0.95 * (0.95 * 2 - 0.3) - 0.3)
        assert head.bias.item() == pytest.approx(1.4)
