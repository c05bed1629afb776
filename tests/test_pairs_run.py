"""Runs on examples of two pictures each: published sets, one's own files, and what cannot be used."""

import pytest
from safetensors.torch import load_file

from tests.app.families.test_whole_forwards import save_small
from tests.bad_input.ends import rows_of
from tests.data_partitions.feddat_paper import given_sets as given
from tests.data_partitions.given_files import of_pictures, png, write
from tests.data_partitions.given_hflb import hflb


def head_widths(home):
    """Return for each client of a run how wide the features are that its head takes."""
    newest = {
        int(path.parent.name): path for path in sorted((home / "clients").glob("test-*/*/*.safetensors"))
    }
    return {
        number: next(v for name, v in load_file(path).items() if name.endswith("clf_fc0.weight")).shape[1]
        for number, path in newest.items()
    }


def last_scores(folder):
    return {row["name"]: row for row in rows_of(folder) if "student" in row}


def test_nlvr2_beside_sets_of_one_picture(federation, home, tmp_path):
    """What only the order of the two pictures tells is learned."""
    for write_set in (given.vqa_v2, given.snli_ve, given.vcr):
        write_set(tmp_path / "data")
    given.nlvr2(tmp_path / "data", 24)
    sizes = {"train_examples": 0, "test_examples": 0, "local_epochs": 4, "num_rounds": 3}
    clients = federation(4, benchmark="feddat-task", data_dir=str(tmp_path / "data"), **sizes)
    found = last_scores(clients.serve())
    assert head_widths(home) == {0: 32, 1: 64, 2: 32, 3: 32}
    assert found["NLVR2"]["student"] == found["NLVR2"]["teacher"] == 1.0


def test_hflb_has_a_client_of_pairs(federation, home, tmp_path):
    hflb(tmp_path / "data")
    sizes = {"train_examples": 4, "test_examples": 2, "num_rounds": 1}
    found = last_scores(federation(9, benchmark="hflb", data_dir=str(tmp_path / "data"), **sizes).serve())
    assert len(found) == 9
    assert head_widths(home) == dict.fromkeys(range(9), 32) | {6: 64}


@pytest.mark.parametrize("augment", [False, True])
def test_files_of_ones_own_some_rows_without_their_pictures(federation, home, tmp_path, augment):
    given = of_pictures(tmp_path / "data", [3] * 12)
    found = last_scores(federation(1, **given, missing_modality=0.5, augment=augment).serve())
    assert found["data"]["delta-shared"] > 0
    assert head_widths(home) == {0: 3 * 32}


def test_a_row_with_fewer_pictures_than_others_ends_the_run_with_its_name(federation, tmp_path):
    given = of_pictures(tmp_path / "data", [2] * 5 + [1, 2, 2])
    with pytest.raises(RuntimeError) as caught:
        federation(1, **given).serve()
    said = "train.jsonl line 6: 1 in column 'images', where others of this client have 2; allowed: as many in"
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_clients_of_pairs_and_a_server_that_aligns_on_public_examples_of_one_picture(
    federation, home, tmp_path
):
    """The server's own head takes one picture's features, whatever the clients' heads take."""
    public = [
        {"image": {"bytes": png(20 * n), "path": None}, "question": "?", "answer": "ab"[n % 2]}
        for n in range(12)
    ]
    for n, row in enumerate(public):
        row |= {"image_id": f"{n}", "split": "train"}
    write(tmp_path / "public.parquet", public)
    own = of_pictures(tmp_path / "data", [2] * 8)
    pool = {"public.data": str(tmp_path / "public.parquet"), "public.examples": 12}
    align = {"align.when": "each-round", "align.beta": 0.0, "align.steps": 2, "align.batch-size": 4}
    rows = rows_of(federation(1, **own, **pool, **align).serve())
    assert [row["round"] for row in rows if "align/delta-norm" in row] == [1, 2]
    assert head_widths(home) == {0: 64}


@pytest.mark.parametrize(("kind", "head"), [("clip", "prompts"), ("blip", "decoder")])
def test_answers_that_are_read_are_about_one_picture(federation, small_backbone, tmp_path, kind, head):
    given = of_pictures(tmp_path / "data", [2] * 6)
    model = save_small(kind, tmp_path / "model", small_backbone)
    with pytest.raises(RuntimeError) as caught:
        federation(1, **given, backbone=str(model), head=head, loss="cross-entropy").serve()
    assert f"head = '{head}' with 2 pictures an example; allowed: 'private'" in str(caught.value)
