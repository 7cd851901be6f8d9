"""`pipeline submit` and its scripts, as far as no cluster is needed; test_slurm.py has one."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster import until
from conftest import TINY
from processes import Ended, begin, launch
from pydantic import ValidationError

from pipeline.config import RunConfig
from pipeline.runtime import job
from pipeline.runtime.launch import Launch, prepare_process
from pipeline.slurm import again
from pipeline.slurm.script import Script, text
from pipeline.slurm.site import Site

SCRIPTS = Path(__file__).parents[1] / "slurm"
BY_HAND = {"words": ("configs/mnist.yaml",), "site": Site(python=".venv/bin/python")}
EXAMPLES = {
    "node.sbatch": Script.model_validate({"title": "An experiment on one node", **BY_HAND}),
    "train.sbatch": Script.model_validate({"title": "An experiment on several nodes", "nodes": 2, **BY_HAND}),
    "seeds.sbatch": Script.model_validate({"title": "Five seeds of an experiment", "seeds": "0-4", **BY_HAND}),
    "prepare.sbatch": Script.model_validate({"title": "The data of an experiment", "command": "prepare", **BY_HAND}),
}
# each of them would be an option of SLURM, or a command, if it stood in the script as it is
HOSTILE = ["a b", "a;touch harm", "$(touch harm)", "`touch harm`", "a'b", 'a"b', "a\\b", "a\n#SBATCH -N9", "a\r#SBATCH -N9", "a\0b", "#a"]


UNREACHED = """\
sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
sbatch: error: fetch_config: DNS SRV lookup failed
sbatch: error: _establish_config_source: failed to fetch config
sbatch: fatal: Could not establish a configuration source
"""  # of SLURM 22.05


def submit(folder: Path, *words: str) -> Ended:
    """`pipeline submit WORDS` where there is no SLURM."""
    return launch(folder, ["submit", *TINY, *words], environment={"PATH": "/nothing", "HOME": str(folder)})


def dry(folder: Path, *words: str) -> str:
    ended = submit(folder, "--dry-run", *words)
    assert ended.code == 0, ended.output
    return ended.output


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != "output.txt"]


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("04:00:00", 120),
        ("8", 120),
        ("4", 60),
        ("2:00", 30),
        ("00:02:00", 30),
        ("1", 15),
        ("0:01", 1),
        ("1-0", 120),
        ("0-0:4", 60),
        ("0-00:00:20", 5),
    ],
)
def test_a_short_job_is_warned_after_three_quarters_of_its_time(time: str, seconds: int) -> None:
    script = Script.model_validate({"title": "Short", "words": ("tiny.yaml",), "time": time})
    assert f"--signal=USR1@{seconds}" in directives(text(script))


def directives(script: str) -> list[str]:
    """The options that SLURM finds: it reads comments up to the first command."""
    found = []
    for line in script.splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            found += line.removeprefix("#SBATCH ").partition(" #")[0].split()
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_scripts_to_edit_are_what_submit_writes(name: str) -> None:
    found = text(EXAMPLES[name])
    assert (SCRIPTS / name).read_text() == found, (
        f"slurm/{name} is not what pipeline/slurm/job.sbatch.j2 says: `python tests/test_submit.py`"
    )
    assert found.count("# EDIT") == 3


def test_there_is_no_other_script() -> None:
    assert sorted(path.name for path in SCRIPTS.glob("*.sbatch")) == sorted(EXAMPLES)


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path: Path) -> None:
    script = dry(
        tmp_path, "--nodes", "2", "--gpus-per-node", "3", "--time", "1-12", "--partition", "gpu", "--account", "us", "train.lr=0.5"
    )
    wanted = ["--job-name=tiny", "--time=1-12", "--partition=gpu", "--account=us", "--nodes=2", "--ntasks-per-node=3", "--cpus-per-task=2"]
    assert directives(script) == [
        *wanted,
        *["--gpus-per-node=3", "--output=runs/tiny/job.log", "--signal=USR1@120", "--requeue", "--open-mode=append"],
    ]
    assert "set -- runs/tiny/job.yaml " in script
    assert names(tmp_path) == []


def test_an_array_is_a_task_a_seed_where_pipeline_seeds_looks_for_it(tmp_path: Path) -> None:
    script = dry(tmp_path, "--array", "seeds=2-5")
    assert {"--array=2-5", "--output=runs/tiny-seeds/seed-%a/job.log"} <= {*directives(script)}
    assert '--seed "$SLURM_ARRAY_TASK_ID"' in script


def test_data_are_prepared_by_a_job_before_where_the_site_has_a_partition_for_it(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/site.yaml").write_text("prepare_partition: cpu\npartition: gpu\n")
    first, second = dry(tmp_path, "--gpus-per-node", "2").split("#!/bin/bash")[1:]
    assert "--partition=cpu" in first
    assert "--partition=gpu" in second
    assert "-m pipeline prepare" in first
    assert "-m pipeline run" in second
    assert "--gpus" not in "".join(directives(first))


def test_the_site_file_fills_in_what_every_job_needs(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    site = {
        "account": "us",
        "cpus_per_task": 8,
        "interface": "ib0",
        "modules": ["cuda/12.8"],
        "container": "apptainer exec --nv 'my image.sif'",
        "sbatch": ["--qos=long", "--constraint=a100&nvme"],
    }
    (tmp_path / "slurm/site.yaml").write_text(yaml.safe_dump(site))
    script = dry(tmp_path)
    assert {"--account=us", "--cpus-per-task=8", "--qos=long", "--constraint=a100&nvme"} <= {*directives(script)}
    for line in (
        "module load cuda/12.8 || exit",
        "python=(apptainer exec --nv 'my image.sif' python)",
        "export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0",
    ):
        assert line in script.splitlines()
    assert "--account=them" in directives(dry(tmp_path, "--account", "them"))


def test_a_misspelt_setting_of_the_site_is_one_line_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / ".config/pipeline").mkdir(parents=True)
    (tmp_path / ".config/pipeline/site.yaml").write_text("acount: us\n")
    ended = submit(tmp_path, "--dry-run")
    assert (ended.code, ended.output.count("\n")) == (2, 1)
    assert "acount: no such key; did you mean 'account'?" in ended.output


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("field", ["name", "time", "partition", "account", "log", "words", "seeds"])
def test_no_value_can_become_an_option_of_slurm_or_a_command(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Script.model_validate({"title": "x", "words": (), field: (value,) if field == "words" else value})


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("field", ["account", "partition", "prepare_partition", "interface", "modules"])
def test_nor_can_a_setting_of_the_site(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Site.model_validate({field: [value] if field == "modules" else value})


@pytest.mark.parametrize("value", HOSTILE)
def test_an_option_of_the_site_is_one_option(value: str) -> None:
    with pytest.raises(ValidationError, match="sbatch"):
        Site.model_validate({"sbatch": [f"--comment={value}"]})


@pytest.mark.parametrize("value", [value for value in HOSTILE if value.isprintable()])
def test_a_python_with_any_name_is_that_command(tmp_path: Path, value: str) -> None:
    line = f"python=({Site(python=shlex.quote(value)).command})"
    shown = subprocess.run(["bash", "-c", f'{line}; printf %s "${{python[0]}}"'], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout == value
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.epoch=1"], "did you mean 'epochs'?"),
        (["run.name=$(touch harm)"], "run.name"),
        (['run.folder="a\\n#SBATCH -N9"'], "run.folder"),
        (["run.folder=my runs"], "run.folder"),
        (["run.folder=-o"], "run.folder"),
        (["run.folder=50%j"], "run.folder"),
        (["--nodes", "40"], "train.batch_size"),
        (["--time", "tomorrow"], "a time of SLURM"),
        (["--array", "seeds=4-1"], "seeds=FIRST-LAST"),
        (["--array", "seeds=0-1000"], "1000 at most"),
        (["--array", "lrs=0-4"], "seeds=FIRST-LAST"),
        (["--after", "1;touch harm"], "no job's id"),
        (["--nodes", "0"], "nodes"),
        (["--nodes", "3", "run.processes=2"], "run.processes: 2, but the job would start 3"),
    ],
)
def test_a_mistake_is_one_line_and_2_before_anything_is_written(tmp_path: Path, words: list[str], says: str) -> None:
    ended = submit(tmp_path, *words)
    assert (ended.code, ended.output.count("\n")) == (2, 1), ended.output
    assert says in ended.output
    assert names(tmp_path) == []


def test_an_array_is_no_one_run_of_wandb(tmp_path: Path) -> None:
    words = ["submit", *TINY, "run.trackers=[wandb]", "--array", "seeds=0-1"]
    ended = launch(tmp_path, words, environment={"PATH": "/nothing", "HOME": str(tmp_path), "WANDB_RUN_ID": "one"})
    assert (ended.code, ended.output.count("\n")) == (2, 1), ended.output
    assert "WANDB_RUN_ID" in ended.output
    assert names(tmp_path) == []


def test_without_slurm_it_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    ended = submit(tmp_path)
    assert (ended.code, ended.output) == (1, "pipeline: sbatch is not here; on a cluster with SLURM it is on the login nodes\n")
    assert names(tmp_path) == []


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{UNREACHED}END\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    ended = launch(tmp_path, ["submit", *TINY], environment={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)})
    assert (ended.code, ended.output) == (
        1,
        "pipeline: sbatch cannot reach the cluster (Could not establish a configuration source); "
        "is this a login node, its controller up, SLURM_CONF right?\n",
    )
    assert names(tmp_path) == ["sbatch"]


def test_a_run_that_was_not_submitted_has_no_job(tmp_path: Path) -> None:
    assert job.job_state(tmp_path) == ""


@pytest.mark.soak
def test_a_seed_alone_is_the_run_that_pipeline_seeds_finds_fresh(tmp_path: Path) -> None:
    assert launch(tmp_path, ["train", *TINY, "--seed", "0"]).code == 0
    together = launch(tmp_path, ["seeds", "1", *TINY])
    assert together.code == 0
    assert "train: fresh" in together.output


def test_a_task_of_srun_computes_with_the_cores_of_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert prepare_process(RunConfig(), Launch(rank=0, size=2, local_size=1)) == 1


class TestAgain:
    """Whether a job that was stopped is to be started again."""

    @pytest.fixture(autouse=True)
    def of_a_job(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "3")

    def checkpoint(self, folder: Path, step: int) -> None:
        (folder / "training/checkpoints" / f"step-{step:09d}").mkdir(parents=True)
        (folder / "training/metrics.jsonl").touch()
        if not (folder / "metrics.jsonl").is_symlink():
            (folder / "metrics.jsonl").symlink_to("training/metrics.jsonl")

    def test_each_life_that_adds_a_checkpoint_has_another(self, tmp_path: Path) -> None:
        for step in range(5):
            self.checkpoint(tmp_path, step)
            assert again.why_not(tmp_path) == ""

    def test_two_lives_in_a_row_that_add_none_are_enough(self, tmp_path: Path) -> None:
        self.checkpoint(tmp_path, 1)
        assert [again.why_not(tmp_path) for _ in range(2)] == ["", ""]
        assert "2 lives in a row have added no checkpoint" in again.why_not(tmp_path)

    def test_one_that_adds_some_in_between_begins_the_count_anew(self, tmp_path: Path) -> None:
        for step in (1, 2, 3):
            self.checkpoint(tmp_path, step)
            assert [again.why_not(tmp_path) for _ in range(2)] == ["", ""]

    def test_so_are_two_that_never_come_to_train(self, tmp_path: Path) -> None:
        assert again.why_not(tmp_path / "none") == ""
        assert "2 lives" in again.why_not(tmp_path / "none")

    def test_another_job_begins_the_count_anew(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert again.why_not(tmp_path) == ""
        monkeypatch.setenv("SLURM_JOB_ID", "13")
        assert again.why_not(tmp_path) == ""

    def test_a_hundred_lives_are_enough(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "99")
        assert "life 100 of job 12, and its last" in again.why_not(tmp_path)


def test_cancel_stops_a_run_of_this_machine_at_a_checkpoint(tmp_path: Path) -> None:
    (process,) = begin(tmp_path, ["train", *TINY, "train.epochs=2000", "train.validate_every=100"])
    until(lambda: bool(list(tmp_path.glob("artifacts/train/*/checkpoints/step-*"))), 60, lambda: "no checkpoint was written")
    ended = subprocess.run([sys.executable, "-m", "pipeline", "cancel", "tiny"], cwd=tmp_path, capture_output=True, text=True, check=True)
    process.join(10)
    assert process.exitcode == 75
    message = json.loads((tmp_path / "runs/tiny/status.json").read_text())["message"]
    assert "with a checkpoint" in message
    assert message in ended.stdout


@pytest.mark.parametrize("command", ["logs", "cancel"])
@pytest.mark.parametrize("run", ["nothing", "idle"])
def test_where_nothing_runs_it_is_one_line_and_2(tmp_path: Path, command: str, run: str) -> None:
    (tmp_path / "runs/idle").mkdir(parents=True)
    ended = launch(tmp_path, [command, run])
    assert (ended.code, ended.output.count("\n")) == (2, 1), ended.output


if __name__ == "__main__":
    for name, script in EXAMPLES.items():
        (SCRIPTS / name).write_text(text(script))
