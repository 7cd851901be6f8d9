"""What the facts of all processes say together: who differs from the main one, and who is in whose way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.config import Config
from pipeline.doctor.findings import Finding

Facts = Mapping[str, Any]  # of one process, as `alone.facts` has them
SHOWN = 3  # names of many that differ


def who(facts: Facts) -> str:
    return f"rank {facts['rank']} on {facts['host']}"


def judged(config: Config, all_: Sequence[Facts]) -> list[Finding]:
    """Of facts of one process or more, the main one's first."""
    parts: list[Callable[[], Iterator[Finding]]] = [
        lambda: _processes(config, all_),
        lambda: _same(all_, "code", "install the same code on all nodes, or one copy that all of them see"),
        lambda: _same(all_, "configuration", "give every process the same words, and files of the same content"),
        lambda: _same(all_, "versions", "use one environment on all nodes, or install constraints.txt on each"),
        lambda: _devices(all_),
    ]
    return [finding for part in parts for finding in part()]


def _processes(config: Config, all_: Sequence[Facts]) -> Iterator[Finding]:
    first = all_[0]
    hosts = {facts["host"] for facts in all_}
    asked = f", {config.run.processes} asked for" if config.run.processes else ""
    value = f"{_count(len(all_), 'process')} on {_count(len(hosts), 'host')}{asked}"
    for facts in all_:
        if facts["size"] != first["size"]:
            wrong = f"was told that they are {facts['size']}, rank 0 that they are {first['size']}"
            yield Finding("processes", wrong=wrong, cure="start all of them with one launcher command", who=who(facts))
    if first["tasks"] > first["size"]:
        wrong = f"the SLURM job has {first['tasks']} tasks, but there is {_count(len(all_), 'process')}"
        yield Finding("processes", wrong=wrong, cure="start it with srun, as slurm/train.sbatch does")
    yield Finding("processes", value)


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}{'es' if what.endswith('s') else 's'}"


def _same(all_: Sequence[Facts], what: str, cure: str) -> Iterator[Finding]:
    """`facts[what]` is name -> value; those whose values are not the main process's."""
    first: Mapping[str, Any] = all_[0][what]
    for facts in all_[1:]:
        other: Mapping[str, Any] = facts[what]
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            said = ", ".join(name if what == "code" else _pair(name, first, other) for name in names[:SHOWN])
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield Finding(what, wrong=f"differs from rank 0: {said}{more}", cure=cure, who=who(facts))
    value = ", ".join(f"{name} {value}" for name, value in first.items()) if what == "versions" else all_[0]["digests"][what]
    yield Finding(what, f"{'the same on all, ' if len(all_) > 1 else ''}{value}")


def _pair(name: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return f"{name} is {other.get(name, 'absent')} and not {first.get(name, 'absent')}"


def _devices(all_: Sequence[Facts]) -> Iterator[Finding]:
    kinds = {facts["device"]["kind"] for facts in all_ if facts["device"]}
    if len(kinds) > 1:
        odd = [facts for facts in all_ if facts["device"] and facts["device"]["kind"] != all_[0]["device"].get("kind")]
        for facts in odd:
            wrong = f"computes on {facts['device']['kind']}, rank 0 on {all_[0]['device'].get('kind')}"
            yield Finding("devices", wrong=wrong, cure="ask for nodes of one kind, or set run.device=cpu", who=who(facts))
    hosts: dict[str, list[Facts]] = {}
    for facts in all_:
        if facts["device"]:
            hosts.setdefault(facts["host"], []).append(facts)
    for host, here in hosts.items():
        yield from (_gpus(host, here) if here[0]["device"]["kind"] == "cuda" else _cores(host, here))


def _gpus(host: str, here: Sequence[Facts]) -> Iterator[Finding]:
    one = here[0]["device"]
    if len(here) > one["seen"]:
        wrong = f"{len(here)} processes, but {_count(one['seen'], 'GPU')} to be seen"
        yield Finding("devices", wrong=wrong, cure="start as many processes as GPUs, or ask for more (--gpus-per-node)", who=host)
    taken: dict[str, list[str]] = {}
    for facts in here:
        if uuid := facts["device"].get("uuid"):
            taken.setdefault(uuid, []).append(who(facts))
    for several in taken.values():
        if len(several) > 1:
            cure = "let each see all GPUs of its node (not --gpus-per-task), and take that of its LOCAL_RANK"
            yield Finding("devices", wrong="have the same GPU", cure=cure, who=" and ".join(several))
    named = ", ".join(f"rank {facts['rank']} GPU {facts['device']['index']}" for facts in here[:8])
    free = min((facts["device"]["free"] for facts in here if "free" in facts["device"]), default=0)
    memory = f"{free / 2**30:.0f} of {one.get('total', 0) / 2**30:.0f} GiB free"
    said = f"{one['seen']} x {one.get('name', 'GPU')}, {memory}, driver {one['driver']}, CUDA {one['cuda']}, NCCL {one['nccl']}"
    yield Finding("devices", f"{host}: {said}: {named}")


def _cores(host: str, here: Sequence[Facts]) -> Iterator[Finding]:
    one = here[0]["device"]
    if one["given"] > one["seen"] and one["kind"] == "cpu" and here[0]["device_asked"] == "auto":
        wrong = f"{one['given']} GPUs are given, but torch sees {one['seen']}"
        cure = "install a torch for the CUDA of `nvidia-smi` there, or set run.device=cpu"
        yield Finding("devices", wrong=wrong, cure=cure, who=host)
    cores = {core for facts in here for core in facts["cores"]}
    if len(cores) < len(here):
        wrong = f"{len(here)} processes share {_count(len(cores), 'core')}"
        yield Finding("devices", wrong=wrong, cure="start fewer, or ask for more (--cpus-per-task)", who=host)
    each = f"{_count(len(here), 'process')} of {_count(here[0]['threads'], 'thread')}"
    asked = here[0].get("threads_asked", "")
    if asked not in ("", str(here[0]["threads"])):
        each += f"; OMP_NUM_THREADS={asked} does not count, run.threads does"
    named = ", ".join(filter(None, [one["kind"], one.get("name", ""), _count(len(cores), "core")]))
    yield Finding("devices", f"{host}: {named}: {each}")
