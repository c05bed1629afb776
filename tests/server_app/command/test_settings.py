"""``feddat settings``: the page of all settings is what pyproject.toml and the fields say."""

from typing import Literal

import pytest
from pydantic import Field

from app.settings import Settings
from app.settings.section import Section
from server_app.command.settings import allowed, documented, settings_page
from tests.conftest import ROOT


class Specimen(Section):
    """Fields of each kind."""

    word: Literal["one", "two"]
    count: int = Field(gt=0)
    share: float = Field(ge=0, lt=1)
    name: str = Field(min_length=1, max_length=9)
    switch: bool


def test_the_page_is_that_of_the_settings():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(ROOT), "feddat settings > docs/settings.md"


def test_every_setting_is_there_with_its_comment():
    found = list(documented((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert [one.key for one in found] == list(Settings.fields())
    assert all(one.comment and one.default and one.group for one in found)


def test_a_comment_is_of_the_setting_beneath_it_and_a_group_of_those_that_follow():
    text = """\
# Of something else.
[tool.other]
a = 1

[tool.flwr.app.config]
# --- First ---
# What it is,
# in two lines.
b-c = 2
# --- Second ---
[tool.flwr.app.config.part]
# Of a section.
d = "x"
[tool.last]
e = 3
"""
    first, second = documented(text)
    assert (first.group, first.key, first.default) == ("First", "b-c", "2")
    assert first.comment == "What it is, in two lines."
    assert (second.group, second.key, second.default) == ("Second", "part.d", '"x"')


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("word", "`'one'`, `'two'`"),
        ("count", "integer, more than 0"),
        ("share", "number, at least 0, less than 1"),
        ("name", "text, 1 or more characters, at most 9 characters"),
        ("switch", "true or false"),
    ],
)
def test_what_a_field_takes_is_said(name, said):
    assert allowed(Specimen.model_fields[name]) == said


def test_some_are_shown_by_a_word(person):
    shown = person.calls("settings", "align.st").stdout
    assert [line for line in shown.splitlines() if line.startswith("### ")] == ["### `align.steps`"]
    assert person.is_refused("settings", "nonsense").startswith(
        "word = 'nonsense' is in the name of no setting"
    )
