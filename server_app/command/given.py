"""What a run is asked for, ``[RECIPE] [KEY=VALUE …]``, checked before anything is started."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .called import called
from .refusal import Refusal

if TYPE_CHECKING:
    from app.settings import Settings

Config = dict[str, Any]  # flat, keys as in a run-config
# A setting that may be relative to where it is given.
_FOLDER = "data-dir"


@dataclass(frozen=True)
class Given:
    """What a run is given beside the defaults of pyproject.toml.

    Attributes
    ----------
    settings : Settings
        All of the run's settings, checked.
    overrides : dict
        Those that are given.
    """

    settings: "Settings"
    overrides: Config


def read_given(root: Path, words: Sequence[str]) -> Given:
    """Read a run's settings.

    Parameters
    ----------
    root : Path
        The checkout.
    words : sequence of str
        At most one recipe, a name or a file, and pairs KEY=VALUE, which win over it.

    Raises
    ------
    Refusal
        One line that names what cannot be used, and what is allowed.
    """
    defaults = known_settings(root)
    recipes = [word for word in words if "=" not in word]
    if (key := next((word for word in recipes if word in defaults), None)) is not None:
        raise Refusal(f"{key} is a setting; allowed: {key}=VALUE, without spaces")
    if len(recipes) > 1:
        raise Refusal(f"{', '.join(recipes)}: allowed: one recipe, then KEY=VALUE …")
    pairs = dict(_pair(word, defaults) for word in words if "=" in word)
    own = {**(flat(_toml(_recipe(root, recipes[0]))) if recipes else {}), **pairs}
    _check_names(own, defaults)
    _check_values({**defaults, **own})
    if own.get("resume"):
        own = {**_of_run(own, defaults), **own}
    return Given(_checked({**defaults, **own}), own)


def changed(root: Path, given: Given, own: Config) -> Given:
    """Return the same with some settings changed; raises as `read_given`."""
    own = {**given.overrides, **own}
    defaults = known_settings(root)
    return Given(_checked({**defaults, **own}), own)


def known_settings(root: Path) -> Config:
    """Return all settings and their defaults, as the checkout has them."""
    return flat(_toml(root / "pyproject.toml")["tool"]["flwr"]["app"]["config"])


def flat(tables: Mapping[str, Any], prefix: str = "") -> Config:
    """Return nested tables as one with dotted keys."""
    found: Config = {}
    for key, value in tables.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _toml(path: Path) -> Config:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from None


def _recipe(root: Path, name: str) -> Path:
    known = {path.stem: path for path in sorted((root / "recipes").glob("*.toml"))}
    if name in known:
        return known[name]
    if name.endswith(".toml") and not Path(name).expanduser().is_file():
        raise Refusal(f"recipe = {name!r} is not a file; allowed: {', '.join(known)}, or a file NAME.toml")
    if not name.endswith(".toml"):
        raise Refusal(
            f"{name!r} is not a recipe; allowed: {', '.join(known)},"
            f" or a file NAME.toml{_nearest(name, known)}"
        )
    return Path(name).expanduser()


def _pair(word: str, defaults: Config) -> tuple[str, Any]:
    """Read KEY=VALUE: quotes may be left out, for the shell takes them away."""
    key, _, text = word.partition("=")
    key = key.strip()
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if isinstance(defaults.get(key), str) and not isinstance(value, str):
        value = text
    # The app does not run in this folder.
    if key == _FOLDER and isinstance(value, str) and value[:1] not in ("", "~", "/"):
        if not os.path.isdir(value):  # as what no path can be is not either
            raise Refusal(f"{key} = {value!r} is not a folder; allowed: one that is there")
        value = str(Path(value).absolute())
    return key, value


def _check_names(given: Config, known: Config) -> None:
    from app.settings import old_name_in

    if line := old_name_in(given):
        raise Refusal(line)
    for key, value in given.items():
        if key not in known:
            raise Refusal(
                f"{key} = {value!r} is not a setting; all of them: {called()} settings{_nearest(key, known)}"
            )


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _check_values(given: Config) -> None:
    """Check concern by concern, without the import of torch that the whole of the settings needs."""
    from pydantic import ValidationError

    from app.settings import Settings, one_line_of
    from app.settings.method import MethodSettings
    from app.settings.section import Section

    sections = {f"{name}.": section for name, section in Settings.sections().items()}
    tops = {kind for kind in Settings.__mro__ if issubclass(kind, Section)} - {Settings, Section}  # type: ignore[arg-type]
    concerns = [("", top) for top in tops if top is not MethodSettings] + list(sections.items())
    for prefix, concern in concerns:
        keys = [str(field.alias) for field in concern.model_fields.values()]
        try:
            concern.model_validate({key: given[prefix + key] for key in keys})
        except ValidationError as error:
            line = one_line_of(error)
            combined = error.errors()[0]["type"] == "combination"
            raise Refusal(line if combined else prefix + line) from None


def _checked(config: Config) -> "Settings":
    from app.settings import SettingsError, read_settings

    try:
        return read_settings(config)
    except SettingsError as error:
        raise Refusal(str(error)) from None


def _of_run(given: Config, known: Config) -> Config:
    """Return the settings of the run that goes on, where they are not the defaults.

    Raises
    ------
    Refusal
        There is no such run, or what is given differs from it where it may not.
    """
    from app.settings import SettingsError
    from server_app.resuming import MAY_CHANGE, kept_settings

    name = given["resume"]
    try:
        kept = kept_settings(name)
    except SettingsError as error:
        raise Refusal(str(error)) from None
    begun = {key: kept[key] for key in known if key in kept}
    for key, value in given.items():
        if key not in MAY_CHANGE and begun.get(key) != value:
            raise Refusal(
                f"{key} = {value!r} with resume = {name!r}, which was begun with {begun.get(key)!r};"
                f" allowed to differ: {', '.join(sorted(MAY_CHANGE))}"
            )
    return {key: value for key, value in begun.items() if value != known[key] and key != "resume"}
