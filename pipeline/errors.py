"""Every way this program ends other than well, with its exit code.

0    done
1    failed: a bug of ours, or the machine (disk, network, memory)
2    usage or configuration
3    data refused
4    a gate failed: an export that disagrees, a score below `evaluate.min_accuracy`
75   stopped early with a good checkpoint: the same command goes on
130  stopped by Ctrl-C without one;  143  by another signal without one
"""


class PipelineError(Exception):
    """A failure to be told in one line; `exit_code` is what the process returns."""

    exit_code = 1


def of_the_machine(error: OSError) -> str:
    """What to say of the disk, or the network: the user's to mend."""
    place = error.filename2 or error.filename  # of a rename or a link, the second is the one that was to be
    return f"{error.strerror or error}{f': {place}' if place else ''}"


def shown(text: str) -> str:
    """`text` in one line, with what a terminal would obey, or cannot show, written out: a file may have any name."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


class ConfigError(PipelineError, ValueError):
    """The configuration or the command line is wrong."""

    exit_code = 2


class DataError(PipelineError, ValueError):
    """The raw data cannot be used."""

    exit_code = 3


class GateError(PipelineError):
    """A result is not good enough to go on with."""

    exit_code = 4


class Lost(PipelineError):
    """Another process of the run is gone, and its part with it."""


class Stopped(PipelineError):
    """Asked to stop, and did, at a point from which the same command goes on."""

    exit_code = 75


class TakenOver(PipelineError):
    """Another life of the same run has gone on with it while this one was paused or cut off."""


class Interrupted(PipelineError):
    """Asked to stop before there was anything to keep."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
