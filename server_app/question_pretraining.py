"""The second part of the built-in backbone's pretraining: public questions, answered in the pooled feature.

After captions (`server_app.pretraining`) the model fills in masked words, but its pooled feature tells
little: nothing asked for it but matching. Here every question ends in a mask, and the answer is asked for at
the mask, which has learnt to look, and of the pooled feature, which learns to read it there. Image question
answering as a pretraining task is from LXMERT (Tan & Bansal, 2019, arXiv 1908.07490, section 3.1). The
questions are about public scenes that no client holds, drawn like the captions' pictures.

Run ``python -m server_app.question_pretraining --start FOLDER --out FOLDER``.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ViltModel

from app.backbones import Processor, choose_device, keep_patch_order, load_backbone
from app.settings import feddat_home
from data_partitions.benchmarks import DataOptions, load_public_questions

from .pretraining import MEASURE_EVERY, learning_rate, save, vary

CARD = """
Then, for {done:,} of {steps:,} batches of {batch_size}, it answered {images:,} questions about as many other
public scenes from its pooled feature (a task of LXMERT). Of {held_out:,} held-out questions it answers
**{accuracy:.1%}** (always the most frequent answer: {majority:.1%}). Repeat that with

    python -m server_app.question_pretraining {command}

which took {minutes:.0f} minutes on {machine}, with Python {python}.
"""
REPEATED = ("start", "images", "style", "steps", "batch_size", "learning_rate", "seed", "out")


@dataclass(frozen=True)
class Questions:
    """Questions in memory.

    Attributes
    ----------
    pixels : Tensor
        uint8, shape (questions, 3, size, size).
    input_ids, attention_mask : Tensor
        int64, shape (questions, tokens).
    answers : Tensor
        Index of each answer, int64, shape (questions,).
    """

    pixels: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    answers: Tensor

    @classmethod
    def load(cls, dataset: Dataset, processor: Processor, answers: Sequence[str]) -> "Questions":
        """Process a data set with columns image, question, answer."""
        texts = processor.texts(dataset["question"])
        longest = int(texts["attention_mask"].sum(1).max())
        return cls(
            torch.stack([processor.image(image) for image in dataset["image"]]),
            texts["input_ids"][:, :longest],
            texts["attention_mask"][:, :longest],
            torch.tensor([answers.index(answer) for answer in dataset["answer"]]),
        )

    def inputs(self, rows: Tensor, processor: Processor) -> dict[str, Tensor]:
        """Return the model inputs of some rows."""
        return {
            "input_ids": self.input_ids[rows],
            "attention_mask": self.attention_mask[rows],
            "pixel_values": processor.normalise(self.pixels[rows]),
        }


@torch.no_grad()
def accuracy(model: ViltModel, head: nn.Module, data: Questions, processor: Processor) -> float:
    """Return the share of right answers, in [0, 1]."""
    right = 0
    for rows in torch.arange(len(data.answers)).split(100):
        inputs = {key: value.to(model.device) for key, value in data.inputs(rows, processor).items()}
        chosen = head(model(**inputs).pooler_output).argmax(-1).cpu()
        right += int((chosen == data.answers[rows]).sum())
    return right / len(data.answers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Continue a backbone's pretraining and save it."""
    parser = argparse.ArgumentParser(
        prog="python -m server_app.question_pretraining", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--start", type=Path, required=True, help="folder of the backbone to go on with")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    parser.add_argument("--images", type=int, default=50_000, help="public scenes to draw, a question each")
    parser.add_argument("--style", default="varied", help="how to draw them: varied, or any-paper")
    parser.add_argument("--steps", type=int, default=3_000, help="batches to train on")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=7e-4, help="peak of the schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    started = time.monotonic()

    data_options = DataOptions(seed=options.seed, cache_dir=feddat_home() / "data")
    public = load_public_questions("scenes", data_options, options.images, style=options.style)
    aside = load_public_questions(
        "scenes", data_options, max(100, options.images // 20), split="validation", style=options.style
    )
    answers = sorted({*public["answer"], *aside["answer"]})
    backbone = load_backbone(str(options.start))
    processor = replace(backbone.processor, template="{} " + str(backbone.processor.tokenizer.mask_token))
    data, held_out = (Questions.load(split, processor, answers) for split in (public, aside))

    device = choose_device(options.device)
    model: Any = keep_patch_order(backbone.model).requires_grad_(True)
    model.to(device)
    head, at_mask = (nn.Linear(backbone.width, len(answers)).to(device) for _ in range(2))
    parameters = [*model.parameters(), *head.parameters(), *at_mask.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))
    counts = torch.bincount(held_out.answers)
    for step in track(range(1, options.steps + 1), "answering questions"):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.learning_rate)
        rows = torch.randint(len(data.answers), (options.batch_size,), generator=generator)
        inputs = data.inputs(rows, processor)
        inputs["pixel_values"] = vary(inputs["pixel_values"], generator)
        inputs = {key: value.to(device) for key, value in inputs.items()}
        with torch.autocast(device.type, torch.bfloat16):
            output = model(**inputs)
            masks = inputs["attention_mask"].sum(1) - 2  # the last word before [SEP]
            words = output.last_hidden_state[torch.arange(len(rows), device=device), masks]
            logits = (head(output.pooler_output), at_mask(words))
        loss, mask_loss = (cross_entropy(guess.float(), data.answers[rows].to(device)) for guess in logits)
        optimizer.zero_grad()
        (loss + mask_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % MEASURE_EVERY == 0 or step == options.steps:
            reached = accuracy(model, head, held_out, processor)
            print(
                f"step {step}: losses {loss.item():.3f} {mask_loss.item():.3f}; "
                f"held out: {reached:.3f} answered",
                flush=True,
            )
            card = (options.start / "README.md").read_text(encoding="utf-8") + CARD.format(
                done=step,
                held_out=len(aside),
                accuracy=reached,
                majority=int(counts.max()) / len(aside),
                command=" ".join(f"--{key.replace('_', '-')} {getattr(options, key)}" for key in REPEATED),
                minutes=(time.monotonic() - started) / 60,
                machine=f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else "one GPU",
                python=platform.python_version(),
                **{key: getattr(options, key) for key in ("steps", "batch_size", "images")},
            )
            save(model, processor, options.out, card)
    print(f"saved to {options.out.resolve()}")


if __name__ == "__main__":
    main()
