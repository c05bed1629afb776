"""What a method trains: weights known by their role, a head, and the branches that they form."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .spreading import is_spread

Role = Literal["shared", "frozen", "local"]
Branch = Literal["student", "teacher", "local", "mixed"]

# Names of a head's weights: where it travels, on the wire; where it stays, among what is private.
CLASSIFIER, HEAD = "classifier.", "head."
LOCAL = "local."


class Learner(nn.Module):
    """A model of which some weights are trained.

    A branch's logits are computed in three parts: `trunk` (what all branches have in common), `features`
    (from there to the head), `classify` (the head). A subclass says `trunk` and `features`; one that cannot
    part its model leaves `trunk` the batch itself.

    Attributes
    ----------
    parameters_of : dict
        Role → weights by the name they have on the wire.
    head : nn.Module or None
        What makes logits of features; None where the features are the logits.
    head_travels : bool
        Whether the head is shared, by names that begin with ``classifier.``, or private.
    """

    parameters_of: dict[Role, dict[str, Tensor]]
    head: nn.Module | None
    head_travels: bool

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_travels = None, False
        self._branch: Branch = "student"

    def remember_first_weights(self) -> None:
        """Keep the weights as they are: the federation's first, and every client's first."""
        self._first_shared, self._first_local = self.state("shared"), self.state("local")

    def answer_with(self, head: nn.Module | None, *, travels: bool = False) -> None:
        """Put a head in place; its weights as they are now are those of a client that begins."""
        self.head, self.head_travels = head, travels
        self._first_head = copy.deepcopy(head.state_dict()) if head is not None else {}
        if head is not None and not is_spread(self.model):
            head.to(self.device)

    @property
    def model(self) -> Any:
        """The model with what is trained inside."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    # --- Branches ---

    def trunk(self, batch: Any) -> Any:
        """Compute what all branches have in common."""
        return batch

    def features(self, trunk: Any, branch: Branch) -> Any:
        """Compute what a branch's head takes, (n, width); n counts examples, or positions of a text."""
        raise NotImplementedError

    def classify(self, features: Any) -> Tensor:
        """Compute the logits (n, classes) of features."""
        return features if self.head is None else self.head(features)

    def forward(self, batch: Any, branch: Branch) -> Tensor:
        """Compute a branch's logits by one plain forward of the whole model."""
        return self.classify(self.features(self.trunk(batch), branch))

    @contextmanager
    def branch(self, branch: Branch) -> Iterator[None]:
        """Compute with a branch's weights in place; afterwards with those that were there before.

        Raises
        ------
        ValueError
            There is no such branch.
        """
        before = self._branch
        self.activate(branch)
        try:
            yield
        finally:
            self.activate(before)

    @property
    def branch_in_place(self) -> Branch:
        """The branch whose weights are in place."""
        return self._branch

    def activate(self, branch: Branch) -> None:
        """Put a branch's weights in place."""
        self._branch = branch

    def logits(self, batch: Any) -> Tensor:
        """Compute the logits of a batch under the branch in place, the student's outside `branch`."""
        return self(batch, self._branch)

    # --- What is trained ---

    def named_trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return what training moves: shared and local weights by their names on the wire, and the head's."""
        own = [*self.parameters_of["shared"].items(), *self.parameters_of["local"].items()]
        named: list[Any] = [*own, *(self.head.named_parameters() if self.head is not None else ())]
        return [(name, p) for name, p in named if p.requires_grad]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what an optimizer is to be made over."""
        return [parameter for _, parameter in self.named_trained()]

    # --- What travels, and what does not ---

    def state(self, role: Role) -> dict[str, Tensor]:
        """Return a copy of one role's weights by their names on the wire."""
        return {name: weight.detach().clone() for name, weight in self.parameters_of[role].items()}

    def load(self, role: Role, state: Mapping[str, Tensor]) -> None:
        """Overwrite one role's weights; ValueError if names or shapes are not its own."""
        own = self.parameters_of[role]
        _check(f"adapter {role!r}", own, state)
        _copy(own, state)

    def shared(self) -> dict[str, Tensor]:
        """Return a copy of what travels, by its names on the wire."""
        head = self.head.state_dict() if self.head is not None and self.head_travels else {}
        return {**self.state("shared"), **{CLASSIFIER + n: v.detach().clone() for n, v in head.items()}}

    def receive(self, arrays: Mapping[str, Tensor]) -> None:
        """Take what travels as it arrives from the server, as `shared` gives it.

        Raises
        ------
        ValueError
            Names or shapes are not those of this model; then nothing is changed.
        """
        own = {**self.parameters_of["shared"]}
        if self.head is not None and self.head_travels:
            own |= {CLASSIFIER + name: value for name, value in self.head.state_dict().items()}
        _check("what was received", own, arrays)
        _copy(own, arrays)

    def private(self) -> dict[str, Tensor]:
        """Return a copy of what stays with its client: ``local.<name>``, ``head.<name>``."""
        head = self.head.state_dict() if self.head is not None and not self.head_travels else {}
        return {
            **{LOCAL + name: value for name, value in self.state("local").items()},
            **{HEAD + name: value.detach().clone() for name, value in head.items()},
        }

    def load_private(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `private` gave; ``{}`` begins anew.

        Raises
        ------
        ValueError
            Names or shapes are not those of this model; then nothing is changed.
        """
        own = {LOCAL + name: value for name, value in self.parameters_of["local"].items()}
        first = {LOCAL + name: value for name, value in self._first_local.items()}
        if self.head is not None and not self.head_travels:
            own |= {HEAD + name: value for name, value in self.head.state_dict().items()}
            first |= {HEAD + name: value for name, value in self._first_head.items()}
        state = state or first
        _check("private state", own, state)
        _copy(own, state)

    def begin_anew(self) -> None:
        """Put all weights back to the federation's and the client's first."""
        first = {CLASSIFIER + n: v for n, v in self._first_head.items()} if self.head_travels else {}
        self.receive({**self._first_shared, **first})
        self.load_private({})


def _check(what: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    if odd := sorted(state.keys() ^ own.keys()):
        raise ValueError(f"{what}: missing or unknown arrays: {', '.join(odd[:3])}")
    for name, weight in own.items():
        if state[name].shape != weight.shape:
            raise ValueError(
                f"{what}: {name} has shape {tuple(state[name].shape)}, not {tuple(weight.shape)}"
            )


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, weight in own.items():
        weight.copy_(state[name])
