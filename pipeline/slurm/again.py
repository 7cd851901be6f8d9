"""Whether a job that was stopped early is to be started again: the scripts of jobs ask.

runs/<name>/lives.json   {"job": id, "idle": lives in a row that have added nothing, "kept": what there was after the last}
"""

from pathlib import Path

from pipeline.arguments import STAGES
from pipeline.runtime import files
from pipeline.runtime.claims import Owner, holder
from pipeline.runtime.foreign import json_in, whole

LIVES, IDLE = 100, 2


def why_not(folder: Path) -> str:
    """In a line; empty if the job is to be started again. To be asked once a life, at its end."""
    me = Owner.here()
    if me.restart + 1 >= LIVES:
        return f"this was life {LIVES} of job {me.job}, and its last; submit it once more to go on"
    if owner := holder(folder / ".run"):
        return f"pid {owner.pid} on host {owner.host} has gone on with {folder}"
    before = json_in(folder / "lives.json")
    kept = _kept(folder)
    was, idle = (before.get("kept"), whole(before.get("idle")) or 0) if before.get("job") == me.job else ([], 0)
    idle = idle + 1 if kept == was else 0
    files.make_folder(folder)
    files.write_json(folder / "lives.json", {"job": me.job, "idle": idle, "kept": kept})
    if idle >= IDLE:
        return f"{idle} lives in a row have added no checkpoint; give it more time, or see what keeps it from one"
    return ""


def _kept(folder: Path) -> list[str]:
    """What a next life would find: the stages that are done, and the newest checkpoint."""
    done = [str((folder / stage).readlink()) for stage in STAGES if (folder / stage).is_symlink()]
    training = (folder / "metrics.jsonl").resolve().parent
    return done + sorted(path.name for path in training.glob("checkpoints/step-*"))[-1:]
