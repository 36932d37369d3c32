"""If numba fails at any point, training and sampling go on with PyTorch's own layers, after one warning."""

import json
import sys
import warnings

import pytest
import torch

import charrnn
from charrnn.cli.main import main
from charrnn.errors import ConfigError
from charrnn.generation.decoder import ModelDecoder
from charrnn.kernels import availability
from charrnn.models.build import build_model
from charrnn.training.run import Run

pytest.importorskip("numba", reason="numba is not installed")


def fails(*arguments, **options):
    raise TypeError("numba does not know this numpy\nand says so at length")


def at_import(monkeypatch):
    for package, name in ((charrnn.kernels, "numba_cells"), (charrnn.generation, "numba_decoder")):
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", None)
        monkeypatch.delattr(package, name, raising=False)


def at_construction(monkeypatch):
    """As where no folder for machine code can be written."""
    kernels = [(charrnn.kernels, name) for name in ("cache", "numba_math", "numba_cells")]
    for package, name in [*kernels, *((charrnn.generation, name) for name in ("numba_decoder", "batch_decoder"))]:
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    monkeypatch.setattr("numba.core.caching.FunctionCache.__init__", fails)


def at_first_call(monkeypatch):
    monkeypatch.setattr("charrnn.kernels.numba_cells._step_backward", fails)
    monkeypatch.setattr("charrnn.generation.numba_decoder._run", fails)
    monkeypatch.setattr(
        "charrnn.kernels.numba_cells.prepare", sys.modules["charrnn.kernels.numba_cells"].prepare.__wrapped__
    )


@pytest.fixture(params=[at_import, at_construction, at_first_call], ids=lambda how: how.__name__)
def broken(request, monkeypatch):

    monkeypatch.setattr(availability, "fault", None)
    request.param(monkeypatch)


@pytest.mark.parametrize("backend", ["auto", "numba"])
def test_a_run_and_its_texts(tiny, tmp_path, broken, backend):
    run = Run.start(tiny.override({"backend": backend, "max_steps": 2}), tmp_path / "run")
    with pytest.warns(UserWarning, match="numba cannot be used here"):
        generator = run.fit()
    texts = generator.generate_batch(["a", "b"], 10, seed=1)  # without a second warning
    assert run.trainer.progress.backend in ("torch", "fused")
    assert texts[0] == generator.generate("a", 10, seed=1)
    with pytest.raises(ConfigError, match="needs numba"):  # now it is known
        Run.start(tiny.override({"backend": "numba"}))


def test_a_text_alone(tiny, broken):
    generator = charrnn.create_model(charrnn.CharTokenizer("ab\n"), hidden_size=4)
    with pytest.warns(UserWarning, match="numba cannot be used here"):
        assert isinstance(generator._decoder(1), ModelDecoder)
    assert len(generator.generate("a", 5)) == 6


def test_a_model_whose_backend_was_set(tiny, broken):
    model = build_model(tiny.model, 5).eval()
    expected, _ = model(torch.ones(2, 3, dtype=torch.int64))
    model.backend = "numba"
    with pytest.warns(UserWarning, match="numba cannot be used here"):
        logits, _ = model(torch.ones(2, 3, dtype=torch.int64))
    assert torch.equal(logits, expected)
    assert torch.equal(model(torch.ones(2, 3, dtype=torch.int64))[0], expected)


@pytest.mark.filterwarnings("default")
def test_the_devices_say_why(broken, capfd):
    assert main(["devices", "--json"]) == 0
    output = capfd.readouterr()
    assert json.loads(output.out)[-1]["numba"] == availability.fault
    assert "Error: " in availability.fault
    assert output.err.count("numba cannot be used here") == 1


def test_the_devices_say_that_it_works(capfd):
    assert main(["devices", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[-1]["numba"] == "works"


def test_without_numba_nothing_is_said_but_by_the_devices(tiny, monkeypatch, capfd):
    monkeypatch.setattr(availability, "_is_installed", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run.start(tiny.override({"backend": "auto", "max_steps": 2})).fit().generate("a", 3)
    assert main(["devices", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[-1]["numba"] == "not installed: pip install numba"
