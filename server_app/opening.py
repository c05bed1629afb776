"""What a run starts from on the server: what is trained, its first arrays, a head where that travels."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from app.backbones import open_backbone
from app.heads import answer_with_new_head
from app.learner import Learner
from app.methods import METHODS, open_learner
from app.settings import Settings

from .central_evaluation import CentralEvaluation, common_test
from .global_model import GlobalModel


@dataclass(frozen=True)
class Opening:
    """The server's side of a run before its first round.

    Attributes
    ----------
    learner : Learner
        What the clients train, with a head where that travels.
    initial : Mapping
        The federation's first arrays, by their names on the wire.
    answers : tuple of str
        What that head chooses from; empty without one.
    evaluation : CentralEvaluation or None
        How the server evaluates; None where the clients do.
    """

    learner: Learner
    initial: Mapping[str, Tensor]
    answers: tuple[str, ...] = ()
    evaluation: CentralEvaluation | None = None


def open_run(settings: Settings) -> Opening:
    """Open the model on the device that the server needs for it.

    Raises
    ------
    ValueError
        If the backbone, the adapter, the device or the test set cannot be had, or replies not be averaged.
    """
    test = common_test(settings)
    # Where only clients compute, their device need not be here.
    computes = test or settings.align.when != "none" or settings.pretrain.part != "none"
    device = settings.server_device if computes else "cpu"
    settings = settings.model_copy(update={"device": device})
    learner, backbone, method = open_learner(settings), open_backbone(settings), METHODS[settings.method]
    if test:
        answer_with_new_head(learner, backbone.width, len(test.answers), settings.seed, "shared")
    else:
        learner.answer_with(None)
    learner.begin_anew()
    initial = method.travelling(learner)
    shapes = {name: tuple(value.shape) for name, value in initial.items()}
    if method.combine is None and method.reply_layout(shapes) != shapes:
        raise ValueError(
            f"method = {settings.method!r} has replies unlike what is sent; allowed: with its own `combine`"
        )
    if not test:
        return Opening(learner, initial)
    evaluation = CentralEvaluation(GlobalModel(learner), test, backbone.processor)
    return Opening(learner, initial, test.answers, evaluation)
