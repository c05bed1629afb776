"""From a record of a file to a conversation: the forms in which people keep what a model is to learn.

================= ======================================================================================
``conversations`` LLaVA: turns of ``human`` and ``gpt``, ``<image>`` where a picture stands
``messages``      TRL: turns of ``user`` and ``assistant``, each a text, or parts of ``image`` and ``text``
``prompt``        TRL: ``prompt`` and ``completion``, each a text or messages
``question``      ``question``, and ``answer`` or ``answers``; of ten, as VQA has them, by how many agree
================= ======================================================================================

Pictures are in ``image`` or ``images``, one or a list. Where a text has no place for any of them, they stand
before the first user's turn, as TRL has it; LLaVA's texts must have the places. ``options``, ``split`` and
``id`` may be there.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .partition import PLACE
from .pictures import BadRowError

LONGEST_TEXT = 10_000  # characters of a turn
MOST_TURNS = 200
MOST_PICTURES = 32
ROLES = ("system", "user", "assistant")

_LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
# What tells a form, and what else it cannot be without: one of each.
_FORMS = {
    "conversations": (),
    "messages": (),
    "prompt": (("completion",),),
    "question": (("answer", "answers"),),
}
_PICTURES = ("image", "images")
_OPTIONS = ("options", "choices")
COLUMNS = (*_FORMS, "completion", "answer", "answers", *_PICTURES, *_OPTIONS, "split", "id", "image_id")
Message = dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """What a record says, its pictures as they stand there.

    Attributes
    ----------
    messages : list of dict
        As in a partition's rows.
    answers : dict
        Answer → its score.
    pictures : list
        In the order of their places.
    options : list of str
        What is chosen from.
    """

    messages: list[Message]
    answers: dict[str, float]
    pictures: list[Any]
    options: list[str]


def form_of(columns: Collection[str]) -> str:
    """Return the form that columns are of.

    Raises
    ------
    BadRowError
        It is none, more than one, or not all of one.
    """
    forms = [form for form in _FORMS if form in columns]
    if not forms:
        there = ", ".join(map(str, columns)) or "nothing"
        raise BadRowError(f"has none of {', '.join(_FORMS)}; it has {there}")
    if len(forms) > 1:
        raise BadRowError(f"has {' and '.join(forms)}; allowed: one form")
    if all(name in columns for name in _PICTURES):
        raise BadRowError("has image and images; allowed: one of them")
    for names in _FORMS[forms[0]]:
        if not any(name in columns for name in names):
            raise BadRowError(f"has {forms[0]} without {' or '.join(names)}")
    return forms[0]


def conversation_of(record: Mapping[str, Any], form: str) -> Conversation:
    """Read a record of a form.

    Raises
    ------
    BadRowError
        It cannot be used: there is no answer, an unknown role, a picture without a place …
    """
    given: Any = next((record[name] for name in _PICTURES if record.get(name) is not None), [])
    pictures = list(given) if isinstance(given, list | tuple) else [given]
    if len(pictures) > MOST_PICTURES:
        raise BadRowError(f"has {len(pictures)} pictures; allowed: {MOST_PICTURES}")
    messages, answers = _READERS[form](record)
    _check_turns(messages)
    answers = {answer.strip(): score for answer, score in answers.items() if answer.strip()}
    if not answers:
        raise BadRowError("no answer")
    if form != "conversations":
        _place(messages, len(pictures))
    places = sum(turn["content"].count(PLACE) for turn in messages if turn["role"] == "user")
    if len(pictures) != places:
        raise BadRowError(f"has {len(pictures)} pictures and {places} places for them")
    if not any(turn["content"].strip() for turn in messages if turn["role"] == "user"):
        raise BadRowError(f"no {'question' if form == 'question' else 'text of a user'}")
    options: Any = next((record[name] for name in _OPTIONS if record.get(name)), [])
    return Conversation(messages, answers, pictures, [_text(option, "option") for option in options])


def agreed(answers: Iterable[str]) -> dict[str, float]:
    """Score ten annotators' answers as VQA does: 0.3, 0.6, 0.9 for one, two, three that agree, then 1."""
    return {
        answer: (0.3, 0.6, 0.9, 1.0)[min(count, 4) - 1] for answer, count in Counter(answers).most_common()
    }


def _text(value: Any, what: str) -> str:
    if value is None:
        raise BadRowError(f"no {what}")
    if not isinstance(value, str):
        raise BadRowError(f"{what} is {type(value).__name__}; allowed: a text")
    if len(value) > LONGEST_TEXT:
        raise BadRowError(f"{what} has {len(value)} characters, more than LONGEST_TEXT = {LONGEST_TEXT}")
    return value


def _check_turns(messages: Sequence[Message]) -> None:
    if len(messages) > MOST_TURNS:
        raise BadRowError(f"has {len(messages)} turns; allowed: {MOST_TURNS}")
    roles = [turn["role"] for turn in messages]
    turns = roles[roles[:1] == ["system"] :]
    wanted = [ROLES[1 + index % 2] for index in range(len(turns))]
    for index, (role, right) in enumerate(zip(turns, wanted, strict=True)):
        if role != right:
            raise BadRowError(f"turn {index + len(roles) - len(turns)} is of {role}; allowed: {right}")
    if not turns or turns[-1] != "user":
        raise BadRowError("no answer" if turns else "no turn of user")
    if any(PLACE in turn["content"] for turn in messages if turn["role"] != "user"):
        raise BadRowError("has a place for a picture outside a user's turn")


def _place(messages: Sequence[Message], pictures: int) -> None:
    """Put pictures that have no place before the first user's turn."""
    if pictures and not any(PLACE in turn["content"] for turn in messages):
        first = next(turn for turn in messages if turn["role"] == "user")
        first["content"] = f"{PLACE * pictures}\n{first['content']}"


def _turns(given: Any, what: str) -> list[Message]:
    if not isinstance(given, list | tuple) or not all(isinstance(turn, Mapping) for turn in given):
        raise BadRowError(f"{what} is not a list of turns")
    return [{"role": _role(turn.get("role")), "content": _content(turn.get("content"))} for turn in given]


def _role(role: Any) -> str:
    if role not in ROLES:
        raise BadRowError(f"has a turn of role {role!r}; allowed: {', '.join(ROLES)}")
    return str(role)


def _content(given: Any) -> str:
    if not isinstance(given, list | tuple):
        return _text(given, "content")
    texts = []
    for part in given:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            if any(part.get(name) is not None for name in ("image", "url", "path", "base64")):
                raise BadRowError("has a picture inside a message; allowed: in image or images")
            texts.append(PLACE)
        elif kind == "text":
            texts.append(_text(part.get("text"), "text").replace(PLACE, ""))
        else:
            raise BadRowError(f"has a part of type {kind!r}; allowed: image, text")
    return _text("\n".join(texts), "content")


def _last(messages: list[Message]) -> tuple[list[Message], dict[str, float]]:
    """Part a conversation from its last turn, the answer."""
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRowError("no answer")
    return messages[:-1], {messages[-1]["content"]: 1.0}


def _conversations(record: Mapping[str, Any]) -> tuple[list[Message], dict[str, float]]:
    given = record["conversations"]
    if not isinstance(given, list | tuple) or not all(isinstance(turn, Mapping) for turn in given):
        raise BadRowError("conversations is not a list of turns")
    messages = []
    for turn in given:
        if (role := turn.get("from")) not in _LLAVA_ROLES:
            raise BadRowError(f"has a turn from {role!r}; allowed: {', '.join(_LLAVA_ROLES)}")
        messages.append({"role": _LLAVA_ROLES[role], "content": _text(turn.get("value"), "value")})
    return _last(messages)


def _messages(record: Mapping[str, Any]) -> tuple[list[Message], dict[str, float]]:
    return _last(_turns(record["messages"], "messages"))


def _prompt(record: Mapping[str, Any]) -> tuple[list[Message], dict[str, float]]:
    prompt, completion = record["prompt"], record["completion"]
    if not isinstance(prompt, list | tuple):
        prompt = [{"role": "user", "content": _text(prompt, "prompt")}]
    if not isinstance(completion, list | tuple):
        completion = [{"role": "assistant", "content": _text(completion, "answer")}]
    return _last([*_turns(prompt, "prompt"), *_turns(completion, "completion")])


def _question(record: Mapping[str, Any]) -> tuple[list[Message], dict[str, float]]:
    messages = [{"role": "user", "content": _text(record["question"], "question")}]
    if not messages[0]["content"].strip():
        raise BadRowError("no question")
    if (given := record.get("answers")) is None:
        return messages, {_text(record.get("answer"), "answer"): 1.0}
    if not isinstance(given, list | tuple):
        raise BadRowError(f"answers is {type(given).__name__}; allowed: a list")
    answers = [_text(one.get("answer") if isinstance(one, Mapping) else one, "answer") for one in given]
    return messages, agreed(answers) if len(answers) == 10 else dict.fromkeys(answers, 1.0)


_READERS = {
    "conversations": _conversations,
    "messages": _messages,
    "prompt": _prompt,
    "question": _question,
}
