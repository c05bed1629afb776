"""What one message to one client works with: settings, data, adapters."""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ArrayRecord, Context
from torch import Tensor

from app.backbones import Backbone, choose_device, open_backbone
from app.conversations import Conversations
from app.dual_adapter import DualAdapter
from app.examples import Examples
from app.heads import answer_with_new_head
from app.learner import CLASSIFIER, Learner
from app.methods import METHODS, Method, open_learner
from app.private_state import PrivateState, Shelf, load_private_state, save_private_state
from app.records import from_record
from app.settings import RUN_NAME, Settings, feddat_home, read_settings
from app.source import source_hash
from data_partitions.options import DataOptions

from .budget import spend, squared_shift
from .carried_state import pick_up, put_down
from .kept_examples import Sources, kept_examples
from .policy import Policy, PublicError, Weights, in_simulation, simulated_machines
from .site_word import STATE_DIR, state_dir

if TYPE_CHECKING:
    from data_partitions.benchmarks import Partition

# A site's own settings: its node-config may set them, whatever the run says.
SITE_KEYS = ("backbone", "data-dir", "device", "lora-rank")
_PURPOSE = {"train": "train on", "test": "evaluate on"}


@dataclass(frozen=True)
class Share:
    """A client's part of a benchmark.

    Attributes
    ----------
    benchmark : str
        Name of the benchmark.
    index, count : int
        Which part, of how many.
    options : DataOptions
        What the benchmark is asked for.
    own_data : bool
        Whether the site has a data-dir of its own: of a benchmark with natural clients it has all that lies
        there.
    """

    benchmark: str
    index: int
    count: int
    options: DataOptions
    own_data: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the benchmark's natural clients."""
        from data_partitions.benchmarks import partition_names  # see `load`

        return partition_names(self.benchmark, self.options)

    @property
    def has_public_names(self) -> bool:
        """Whether those names are the benchmark's, and not from the site's files."""
        from data_partitions.benchmarks import BENCHMARKS

        return not BENCHMARKS[self.benchmark].names_in_data

    def load(self) -> "Partition":
        """Load the data.

        Raises
        ------
        ValueError
            If they cannot be used, or a site has more than one natural client's.
        """
        # Imported here: `datasets` takes half a second, and where examples are kept nobody needs it.
        from data_partitions.benchmarks import load_partition

        index, count = self.index, self.count
        # Where there are no natural clients, all sites have the same data and each its part.
        if self.own_data and (names := self.names):
            index, count = 0, 1
            if len(names) > 1:
                raise ValueError(
                    f"node-config: data-dir = {self.options.data_dir!r} holds {len(names)} domains; "
                    "allowed: one"
                )
        return load_partition(self.benchmark, index, count, self.options)


@dataclass(frozen=True)
class Opened:
    """What a message is answered with.

    Attributes
    ----------
    learner : Learner
        What arrived and what is private, in place.
    received, owed : dict
        What arrived, and what the wire owes of earlier rounds, see `records.to_reply`; in float32 nothing.
    lost : int
        How many private states were lost on the way, see `load_private_state`.
    """

    learner: Learner
    received: Mapping[str, Tensor]
    owed: dict[str, Tensor]
    lost: int


@dataclass(frozen=True)
class Client:
    """One client as a message finds it."""

    settings: Settings
    partition_id: int
    num_partitions: int
    share: Share
    policy: Policy
    context: Context

    @classmethod
    def of(cls, context: Context) -> "Client":
        """Read the run's and the node's configuration.

        Raises
        ------
        ValueError
            If either cannot be used, or the site's policy does not take the run.
        """
        node = context.node_config
        for key in ("partition-id", "num-partitions"):
            if not isinstance(node.get(key), int):
                raise ValueError(
                    f"node-config: {key} = {node.get(key)!r}; allowed: a whole number, such as {key}=2"
                )
        index, count = int(node["partition-id"]), int(node["num-partitions"])
        settings = read_settings(
            {**context.run_config, **{key: node[key] for key in SITE_KEYS if key in node}}
        )
        if settings.private_state == "context" and (STATE_DIR in node or not in_simulation()):
            raise PublicError(
                "private-state = 'context' at a site, whose private state must stay in its files; "
                "allowed: 'files', or a simulation"
            )
        share = Share(settings.benchmark, index, count, data_options(settings), "data-dir" in node)
        policy = Policy.of(node)
        _check_head(settings)
        policy.admit(settings, node)
        return cls(settings, index, count, share, policy, context)

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone; the process keeps it."""
        return open_backbone(self.settings, self.settings.device_map)

    @property
    def partition(self) -> "Partition":
        """The client's data; the process keeps it."""
        return _partition(self.share)

    @property
    def name(self) -> str:
        """The client's name, as its policy lets it leave."""
        return self.policy.name_of(self.partition_id, self.partition.name, self.share.has_public_names)

    @property
    def neutral_name(self) -> str:
        """A name for it that is known without its data."""
        neutral = f"partition {self.partition_id}"
        return self.policy.name_of(self.partition_id, neutral, self.share.has_public_names)

    def examples(self, split: str) -> Examples | Conversations:
        """Return one split, processed; the process keeps it, and the site's disk for the next process.

        Raises
        ------
        ValueError
            If the client has no such rows, fewer than its policy wants, or its data cannot be used.
        """
        found = _examples(self.share, split, self.backbone, choose_device(self.settings.device))
        self.policy.require_examples(len(found))
        return found

    @property
    def state_dir(self) -> Path:
        """The site's folder for private states; ValueError if the node names a relative one."""
        return state_dir(self.context.node_config)

    def shelf(self, config: Mapping[str, Any]) -> Shelf:
        """Return where the private states of the run lie that a message's `config` names.

        Raises
        ------
        ValueError
            The message does not say which run it is of, or the node's state-dir is relative.
        """
        name, token = config.get("run"), config.get("run-token")
        for key, value, pattern in (("run", name, RUN_NAME), ("run-token", token, "[0-9a-f]{1,64}")):
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise ValueError(f"{key} = {value!r} in the server's message; allowed: text like {pattern}")
        return Shelf(self.state_dir, str(name), str(token), self.partition_id)

    def spend(self, shelf: Shelf, server_round: int) -> None:
        """Count an answer to a round of training, where the site bounds what local privacy may cost it.

        Raises
        ------
        PublicError
            It would cost more than is left.
        """
        if self.policy.require_dp == "local":
            what = f"{shelf.run_name}-{shelf.run_token} round {server_round}"
            squares = squared_shift(self.settings.dp.epsilon, self.settings.dp.delta)
            spend(self.state_dir / f"released-{self.partition_id}.txt", self.policy, squares, what)

    @property
    def method(self) -> Method:
        """The run's method."""
        return METHODS[self.settings.method]

    @property
    def weights_sent(self) -> Weights:
        """Which weights leave it, by what the run's method has it reply."""
        writes = self.backbone.family.kind_of_examples is Conversations
        learner = self._learner(0 if writes else 1)  # of a head the names alone count
        sent = {name: tuple(value.shape) for name, value in self.method.travelling(learner).items()}
        return weights_among(learner, self.method.reply_layout(sent))

    def open(
        self,
        arrays: ArrayRecord,
        shelf: Shelf,
        up_to: int,
        examples: Examples | Conversations,
        expected: int = 0,
    ) -> Opened:
        """Put what arrived, what is made of it, and the private state in place.

        `examples` decide the head's size, any of the client's. `expected` is the round whose private state
        must be there, see `load_private_state`.

        What is private is as it was after round `up_to`, or the last before it.
        """
        learner, settings = self._learner(examples.num_answers, examples.pictures), self.settings
        received = from_record(arrays)
        self.method.receive(learner, received)
        learner.load_private({})
        rounded = settings.wire_precision != "float32"
        received = received if rounded else {}
        first = PrivateState.of(learner.private(), {n: torch.zeros_like(v) for n, v in received.items()})
        carried = self.settings.private_state == "context"
        if carried:
            put_down(self.context, shelf)
        # Where it is not here, it lies on another machine, and going on without would be another run.
        must = carried or simulated_machines() > 1
        private, lost = load_private_state(shelf, up_to, first, expected, must=must)
        learner.load_private(private.kept)
        return Opened(learner, received, private.owed, lost)

    def _learner(self, num_answers: int, pictures: int = 1) -> Learner:
        learner, settings = open_learner(self.settings), self.settings
        if num_answers:
            width = self.backbone.all_width(pictures)
            answer_with_new_head(learner, width, num_answers, settings.seed, settings.head)
        else:  # the backbone's own
            learner.answer_with(None)
        return learner

    def keep(self, shelf: Shelf, server_round: int, state: PrivateState) -> None:
        """Commit the private state after a round, see `save_private_state`."""
        save_private_state(shelf, server_round, state)
        if self.settings.private_state == "context":
            pick_up(self.context, shelf)


def weights_among(learner: Learner, names: Iterable[str]) -> Weights:
    """Say which weights arrays of these names are; what is neither of an adapter nor of a head is "all"."""
    adapter = learner.adapter_names if isinstance(learner, DualAdapter) else ()
    others = [name for name in names if name not in adapter]
    if not others:
        return "adapter"
    return "head" if all(name.startswith(CLASSIFIER) for name in others) else "all"


def _check_head(settings: Settings) -> None:
    """Raise a PublicError for a head that travels and would tell clients' own answer lists."""
    if settings.head == "shared":
        from data_partitions.benchmarks import BENCHMARKS  # see `Share.load`

        if not BENCHMARKS[settings.benchmark].test:
            raise PublicError(
                f"head = 'shared' with benchmark = {settings.benchmark!r}, whose clients have answer lists of"
                " their own; allowed: 'private'"
            )


def data_options(settings: Settings) -> DataOptions:
    """Say what a benchmark is asked for: the settings that carry its options' names."""
    return DataOptions.of(settings.run_config(), feddat_home() / "data")


@functools.lru_cache(maxsize=256)
def _partition(share: Share) -> "Partition":
    return share.load()


@functools.lru_cache(maxsize=256)
def _examples(share: Share, split: str, backbone: Backbone, device: torch.device) -> Examples | Conversations:
    key = {**asdict(share), "split": split, "backbone": backbone.fingerprint}
    key["options"] = {name: str(value) for name, value in key["options"].items()}
    key["answers"] = [backbone.head, backbone.prompt]
    key["parts"] = backbone.parts

    def build() -> tuple[Any, Sources]:
        partition = _partition(share)
        rows = getattr(partition, split)
        if not len(rows):
            raise ValueError(f"partition {share.index} has no {split} rows to {_PURPOSE[split]}")
        made = backbone.examples(rows, device, partition.answers, partition.pictures)
        return made, partition.sources

    home, origin = feddat_home(), {"source": source_hash()}
    return kept_examples(home, key, origin, build, backbone.family.kind_of_examples)
