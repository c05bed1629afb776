"""The ClientApp. What answers a message is imported with the first one.

Flower loads this file in the server's process too, before it starts a simulation's workers: with torch behind
it, they would wait for that, and then import torch themselves.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from .privacy import private_training

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say who this client is, what it runs and what its data are like, once, before the first round."""
    from . import messages

    return messages.introduce(message, context)


@app.train(mods=[private_training])
def train(message: Message, context: Context) -> Message:
    """Train for one round; reply with what is shared and scalars."""
    from . import messages

    return messages.train(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the branches on the client's test split; reply with scalars."""
    from . import messages

    return messages.evaluate_branches(message, context)
