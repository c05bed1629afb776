"""Whole runs on a long-tailed benchmark, in one process: the head travels, the server evaluates."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.numpy import load_file

import app.bottleneck  # noqa: F401
from app.backbones import load_backbone
from tests.private_files import newest_state

PROTOCOL = {
    "method": "full",
    "backbone": "resnet8-narrow",
    "backbone_weights": "random",
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "constant",
    "weight_decay": 0.0,
}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def messages(federation, way, kind):
    return [m for w, m in federation.wire if w == way and m.metadata.message_type == kind]


def test_the_published_form(long_tailed):
    clients = long_tailed(**PROTOCOL, num_rounds=3, local_epochs=4)
    folder = clients.serve()
    replies = [m.content["arrays"] for m in messages(clients, "to server", "train")]
    names = set(replies[0])
    assert {"classifier.weight", "classifier.bias", "norm.running_mean", "stages.2.conv2.weight"} < names
    assert not any("num_batches_tracked" in name for name in names)

    # 20, 11, 6 and 4 examples: 20 · 5^(-c / 3), cut off; 41 in all for three clients.
    trained = [row for row in rows_of(folder) if row["partition"] >= 0]
    assert [row["num-examples"] for row in trained[:3]] == [14, 14, 13]

    # The result is the mean of the last replies, written so that it can be loaded.
    exported = load_file(folder / "model" / "model.safetensors")
    exported |= {
        f"classifier.{name}": value
        for name, value in load_file(folder / "model" / "classifier.safetensors").items()
    }
    for name in names:
        mean = np.mean([reply[name].numpy().astype(np.float64) for reply in replies[-3:]], axis=0)
        np.testing.assert_allclose(exported[name], mean, rtol=1e-5, atol=1e-7)
    loaded = load_backbone(str(folder / "model"))
    assert np.array_equal(loaded.model.norm.running_mean.numpy(), exported["norm.running_mean"])
    assert loaded.processor.mean == (0.4914, 0.4822, 0.4465)
    with safe_open(folder / "model" / "classifier.safetensors", "np") as file:
        assert json.loads(file.metadata()["answers"]) == ["red", "green", "blue", "grey"]


def test_the_server_evaluates_by_groups_and_clients_do_not(long_tailed):
    clients = long_tailed(**PROTOCOL, num_rounds=3, evaluate_every=2)
    rows = rows_of(clients.serve())
    assert messages(clients, "to client", "evaluate") == []
    central = [row for row in rows if row["partition"] == -1]
    assert [row["round"] for row in central] == [2, 3]
    for row in central:
        assert row.keys() == {"round", "partition", "student", "many", "medium", "few"}
        # One class is many-shot, two are medium-shot, one is few-shot.
        assert row["student"] == pytest.approx((row["many"] + 2 * row["medium"] + row["few"]) / 4)


def test_the_last_row_is_what_the_result_scores(long_tailed, small_cifar):
    """Images of one colour each are told apart after a few rounds; scored again from the exported files."""
    clients = long_tailed(**PROTOCOL, num_rounds=4, local_epochs=8)
    folder = clients.serve()
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    backbone = load_backbone(str(folder / "model"))
    head = load_file(folder / "model" / "classifier.safetensors")
    right = []
    for row in pq.read_table(small_cifar / "cifar10.parquet").to_pylist():
        if row["split"] == "test":
            image = Image.open(io.BytesIO(row["image"]["bytes"]))
            pixels = backbone.processor.normalise(backbone.processor.image(image)[None])
            with torch.no_grad():
                features = backbone.model(pixels).pooler_output.numpy()
            right.append(int((features @ head["weight"].T + head["bias"]).argmax()) == row["label"])
    last = [row for row in rows_of(folder) if row["partition"] == -1][-1]
    assert last["student"] == pytest.approx(np.mean(right))
    assert last["student"] > 0.4


@pytest.mark.parametrize("method", ["adapter", "feddat"])
@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_a_vit_with_adapters_and_one_head(long_tailed, small_vit, method, kind, home):
    clients = long_tailed(method=method, adapter=kind, backbone=str(small_vit))
    folder = clients.serve()
    sent = messages(clients, "to client", "train")[0].content["arrays"]
    assert {"classifier.weight", "classifier.bias"} < set(sent)
    # The local adapter stays, and no head but the one that travels.
    for partition in range(3):
        kept = newest_state(home / "clients", "test", partition)
        assert "private-head" not in kept
        assert len(kept["private-local"]) == len(sent) - 2
    model = PeftModel.from_pretrained(load_backbone(str(small_vit)).fork(), str(folder / "adapter"))
    replies = [m.content["arrays"] for m in messages(clients, "to server", "train")[-3:]]
    head = load_file(folder / "adapter" / "classifier.safetensors")
    np.testing.assert_allclose(
        head["weight"],
        np.mean([r["classifier.weight"].numpy() for r in replies], axis=0),
        rtol=1e-5,
        atol=1e-6,
    )
    assert model(pixel_values=torch.zeros(1, 3, 32, 32)).pooler_output.shape == (1, 32)


def test_private_heads_are_evaluated_by_their_clients(long_tailed, small_vit):
    clients = long_tailed(head="private", backbone=str(small_vit))
    rows = rows_of(clients.serve())
    assert len(messages(clients, "to client", "evaluate")) == 6
    assert all({"student", "local", "teacher"} <= row.keys() for row in rows)
    sent = messages(clients, "to client", "train")[0].content["arrays"]
    assert not any(name.startswith("classifier") for name in sent)


def test_one_seed_gives_the_same_bytes(long_tailed):
    def result(name, **overrides):
        folder = long_tailed(**PROTOCOL, run_name=name, augment=True, **overrides).serve()
        return (folder / "model" / "model.safetensors").read_bytes()

    first = result("a")
    assert result("b", node_id=lambda partition: 5 + partition) == first
    assert result("c", seed=1) != first


def test_a_round_of_some_of_the_clients(long_tailed):
    clients = long_tailed(5, **PROTOCOL, fraction_train=0.4, num_rounds=2)
    clients.serve()
    assert len(messages(clients, "to client", "train")) == 4


def test_a_site_may_keep_the_file_elsewhere_and_has_its_own_part(long_tailed, small_cifar):
    clients = long_tailed(**PROTOCOL, node_config={"data-dir": str(small_cifar)}, num_rounds=1)
    rows = [row for row in rows_of(clients.serve()) if row["partition"] >= 0]
    assert [row["num-examples"] for row in rows] == [14, 14, 13]
