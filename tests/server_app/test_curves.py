"""What can be read off the curves."""

from itertools import pairwise

import pytest

from server_app.curves import draw_training


@pytest.mark.parametrize("lowest", [0.9, 0.5, 0.05, 2e-3, 1e-5])
def test_no_label_of_the_losses_axis_stands_on_another(lowest):
    """A run's losses lie within one decade, or over five."""
    rows = [
        {"round": number, "partition": 0, "ce-student": 1 / number, "kl-student": lowest / number}
        for number in (1, 2)
    ]
    figure = draw_training(rows)
    figure.canvas.draw()
    low, high = figure.axes[0].get_ylim()
    labels = [
        label.get_window_extent()
        for value, label in zip(figure.axes[0].get_yticks(), figure.axes[0].get_yticklabels(), strict=True)
        if low <= value <= high
    ]
    assert len(labels) >= 2
    assert not [(one, other) for one, other in pairwise(labels) if one.overlaps(other)]
