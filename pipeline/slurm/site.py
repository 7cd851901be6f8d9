"""What a cluster wants to hear of every job: `slurm/site.yaml` of the folder one stands in, or else one's own, or else nothing.

account: physics             partition: gpu       prepare_partition: cpu    # --account=... and the like come before these
cpus_per_task: 8             interface: ib0       # the network that the nodes meet by, where there are several
modules: [cuda/12.8]         python: /opt/pipeline/bin/python
container: apptainer exec --nv pipeline.sif       # in front of python
sbatch: [--qos=long, --constraint=a100]           # further options, a line each
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.config import read_yaml, validated
from pipeline.errors import ConfigError

HERE, OWN = Path("slurm/site.yaml"), Path("~/.config/pipeline/site.yaml")


def fits(pattern: str, what: str) -> AfterValidator:
    """Text that matches `pattern` as a whole; `what` tells others what is expected."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {what}")
        return text

    return AfterValidator(check)


def _of_words(text: str) -> str:
    shlex.split(text)  # raises a ValueError at a quotation without an end
    if not text.isprintable():
        raise ValueError("one line of characters that can be seen")
    return text


Word = Annotated[str, fits(r"[A-Za-z0-9_][A-Za-z0-9_.,:/+@=-]*", "letters, digits and _ . , : / + @ = - alone")]  # needs no quotes anywhere
Option = Annotated[str, fits(r"""--[a-z][a-z-]*(=[^\s"'\\#\x00-\x1f\x7f]+)?""", "an option as --qos=long, without spaces, quotes and #")]
Words = Annotated[str, AfterValidator(_of_words)]


class Site(BaseModel):
    """The settings of a cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account: Word | None = None
    partition: Word | None = None
    prepare_partition: Word | None = None  # where `prepare` is a job of its own, before the training
    cpus_per_task: int = Field(2, ge=1)
    interface: Word | None = None
    modules: tuple[Word, ...] = ()
    container: Words = ""  # a command in front of python
    python: Words = ""  # and its options; empty: this one, or the container's
    sbatch: tuple[Option, ...] = ()

    @property
    def command(self) -> str:
        """Python, as the words of an array of bash."""
        here = Path(sys.executable)
        this = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
        python = shlex.split(self.python) or (["python"] if self.container else [str(this)])
        return shlex.join([*shlex.split(self.container), *python])


def read_site() -> Site:
    """The settings of the first file that is there.

    Raises:
        ConfigError: in one line, with the nearest valid name.
    """
    path = next((path for path in (HERE, OWN.expanduser()) if path.is_file()), None)
    values = (read_yaml(path) if path else None) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected key: value, of {', '.join(Site.model_fields)}")
    return validated(Site, values, f"{path}: ")
