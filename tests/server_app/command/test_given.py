"""RECIPE and KEY=VALUE as settings."""

import json

import pytest

from server_app.command.given import flat, read_given
from server_app.command.refusal import Refusal
from tests.conftest import ROOT


def read(*words):
    return read_given(ROOT, words)


def test_values_are_what_their_settings_want_with_or_without_quotes():
    given = read("num-rounds=3", "benchmark='scenes'", "heterogeneity=scene", "augment=true", "run-name=7")
    assert given.overrides == {
        "num-rounds": 3,
        "benchmark": "scenes",
        "heterogeneity": "scene",
        "augment": True,
        "run-name": "7",
    }
    assert given.settings.num_rounds == 3
    assert given.settings.run_name == "7"


def test_a_value_may_hold_spaces_and_equals_signs():
    pair = "teacher.prompt=a = b ?"
    assert read(pair).settings.teacher.prompt == "a = b ?"


def test_what_is_given_wins_over_the_recipe():
    given = read("lora", "lora-rank=4")
    assert (given.settings.adapter, given.settings.lora_rank) == ("lora", 4)
    assert read("lora").settings.lora_rank == 8


def test_a_folder_of_data_may_be_relative_to_where_the_command_is_given(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read("benchmark=files", "data-dir=mine").overrides["data-dir"] == str(tmp_path / "mine")
    assert "data-dir" not in read("benchmark=scenes").overrides


def test_a_recipe_may_be_a_file(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('num-rounds = 2\n[dp]\nmode = "none"\nepsilon = 0.25\n')
    given = read(str(path))
    assert given.overrides == {"num-rounds": 2, "dp.mode": "none", "dp.epsilon": 0.25}


def test_a_file_that_is_no_toml_is_named_in_one_line(tmp_path):
    (path := tmp_path / "own.toml").write_text("num-rounds = = 2\n")
    with pytest.raises(Refusal, match=r"^.*own\.toml cannot be read: .*line 1.*$"):
        read(str(path))


def test_a_folder_whose_name_no_file_system_takes_is_refused_in_a_line():
    with pytest.raises(Refusal, match=r"^data-dir = 'a+' is not a folder; allowed: one that is there$"):
        read("benchmark=files", f"data-dir={'a' * 300}")


@pytest.mark.parametrize("words", [("num-rounds", "=", "2"), ("lora", "num-rounds", "2")])
def test_a_setting_with_spaces_around_is_told_how(words):
    with pytest.raises(
        Refusal, match=r"^num-rounds is a setting; allowed: num-rounds=VALUE, without spaces$"
    ):
        read(*words)


def test_an_equals_sign_alone_is_no_setting():
    with pytest.raises(Refusal, match=r"^= '' is not a setting; "):
        read("=")


def test_two_recipes_are_one_too_many():
    with pytest.raises(Refusal, match=r"^lora, long-tailed: allowed: one recipe, then KEY=VALUE …$"):
        read("lora", "long-tailed")


def test_a_run_that_goes_on_is_given_its_own_settings_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDDAT_HOME", str(tmp_path))
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    kept = {**read().settings.run_config(), "run-name": "mine", "num-rounds": 4, "seed": 5}
    (folder / "settings.json").write_text(json.dumps({**kept, "flwr": "1", "resume": ""}))
    given = read("resume=mine", "num-rounds=9")
    assert given.overrides == {"resume": "mine", "run-name": "mine", "num-rounds": 9, "seed": 5}


def test_tables_become_keys_with_dots():
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}
