"""A client's batch shared by two processes, as docs/gpu.md has it: the steps are those of one process."""

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import multiprocessing

from app import Distillation, DualAdapter, mkd_step
from app.mkd import make_optimizer
from tests.app.tiny_models import bert
from tests.docs.test_code import code_of

SHARES, STEPS = 2, 4


def train(share, hook=""):
    """Take steps on a share of the batch, a slice; return all that was trained."""
    torch.manual_seed(0)
    model, batch, targets = bert()
    dual = DualAdapter(model, LoraConfig(r=4, target_modules=["query", "value"]), head="classifier", seed=0)
    optimizer = make_optimizer(dual, 1e-2, 0.0, "sgd")
    if hook:
        exec(hook, {"optimizer": optimizer})
    own = {name: value[share] for name, value in batch.items()}
    for _ in range(STEPS):
        mkd_step(dual, optimizer, own, targets[share], Distillation(loss="cross-entropy"))
    return {name: value.detach().clone() for name, value in dual.named_trained()}


def one_of_several(rank, folder, hook):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SHARES)
    try:
        save_file(train(slice(2 * rank, 2 * rank + 2), hook), f"{folder}/{rank}.safetensors")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    hook = code_of("gpu.md")
    multiprocessing.spawn(one_of_several, (tmp_path, hook), nprocs=SHARES)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(SHARES))
    whole = train(slice(None))
    alone = train(slice(0, 2))
    assert first.keys() == second.keys() == whole.keys()
    assert all(torch.equal(first[name], second[name]) for name in whole)
    torch.testing.assert_close(first, whole, rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(alone[name], value, rtol=1e-3, atol=1e-5) for name, value in whole.items())
