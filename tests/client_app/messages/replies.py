"""What comes back from a client, and what it keeps."""

import torch

from app.settings import read_settings
from client_app.client import data_options

TOKEN = "0123456789abcdef"


def bytes_of(record):
    return {name: array.data for name, array in record.items()}


def refusal(reply):
    """Return a client's own words, out of what Flower's simulation wraps around them."""
    return reply.error.reason.split("occurred. Message: ")[1].removesuffix("'>")


def same(one, other):
    """Whether two private states are equal to the bit."""
    pairs = ((getattr(one, part), getattr(other, part)) for part in ("local", "head"))
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def options(clients):
    return data_options(read_settings(clients.run_config))
