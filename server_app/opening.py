"""What a run starts from on the server: the model, its first arrays, and a head where that travels."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from app.full_model import open_model
from app.heads import new_head, with_classifier
from app.settings import Settings
from app.trained_model import TrainedModel

from .central_evaluation import CentralEvaluation, common_test
from .global_model import GlobalModel


@dataclass(frozen=True)
class Opening:
    """The server's side of a run before its first round.

    Attributes
    ----------
    model : TrainedModel
        What the clients train.
    initial : Mapping
        The federation's first arrays, by their names on the wire.
    head : nn.Module or None
        The head that travels; None where heads are private.
    answers : tuple of str
        What that head chooses from; empty without one.
    evaluation : CentralEvaluation or None
        How the server evaluates; None where the clients do.
    """

    model: TrainedModel
    initial: Mapping[str, Tensor]
    head: nn.Module | None = None
    answers: tuple[str, ...] = ()
    evaluation: CentralEvaluation | None = None


def open_run(settings: Settings) -> Opening:
    """Open the model on the device that the server needs for it.

    Raises
    ------
    ValueError
        If the backbone, the adapter, the device or the test set cannot be had.
    """
    test = common_test(settings)
    # Where only clients compute, their device need not be here.
    computes = test or settings.align != "none" or settings.pretrain != "none"
    device = settings.server_device if computes else "cpu"
    model = open_model(settings.model_copy(update={"device": device}))
    if not test:
        return Opening(model, model.initial_shared)
    head = new_head(model.backbone.width, len(test.answers), settings.seed, "shared")
    evaluation = CentralEvaluation(GlobalModel(model, head, head_travels=True), test)
    return Opening(model, with_classifier(model.initial_shared, head), head, test.answers, evaluation)
