"""What a training costs here, and what would cost less: measured, told in a table, nothing kept."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from processes import launch
from recording import on_the_cpu

from pipeline.config import Config
from pipeline.stages.bench import advice
from pipeline.stages.bench_table import table

COMMON = ["run.trackers=[wandb]", "run.log_every=3", "run.checkpoint_every=4", "--json"]


def quick(_: int) -> None:
    from pipeline.stages import bench, bench_arm

    bench_arm.SECONDS, bench.PEAK_SECONDS, bench.ENOUGH = 0.02, 0.005, 1000.0


def stopped_while_measuring(_: int) -> None:
    from pipeline.stages.bench_arm import Arm

    real = Arm.seconds

    def seconds(arm: Any, count: int) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(arm, count)

    Arm.seconds = seconds  # type: ignore[assignment, method-assign]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, Any], Path]:
    """The lines, the JSON and the folder of one bench of the tiny experiment."""
    from conftest import TINY

    folder = tmp_path_factory.mktemp("bench")
    ended = launch(folder, ["bench", *TINY, *COMMON], before=quick)
    assert ended.code == 0, ended.output
    return ended.output.splitlines()[:-1], ended.summary, folder


def test_bench_tells_speed_waiting_parts_of_a_step_utilisation_and_memory(told: tuple[list[str], dict[str, Any], Path]) -> None:
    lines, found, _ = told
    assert found["images_per_second"] == pytest.approx(found["batch_size"] / found["step_seconds"])
    assert {name for name, seconds in found["phases_seconds"].items() if seconds > 0} >= {
        "batch",
        "forward",
        "backward",
        "optimizer",
        "record",
    }
    assert 0 < found["data_share"] < 1
    assert not found["recorded"]
    assert 0 < found["utilisation"] < 1
    assert found["memory_bytes"] > 1e7
    for word in ("images/s", "data", "utilisation", "memory", "forward", "tried", "advice"):
        assert any(line.startswith(word) for line in lines)


def test_its_table_fits_80_columns_however_much_the_figures_vary(told: tuple[list[str], dict[str, Any], Path]) -> None:
    found = {**told[1], "images_per_second": 123456789.0, "step_seconds": 1234.5, "flops_per_second": 1.2345e7}
    tried = [
        {**each, "images_per_second": 1e8, "beside_images_per_second": 123456.0, "times_as_fast": [0.001, 9.99, 1234.5]}
        for each in found["tried"]
    ]
    for lines in (told[0], table(Config(), {**found, "tried": tried}).splitlines()):
        assert max(map(len, lines)) <= 80, lines


def test_each_advice_is_a_variant_that_was_measured(told: tuple[list[str], dict[str, Any], Path]) -> None:
    _, found, _ = told
    tried = {each["words"] for each in found["tried"]}
    assert {"train.batch_size=48", "run.channels_last=true", "train.augment=[]"} <= tried
    assert all(any(words in text for words in tried) for text in found["advice"])


def test_nothing_is_kept_but_the_prepared_data(told: tuple[list[str], dict[str, Any], Path]) -> None:
    _, _, folder = told
    assert sorted(path.name for path in folder.iterdir()) == ["artifacts", "output.txt"]
    assert [path.name for path in (folder / "artifacts").iterdir()] == ["prepare"]


def test_operations_are_counted_as_the_layers_do_them(told: tuple[list[str], dict[str, Any], Path]) -> None:
    _, found, _ = told
    forward = 2 * (4 * 3 * 9 * 100 + 8 * 4 * 9 * 9 + 8 * 16 + 16 * 4)
    first = 2 * 4 * 3 * 9 * 100  # whose gradient by the images nobody asks for
    assert found["flops_per_image"] == 3 * forward - first


def test_where_a_training_records_a_step_a_recorded_one_is_measured_and_its_parts_are_those_of_a_plain_one(run: Run) -> None:
    ended = run(*COMMON, until="bench", before=recording)
    assert ended.code == 0, ended.output
    found = ended.summary
    assert found["recorded"]
    assert found["notes"] == ["train: a step is recorded and launched as one (run.cuda_graph=no: piece by piece)"]
    assert all(found["phases_seconds"][phase] > 0 for phase in ("batch", "forward", "backward", "optimizer"))
    assert "These are of steps launched piece by\npiece, which take longer" in ended.output


def test_a_step_that_cannot_be_recorded_is_told_with_its_reason_and_may_be_tried_where_it_can(run: Run) -> None:
    ended = run(*COMMON, "train.nonfinite=skip", until="bench", before=recording)
    assert ended.code == 0, ended.output
    assert not ended.summary["recorded"]
    assert "train.nonfinite=skip looks into each step" in ended.output.replace("\n       ", " ")
    plain = run(*COMMON, "run.cuda_graph=no", until="bench", before=recording)
    assert not plain.summary["recorded"]
    assert any(each["words"] == "run.cuda_graph=auto" for each in plain.summary["tried"])


def recording(rank: int) -> None:
    quick(rank)
    on_the_cpu(rank)


def test_several_processes_are_measured_together(run: Run) -> None:
    ended = run(*COMMON, until="bench", processes=2, before=quick)
    assert ended.code == 0, ended.output
    assert ended.summary["processes"] == 2
    assert "2 processes (shared)" in ended.output


@pytest.mark.soak
def test_what_is_refused_is_told_with_its_reason(run: Run) -> None:
    ended = run(*COMMON, "train.determinism=elastic", "train.shards=4", until="bench", before=refuse_another_layout)
    assert ended.code == 0, ended.output
    assert next(each for each in ended.summary["tried"] if each["words"] == "run.channels_last=true")["refused"] == "not here"
    assert "run.channels_last=true: not here" in ended.output


def test_where_a_step_takes_long_nothing_else_is_tried(run: Run) -> None:
    ended = run(*COMMON, until="bench", before=out_of_time)
    assert ended.code == 0, ended.output
    assert {each["refused"] for each in ended.summary["tried"]} == {"not tried, since 0 s are over"}


def out_of_time(rank: int) -> None:
    from pipeline.stages import bench

    quick(rank)
    bench.ENOUGH = 0.0


def refuse_another_layout(rank: int) -> None:
    from pipeline.errors import ConfigError
    from pipeline.process import Process

    quick(rank)
    join = Process.join

    def refusing(process: Any, config: Any) -> Any:
        if config.run.channels_last and config.train.precision == "no":
            raise ConfigError("not here")
        return join(process, config)

    Process.join = refusing  # type: ignore[assignment, method-assign]


def test_a_signal_ends_it_with_its_code_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    ended = run(*COMMON, until="bench", before=stopped_while_measuring)
    assert ended.code == 143, ended.output
    assert ended.output.splitlines()[-1] == "pipeline: stopped while measuring; run the same command again"
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["prepare"]


def test_a_misspelt_key_ends_it_with_2(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["bench", "train.lrr=1"])
    assert ended.code == 2
    assert "did you mean 'lr'" in ended.output


def test_advice_is_what_was_faster_by_a_tenth_in_all_windows_but_one() -> None:
    def tried(words: str, *times: float, data: bool = False, note: str = "") -> dict[str, Any]:
        return {"words": words, "note": note, "data": data, "times_as_fast": list(times)}

    seen = [
        tried("a=1", 1.2, 1.3, 0.9),
        tried("b=1", 2.0, 0.9, 0.9),
        tried("c=1", 1.05, 1.06, 1.07),
        tried("d=1", 2.0, 2.0, 2.1, data=True, note="look"),
        {"words": "e=1", "note": "", "data": False, "refused": "no"},
    ]
    assert advice(seen, 0.25) == [
        "data take 25% of a step; d=1 is 2.00 x as fast (look)",
        "a=1 is 1.20 x as fast",
    ]


def test_where_nothing_is_faster_the_advice_is_to_keep_it(told: tuple[list[str], dict[str, Any], Path]) -> None:
    lines, found, _ = told
    assert ("advice: keep it as it is" in "\n".join(lines)) == (not found["advice"])
    assert json.loads(json.dumps(found)) == found
