"""The program that times a training step: what it counts and prints, and that it fails when steps differ."""

import json
from dataclasses import replace

import pytest
import torch

from app.backbones import load_backbone
from benchmarks import step

# Of `small_backbone`: width, feed-forward width, patches, and tokens: of text, and with class and patches.
WIDTH, INNER, PATCHES, TEXT = 32, 64, 4, 16
TOKENS = TEXT + 1 + PATCHES
CPU = torch.device("cpu")


def forward_by_hand():
    """Return the FLOPs of one example: two per multiplication."""
    projections = 4 * WIDTH * WIDTH + 2 * WIDTH * INNER  # query, key, value, output; in and out
    block = 2 * TOKENS * projections + 2 * 2 * TOKENS * TOKENS * WIDTH
    return 2 * PATCHES * 3 * 16 * 16 * WIDTH + 2 * block + 2 * WIDTH * WIDTH


@pytest.fixture
def small(small_backbone):
    return load_backbone(str(small_backbone))


@pytest.fixture
def run(small_backbone):
    def call(*arguments):
        return step.main(
            ["--backbones", str(small_backbone), "--repeats", "1", "--device", "cpu", *arguments]
        )

    return call


def test_a_forward_is_counted_as_by_hand(small):
    forward = step.make_variants(small, 1, CPU)[step.FORWARD]
    assert step.count_flops(forward) == forward_by_hand()


def test_the_published_step_is_the_literal_one_on_inputs_of_its_own(small):
    """Both start from the same weights; transformers resizes and shuffles, so only nearly."""
    variants = step.make_variants(small, 3, CPU)
    published, literal = variants[step.PUBLISHED](), variants[step.LITERAL]()
    assert step.largest_difference(published, literal) > 0
    torch.testing.assert_close(published.student, literal.student, atol=0.02, rtol=0.05)


def test_ours_works_less_than_the_literal_step(small):
    variants = step.make_variants(small, 1, CPU)
    forward, literal, ours, cached = (
        step.count_flops(variants[name]) for name in (step.FORWARD, step.LITERAL, step.OURS, "ours, cached")
    )
    assert cached < ours < 0.8 * literal
    # Three forwards, and two backwards from behind the first block's adapter.
    assert 4 < literal / forward < 5.5


@pytest.mark.parametrize("megabytes", [1, 8])
def test_memory_is_the_most_at_once(megabytes):
    floats = megabytes * 2**18

    def call():
        first = torch.ones(floats)
        second = first + 1
        del first
        return (second * 2).sum()

    peak, result = step.peak_memory(call, CPU)
    assert result == 4 * floats
    assert peak == pytest.approx(2 * megabytes * 2**20, rel=0.01)


def test_the_table_and_the_file(run, tmp_path, capsys):
    assert run("--batch-sizes", "2", "3", "--json", str(tmp_path / "figures.json")) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [table["batch"] for table in figures["tables"]] == [2, 3]
    for table in figures["tables"]:
        rows = table["variants"]
        assert list(rows) == [
            "forward",
            "one adapter",
            "published",
            "literal",
            "ours",
            "ours, cached",
        ]
        assert rows["forward"]["forwards"] == 1
        assert rows["literal"]["of-literal"] == rows["published"]["of-published"] == 1
        assert all(row["samples-per-second"] > 0 and row["peak-bytes"] > 0 for row in rows.values())
        assert table["difference"] <= 2e-5
    assert "CPU threads" in figures["machine"]
    printed = capsys.readouterr().out
    assert "batch 3" in printed
    assert "passed: our step and the literal one differ by" in printed


def test_another_step_fails(run, monkeypatch, capsys):
    real = step.mkd_step

    def wrong(*arguments):
        outcome = real(*arguments)
        return replace(outcome, losses=outcome.losses + 1e-3)

    monkeypatch.setattr(step, "mkd_step", wrong)
    assert run("--batch-sizes", "2") == 1
    assert "FAILED" in capsys.readouterr().out
