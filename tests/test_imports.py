"""What a command does without: modules that take as long to import as all the rest."""

import subprocess
import sys

TRAINING = """
import torch
import pipeline.stages.train
from pipeline.config import Spec
from pipeline.learning.models import build
from pipeline.learning.optim import OPTIMIZERS, spare_compiler

spare_compiler()
model = build(Spec(name="lenet5"), (1, 28, 28), 10)
for name in ("sgd", "adam", "adamw"):
    (optimizer,) = OPTIMIZERS[name](model)
    model(torch.zeros(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
"""

HELP = """
import contextlib
from pipeline.__main__ import main

with contextlib.suppress(SystemExit):
    main(["--help"])
"""

PREPARE = """
import sys
import tempfile
from pathlib import Path
import numpy as np
from pipeline.data import shards

with tempfile.TemporaryDirectory() as folder:
    shards.write(Path(folder) / "a.arrow", np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int64), ["a", "b"])
"""


def imported(code: str) -> set[str]:
    """The modules of a new process that has run `code`."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, timeout=100, check=True
    )
    return set(ended.stdout.splitlines()[-1].split())


def test_a_training_step_needs_neither_the_compiler_nor_sharding() -> None:
    assert not {"torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "torch.distributed.tensor", "sympy"} & imported(TRAINING)


def test_help_needs_no_configuration() -> None:
    assert not {"pydantic", "numpy", "yaml", "torch"} & imported(HELP)


def test_images_are_written_without_pandas() -> None:
    assert "pandas" not in imported(PREPARE)
