"""`bench/gpu.py` tried out small, without a GPU: every row runs, and one that fails does not stop the others."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.soak


def bench(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Its exit code and its rows, on 100 images that look like CIFAR-10 and as many like MNIST."""
    rng = np.random.default_rng(0)
    cifar, mnist = folder / "cifar-10-batches-py", folder / "MNIST/raw"
    cifar.mkdir()
    mnist.mkdir(parents=True)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        batch = {"data": rng.integers(0, 256, (20, 3072), np.uint8), "labels": [k % 10 for k in range(20)]}
        (cifar / name).write_bytes(pickle.dumps(batch, protocol=2))
    for part, count in (("train", 400), ("t10k", 40)):
        sizes = np.array([count, 28, 28], ">i4").tobytes()
        (mnist / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + rng.bytes(count * 784))
        labels = np.arange(count, dtype=np.uint8) % 10
        (mnist / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + sizes[:4] + labels.tobytes())
    typed: list[str | Path] = [sys.executable, "-m", "bench.gpu", "--data", folder, "--tiny", "--out", folder / "gpu.json", *words]
    ended = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    return ended.returncode, json.loads((folder / "gpu.json").read_text())["rows"]


def test_every_row_runs(tmp_path: Path) -> None:
    code, rows = bench(tmp_path)
    assert (code, [name for name, row in rows.items() if "failed" in row]) == (0, []), rows
    assert set(rows) == {"G1", "G2", "G3", "G4", "G5"}
    assert all(rows[name]["ratio"] > 0 for name in ("G3", "G4", "G5"))


def test_a_row_that_fails_is_told_and_the_others_run(tmp_path: Path) -> None:
    script = tmp_path / "record.py"
    script.write_text("raise SystemExit('no GPU here')")
    code, rows = bench(tmp_path, "--only", "G1", "G5", "--airbench", str(script))
    assert code == 1
    assert rows["G1"]["failed"] == "RuntimeError: record.py printed no results"
    assert rows["G5"]["ratio"] > 0


def test_a_record_script_is_read_as_it_prints(tmp_path: Path) -> None:
    script = tmp_path / "record.py"
    line = "|  %s  |  eval  |           |           |      %.4f  |        %.4f  |"
    script.write_text(f"for k in range(30): print({line!r} % (' ' * 6, 0.94 + k % 2 / 100, 2.5))")
    code, rows = bench(tmp_path, "--only", "G1", "--airbench", str(script))
    assert code == 0, rows
    found = rows["G1"]["airbench"]
    assert (found["n"], found["seconds"]) == (1, 2.5)
    assert found["accuracy"] == pytest.approx(0.95)
