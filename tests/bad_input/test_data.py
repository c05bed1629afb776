"""Data that cannot be used are named by file and row."""

import pytest

from tests.bad_input.ends import error_of, rows_of
from tests.bad_input.given import domain, write


@pytest.fixture
def folder(tmp_path):
    """Return a folder with one good domain, `a`."""
    write(tmp_path / "vqa", domain(name="art"), "a")
    return tmp_path / "vqa"


@pytest.fixture
def on_data(federation):
    return lambda data_dir, **more: federation(
        2, benchmark="vqa-domains", data_dir=str(data_dir), num_answers=2, **more
    )


def test_good_data_run(on_data, folder):
    """Otherwise what follows fails for another reason."""
    write(folder, domain(), "b")
    rows = rows_of(on_data(folder).serve())
    assert [(row["name"], row["num-examples"]) for row in rows] == [("art", 8), ("x-ray", 8)] * 2


def test_no_folder_is_named(on_data, home):
    clients = on_data("")
    assert error_of(clients, home) == (
        "data-dir = '' with benchmark = 'vqa-domains'; allowed: the absolute path of a folder"
    )
    assert clients.wire == []


def test_a_relative_folder_is_refused(on_data, home):
    clients = on_data("data/vqa")
    assert error_of(clients, home) == "data-dir = 'data/vqa' is relative; allowed: an absolute path"
    assert clients.wire == []


def test_a_folder_that_is_not_there_is_named(on_data, home):
    message = "data-dir = '/no/such/folder' does not exist; allowed: a folder of parquet files"
    assert message in error_of(on_data("/no/such/folder"), home)


def test_an_empty_folder_is_named(on_data, home, tmp_path):
    (tmp_path / "e").mkdir()
    message = error_of(on_data(tmp_path / "e"), home)
    assert f"data-dir = '{tmp_path / 'e'}' has no parquet files; allowed: one or more" in message


def test_a_broken_image_is_named_by_file_and_row(on_data, home, folder):
    rows = domain()
    rows[5]["image"]["bytes"] = rows[5]["image"]["bytes"][:300]
    write(folder, rows, "b")
    message = error_of(on_data(folder), home)
    assert "data-dir: b.parquet row 5: image cannot be decoded" in message
    assert "on-bad-row = 'skip' leaves such rows out" in message


def test_a_broken_image_may_be_skipped_and_is_counted(on_data, folder, caplog):
    rows = domain()
    rows[5]["image"]["bytes"] = rows[5]["image"]["bytes"][:300]
    write(folder, rows, "b")
    caplog.set_level("INFO", "flwr")
    run = on_data(folder, on_bad_row="skip").serve()
    rows = rows_of(run)
    assert [row["num-examples"] for row in rows] == [8, 7, 8, 7]
    assert any("x-ray: 1 row" in message for message in caplog.messages)


def test_a_file_that_is_no_parquet_is_named(on_data, home, folder):
    (folder / "b.parquet").write_bytes(b"PAR1 and then nothing")
    assert "data-dir: b.parquet is not a readable parquet file" in error_of(on_data(folder), home)


def test_a_missing_column_is_named(on_data, home, folder):
    write(folder, [{k: v for k, v in row.items() if k != "answer"} for row in domain()], "b")
    assert "data-dir: b.parquet has no column 'answer'" in error_of(on_data(folder), home)


def test_a_client_without_training_rows_is_named(on_data, home, folder):
    write(folder, domain(train=0), "b")
    message = error_of(on_data(folder), home)
    assert "partition-id = 1: 'x-ray' (b.parquet) has no training rows" in message


def test_a_site_with_data_of_its_own_has_one_domain(on_data, home, folder):
    write(folder, domain(), "b")
    message = error_of(on_data("/somewhere", node_config={"data-dir": str(folder)}), home)
    assert f"node-config: data-dir = '{folder}' holds 2 domains; allowed: one" in message


def test_a_site_with_data_of_its_own_trains_on_all_of_it(on_data, folder):
    run = on_data("/somewhere", node_config={"data-dir": str(folder)}).serve()
    rows = rows_of(run)
    assert [(row["partition"], row["num-examples"]) for row in rows] == [(0, 8), (1, 8)] * 2


def test_a_client_without_test_rows_trains_and_is_reported(on_data, folder):
    write(folder, domain(test=0), "b")
    run = on_data(folder).serve()
    rows = rows_of(run)
    refused = [row for row in rows if "refused" in row]
    reason = "partition 1 has no test rows to evaluate on"
    assert refused == [{"round": r, "partition": 1, "phase": "evaluate", "refused": reason} for r in (1, 2)]
    assert [row["partition"] for row in rows if "delta-shared" in row] == [0, 1, 0, 1]
