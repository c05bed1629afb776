"""What one message to one client works with: settings, data, adapters."""

import functools
from dataclasses import dataclass

from flwr.app import ArrayRecord, Context
from torch import nn

from app.backbones import Backbone, open_backbone
from app.examples import Examples, process
from app.full_model import open_model
from app.heads import new_head, split_classifier
from app.records import from_record
from app.settings import Settings, feddat_home, read_settings
from app.trained_model import TrainedModel
from data_partitions.benchmarks import DataOptions, Partition, load_partition, partition_names

from .private_state import load_private_state

# A site's own settings: its node-config may set them, whatever the run says.
SITE_KEYS = ("data-dir", "device")


@dataclass(frozen=True)
class Share:
    """A client's part of a benchmark.

    Attributes
    ----------
    benchmark : str
        Name of the benchmark.
    index, count : int
        Which part, of how many. A site with a data-dir of its own has all that lies there.
    options : DataOptions
        What the benchmark is asked for.
    """

    benchmark: str
    index: int
    count: int
    options: DataOptions

    @property
    def names(self) -> list[str]:
        """Names of the benchmark's natural clients."""
        return partition_names(self.benchmark, self.options)


@dataclass(frozen=True)
class Client:
    """One client as a message finds it."""

    settings: Settings
    partition_id: int
    num_partitions: int
    share: Share
    context: Context

    @classmethod
    def of(cls, context: Context) -> "Client":
        """Read the run's and the node's configuration.

        Raises
        ------
        ValueError
            If either cannot be used.
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
        options = data_options(settings)
        share = Share(settings.benchmark, index, count, options)
        # Where there are no natural clients, all sites have the same data and each its part.
        if "data-dir" in node and (names := share.names):
            share = Share(settings.benchmark, 0, 1, options)
            if len(names) > 1:
                raise ValueError(
                    f"node-config: data-dir = {node['data-dir']!r} holds {len(names)} domains; allowed: one"
                )
        return cls(settings, index, count, share, context)

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone; the process keeps it."""
        return open_backbone(self.settings)

    @property
    def partition(self) -> Partition:
        """The client's data; the process keeps it."""
        return _partition(self.share)

    def examples(self, split: str) -> Examples:
        """Return one split, processed; the process keeps it."""
        return _examples(self.share, split, self.backbone)

    def open(self, arrays: ArrayRecord) -> tuple[TrainedModel, nn.Module]:
        """Put what arrived, its frozen copy and the private state in place."""
        model = open_model(self.settings)
        kind, seed = self.settings.head, self.settings.seed
        head = new_head(model.backbone.width, len(self.partition.answers), seed, kind)
        private = load_private_state(self.context)
        shared, classifier = split_classifier(from_record(arrays))
        model.receive(shared)
        model.load("local", private.local if private else model.initial_local)
        if kind == "shared":
            head.load_state_dict(classifier)
        elif private:
            head.load_state_dict(private.head)
        return model, head.to(model.device)


def data_options(settings: Settings) -> DataOptions:
    """Say what a benchmark is asked for: the settings that carry its options' names."""
    return DataOptions.of(settings.model_dump(), feddat_home() / "data")


@functools.lru_cache(maxsize=256)
def _partition(share: Share) -> Partition:
    return load_partition(share.benchmark, share.index, share.count, share.options)


@functools.lru_cache(maxsize=256)
def _examples(share: Share, split: str, backbone: Backbone) -> Examples:
    return process(getattr(_partition(share), split), backbone.processor)
