"""The script of a job: one text, for `pipeline submit` and for those in slurm/, which are edited by hand.

Whatever stands in it is a number, matches a pattern that leaves no room for quotes, spaces and line breaks, or is quoted.
"""

import subprocess
from pathlib import Path
from typing import Annotated, Literal

import jinja2
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import PipelineError
from pipeline.slurm.site import Site, Word, fits

Count = Annotated[int, Field(ge=1)]
Time = Annotated[str, fits(r"(\d+-)?\d+(:\d\d?){0,2}", "a time of SLURM: minutes, hours:minutes:seconds, days-hours")]
Plain = Annotated[str, fits(r"[A-Za-z0-9_./@+=:,%-]*", "letters, digits and _ . / @ + = : , - alone")]


class Script(BaseModel):
    """What differs between the scripts of jobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Annotated[str, fits(r"[A-Za-z ]+", "letters alone")]
    command: Literal["run", "prepare"] = "run"
    words: tuple[Plain, ...]  # the configuration, unless sbatch is given one
    name: Word = "pipeline"
    log: Plain = ""  # empty: where SLURM puts it
    time: Time = "04:00:00"
    nodes: Count = 1
    gpus_per_node: Count | None = None
    tasks_per_node: Count = 1
    cpus_per_task: Count = 2
    partition: Word | None = None
    account: Word | None = None
    seeds: Annotated[str, fits(r"(\d+-\d+)?", "as 0-4")] = ""  # of an array
    site: Site = Site()

    @property
    def warning(self) -> int:
        """Seconds before the time limit at which SLURM warns the job: 120, or a quarter of a limit that is shorter than 8 minutes."""
        days, _, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
        limit = int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))
        return max(1, min(120, limit // 4))


def text(script: Script) -> str:
    """The script as it is submitted; looked at by bash, if there is one.

    Raises:
        PipelineError: bash cannot read it: our mistake.
    """
    environment = jinja2.Environment(  # noqa: S701 (no HTML)
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    found = environment.get_template("job.sbatch.j2").render(
        script.model_dump() | {"python": script.site.command, "warning": script.warning}
    )
    try:
        looked = subprocess.run(["bash", "-n"], input=found, capture_output=True, text=True, check=False)  # noqa: S607
    except FileNotFoundError:
        return found
    if looked.returncode:
        raise PipelineError(f"the script would be no bash: {' '.join(looked.stderr.split())}")
    return found
