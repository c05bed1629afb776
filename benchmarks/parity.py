"""Replay a recorded trajectory of the published FedDAT step with both of ours.

    python -m benchmarks.parity --golden FILE

prints the largest difference per step, and exits with 1 when any exceeds the tolerance. A golden file is in
safetensors: start values ``init.*``, for each step i its batch ``step{i}.batch.*`` and what came of it,
``step{i}.{logits,loss,after}.*``; its metadata hold the backbone's configuration and the optimizer's
settings.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from torch import Tensor
from transformers import ViltConfig, ViltModel

from app.adapters import adapt
from app.backbones import Backbone
from app.bottleneck import BottleneckConfig
from app.dual_adapter import ROLES, DualAdapter
from app.families.vilt import fuse_attention, keep_patch_order
from app.heads import AnswerHead
from app.mkd import Distillation, Outcome, make_optimizer, mkd_step, reference_step
from app.processor import Processor

from .figures import verdict

TOLERANCE = 2e-5
STEPS: dict[str, Callable[..., Outcome]] = {"reference": reference_step, "fast": mkd_step}
COLUMNS = ("logits", "losses", *ROLES, "head")


class Golden:
    """One golden file: tensors by name, settings by key."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.settings: dict[str, str] = file.metadata()
            self.tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in list(file.keys())}
        self.num_steps = 1 + max(
            int(found[1]) for key in self.tensors if (found := re.match(r"step(\d+)\.", key))
        )

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix`, without it."""
        return {
            key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)
        }

    def start(self) -> DualAdapter:
        """Build the model as it was before the first step."""
        weights = self.below("init.backbone.")
        rows = weights["embeddings.token_type_embeddings.weight"].shape[0]
        config = ViltConfig(**json.loads(self.settings["vilt_config"]), modality_type_vocab_size=rows)
        model = fuse_attention(keep_patch_order(ViltModel(config))).eval().requires_grad_(False)
        model.load_state_dict(weights)
        # A golden batch is processed already.
        backbone = Backbone("golden", model, Processor(None, 0, 0), fingerprint="")
        reduction = int(self.settings["reduction_factor"])
        adapter = adapt(backbone, BottleneckConfig(reduction_factor=reduction))
        for role in ROLES:
            adapter.load(role, {_wire_name(key): value for key, value in self.below(f"init.{role}.").items()})
        head = AnswerHead(config.hidden_size, int(self.settings["num_labels"]))
        head.load_state_dict(self.below("init.head."))
        adapter.answer_with(head)
        return adapter


def _wire_name(key: str) -> str:
    layer, rest = key.split(".", 1)
    return f"base_model.model.encoder.layer.{layer}.output.bottleneck_{rest}"


def replay(golden: Golden, variant: str) -> list[dict[str, float]]:
    """Run all steps; return for each the largest absolute difference of logits, losses, adapters and head."""
    adapter = golden.start()
    settings = golden.settings
    optimizer = make_optimizer(adapter, float(settings["lr"]), float(settings["weight_decay"].split()[0]))
    beta1, beta2 = (float(beta) for beta in settings["betas"].split(","))
    for group in optimizer.param_groups:
        group.update(betas=(beta1, beta2), eps=float(settings["eps"]))
    method = Distillation(temperature=float(settings["temperature"]))
    differences = []
    for index in range(golden.num_steps):
        batch = golden.below(f"step{index}.batch.")
        outcome = STEPS[variant](adapter, optimizer, batch, batch["target_scores"], method)
        logits = {"teacher": outcome.teacher, "shared": outcome.student, "dat": outcome.dat}
        row = {
            "logits": _largest(logits, golden.below(f"step{index}.logits.")),
            "losses": _largest({"loss": outcome.losses}, golden.below(f"step{index}.")),
        }
        for role in ROLES:
            after = golden.below(f"step{index}.after.{role}.")
            row[role] = _largest(
                adapter.state(role), {_wire_name(key): value for key, value in after.items()}
            )
        head = {name.removeprefix("head."): value for name, value in adapter.private().items()}
        after = golden.below(f"step{index}.after.head.")
        row["head"] = _largest({name: head[name] for name in after}, after)
        differences.append(row)
    return differences


def _largest(ours: dict[str, Tensor], golden: dict[str, Tensor]) -> float:
    gaps = [(ours[name].detach() - golden[name]).abs().max() for name in ours]
    # `max` of Python would pass over a NaN.
    return float(torch.stack(gaps).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay with both steps, print the differences, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, required=True, help="golden file in safetensors")
    options = parser.parse_args(arguments)
    if not options.golden.is_file():
        parser.error(f"--golden {options.golden}: no such file")
    golden = Golden(options.golden)
    passed = True
    for variant in STEPS:
        table = Table("step", *COLUMNS, title=f"{variant}: largest difference")
        for index, row in enumerate(replay(golden, variant)):
            table.add_row(str(index), *(f"{row[column]:.1e}" for column in COLUMNS))
            passed &= all(value <= TOLERANCE for value in row.values())
        Console().print(table)
    return verdict(passed, f"tolerance {TOLERANCE:.0e}")


if __name__ == "__main__":
    sys.exit(main())
