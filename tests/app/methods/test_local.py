"""A client by itself: what is trained is never sent."""

import json

import torch
from safetensors.torch import load_file


def test_nothing_is_sent_and_every_client_learns_by_itself(federation, home):
    clients = federation(method="local", num_rounds=2)
    folder = clients.serve()
    sent = [record for _, message in clients.wire for record in message.content.array_records.values()]
    assert sent
    assert not any(len(record) for record in sent)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["delta-local"] > 0 and "local" in row and "student" not in row for row in rows)
    first, second = (
        load_file(max((home / "clients").glob(f"test-*/{partition}/*.safetensors"))) for partition in (0, 1)
    )
    assert any(not torch.equal(first[name], second[name]) for name in first if name.startswith("local."))
    assert not (folder / "adapter").exists()
