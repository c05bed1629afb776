"""One client's round: schedule, data order, what is trained, what is measured."""

import math
from collections import defaultdict

import pytest
import torch

from app.adapters import adapt, adapter_config
from app.backbones import load_backbone
from app.examples import Examples
from app.heads import answer_with_new_head
from app.methods import METHODS
from app.methods.full import FullModel
from app.settings import read_settings
from client_app import local_training
from client_app.local_training import (
    OwnTraining,
    batch_sizes,
    evaluate,
    schedule,
    shuffled,
    train_round,
)


def own(learner, examples, settings):
    """Return a client's training examples as an evaluation has them."""
    return OwnTraining(learner, lambda: examples, settings, 1, 0)


@pytest.mark.parametrize(
    ("total", "warmup", "factors"),
    [
        (10, 0.3, [1 / 3, 2 / 3, 1, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]),
        (4, 0.0, [1, 3 / 4, 2 / 4, 1 / 4]),
        (4, 0.1, [1, 1, 2 / 3, 1 / 3]),  # 0.4 of a batch is one batch
        (3, 0.99, [1 / 3, 2 / 3, 1]),
        (1, 0.5, [1]),
    ],
)
def test_the_rate_rises_linearly_and_falls_linearly(total, warmup, factors):
    assert [schedule(step, total, warmup) for step in range(total)] == pytest.approx(factors)


def test_a_constant_rate_is_the_peak_throughout():
    assert [schedule(step, 4, 0.5, "constant") for step in range(4)] == [1, 1, 1, 1]


def order(*key, examples=20):
    return torch.cat(shuffled(batch_sizes(examples, 6), *key)).tolist()


def test_batches_are_a_permutation():
    batches = shuffled(batch_sizes(20, 6), 0)
    assert [len(batch) for batch in batches] == [6, 6, 6, 2]
    assert sorted(torch.cat(batches).tolist()) == list(range(20))


@pytest.mark.parametrize(
    ("examples", "size", "least", "sizes"),
    [
        (20, 6, 1, [6, 6, 6, 2]),
        (18, 6, 1, [6, 6, 6]),
        (20, 6, 3, [6, 6, 8]),
        (20, 6, 2, [6, 6, 6, 2]),
        (10, 9, 10, [10]),
        (25, 4, 10, [10, 15]),
        (29, 4, 10, [10, 19]),
        (30, 4, 10, [10, 10, 10]),
        (7, 16, 1, [7]),
        (12, 16, 10, [12]),
    ],
)
def test_no_batch_has_fewer_than_the_least(examples, size, least, sizes):
    assert batch_sizes(examples, size, least) == sizes


def test_the_order_is_a_function_of_the_key_alone():
    torch.manual_seed(1)
    first = order(7, 0, 1, 0)
    torch.manual_seed(2)
    assert order(7, 0, 1, 0) == first


def test_seed_partition_round_and_epoch_each_change_the_order():
    keys = [(7, 0, 1, 0), (8, 0, 1, 0), (7, 1, 1, 0), (7, 0, 2, 0), (7, 0, 1, 1), (0, 7, 1, 0), (0, 1, 7, 0)]
    assert len({tuple(order(*key)) for key in keys}) == len(keys)
    assert len({tuple(order(2**31 - 1, 10**6, 10**6, epoch)) for epoch in range(50)}) == 50


ANSWERS = 3


@pytest.fixture
def settings(run_config):
    def build(**overrides):
        return read_settings(run_config(**{"batch_size": 4, "num_rounds": 2, **overrides}))

    return build


@pytest.fixture
def client(small_backbone):
    """Make a fresh client's learner."""

    def build(kind="bottleneck", seed=0):
        config = adapter_config(kind, reduction_factor=4, lora_rank=2, width=32)
        adapter = adapt(load_backbone(str(small_backbone)), config, seed)
        answer_with_new_head(adapter, 32, ANSWERS, seed, "private")
        adapter.receive(adapter.shared())
        return adapter

    return build


@pytest.fixture(scope="module")
def examples(small_backbone):
    """Ten examples whose answer is told by the question: the backbone is random, and hardly sees."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.arange(10) % ANSWERS
    pixels = torch.randint(0, 256, (10, 3, 32, 32), generator=generator, dtype=torch.uint8)
    questions = ["what color is the small circle ?", "is there a red square ?", "red red red"]
    texts = load_backbone(str(small_backbone)).processor.texts([questions[answer] for answer in answers])
    return Examples(
        pixels,
        torch.arange(10),
        texts["input_ids"],
        texts["attention_mask"],
        torch.nn.functional.one_hot(answers, ANSWERS).float(),
    )


@pytest.fixture
def rates(monkeypatch):
    """Write down the learning rate of every step that is taken."""
    seen = []
    for method in METHODS.values():

        def spy(learner, optimizer, *rest, step=method.step):
            assert len({group["lr"] for group in optimizer.param_groups}) == 1
            seen.append(optimizer.param_groups[0]["lr"])
            return step(learner, optimizer, *rest)

        monkeypatch.setattr(method, "step", spy)
    return seen


@pytest.mark.parametrize("method", ["feddat", "adapter"])
def test_one_schedule_runs_over_all_rounds_for_every_method(client, examples, settings, rates, method):
    chosen = settings(method=method, learning_rate=0.01, warmup=0.25, local_epochs=2)
    for server_round in (1, 2):
        train_round(client(), examples, chosen, server_round, 0)
    # Three batches an epoch, two epochs, two rounds: three steps up, nine down.
    up, down = [step / 3 for step in (1, 2, 3)], [step / 9 for step in range(9, 0, -1)]
    assert rates == pytest.approx([0.01 * factor for factor in up + down])


def test_the_data_come_in_another_order_each_epoch_round_and_client(client, examples, settings, monkeypatch):
    seen, batch = [], Examples.batch

    def spy(self, rows, device):
        seen.extend(rows.tolist())
        return batch(self, rows, device)

    monkeypatch.setattr(Examples, "batch", spy)
    for server_round, partition in ((1, 0), (2, 0), (1, 1)):
        train_round(client(), examples, settings(local_epochs=2), server_round, partition)
    epochs = [tuple(seen[start : start + 10]) for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 6


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
@pytest.mark.parametrize(
    "overrides", [{}, {"update": "joint"}, {"step": "reference"}, {"loss": "cross-entropy"}], ids=str
)
def test_both_adapters_and_the_head_move_and_the_copy_does_not(
    client, examples, settings, kind, overrides, small_backbone
):
    adapter = client(kind)
    before = {role: adapter.state(role) for role in ("shared", "frozen", "local")}
    head_before = {name: value.clone() for name, value in adapter.head.state_dict().items()}
    model = load_backbone(str(small_backbone)).model
    backbone = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = train_round(adapter, examples, settings(**overrides), 1, 0)
    for role in ("shared", "local"):
        after = adapter.state(role)
        moved = torch.cat([(after[name] - before[role][name]).flatten() for name in after])
        assert metrics[f"delta-{role}"] == pytest.approx(moved.norm().item(), rel=1e-5)
        assert metrics[f"delta-{role}"] > 0
    assert all(torch.equal(value, before["frozen"][name]) for name, value in adapter.state("frozen").items())
    assert not any(torch.equal(value, head_before[name]) for name, value in adapter.head.state_dict().items())
    assert all(torch.equal(v, backbone[k]) for k, v in model.state_dict().items())


def test_the_baseline_trains_the_shared_adapter_alone(client, examples, settings):
    adapter = client()
    local = adapter.state("local")
    metrics = train_round(adapter, examples, settings(method="adapter"), 1, 0)
    assert metrics["delta-shared"] > 0
    assert metrics.keys() == {"num-examples", "ce-student", "delta-shared", "train-seconds"}
    assert all(torch.equal(value, local[name]) for name, value in adapter.state("local").items())


def test_fast_and_reference_step_train_the_same(client, examples, settings):
    ends = {}
    for step in ("fast", "reference"):
        adapter = client()
        train_round(adapter, examples, settings(step=step, local_epochs=2), 1, 0)
        ends[step] = torch.cat([value.flatten() for value in adapter.state("shared").values()])
    torch.testing.assert_close(ends["fast"], ends["reference"], rtol=0, atol=2e-5)


def test_losses_are_means_over_examples_not_over_batches(client, examples, settings, monkeypatch):
    """Ten examples make batches of 4, 4 and 2."""
    sizes = []

    def step(learner, optimizer, inputs, scores, *rest):
        sizes.append(len(scores))
        return {"ce-student": torch.tensor(float(len(sizes)))}

    monkeypatch.setattr(METHODS["feddat"], "step", step)
    metrics = train_round(client(), examples, settings(), 1, 0)
    assert sizes == [4, 4, 2]
    assert metrics["ce-student"] == pytest.approx((1 * 4 + 2 * 4 + 3 * 2) / 10)
    assert metrics["num-examples"] == 10


def test_of_several_local_epochs_the_first_ten_are_measured_one_by_one(
    client, examples, settings, monkeypatch
):
    """Ten examples make batches of 4, 4 and 2 an epoch; the loss is the number of the step."""
    taken = []

    def step(learner, optimizer, inputs, scores, *rest):
        taken.append(len(scores))
        return {"ce-student": torch.tensor(float(len(taken)))}

    monkeypatch.setattr(METHODS["feddat"], "step", step)
    metrics = train_round(client(), examples, settings(local_epochs=12), 1, 0)
    # Of an epoch that begins after n steps: ((n + 1) 4 + (n + 2) 4 + (n + 3) 2) / 10.
    by_hand = {f"ce-student.epoch-{epoch}": 3 * (epoch - 1) + 1.8 for epoch in range(1, 11)}
    assert {key: value for key, value in metrics.items() if "epoch" in key} == pytest.approx(by_hand)
    assert metrics["ce-student"] == pytest.approx(3 * 5.5 + 1.8)
    assert metrics["num-examples"] == 10


def test_training_learns(client, examples, settings):
    adapter = client()
    chosen = settings(local_epochs=30, learning_rate=0.01, num_rounds=1)
    before = evaluate(adapter, examples, settings(), own(adapter, examples, settings()))["student"]
    metrics = train_round(adapter, examples, chosen, 1, 0)
    after = evaluate(adapter, examples, settings(), own(adapter, examples, settings()))
    assert before < 0.6
    assert min(after[branch] for branch in ("student", "local", "teacher")) == 1
    assert metrics["train-student"] > before


def pull(mu):
    """Return the settings of a pull."""
    return {"strategy": "fedprox", "proximal_mu": mu} if mu else {}


def test_fedprox_adds_its_term_to_the_gradient_of_the_shared_adapter_alone(
    client, examples, settings, monkeypatch
):
    """Having moved by 0.5 a step, the gradient gets mu times that distance (arXiv 1812.06127, equation 2)."""
    mu = 10.0
    gradients = {}

    def record(strength):
        seen = gradients[strength] = []

        def spy(adapter, optimizer, inputs, scores, method, chosen):
            for role in ("shared", "local"):
                for parameter in adapter.parameters_of[role].values():
                    parameter.grad = None
            loss = sum(adapter(inputs, branch).square().mean() for branch in ("student", "teacher"))
            loss.backward()
            seen.append(
                {r: [p.grad.clone() for p in adapter.parameters_of[r].values()] for r in ("shared", "local")}
            )
            with torch.no_grad():
                for parameter in adapter.parameters_of["shared"].values():
                    parameter += 0.5
            return {}

        monkeypatch.setattr(METHODS["feddat"], "step", spy)
        train_round(client(), examples, settings(**pull(strength)), 1, 0)

    record(0.0)
    record(mu)
    for step, (plain, pulled) in enumerate(zip(gradients[0.0], gradients[mu], strict=True)):
        for one, other in zip(plain["shared"], pulled["shared"], strict=True):
            torch.testing.assert_close(
                other - one, torch.full_like(one, mu * 0.5 * step), rtol=1e-4, atol=1e-4
            )
        for one, other in zip(plain["local"], pulled["local"], strict=True):
            assert torch.equal(one, other)


def test_a_strong_pull_keeps_the_shared_adapter_where_it_was(client, examples, settings):
    chosen = {"local_epochs": 20, "num_rounds": 1, "weight_decay": 0.0}
    moved = {mu: train_round(client(), examples, settings(**chosen, **pull(mu)), 1, 0) for mu in (0.0, 1e4)}
    assert moved[1e4]["delta-shared"] < 0.25 * moved[0.0]["delta-shared"]
    assert moved[1e4]["delta-local"] > 0.5 * moved[0.0]["delta-local"]


def test_the_pull_ends_with_the_round(client, examples, settings):
    adapter = client()
    train_round(adapter, examples, settings(**pull(1.0)), 1, 0)
    assert not any(parameter._backward_hooks for parameter in adapter.parameters_of["shared"].values())


def test_the_pull_reaches_a_head_that_travels(examples, settings, client):
    adapter = client()
    moved = {}
    for mu in (0.0, 1e4):
        head = answer_with_new_head(adapter, 32, ANSWERS, 0, "shared")
        before = head.weight.detach().clone()
        adapter.begin_anew()
        own = {"head": "shared", "method": "adapter", "local_epochs": 20, "num_rounds": 1}
        train_round(adapter, examples, settings(**own, weight_decay=0.0, **pull(mu)), 1, 0)
        moved[mu] = (head.weight - before).norm().item()
    assert moved[1e4] < 0.25 * moved[0.0]


def test_training_ends_with_the_round_even_if_that_fails(client, examples, settings, monkeypatch):
    full = FullModel(load_backbone("resnet8-narrow", "random"), torch.device("cpu"))
    seen = []

    def fails(learner, *rest):
        seen.append(learner.whole.training)
        raise RuntimeError("the GPU fell off")

    monkeypatch.setattr(METHODS["full"], "step", fails)
    answer_with_new_head(full, 64, ANSWERS, 0, "shared")
    with pytest.raises(RuntimeError, match="fell off"):
        train_round(full, examples, settings(method="full", head="shared"), 1, 0)
    assert (seen, full.whole.training) == ([True], False)


def test_a_frozen_backbone_never_computes_as_in_training(client):
    adapter = client()
    adapter.train()
    assert not any(module.training for module in adapter.modules())


def test_training_images_are_changed_only_if_asked_for(client, examples, settings, monkeypatch):
    seen = {}
    for augment in (False, True, True):
        pixels = []

        def step(learner, optimizer, inputs, *rest, pixels=pixels):
            pixels.append(inputs["pixel_values"])
            return {}

        monkeypatch.setattr(METHODS["feddat"], "step", step)
        train_round(client(), examples, settings(augment=augment), 1, 0)
        seen.setdefault(augment, []).append(torch.cat(pixels))
    order = torch.cat(shuffled(batch_sizes(10, 4), 0, 0, 1, 0))
    assert torch.equal(seen[False][0], examples.pixels[examples.image_of[order]])
    assert not torch.equal(seen[True][0], seen[False][0])
    assert torch.equal(seen[True][0], seen[True][1])


def test_evaluation_is_the_mean_over_examples_of_each_branch(client, examples, settings, monkeypatch):
    monkeypatch.setattr(local_training, "EVALUATION_BATCH", 3)
    adapter = client()
    train_round(adapter, examples, settings(local_epochs=5, learning_rate=0.01), 1, 0)
    scored = Examples(**{**vars(examples), "scores": torch.rand(10, ANSWERS)})
    metrics = evaluate(adapter, scored, settings(), own(adapter, scored, settings()))
    expected = defaultdict(list)
    for row in range(10):
        inputs, scores = scored.batch(torch.tensor([row]), torch.device("cpu"))
        for branch in ("student", "local", "teacher"):
            choice = adapter(inputs, branch).argmax().item()
            expected[branch].append(scores[0, choice].item())
    for branch, values in expected.items():
        assert metrics[branch] == pytest.approx(math.fsum(values) / 10, rel=1e-6)
    assert metrics["num-examples"] == 10


def test_evaluation_changes_nothing(client, examples, settings):
    adapter = client()
    before = {role: adapter.state(role) for role in ("shared", "frozen", "local")}
    evaluate(adapter, examples, settings(), own(adapter, examples, settings()))
    for role, state in before.items():
        assert all(torch.equal(value, state[name]) for name, value in adapter.state(role).items())
        assert all(p.requires_grad == (role != "frozen") for p in adapter.parameters_of[role].values())


def test_mixed_precision_casts_the_head_anew_in_every_forward():
    """The head moves between the forwards of a step; a cast kept from before would hide it."""
    with local_training.mixed_precision(torch.device("cpu")):
        assert not torch.is_autocast_cache_enabled()


def test_what_a_method_trains_at_an_evaluation_has_an_order_and_a_schedule_of_its_own(
    client, examples, settings
):
    """Two epochs of batches of 4, 4 and 2; the rate rises once, over all of them, and falls to 0."""
    learner, chosen = client(), settings(warmup=0.3)
    seen = []

    def step(optimizer, inputs, targets):
        seen.append((optimizer.param_groups[0]["lr"] / chosen.learning_rate, len(targets), targets))
        assert torch.is_grad_enabled()

    own(learner, examples, chosen).train(step, 2)
    rates, sizes, targets = zip(*seen, strict=True)
    assert sizes == (4, 4, 2) * 2
    assert rates == pytest.approx([1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4])
    first, second = torch.cat(targets[:3]), torch.cat(targets[3:])
    assert not torch.equal(first, second)
    trained = torch.cat(shuffled([4, 4, 2], chosen.seed, 0, 1, 0))
    assert not torch.equal(first, examples.scores[trained])
    for epoch in (first, second):
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, examples.scores.tolist()))


def test_some_of_a_clients_examples_are_the_same_in_each_round_and_another_clients_others(
    client, examples, settings
):
    def some(partition, server_round):
        training = OwnTraining(client(), lambda: examples, settings(), server_round, partition)
        return training.some(5)["pixel_values"]

    assert len(some(0, 1)) == 5
    assert torch.equal(some(0, 1), some(0, 2))
    assert not torch.equal(some(0, 1), some(1, 1))


def test_some_of_a_clients_examples_are_no_fewer_than_its_site_computes_on(client, examples, settings):
    training = OwnTraining(client(), lambda: examples, settings(), 1, 0, least=7)
    assert len(training.some(5)["pixel_values"]) == 7
