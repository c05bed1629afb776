"""What a stranger's project may give the library by mistake is refused in one line, and changes nothing."""

import re

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig
from torch import nn

from app import Distillation, DualAdapter, mkd_step, reference_step
from tests.app.tiny_models import CLASSES, IDS, TEXT, Nobodys, bert, drawn, llama, lora

TARGETS = ["first", "second"]


def plain(model, batch):
    return model(batch)


def made(forward=plain, targets=TARGETS, head="head", model=None):
    return DualAdapter(model or Nobodys(), lora(targets), head=head, forward=forward)


def weights(dual):
    return {**dual.shared(), **dual.private(), **{"frozen." + n: v for n, v in dual.state("frozen").items()}}


def refused(act, *, unchanged=None):
    """Return the one line that an action ends with."""
    before = weights(unchanged) if unchanged else {}
    with pytest.raises(ValueError) as caught:
        act()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    after = weights(unchanged) if unchanged else {}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    return text


@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        (Nobodys, lora(["query", "value"]), "Nobodys cannot be adapted by PEFT: .*query"),
        (Nobodys, LoraConfig(), "Nobodys cannot be adapted by PEFT: .*target_modules"),
        (nn.ReLU, lora("all-linear"), "ReLU cannot be adapted by PEFT: No modules were targeted"),
        (lambda: nn.Sequential(nn.LayerNorm(4)), lora(["0"]), "Sequential .*LayerNorm.* is not supported"),
        (lambda: nn.Sequential(nn.GELU()), lora(["0"]), "Sequential cannot be adapted by PEFT: Stop"),
    ],
    ids=["no target fits", "no target named", "no target", "a target of no kind", "no weights"],
)
def test_a_module_that_peft_cannot_adapt(model, config, said):
    assert re.match(said, refused(lambda: DualAdapter(model(), config, forward=plain)))


def test_an_adapter_without_a_scale():
    config = IA3Config(target_modules=["first"], feedforward_modules=[])
    text = refused(lambda: DualAdapter(Nobodys(), config, forward=plain))
    assert text.startswith("config: adapters of type ")
    assert text.endswith("allowed: LORA, BOTTLENECK, BLOCK_PROMPT")


@pytest.mark.parametrize("name", ["classifier", "head.weight", "first.head", ""])
def test_a_head_that_is_not_there(name):
    model = Nobodys()
    text = refused(lambda: made(model=model, head=name))
    assert text == f"head = {name!r} is not a submodule of Nobodys; it has first, second, head"
    made(model=model)  # the model is as it was


@pytest.mark.parametrize(
    ("build", "targets", "head"),
    [
        (Nobodys, ["first", "head"], "head"),
        (lambda: bert()[0], ["query", "value"], "bert.encoder"),
        (lambda: bert()[0], ["classifier"], "classifier"),
    ],
    ids=["the head", "parts of the head", "of BERT"],
)
def test_a_head_that_is_adapted_as_well(build, targets, head):
    text = refused(lambda: DualAdapter(build(), lora(targets), head=head, forward=plain))
    assert text.startswith(f"head = {head!r} is adapted as well; allowed: ")


def test_a_head_tied_to_the_embeddings():
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=1, tie_word_embeddings=True)
    model = transformers.LlamaForCausalLM(config)
    text = refused(lambda: DualAdapter(model, lora(["q_proj"]), head="lm_head"))
    assert text.startswith("head = 'lm_head' shares a weight with 'model.embed_tokens.weight'")
    DualAdapter(llama()[0], lora(["q_proj"]), head="lm_head")  # untied, it is a head like any other


@pytest.mark.parametrize("model", [None, 3, "bert-base", {}, lambda batch: batch])
def test_what_is_no_module(model):
    text = refused(lambda: DualAdapter(model, lora(TARGETS)))
    assert text == f"model: {type(model).__name__}; allowed: a torch.nn.Module"


def saving(names, head="head"):
    config = lora(TARGETS)
    config.modules_to_save = names
    return DualAdapter(Nobodys(), config, head=head, forward=plain), config


@pytest.mark.parametrize(
    "names", [["head"], ["classifier", "head"]]
)  # PEFT adds names that may be of nothing
def test_a_module_to_save_that_is_the_head_is_the_head(names):
    dual, config = saving(names)
    assert config.modules_to_save == names
    assert weights(dual).keys() == weights(made()).keys()
    assert not any("head" in name for name in dual.shared())


@pytest.mark.parametrize(
    ("names", "head"), [(["first"], "head"), (["head", "second"], "head"), (["head"], None), (["x"], "head")]
)
def test_other_modules_to_save_are_refused(names, head):
    text = refused(lambda: saving(names, head))
    assert text.startswith(f"config: modules_to_save = {names!r}; allowed: None, and `head`")


def test_two_dual_adapters_on_one_model():
    model = Nobodys()
    first = made(model=model)
    assert refused(lambda: made(model=model), unchanged=first).startswith("the model has adapters already")
    assert refused(lambda: made(model=first.peft), unchanged=first).startswith("the model has adapters")


STEPS = pytest.mark.parametrize("step", [mkd_step, reference_step], ids=["mkd", "reference"])
BATCH = drawn(4, 6)


def fails(step, dual, targets=CLASSES, loss="cross-entropy"):
    """Return the line that a step ends with, having changed nothing."""
    optimizer = torch.optim.AdamW(dual.trained_parameters(), lr=0.1)
    return refused(lambda: step(dual, optimizer, BATCH, targets, Distillation(loss=loss)), unchanged=dual)


@STEPS
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda z: z[:, 0], "logits: (4,); allowed: a tensor of shape (n, classes)"),
        (lambda z: (z,), "logits: tuple; allowed: a tensor of shape (n, classes)"),
        (lambda z: None, "logits: NoneType; allowed: a tensor of shape (n, classes)"),
        (lambda z: z[:3], "targets: torch.int64 of shape (4,) with logits of shape (3, 3); allowed: "),
        (lambda z: z[..., None], "targets: torch.int64 of shape (4,) with logits of shape (4, 3, 1); "),
        (lambda z: z[:, :2], "targets: class 2; allowed: 0 to 1, or -100"),
        (lambda z: z * torch.nan, "the loss is nan: the logits or targets are not finite"),
        (lambda z: z.index_fill(0, torch.tensor([2]), torch.nan), "the loss is nan: "),
    ],
    ids=["one axis", "a tuple", "nothing", "rows missing", "an axis more", "too few classes", "NaN", "a row"],
)
def test_logits_of_the_wrong_shape_or_not_finite(step, spoil, said):
    assert fails(step, made(lambda model, batch: spoil(model(batch)))).startswith(said)


@STEPS
@pytest.mark.parametrize(
    ("loss", "targets", "said"),
    [
        ("cross-entropy", CLASSES + 1, "targets: class 3; allowed: 0 to 2, or -100"),
        ("cross-entropy", CLASSES - 1, "targets: class -1; allowed: 0 to 2, or -100"),
        ("cross-entropy", CLASSES[:3], "targets: torch.int64 of shape (3,) with logits of shape (4, 3); "),
        ("cross-entropy", CLASSES * 0 - 100, "targets: all are -100, nothing counts"),
        ("cross-entropy", CLASSES.float(), "targets: scores of shape (4,) with logits of shape (4, 3); "),
        ("cross-entropy", CLASSES.tolist(), "targets: list; allowed: a tensor"),
        ("cross-entropy", None, "targets: NoneType; allowed: a tensor"),
        ("cross-entropy", torch.full((4, 3), -0.5), "targets: scores of -0.5 to -0.5; allowed: 0 to 1"),
        ("bce-scores", torch.full((4, 3), 1.5), "targets: scores of 1.5 to 1.5; allowed: 0 to 1"),
        ("bce-scores", torch.full((4, 3), torch.nan), "targets: scores of nan to nan; allowed: 0 to 1"),
        ("bce-scores", torch.zeros(4, 2), "targets: scores of shape (4, 2) with logits of shape (4, 3); "),
        ("next-token", CLASSES, "loss = 'next-token' with logits of shape (4, 3); allowed: "),
        ("next-token", torch.zeros(4, 3), "targets: torch.float32 of shape (4, 3) with logits of "),
    ],
)
def test_targets_that_do_not_fit_the_loss(step, loss, targets, said):
    assert fails(step, made(), targets, loss).startswith(said)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_class_indices_may_be_any_integers(dtype):
    ends = []
    for targets in (CLASSES, CLASSES.to(dtype)):
        torch.manual_seed(0)
        dual = made()
        optimizer = torch.optim.AdamW(dual.trained_parameters(), lr=0.1)
        mkd_step(dual, optimizer, BATCH, targets, Distillation(loss="cross-entropy"))
        ends.append(weights(dual))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


class Wider(Nobodys):
    def __init__(self):
        super().__init__()
        self.second, self.head = nn.Linear(32, 40), nn.Linear(40, 4)


@pytest.mark.parametrize("other", [lambda: made(model=Wider()), lambda: made(targets=["first"])])
def test_arrays_of_another_model(other):
    dual, other = made(), other()
    text = refused(lambda: dual.receive(other.shared()), unchanged=dual)
    assert text.startswith("what was received: ")
    assert "base_model.model.second.lora_B.weight" in text or "missing or unknown arrays" in text
    text = refused(lambda: dual.load_private(other.private()), unchanged=dual)
    assert text.startswith("private state: ")
    assert "second.lora_B.weight" in text or "missing or unknown arrays" in text


def test_states_that_are_mixed_up():
    dual = made()
    for load, state in (
        (dual.receive, {}),
        (dual.receive, {**dual.shared(), **dual.private()}),
        (dual.receive, dual.private()),
        (dual.load_private, dual.shared()),
        (dual.load_private, {n: v for n, v in dual.private().items() if not n.startswith("head.")}),
    ):
        assert "missing or unknown arrays: " in refused(lambda f=load, s=state: f(s), unchanged=dual)


def test_a_batch_or_an_output_that_needs_a_forward():
    model, batch, _ = bert()
    dual = DualAdapter(model, lora(["query", "value"]), head="classifier")
    assert refused(lambda: dual.logits(IDS)).startswith("batch: Tensor; allowed: a mapping of model inputs")
    bare = DualAdapter(transformers.BertModel(transformers.BertConfig(**TEXT)), lora(["query"]))
    assert refused(lambda: bare.logits(batch)).endswith(
        "without logits; give `forward`, model and batch → logits"
    )
