"""Every precision, compiled or not, in any memory layout, gives the curve of float64, within its rounding."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Run
from processes import always_with_onednn, launch

NET = "train.model={name: resnet18, width: 4}"
SHORT = ["train.steps=15", "train.lr=0.003"]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("exact")
    assert launch(folder, ["train", *TINY, NET, *SHORT, "train.precision=fp64"]).code == 0
    return losses(folder)


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [
        ("train.precision=no", 1e-3),
        ("train.precision=tf32", 1e-3),  # on a CPU it is float32
        ("train.precision=fp16", 0.02),
        ("train.precision=bf16", 0.05),
        ("run.channels_last=true", 1e-3),
        pytest.param("run.compile=aot_eager", 1e-3, marks=pytest.mark.soak),
    ],
)
def test_the_curve_is_that_of_float64(run: Run, tmp_path: Path, exact: list[float], how: str, tolerance: float) -> None:
    ended = run(NET, *SHORT, how, until="train")
    assert ended.code == 0, ended.output
    assert losses(tmp_path) == pytest.approx(exact, abs=tolerance)
    assert losses(tmp_path) != exact, "it was not computed in float64"


def test_small_convolutions_go_without_onednn_and_the_curve_is_the_same(run: Run, tmp_path: Path) -> None:
    small, large = run(*SHORT, until="train", in_folder="small"), run(*SHORT, until="train", in_folder="large", before=always_with_onednn)
    assert small.code == large.code == 0, small.output
    assert "no oneDNN" in small.output
    assert "no oneDNN" not in large.output
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), abs=1e-4)
    assert losses(tmp_path / "small") != losses(tmp_path / "large")


def test_gone_on_with_by_other_kernels_it_says_that_the_bits_are_others(run: Run) -> None:
    assert run(*SHORT, until="train", stop_at=5).code == 75
    ended = run(*SHORT, until="train", before=always_with_onednn)
    assert "not to the bit as before: onednn False then, not set now" in ended.output


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(("processes", "strategy"), [(1, "auto"), (1, "dp"), (2, "ddp"), (2, "fsdp")])
def test_compiled_by_inductor_the_curve_is_the_same(run: Run, tmp_path: Path, processes: int, strategy: str) -> None:
    assert run(*SHORT, until="train", in_folder="plain").code == 0
    words = [*SHORT, "run.compile=inductor", f"run.strategy={strategy}"]
    ended = run(*words, until="train", in_folder="compiled", processes=processes)
    assert ended.code == 0, ended.output
    assert "compiled) on cpu" in ended.output
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-3)
