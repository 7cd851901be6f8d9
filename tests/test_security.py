"""What SECURITY.md promises of our code and of what a run leaves."""

import ast
import contextlib
import io
import os
import pickle
import signal
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cluster import until
from conftest import TINY
from pickles import pickles
from processes import Ended, begin, below, launch
from tracking import settled

from pipeline import config, reading

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for part in ("pipeline", "launch") for path in (ROOT / part).rglob("*.py"))
UMASK = 0o027

NEVER = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
NEVER |= {
    f"{module}.{name}" for module in ("pickle", "dill", "cloudpickle", "marshal", "_pickle") for name in ("load", "loads", "Unpickler")
}
NEVER |= {"shelve.open", "joblib.load", "pandas.read_pickle", "yaml.unsafe_load", "yaml.full_load"}
SAFE = ("loader if len(text) <= SMALL else Plain", "yaml.SafeLoader")  # the loaders of YAML, each of which is a SafeLoader
ARGUMENTS = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True}  # the one value that each may have


def dangers(source: str) -> Iterator[str]:
    """What in `source` would execute what it reads, or write where an archive says."""
    tree = ast.parse(source)
    known: dict[str, str] = {}  # as names stand for here
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname: a.name for a in node.names if a.asname}
        if isinstance(node, ast.ImportFrom):
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            called = known.get(first, first) + dot + rest
            given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else None for k in node.keywords}
            wrong = [name for name, value in ARGUMENTS.items() if given.get(name, value) != value]
            if called in NEVER or wrong or rest.rpartition(".")[2] in ("extractall", "extract", "unpack_archive"):
                yield f"line {node.lineno}: {called} {' '.join(wrong)}"
            if called == "torch.load" and "weights_only" not in given:
                yield f"line {node.lineno}: torch.load without weights_only"
            if called.startswith("yaml.load") and not (len(node.args) == 2 and ast.unparse(node.args[1]) in SAFE):
                yield f"line {node.lineno}: {called} without a safe loader"
            if called in ("numpy.load", "np.load") and "allow_pickle" not in given:
                yield f"line {node.lineno}: numpy.load without allow_pickle"
        if isinstance(node, ast.ClassDef):
            yield from (f"line {node.lineno}: a pickle.Unpickler" for base in node.bases if ast.unparse(base).endswith("Unpickler"))


@pytest.mark.parametrize(
    "line",
    [
        "eval(x)",
        "exec(x)",
        "import pickle; pickle.load(f)",
        "import pickle as p; p.loads(b)",
        "from pickle import loads as read; read(b)",
        "from dill import load; load(f)",
        "class Reads(pickle.Unpickler): ...",
        "import torch; torch.load(f)",
        "import torch; torch.load(f, weights_only=False)",
        "import numpy; numpy.load(f, allow_pickle=True)",
        "import yaml; yaml.load(f)",
        "import yaml; yaml.load(f, yaml.Loader)",
        "tar.extractall(folder)",
        "tarfile.open(x).extract(member)",
        "import subprocess; subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=asked)",
        "import os; os.system(x)",
        "load_dataset(x, trust_remote_code=True)",
    ],
)
def test_what_executes_what_it_reads_would_be_found(line: str) -> None:
    assert list(dangers(line))


def test_none_of_our_code_executes_what_it_reads() -> None:
    assert len(SOURCES) > 90
    found = {str(path.relative_to(ROOT)): list(dangers(path.read_text())) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_yaml_s_loaders_make_plain_values_only() -> None:
    for loader in (config._Loader, reading.Fast):
        with pytest.raises(yaml.YAMLError):
            yaml.load("!!python/object/apply:os.system [id]", loader)


def zipped(**members: bytes) -> bytes:
    with zipfile.ZipFile(written := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def saved(value: object) -> bytes:
    torch.save(value, written := io.BytesIO())
    return written.getvalue()


def objects() -> bytes:
    np.save(written := io.BytesIO(), np.array([Fraction(1, 3)], object), allow_pickle=True)
    return written.getvalue()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [{"weights": [1, 2]}, Fraction(1, 3)])
def test_a_pickle_would_be_found(protocol: int, value: object) -> None:
    assert pickles(pickle.dumps(value, protocol))
    assert pickles(zipped(inside=zipped(further=pickle.dumps(value, protocol))))


@pytest.mark.parametrize("content", [saved({"weights": torch.zeros(2)}), objects(), bytes(100) + pickle.dumps(Fraction(1, 3)) + bytes(100)])
def test_a_pickle_among_other_bytes_would_be_found(content: bytes) -> None:
    assert pickles(content)


def test_other_bytes_are_no_pickle() -> None:
    assert pickles(np.random.default_rng(0).bytes(1 << 19)) == []


def private(_: int) -> None:
    os.umask(UMASK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def made(folder: Path) -> Ended:
    """A whole run with all trackers, by a person who has a key and shares files with a group."""
    (folder / "home").mkdir()
    (folder / "home/.netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
    (folder / "home/.netrc").chmod(0o600)
    environment = {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home/.cache"), "WANDB_MODE": "offline"}
    words = ["run", *TINY, "run.trackers=[wandb, tensorboard]"]
    ended = launch(folder, words, environment=environment, before=private)
    assert ended.code == 0, ended.output
    settled(folder)
    return ended


def left(folder: Path) -> list[Path]:
    return [path for part in ("runs", "artifacts") for path in (folder / part).rglob("*") if not path.is_symlink()]


def test_nothing_that_a_run_leaves_holds_a_pickle(made: Ended, folder: Path) -> None:
    files = [path for path in left(folder) if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".onnx", ".arrow", ".json", ".jsonl", ".wandb"}
    assert {str(path): found for path in files if (found := pickles(path.read_bytes()))} == {}


def test_all_that_a_run_leaves_has_the_modes_that_the_umask_says(made: Ended, folder: Path) -> None:
    modes = {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in left(folder)}
    wanted = {name: (0o777 if (folder / name).is_dir() else 0o666) & ~UMASK for name in modes}
    assert {name: oct(mode) for name, mode in modes.items() if mode != wanted[name]} == {}


def test_a_run_leaves_the_netrc_as_it_was(made: Ended, folder: Path) -> None:
    netrc = folder / "home/.netrc"
    assert netrc.read_text() == "machine api.wandb.ai login user password 0123456789\n"
    assert netrc.stat().st_mode & 0o777 == 0o600


def listening(pid: int) -> set[str]:
    """The addresses, as /proc has them, where a process and all below it take connections."""
    found = set()
    for process in (pid, *below(pid)):
        own = set()
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    own.add(str(entry.readlink()))
        for table in ("tcp", "tcp6"):
            rows = [row.split() for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
            found |= {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1, ::1
BOARD = ["board", "--port", "0"]
TRAIN = ["train", *TINY, "train.epochs=4000", "run.trackers=[wandb]"]


@pytest.mark.parametrize("words", [BOARD, pytest.param(TRAIN, marks=pytest.mark.soak)], ids=["board", "train"])
def test_what_takes_connections_takes_them_from_this_machine_alone(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "runs").mkdir()
    output = tmp_path / "output.txt"
    (process,) = begin(tmp_path, words, environment={"WANDB_MODE": "offline", "HOME": str(tmp_path)})
    assert process.pid
    begun = "http://" if words is BOARD else "train 50/"
    until(lambda: output.exists() and begun in output.read_text(), 60, lambda: output.read_text())
    found = listening(process.pid)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    settled(tmp_path)
    assert found <= LOOPBACK
    assert found or words is TRAIN
