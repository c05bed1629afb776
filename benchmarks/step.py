"""Time one training step: ours, one adapter's, and the published one written out literally.

    python -m benchmarks.step

takes the same batch through every variant in turn, and prints for each the FLOPs in multiples of one forward
of the backbone, CPU seconds, samples a second and the peak of memory. It exits with 1 when our step and the
literal one differ by more than the tolerance.

``vilt-b32`` is ViLT-B/32 with random weights. *Published* makes a batch's inputs from pictures and questions
again in each of its three forwards, by transformers' processor, for its untouched ViLT. *Literal* takes the
same step on inputs made beforehand. *Cached* finds what is frozen and the same for both branches
computed already. FLOPs are those of matrix products, attention's among them.
"""

import argparse
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViltConfig, ViltModel, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from app.adapters import adapt, adapter_config
from app.backbones import Backbone, choose_device, load_backbone
from app.dual_adapter import DualAdapter
from app.families.vilt import fuse_attention, keep_patch_order
from app.heads import answer_with_new_head
from app.mkd import Distillation, Outcome, adapter_step, make_optimizer, mkd_step, reference_step
from app.processor import Processor
from client_app.local_training import mixed_precision

from . import token_step
from .figures import machine_of, verdict, write_figures

# Largest difference of logits and losses: in float32, and where CUDA computes in bfloat16.
TOLERANCE = {"cpu": 2e-5, "cuda": 5e-2}
ANSWERS, TEXT_TOKENS = 100, 40
FORWARD, PUBLISHED, LITERAL, OURS = "forward", "published", "literal", "ours"
# Dense bfloat16, without sparsity, as the makers state it; by what the device's name contains.
BF16_PEAK = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}


def make_backbone(name: str) -> Backbone:
    """Return a backbone by name; ``vilt-b32`` is made of random weights and has the built-in tokenizer."""
    if name != "vilt-b32":
        return load_backbone(name)
    torch.manual_seed(0)
    model = fuse_attention(keep_patch_order(ViltModel(ViltConfig()))).eval().requires_grad_(False)
    tokenizer = load_backbone("tiny-vilt").processor.tokenizer
    size, half = model.config.image_size, (0.5, 0.5, 0.5)
    return Backbone(name, model, Processor(tokenizer, size, TEXT_TOKENS, half, half), fingerprint="")


def untouched(backbone: Backbone) -> Backbone:
    """Return transformers' own ViLT over the same weights."""
    with torch.device("meta"):
        model = ViltModel(backbone.model.config)
    state = backbone.model.state_dict(keep_vars=True)
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    # What is not saved has no value on "meta".
    for name, buffer in backbone.model.named_buffers():
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner).register_buffer(last, buffer, persistent=False)
    return Backbone(backbone.name, model.eval(), backbone.processor, fingerprint="")


def draw(
    backbone: Backbone, batch: int, device: torch.device
) -> tuple[list, list, dict[str, Tensor], Tensor]:
    """Draw pictures and questions, the model inputs that they give, and answer scores."""
    generator = torch.Generator().manual_seed(0)
    processor = backbone.processor
    side = processor.image_size * 5 // 4
    pixels = torch.randint(256, (batch, side, side, 3), dtype=torch.uint8, generator=generator)
    pictures = [Image.fromarray(picture.numpy()) for picture in pixels]
    length = min(TEXT_TOKENS, processor.text_length)
    special = set(processor.tokenizer.all_special_ids)
    known = torch.tensor([i for i in range(len(processor.tokenizer)) if i not in special])
    # More than fit, for pieces of words may be joined: every text is filled.
    chosen = known[torch.randint(len(known), (batch, 4 * length), generator=generator)]
    questions = [processor.tokenizer.decode(row) for row in chosen]
    inputs = {name: value[:, :length].to(device) for name, value in processor.texts(questions).items()}
    inputs["pixel_values"] = torch.stack([processor.image(picture) for picture in pictures]).to(device)
    scores = torch.rand((batch, ANSWERS), generator=generator).to(device)
    return pictures, questions, inputs, scores


def make_variants(backbone: Backbone, batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return what is compared; each call takes one step from where the last one ended."""
    pictures, questions, inputs, scores = draw(backbone, batch, device)
    method = Distillation()
    config = adapter_config("bottleneck", width=backbone.width)

    def trained(on: Backbone) -> tuple[DualAdapter, Any]:
        adapter = adapt(on, config, device=device)
        answer_with_new_head(adapter, on.width, ANSWERS, 0, "private")
        return adapter, make_optimizer(adapter, learning_rate=1e-4, weight_decay=1e-2)

    def processed(adapter: DualAdapter) -> Callable[..., Tensor]:
        settings = backbone.processor
        images = ViltImageProcessorPil(
            size={"shortest_edge": settings.image_size},
            size_divisor=backbone.model.config.patch_size,  # type: ignore[call-arg]
            image_mean=settings.mean,
            image_std=settings.std,
        )
        processor = ViltProcessor(images, settings.tokenizer)

        def logits(raw: Any, branch: Any) -> Tensor:
            made = processor(
                images=pictures,
                text=questions,
                padding="max_length",
                truncation=True,
                max_length=min(TEXT_TOKENS, settings.text_length),
                return_tensors="pt",
            ).to(device)
            return adapter({name: made[name] for name in (*inputs, "pixel_mask")}, branch)

        return logits

    def forward() -> None:
        bare[0].activate(None)
        with torch.no_grad():
            bare[0].model(**{**inputs, "pixel_values": backbone.processor.normalise(inputs["pixel_values"])})

    def step(take: Callable[..., Any], learner: Any, optimizer: Any) -> Callable[[], Any]:
        return lambda: take(learner, optimizer, inputs, scores, method)

    published, published_optimizer = trained(untouched(backbone))
    bare, single, literal, ours, cached = (trained(backbone) for _ in range(5))
    with mixed_precision(device):
        trunk = cached[0].trunk(inputs)
    from_cache = SimpleNamespace(
        trunk=lambda _: trunk, features=cached[0].features, classify=cached[0].classify
    )
    return {
        FORWARD: forward,
        "one adapter": step(adapter_step, *single),
        PUBLISHED: step(reference_step, processed(published), published_optimizer),
        LITERAL: step(reference_step, *literal),
        OURS: step(mkd_step, *ours),
        "ours, cached": step(mkd_step, from_cache, *cached[1:]),
    }


def count_flops(call: Callable[[], Any]) -> int:
    """Count the FLOPs of a call's matrix products."""
    # Torch has no count for the CPU's fused attention; written out, it is matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def peak_memory(
    call: Callable[[], Any], device: torch.device, counts: Callable[[Tensor], bool] = lambda _: True
) -> tuple[int, Any]:
    """Return the most bytes that a call had allocated at once, beyond those before it, and its result.

    On the CPU those of tensors alone that `counts` says.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        return torch.cuda.max_memory_allocated(device) - before, result
    with _Alive(counts) as tensors:
        result = call()
    return tensors.most, result


class _Alive(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make, for as long as they are alive."""

    def __init__(self, counts: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.counts = counts
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            self._note(tensor, made=False)
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._note(tensor, made=True)
        return result

    def _note(self, tensor: Any, made: bool) -> None:
        # A view is no memory of its own. What comes from elsewhere is known as long as it lives.
        if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._known:
            size = storage.nbytes() if made and self.counts(tensor) else 0
            self._known.add(storage._cdata)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._freed, storage._cdata, size)

    def _freed(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.now -= size


def largest_difference(first: Outcome, second: Outcome) -> float:
    """Compare what two steps computed."""
    names = ("student", "teacher", "dat", "losses")
    return max(float((getattr(first, name)[:] - getattr(second, name)[:]).abs().max()) for name in names)


def measure(
    backbone: Backbone, batch: int, repeats: int, device: torch.device, task: str = "answers"
) -> dict[str, Any]:
    """Take all variants in turn; return for each its figures, and the difference of our step's results."""
    make, published = (make_variants, PUBLISHED) if task == "answers" else (token_step.make_variants, LITERAL)
    words = getattr(backbone.model.config.get_text_config(), "vocab_size", 0)

    def timed(call: Callable[[], Any]) -> tuple[float, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        wall, cpu = time.perf_counter(), time.process_time()
        with mixed_precision(device):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - wall, time.process_time() - cpu

    with mixed_precision(device):
        # Work grows with the batch in proportion; one example is counted soonest.
        flops = {name: count_flops(call) * batch for name, call in make(backbone, 1, device).items()}
        variants = make(backbone, batch, device)
        first = {name: peak_memory(call, device) for name, call in variants.items()}  # and warms up
        logits = dict.fromkeys(variants, 0)
        if task == "tokens":
            for name, call in variants.items():
                logits[name] = peak_memory(call, device, lambda made: made.ndim > 1 and words in made.shape)[
                    0
                ]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, call in variants.items():
            seconds[name].append(timed(call))
    rows = {}
    for name, pairs in seconds.items():
        wall, cpu = (list(column) for column in zip(*pairs, strict=True))
        rows[name] = {
            "forwards": flops[name] / flops[FORWARD],
            "cpu-seconds": cpu,
            "of-literal": paired_ratio(cpu, [own for _, own in seconds[LITERAL]]),
            "of-published": paired_ratio(cpu, [own for _, own in seconds[published]]),
            "samples-per-second": batch / statistics.median(wall),
            "flops-per-second": flops[name] / statistics.median(wall),
            "peak-bytes": first[name][0],
            "flops": flops[name] / batch,
            "logits-bytes": logits[name],
        }
    return {
        "backbone": backbone.name,
        "batch": batch,
        "variants": rows,
        "difference": largest_difference(first[OURS][1], first[LITERAL][1]),
    }


def paired_ratio(own: Sequence[float], other: Sequence[float]) -> float:
    """Return the median ratio of pairs: whatever else the machine does, it does to both halves of one."""
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


def show(figures: dict[str, Any], machine: str) -> None:
    """Print the table of one backbone and batch size."""
    peak = next((flops for name, flops in BF16_PEAK.items() if name in machine), None)
    columns = [
        "",
        "forwards",
        "GFLOPs an\nexample",
        "CPU s (least–most)",
        "of\nliteral",
        "of pub-\nlished",
        "samples\n/s",
        "peak\nMB",
        "logits\nMB",
    ]
    table = Table(
        *columns,
        *(["of bf16\npeak"] if peak else []),
        title=f"{figures['backbone']}, batch {figures['batch']}, {machine}",
        box=SIMPLE,
    )
    for name, row in figures["variants"].items():
        cpu = row["cpu-seconds"]
        table.add_row(
            name,
            f"{row['forwards']:.2f}",
            f"{row['flops'] / 1e9:.0f}",
            f"{statistics.median(cpu):.3f} ({min(cpu):.3f}–{max(cpu):.3f})",
            f"{row['of-literal']:.2f}",
            f"{row['of-published']:.2f}",
            f"{row['samples-per-second']:.1f}",
            f"{row['peak-bytes'] / 1e6:.0f}",
            f"{row['logits-bytes'] / 1e6:.1f}",
            *([f"{100 * row['flops-per-second'] / peak:.0f} %"] if peak else []),
        )
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--task", choices=("answers", "tokens"), default="answers", help="what is learned, see token_step"
    )
    parser.add_argument(
        "--backbones", nargs="+", default=["vilt-b32", "tiny-vilt"], help="vilt-b32, tiny-vilt, or folders"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8], help="a table each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    tables = []
    writes = options.task == "tokens"
    for name in ["smolvlm-256m"] if writes else options.backbones:
        backbone = token_step.make_backbone() if writes else make_backbone(name)
        for batch in options.batch_sizes:
            tables.append(measure(backbone, batch, options.repeats, device, options.task))
            show(tables[-1], machine_of(device))
    write_figures(options.json, machine_of(device), {"tables": tables})
    tolerance = TOLERANCE[device.type]
    difference = max(table["difference"] for table in tables)
    passed = all(table["difference"] <= tolerance for table in tables)
    return verdict(
        passed, f"our step and the literal one differ by {difference:.1e}, tolerance {tolerance:.0e}"
    )


if __name__ == "__main__":
    sys.exit(main())
