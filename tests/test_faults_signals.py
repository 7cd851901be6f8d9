"""The campaign of signals, in small."""

import pytest

from bench.faults import signals


@pytest.mark.soak
def test_in_each_phase_a_signal_loses_no_step_and_no_bit() -> None:
    chosen = signals.cases(len(signals.STOPPED), seed=1)
    assert [f"{case}: {wrong}" for case, wrong, _ in signals.campaign(chosen) if wrong] == []
