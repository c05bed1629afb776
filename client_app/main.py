"""The ClientApp. What answers a message is imported with the first one.

Flower loads this file in the server's process too, before it starts a simulation's workers: with torch behind
it, they would wait for that, and then import torch themselves.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from app.caches import cache_limit, prune
from app.home import closed_home

from .policy import discreet
from .privacy import private_training
from .secure_aggregation import exchange, masked
from .site_word import obedient

app = ClientApp()
_tidy = functools.cache(prune)  # once a process


@contextmanager
def _at_home() -> Iterator[None]:
    """Keep what is kept from other users, and what is of a file that is gone no longer than that."""
    with closed_home() as home:
        _tidy(home, cache_limit())
        yield


@app.query(mods=[discreet])
def query(message: Message, context: Context) -> Message:
    """Say who this client is, what it runs and what its data are like, once, before the first round."""
    with _at_home():
        from . import messages

        return messages.introduce(message, context)


@app.query("secure_aggregation", mods=[discreet, obedient])
def secure_aggregation(message: Message, context: Context) -> Message:
    """Exchange keys and shares before a round of training, and open the sum after it."""
    with _at_home():
        return exchange(message, context)


@app.train(mods=[discreet, obedient, masked, private_training])
def train(message: Message, context: Context) -> Message:
    """Train for one round; reply with what is shared and scalars."""
    with _at_home():
        from . import messages

        return messages.train(message, context)


@app.evaluate(mods=[discreet, obedient])
def evaluate(message: Message, context: Context) -> Message:
    """Score the branches on the client's test split; reply with scalars."""
    with _at_home():
        from . import messages

        return messages.evaluate_branches(message, context)
