"""Rows of one form: what a model that writes and one that chooses find in them."""

from data_partitions.partition import FEATURES, Row, answer_list, scored_split

PICTURE = {"bytes": b"x", "path": None}


def test_a_row_of_several_turns_and_pictures_by_hand():
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "<image>\nWhat is this?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And <image>\n in the\nother?"},
    ]
    row = Row([PICTURE, PICTURE], messages, {"two": 1.0, "2": 0.6}, "a/1", ["one", "two"])
    other = Row.asking(PICTURE, "how many?", "seven", "a/2")
    split, unanswerable = scored_split([row, other], ["one", "2", "two"])
    assert split.features == FEATURES
    assert unanswerable == 1
    first, second = split.with_format("arrow")[:].to_pylist()
    assert first["images"] == [PICTURE, PICTURE]
    assert first["messages"] == messages
    assert first["question"] == "And in the other?"
    assert (first["answers"], first["options"]) == (["two", "2"], ["one", "two"])
    assert [round(score, 6) for score in first["answer_scores"]] == [1.0, 0.6]
    assert [round(score, 6) for score in first["scores"]] == [0.0, 0.6, 1.0]
    assert second["messages"] == [{"role": "user", "content": "<image>\nhow many?"}]
    assert (second["question"], second["answers"], second["scores"]) == ("how many?", ["seven"], [0, 0, 0])
    assert second["example_id"] == "a/2"


def test_an_answer_list_falls_in_frequency_and_then_by_the_alphabet():
    assert answer_list(["b", "a", "c", "c"], 2) == ["c", "a"]
