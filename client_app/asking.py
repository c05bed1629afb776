"""A client of a run is asked: what each branch answers to a question of one's own about a picture.

    python -m client_app.asking --folder RUN --client 2 --of 5 --image FILE --question "…"
    python -m client_app.asking --folder RUN --node-config 'partition-id=2 …' --image FILE --question "…"

The first is of a simulation on this machine, the second at a site, by whose own settings it is done.
Where its examples have several pictures each, so does what it is asked: ``--image`` once for each, in order.

It is done where the client's private state and data lie, and nowhere else.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isnan, nan
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.common.config import get_fused_config_from_dir
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import load_file

from app.backbones import choose_device
from app.conversations import Conversations
from app.examples import FORMATS, Examples
from app.families.generative import AnswerPositions
from app.learner import CLASSIFIER, Learner
from app.methods import METHODS, open_learner
from app.private_state import PrivateState, Shelf, newest_private_state
from app.records import to_record
from app.settings import Settings, SettingsError
from app.tasks import TASKS
from data_partitions.partition import FEATURES, PLACE

from .check import read_node_config
from .chosen_answers import MOST_OPTIONS
from .client import Client
from .local_training import OwnTraining, mixed_precision

_FIRST = torch.zeros(1, dtype=torch.int64)
# An answer and its probability.
Said = tuple[str, float]


@dataclass(frozen=True)
class Asked:
    """One client as the run left it. Make one with `of_run`, at a site with `at_site`.

    Attributes
    ----------
    client : Client
        Its data say which answers there are.
    learner : Learner
        The run's shared adapter, the client's own adapter and its head.
    shelf : Shelf
        Where its private states of the run lie.
    pictures : int
        How many pictures it is asked about; 0: any number.
    """

    client: Client
    learner: Learner
    shelf: Shelf
    pictures: int = 1

    @classmethod
    def of_run(cls, folder: Path, partition_id: int, num_partitions: int) -> "Asked":
        """Put a client of a simulation together: what the run exported, and this machine's private state.

        Parameters
        ----------
        folder : Path
            The run's, with ``settings.json``, and ``adapter`` or ``model`` if its method shares anything.
        partition_id, num_partitions : int
            Which client, from 0, of how many.

        Raises
        ------
        ValueError
            One line: the run is not over, or the client has no private state here, or no data.
        """
        # Whoever asks here is at home: no policy is between them and their own data.
        node = {"partition-id": partition_id, "num-partitions": num_partitions, "policy": "open"}
        return cls.at_site(folder, node)

    @classmethod
    def at_site(cls, folder: Path, node_config: Mapping[str, Any]) -> "Asked":
        """Put a site's client of a run together, as the site's own settings say.

        Parameters
        ----------
        folder : Path
            As in `of_run`.
        node_config : Mapping
            What the site's SuperNode is given. Its policy takes the run, or does not, as in training.

        Raises
        ------
        ValueError
            As in `of_run`; or a setting of the site cannot be used.
        """
        kept = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        # A setting that came after the run was as it is by default.
        config = get_fused_config_from_dir(Path(__file__).parents[1], {})
        config |= {key: kept[key] for key in Settings.fields() if key in kept}
        config |= {"private-state": "files", "resume": "", "run-name": folder.name}
        client = Client.of(Context(0, 0, dict(node_config), RecordDict(), config))
        partition_id = client.partition_id
        shelf = client.shelf({"run": folder.name, "run-token": kept.get("run-token")})
        if not shelf.rounds():
            raise SettingsError(
                f"client = {partition_id} has no private state of {folder.name!r} on this machine"
                f" (state-dir = {str(shelf.state_dir)!r}); allowed: {_there(shelf)}"
            )
        learner, method = open_learner(client.settings), METHODS[client.settings.method]
        arrays: dict[str, torch.Tensor] = {}
        if method.travelling(learner) or client.settings.head == "shared":
            exported, travelled = _exported(folder / method.artifact).items(), learner.parameters_of["shared"]
            arrays = {name: v for name, v in exported if name in travelled or name.startswith(CLASSIFIER)}
        partition, device = client.partition, choose_device(client.settings.device)
        rows, answers = partition.train.select([0]), partition.answers
        first = client.backbone.examples(rows, device, answers, partition.pictures)
        opened = client.open(to_record(arrays), shelf, 0, first)
        learner = opened.learner
        try:
            state = newest_private_state(shelf, PrivateState.of(learner.private(), opened.owed))
        except ValueError as error:
            raise SettingsError(
                f"client = {partition_id}: its private state cannot be used: {error}"
            ) from None
        learner.load_private(state.kept)
        return cls(client, learner.eval(), shelf, first.pictures)

    def answer(self, question: str, *images: Path, top: int = 5) -> dict[str, list[Said]]:
        """Return what each branch of the run's method answers, the likeliest first.

        Of a client with an answer list the `top` answers, also where a model that writes chooses among them
        (``writing.score = "choice"``). Else of such a model the answer that it writes. What the probabilities
        are of, says `meaning`.

        Raises
        ------
        ValueError
            A picture cannot be read, or there are not as many as the client's examples have.
        """
        if self.pictures not in (0, len(images)):
            raise SettingsError(
                f"image: {len(images)} given; allowed: {self.pictures}, as each of the client's examples has"
            )
        return self.answer_about([_read(image) for image in images], question, top)

    @property
    def meaning(self) -> str:
        """What the probabilities of answers are of, in a line."""
        settings, answers = self.client.settings, len(self.client.partition.answers)
        if self.client.backbone.family.kind_of_examples is not Conversations:
            if settings.loss == "bce-scores":
                return "Each answer's probability is its own: they need not add up to 100%."
            return f"The probabilities of all the client's {answers} answers add up to 100%."
        if self._choices():
            return (
                f"Chosen from the client's {answers} answers, by the probability that just this is written:"
                " they need not add up to 100%."
            )
        written = "What each branch writes, with the probability of all its tokens."
        if settings.writing.score == "choice":
            written += (
                f" The client's {answers} answers are not 2 to {MOST_OPTIONS}, so none is chosen from them."
            )
        return written

    def _choices(self, options: Sequence[str] = ()) -> list[str]:
        """Return what a model that writes is to choose from; nothing where it is to write."""
        choices = [*(options or self.client.partition.answers)]
        chosen = self.client.settings.writing.score == "choice" and 2 <= len(choices) <= MOST_OPTIONS
        return choices if chosen else []

    def answer_about(
        self, pictures: Sequence[bytes], question: str, top: int = 5, options: Sequence[str] = ()
    ) -> dict[str, list[Said]]:
        """Return the same as `answer` about encoded pictures that can be read.

        `options` are what a model that writes chooses from in place of the client's answers.
        """
        learner, settings, client = self.learner, self.client.settings, self.client
        examples, kept = self._example(pictures, question), learner.private()
        own = OwnTraining(
            learner, lambda: client.examples("train"), settings, settings.num_rounds, client.partition_id
        )
        said: dict[str, list[Said]] = {}
        for branches in METHODS[settings.method].scored(learner, own, settings):
            for branch in branches:
                with torch.no_grad(), mixed_precision(learner.device), learner.branch(branch):
                    if isinstance(examples, Conversations):
                        choices = self._choices(options)
                        said[branch] = (
                            self._picked(examples, choices, top)
                            if choices
                            else [self._written(examples, pictures, question)]
                        )
                    else:
                        said[branch] = self._chosen(examples, top)
        learner.load_private(kept)
        return said

    def _example(self, pictures: Sequence[bytes], question: str, answer: str = "unknown") -> Any:
        """Make an example as those that were trained on; what is asked does not depend on the answer."""
        import datasets

        row = {
            "images": [{"bytes": picture, "path": None} for picture in pictures],
            "messages": [{"role": "user", "content": f"{PLACE * len(pictures)}\n{question}"}],
            "answers": [answer],
            "answer_scores": [1.0],
            "options": [],
            "question": question,
            "scores": [0.0] * len(self.client.partition.answers),
            "example_id": "asked",
        }
        rows = datasets.Dataset.from_list([row], features=FEATURES)
        client = self.client
        return client.backbone.examples(rows, self.learner.device, client.partition.answers)

    def _chosen(self, examples: Examples, top: int) -> list[Said]:
        inputs, _ = examples.batch(_FIRST, self.learner.device)
        logits = self.learner.logits(inputs)[0].float()
        each = self.client.settings.loss == "bce-scores"
        likely = (logits.sigmoid() if each else logits.softmax(-1)).topk(min(top, len(logits)))
        answers = self.client.partition.answers
        pairs = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        return [(answers[index], value) for index, value in pairs]

    def _picked(self, conversations: Conversations, choices: list[str], top: int) -> list[Said]:
        questions = conversations.questions(_FIRST, self.learner.device)
        tokens = [[self.client.backbone.processor.answer(choice) for choice in choices]]
        found = AnswerPositions(self.learner.model).likelihoods(questions, tokens)[0]
        likely = found.exp().topk(min(top, len(choices)))
        pairs = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        return [(choices[index], value) for index, value in pairs]

    def _written(self, conversations: Conversations, pictures: Sequence[bytes], question: str) -> Said:
        device, processor = self.learner.device, self.client.backbone.processor
        parts = AnswerPositions(self.learner.model)
        asked = parts.trunk(conversations.questions(_FIRST, device))
        (tokens,) = parts.write(asked, processor.stops, self.client.settings.writing.tokens)
        answer = processor.decode(tokens)
        if not answer:
            return "", nan
        inputs, targets = self._example(pictures, question, answer).batch(_FIRST, device)
        task = TASKS[self.client.settings.loss]
        logits, told = task.pair(self.learner.logits(inputs), targets)
        return answer, exp(-float(task.loss(logits, told)) * len(told))


def main(arguments: list[str] | None = None, prog: str = "python -m client_app.asking") -> int:
    """Print a table of the answers; what cannot be asked is one line, and the code is 1."""
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    add_whom(parser)
    parser.add_argument(
        "--image", type=Path, required=True, action="append", help="file of a picture; once for each"
    )
    parser.add_argument("--question", required=True)
    parser.add_argument("--top", type=int, default=3, help="how many answers are shown")
    given = parser.parse_args(arguments)
    # What transformers thinks of its own code is not the asker's business.
    warnings.simplefilter("ignore")
    try:
        asked = whom(given)
        said = asked.answer(given.question, *given.image, top=given.top)
    except (ValueError, OSError) as error:
        print(f"feddat: {error}", file=sys.stderr)
        return 1
    table = Table("", *said, title=escape(f"{given.question} ({asked.client.partition.name})"))
    for place, answers in enumerate(zip(*said.values(), strict=True), start=1):
        shown = (f"{text} ({'–' if isnan(value) else f'{value:.0%}'})" for text, value in answers)
        table.add_row(str(place), *map(escape, shown))
    console = Console(highlight=False)
    console.print(table)
    console.print(asked.meaning, markup=False, soft_wrap=True)
    return 0


def add_whom(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which client of which run."""
    parser.add_argument("--folder", type=Path, required=True, help="the run's")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--client", type=int, help="which one of a simulation here, from 0")
    which.add_argument("--node-config", help="the site's, as flower-supernode gets it")
    parser.add_argument("--of", type=int, default=1, help="of how many in the simulation")


def whom(given: argparse.Namespace) -> Asked:
    """Put the client together that the options of `add_whom` name; ValueError as `Asked.at_site`."""
    if given.node_config is not None:
        return Asked.at_site(given.folder, read_node_config(given.node_config))
    return Asked.of_run(given.folder, given.client, given.of)


def _read(image: Path) -> bytes:
    """Read a picture's file."""
    try:
        picture = image.read_bytes()
        Image.open(image, formats=FORMATS).load()
    # Pillow's decoders raise whatever a broken file makes them raise.
    except Exception:
        allowed = ", ".join(FORMATS)
        raise SettingsError(
            f"image = {str(image)!r} is not a picture that can be read; allowed: {allowed}"
        ) from None
    return picture


def _exported(folder: Path) -> dict[str, torch.Tensor]:
    """Return what was shared, by its names on the wire; of a model with what else it has."""
    weights = {"adapter": "adapter_model.safetensors", "model": "model.safetensors"}[folder.name]
    try:
        arrays = load_file(folder / weights)
    except OSError:
        raise SettingsError(
            f"{folder.parent.name!r} has no {folder.name} yet; allowed: a run that is over"
        ) from None
    head = folder / "classifier.safetensors"
    travelling = load_file(head) if head.exists() else {}
    return {**arrays, **{f"{CLASSIFIER}{name}": value for name, value in travelling.items()}}


def _there(shelf: Shelf) -> str:
    folder = shelf.folder.parent
    kept = (
        sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.exists() else []
    )
    return ", ".join(map(str, kept)) or "none is here"


if __name__ == "__main__":
    sys.exit(main())
