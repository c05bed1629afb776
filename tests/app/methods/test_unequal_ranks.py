"""Adapters of unequal ranks: their means by hand, and in a federation."""

import numpy as np
import pytest
import torch

from app.methods.flexlora import FlexLoRA
from app.methods.padded_lora import PaddedLoRA
from app.settings import SettingsError, read_settings
from tests.private_files import newest_state

SHARES = [0.5, 0.3, 0.2]


@pytest.fixture
def pairs():
    """Return B and A of three clients, of ranks 1, 2 and 3, between 7 and 9 wide."""
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(7, r, generator=draw), torch.randn(r, 9, generator=draw)) for r in (1, 2, 3)]


def mean_of(pairs):
    return sum(share * b @ a for share, (b, a) in zip(SHARES, pairs, strict=True))


def test_the_mean_is_exact_where_the_rank_holds_it(pairs):
    b, a = FlexLoRA().mean(pairs, SHARES, (torch.randn(7, 8), first := torch.randn(8, 9)))
    assert (b.shape, a.shape) == ((7, 8), (8, 9))
    torch.testing.assert_close(b @ a, mean_of(pairs), atol=1e-5, rtol=1e-5)
    # What is not needed can still be learned: zeros in B beside rows of A that are not.
    assert (b[:, 6:] == 0).all()
    assert torch.equal(a[6:], first[6:])


def test_with_too_small_a_rank_it_is_the_best_of_that_rank_and_its_first_part_of_a_smaller_one(pairs):
    b, a = FlexLoRA().mean(pairs, SHARES, (torch.randn(7, 3), torch.randn(3, 9)))
    u, s, vt = torch.linalg.svd(mean_of(pairs))
    torch.testing.assert_close(b @ a, u[:, :3] * s[:3] @ vt[:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(b[:, :1] @ a[:1], s[0] * torch.outer(u[:, 0], vt[0]), atol=1e-5, rtol=1e-5)
    # The rows of A are as long as each other, the size is in B.
    torch.testing.assert_close(a @ a.T, torch.eye(3), atol=1e-5, rtol=1e-5)


def test_adapters_that_add_nothing_yet_stay_so_and_can_be_trained():
    pairs = [(torch.zeros(7, 2), torch.randn(2, 9)), (torch.zeros(7, 2), torch.randn(2, 9))]
    b, a = FlexLoRA().mean(pairs, [0.5, 0.5], (torch.zeros(7, 3), torch.randn(3, 9)))
    assert (b == 0).all()
    assert (a.norm(dim=1) > 0.5).all()


def test_padding_averages_the_matrices_and_not_their_products(pairs):
    b, a = PaddedLoRA().mean(pairs, SHARES, (torch.randn(7, 4), torch.randn(4, 9)))
    first, second, third = pairs
    # Of the second rank two clients have a part, of the third one, of the fourth none.
    torch.testing.assert_close(b[:, 0], 0.5 * first[0][:, 0] + 0.3 * second[0][:, 0] + 0.2 * third[0][:, 0])
    torch.testing.assert_close(b[:, 1], 0.3 * second[0][:, 1] + 0.2 * third[0][:, 1])
    torch.testing.assert_close(a[2], 0.2 * third[1][2])
    assert (b[:, 3] == 0).all()
    assert (a[3] == 0).all()
    assert (b @ a - mean_of(pairs)).abs().max() > 0.1


@pytest.fixture
def ranks(federation):
    """Build a federation in which each client has a rank of its own; the run's is 6."""

    def build(*own, **settings):
        clients = federation(len(own), adapter="lora", lora_rank=6, num_rounds=2, **settings)
        for partition, rank in enumerate(own):
            clients.contexts[clients.node_id(partition)].node_config["lora-rank"] = rank
        return clients

    return build


def of(clients, where):
    """Return the arrays of the messages of training, in their order."""
    records = [m.content.array_records for at, m in clients.wire if at == where and not m.has_error()]
    found = [next(iter(record.values())) for record in records if record]
    return [{name: array.numpy() for name, array in one.items()} for one in found]


@pytest.mark.parametrize("method", ["flexlora", "feddat-flexlora"])
def test_what_clients_of_unequal_ranks_are_sent_next_adds_what_they_added_in_the_mean(ranks, home, method):
    clients = ranks(2, 4, method=method)
    clients.serve()
    up = of(clients, "to server")[:2]
    down = next(one for one in of(clients, "to client")[2:])
    layers = [name for name in down if ".lora_A." in name]
    assert layers
    for name in layers:
        b_name = name.replace(".lora_A.", ".lora_B.")
        assert [reply[name].shape[0] for reply in up] == [2, 4]
        products = [reply[b_name] @ reply[name] for reply in up]
        assert all(np.abs(product).max() > 1e-5 for product in products)
        np.testing.assert_allclose(down[b_name] @ down[name], np.mean(products, axis=0), atol=1e-6)
    kept = [newest_state(home / "clients", "test", partition) for partition in range(2)]
    assert [next(iter(state["private-local"].values())).shape[0] for state in kept] == [2, 4]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"adapter": "bottleneck"}, "adapter = 'bottleneck' with method = 'flexlora'; allowed: 'lora'"),
        ({"strategy": "fedadam"}, "strategy = 'fedadam' with method = 'flexlora'"),
    ],
)
def test_settings_that_have_no_mean_of_updates_are_refused(run_config, settings, line):
    with pytest.raises(SettingsError) as error:
        read_settings(run_config(**{"method": "flexlora", "adapter": "lora", **settings}))
    assert line in str(error.value)
