import pytest

from charrnn.cli.main import main
from tests.lab.figures.test_runs import RECORDS, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", RECORDS)


def refused(capfd, *arguments):
    """Exit code and error of a command that must fail."""
    try:
        code = main(["plot", *map(str, arguments)])
    except SystemExit as error:
        code = error.code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return code, err


def test_a_run_is_drawn_beside_its_numbers(run, capfd):
    assert main(["plot", str(run)]) == 0
    out, err = capfd.readouterr()
    assert out == f"{run / 'plot.png'}\n"
    assert "best 1.7500 at step 20" in err
    assert (run / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_runs_are_compared_in_the_file_that_is_named(run, tmp_path, capfd):
    other = write_run(tmp_path / "other", RECORDS)
    assert main(["plot", str(run), str(other), "--out", str(tmp_path / "both.svg")]) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'both.svg'}\n"
    assert "run has its best" in err
    assert "other has its best" in err
    assert "<svg" in (tmp_path / "both.svg").read_text(encoding="utf-8")


def test_what_cannot_be_drawn_is_said(run, tmp_path, capfd):
    assert refused(capfd, run, "--out", tmp_path / "a.pdf")[0] == 2
    assert "ends in .png or .svg" in refused(capfd, run, "--out", tmp_path / "a.pdf")[1]
    assert "in an existing folder" in refused(capfd, run, "--out", tmp_path / "no" / "a.png")[1]
    assert refused(capfd, run, run) == (
        2,
        "charrnn: error: --out: expected a file for the figure of several runs, got none\n",
    )
    code, err = refused(capfd, tmp_path / "nowhere")
    assert code == 1
    assert "nowhere': expected the directory of a run, got no metrics.jsonl in it" in err


def test_without_the_libraries_it_says_what_to_install(run, capfd, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "charrnn.lab.figures.runs", None)
    code, err = refused(capfd, run)
    assert code == 1
    assert "plot: expected the libraries of the notebooks" in err
    assert "pip install" in err
