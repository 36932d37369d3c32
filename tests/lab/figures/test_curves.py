import numpy as np
import pytest

from charrnn import lab


@pytest.mark.parametrize("smooth", [1, 2, 4])
def test_learning_shows_means_at_the_steps_where_they_are_known(smooth):
    figure = lab.plot_learning([4.0, 3.0, 2.0, 1.0], {"nothing": 4.2, "counting": 2.5}, "Title", smooth)
    axes = figure.figure.axes[0]
    x, y = axes.lines[0].get_data()
    assert x.tolist() == list(range(smooth, 5))
    assert y == pytest.approx([np.mean([4.0, 3.0, 2.0, 1.0][i - smooth : i]) for i in x])
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [4.2, 2.5]
    assert [text.get_text() for text in axes.texts] == ["nothing: 4.20", "counting: 2.50"]
    assert axes.get_ylim()[1] > 4.2
    assert figure.alt.endswith(f"from {y[0]:.2f} to {y[-1]:.2f}; nothing 4.20; counting 2.50.")
