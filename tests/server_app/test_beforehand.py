"""What is refused before a run is started is what its ServerApp would refuse, in the same words."""

import shutil

import pytest

from app.settings import read_settings
from server_app.beforehand import check_beforehand
from server_app.run_folder import held
from tests.bad_input.ends import error_of

REFUSED = {
    "a backbone that is not there": {"backbone": "/no/such"},
    "a backbone that does not write": {"loss": "next-token"},
    "a head that it has not": {"head": "decoder"},
    "weights that are nowhere": {"backbone": "resnet8", "method": "full", "head": "private"},
    "a benchmark that is not there": {"benchmark": "scene"},
    "a tracker that is not there": {"tracker": "wand"},
    "a teacher model that is not there": {"align.when": "end", "teacher.model": "/no/such.parquet"},
}


@pytest.mark.parametrize("overrides", REFUSED.values(), ids=REFUSED)
def test_the_servers_own_words_come_sooner(run_config, federation, home, monkeypatch, overrides):
    with monkeypatch.context() as patch:
        patch.setattr("app.families.family.Family.load", None)  # no weights are read
        with pytest.raises(ValueError) as caught:
            check_beforehand(read_settings(run_config(**overrides)))
    assert str(caught.value) == error_of(federation(**overrides), home)


def test_what_a_run_can_be_begun_with_is_not_refused(run_config, home):
    check_beforehand(read_settings(run_config()))
    assert list((home / "runs").glob("*")) == []


def test_a_run_that_is_finished_or_going_is_refused_and_left_as_it_is(run_config, home, finished):
    folder = shutil.copytree(finished.folder, home / "runs" / "test")
    before = {path.name for path in folder.rglob("*")} | {".lock"}
    given = {**finished.federation.run_config, "resume": "test", "run-name": ""}
    with pytest.raises(ValueError, match=r"^resume = 'test' is finished: round 2 is done and num-rounds = 2"):
        check_beforehand(read_settings(given))
    longer = read_settings({**given, "num-rounds": 3})
    check_beforehand(longer)
    with held(folder), pytest.raises(ValueError, match=r"^the run 'test' is already going in another"):
        check_beforehand(longer)
    assert {path.name for path in folder.rglob("*")} <= before
