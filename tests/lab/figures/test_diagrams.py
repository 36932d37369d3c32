import pytest

from charrnn import lab


@pytest.mark.parametrize("backward", [False, True])
def test_the_network_has_a_column_for_each_character(backward):
    figure = lab.plot_unrolled("a\n", "\nb", backward)
    texts = [artist.get_text() for artist in figure.figure.axes[0].texts]
    assert [text for text in texts if text.startswith("reads")] == ["reads a", "reads newline"]
    assert [text for text in texts if text.startswith("must")] == ["must predict newline", "must predict b"]
    assert texts.count("$W_{hh}$") == texts.count("$W_{ih}$") == texts.count("$W_{out}$") == 2
    assert ("back" in figure.alt) is backward


def test_forward_and_backward_differ_by_more_than_colour():
    def arrows(backward):
        texts = lab.plot_unrolled("ab", "bc", backward).figure.axes[0].texts
        return [artist for artist in texts if getattr(artist, "arrow_patch", None)]

    forward, back = arrows(False), arrows(True)
    assert {arrow.arrow_patch.get_linestyle() for arrow in forward} == {"-"}
    assert {arrow.arrow_patch.get_linestyle() for arrow in back} == {"--"}
    assert [(arrow.xyann, arrow.xy) for arrow in forward] == [(arrow.xy, arrow.xyann) for arrow in back]


def test_a_target_for_each_input():
    with pytest.raises(ValueError, match="expected a target for each input, got 1 for 2"):
        lab.plot_unrolled("ab", "b")


def test_without_targets_there_are_states_alone():
    figure = lab.plot_unrolled("abc")
    texts = [artist.get_text() for artist in figure.figure.axes[0].texts]
    assert [text for text in texts if text.startswith("$h_")] == ["$h_{0}$", "$h_{1}$", "$h_{2}$", "$h_{3}$"]
    assert not [text for text in texts if text.startswith(("must", "$z", "$L"))]
    assert "logits" not in figure.alt
