"""Who may import whom: the table of the design, read from the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import charrnn

PACKAGE = Path(charrnn.__file__).parent
CHECKPOINT = PACKAGE.parent / "checkpoints" / "shakespeare-lstm"
GROUND = {"types", "errors", "atomic"}  # they import nothing of ours
LIBRARY = GROUND | {"config", "kernels", "data", "device", "models", "checkpoint", "generation", "training", "api"}
MAY_IMPORT = {
    **{room: set() for room in sorted(GROUND)},
    "config": GROUND,
    "kernels": GROUND | {"config"},
    "data": GROUND | {"config"},
    "device": GROUND | {"config"},
    "models": GROUND | {"config", "data", "kernels"},
    "checkpoint": GROUND | {"config", "data", "models"},
    "generation": GROUND | {"config", "data", "device", "models", "kernels", "checkpoint"},
    "training": LIBRARY - {"api"},
    "api": LIBRARY,
    "lab": LIBRARY,
    "bench": LIBRARY,
    "cli": LIBRARY | {"charrnn"},
    "__main__": {"cli"},
    "__init__": set(),
}
WITHIN_LAB = {
    "profiles": set(),
    "probes": set(),
    "figures": {"probes"},
    "panels": {"figures", "probes"},
    "exercises": set(),
    "__init__": set(),
}


def imported_modules(tree: ast.AST) -> list[str]:
    """The modules of this package that code imports."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [node.module] if node.module != "charrnn" else [f"charrnn.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "charrnn"]


def imported_rooms(tree: ast.AST) -> set[str]:
    """The rooms that code imports: a folder or a module right below `charrnn`."""
    return {name.split(".")[1] if "." in name else "charrnn" for name in imported_modules(tree)}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_the_table_allows(path):
    room, *rest = path.relative_to(PACKAGE).with_suffix("").parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if room == "cli":  # inside a command it may import anything
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    assert imported_rooms(tree) <= MAY_IMPORT[room] | {room}
    if room == "lab":
        inside = {name.split(".")[2] for name in imported_modules(tree) if name.startswith("charrnn.lab.")}
        assert inside <= WITHIN_LAB[rest[0]] | {rest[0]}


@pytest.mark.parametrize("path", sorted((PACKAGE / "lab" / "probes").glob("*.py")), ids=lambda path: path.name)
def test_probes_neither_draw_nor_show(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [name.name for node in imports for name in node.names] + [getattr(node, "module", "") for node in imports]
    assert not [name for name in names if (name or "").split(".")[0] in ("matplotlib", "ipywidgets", "IPython")]


def test_the_reader_of_imports_sees_every_form():
    lines = (
        "import charrnn.lab.figures, charrnn",
        "from charrnn.config import x",
        "from charrnn import api",
        "import re",
    )
    assert imported_rooms(ast.parse("\n".join(lines))) == {"lab", "config", "api", "charrnn"}


def test_the_library_never_prints():
    rooms = {"cli", "lab", "bench"}
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
from charrnn.cli.main import main
try:
    assert main(sys.argv[1:]) == 0
finally:
    assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_public_names_exist():
    assert all(hasattr(charrnn, name) for name in charrnn.__all__)
