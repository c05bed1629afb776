"""A checkpoint gives back what it was given, or says that it is damaged; few are kept."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from server_app.checkpoints import Checkpoints, DamagedError
from strategies import Checkpoint

ARRAYS = {
    "x.b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "x.a": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "half": np.array([1.5, -2.0], np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "count": np.array(7),
}


def checkpoint(server_round=3):
    record = ArrayRecord({name: Array(array) for name, array in ARRAYS.items()})
    return Checkpoint(server_round, record, {"0.FedAdam/m_t/x.b": ARRAYS["x.a"], "1.X/norm": np.array(0.5)})


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", best_round=lambda until: None)


def rounds(store):
    return sorted(int(path.stem[-6:]) for path in store.folder.iterdir())


def same(one, other):
    assert one.server_round == other.server_round
    for arrays, others in ((one.arrays, other.arrays), (one.state, other.state)):
        assert list(arrays) == list(others)  # strategies pair arrays by position
        for name, array in arrays.items():
            value, expected = (a.numpy() if isinstance(a, Array) else a for a in (array, others[name]))
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)


def test_a_checkpoint_comes_back_as_it_was(store):
    store.save(checkpoint())
    assert [path.name for path in store.folder.iterdir()] == ["round-000003.safetensors"]
    same(store.load(3), checkpoint())
    same(store.newest(), checkpoint())


def test_one_checkpoint_is_always_the_same_bytes(store):
    contents = set()
    for _ in range(5):
        store.save(checkpoint())
        contents.add((store.folder / "round-000003.safetensors").read_bytes())
    assert len(contents) == 1


def test_no_flipped_bit_is_taken_for_a_value(store):
    store.save(checkpoint())
    path = store.folder / "round-000003.safetensors"
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            same(store.load(3), checkpoint())
        except DamagedError:
            refused += 1
    # What may change unseen is white space that fills the header up.
    assert refused > len(whole) - 16


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_cut_file_is_damaged(store, length):
    store.save(checkpoint())
    path = store.folder / "round-000003.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError, match=r"round-000003\.safetensors cannot be read: "):
        store.load(3)


def test_another_rounds_file_is_damaged(store):
    store.save(checkpoint(3))
    (store.folder / "round-000003.safetensors").rename(store.folder / "round-000004.safetensors")
    with pytest.raises(
        DamagedError, match=r"round-000004\.safetensors cannot be read: its round is '3', not '4'"
    ):
        store.load(4)


def test_a_file_of_something_else_is_damaged(store):
    from safetensors.numpy import save_file

    store.folder.mkdir()
    save_file({"x": np.zeros(2)}, store.folder / "round-000001.safetensors")
    with pytest.raises(DamagedError):
        store.load(1)
    assert store.newest() is None


def test_the_last_two_and_the_best_are_kept(store):
    """Scores of the rounds 1 to 6: the second is the best until the fifth is better."""
    scores = {1: 0.1, 2: 0.5, 3: 0.2, 4: 0.3, 5: 0.6, 6: 0.1}
    store.best_round = lambda until: max(range(1, until + 1), key=scores.__getitem__, default=None)
    kept = []
    for server_round in range(7):
        store.save(checkpoint(server_round))
        kept.append(rounds(store))
    # After the fifth the second stays: it is the best again if the fifth is damaged and the fourth goes on.
    assert kept == [[0], [0, 1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6]]


def test_only_the_last_two_can_be_gone_on_from(store, caplog):
    store.best_round = lambda until: 1
    for server_round in range(1, 5):
        store.save(checkpoint(server_round))
    for server_round, newest in ((4, 3), (3, None)):
        (store.folder / f"round-{server_round:06d}.safetensors").write_bytes(b"")
        found = store.newest()
        assert (found and found.server_round) == newest
    assert len(caplog.messages) == 3


def test_no_folder_is_no_checkpoint(store):
    assert store.newest() is None


def test_what_an_interrupted_write_left_is_deleted(store):
    store.folder.mkdir()
    (store.folder / ".round-000003.safetensors.abc").write_bytes(b"half")
    store.save(checkpoint())
    assert [path.name for path in store.folder.iterdir()] == ["round-000003.safetensors"]


STRAYS = [
    "round-999999.safetensors",
    "round-abc.safetensors",
    "round-000007 (copy).safetensors",
    "round-0000003.safetensors",
    "notes.txt",
]


@pytest.mark.parametrize("name", STRAYS)
@pytest.mark.parametrize("folder", [False, True])
def test_what_else_lies_among_the_checkpoints_is_in_nobodys_way_and_not_deleted(store, name, folder):
    for server_round in (3, 4):
        store.save(checkpoint(server_round))
    stray = store.folder / name
    if folder:
        stray.mkdir()
    else:
        stray.write_bytes(b"not of ours")
    same(store.newest(), checkpoint(4))
    store.save(checkpoint(5))
    same(store.newest(), checkpoint(5))
    # One that bears the name of a checkpoint is taken for one that is outdated.
    assert stray.exists() == (folder or name != "round-999999.safetensors")
