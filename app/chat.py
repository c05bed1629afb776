"""Conversations with pictures as a generative model reads them, by its own processor and chat template."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

Message = Mapping[str, Any]
# What a processor makes of a text; all else that it makes is of the pictures.
KINDS = ("token_type_ids", "mm_token_type_ids")
_OF_TEXT = ("input_ids", "attention_mask", "labels", *KINDS)


class Conversation(NamedTuple):
    """One conversation as tensors.

    Attributes
    ----------
    tokens : Tensor
        Token ids, int64, shape (tokens,).
    told : Tensor
        Which tokens are answers, bool, shape (tokens,).
    kinds : dict
        Of `KINDS`, those that the model reads: shape (tokens,).
    pictures : dict
        What vision tower and connector are given; empty without pictures.
    """

    tokens: Tensor
    told: Tensor
    kinds: dict[str, Tensor]
    pictures: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ChatProcessor:
    """Turns conversations into what a generative model reads.

    Parameters
    ----------
    processor : ProcessorMixin
        The model's own in transformers.
    longest : int
        Tokens of a conversation at most.
    picture : int
        The token that stands for a part of a picture.
    vocabulary : int
        Tokens that the model has words for.
    stops : frozenset of int
        Tokens that end an answer.
    answer_kind : int
        The ``token_type_ids`` of an answer's tokens and of what follows them.
    max_tokens : int
        The setting `max-tokens`: what is longer is cut behind so many. 0: nothing is.
    """

    processor: Any
    longest: int
    picture: int
    vocabulary: int
    stops: frozenset[int]
    answer_kind: int = 0
    max_tokens: int = 0

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.processor.tokenizer

    @property
    def padding(self) -> int:
        """The token that fills a shorter text up."""
        padding = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if padding is None else padding

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return model inputs: as they are, for pixels are normalised when they are made."""
        return dict(batch)

    def conversation(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> Conversation:
        """Make a conversation; every message of the assistant's is an answer.

        An answer is known by the length of what comes before it, so that the tokens before it are those of
        the prompt alone. It ends with the first token that ends an answer.

        Parameters
        ----------
        messages : sequence of mapping
            ``role`` and ``content``, a list of ``{"type": "image"}`` and ``{"type": "text", "text": …}``.
        images : sequence of Image
            In 8-bit colours, one for each ``{"type": "image"}``, in order.

        Raises
        ------
        ValueError
            Pictures and their places do not fit, nothing or everything is an answer, it is longer than the
            model reads or cannot be cut, or it has a token that the model has no word for.
        """
        segments = list(self._segments(messages))
        if not segments:
            raise ValueError("a conversation without an answer")
        if (places := sum(shown for _, _, shown in segments)) != len(images):
            raise ValueError(f"{len(images)} pictures for a conversation with places for {places}")
        rest = iter(images)
        made = [
            self._answer(text) if told else self._prompt(text, list(islice(rest, shown)), first=not index)
            for index, (text, told, shown) in enumerate(segments)
        ]
        tokens, told = (torch.cat([getattr(part, name) for part in made]) for name in ("tokens", "told"))
        kinds = {
            name: torch.cat([part.kinds.get(name, torch.zeros_like(part.tokens)) for part in made])
            for name in KINDS
            if any(name in part.kinds for part in made)
        }
        if "token_type_ids" in kinds and self.answer_kind:
            kinds["token_type_ids"][told.cumsum(0) > 0] = self.answer_kind
        shown = [part.pictures for part in made if part.pictures]
        pictures = {name: torch.cat([part[name] for part in shown]) for name in (shown[0] if shown else ())}
        return self._checked(Conversation(tokens, told, kinds, pictures))

    def answer(self, text: str) -> list[int]:
        """Return an answer's tokens as a conversation has them behind a question, with the one that ends it.

        Raises
        ------
        ValueError
            It has a token that the model has no word for.
        """
        asked, said = ([{"type": "text", "text": content}] for content in ("?", text.strip()))
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        *_, (written, _, _) = self._segments(messages)
        made = self._answer(written)
        self._check_words(made.tokens)
        return made.tokens[made.told].tolist()

    def _segments(self, messages: Sequence[Message]) -> Iterator[tuple[str, bool, int]]:
        """Yield what comes before each answer, with its number of pictures, and the answer."""
        written, shown = "", 0
        for index, message in enumerate(messages):
            shown += sum(part["type"] == "image" for part in message["content"])
            if message["role"] == "assistant":
                if not index:
                    raise ValueError("a conversation that begins with an answer")
                before = self._render(messages[:index], add_generation_prompt=True)
                until = self._render(messages[: index + 1])
                if not before.startswith(written) or not until.startswith(before):
                    raise ValueError("its chat template writes a prompt otherwise where an answer follows")
                yield before[len(written) :], False, shown
                yield until[len(before) :], True, 0
                written, shown = until, 0

    def _render(self, messages: Sequence[Message], **how: bool) -> str:
        return self.processor.apply_chat_template(list(messages), tokenize=False, **how)

    def _prompt(self, text: str, images: Sequence[Image.Image], first: bool) -> Conversation:
        # Some templates write the first token themselves.
        begins = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        special = first and not begins
        if not images and not first:
            return self._text(text, False)
        made = self.processor(
            text=[text],
            images=[list(images)] if images else None,
            add_special_tokens=special,
            return_tensors="pt",
        )
        tokens = made["input_ids"][0]
        return Conversation(
            tokens,
            torch.zeros_like(tokens, dtype=torch.bool),
            {name: made[name][0].long() for name in KINDS if name in made},
            {name: value for name, value in made.items() if name not in _OF_TEXT},
        )

    def _text(self, text: str, told: bool) -> Conversation:
        tokens = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
        return Conversation(tokens, torch.full_like(tokens, told, dtype=torch.bool), {}, {})

    def _answer(self, text: str) -> Conversation:
        """Make an answer; what the template writes behind its end is no part of it."""
        made = self._text(text, True)
        ends = torch.isin(made.tokens, torch.tensor(sorted(self.stops))).nonzero()
        if not len(ends):
            end = torch.tensor([self.tokenizer.eos_token_id])
            return made._replace(tokens=torch.cat([made.tokens, end]), told=torch.cat([made.told, end > -1]))
        made.told[int(ends[0]) + 1 :] = False
        return made

    def _checked(self, made: Conversation) -> Conversation:
        if made.told.all():
            raise ValueError("a conversation that is an answer alone")
        self._check_words(made.tokens)
        length, most = len(made.tokens), self.max_tokens
        if most and length > most:
            pictures = int((made.tokens == self.picture).nonzero().max()) + 1 if made.pictures else 0
            answer = int(made.told.nonzero()[0]) + 1
            if most < (least := max(pictures, answer)):
                lost = "a picture" if most < pictures else "a whole answer"
                raise ValueError(f"max-tokens = {most} cuts off {lost}; allowed: 0, or {least} and more")
            kinds = {name: kind[:most] for name, kind in made.kinds.items()}
            made = made._replace(tokens=made.tokens[:most], told=made.told[:most], kinds=kinds)
        if len(made.tokens) > self.longest:
            raise ValueError(
                f"a conversation of {length} tokens, of which the model reads {self.longest}; allowed: "
                "shorter ones, or max-tokens to cut them"
            )
        return made

    def _check_words(self, tokens: Tensor) -> None:
        words = tokens[tokens != self.picture]
        if int(words.max()) >= self.vocabulary:
            raise ValueError(
                f"token {int(words.max())} of a tokenizer whose vocabulary grew: the model knows "
                f"{self.vocabulary}"
            )

    def cut(self, max_tokens: int) -> "ChatProcessor":
        """Return one that cuts conversations behind so many tokens."""
        return replace(self, max_tokens=max_tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return an answer's text."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def save(self, folder: str | Path) -> None:
        """Write it for transformers to load."""
        self.processor.save_pretrained(folder)

    def facts(self) -> tuple[Any, ...]:
        """Return all that decides what inputs are made, for a fingerprint."""
        words = sorted(self.tokenizer.get_vocab().items())
        said = json.loads(self.processor.to_json_string())
        return (said, self.processor.chat_template, self.longest, self.max_tokens, words)


def load_chat_processor(folder: str | Path, config: Any, answer_kind: int = 0) -> ChatProcessor:
    """Load what a model's folder or hub id says of its inputs.

    Raises
    ------
    ValueError
        It has no chat template, or takes no pictures.
    ImportError
        It needs a package that is not there: some that also watch videos need torchvision for it.
    """
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    if getattr(processor, "image_processor", None) is None:
        raise ValueError("its processor takes no pictures")
    if not getattr(processor, "chat_template", None):
        raise ValueError("it has no chat template")
    return chat_processor(processor, config, answer_kind)


def chat_processor(processor: Any, config: Any, answer_kind: int = 0) -> ChatProcessor:
    """Take a model's own processor, with what its configuration says of its texts."""
    text = config.get_text_config()
    ends = [getattr(of, "eos_token_id", None) for of in (config, text, processor.tokenizer)]
    return ChatProcessor(
        processor,
        longest=text.max_position_embeddings,
        picture=config.image_token_id,
        vocabulary=text.vocab_size,
        stops=frozenset(token for end in ends for token in _listed(end)),
        answer_kind=answer_kind,
    )


def _listed(tokens: Any) -> list[int]:
    return [] if tokens is None else [tokens] if isinstance(tokens, int) else list(tokens)
