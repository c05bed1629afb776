"""How good the aggregated model is on the whole balanced test set, where its head is aggregated as well."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.examples import process
from app.processor import Processor
from app.settings import Settings, SettingsError, feddat_home
from data_partitions.benchmarks import BENCHMARKS, BalancedTest, DataOptions, load_test

from .global_model import GlobalModel


def common_test(settings: Settings) -> BalancedTest | None:
    """Load the test set of a run with a shared head, and with it the answer list; other heads have none.

    Raises
    ------
    SettingsError
        If the benchmark's clients have no answer list in common.
    """
    if settings.head != "shared":
        return None
    if not BENCHMARKS[settings.benchmark].test:
        allowed = " and ".join(repr(name) for name, found in BENCHMARKS.items() if found.test)
        raise SettingsError(
            f"head = 'shared' needs one answer list for all clients, which benchmark = "
            f"{settings.benchmark!r} has not; allowed with {allowed}"
        )
    return load_test(settings.benchmark, DataOptions.of(settings.run_config(), feddat_home() / "data"))


class CentralEvaluation:
    """Evaluate on the server, as a function of the arrays.

    Parameters
    ----------
    model : GlobalModel
        The server's copy of what clients train.
    test : BalancedTest
        What it is measured on.
    processor : Processor
        Makes the model's inputs.
    """

    def __init__(self, model: GlobalModel, test: BalancedTest, processor: Processor) -> None:
        self.model = model
        self.examples = process(test.rows, processor)
        self.groups = test.groups

    def __call__(self, arrays: Mapping[str, Tensor]) -> dict[str, float]:
        """Return accuracies in [0, 1]: ``student`` over all classes, ``many``, ``medium`` and ``few``."""
        self.model.load(arrays)
        chosen = self.model.all_logits(self.examples).argmax(1)
        return accuracies(chosen, self.examples.scores.argmax(1), self.groups)


def accuracies(chosen: Tensor, labels: Tensor, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return accuracies in [0, 1]: ``student`` over all classes, and those of groups of classes by name.

    Parameters
    ----------
    chosen, labels : Tensor
        The given and the true class of each example, shape (examples,).
    groups : Mapping
        Name → classes; an empty group has no accuracy.
    """
    right = (chosen == labels).float()
    members = {name: torch.isin(labels, torch.tensor(group)) for name, group in groups.items() if group}
    return {"student": float(right.mean()), **{name: float(right[of].mean()) for name, of in members.items()}}
