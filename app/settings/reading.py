"""From Flower's run-config to `Settings`, or to one line that says what is wrong."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from .run import NAME_PATTERN
from .section import SettingsError
from .settings import Settings

# What settings were called before there were sections.
_RENAMED = {
    "pretrain": "pretrain.part",
    "dp": "dp.mode",
    "align": "align.when",
    "teacher": "teacher.model",
    "caption-prompt": "teacher.caption-prompt",
}
_HYPHENATED = {
    "pretrain": "encoder language-model images steps learning-rate",
    "dp": "clipping-norm noise-multiplier epsilon delta",
    "align": "steps batch-size learning-rate labels beta temperature target part radius",
    "teacher": "prompt normalise temperature margin",
    "public": "data examples",
}
OLD_NAMES = _RENAMED | {
    f"{section}-{key}": f"{section}.{key}" for section, keys in _HYPHENATED.items() for key in keys.split()
}


def read_settings(run_config: Mapping[str, bool | float | int | str]) -> Settings:
    """Check a run-config, whose keys in sections are flat (``align.steps``), as Flower gives it to an app.

    Raises
    ------
    SettingsError
        One line naming the first wrong key, its value and what is allowed.
    """
    if line := old_name_in(run_config):
        raise SettingsError(line)
    known = Settings.fields()
    nested: dict[str, Any] = {name: {} for name in Settings.sections()}
    for key, value in run_config.items():
        if key not in known:
            raise SettingsError(
                f"{_shown(key)} = {value!r} is not a setting; allowed: {', '.join(sorted(known))}"
            )
        section, dot, name = key.partition(".")
        if dot:
            nested[section][name] = value
        else:
            nested[key] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        raise SettingsError(one_line_of(error)) from None


def old_name_in(keys: Iterable[str]) -> str | None:
    """Return what is to be said of the first setting of an old name: ``align-steps is now align.steps``."""
    return next((f"{key} is now {OLD_NAMES[key]}" for key in keys if key in OLD_NAMES), None)


# What pydantic calls a valid integer, and so on.
_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
}
_PATTERNS = {NAME_PATTERN: "letters, digits, '.', '_' and '-', of which the first is a letter or a digit"}


def one_line_of(error: ValidationError) -> str:
    """Say the first thing that is wrong: the key, the value and what is allowed."""
    first = error.errors()[0]
    key = _shown(".".join(str(part) for part in first["loc"]))
    value = first["input"]
    match first["type"]:
        case "combination":
            return first["msg"]
        case "missing":
            return f"{key} is missing from the run-config"
        case "literal_error":
            allowed = first["ctx"]["expected"]
            return f"{key} = {value!r}; allowed: {allowed}{_meant(value, allowed)}"
        case "string_pattern_mismatch":
            return f"{key} = {value!r}; allowed: {_PATTERNS.get(first['ctx']['pattern'], first['msg'])}"
        case kind if kind in _WORDS:
            return f"{key} = {value!r}; allowed: {_WORDS[kind]}"
        case _:
            return f"{key} = {value!r}; allowed: {first['msg'].removeprefix('Input should be ')}"


def _meant(value: Any, allowed: str) -> str:
    near = get_close_matches(str(value), re.findall("'([^']*)'", allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(key: str) -> str:
    return key if key.isprintable() else repr(key)
