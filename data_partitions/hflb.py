"""The benchmark `hflb`: nine clients of four sub-tasks each, multiple choice, from seven of FedDAT's sources.

HFLB is of Co-LoRA / FedMosaic (ICLR 2026). `data-dir` is laid out as there: ``scenarios/HFLB_*.json`` says
which data are whose, and ``dataset/NAME/{train,test}/dataset-ID.json`` are LLaVA's JSON, with paths of
pictures from `data-dir` on. Two pictures where the task has two (NLVR2).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .benchmark import Benchmark
from .drafts import Origin
from .natural import Natural, load_natural
from .options import DataOptions
from .partition import Partition
from .pictures import BadRowError, one_line
from .records import Record, records_of

# Changes with whatever changes the rows that come out, so that data kept by older code are not used.
VERSION = 1
SCENARIOS = "https://github.com/snumprlab/fedmosaic"
DATA = "https://huggingface.co/datasets/SNUMPR/HFLB"
_CHOICES = re.compile(r"Choice lists?: ?\[(.*?)\]")


def names(options: DataOptions) -> list[str]:
    """Name the scenario's clients by their data sets, numbered where several have one."""
    return list(_clients(options))


def load(partition_id: int, num_partitions: int, options: DataOptions) -> Partition:
    """Load a client's rows, see `load_natural`."""
    return load_natural("hflb", VERSION, _clients(options), partition_id, num_partitions, options)


def _clients(options: DataOptions) -> dict[str, Natural]:
    """Read the first scenario; all have the same data, and differ in the clients' models."""
    root = options.folder("one with HFLB's scenarios/")
    # Beside the scenarios lies a list of all tasks.
    scenarios = [path for path in sorted(root.glob("scenarios/HFLB_*.json")) if "task_list" not in path.name]
    if not scenarios:
        raise ValueError(
            f"data-dir: no scenarios/HFLB_*.json in {options.data_dir!r}; published: {SCENARIOS}"
        )
    clients: dict[str, Natural] = {}
    met: Counter[str] = Counter()
    for parts in _scenario(scenarios[0]):
        name = "+".join(dict.fromkeys(part for part, _ in parts))
        met[name] += 1
        paths = [
            root / "dataset" / part / split / f"dataset-{number}.json"
            for split in ("train", "test")
            for part, number in parts
        ]
        clients[name if met[name] == 1 else f"{name}-{met[name]}"] = Natural(
            lambda _, paths=paths: [_origin(path, root) for path in paths],  # type: ignore[misc]
            [scenarios[0], *(path for path in paths if path.is_file())],
        )
    return clients


def _scenario(path: Path) -> list[list[tuple[str, int]]]:
    """Read whose data are which: of each client, names of data sets and numbers of their parts."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        clients = [
            [(str(part["dataset"]), int(part["subset_id"])) for part in client["datasets"]]
            for client in sorted(found, key=lambda client: int(client["client_id"]))
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"data-dir: {path.name} is not a scenario ({one_line(error)})") from None
    for name in {name for client in clients for name, _ in client}:
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise ValueError(f"data-dir: {path.name} names a data set {name!r}; allowed: a folder's name")
    if not clients or not all(clients):
        raise ValueError(f"data-dir: {path.name} has no clients, or one without data")
    return clients


def _origin(path: Path, root: Path) -> Origin:
    name = str(path.relative_to(root))
    if not path.is_file():
        raise ValueError(f"data-dir: {name} is not there; published: {DATA}")
    folders = (root, root / "dataset", path.parents[1])
    return Origin(lambda: _with_options(records_of(path, name)), path.parent.name, folders, root)


def _with_options(records: Iterator[Record]) -> Iterator[Record]:
    for where, record in records:
        yield where, record if isinstance(record, BadRowError) else record | {"options": _options(record)}


def _options(record: dict[str, Any]) -> list[str]:
    """Find what a question says may be chosen; none if the answer is not among it."""
    try:
        asked, answered = (turn["value"] for turn in record["conversations"][-2:])
        listed = _CHOICES.findall(asked)[-1]
    except (KeyError, TypeError, ValueError, IndexError):
        return []
    options = [option.strip().strip("'\"") for option in listed.split("|" if "|" in listed else ",")]
    return options if str(answered).strip() in options else []


HFLB = Benchmark(name="hflb", names=names, load=load, uses=("missing_modality",))
