"""The files around the code: pins, README, the shipped checkpoint, notebooks."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

import charrnn
from charrnn.checkpoint import load_checkpoint
from charrnn.lab.exercises import EXERCISES

ROOT = Path(__file__).parents[1]
SHIPPED = [ROOT / "checkpoints" / name for name in ("shakespeare-lstm", "shakespeare-rnn")]
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def ranges() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_every_dependency_is_pinned_within_its_range_and_nothing_else_is():
    assert {requirement.name for requirement in ranges()} == set(pins())
    for requirement in ranges():
        assert requirement.specifier.contains(pins()[requirement.name]), requirement


def test_torch_is_pinned_here_and_open_there():
    assert pins()["torch"] == "2.13.0"
    assert str(next(r.specifier for r in ranges() if r.name == "torch")) == ">=2.9"


def test_conda_has_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert [name.split("=")[0] for name in conda] == ["python", "pip"]
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}


def readme_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    ("example", "lines"), list(zip(readme_examples(), (5, 20), strict=True)), ids=("first", "second")
)
def test_an_example_in_the_readme_runs(example, lines, tmp_path, monkeypatch, capsys):
    assert len(example.strip().splitlines()) <= lines
    shutil.copytree(ROOT / "checkpoints" / "shakespeare-lstm", tmp_path / "checkpoints" / "shakespeare-lstm")
    monkeypatch.chdir(tmp_path)
    short = re.sub(r"max_seconds(\W+)\d+", r"max_steps\g<1>2", example)
    assert short != example
    exec(compile(short, "README.md", "exec"), {})
    assert re.search("ROMEO:|JULIET:", capsys.readouterr().out)


def test_the_tree_in_the_readme_names_every_file():
    tree = re.search(r"^charrnn/\n(.*?)^notebooks/", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)[1]
    named, folders = set(), []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[: depth - 1], name]
        named.add("".join(folders))
    package = ROOT / "charrnn"
    files = {path.relative_to(package) for path in package.rglob("*.py") if path.stem[0] != "_"}
    lab = {Path(*path.parts[:2]) for path in files if path.parts[0] == "lab"}
    expected = {path for path in files if path.parts[0] != "lab"} | lab
    expected |= {path.parent for path in expected} - {Path(".")}
    assert {name.rstrip("/") for name in named} == {str(path.as_posix()) for path in expected}


def test_the_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", text)) <= targets
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link


def test_the_readme_counts_the_trials_of_the_speedrun():
    trials = json.loads((ROOT / "config" / "speedrun.json").read_text(encoding="utf-8"))["trials"]
    assert f"\n{len(trials)} trials chose these settings" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_checkpoint_is_small_and_does_what_it_says(path):
    assert sum(file.stat().st_size for file in path.iterdir()) < 2_000_000
    assert not (path / "optimizer.safetensors").exists()
    checkpoint = load_checkpoint(path)
    result = charrnn.evaluate(charrnn.load_model(path))
    assert result.bpc == pytest.approx(checkpoint.training_state["val_bpc"], abs=1e-4)
    assert result.loss == pytest.approx(checkpoint.training_state["val_loss"], abs=1e-4)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_checkpoint_was_trained_by_the_config_that_says_so(path):
    told = charrnn.load_config(ROOT / "config" / f"{path.name}.yaml")
    trained = load_checkpoint(path).config
    assert (trained.model, trained.training, trained.data) == (told.model, told.training, told.data)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", [*PAGES, *SOLUTIONS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_notebook_is_committed_as_it_ran(path):
    code = code_cells(path)
    assert path.stat().st_size <= 500_000
    counts = enumerate((cell.execution_count for cell in code), 1)  # None where a widget's output was taken out
    assert all(count in (None, place) for place, count in counts), "not executed top to bottom"
    assert "widgets" not in nbformat.read(path, as_version=4).metadata
    assert all(len(cell.source.splitlines()) <= 25 for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert WIDGET not in json.dumps(outputs)
    for output in outputs:
        page = output.get("data", {}).get("text/html", "")
        assert "image/png" not in output.get("data", {})  # JupyterLab, Voilà and nbconvert ignore its alt text
        assert page.count("<img ") == len(re.findall(r'<img alt="[^"]+" src="data:image/png;base64,', page))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_of_the_course_is_read_first_and_run_second(path):
    notebook, code = nbformat.read(path, as_version=4), code_cells(path)
    assert "CHARRNN_PROFILE" in code[0].source or "profile()" in code[0].source
    prose = sum(len(cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
    assert prose > sum(len(cell.source) for cell in code)


def exercises_in(path: Path) -> set[str]:
    return set(re.findall(r'check\("(\w+)"', "\n".join(cell.source for cell in code_cells(path))))


def test_every_exercise_has_its_place_and_its_solution():
    solved = {path.name: exercises_in(path) for path in SOLUTIONS}
    asked = {path.name: exercises_in(path) for path in PAGES if exercises_in(path)}
    assert asked == solved
    assert all(len(names) >= 3 for names in asked.values())
    assert sorted(name for names in asked.values() for name in names) == sorted(EXERCISES)
    for path in SOLUTIONS:
        source = "\n".join(cell.source for cell in code_cells(path))
        assert source.count("passed") >= len(solved[path.name])


def test_no_trace_of_a_pickle():
    for path in (ROOT / "charrnn").rglob("*.py"):
        assert not re.search(
            r"\bimport pickle\b|(?<!safetensors\.)\btorch\.(load|save)\b", path.read_text(encoding="utf-8")
        ), path


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_sample_takes_the_run_trained_last_else_the_lstm_that_ships(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)

    def taken(**ages):
        for name, age in ages.items():
            path = tmp_path / "checkpoints" / name.replace("_", "-") / "config.json"
            path.parent.mkdir(parents=True)
            path.touch()
            os.utime(path, (10**9 - age, 10**9 - age))
        command = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/ready", "sample"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()[-1]

    assert taken(shakespeare_lstm=2, shakespeare_rnn=1) == "checkpoints/shakespeare-lstm"
    assert taken(older=4, mine=3) == "checkpoints/mine"
