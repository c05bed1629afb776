"""What people read of a run: a line a round, the table of scores, the report, the adapter's model card."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table
from safetensors import safe_open

from app.files import write_atomically
from app.methods import METHODS
from strategies.privacy import epsilon

from . import markdown
from .curves import draw_curves
from .export import lies_beside
from .rows import ALL, GROUPS, Rows, best_round, by_round, central, last_round, names_of

SCORES = {
    "student": "student\n(A_s, deployed)",
    "local": "local\n(A_c)",
    "teacher": "teacher\n(DAT)",
    "text-only": "text\nonly",
}
GAIN = "gain\n(student − text only)"


def results_table(rows: Rows) -> Table:
    """Show each client's last scores in points, then the mean and the worst of each column.

    Where the server evaluates, show its last accuracies by groups of classes, then over all.
    """
    header, lines = _scores(rows)
    table = Table(title="score on the test split, in points")
    for column in header:
        table.add_column(column, justify="left" if column == header[0] else "right")
    summaries = 1 if central(rows) else 2
    for i, line in enumerate(lines, start=1):
        # The line above the summaries ends the section of clients or groups.
        table.add_row(*map(escape, line), end_section=i == len(lines) - summaries)
    return table


def progress_line(
    rows: Rows, server_round: int, num_rounds: int, seconds: float, rounds_before: int = 0
) -> str:
    """Say how a round went: scores if it was evaluated, else the mean loss.

    Parameters
    ----------
    rows : sequence of dict
        The run's rows so far.
    server_round, num_rounds : int
        The round that just ended, counted from 1, and how many there are.
    seconds : float
        How long the rounds from `rounds_before`, where the run was resumed, up to this one took.
    """
    names = names_of(rows)
    now = [row for row in rows if row["round"] == server_round]
    scored = [row for row in now if "student" in row]
    if evaluated := central(now):
        groups = (f", {100 * evaluated[0][key]:.1f} {key}" for key in GROUPS if key in evaluated[0])
        state = f"student {100 * evaluated[0]['student']:.1f} over {ALL}" + "".join(groups)
    elif scored:
        scores = [100 * row["student"] for row in scored]
        worst = int(np.argmin(scores))
        name = names[scored[worst]["partition"]]
        state = f"student {np.mean(scores):.1f} mean, {scores[worst]:.1f} worst ({name})"
    elif losses := [row["ce-student"] for row in now if "ce-student" in row]:
        state = f"student loss {np.mean(losses):.3f} mean"
    else:
        state = "nothing measured"
    if refused := sum("refused" in row for row in now):
        state += f"; {refused} refused"
    left = seconds / (server_round - rounds_before) * (num_rounds - server_round)
    time = f"{_clock(left)} left" if server_round < num_rounds else f"{_clock(seconds)} in all"
    return f"round {server_round}/{num_rounds}: {state}; {time}"


def write_report(folder: Path, settings: Mapping[str, Any], rows: Rows, seconds: float) -> None:
    """Write ``report.md`` and ``curves.png``.

    Parameters
    ----------
    folder : Path
        The run's folder. If the result has been exported to it, the report tells its size.
    settings : Mapping
        The run's settings, keys as in the run-config.
    rows : sequence of dict
        All rows of the run.
    seconds : float
        How long it took.
    """
    picture = io.BytesIO()
    draw_curves(rows).savefig(picture, format="png")
    write_atomically(folder / "curves.png", picture.getvalue())
    write_atomically(folder / "report.md", _report(folder, settings, rows, seconds))


def refusals(rows: Rows) -> Counter[tuple[str, str, str]]:
    """Count the replies that did not count, by client, phase and reason."""
    names = names_of(rows)
    return Counter(
        (names.get(row["partition"], "not asked"), row["phase"], row["refused"])
        for row in rows
        if "refused" in row
    )


def model_card(settings: Mapping[str, Any], rows: Rows) -> str:
    """Return the README.md of the exported adapter."""
    backbone = json.dumps(settings["backbone"])
    use = _use_with_peft_alone(settings) if settings["adapter"] == "lora" else _use_with_feddat(settings)
    return f"""---
library_name: peft
license: apache-2.0
base_model: {backbone}
tags:
- federated-learning
- feddat
- visual-question-answering
---

# {markdown.text(settings["run-name"])}

A {settings["adapter"]} adapter for the frozen backbone {markdown.text(settings["backbone"])},
trained by clients that kept their images, texts and answers to themselves. {_what_ran(settings, rows)}

It holds the shared adapter A_s only: no answer head and no local adapter. Those never left their clients.

## Scores

On each client's test split, in points, with the client's own private head. Deployed is the student.

{markdown.table(*_scores(rows), align="---:")}

## Use

{use}
"""


def _use_with_feddat(settings: Mapping[str, Any]) -> str:
    backbone = json.dumps(settings["backbone"])
    load = backbone if settings["backbone-weights"] == "pretrained" else f'{backbone}, "random"'
    return f"""With the package `feddat` installed:

```python
from peft import PeftModel
import feddat.app.bottleneck  # registers the adapter type with PEFT
from feddat.app.backbones import load_backbone

backbone = load_backbone({load})
model = PeftModel.from_pretrained(backbone.fork(), "path/to/adapter")
```

A new head takes the features of the pooled output, here of one PIL image and one question:

```python
pixels = backbone.processor.image(image)[None]
inputs = backbone.processor.texts(["what colour is the circle?"])
features = model(**inputs, pixel_values=backbone.processor.normalise(pixels)).pooler_output
logits = head(features)  # such as torch.nn.Linear(backbone.width, num_answers), trained on your answers
```"""


def _use_with_peft_alone(settings: Mapping[str, Any]) -> str:
    base = json.dumps(settings["backbone"])
    if lies_beside(settings["backbone"], settings["backbone-weights"]):
        base = 'f"{folder}/base_model"'
    return f"""With PEFT and transformers, for one PIL image and one question:

```python
import json
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

folder = "path/to/adapter"
base = AutoModel.from_pretrained({base}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, folder).eval()

made = json.load(open(f"{{folder}}/preprocessor_config.json"))
pixels = np.asarray(image.convert("RGB").resize((base.config.image_size,) * 2, 3)) / 255  # 3: bicubic
pixels = torch.tensor((pixels - made["image_mean"]) / made["image_std"], dtype=torch.float32)
question = made["text_template"].format("what colour is the circle?")
inputs = AutoTokenizer.from_pretrained(folder)(question, return_tensors="pt")  # ViT: inputs = {{}}
features = model(**inputs, pixel_values=pixels.permute(2, 0, 1)[None]).pooler_output
logits = head(features)  # such as torch.nn.Linear(base.config.hidden_size, num_answers), trained on yours
```"""


def privacy_line(settings: Mapping[str, Any]) -> str:
    """Say what the run's differential privacy amounts to; nothing without any."""
    if (kind := settings["dp.mode"]) == "none":
        return ""
    # A round that was repeated after a stop may have been released twice.
    releases = settings["num-rounds"] + len(settings.get("resumed-after", []))
    delta, multiplier = settings["dp.delta"], settings["dp.noise-multiplier"]
    what = "whether the adapter has one client's changes"
    if kind == "local":
        multiplier = sqrt(2 * log(1.25 / delta)) / settings["dp.epsilon"]
        what = "what one client's data are"
    # Rounded up: it must not claim more than there is.
    spent = Context(prec=3, rounding=ROUND_CEILING).create_decimal_from_float(
        epsilon(multiplier, releases, delta)
    )
    return f"{kind}, ε = {float(spent):g} at δ = {delta:g} for {what}, over {releases} rounds"


def classifier_card(settings: Mapping[str, Any], rows: Rows) -> str:
    """Return the README.md of an exported result that has its classifier with it."""
    backbone = json.dumps(settings["backbone"])
    call = backbone if settings["backbone-weights"] == "pretrained" else f'{backbone}, "random"'
    load = f"""import feddat.app.bottleneck  # registers the adapter type with PEFT
from feddat.app.backbones import load_backbone
from peft import PeftModel

backbone = load_backbone({call})
model = PeftModel.from_pretrained(backbone.fork(), "path/to/adapter")
classifier = load_file("path/to/adapter/classifier.safetensors")"""
    if METHODS[settings["method"]].artifact == "model":
        load = """from feddat.app.backbones import load_backbone

backbone = load_backbone("path/to/model")
model = backbone.model
classifier = load_file("path/to/model/classifier.safetensors")"""
    return f"""---
license: apache-2.0
base_model: {backbone}
tags:
- federated-learning
- feddat
- image-classification
---

# {markdown.text(settings["run-name"])}

An image classifier on the backbone {markdown.text(settings["backbone"])},
trained by clients that kept their images to themselves. {_what_ran(settings, rows)}

## Scores

{_measured_on(rows)}

{markdown.table(*_scores(rows), align="---:")}

## Use

With the package `feddat` installed; `answers` in the metadata of `classifier.safetensors` are the classes:

```python
from safetensors.torch import load_file
{load}

pixels = backbone.processor.normalise(backbone.processor.image(image)[None])  # image: PIL
inputs = backbone.processor.texts(["what is shown ?"])  # nothing for a backbone that sees images alone
features = model(**inputs, pixel_values=pixels).pooler_output
logits = features @ classifier["weight"].T + classifier["bias"]
```
"""


def _report(folder: Path, settings: Mapping[str, Any], rows: Rows, seconds: float) -> str:
    full = METHODS[settings["method"]].artifact == "model"
    weights = folder / ("model/model.safetensors" if full else "adapter/adapter_model.safetensors")
    size = f", {_num_parameters(weights):,} parameters" if weights.is_file() else ""
    facts = {
        "rounds": f"{last_round(rows)} of {settings['num-rounds']}",
        "best round": _best(rows),
        "clients": ", ".join(names_of(rows).values()),
        "method": f"{settings['method']} under {settings['strategy']}, weighting {settings['weighting']}",
        "backbone": f"{settings['backbone']} ({settings['backbone-weights']} weights)",
        "adapter": ("none, all weights" if full else settings["adapter"]) + size,
        "sent": _traffic(rows),
        "clipped": _clipped(rows),
        "privacy": privacy_line(settings),
        "time": f"{seconds / 60:.1f} minutes",
    }
    if resumed := settings.get("resumed-after"):
        facts["time"] += f" since the run was resumed after round {resumed[-1]}"
    refused = refusals(rows)
    parts = [
        f"# {markdown.text(settings['run-name'])}",
        _what_ran(settings, rows),
        _measured_on(rows),
        markdown.table(*_scores(rows), align="---:"),
        "![scores, losses and changes over the rounds](curves.png)",
        "\n".join(f"- **{key}**: {markdown.text(value)}" for key, value in facts.items() if value),
    ]
    if refused:
        lines = [[str(times), *reason] for reason, times in refused.most_common()]
        parts += ["Replies refused:", markdown.table(["times", "client", "phase", "reason"], lines)]
    every = markdown.table(["setting", "value"], [[key, str(value)] for key, value in settings.items()])
    parts.append(f"<details><summary>All settings</summary>\n\n{every}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _measured_on(rows: Rows) -> str:
    if central(rows):
        return (
            "Accuracy of the aggregated model on the benchmark's balanced test set, over the classes with "
            "many, with a medium number of and with few training examples, and over all, in points:"
        )
    if not any("student" in row for row in rows):
        return "Scores were not measured, or no client sent any:"
    return "Scores on each client's test split with its own head, in points:"


def _what_ran(settings: Mapping[str, Any], rows: Rows) -> str:
    method, strategy, benchmark = (f"`{settings[key]}`" for key in ("method", "strategy", "benchmark"))
    size = f"{len(names_of(rows))} clients, {settings['num-rounds']} rounds, seed {settings['seed']}"
    return f"Method {method} under {strategy} on the benchmark {benchmark}: {size}."


def _scores(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Return the table's header and its lines: each client's last scores, then the columns' mean and worst.

    A NaN stays one, in the mean and as the worst. Clients without a score do not count in them. Where the
    server evaluates, a line for each group of classes instead, then all classes.
    """
    if evaluated := central(rows):
        wanted = {**GROUPS, "student": ALL}
        lines = [
            [label, f"{100 * evaluated[-1][key]:.1f}"]
            for key, label in wanted.items()
            if key in evaluated[-1]
        ]
        return ["classes", "accuracy"], lines
    last = {row["partition"]: row for row in rows if "student" in row}
    final = max((row["round"] for row in last.values()), default=0)
    columns = {
        heading: {partition: 100 * row[key] for partition, row in last.items() if key in row}
        for key, heading in SCORES.items()
    }
    columns[GAIN] = {
        partition: 100 * (row["student"] - row["text-only"])
        for partition, row in last.items()
        if "text-only" in row
    }
    columns = {heading: values for heading, values in columns.items() if values}
    lines = []
    for partition, name in names_of(rows).items():
        if partition in last and (scored := last[partition]["round"]) != final:
            name += f" (round {scored})"
        points = (values.get(partition) for values in columns.values())
        lines.append([name, *("–" if point is None else f"{point:.1f}" for point in points)])
    for label, summary in (("mean", np.mean), ("worst", np.min)) if columns else ():
        lines.append([label, *(f"{summary(list(values.values())):.1f}" for values in columns.values())])
    return ["client", *columns], lines


def _traffic(rows: Rows) -> str:
    ways = {way: [row[f"bytes-{way}"] for row in rows if f"bytes-{way}" in row] for way in ("down", "up")}
    mean = " and ".join(f"{np.mean(sent):,.0f} bytes {way}" for way, sent in ways.items() if sent)
    return mean and f"{mean} a client and round, evaluation included; {sum(map(sum, ways.values())):,} in all"


def _clipped(rows: Rows) -> str:
    """Say how much of what clients changed was averaged."""
    left = [row for row in rows if "clipped" in row]
    if not left:
        return ""
    mean, most = np.mean([row["clipped"] for row in left]), min(left, key=lambda row: row["clipped"])
    who = f"{names_of(rows)[most['partition']]} in round {most['round']}"
    return f"to {100 * mean:.0f} % of a change in the mean; the most, {who}, to {100 * most['clipped']:.2g} %"


def _best(rows: Rows) -> str:
    best = best_round(rows, last_round(rows))
    if best is None:
        return ""
    return f"{best}, mean student {100 * np.mean(by_round(rows, 'student')[best]):.1f}, in adapter-best/"


def _num_parameters(weights: Path) -> int:
    with safe_open(weights, "np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
