"""Stage 4: trained weights -> a folder that a stranger can use, proven equal to what was evaluated."""

import contextlib
from typing import TYPE_CHECKING

from pipeline.config import ExportConfig
from pipeline.errors import PipelineError
from pipeline.runtime import checksums, files
from pipeline.runtime.console import say, show_progress
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Workspace
from pipeline.stages.artifacts import ExportedModel, Format, PreparedData, Report, TrainedModel
from pipeline.stages.export import stop
from pipeline.stages.export.formats import FILES, FORMATS, LeftOut, Source

if TYPE_CHECKING:
    from pipeline.stages.export import check


def export(config: ExportConfig, data: PreparedData, trained: TrainedModel, report: Report, space: Workspace) -> ExportedModel:
    """Write every format, have each used by a process without this package, and say on the card what that found.

    Raises:
        GateError: one departs from the trained model by more than `config` allows.
        Stopped: this process was told to stop.
    """
    from pipeline.stages.evaluate import load
    from pipeline.stages.export.card import card
    from pipeline.stages.export.net import Exported

    source = Source(Exported(load(trained), trained.mean, trained.std).eval(), data, trained)
    names = [spec.name for spec in config.formats]
    shown = contextlib.closing(show_progress("export", total=2 * len(names) + 1, units="parts"))
    with stop.interrupted_by(space.stop), shown as progress:
        left_out = {name: why for name in names if (why := _write(name, source, space, progress))}
        exported = _checked([name for name in names if name not in left_out], left_out, source, report, config, space, progress)
    about = trained.model_dump(mode="json", include={"model", "shape", "classes", "mean", "std"})
    files.write_json(space.dir / "model.json", {**about, "source": space.config.data.source.name})
    files.write_whole(space.dir / "README.md", card(data, trained, report, exported, space))
    checksums.write(space.dir, [name for name in exported.files() if name != checksums.NAME])
    return exported


def _write(name: str, source: Source, space: Workspace, progress: Progress) -> str:
    """Why the format was left out; empty if it was not."""
    stop.look(space.stop)
    progress.doing(f"writing {FILES[name]}")
    why = ""
    try:
        FORMATS[name](source, space.dir / FILES[name])
    except LeftOut as error:
        why = str(error)
        say(f"export: {name} is left out: {why}")
    except (PipelineError, OSError):
        raise
    except Exception as error:  # exporters raise whatever they meet in a model
        first = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise PipelineError(f"export: {FILES[name]} cannot be made of {source.trained.model.name}: {first}") from error
    progress.step()
    return why


def _checked(
    names: list[str], left_out: dict[str, str], source: Source, report: Report, config: ExportConfig, space: Workspace, progress: Progress
) -> ExportedModel:
    """What a stranger finds of the files that have been written."""
    import torch

    from pipeline.stages.export import check

    with check.a_stranger(space.dir) as asked:
        progress.doing("comparing on the test images")
        check.check_weights(asked, source)
        to_run = [name for name in names if name != "safetensors"]
        tallies = check.compare(asked, source, to_run, check.labels(report), config, space)
        progress.step()
        trained, formats = tallies[""], {}
        for name in names:
            stop.look(space.stop)
            progress.doing(f"timing {FILES[name]}")
            ran = check.ran(asked, source, name, tallies[name]) if name in to_run else None
            formats[name] = Format(file=FILES[name], bytes=(space.dir / FILES[name]).stat().st_size, ran=ran)
            say(f"export: {_words(formats[name], tallies.get(name, trained))}")
            progress.step()
    return ExportedModel(
        dir=space.dir,
        images=trained.images,
        accuracy=trained.right / trained.images,
        largest_logit=trained.largest,
        threads=torch.get_num_threads(),
        formats=formats,
        left_out=left_out,
    )


def _words(made: Format, tally: "check.Tally") -> str:
    size = f"{made.bytes / 1e6:.3g} MB"
    if made.ran is None:
        return f"{made.file}, {size}, holds the trained weights, bit for bit"
    return (
        f"{made.file}, {size}, gives the class of the trained model on {tally.same} of {tally.images} test images; logits differ by "
        f"at most {tally.difference:.2g} of {tally.largest:.3g}; {made.ran.latency[1]:.3g} ms an image"
    )
