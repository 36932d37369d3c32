"""Who may import whom: the table of the design, read from the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import charrnn

PACKAGE = Path(charrnn.__file__).parent
CHECKPOINT = PACKAGE.parent / "checkpoints" / "shakespeare-lstm"
ANNEXES = {"lab", "serve", "bench"}
BELOW_API = {
    "atomic",
    "characters",
    "config",
    "tokenizer",
    "cells",
    "installed",
    "device",
    "synthetic",
    "sources",
    "corpus",
    "kernels",
    "models",
    "sampling_params",
    "transforms",
    "stepping",
    "beams",
    "sampling",
    "scoring",
    "schedules",
    "optimizers",
    "distributed",
    "stopwatch",
    "training",
    "checkpoint",
}
MAY_IMPORT = {
    "atomic": set(),
    "characters": set(),
    "config": set(),
    "tokenizer": set(),
    "cells": set(),
    "installed": set(),
    "device": {"config"},
    "synthetic": set(),
    "sources": {"atomic", "characters", "config", "synthetic", "tokenizer"},
    "corpus": {"config", "tokenizer", "sources"},
    "kernels": {"cells"},
    "machine_code": set(),
    "compiled": {"elementwise", "machine_code"},
    "models": {"config", "cells", "installed", "kernels", "compiled"},
    "sampling_params": {"config"},
    "transforms": {"sampling_params"},
    "stepping": {"device", "models"},
    "beams": {"transforms"},
    "elementwise": {"machine_code"},
    "folded": {"config", "elementwise", "machine_code", "transforms"},
    "batching": {"folded", "transforms"},
    "sampling": {"config", "tokenizer", "models", "stepping", "beams", "folded", "batching", "installed"}
    | {"sampling_params", "transforms"},
    "loading": {"checkpoint", "config", "device", "models", "sampling"},
    "scoring": {"models", "sampling"},
    "schedules": {"config"},
    "optimizers": {"config", "models"},
    "distributed": {"config", "models"},
    "stopwatch": set(),
    "training": {"stopwatch", "config", "device", "corpus", "models", "schedules", "optimizers", "distributed"},
    "checkpoint": {"atomic", "config", "tokenizer", "models"},
    "monitors": {"training", "checkpoint", "sampling", "atomic"},
    "api": BELOW_API | {"monitors", "loading"},
    **{annex: BELOW_API | {"monitors", "loading", "api", annex} for annex in ANNEXES},
    "console": {"characters", "config"},
    "repl": {"atomic", "config", "console", "sampling", "sampling_params", "tokenizer"},
    "cli_bench": BELOW_API | {"monitors", "api", "charrnn", "console"},
    "cli": BELOW_API | {"monitors", "loading", "api", "charrnn", "console", "cli_bench", "repl"},
    "__main__": {"cli"},
    "__init__": set(),
}


def imported_rooms(tree: ast.AST) -> set[str]:
    """The modules of this package that code imports, by the name of their room."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [node.module] if node.module != "charrnn" else [f"charrnn.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] if len(part) > 1 else "charrnn" for part in parts if part[0] == "charrnn"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_the_table_allows(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if room in ("cli", "cli_bench"):  # inside a command it may import anything
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    assert imported_rooms(tree) <= MAY_IMPORT[room]


def test_the_reader_of_imports_sees_every_form():
    lines = (
        "import charrnn.lab.figures, charrnn",
        "from charrnn.config import x",
        "from charrnn import api",
        "import re",
    )
    assert imported_rooms(ast.parse("\n".join(lines))) == {"lab", "config", "api", "charrnn"}


def test_the_library_never_prints():
    rooms = {"cli.py", "cli_bench.py", "console.py", "repl.py", "lab", "bench"}
    speaking = {path for path in modules() if path.relative_to(PACKAGE).parts[0] in rooms}
    for path in set(modules()) - speaking:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert "print" not in [call.id for call in calls if isinstance(call, ast.Name)], path


def test_import_charrnn_is_light():
    code = "import charrnn, sys; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    heavy = ["torch", "numba", "matplotlib", "ipywidgets", "IPython", "tensorboard", "fastapi", "prompt_toolkit"]
    result = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "CHECKPOINT", "--length", "5", "--seed", "1"]])
def test_a_text_is_written_without_pytorch(arguments):
    arguments = [str(CHECKPOINT) if argument == "CHECKPOINT" else argument for argument in arguments]
    code = """
import sys
from charrnn.cli import main
try:
    assert main(sys.argv[1:]) == 0
finally:
    assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_public_names_exist():
    assert all(hasattr(charrnn, name) for name in charrnn.__all__)
