"""Weigh clients that share one machine: their backbones in worker processes, and a step's activations.

    python -m benchmarks.memory

starts workers that each load the same backbone and put a client's adapters on it, and adds up what their
proportional set sizes (PSS: a page that n processes share counts an n-th in each) grow by. Then it takes a
step with and one without gradient checkpointing and prints the most memory that each had allocated at once.
It exits with 1 when the workers need more than 1.5 backbones in all. Needs Linux.

The backbone is ViLT-B/32 with random weights, saved in float32, or that of ``--backbone``. ``smolvlm-256m``,
a backbone that writes, has LoRA for adapters and a limit of 1.3; `benchmarks.step` weighs its step.
"""

import argparse
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from app.adapters import Adapter, adapt, adapter_config
from app.backbones import Backbone, load_backbone
from app.chat import ChatProcessor
from app.dual_adapter import DualAdapter
from app.families.blocks import Blocks, Trunk
from app.heads import answer_with_new_head
from app.learner import Branch
from app.mkd import Distillation, make_optimizer, mkd_step

from . import token_step
from .figures import machine_of, verdict, write_figures
from .step import ANSWERS, draw, make_backbone, peak_memory

LIMIT, LIMIT_WRITES = 1.5, 1.3
CPU = torch.device("cpu")


def save(backbone: Backbone, folder: Path) -> None:
    """Write a backbone as a folder that `load_backbone` takes."""
    backbone.model.save_pretrained(folder)
    if isinstance(backbone.processor, ChatProcessor):
        # Any that is loaded without a package for videos: nothing is read by it.
        tokenizer = load_backbone("tiny-vilt").processor.tokenizer
        LlavaProcessor(CLIPImageProcessorPil(), tokenizer, chat_template="-").save_pretrained(folder)
    else:
        backbone.processor.tokenizer.save_pretrained(folder)


def adapter_of(backbone: Backbone) -> PeftConfig:
    """Return what clients train: the default of such a backbone."""
    return Adapter("lora" if isinstance(backbone.processor, ChatProcessor) else "bottleneck").config(backbone)


def proportional_set_size() -> int:
    """Return the bytes of memory that this process accounts for."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def work(folder: str, together: Barrier, results: Any) -> None:
    """Load a backbone, make a client's adapters, and say what that weighs while all others have theirs."""
    torch.set_num_threads(1)
    together.wait()
    before = proportional_set_size()
    together.wait()
    backbone = load_backbone(folder)
    adapter = adapt(backbone, adapter_of(backbone))
    together.wait()
    results.put((before, proportional_set_size() - before))
    together.wait()
    del adapter


def weigh(folder: str, workers: int) -> list[tuple[int, int]]:
    """Return the bytes of each of so many processes, and those that backbone and adapters add."""
    # A forked process would share what its parent has loaded.
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=work, args=(folder, together, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    sizes = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sizes


class Checkpointed:
    """Keeps the input of every block alone, and computes the rest again in the backward pass.

    Parameters
    ----------
    adapter : DualAdapter
        Its branches are put in place again with the blocks.
    """

    def __init__(self, adapter: DualAdapter) -> None:
        self.adapter = adapter
        self.blocks = cast(Blocks, adapter._split)

    def trunk(self, batch: Any) -> Trunk:
        """Compute as `DualAdapter` does."""
        return self.adapter.trunk(batch)

    def classify(self, features: Tensor) -> Tensor:
        """Compute as `DualAdapter` does."""
        return self.adapter.classify(features)

    def features(self, trunk: Trunk, branch: Branch) -> Tensor:
        """Compute as `DualAdapter` does."""
        parts = self.blocks

        def again(block: Any, compute: Any, hidden: Tensor) -> Tensor:
            self.adapter.activate(branch)  # when it is computed again, the other branch was the last
            return compute(block, hidden, trunk.mask)

        self.adapter.activate(branch)
        assert parts._output is not None
        hidden = parts._output.adapt(trunk.hidden)
        *inner, last = parts.blocks()[parts._first :]
        for block in inner:
            hidden = checkpoint(again, block, parts.apply, hidden, use_reentrant=False)
        return parts.pool(checkpoint(again, last, parts.apply_last, hidden, use_reentrant=False))


def activations(backbone: Backbone, batch: int) -> dict[str, dict[str, Any]]:
    """Take a step both ways; return the most bytes allocated at once, and the losses."""
    _, _, inputs, scores = draw(backbone, batch, CPU)
    figures = {}
    for name, kind in (("kept", lambda adapter: adapter), ("checkpointed", Checkpointed)):
        adapter = adapt(backbone, adapter_config("bottleneck", width=backbone.width))
        answer_with_new_head(adapter, backbone.width, ANSWERS, 0, "private")
        optimizer = make_optimizer(adapter, learning_rate=1e-4, weight_decay=1e-2)
        learner: Any = kind(adapter)

        def step(learner=learner, optimizer=optimizer) -> list[float]:
            return mkd_step(learner, optimizer, inputs, scores, Distillation()).losses.tolist()

        peak, losses = peak_memory(step, CPU)
        figures[name] = {"peak-bytes": peak, "losses": losses}
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backbone", default="vilt-b32", help="vilt-b32, tiny-vilt, smolvlm-256m, or a folder"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8], help="processes, a row each")
    parser.add_argument("--batch-size", type=int, default=8, help="of the step")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    writes = options.backbone == "smolvlm-256m"
    backbone = token_step.make_backbone() if writes else make_backbone(options.backbone)
    size = sum(tensor.nbytes for tensor in backbone.model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        save(backbone, Path(folder))
        workers = {number: weigh(folder, number) for number in options.workers}
    table = Table(
        *("workers", "one before", "one adds", "all add", "in backbones"),
        title=f"{options.backbone}, {size / 1e6:.0f} MB in float32, {machine_of()}",
    )
    for number, sizes in workers.items():
        before, total = (sum(column) for column in zip(*sizes, strict=True))
        megabytes = (f"{value / 1e6:.0f} MB" for value in (before / number, total / number, total))
        table.add_row(str(number), *megabytes, f"{total / size:.2f}")
    Console().print(table)
    steps = {} if writes else activations(backbone, options.batch_size)
    if steps:
        table = Table(
            "activations", "peak of a step", title=f"{options.backbone}, batch {options.batch_size}"
        )
        for name, row in steps.items():
            table.add_row(name, f"{row['peak-bytes'] / 1e6:.0f} MB")
        Console().print(table)
    figures = {
        "backbone-bytes": size,
        "worker-bytes": workers,
        "batch": options.batch_size,
        "steps": steps,
    }
    write_figures(options.json, machine_of(), figures)
    most = max(sum(added for _, added in sizes) for sizes in workers.values()) / size
    limit = LIMIT_WRITES if writes else LIMIT
    return verdict(most <= limit, f"at most {most:.2f} backbones in all, limit {limit}")


if __name__ == "__main__":
    sys.exit(main())
