"""A run on people's own files: several turns, two pictures or none, and one file for all clients."""

from tests.bad_input.ends import error_of, rows_of
from tests.data_partitions.given_files import llava, picture, write


def test_a_run_on_files_ends_in_scores(federation, tmp_path):
    for n in range(4):
        picture(tmp_path / "data" / "pictures" / f"{n}.png", 60 * n)
    pictures = [f"pictures/{n}.png" for n in range(4)]
    rows = [llava(n, images=[pictures[n % 4], pictures[(n + 1) % 4]][: 2 * (n % 3 > 0)]) for n in range(24)]
    write(tmp_path / "data" / "train.jsonl", rows)
    write(tmp_path / "data" / "test.jsonl", rows[:8])
    given = {"benchmark": "files", "data_dir": str(tmp_path / "data"), "missing_modality": 0.3}
    found = rows_of(federation(2, num_answers=2, train_examples=0, **given).serve())
    trained = {row["name"]: row["num-examples"] for row in found if "delta-shared" in row}
    assert set(trained) == {"data", "data-2"}
    assert sum(trained.values()) == 24


def test_what_a_run_asks_of_a_benchmark_that_has_it_not(federation, home):
    clients = federation(2, missing_modality=0.3)
    assert error_of(clients, home).startswith(
        "missing-modality = 0.3 with benchmark = 'scenes' has no effect; "
    )
    assert clients.wire == []
