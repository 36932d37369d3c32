"""The panel of notebook 05: every switch, Train and Stop."""

import itertools

import numpy as np
import pytest

from charrnn import lab
from charrnn.lab.panels.ablation import OPTIMIZERS, SCHEDULES

TEXT = np.random.default_rng(0).integers(7, size=2000, dtype=np.uint8)


@pytest.fixture
def panel():
    return lab.AblationPanel(TEXT, TEXT[:200], 7, steps=6, every=10)


def run(panel):
    panel.start_button.click()
    panel.wait()
    return lab.losses_of(panel.records)


@pytest.mark.parametrize(("optimizer", "schedule"), [*zip(OPTIMIZERS, itertools.cycle(SCHEDULES))])
def test_every_choice_trains(panel, optimizer, schedule):
    panel.controls["optimizer"].value, panel.controls["schedule"].value = optimizer, schedule
    panel.controls["dropout"].value = 0.3
    panel.controls["clip"].value = panel.controls["ema"].value = schedule == "cosine"
    losses = run(panel)
    assert losses == lab.losses_of(lab.records_of(lab.small_trainer(TEXT, TEXT[:200], 7, **panel.settings())))
    assert f"validation {losses[-1]:.3f} at step 6" in panel.image.value
    assert "data:image/png;base64," in panel.image.value


def test_what_the_switches_say():
    settings = lab.AblationPanel(TEXT, TEXT[:200], 7).settings()
    assert settings["grad_clip"] is None
    assert settings["ema_decay"] == settings["output_dropout"] == 0
    panel = lab.AblationPanel(TEXT, TEXT[:200], 7)
    panel.controls["clip"].value = panel.controls["ema"].value = True
    panel.controls["optimizer"].value = "sgd"
    settings = panel.settings()
    assert settings["grad_clip"] < 1
    assert settings["ema_decay"] > 0
    assert settings["beta1"] == 0  # plain


def test_the_run_before_stays_in_the_figure(panel):
    first = run(panel)
    panel.controls["learning_rate"].value = 0.1
    second = run(panel)
    assert second != first
    assert f"validation of the run before {first[-1]:.3f} at step 6" in panel.image.value


def test_stop_stops_and_train_goes_again():
    panel = lab.AblationPanel(TEXT, TEXT[:200], 7, steps=10**6, every=10)
    assert panel.stop_button.disabled
    panel.start_button.click()
    panel.start_button.click()  # while one is going on nothing happens
    assert panel.start_button.disabled
    panel.stop_button.click()
    assert panel.wait(20)
    assert not panel.start_button.disabled
    assert panel.stop_button.disabled


def test_a_run_that_diverges_says_so(panel):
    settings = panel.settings() | {"optimizer": "sgd", "learning_rate": 1e38}  # beyond where the slider ends
    panel.settings = lambda: settings
    run(panel)
    assert 'role="alert"' in panel.words.value
    assert "diverged" in panel.words.value
    assert not panel.start_button.disabled


def test_controls_have_names(panel):
    for name, control in panel.controls.items():
        assert f"t-{name}" in control._dom_classes
    assert "t-train" in panel.start_button._dom_classes


def test_an_attempt_before_anything_was_learned():
    assert "nothing learned yet" in lab.plot_attempt([]).alt
