"""Differential privacy where the data are: a Flower mod that clips, or clips and blurs, what is sent."""

from math import hypot, inf

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from numpy.random import default_rng

from app.settings import read_settings


def private_training(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Train, then change the reply as the run's setting `dp.mode` says.

    For the train function alone: after an evaluation there are no arrays to hide.
    """
    settings = read_settings(context.run_config)
    match settings.dp.mode:
        case "client-fixed":
            return fixedclipping_mod(message, context, call_next)
        case "client-adaptive":
            return adaptiveclipping_mod(message, context, call_next)
        case "local":
            (sent,) = message.content.array_records.values()
            reply = call_next(message, context)
            ((name, trained),) = reply.content.array_records.items()
            reply.content[name] = blurred(
                sent, trained, settings.dp.clipping_norm, settings.dp.local_deviation
            )
            return reply
        case _:
            return call_next(message, context)


def blurred(sent: ArrayRecord, trained: ArrayRecord, most: float, deviation: float) -> ArrayRecord:
    """Clip a change, add noise to it, and only then add it to what was sent.

    Clipped change and noise are float64. What follows, rounding to the dtype of what was sent above all, is a
    function of their sum and of what the server knows, so that nothing which the server sends makes the
    change count more. Flower's `LocalDpMod` adds before it blurs, and then rounding beside a large value of
    the server's makes a change of any length.

    Parameters
    ----------
    sent : ArrayRecord
        What the client was sent.
    trained : ArrayRecord
        The same arrays after training. Where the change has no finite norm, it counts as none.
    most : float
        C, the largest norm of the whole change.
    deviation : float
        Standard deviation of the noise. Its generator is seeded by the operating system.

    Returns
    -------
    ArrayRecord
        The arrays, in the order and with the dtypes of those sent.
    """
    before = {name: array.numpy() for name, array in sent.items()}
    with np.errstate(all="ignore"):
        change = {
            n: trained[n].numpy().astype(np.float64) - old.astype(np.float64) for n, old in before.items()
        }
        whole = hypot(*(float(np.linalg.norm(one)) for one in change.values()))
        share = min(1.0, most / whole) if 0 < whole < inf else 0.0
        noise, private = default_rng(), ArrayRecord()
        for name, old in before.items():
            clipped = share * change[name] if share else 0.0
            new = old + (clipped + noise.normal(0.0, deviation, old.shape))
            private[name] = Array(np.asarray(new, old.dtype))
    return private
