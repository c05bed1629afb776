"""The model card of an exported result: what it is, what it scored, the lines that load it."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from app.backbones import Backbone
from app.methods import METHODS

from . import markdown
from .card_use import use
from .rows import Rows
from .scores import measured_on, scores, unscored, what_ran


def model_card(
    settings: Mapping[str, Any], rows: Rows, backbone: Backbone, answers: Sequence[str] = ()
) -> str:
    """Return the README.md of an exported adapter or model.

    Parameters
    ----------
    settings : Mapping
        The run's settings, keys as in the run-config.
    rows : sequence of dict
        The run's rows up to the round that is exported.
    backbone : Backbone
        What the run's settings open.
    answers : sequence of str
        What a head that travels chooses from; without, heads never left their clients.
    """
    whole, writes = METHODS[settings["method"]].artifact == "model", settings.get("loss") == "next-token"
    by_texts = backbone.family.chosen_by
    about = ModelCardData(
        library_name="transformers" if whole else "peft",
        license="apache-2.0",
        base_model=settings["backbone"],
        tags=["federated-learning", "feddat"],
        pipeline_tag="image-classification" if answers else backbone.family.purpose,
    )
    kind = "Weights" if whole else f"A {settings['adapter']} adapter"
    head = (
        "Its head, which all clients share, is in `classifier.safetensors`; `answers` in that file's metadata"
        " are what it chooses from."
        if answers
        else "It holds the shared adapter A_s only, and no local adapter: those never left their clients. The"
        " backbone's own head writes the answers. Deployed is the student."
        if writes
        else "No head was trained, and no local adapter left its client."
        f" {by_texts.format(prompt=markdown.text(backbone.prompt))} Deployed is the student."
        if by_texts
        else "It holds the shared adapter A_s only: no answer head and no local adapter. Those never left"
        " their clients, and the scores are with the client's own private head. Deployed is the student."
    )
    parts = [
        f"# {markdown.text(settings['run-name'])}",
        f"{kind} for the backbone {markdown.text(settings['backbone'])}, trained by clients that kept their"
        f" images, texts and answers to themselves. {what_ran(settings, rows)}",
        head,
        *([note] if (note := METHODS[settings["method"]].note) else []),
        "## Scores",
        measured_on(settings, rows),
        *([] if unscored(rows) else [markdown.table(*scores(rows), align="---:")]),
        "## Use",
        use(settings, backbone, answers),
    ]
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n").content
