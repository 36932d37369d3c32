import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import TrainingConfig
from charrnn.training.schedules import cosine, evaluations_since_best, one_cycle, plateau, rate_factor, step_decay

SHARES = st.floats(0, 1)
SCHEDULES = ["cosine", "onecycle", "plateau", "step", "constant"]


@given(st.sampled_from(SCHEDULES), SHARES, SHARES, st.floats(0, 100), st.lists(st.floats(0, 9)))
def test_every_schedule_stays_between_zero_and_the_peak(schedule, share, warmup, epoch, losses):
    config = TrainingConfig(schedule=schedule, warmup_frac=warmup, hold_frac=min(0.3, 1 - warmup))
    assert 0 <= rate_factor(config, share, epoch, losses) <= 1


def test_the_cosine_warms_up_holds_and_falls():
    shares = [0, 0.05, 0.1, 0.3, 0.6, 0.8, 1.0]
    assert [cosine(share, 0.1, 0.5) for share in shares] == pytest.approx([0.1, 0.55, 1, 1, 1, 0.5, 0])
    assert cosine(0, 0, 0) == 1


def test_one_cycle_climbs_to_its_peak_and_ends_at_its_end():
    shares = [0, 0.15, 0.3, 0.65, 1.0]
    assert [one_cycle(share, 0.3) for share in shares] == pytest.approx([0.04, 0.52, 1, 0.500002, 4e-6])
    assert one_cycle(0, 0) == 1
    assert one_cycle(1, 1) == 1


def test_one_cycle_is_that_of_torch():
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=101, cycle_momentum=False)
    for step in range(101):
        # torch peaks at step 0.3 * 101 - 1 of 0 … 100
        share = step / 29.3 * 0.3 if step < 29.3 else 0.3 + (step - 29.3) / (100 - 29.3) * 0.7
        assert one_cycle(share, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        if step < 100:
            theirs.step()


def test_step_decay_is_that_of_2015():
    """char-rnn: factor 0.97 for every epoch from the tenth on."""
    epochs = [0, 9.99, 10, 10.5, 11, 50]
    expected = [1, 1, 0.97, 0.97, 0.97**2, 0.97**41]
    assert [step_decay(epoch, 0.97, 1, 10) for epoch in epochs] == pytest.approx(expected)


def test_a_plateau_lowers_the_rate_once_for_each_wait():
    losses = [3, 2, 2.1, 2.2, 1.9, 1.9, 1.9, 1.9, 1.9]
    factors = [plateau(losses[:n], decay=0.5, patience=2) for n in range(len(losses) + 1)]
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_a_plateau_that_is_better_by_less_than_min_delta_is_one():
    losses = [2.0, 1.99, 1.98]
    assert plateau(losses, 0.5, 2) == 1
    assert plateau(losses, 0.5, 2, min_delta=0.05) == 0.5


@pytest.mark.parametrize(
    ("losses", "min_delta", "since"),
    [([], 0, 0), ([2], 0, 0), ([2, 3, 4], 0, 2), ([2, 3, 1], 0, 0), ([2, 2], 0, 1), ([2, 1.95, 1.9], 0.07, 0)],
)
def test_evaluations_since_the_best(losses, min_delta, since):
    assert evaluations_since_best(losses, min_delta) == since


def test_a_loss_that_is_no_number_is_not_better():
    assert evaluations_since_best([2, math.nan]) == 1


def test_every_schedule_but_onecycle_warms_up():
    for schedule in SCHEDULES:
        config = TrainingConfig(schedule=schedule, warmup_frac=0.1)
        assert rate_factor(config, 0.0, 0.0, []) == pytest.approx(0.04 if schedule == "onecycle" else 0.1)
