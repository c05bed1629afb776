"""From Flower's run-config to `Settings`, or to one line that says what is wrong."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

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
            return f"{key} = {value!r}; allowed: {first['ctx']['expected']}"
        case kind if kind in _WORDS:
            return f"{key} = {value!r}; allowed: {_WORDS[kind]}"
        case _:
            return f"{key} = {value!r}; allowed: {first['msg'].removeprefix('Input should be ')}"


def _shown(key: str) -> str:
    return key if key.isprintable() else repr(key)
