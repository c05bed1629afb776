"""Generative vision-language models: LLaVA, SmolVLM, Qwen-VL, InternVL, Gemma 3, PaliGemma and others.

None is known by name: each is what `AutoModelForImageTextToText` knows, a vision tower and a connector whose
features take places in a text, and a language model that continues it.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT_TO_TEXT,
)

from ..bottleneck.places import as_expression, feed_forward_places
from ..chat import ChatProcessor, Conversation, load_chat_processor
from ..conversations import FEATURES, GRIDS, TOLD, Conversations, converse
from ..likelihood import log_likelihoods
from ..piecewise import logits_of
from ..spreading import is_spread
from .family import Family, Inputs

if TYPE_CHECKING:
    from datasets import Dataset


class Entered(NamedTuple):
    """What a model gives its language model, the same for all branches.

    Attributes
    ----------
    arguments : dict
        By their names in the language model's forward.
    mask : Tensor
        Which tokens are no padding, shape (batch, length).
    told : Tensor or None
        At which places the next token is told, see `conversations.told_places`.
    """

    arguments: dict[str, Any]
    mask: Tensor
    told: Tensor | None


class AnswerPositions:
    """The forward of a generative model in parts (a `dual_adapter.Split`).

    Its trunk is the model's own way to its language model: embeddings with the pictures' features among them,
    positions, masks. From there on a branch computes hidden states, and of those before an answer's tokens
    alone the logits.

    Parameters
    ----------
    model : nn.Module
        With its adapters inside, none of them before its language model.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.decoder, self.head = model, model.get_decoder(), model.get_output_embeddings()

    def trunk(self, batch: Mapping[str, Tensor]) -> Entered:
        """Compute what the language model is given.

        Parameters
        ----------
        batch : Mapping
            ``input_ids``, ``attention_mask`` (batch, length) and whatever else the model takes, and:
            ``told``, see `conversations.told_places`; without them nothing is.
            ``image_features``, see `image_features`, in the order of the texts, in place of ``pixel_values``.
        """
        inputs = _inputs(self.model, batch)
        return Entered(self._entering(inputs), inputs["attention_mask"], batch.get(TOLD))

    def features(self, trunk: Entered) -> Any:
        """Compute the logits (n, words) of the n tokens that are told, see `logits_of`."""
        hidden = self._read(trunk, use_cache=False)
        return logits_of(hidden[:, :-1].flatten(0, 1)[trunk.told], self._words, self.head.out_features)

    @torch.no_grad()
    def write(self, trunk: Entered, stops: Collection[int], limit: int) -> list[list[int]]:
        """Continue texts by the likeliest token at each place, with whichever adapters are in place.

        Parameters
        ----------
        trunk : Entered
            Of texts padded on the left.
        stops : collection of int
            Tokens that end an answer; they are left out.
        limit : int
            Tokens that are written at most.
        """
        embed, mask, positions = (
            self.model.get_input_embeddings(),
            trunk.mask,
            trunk.arguments.get("position_ids"),
        )
        cache, ends = (
            DynamicCache(config=self.decoder.config),
            torch.tensor(sorted(stops), device=mask.device),
        )
        hidden = self._read(trunk, cache=cache, use_cache=True)
        if positions is not None:
            positions = positions[..., -1:]
        written: list[Tensor] = []
        ended = torch.zeros_like(mask[:, :1], dtype=torch.bool)
        while True:
            token = self._words(hidden[:, -1:]).argmax(-1)
            ended |= torch.isin(token, ends)
            written.append(torch.where(ended, -1, token))
            if len(written) == limit or ended.all():
                break
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            if positions is not None:
                positions = positions + 1
            given = {"inputs_embeds": embed(token), "attention_mask": mask, "position_ids": positions}
            hidden = self._read(Entered(given, mask, None), cache=cache, use_cache=True)
        return [[token for token in row if token >= 0] for row in torch.cat(written, dim=1).tolist()]

    def likelihoods(
        self, batch: Mapping[str, Tensor], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> Tensor:
        """Sum the log-probabilities of answers, with whichever adapters are in place.

        Parameters
        ----------
        batch : Mapping
            As `trunk` takes it, of texts padded on the left.
        candidates : sequence of sequence of sequence of int
            Of each text its answers' tokens.

        Returns
        -------
        Tensor
            float32, shape (texts, most answers); -inf where a text has fewer.
        """
        # At a time one answer a text: as much as `write` holds.
        return log_likelihoods(self.model, _inputs(self.model, batch), candidates, at_once=1)

    def _read(self, entered: Entered, **options: Any) -> Tensor:
        """Compute the last hidden states, which a spread model gives on another device than it is given."""
        hidden: Tensor = self.decoder(**entered.arguments, **options).last_hidden_state
        return hidden.to(entered.mask.device)

    def _words(self, hidden: Tensor) -> Tensor:
        words: Tensor = self.head(hidden)
        return words.to(hidden.device, torch.float32)

    def _entering(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model up to its language model."""

        def stop(decoder: nn.Module, args: Any, arguments: dict[str, Any]) -> None:
            raise _Reached(arguments)

        hook = self.decoder.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model.base_model(**inputs, use_cache=False)
        except _Reached as reached:
            given = reached.arguments.items()
            return {key: value for key, value in given if key not in ("cache", "use_cache")}
        finally:
            hook.remove()
        raise ValueError(f"{type(self.model).__name__} does not call its language model")


class AdaptedPictures(AnswerPositions):
    """The same where adapters change what stands for a picture: branches have nothing in common."""

    def trunk(self, batch: Mapping[str, Tensor]) -> Any:
        """Return the batch, with pixels, as it is."""
        return batch

    def features(self, trunk: Any) -> Any:
        """Compute the logits (n, words) of the n tokens that are told, and what leads to them."""
        return super().features(super().trunk(trunk))


class _Reached(Exception):  # noqa: N818
    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


class _Pictures(list):
    """Features as some models take them, a list with one entry a picture, and as others do, a tensor."""

    def to(self, *where: Any) -> Tensor:
        return torch.cat(self).to(*where)


def _inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a model takes of a batch; without `image_features`, that is all but what is told."""
    given = {name: value for name, value in batch.items() if name not in (TOLD, FEATURES)}
    inputs: dict[str, Any] = {
        name: value.to(model.dtype) if value.is_floating_point() else value for name, value in given.items()
    }
    if FEATURES in batch:
        inputs["mm_encoder_outputs"] = {"image": _encoded(batch[FEATURES])}
    return inputs


class _Encoded(SimpleNamespace):
    """What a vision tower and connector give, of which a whole forward makes a tuple at its end."""

    def to_tuple(self) -> tuple[Any, ...]:
        return (self.pooler_output,)


def _encoded(features: Tensor) -> _Encoded:
    """Return features as if the model's own vision tower and connector had just made them."""
    first, *deeper = (_Pictures([level]) for level in features)
    return _Encoded(pooler_output=first, deepstack_features=deeper)


@torch.no_grad()
def image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Compute what stands in a text for a picture, by vision tower and connector.

    Parameters
    ----------
    model : nn.Module
        A generative model.
    inputs : Mapping
        The pixels, and what its processor says of them.

    Returns
    -------
    Tensor
        Shape (levels, tokens, width). There is one level where features enter the language model at its
        embeddings alone; more where deeper layers are given some as well (Qwen3-VL).
    """
    output = model.base_model.get_image_features(**inputs, return_dict=True)
    levels = (output.pooler_output, *(getattr(output, "deepstack_features", None) or ()))
    return torch.stack([torch.cat(list(level)) for level in levels])


def _locate(model: Any) -> Callable[[Conversation], Tensor] | None:
    """Return what makes positions of several axes, if a model has them: its own reads values, token by token.

    On the host, once a conversation, nobody waits for it.
    """
    index = getattr(model.base_model, "get_rope_index", None)
    if index is None:
        return None

    def located(conversation: Conversation) -> Tensor:
        tokens, pictures = conversation.tokens, conversation.pictures
        kinds = conversation.kinds.get("mm_token_type_ids", torch.zeros_like(tokens))
        found, _ = index(tokens[None], mm_token_type_ids=kinds[None], image_grid_thw=pictures.get(GRIDS))
        return found[:, 0]

    return located


# Query and value of an attention, or both in one, by their last name.
_QUERY_VALUE = {"q_proj", "v_proj", "qkv", "qkv_proj", "query", "value", "query_key_value", "c_attn"}


def parts_of(model: Any) -> dict[str, list[str]]:
    """Find the parts of a generative model, by transformers' common interface.

    Returns
    -------
    dict
        ``language``, ``vision`` and ``connector`` → names of modules in the model. A connector is what else
        the model has beside the two, or of the vision tower what is called a merger. A part that is not
        found has no names.
    """
    base, decoder, encoder = model.base_model, model.get_decoder(), model.get_encoder(modality="image")
    found = {"language": [decoder], "vision": [], "connector": []}
    if encoder not in (model, base):  # what transformers returns where it finds none
        known = {decoder, encoder}
        others = [part for part in base.children() if known.isdisjoint(part.modules())]
        mergers = [part for name, part in encoder.named_children() if "merger" in name]
        found |= {"vision": [encoder], "connector": others or mergers}
    name_of = {module: name for name, module in model.named_modules()}
    return {part: [name_of[module] for module in modules] for part, modules in found.items()}


class Generative(Family):
    """A vision tower, a connector and a language model that writes the answer (arXiv 2304.08485).

    It has no head but its own, which stays as it is.

    Parameters
    ----------
    parts : str
        Which of its parts get adapters, see the setting `adapted-parts`.
    """

    words = "a vision-language model with a chat template (LLaVA, SmolVLM, Qwen-VL, InternVL, Gemma 3, ...)"
    task_type = "CAUSAL_LM"
    precisions = ("float32", "bfloat16", "int8", "nf4")
    losses = ("next-token",)
    kind_of_examples = Conversations
    purpose = "image-text-to-text"

    # All of `AutoModelForImageTextToText` but what a family of its own takes.
    architectures = {kind: name for kind, name in IMAGE_TEXT_TO_TEXT.items() if kind != "blip"}

    def __init__(self, parts: str = "language") -> None:
        self.parts = parts

    def adapting(self, parts: str) -> "Generative":
        """Return the family as it adapts these parts."""
        return Generative(parts)

    def lora_places(self, model: Any) -> str:
        """Name query and value of each attention, and in a connector every linear layer."""
        modules = dict(model.named_modules())
        query_value = [name for name in modules if name.rpartition(".")[2] in _QUERY_VALUE]
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        places = {"language": query_value, "vision": query_value, "connector": linear}
        return as_expression(self._in_chosen_parts(places, model, "lora"), model)

    def places_left_alone(self, model: Any) -> str:
        """Say that what lies outside the chosen parts gets none."""
        blocks = feed_forward_places(model)
        self._in_chosen_parts(dict.fromkeys(_CALLED, blocks), model, "bottleneck")
        found = parts_of(model)
        chosen = [re.escape(name) for part in self.parts.split() for name in found[part]]
        return rf"(?!({'|'.join(chosen)})\.).*"

    def _in_chosen_parts(self, places: Mapping[str, list[str]], model: Any, kind: str) -> list[str]:
        """Return, of each chosen part's places, those that lie in it."""
        found, own = parts_of(model), []
        for part in self.parts.split():
            beginnings = tuple(f"{name}." for name in found[part])
            inside = [place for place in places[part] if place.startswith(beginnings)]
            if not inside:
                raise ValueError(
                    f"adapter = {kind!r} with adapted-parts = {self.parts!r}: no place for it is found in a"
                    f" {_CALLED[part]} of {type(model).__name__}; allowed: parts that have some"
                )
            own += inside
        return own

    def processor(self, folder: str | Path, config: Any) -> ChatProcessor:
        """Say how its inputs are made; ValueError if it cannot converse about pictures."""
        if config.is_encoder_decoder:
            raise ValueError("it is an encoder with a decoder, which does not continue a text")
        return load_chat_processor(folder, config, _ANSWER_KIND.get(config.model_type, 0))

    def examples(
        self, rows: "Dataset", model: Any, processor: ChatProcessor, device: torch.device, pictures: int = 0
    ) -> Conversations:
        """Make conversations, with what vision tower and connector give for their pictures, however many.

        Where adapters change that, they have the pictures themselves.
        """
        if self.parts != "language":
            return converse(rows, processor, None)
        if not is_spread(model):
            model.to(device)

        def encode(pictures: Mapping[str, Tensor]) -> Tensor:
            floats = (value.is_floating_point() for value in pictures.values())
            kinds = (model.dtype if floating else None for floating in floats)
            moved = zip(pictures.items(), kinds, strict=True)
            return image_features(model, {name: v.to(device, kind) for (name, v), kind in moved})

        return converse(rows, processor, encode, locate=_locate(model))

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the logits at every position (batch, length, words) by one plain forward."""
        return model(**_inputs(model, inputs)).logits

    def passes(self, model: Any, inputs: Inputs) -> list[Inputs]:
        """Return the inputs as they are: all pictures of a text stand in it."""
        return [inputs]

    def adapted_width(self, config: Any) -> int:
        """Width of the language model's hidden states."""
        return config.get_text_config().hidden_size

    def width(self, config: Any) -> int:
        """Width of what its own head takes."""
        return config.get_text_config().hidden_size

    def split(self, model: Any, processor: Any) -> AnswerPositions:
        """Part it before its language model, if no adapter comes before that."""
        return AnswerPositions(model) if self.parts == "language" else AdaptedPictures(model)


_CALLED = {"language": "language model", "vision": "vision tower", "connector": "connector"}
# PaliGemma reads what is of kind 0 both ways: pictures and question, not the answer.
_ANSWER_KIND = {"paligemma": 1}
