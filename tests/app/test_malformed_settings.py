"""Thousands of malformed run-configs: each is refused in one line that names a wrong key."""

import math
import typing
from pathlib import Path

import pytest
from flwr.common.config import get_fused_config_from_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from app.settings import Settings, SettingsError, read_settings

DEFAULTS = get_fused_config_from_dir(Path(__file__).parents[2], {})
FIELDS = Settings.fields()

texts = st.text(max_size=30)
not_numbers = texts | st.booleans() | st.sampled_from([math.nan, math.inf, -math.inf])
negative = st.integers(max_value=-1) | st.floats(max_value=-1e-9, allow_infinity=False)
not_texts = st.integers() | st.floats() | st.booleans()
not_names = texts.map("{}/".format) | texts.map(".{}".format) | st.just("x" * 101)


def bad_value(key):
    """Draw a value that the key can never have."""
    kind = FIELDS[key].annotation
    if typing.get_origin(kind) is typing.Literal:
        return not_texts | texts.filter(lambda text: text not in typing.get_args(kind))
    if kind is str:
        return {"run-name": not_texts | not_names, "backbone": not_texts | st.just("")}.get(key, not_texts)
    if kind is bool:
        return texts | st.integers() | st.floats()
    fractions = st.floats(0.001, 0.999) if kind is int else st.nothing()
    return not_numbers | negative | fractions


@st.composite
def malformed(draw):
    """Return a run-config, and the keys of which one to three are wrong, missing or not known."""
    config, wrong = dict(DEFAULTS), set()
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.sampled_from(["value", "value", "value", "missing", "unknown"])):
            case "value":
                key = draw(st.sampled_from(sorted(DEFAULTS)))
                config[key] = draw(bad_value(key))
            case "missing":
                key = draw(st.sampled_from(sorted(DEFAULTS)))
                config.pop(key, None)
            case _:
                key = draw(texts.filter(lambda text: text not in DEFAULTS))
                config[key] = draw(not_texts | texts)
        wrong.add(key)
    return config, wrong


def is_refused_in_one_line(config_and_wrong):
    config, wrong = config_and_wrong
    with pytest.raises(SettingsError) as error:
        read_settings(config)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert any(message.startswith((f"{key} ", f"{key!r} ")) for key in wrong)


test_malformed_run_configs_are_refused = settings(max_examples=200)(
    given(malformed())(is_refused_in_one_line)
)

test_five_thousand_malformed_run_configs_are_refused = pytest.mark.slow(
    settings(max_examples=5_000)(given(malformed())(is_refused_in_one_line))
)
