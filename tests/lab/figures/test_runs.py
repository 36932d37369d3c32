import json
import re

import pytest
from matplotlib import colors

from charrnn.lab.figures.base import BLUE, ORANGE, save_figure
from charrnn.lab.figures.runs import load_runs, plot_learning_rate, plot_run, plot_runs
from charrnn.training.run import Run


def logged(step, loss, rate=1e-3, norm=0.5):
    return {"event": "logged", "step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm}


def evaluated(step, loss, seconds=1.0):
    return {"event": "evaluated", "step": step, "loss": loss, "seconds": seconds}


RECORDS = [
    logged(10, 3.0, 1e-3, 2.0),
    evaluated(10, 2.5, 1.0),
    logged(20, 2.0, 2e-3, 0.5),
    evaluated(20, 1.75, 2.0),
    logged(30, 1.5, 0.0, 0.25),
    evaluated(30, 2.25, 3.0),
]


def write_run(folder, records, tail=""):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return folder


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


# ------------------------------------------------------------------------------------------------------------ one run


def test_a_run_is_drawn_as_it_was_told():
    figure = plot_run(RECORDS, "mine")
    losses, rate, norm = figure.figure.axes
    assert line(losses, "training").get_xydata().tolist() == [[10, 3], [20, 2], [30, 1.5]]
    assert line(losses, "validation").get_xydata().tolist() == [[10, 2.5], [20, 1.75], [30, 2.25]]
    assert rate.lines[0].get_xydata().tolist() == [[10, 1e-3], [20, 2e-3], [30, 0]]
    assert norm.lines[0].get_xydata().tolist() == [[10, 2], [20, 0.5], [30, 0.25]]
    assert norm.get_yscale() == "log"
    assert losses.get_title() == "mine"


def test_the_best_loss_is_marked_and_the_curves_differ_in_more_than_colour():
    losses = plot_run(RECORDS).figure.axes[0]
    best = line(losses, "best 1.7500 at step 20")
    assert best.get_xydata().tolist() == [[20, 1.75]]
    assert best.get_marker() == "*"
    training, validation = line(losses, "training"), line(losses, "validation")
    assert [curve.get_color() for curve in (training, validation)] == [BLUE, ORANGE]
    assert training.get_linestyle() != validation.get_linestyle()


def test_the_alt_text_is_drawn_from_the_data():
    assert plot_run(RECORDS).alt == (
        "Three line charts over 30 steps: training loss goes from 3.000 to 1.500; validation loss goes from 2.500 to "
        "2.250; best 1.7500 at step 20; learning rate at most 0.002, 0 at the end; gradient norm before clipping "
        "between 0.25 and 2, 0.25 at the end."
    )


def test_a_run_in_which_nothing_was_evaluated_or_logged():
    figure = plot_run([record for record in RECORDS if record["event"] == "logged"])
    assert len(figure.figure.axes[0].lines) == 1
    assert "no validation loss" in figure.alt
    figure = plot_run([evaluated(5, 2.0)])
    assert figure.alt == (
        "Three line charts over 5 steps: no training loss; validation loss 2.000; best 2.0000 at step 5; no learning "
        "rate; no gradient norm."
    )
    assert figure.png()


def test_a_run_is_read_while_it_goes_on(tmp_path):
    folder = write_run(tmp_path / "run", [*RECORDS, {"event": "finished", "step": 30}], tail='{"event": "logged", "st')
    assert load_runs([folder]) == {"run": RECORDS}


def test_what_a_trainer_writes_can_be_drawn(tiny, tmp_path):
    Run.start(tiny, tmp_path / "run").fit()
    (records,) = load_runs([tmp_path / "run"]).values()
    assert "over 12 steps" in plot_run(records).alt
    assert "12 steps" in plot_runs({"run": records}).alt


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (None, "run.: expected the directory of a run, got no metrics.jsonl in it"),
        ([], "run: expected numbers to draw, got none in metrics.jsonl"),
        ([{"event": "finished", "step": 3}], "run: expected numbers to draw, got none in metrics.jsonl"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, records, message):
    if records is not None:
        write_run(tmp_path / "run", records)
    with pytest.raises(ValueError, match=message):
        load_runs([tmp_path / "run"])


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    folders = []
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        folders.append(write_run(tmp_path / parent / "run", RECORDS))
    other = write_run(tmp_path / "other", RECORDS)
    assert list(load_runs([*folders, other])) == [*map(str, folders), "other"]


# ------------------------------------------------------------------------------------------------------- several runs


def test_runs_are_compared_over_seconds_and_over_steps():
    slow = [evaluated(step, 2.5 - step / 100, seconds=2.0 * step) for step in (10, 20)]
    figure = plot_runs({"fast": RECORDS, "slow": slow})
    seconds, steps = figure.figure.axes
    assert line(seconds, "fast").get_xydata().tolist() == [[1, 2.5], [2, 1.75], [3, 2.25]]
    assert line(seconds, "slow").get_xydata().tolist() == [[20, 2.4], [40, 2.3]]
    assert line(steps, "slow").get_xydata().tolist() == [[10, 2.4], [20, 2.3]]
    looks = [(curve.get_color(), curve.get_linestyle(), curve.get_marker()) for curve in steps.lines]
    assert all(len(set(each)) == 2 for each in zip(*looks, strict=True))
    assert "fast has its best, 1.7500, after 2 s and 20 steps; slow has its best, 2.3000, after 40 s" in figure.alt


def test_a_run_that_was_never_evaluated_is_said():
    alone = [record for record in RECORDS if record["event"] == "logged"]
    assert plot_runs({"fast": RECORDS, "new": alone}).alt.endswith("new was never evaluated.")
    with pytest.raises(ValueError, match="new: expected a validation loss to compare, got none yet"):
        plot_runs({"new": alone})


def test_more_runs_than_can_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="expected at most 4 runs to compare in one figure, got 5"):
        plot_runs({str(number): RECORDS for number in range(5)})


# -------------------------------------------------------------------------------------------------- learning-rate test


def test_the_suggested_rate_is_marked():
    rates, losses = [1e-4, 1e-3, 1e-2, 1e-1], [4.0, 3.0, 2.0, 9.0]
    figure = plot_learning_rate(rates, losses, suggested=1e-3, smoothed=[4.0, 3.0, 2.5, 5.0])
    (axes,) = figure.figure.axes
    assert line(axes, "loss").get_xydata().tolist() == [list(point) for point in zip(rates, losses, strict=True)]
    assert line(axes, "steepest fall: 0.001").get_xdata()[0] == 1e-3
    assert colors.same_color(line(axes, "smoothed").get_color(), ORANGE)
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[1] < 9  # where it diverges there is nothing to read
    assert figure.alt == (
        "Line chart of the loss over the learning rate: 4.00 at 0.0001, lowest 2.00 at 0.01; it falls most steeply at "
        "0.001; it ends with 9.00 at 0.1."
    )


def test_a_loss_that_never_falls_has_nothing_to_mark():
    figure = plot_learning_rate([1e-3, 1e-2], [2.0, 2.0])
    assert len(figure.figure.axes[0].lines) == 1
    assert "steeply" not in figure.alt


# -------------------------------------------------------------------------------------------------------------- files


def test_a_figure_is_written_as_its_name_ends(tmp_path):
    figure = plot_run(RECORDS)
    save_figure(figure, tmp_path / "a.PNG")
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")
    save_figure(figure, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "<svg" in drawn
    assert "training loss goes from 3.000 to 1.500" in re.sub(r"\s+", " ", drawn)
    for name in ("b.svg", "a.svg"):
        save_figure(plot_run(RECORDS), tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert (tmp_path / "b.svg").read_text(encoding="utf-8") == drawn
    with pytest.raises(ValueError, match=r"a.pdf: expected a file that ends in .png or .svg"):
        save_figure(figure, tmp_path / "a.pdf")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a.PNG", "a.svg", "b.svg"]


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "plot.png"
    path.write_bytes(b"old")
    figure = plot_run(RECORDS)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no room")))
    with pytest.raises(OSError, match="no room"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
