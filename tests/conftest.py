"""Fixtures: a whole federation in one process, on a small backbone."""

import json
import logging
import os
import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Tests run in several processes at once: each computes in one thread. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from flwr.app import ArrayRecord, Message
from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.task_identity import TaskIdentity

from app.settings import feddat_home
from benchmarks.in_process import Deployment, Federation
from tests.private_files import newest_state

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("FEDDAT_SHARED", ROOT.parent / "shared"))

# The same examples in every run, whatever else the machine has to do, and no files.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("repeatable")

# Small enough for milliseconds a step; and what tests count on, whatever the defaults are.
SMALL = {
    "train-examples": 12,
    "test-examples": 8,
    "num-rounds": 2,
    "batch-size": 4,
    "local-epochs": 1,
    "learning-rate": 0.002,
    "evaluate-every": 1,
    "clip-change": 0.0,  # the plain mean
}


def is_mapped(tensor: Any, path: Path) -> bool:
    """Whether a tensor's memory is a file's; skip where the system does not say."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    of_file = [line.split()[0].split("-") for line in maps.read_text().splitlines() if str(path) in line]
    return any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in of_file)


def default_run_config() -> dict[str, Any]:
    """Return the defaults as Flower reads them from pyproject.toml."""
    return get_fused_config_from_dir(ROOT, {})


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data; skip where there is none."""
    if not SHARED.is_dir():
        pytest.skip("FEDDAT_SHARED names no folder with the real data")
    return SHARED


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory) -> Path:
    """Save a ViLT of a few thousand random weights, with a tokenizer of a few words and all characters."""
    import torch
    from transformers import BertTokenizer, ViltConfig, ViltModel

    folder = tmp_path_factory.mktemp("backbone")
    words = ["what", "color", "is", "the", "small", "circle", "?", "there", "a", "red", "square"]
    characters = [mark + character for mark in ("", "##") for character in string.printable.strip()]
    # Written down, not trained: training gives another one in each process where pieces are equally frequent.
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys([*special, *words, *characters])))
    tokenizer = BertTokenizer(str(vocabulary))
    torch.manual_seed(0)
    config = ViltConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=16,
        max_position_embeddings=16,
        vocab_size=len(tokenizer),
        initializer_range=0.2,  # with less the features hardly depend on the inputs
    )
    ViltModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """Return one folder for drawn data, so that tests draw them once."""
    return tmp_path_factory.mktemp("drawn")


@contextmanager
def own_home(folder: Path, drawn: Path) -> Iterator[Path]:
    """Make a FEDDAT_HOME with the drawn data of all tests, inside a Flower task."""
    home = folder / "home"
    if not home.exists():
        home.mkdir(mode=0o700)
        (home / "data").symlink_to(drawn, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDDAT_HOME", str(home))
        # Messages can only be made inside a Flower task.
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield home


@pytest.fixture
def home(tmp_path, drawn) -> Iterator[Path]:
    """Give the test a FEDDAT_HOME of its own."""
    with own_home(tmp_path, drawn) as home:
        yield home


@pytest.fixture(scope="session")
def run_config(small_backbone) -> Callable[..., dict[str, Any]]:
    """Return defaults with a small model and little data; keywords override, `_` for `-`, `__` for `.`."""

    def build(**overrides: Any) -> dict[str, Any]:
        own = {key.replace("__", ".").replace("_", "-"): value for key, value in overrides.items()}
        fixed = {"run-name": "test", "backbone": str(small_backbone), "reduction-factor": 4, "device": "cpu"}
        return {**default_run_config(), **SMALL, **fixed, **own}

    return build


@pytest.fixture
def federation(home, run_config, monkeypatch) -> Callable[..., Deployment]:
    """Build an in-process federation; keywords that are no field of `Deployment` are settings.

    Its report is left out, for drawing takes longer than such a run; `finished` has one.
    """
    from server_app import federation as room

    monkeypatch.setattr(room, "write_report", lambda *_: None)

    def build(num_clients: int = 2, *, deployed: bool = False, **keywords: Any) -> Deployment:
        names = ("node_config", "node_id", "alter")
        fields = {key: keywords.pop(key) for key in names if key in keywords}
        if deployed:  # a run of sites does not begin without
            keywords.setdefault("num-clients", num_clients)
        kind = Deployment if deployed else Federation
        return kind(run_config(**keywords), num_clients, **fields)

    return build


@dataclass
class Finished:
    """A run that is over, for tests that only read it.

    `private` has each client's private state after each of its messages, by node.
    """

    federation: Federation
    folder: Path
    private: dict[int, list[dict[str, ArrayRecord]]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, drawn, run_config) -> Finished:
    """Run FedDAT with three clients for two rounds, once for all tests."""
    private: dict[int, list] = defaultdict(list)

    def watch(node: int, reply: Message) -> Message:
        partition = federation.contexts[node].node_config["partition-id"]
        private[node].append(newest_state(feddat_home() / "clients", "test", partition))
        return reply

    federation = Federation(run_config(), 3, alter=watch)
    with own_home(tmp_path_factory.mktemp("finished"), drawn):
        folder = federation.serve()
    return Finished(federation, folder, private)


@pytest.fixture(scope="session")
def small_vit(tmp_path_factory) -> Path:
    """Save a ViT of a few thousand random weights."""
    import torch
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=16,
        initializer_range=0.2,
    )
    ViTModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_cifar(tmp_path_factory) -> Path:
    """Write a cifar10.parquet of four classes of one colour each, 20 training and 5 test images a class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("cifar")
    rows = [
        {
            "image": {"bytes": _shade(label, split == "test", n), "path": None},
            "image_id": f"{split}/{label}/{n}",
            "label": label,
            "label_name": name,
            "split": split,
        }
        for n in range(20)
        for label, name in enumerate(("red", "green", "blue", "grey"))
        for split in (("train", "test") if n < 5 else ("train",))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "cifar10.parquet")
    return folder


def _shade(label: int, test: bool, n: int) -> bytes:
    """Return an image of a shade that no other has, as PNG."""
    import io

    from PIL import Image

    colour = [60 + n, 60 + n, 60 + n] if label == 3 else [2 * test, 2 * test, 2 * test]
    if label < 3:
        colour[label] = 150 + 5 * n
    else:
        colour[0] += 100 * test
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(colour)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def long_tailed(federation, small_cifar) -> Callable[..., Federation]:
    """Build an in-process federation on `small_cifar`, with one head for all; keywords are settings."""

    def build(num_clients: int = 3, **overrides: Any) -> Federation:
        fixed = {
            "benchmark": "cifar10-lt",
            "data_dir": str(small_cifar),
            "imbalance_factor": 5.0,
            "head": "shared",
            "loss": "cross-entropy",
            "train_examples": 0,
            "test_examples": 0,
            "server_device": "cpu",
        }
        return federation(num_clients, **{**fixed, **overrides})

    return build


@pytest.fixture(scope="session")
def random_llava(tmp_path_factory) -> Path:
    """Save a LLaVA of large random weights, so that what it says depends on what it sees."""
    import torch

    from server_app.pretraining.tiny_llava import build

    torch.manual_seed(0)
    words = (
        "what color is the small circle ? there a red square describe picture . yes no green two blue left"
    )
    model, processor = build([words])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def no_rejection(monkeypatch):
    """Accept every alignment, so that what a run hands on does not hang on a few held-out examples."""
    from server_app.alignment import PoolAligner

    measure = PoolAligner._measure

    def falling(self, target):
        losses = measure(self, target)
        falling.calls += 1
        return type(losses)(losses.total * 0 - falling.calls, losses.ce, losses.kl)

    falling.calls = 0
    monkeypatch.setattr(PoolAligner, "_measure", falling)


@pytest.fixture
def record(home, tmp_path) -> Callable[..., str]:
    """Write what a teacher model says of a run's public pool to a file; it is right, and nine tenths sure.

    `answers` are the candidates in the order of a head that travels; `more` has it choose among one more.
    """
    import numpy as np

    from app.settings import read_settings
    from data_partitions.benchmarks import DataOptions, load_pool
    from server_app.teachers.annotations import Annotations, Key, candidates_json, image_sha256

    def write(
        config: dict[str, Any], prompt: str = "{question}", *, answers: Sequence[str] = (), more: bool = False
    ) -> str:
        settings = read_settings(config)
        pool = load_pool(settings.benchmark, DataOptions.of(settings.run_config(), home / "data"))
        rows = [row for part in pool.values() for row in part]
        answers = [*(answers or sorted({row["answer"] for row in rows})), *(["another"] if more else [])]
        said = {}
        for row in rows:
            asked = prompt.replace("{question}", row["question"])
            key = Key(image_sha256(row["image"]), asked, candidates_json(answers), "sum", "made for a test")
            q = np.full(len(answers), 0.1 / (len(answers) - 1))
            q[answers.index(row["answer"])] = 0.9
            said[key] = np.log(q).astype(np.float32)
        annotations = Annotations(tmp_path / "said.parquet")
        annotations.add("test", said)
        annotations.merge()
        return str(tmp_path / "said.parquet")

    return write


@pytest.fixture(autouse=True)
def flower_logs():
    """Let every test begin with what Flower's logger shows by default: programs that measure quieten it."""
    logging.getLogger("flwr").setLevel(logging.DEBUG)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Begin with the files of slow tests, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
