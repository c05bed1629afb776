"""What a benchmark is asked for, taken from a run's settings."""

from data_partitions.options import DataOptions


def test_options_are_taken_by_their_keys_and_all_else_is_left(tmp_path):
    given = {
        "data-dir": "/d",
        "public.data": "/p",
        "public.examples": 7,
        "public-per-class": 3,
        "num-rounds": 9,
    }
    expected = DataOptions(
        cache_dir=tmp_path, data_dir="/d", public_data="/p", public_examples=7, public_per_class=3
    )
    assert DataOptions.of(given, tmp_path) == expected
