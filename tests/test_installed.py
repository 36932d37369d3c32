"""Whatever numba fails at, training and sampling go on with PyTorch's own layers, after one warning."""

import json
import sys
import warnings

import pytest
import torch

import charrnn
from charrnn import installed
from charrnn.api import Run
from charrnn.cli import main
from charrnn.config import ConfigError
from charrnn.models import build_model
from charrnn.stepping import ModelStepper

pytest.importorskip("numba", reason="numba is not installed")


def fails(*arguments, **options):
    raise TypeError("numba does not know this numpy\nand says so at length")


def at_import(monkeypatch):
    for name in ("compiled", "folded"):
        monkeypatch.setitem(sys.modules, f"charrnn.{name}", None)
        monkeypatch.delattr(charrnn, name, raising=False)


def at_construction(monkeypatch):
    """As where no folder for machine code can be written."""
    for name in ("machine_code", "elementwise", "compiled", "folded", "batching"):
        monkeypatch.delitem(sys.modules, f"charrnn.{name}", raising=False)
        monkeypatch.delattr(charrnn, name, raising=False)
    monkeypatch.setattr("numba.core.caching.FunctionCache.__init__", fails)


def at_first_call(monkeypatch):
    monkeypatch.setattr("charrnn.compiled._step_backward", fails)
    monkeypatch.setattr("charrnn.folded._run", fails)
    monkeypatch.setattr("charrnn.compiled.prepare", sys.modules["charrnn.compiled"].prepare.__wrapped__)


@pytest.fixture(params=[at_import, at_construction, at_first_call], ids=lambda how: how.__name__)
def broken(request, monkeypatch):
    import charrnn.compiled
    import charrnn.folded  # noqa: F401 (loaded, so that what a test removes comes back)

    monkeypatch.setattr(installed, "fault", None)
    request.param(monkeypatch)


@pytest.mark.parametrize("backend", ["auto", "compiled"])
def test_a_run_and_its_texts(tiny, tmp_path, broken, backend):
    run = Run.start(tiny.override({"backend": backend, "max_steps": 2}), tmp_path / "run")
    with pytest.warns(UserWarning, match="numba cannot be used here"):
        generator = run.fit()
    texts = generator.generate_batch(["a", "b"], 10, seed=1)  # without a second warning
    assert run.trainer.progress.backend in ("native", "fused")
    assert texts[0] == generator.generate("a", 10, seed=1)
    with pytest.raises(ConfigError, match="needs numba"):  # now it is known
        Run.start(tiny.override({"backend": "compiled"}))


def test_a_text_alone(tiny, broken):
    generator = charrnn.create_model(charrnn.CharTokenizer("ab\n"), hidden_size=4)
    with pytest.warns(UserWarning, match="numba cannot be used here"):
        assert isinstance(generator._stepper(1), ModelStepper)
    assert len(generator.generate("a", 5)) == 6


def test_a_model_whose_backend_was_set(tiny, broken):
    model = build_model(tiny.model, 5).eval()
    native, _ = model(torch.ones(2, 3, dtype=torch.int64))
    model.backend = "compiled"
    with pytest.warns(UserWarning, match="numba cannot be used here"):
        logits, _ = model(torch.ones(2, 3, dtype=torch.int64))
    assert torch.equal(logits, native)
    assert torch.equal(model(torch.ones(2, 3, dtype=torch.int64))[0], native)


@pytest.mark.filterwarnings("default")
def test_the_devices_say_why(broken, capfd):
    assert main(["devices", "--json"]) == 0
    output = capfd.readouterr()
    assert json.loads(output.out)[-1]["numba"] == installed.fault
    assert "Error: " in installed.fault
    assert output.err.count("numba cannot be used here") == 1


def test_the_devices_say_that_it_works(capfd):
    assert main(["devices", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[-1]["numba"] == "works"


def test_without_numba_nothing_is_said_but_by_the_devices(tiny, monkeypatch, capfd):
    monkeypatch.setattr(installed, "_is_installed", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run.start(tiny.override({"backend": "auto", "max_steps": 2})).fit().generate("a", 3)
    assert main(["devices", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[-1]["numba"] == "not installed: pip install numba"
