"""FedDAT for the ClientApp of any Flower project: what arrives, what is kept, what is sent."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from peft import PeftConfig
from torch import Tensor, nn

from .dual_adapter import DualAdapter, Forward
from .mkd import LOSSES, Distillation, mkd_step
from .private_store import PrivateStore
from .records import from_record, to_record
from .spreading import is_spread


class FedDATClient:
    """A dual adapter in a model of the host's own, and its private state over rounds and processes.

    Make one a process; the clients that the process plays take turns with it.

    Parameters
    ----------
    model, config, head, forward
        See `DualAdapter`.
    seed : int
        Decides the first weights: the same at all clients and at the server.
    loss : str
        Form of the task's loss, see `Distillation`.
    device : str or torch.device, optional
        Where to compute. None: CUDA where there is one, else the CPU; and where it lies, if the model was
        spread over several by ``device_map``.
    store : PrivateStore, optional
        Where private states lie. None: ``FEDDAT_HOME/clients``.

    Attributes
    ----------
    dual : DualAdapter
        The model with its adapters: `dual.model` for the host's own test function, under `dual.branch`.

    Raises
    ------
    ValueError
        As `DualAdapter`.

    Examples
    --------
    >>> lora = LoraConfig(r=8, target_modules=["query", "value"])
    >>> client = FedDATClient(get_model(), lora, head="classifier")
    >>> @app.train()
    ... def train(msg, context):
    ...     client.load(msg, context)
    ...     metrics = client.fit(loader, lr=1e-4)
    ...     return client.reply(msg, context, metrics)
    """

    def __init__(
        self,
        model: nn.Module,
        config: PeftConfig,
        head: str | None = None,
        *,
        forward: Forward | None = None,
        seed: int = 0,
        loss: str = "cross-entropy",
        device: str | torch.device | None = None,
        store: PrivateStore | None = None,
    ) -> None:
        self.dual = DualAdapter(model, config, head, seed, forward=forward)
        if device is not None or not is_spread(model):
            self.dual.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.distillation = Distillation(loss=loss)
        self.store = store or PrivateStore()

    def load(self, msg: Message, context: Context) -> None:
        """Put in place what a message brings, and what this client kept of the run's earlier rounds.

        Raises
        ------
        ValueError
            The message has not one record of arrays, or they are not those of `dual.shared`.
        """
        records = list(msg.content.array_records.values())
        if len(records) != 1:
            raise ValueError(f"the message has {len(records)} records of arrays; allowed: one")
        trains = msg.metadata.message_type.startswith("train")
        up_to = _round_of(msg) - (1 if trains else 0)
        self.dual.receive(from_record(records[0]))
        self.dual.load_private({})
        self.dual.load_private(self.store.load(*_who(context), up_to, self.dual.private()))

    def fit(
        self,
        loader: Iterable[Any],
        lr: float = 1e-4,
        *,
        epochs: int = 1,
        weight_decay: float = 0.01,
        targets: str = "labels",
        distillation: Distillation | None = None,
    ) -> dict[str, float]:
        """Train both adapters and the head for some epochs, by `mkd_step` under AdamW.

        Parameters
        ----------
        loader : iterable
            Batches: a mapping of model inputs with the targets among them, or a pair of inputs and targets.
        lr : float
            Learning rate, constant.
        epochs : int
            Passes over the loader.
        weight_decay : float
            Of AdamW.
        targets : str
            Where in a mapping the targets are; the model does not get them.
        distillation : Distillation, optional
            Another method than the published one with this client's `loss`.

        Returns
        -------
        dict
            ``num-examples`` (rows seen in an epoch), mean losses, seconds.

        Raises
        ------
        ValueError
            There are no batches, a batch has no targets or does not fit, or the loss is not finite.
        """
        started = time.perf_counter()
        method = distillation or self.distillation
        optimizer = torch.optim.AdamW(self.dual.trained_parameters(), lr=lr, weight_decay=weight_decay)
        sums, rows = torch.zeros(len(LOSSES), device=self.dual.device), 0
        for _ in range(epochs):
            for batch in loader:
                inputs, wanted = _parted(batch, targets)
                inputs, wanted = _send(inputs, self.dual.device), _send(wanted, self.dual.device)
                sums += len(wanted) * mkd_step(self.dual, optimizer, inputs, wanted, method).losses
                rows += len(wanted)
        if not rows:
            raise ValueError("loader: it gave no batch; allowed: one or more")
        means = dict(zip(LOSSES, (sums / rows).tolist(), strict=True))
        if not all(map(math.isfinite, means.values())):
            raise ValueError(f"training diverged: losses {means}; lower `lr`, or look at the data")
        return {"num-examples": rows // epochs, **means, "train-seconds": time.perf_counter() - started}

    def reply(self, msg: Message, context: Context, metrics: Mapping[str, float]) -> Message:
        """Keep what is private, and answer with what is shared and `metrics`.

        Raises
        ------
        ValueError
            What was trained is not finite; then nothing is kept.
        """
        shared, private = self.dual.shared(), self.dual.private()
        for name, value in {**shared, **private}.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"training diverged: '{name}' is not finite; nothing of this round is kept")
        content = RecordDict({"arrays": to_record(shared), "metrics": MetricRecord(dict(metrics))})
        reply = Message(content, reply_to=msg)
        # Last: a round whose reply could not be made leaves the client as it was.
        self.store.save(*_who(context), _round_of(msg), private)
        return reply


def _who(context: Context) -> tuple[int, int]:
    """Return the run and the client: its partition where it has one, else its node."""
    partition = context.node_config.get("partition-id", context.node_id)
    return context.run_id, partition if isinstance(partition, int) else context.node_id


def _round_of(msg: Message) -> int:
    for record in msg.content.config_records.values():
        if isinstance(server_round := record.get("server-round"), int):
            return server_round
    raise ValueError(
        "the message does not say its server-round; Flower's strategies write it into its config"
    )


def _parted(batch: Any, targets: str) -> tuple[Any, Tensor]:
    if isinstance(batch, Mapping):
        if targets not in batch:
            raise ValueError(
                f"batch: no {targets!r} among {', '.join(map(str, batch))}; name it by `targets`"
            )
        return {key: value for key, value in batch.items() if key != targets}, batch[targets]
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    raise ValueError(f"batch: {type(batch).__name__}; allowed: a mapping, or inputs and targets")


def _send(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _send(inner, device) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_send(inner, device) for inner in value)
    return value.to(device) if isinstance(value, Tensor) else value
