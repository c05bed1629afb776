"""The benchmark `scenes`: a function of the seed, disjoint, and not to be answered from the text."""

import pytest

from data_partitions.benchmarks import (
    DataOptions,
    load_partition,
    load_pool,
    load_public,
    load_public_questions,
    partition_names,
    text_only_baseline,
)
from data_partitions.partition import FEATURES
from data_partitions.scenes import benchmark as scenes

CLIENTS = {
    "domain": ["clean", "sketch", "noisy", "inverted", "low-resolution"],
    "function": ["attribute", "counting", "relation", "logic", "comparison"],
    "scene": ["row", "column", "corners", "crowded", "big", "small"],
    "task": ["question-answering", "true-or-false", "image-text-match", "entailment"],
}
# Half of what is asked there is yes or no; the rest of the bound is chance over 200 test questions.
TWO_ANSWERS = {"logic", "comparison", "true-or-false", "image-text-match"}


@pytest.fixture
def options(tmp_path):
    return DataOptions(cache_dir=tmp_path, train_examples=20, test_examples=11)


def _images(dataset):
    rows = dataset.with_format("arrow")[:].to_pylist()
    return [image["bytes"] for row in rows for image in row.get("images") or [row["image"]]]


def _with(options, **changes):
    return DataOptions(**vars(options) | changes)


@pytest.mark.parametrize("heterogeneity", CLIENTS)
def test_natural_clients(options, heterogeneity):
    assert partition_names("scenes", _with(options, heterogeneity=heterogeneity)) == CLIENTS[heterogeneity]


def test_schema_and_sizes(options):
    partition = load_partition("scenes", 1, 5, options)
    assert (partition.partition_id, partition.name) == (1, "sketch")
    assert [len(split) for split in (partition.train, partition.validation, partition.test)] == [20, 6, 11]
    assert partition.skipped == {"train": 0, "validation": 0, "test": 0}
    row = partition.train[0]
    assert set(row) == set(FEATURES)
    assert [image.size for image in row["images"]] == [(64, 64)]
    assert row["messages"] == [{"role": "user", "content": f"<image>\n{row['question']}"}]
    assert row["answers"] == [partition.answers[row["scores"].index(1.0)]]
    assert (row["answer_scores"], row["options"]) == ([1.0], [])
    assert len(row["scores"]) == len(partition.answers)
    ids = [*partition.train["example_id"], *partition.validation["example_id"], *partition.test["example_id"]]
    assert len(set(ids)) == 37


def test_scores_are_one_hot_but_for_the_answers_that_no_training_example_has(options):
    partition = load_partition("scenes", 0, 5, options)
    for split in ("train", "validation", "test"):
        sums = [sum(scores) for scores in getattr(partition, split)["scores"]]
        assert sums.count(1) == len(sums) - partition.unanswerable[split]
        assert sums.count(0) == partition.unanswerable[split]
    assert partition.unanswerable["train"] == 0


def test_answers_are_in_order_of_their_frequency(options):
    partition = load_partition("scenes", 0, 5, options)
    columns = zip(*partition.train["scores"], strict=True)
    frequency = [(-sum(column), answer) for column, answer in zip(columns, partition.answers, strict=True)]
    assert frequency == sorted(frequency)


def test_the_seed_decides_everything(options, tmp_path):
    def everything(**changes):
        partition = load_partition("scenes", 2, 5, _with(options, **changes))
        return [
            (_images(split), split["question"][:], split["scores"][:])
            for split in (partition.train, partition.validation, partition.test)
        ]

    first = everything()
    assert everything(cache_dir=tmp_path / "other") == first
    assert all(one != two for one, two in zip(everything(seed=1), first, strict=True))
    more = everything(train_examples=30)[0]
    assert (more[0][:20], more[1][:20]) == (first[0][0], first[0][1])


def test_no_picture_is_met_twice_in_any_split_client_or_public_data(options):
    pictures = []
    for partition_id in range(7):
        partition = load_partition("scenes", partition_id, 7, options)
        for split in (partition.train, partition.validation, partition.test):
            pictures += _images(split)
    for split in ("train", "validation", "test"):
        pictures += _images(load_public("scenes", options, 30, split))
        pictures += _images(load_public_questions("scenes", options, 30, split))
    assert len(set(pictures)) == len(pictures) == 7 * 37 + 180


def test_further_clients_take_turns_with_the_domains(options):
    names = [load_partition("scenes", partition_id, 12, options).name for partition_id in (0, 5, 11)]
    assert names == ["clean", "clean-2", "sketch-3"]


def test_how_many_clients_there_are_changes_nothing_for_each(options):
    assert _images(load_partition("scenes", 1, 2, options).train) == _images(
        load_partition("scenes", 1, 9, options).train
    )


def test_drawn_data_are_kept(options, monkeypatch):
    first = load_partition("scenes", 0, 5, options)
    public = load_public("scenes", options, 5)
    questions = load_public_questions("scenes", options, 5)
    assert questions.column_names == ["image", "question", "answer"]
    monkeypatch.delattr(scenes, "draw")
    assert _images(load_partition("scenes", 0, 5, options).train) == _images(first.train)
    assert _images(load_public("scenes", options, 5)) == _images(public)
    assert load_public_questions("scenes", options, 5)["answer"][:] == questions["answer"][:]
    with pytest.raises(NameError):
        load_partition("scenes", 0, 5, _with(options, seed=1))


@pytest.mark.parametrize(
    ("heterogeneity", "partition_id"),
    [(heterogeneity, index) for heterogeneity, names in CLIENTS.items() for index in range(len(names))],
)
def test_the_text_alone_does_not_tell_the_answer(tmp_path, heterogeneity, partition_id):
    options = DataOptions(cache_dir=tmp_path, heterogeneity=heterogeneity, train_examples=300)
    partition = load_partition("scenes", partition_id, partition_id + 1, options)
    assert 0.05 < text_only_baseline(partition) < (0.62 if partition.name in TWO_ANSWERS else 0.45)


def test_public_data(options):
    public = load_public("scenes", options, 12)
    assert public.column_names == ["image", "captions", "example_id"]
    assert public[0]["image"].size == (64, 64)
    assert {len(captions) for captions in public["captions"]} == {7}
    assert len(set(public["example_id"])) == 12


def test_unknown_heterogeneity(options):
    options = _with(options, heterogeneity="weather")
    message = "^heterogeneity = 'weather'; allowed: domain, function, scene, task$"
    with pytest.raises(ValueError, match=message):
        load_partition("scenes", 0, 5, options)
    with pytest.raises(ValueError, match=message):
        partition_names("scenes", options)


def test_the_servers_public_examples_are_of_no_pretraining(tmp_path):
    options = DataOptions(cache_dir=tmp_path, public_examples=60)
    pool = load_pool("scenes", options)
    assert pool["train"].num_rows + pool["validation"].num_rows == 60
    # No more than a fifth, and not of answers that are met less than five times.
    assert 3 <= pool["validation"].num_rows <= 12
    pictures = [image.tobytes() for split in pool.values() for image in split["image"]]
    pretrained = load_public_questions("scenes", options, 60)
    assert not set(pictures) & {image.tobytes() for image in pretrained["image"]}
