"""Conversations about pictures as tensors: made once, with what stands for a picture, then sliced."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import pad

from .chat import KINDS, ChatProcessor, Conversation
from .examples import decoded, send
from .processor import upright
from .tasks import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

# Where a batch says at which places the next token is told, what stands for its pictures, and how those are
# laid out.
TOLD, FEATURES, GRIDS = "told", "image_features", "image_grid_thw"
# A picture's place in a message.
PLACE = "<image>"


@dataclass(frozen=True)
class Conversations:
    """Some conversations, ready for a generative model.

    Attributes
    ----------
    tokens : Tensor
        Token ids of all conversations, one after the other, int64, shape (tokens,).
    told : Tensor
        Which of them are answers, bool, shape (tokens,).
    asked, ends : Tensor
        Where in `tokens` each conversation's last question ends, and it itself, shape (examples,).
    wanted : Tensor
        What each answer would be worth, as JSON, uint8: for each conversation a mapping of answers to [0, 1].
    offered : Tensor
        What each last answer may be chosen from, as JSON, uint8: for each conversation a list, of which most
        are empty.
    features : Tensor
        What stands for the pictures of a conversation, bfloat16, shape (levels, picture tokens, width); those
        of all distinct ones, one after the other. Empty where they are computed in each step.
    feature_ends : Tensor
        Where in `features` each ends, shape (pictures,).
    shown : Tensor
        Which of them each conversation shows, shape (examples,); -1 for none.
    pixels, pixel_ends : Tensor, optional
        In place of features: what the vision tower is given for the pictures of a conversation, one
        safetensors file after the other, uint8, and where each ends, shape (pictures,). Pixels are float16,
        which has all of their eight bits.
    grids, grid_ends : Tensor, optional
        Rows and columns of the pictures, and where each ends, for models whose positions follow them.
    positions : Tensor, optional
        Where each token is, int64, shape (axes, tokens), for models that would read values to find out.
    token_type_ids, mm_token_type_ids : Tensor, optional
        Kind of each token, shape (tokens,), for models that read it.
    """

    tokens: Tensor
    told: Tensor
    asked: Tensor
    ends: Tensor
    wanted: Tensor
    offered: Tensor
    features: Tensor
    feature_ends: Tensor
    shown: Tensor
    pixels: Tensor | None = None
    pixel_ends: Tensor | None = None
    grids: Tensor | None = None
    grid_ends: Tensor | None = None
    positions: Tensor | None = None
    token_type_ids: Tensor | None = None
    mm_token_type_ids: Tensor | None = None

    # There is no answer list, and no number of pictures that a head would depend on.
    num_answers = pictures = 0

    def __len__(self) -> int:
        return len(self.ends)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """Return the model inputs of some rows, padded on the right, and targets: -100 but at answers."""
        index, mask = self._padded(rows, self.ends, left=False)
        inputs = self._inputs(rows, index, mask)
        targets = torch.where(mask & self.told[index], inputs["input_ids"], IGNORED)
        inputs[TOLD] = told_places(targets)
        if self.positions is not None:
            inputs["position_ids"] = torch.where(mask, self.positions[:, index], 0)
        return {name: send(value, device) for name, value in inputs.items()}, send(targets, device)

    def questions(self, rows: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Return the model inputs of some rows up to their last answer, padded on the left."""
        inputs = self._inputs(rows, *self._padded(rows, self.asked, left=True))
        return {name: send(value, device) for name, value in inputs.items()}

    def answers(self) -> list[dict[str, float]]:
        """Return for each row what answers are worth."""
        return json.loads(bytes(self.wanted.tolist()))

    def options(self) -> list[list[str]]:
        """Return for each row what its answer may be chosen from; nothing where that is not said."""
        return json.loads(bytes(self.offered.tolist()))

    def _padded(self, rows: Tensor, ends: Tensor, left: bool) -> tuple[Tensor, Tensor]:
        """Return where in `tokens` a batch's lie, (rows, longest), and which of them are no padding."""
        starts = torch.where(rows > 0, self.ends[rows - 1], 0)
        lengths = ends[rows] - starts
        longest = int(lengths.max())
        place = torch.arange(longest) - (longest - lengths[:, None] if left else 0)
        mask = (place >= 0) & (place < lengths[:, None])
        # A text is filled up with its last token: never a picture's, for which there would be no features.
        return starts[:, None] + torch.where(mask, place, lengths[:, None] - 1), mask

    def _inputs(self, rows: Tensor, index: Tensor, mask: Tensor) -> dict[str, Tensor]:
        inputs = {"input_ids": self.tokens[index], "attention_mask": mask.long()}
        for name in KINDS:
            if (kinds := getattr(self, name)) is not None:
                inputs[name] = kinds[index]
        shown = [picture for picture in self.shown[rows].tolist() if picture >= 0]
        if shown and self.pixels is not None and self.pixel_ends is not None:
            files = (_part(self.pixels, self.pixel_ends, picture, 0) for picture in shown)
            seen = [load(file.numpy().tobytes()) for file in files]
            inputs |= {name: _one_after_the_other([one[name] for one in seen]) for name in seen[0]}
        elif shown:
            inputs[FEATURES] = torch.cat(
                [_part(self.features, self.feature_ends, i, 1) for i in shown], dim=1
            )
            if self.grids is not None and self.grid_ends is not None:
                inputs[GRIDS] = torch.cat(
                    [_part(self.grids, self.grid_ends, picture, 0) for picture in shown]
                )
        return inputs


def told_places(targets: Tensor) -> Tensor:
    """Return at which of all places but a text's last, one text after the other, the next token is told."""
    return (targets[:, 1:] != IGNORED).flatten().nonzero().squeeze(1)


def converse(
    rows: "Dataset",
    processor: ChatProcessor,
    encode: Callable[[Mapping[str, Tensor]], Tensor] | None,
    dtype: torch.dtype = torch.bfloat16,
    locate: Callable[[Conversation], Tensor] | None = None,
) -> Conversations:
    """Make conversations of rows with columns images, messages, answers, answer_scores, options.

    The first of a row's answers is told. Conversations about the same pictures share what stands for them.

    Parameters
    ----------
    rows : Dataset
        The rows; ``<image>`` in a message is a picture's place.
    processor : ChatProcessor
        Makes conversations.
    encode : callable or None
        Makes features (levels, tokens, width) of a conversation's pictures; None: pixels are kept instead.
    dtype : torch.dtype
        How features are kept.
    locate : callable, optional
        Makes positions (axes, tokens) of a conversation, for a model whose positions follow its pictures'
        rows and columns.

    Raises
    ------
    ValueError
        A row cannot be used; the line says which.
    """
    columns = rows.with_format("arrow")[:]
    names = ("images", "messages", "answers", "answer_scores", "options")
    made, wanted, offered = [], [], []
    features: list[Tensor] = []
    grids: list[Tensor] = []
    pixels: list[Tensor] = []
    known: dict[tuple[bytes, ...], int] = {}
    shown: list[int] = []
    for number, row in enumerate(zip(*(columns[name].to_pylist() for name in names), strict=True)):
        images, messages, answers, scores, options = row
        pictures = decoded(images, number, lambda opened: [upright(image) for image in opened])
        said = [*messages, {"role": "assistant", "content": answers[0]}]
        try:
            conversation = processor.conversation([_parted(**message) for message in said], pictures)
        except ValueError as error:
            raise ValueError(f"example {number}: {error}") from None
        key = tuple(hashlib.sha256(image["bytes"]).digest() for image in images)
        if key and key not in known:
            known[key] = len(known)
            if encode is None:
                pixels.append(_file(conversation.pictures))
            else:
                features.append(encode(conversation.pictures).to("cpu", dtype))
                grids.append(conversation.pictures.get(GRIDS, torch.empty(0, 3)))
        shown.append(known[key] if key else -1)
        made.append(conversation)
        wanted.append(dict(zip(answers, scores, strict=True)))
        offered.append([option.strip() for option in options])
    kinds = {name for one in made for name in one.kinds}
    with_grids = any(map(len, grids))
    return Conversations(
        tokens=torch.cat([one.tokens for one in made]),
        told=torch.cat([one.told for one in made]),
        asked=_ends([len(one.tokens) for one in made])
        - torch.tensor([_last_answer(one.told) for one in made]),
        ends=_ends([len(one.tokens) for one in made]),
        wanted=_json(wanted),
        offered=_json(offered),
        features=torch.cat(features, dim=1) if features else torch.empty(1, 0, 0, dtype=dtype),
        feature_ends=_ends([one.shape[1] for one in features]),
        shown=torch.tensor(shown),
        pixels=torch.cat(pixels) if pixels else None,
        pixel_ends=_ends([len(file) for file in pixels]) if pixels else None,
        grids=torch.cat(grids) if with_grids else None,
        grid_ends=_ends([len(grid) for grid in grids]) if with_grids else None,
        positions=torch.cat([locate(one) for one in made], dim=1) if with_grids and locate else None,
        **{
            name: torch.cat([one.kinds.get(name, torch.zeros_like(one.tokens)) for one in made])
            for name in kinds
        },
    )


def _parted(role: str, content: str) -> dict[str, Any]:
    """Return a message as chat templates take it: texts, and the places of pictures among them."""
    parts: list[dict[str, str]] = []
    for number, text in enumerate(content.split(PLACE) if role == "user" else [content]):
        parts += [{"type": "image"}] * (number > 0)
        parts += [{"type": "text", "text": text.strip()}] if text.strip() or role != "user" else []
    return {"role": role, "content": parts}


def _last_answer(told: Tensor) -> int:
    """Return how far from a conversation's end its last answer begins."""
    last = int(told.nonzero()[-1])
    before = (~told[:last]).nonzero()[-1]
    return len(told) - 1 - int(before)


def _json(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _file(pictures: Mapping[str, Tensor]) -> Tensor:
    """Return what a vision tower is given as bytes, uint8."""
    kept = {name: v.half() if v.is_floating_point() else v for name, v in pictures.items()}
    return torch.frombuffer(
        bytearray(save({name: v.contiguous() for name, v in kept.items()})), dtype=torch.uint8
    )


def _one_after_the_other(parts: Sequence[Tensor]) -> Tensor:
    """Join pictures; smaller ones are filled up with zeros, as processors do where one text has several."""
    largest = torch.tensor([part.shape[1:] for part in parts]).amax(0).tolist()

    def filled(part: Tensor) -> Tensor:
        missing = [most - own for most, own in zip(largest, part.shape[1:], strict=True)]
        return pad(part, [side for amount in reversed(missing) for side in (0, amount)])

    return torch.cat([filled(part) for part in parts])


def _ends(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(lengths).cumsum(0)


def _part(whole: Tensor, ends: Tensor, index: int, dim: int) -> Tensor:
    start = int(ends[index - 1]) if index else 0
    return whole.narrow(dim, start, int(ends[index]) - start)
