"""Differential privacy where the data are: a Flower mod that clips, or clips and blurs, what is sent."""

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable

from app.settings import Settings, read_settings


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
            return local_privacy(settings)(message, context, _unseeded(call_next))
        case _:
            return call_next(message, context)


def _unseeded(call_next: ClientAppCallable) -> ClientAppCallable:
    """Seed NumPy's global generator, which Flower draws noise from, from the operating system's entropy.

    Whoever knows the seed that another set could subtract the noise.
    """

    def call(message: Message, context: Context) -> Message:
        reply = call_next(message, context)
        np.random.seed()
        return reply

    return call


def local_privacy(settings: Settings) -> LocalDpMod:
    """Return the mod that clips a change to a norm C and adds Gaussian noise of 2 C √(2 ln 1.25/δ) / ε.

    Two changes of norm C are at most 2 C apart. Dwork & Roth, "The Algorithmic Foundations of Differential
    Privacy", 2014, theorem A.1, for ε in (0, 1).
    """
    norm = settings.dp.clipping_norm
    return LocalDpMod(norm, 2 * norm, settings.dp.epsilon, settings.dp.delta)
