"""The benchmark `files` from the hub: read by the readers of datasets alone."""

import datasets
import pytest

from tests.data_partitions.files.rows import load, rows_of
from tests.data_partitions.given_files import png, write


def test_a_sites_own_folder_wins_over_the_hub(folder, options):
    write(folder / "a.json", [{"question": "a?", "answer": "b", "split": "train"}])
    assert load(options, hub_data="nobody/nothing").name == "a"


# The hub
@pytest.mark.parametrize("given", ["", "a", "../b", "a/b/c", "/a/b", "a/.."])
def test_a_hub_id_that_is_none(options, given):
    with pytest.raises(ValueError, match=r"^hub-data = '.*' with data-dir = ''; allowed: owner/name of"):
        load(options, data_dir="", hub_data=given)


def test_a_hub_that_cannot_be_reached(options, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^hub-data = 'nobody/nothing' cannot be read \(") as caught:
        load(options, data_dir="", hub_data="nobody/nothing")
    assert "\n" not in str(caught.value)
    assert list(options.cache_dir.rglob("draft-*")) == []


def test_what_the_hub_gives_is_read_and_nothing_else_is_kept(options, tmp_path, monkeypatch):
    """A folder stands for the hub: `datasets` reads both the same way."""
    rows = [{"image": {"bytes": png(n), "path": None}, "question": f"{n}?", "answer": "b"} for n in range(4)]
    for split in ("train", "test"):
        write(tmp_path / "hub" / f"{split}.parquet", rows)
    asked = []

    def local(call):
        def load(name, revision, cache_dir):
            asked.append((name, revision))
            return call(str(tmp_path / "hub"), cache_dir=cache_dir)

        return load

    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, name, local(getattr(datasets, name)))
    part = load(options, data_dir="", hub_data="owner/name@abc")
    assert asked == [("owner/name", "abc")] * 2
    assert (part.name, len(part.train), len(part.test)) == ("owner/name", 4, 4)
    assert [row["images"][0]["bytes"] for row in rows_of(part.train)] == [png(n) for n in range(4)]
    kept = [path.name for path in options.cache_dir.iterdir()]
    assert kept == ["files"]
    assert part.sources == []


def test_files_of_the_hub_that_would_be_unpickled_are_refused(options, tmp_path, monkeypatch):
    class Pandas:
        __module__ = "datasets.packaged_modules.pandas.pandas"

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Pandas())
    monkeypatch.setattr(datasets, "load_dataset", pytest.fail)
    with pytest.raises(
        ValueError, match=r"cannot be read \(its files are of pandas; allowed: arrow, csv, im"
    ):
        load(options, data_dir="", hub_data="a/b")
