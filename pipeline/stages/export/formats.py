"""The files of an export. What writes them imports torch when it is called: names are checked without."""

import contextlib
import functools
import io
import logging
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Spec
from pipeline.errors import ConfigError
from pipeline.stages.artifacts import PreparedData, TrainedModel

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto
    from torch import nn
    from torch.export import ExportedProgram

OPSET = 22  # the newest that onnxruntime 1.23, our oldest, has all of: not the QuantizeLinear of 23, and it opens no 24
CALIBRATION, AT_ONCE = 512, 64  # images; of the first, how many a run
UNBOUNDED = {f"aot_inductor.check_{bound}": False for bound in ("lowerbound", "upperbound")}  # of batches, which it would guess
ALWAYS = ("safetensors", "onnx")  # training, `predict` and others go on with these
CALIBRATED = "export.formats: int8 is calibrated on validation images, and there are none; set data.validation above 0"


class LeftOut(Exception):
    """A format that this machine cannot make."""


@dataclass(frozen=True)
class Source:
    """What the files are made of."""

    model: "nn.Module"  # of `net`, on the CPU
    data: PreparedData
    trained: TrainedModel

    @functools.cached_property
    def program(self) -> "ExportedProgram":
        """For batches of any size."""
        import torch

        with quiet():
            return torch.export.export(self.model, self.example, dynamic_shapes=self.dynamic)

    @property
    def example(self) -> tuple[Any, ...]:
        import torch

        return (torch.zeros(2, *self.data.shape, dtype=torch.uint8),)

    @property
    def dynamic(self) -> dict[str, Any]:
        import torch

        return {"images": {0: torch.export.Dim("batch")}}


def safetensors(source: Source, path: Path) -> None:
    """The trained weights, byte for byte."""
    shutil.copyfile(source.trained.dir / "weights.safetensors", path)


def onnx(source: Source, path: Path) -> None:
    import torch

    with quiet():
        program = torch.onnx.export(
            source.model,
            source.example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=source.dynamic,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)


def pt2(source: Source, path: Path) -> None:
    """A program for `torch.export.load`; in the place of the example that torch pickles into it, it has nothing."""
    import torch

    torch.export.save(source.program, written := io.BytesIO())
    with zipfile.ZipFile(written) as found, zipfile.ZipFile(path, "w") as kept:
        for member in found.infolist():
            kept.writestr(member, b"" if "/data/sample_inputs/" in member.filename else found.read(member))


def aotinductor(source: Source, path: Path) -> None:
    """Machine code for this kind of CPU, for `torch._inductor.aoti_load_package`.

    It looks at dtype, shape and strides of what it is given only where AOTI_RUNTIME_CHECK_INPUTS is 1 in the environment.

    Raises:
        LeftOut: there is no C++ compiler; or this torch, before 2.15, would let those checks refuse large batches.
    """
    import torch

    compiler = os.environ.get("CXX", "g++")  # as torch's own
    if shutil.which(compiler) is None:
        raise LeftOut(f"there is no C++ compiler {compiler} here")
    options = {"compile_threads": 1, **UNBOUNDED}
    if options.keys() - torch._inductor.list_options():
        raise LeftOut(f"what torch {torch.__version__} compiles refuses large batches, or checks no images at all; torch 2.15 is needed")
    with quiet():
        torch._inductor.aoti_compile_and_package(source.program, package_path=str(path), inductor_configs=options)


def int8(source: Source, path: Path) -> None:
    """The ONNX file beside `path`, its weights and activations in 8 bits: static quantisation, as QuantizeLinear and DequantizeLinear.

    B. Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018;
    weights by channel. The ranges of activations are those that are seen on validation images.

    Raises:
        ConfigError: there are no validation images.
    """
    from onnx import load
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = _spread(source.data.open("validation").images, CALIBRATION)
    if not len(images):
        raise ConfigError(CALIBRATED)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        blocks = iter([{"images": images[at : at + AT_ONCE]} for at in range(0, len(images), AT_ONCE)])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(self.blocks, None)

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, quiet():
        folded = Path(folder) / "folded.onnx"
        quant_pre_process(path.with_name(FILES["onnx"]), folded, skip_symbolic_shape=True)
        whole = [node.name for node in _in_float(load(folded).graph)]
        quantize_static(folded, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, nodes_to_exclude=whole)


def _in_float(graph: "GraphProto") -> Iterator["NodeProto"]:
    """The nodes that 8 bits are not for.

    Softmax: 256 probabilities would be too few. Products of two activations, as attention has: a softmax between two such products
    is made one of 8 bits by onnxruntime when it opens the file, which to 1.31 takes the largest values for the least (its issue
    29727). LayerNormalization: there is none of 8 bits, so that its input would be rounded for nothing, and it is slower.
    """
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Softmax", "LayerNormalization") or (node.op_type == "MatMul" and not constant & set(node.input)):
            yield node


def _spread(parts: Sequence[NDArray[np.uint8]], most: int) -> NDArray[np.uint8]:
    """`most` of the images in `parts`, evenly from first to last; all, if there are fewer."""
    count = sum(map(len, parts))
    chosen = np.linspace(0, count, min(count, most), endpoint=False).astype(int)
    starts = np.cumsum([0, *map(len, parts)])
    where = np.searchsorted(starts, chosen, side="right") - 1
    return np.array([parts[part][row - starts[part]] for part, row in zip(where, chosen, strict=True)], np.uint8)


FORMATS: dict[str, Callable[[Source, Path], None]] = {
    "safetensors": safetensors,
    "onnx": onnx,
    "int8": int8,
    "pt2": pt2,
    "aotinductor": aotinductor,
}
FILES = {
    "safetensors": "model.safetensors",
    "onnx": "model.onnx",
    "int8": "model.int8.onnx",
    "pt2": "model.pt2",
    "aotinductor": "model.aotinductor.pt2",
}


def completed(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Each of `specs` once, with those that are always made, in the order of the table."""
    named = {spec.name for spec in specs} | set(ALWAYS)
    return tuple(Spec(name=name) for name in FORMATS if name in named)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What libraries say of their progress and their deprecations is not for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
