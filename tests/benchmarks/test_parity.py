"""The replay of recorded steps: of the published code, and of a literal implementation of another size."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, log_softmax, softmax
from transformers import ViltConfig, ViltModel

from app.families.vilt import keep_patch_order
from benchmarks.parity import COLUMNS, STEPS, TOLERANCE, Golden, main, replay

WIDTH, BLOCKS, REDUCTION, ANSWERS, STEPS_TAKEN = 24, 2, 3, 7, 4
ROLES = ("shared", "frozen", "local")
SETTINGS = {
    "vilt_config": {
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "image_size": 24,
        "patch_size": 8,
        "vocab_size": 50,
        "max_position_embeddings": 9,
    },
    "reduction_factor": REDUCTION,
    "num_labels": ANSWERS,
    "lr": 0.002,
    "betas": "0.8,0.95",
    "eps": 1e-7,
    "weight_decay": "0.05 (none on bias and LayerNorm.weight)",
    "temperature": 2.0,
}


class Adapters(nn.ModuleDict):
    """`{role}.{layer}.{down|up}`: one pair of linear maps a block and role, with large weights."""

    def __init__(self):
        def pair():
            narrow = WIDTH // REDUCTION
            return nn.ModuleDict({"down": nn.Linear(WIDTH, narrow), "up": nn.Linear(narrow, WIDTH)})

        super().__init__({role: nn.ModuleList(pair() for _ in range(BLOCKS)) for role in ROLES})
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def hook(self, block, in_place):
        def add(module, args, hidden):
            pairs = [(self[role][block], share) for role, share in in_place]
            return hidden + sum(share * p["up"](torch.relu(p["down"](hidden))) for p, share in pairs)

        return add


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.clf_fc0 = nn.Linear(WIDTH, 2 * WIDTH)
        self.clf_norm0 = nn.LayerNorm(2 * WIDTH)
        self.clf_fc1 = nn.Linear(2 * WIDTH, ANSWERS)

    def forward(self, features):
        return self.clf_fc1(nn.GELU()(self.clf_norm0(self.clf_fc0(features))))


def literal_trajectory():
    """Record the published step as it is written: three forwards, ½ [CE + KL], AdamW, twice."""
    torch.manual_seed(11)
    # The published backbone has a third row, for a second image.
    vilt = keep_patch_order(ViltModel(ViltConfig(**SETTINGS["vilt_config"], modality_type_vocab_size=3)))
    for parameter in vilt.parameters():
        nn.init.normal_(parameter, std=0.2)
    vilt.eval().requires_grad_(False)
    adapters, head = Adapters(), Head()
    adapters["frozen"].requires_grad_(False)
    trained = [*adapters["shared"].named_parameters(), *adapters["local"].named_parameters()]
    trained += head.named_parameters()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for name, p in trained if "bias" not in name], "weight_decay": 0.05},
            {"params": [p for name, p in trained if "bias" in name], "weight_decay": 0.0},
        ],
        lr=0.002,
        betas=(0.8, 0.95),
        eps=1e-7,
    )

    def logits(batch, *in_place):
        hooks = [
            layer.output.register_forward_hook(adapters.hook(block, in_place))
            for block, layer in enumerate(vilt.encoder.layer)
        ]
        features = vilt(**batch).pooler_output
        for hook in hooks:
            hook.remove()
        return head(features)

    def terms(own, other, scores):
        ce = binary_cross_entropy_with_logits(own, scores) * ANSWERS
        kl = kl_div(log_softmax(own / 2, -1), softmax(other.detach() / 2, -1), reduction="batchmean") * 4
        return ce, kl

    def learn(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def now():
        return {
            **{name: p.detach().clone() for name, p in adapters.named_parameters()},
            **{f"head.{name}": p.detach().clone() for name, p in head.named_parameters()},
        }

    dat = (("frozen", 0.5), ("local", 0.5))
    record = {f"init.{name}": value for name, value in now().items()}
    record |= {f"init.backbone.{name}": value.clone() for name, value in vilt.state_dict().items()}
    for step in range(STEPS_TAKEN):
        batch = {
            "input_ids": torch.randint(0, 50, (3, 5)),
            "attention_mask": torch.tensor([[1] * 5, [1] * 5, [1, 1, 1, 0, 0]]),
            "token_type_ids": torch.zeros(3, 5, dtype=torch.long),
            "pixel_values": torch.randn(3, 3, 24, 24),
            "pixel_mask": torch.ones(3, 24, 24, dtype=torch.long),
        }
        scores = torch.rand(3, ANSWERS).round(decimals=1)

        with torch.no_grad():
            teacher = logits(batch, *dat)
        shared = logits(batch, ("shared", 1.0))
        ce_s, kl_s = terms(shared, teacher, scores)
        learn((ce_s + kl_s) / 2)
        own = logits(batch, *dat)
        ce_dat, kl_dat = terms(own, shared, scores)
        learn((ce_dat + kl_dat) / 2)

        record |= {f"step{step}.batch.{name}": value for name, value in batch.items()}
        record[f"step{step}.batch.target_scores"] = scores
        for name, value in (("teacher", teacher), ("shared", shared), ("dat", own)):
            record[f"step{step}.logits.{name}"] = value.detach()
        record[f"step{step}.loss"] = torch.stack([ce_s, kl_s, ce_dat, kl_dat]).detach()
        record |= {f"step{step}.after.{name}": value for name, value in now().items()}
    return record


def save(path, record):
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in SETTINGS.items()}
    save_file({name: value.contiguous() for name, value in record.items()}, path, words)
    return path


@pytest.fixture(scope="module")
def record():
    return literal_trajectory()


@pytest.fixture
def golden(record, tmp_path):
    return save(tmp_path / "golden.safetensors", record)


@pytest.fixture
def published(shared_data):
    path = shared_data / "golden" / "feddat_step.safetensors"
    if not path.is_file():
        pytest.skip("the trajectory of the published code is not there")
    return path


@pytest.mark.parametrize("variant", STEPS)
class TestReplay:
    def test_the_published_step(self, published, variant):
        rows = replay(Golden(published), variant)
        assert len(rows) == 4
        for row in rows:
            assert set(row) == set(COLUMNS)
            assert max(row.values()) <= 2e-5

    def test_a_literal_step_of_another_size(self, golden, record, variant):
        rows = replay(Golden(golden), variant)
        assert len(rows) == STEPS_TAKEN
        assert max(max(row.values()) for row in rows) <= 2e-5
        # The trajectory goes somewhere, and its branches and terms differ.
        last = f"step{STEPS_TAKEN - 1}."
        for role in ("shared", "local"):
            name = f"{role}.1.down.weight"
            assert (record[f"{last}after.{name}"] - record[f"init.{name}"]).abs().max() > 5e-3
        assert (record[f"{last}logits.shared"] - record[f"{last}logits.dat"]).abs().max() > 0.05
        assert record[f"{last}loss"].min() > 1e-3

    def test_a_difference_is_found_in_its_column(self, record, tmp_path, variant):
        for name, column in (
            ("step1.logits.teacher", "logits"),
            ("step1.loss", "losses"),
            ("step1.after.shared.0.up.bias", "shared"),
            ("step1.after.frozen.1.down.weight", "frozen"),
            ("step1.after.local.1.up.weight", "local"),
            ("step1.after.head.clf_norm0.weight", "head"),
        ):
            altered = {**record, name: record[name].clone()}
            altered[name].view(-1)[1] += 1e-3
            rows = replay(Golden(save(tmp_path / "altered.safetensors", altered)), variant)
            wrong = [(i, key) for i, row in enumerate(rows) for key, gap in row.items() if gap > TOLERANCE]
            assert wrong == [(1, column)]
            assert rows[1][column] == pytest.approx(1e-3, abs=3e-5)


class TestProgram:
    def test_the_published_trajectory_passes(self, published, capsys):
        assert main(["--golden", str(published)]) == 0
        assert "passed: tolerance 2e-05" in capsys.readouterr().out

    def test_a_literal_trajectory_passes(self, golden, capsys):
        assert main(["--golden", str(golden)]) == 0
        printed = capsys.readouterr().out
        assert printed.index("reference: largest difference") < printed.index("fast: largest difference")

    @pytest.mark.parametrize("name", ["step0.logits.dat", "step3.loss", "step2.after.head.clf_fc1.bias"])
    @pytest.mark.parametrize("change", [1e-3, -1e-3, float("nan"), float("inf")])
    def test_one_changed_number_fails(self, record, tmp_path, capsys, name, change):
        altered = {**record, name: record[name].clone()}
        altered[name].view(-1)[-1] += change
        assert main(["--golden", str(save(tmp_path / "altered.safetensors", altered))]) == 1
        assert "FAILED" in capsys.readouterr().out

    @pytest.mark.parametrize("key", ["lr", "betas", "eps", "weight_decay", "temperature"])
    def test_the_settings_are_the_files(self, golden, tmp_path, key):
        with safe_open(golden, "pt") as file:
            words, tensors = file.metadata(), {name: file.get_tensor(name) for name in list(file.keys())}
        others = {
            "lr": "0.003",
            "betas": "0.9,0.95",
            "eps": "1e-3",
            "weight_decay": "0.5",
            "temperature": "3",
        }
        words[key] = others[key]
        save_file(tensors, tmp_path / "other.safetensors", words)
        assert main(["--golden", str(tmp_path / "other.safetensors")]) == 1

    def test_a_missing_file_is_named(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["--golden", str(tmp_path / "none.safetensors")])
        assert stop.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.endswith(f"error: --golden {tmp_path / 'none.safetensors'}: no such file")

    def test_the_file_is_required(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main([])
        assert stop.value.code == 2
        assert "--golden" in capsys.readouterr().err
