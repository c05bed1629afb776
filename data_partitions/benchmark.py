"""What a benchmark is: one more of it is one file or folder beside this one that makes a `Benchmark`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets

from .options import DataOptions
from .partition import BalancedTest, Partition

# Options that a benchmark does without unless it says that it `uses` them.
ONLY_FOR_SOME = ("hub_data", "missing_modality")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Named data: one data set a client.

    Attributes
    ----------
    name : str
        By which the setting `benchmark` knows it.
    names : callable
        Names of the natural clients; none where any number of clients share one data set.
    load : callable
        Partition id, number of partitions, options → one client's data.
    pool : callable, optional
        The server's public examples, see `benchmarks.load_pool`.
    test : callable, optional
        A test set for all clients, where they have one answer list.
    captions : callable, optional
        Public pictures with captions, see `benchmarks.load_public`.
    questions : callable, optional
        Public pictures with a question each, see `benchmarks.load_public_questions`.
    needs_folder : bool
        Whether its data lie in `data-dir`, or on the hub if it uses `hub_data`.
    uses : sequence of str
        Those of the options in `ONLY_FOR_SOME` that have an effect.
    usual_clients : int
        How many clients its protocol has, where none are natural.
    names_in_data : bool
        Whether clients are named by what stands in their files.
    """

    name: str
    names: Callable[[DataOptions], list[str]]
    load: Callable[[int, int, DataOptions], Partition]
    pool: Callable[[DataOptions], datasets.DatasetDict] | None = None
    test: Callable[[DataOptions], BalancedTest] | None = None
    captions: Callable[[DataOptions, int, str], datasets.Dataset] | None = None
    questions: Callable[[DataOptions, int, str, str], datasets.Dataset] | None = None
    needs_folder: bool = True
    uses: Sequence[str] = ()
    usual_clients: int = 0
    names_in_data: bool = False
