"""Optimizers and schedules, beside torch's own."""

from typing import Any

import pytest
import torch

from pipeline.learning.optim import OPTIMIZERS, SCHEDULES, one_cycle, step_decay

STEPS = 100


def torch_rates(schedule: type[torch.optim.lr_scheduler.LRScheduler], **options: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = schedule(optimizer, **options)  # type: ignore[arg-type]
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_one_cycle_is_torchs() -> None:
    ours = [one_cycle(step, STEPS, 10) for step in range(STEPS)]
    theirs = torch_rates(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=STEPS, cycle_momentum=False)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_step_decay_is_torchs_with_epochs_for_steps() -> None:
    ours = [step_decay(step, STEPS, 10.0, every=3, factor=0.5) for step in range(STEPS)]
    theirs = torch_rates(torch.optim.lr_scheduler.StepLR, step_size=30, gamma=0.5)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10])
def test_a_rate_is_positive_and_at_most_one_however_short_the_run(name: str, steps: int) -> None:
    for step in range(steps):
        assert 0 < SCHEDULES[name](step, steps, 2.5) <= 1


@pytest.mark.parametrize(
    ("name", "options", "reference"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, torch.optim.SGD),
        ("adam", {"weight_decay": 0.01}, torch.optim.Adam),
    ],
)
def test_an_optimizer_updates_as_torchs_reference(name: str, options: dict[str, Any], reference: Any) -> None:
    models = [torch.nn.Linear(5, 3, dtype=torch.float64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = OPTIMIZERS[name](models[0], **options)
    theirs = reference(models[1].parameters(), lr=0.1, foreach=False, fused=False, **options)
    for k in range(5):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.param_groups[0]["lr"] = 0.1
            optimizer.zero_grad()
            model(torch.full((2, 5), k + 1.0, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
