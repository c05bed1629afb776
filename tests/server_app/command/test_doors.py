"""Commands that are programs of the checkout: what they do, and how they refuse, by the real command."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bad_input.given import png

pytestmark = pytest.mark.slow

REFUSED = [
    (
        ("annotate", "--model", "x", "--data", "nix.parquet", "--out", "o", "--prompt", "?", "--captions"),
        r"--data nix\.parquet: no such file; allowed: a parquet file, or .*",
    ),
    (("pretrain", "captions", "--out", "o", "--device", "meta"), r"device = 'meta' is not available.*"),
    (
        ("study", "--plan", "nix", "--out", "o"),
        r"plan = 'nix' cannot be read: .*; allowed: such a file, or .*",
    ),
    (("study", "--quick", "--set", "learning-rat=1"), r"learning-rat = 1 is not a setting; allowed: .*"),
    (("study", "--quick", "--set", "optimizer=sdg"), r"optimizer = 'sdg'; allowed: .*"),
]


@pytest.mark.parametrize(("words", "reason"), REFUSED, ids=[" ".join(words[:3]) for words, _ in REFUSED])
def test_what_cannot_be_done_is_one_line(person, words, reason):
    assert re.fullmatch(reason, person.is_refused(*words))


@pytest.mark.parametrize("name", ["annotate", "pretrain", "study"])
def test_help_is_that_of_the_command(person, name):
    called = person.calls(name, "--help")
    assert called.returncode == 0
    assert called.stdout.startswith(f"usage: feddat {name} ")
    assert called.stderr == ""


def test_a_home_that_others_may_write_in(person):
    person.home.chmod(0o777)
    reason = person.is_refused("pretrain", "captions", "--out", "o")
    assert re.match(r"FEDDAT_HOME = '.*' is open to other users \(777\)", reason)


def test_a_site_is_checked_line_by_line(person):
    called = person.calls("check", "--node-config", 'partition-id=0 num-partitions=2 device="cpu"')
    lines = called.stdout.splitlines()
    assert called.returncode == 0
    assert called.stderr == ""
    assert all(line.startswith("ok    ") for line in lines)
    failed = person.calls("check", "--node-config", "partition-id=0")
    assert failed.returncode == 1
    assert failed.stdout == (
        "FAIL  node-config: num-partitions = None; allowed: a whole number, such as num-partitions=2\n"
    )


def test_pictures_are_annotated(person, random_llava):
    pq.write_table(pa.table({"image": [png(0), png(1)]}), person.folder / "data.parquet")
    told = ("--data", "data.parquet", "--out", "said.parquet", "--prompt", "what ?", "--captions")
    called = person.calls("annotate", "--model", str(random_llava), "--device", "cpu", *told)
    assert called.returncode == 0, called.stderr
    last = called.stdout.splitlines()[-1]
    assert last == f"2 images annotated in {person.folder / 'said.parquet'}"


def test_a_backbone_is_pretrained(person):
    few = ("--images", "20", "--steps", "1", "--batch-size", "4", "--device", "cpu")
    called = person.calls("pretrain", "questions", "--start", "tiny-vilt", "--out", "new", *few)
    assert called.returncode == 0, called.stderr
    assert called.stdout.splitlines()[-1] == f"saved to {person.folder / 'new'}"
    assert (person.folder / "new" / "model.safetensors").is_file()


def test_a_study_runs_its_cells_and_goes_on_where_it_was(person):
    few = ("train-examples=8", "test-examples=8", "batch-size=8", 'device="cpu"')
    words = (
        "study",
        "--quick",
        "--seeds",
        "0",
        "--methods",
        "adapter",
        "--out",
        "cells",
        "--page",
        "page.md",
    )
    first = person.calls(*words, "--set", *few)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "the page is page.md"
    cells = (person.folder / "cells").read_text()
    assert {json.loads(line)["cell"] for line in cells.splitlines()} == {
        "scenes-domain | adapter | steps",
        "scenes-domain | adapter | flops",
    }
    assert person.calls(*words, "--set", *few).returncode == 0
    assert (person.folder / "cells").read_text() == cells
