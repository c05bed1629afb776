"""How a run with bad input ends."""

import json

import pytest


def error_of(clients, home):
    """Run to the error and return its one line; nothing was trained, and nothing is left behind."""
    with pytest.raises((ValueError, RuntimeError)) as caught:
        clients.serve()
    assert all(message.metadata.message_type == "query" for _, message in clients.wire)
    assert not (home / "runs").exists()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def rows_of(folder):
    """Return what a run that went on has said of each round and client."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
