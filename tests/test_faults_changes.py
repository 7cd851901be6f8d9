"""A half-done run under a changed configuration, or on other terms."""

from pathlib import Path

import pytest

from bench.faults import changes


@pytest.mark.soak
def test_a_changed_recipe_is_another_training_and_other_terms_are_said(tmp_path: Path) -> None:
    assert [failure for row in changes.campaign(tmp_path) for failure in row["failures"]] == []
