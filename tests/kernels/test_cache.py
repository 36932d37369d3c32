"""Machine code that is kept on disk is used where it is whole and belongs to the present sources, and nowhere else."""

import ast

import pytest

from tests.test_imports import PACKAGE, imported_modules

machine_code = pytest.importorskip("charrnn.kernels.cache", reason="numba is not installed", exc_type=ImportError)


def doubled(x):
    return x + x


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    return tmp_path


def was_kept():
    """Compile `doubled` as another process would; whether it came from disk."""
    function = machine_code.cached_jit()(doubled)
    assert function(3) == 6
    return bool(function.stats.cache_hits)


def test_machine_code_is_kept(folder):
    assert [was_kept(), was_kept()] == [False, True]


@pytest.mark.parametrize("suffix", ["nbc", "nbi"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:100], lambda data: b"", lambda data: b"x"]
)
def test_a_damaged_file_is_compiled_anew_and_replaced(folder, suffix, damage):
    was_kept()
    for path in folder.rglob(f"*.{suffix}"):
        path.write_bytes(damage(path.read_bytes()))
    was_kept()
    assert was_kept()


@pytest.mark.parametrize("place", range(0, 4000, 500))
def test_any_wrong_byte_is_noticed(folder, place):
    """What is not machine code must never run as such."""
    was_kept()
    (path,) = folder.rglob("*.nbc")
    data = path.read_bytes()
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert not was_kept()
    assert path.read_bytes() == data or was_kept()


@pytest.mark.parametrize("name", machine_code.SOURCES)
def test_code_of_other_sources_is_not_used_and_replaced(folder, tmp_path, monkeypatch, name):
    was_kept()
    monkeypatch.setattr(machine_code, "PACKAGE", tmp_path)
    for other in machine_code.SOURCES:
        text = (PACKAGE / f"{other}.py").read_text(encoding="utf-8")
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / f"{other}.py").write_text(text + "# new\n" * (other == name), encoding="utf-8")
    machine_code._sources.cache_clear()
    try:
        assert [was_kept(), was_kept()] == [False, True]
    finally:
        machine_code._sources.cache_clear()
    assert len(list(folder.rglob("*.nb?"))) == 1


def test_the_sources_are_all_that_compiled_code_imports():
    for name in machine_code.SOURCES:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        used = {name.removeprefix("charrnn.").replace(".", "/") for name in imported_modules(tree)}
        assert used <= {
            *machine_code.SOURCES,
            "atomic",
            "config",
            "types",
            "generation/sampling_params",
            "generation/pipeline",
            "kernels/fused",
        }  # not read when compiled


def test_a_full_disk_costs_only_the_next_process_its_time(folder, monkeypatch):
    def full(path, blocks, sync):
        path.write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("charrnn.atomic.write_new", full)
    assert not was_kept()
    assert not [path for path in folder.rglob("*") if path.is_file()]
