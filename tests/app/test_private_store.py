"""A stranger's client keeps its private state over rounds and processes."""

import stat

import pytest
import torch

from app.private_store import PrivateStore

FIRST = {"local.a": torch.zeros(2), "head.weight": torch.zeros(1, 2)}


def state(value):
    return {name: torch.full_like(tensor, value) for name, tensor in FIRST.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def store(tmp_path):
    store = PrivateStore(tmp_path / "private")
    for server_round in (1, 2, 3):
        store.save(7, 1, server_round, state(server_round))
    return store


def test_a_round_goes_on_from_the_newest_before_it(store, tmp_path):
    again = PrivateStore(str(tmp_path / "private"))
    for up_to in (1, 2, 3, 9):
        assert same(again.load(7, 1, up_to, FIRST), state(min(up_to, 3)))
    assert again.load(7, 1, 0, FIRST).keys() == FIRST.keys()
    assert same(again.load(7, 1, 0, FIRST), FIRST)


@pytest.mark.parametrize(("run_id", "client"), [(8, 1), (7, 2)])
def test_another_run_and_another_client_have_their_own(store, run_id, client):
    assert same(store.load(run_id, client, 9, FIRST), FIRST)


def test_a_damaged_file_is_set_aside_and_the_one_before_it_counts(store):
    (newest,) = store.folder.rglob("round-000003.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    assert same(store.load(7, 1, 9, FIRST), state(2))
    assert newest.with_name(f"{newest.name}.corrupt").exists()


def test_what_is_not_finite_is_not_kept(store):
    with pytest.raises(ValueError, match="not finite"):
        store.save(7, 1, 4, {**state(4), "local.a": torch.tensor([1.0, torch.nan])})
    assert same(store.load(7, 1, 9, FIRST), state(3))


def test_it_is_closed_to_others(store):
    paths = [store.folder, *store.folder.rglob("*")]
    assert len(paths) > 3
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in paths)


def test_without_a_folder_it_is_in_the_home(home):
    assert PrivateStore().folder == home / "clients"
