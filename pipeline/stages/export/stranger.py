"""What somebody else does with an export: opens each file and uses it, with public packages alone.

This file is run by its path, in a process of its own that cannot import the package it lies in. It is asked on stdin and
answers on stdout, a line of JSON each; of an array the line has the shape, and its bytes follow. It ends when stdin does.

    {"weights": "model.safetensors"}                   -> {"weights": {name: [dtype, shape, sha256 of its bytes]}}
    {"open": "onnx", "file": "model.onnx", "threads": 2} -> {}
    {"run": "onnx", "shape": [B, C, H, W]} and uint8   -> {"shape": [2, B, K]} and float32: logits, probabilities
    {"time": "onnx", "shape": [B, C, H, W]} and uint8  -> {"ms": median of a run, "runs": n}
    {"imported": "pipeline"}                           -> {"imported": modules of that package}

What goes wrong is answered too: {"error": "..."}.
"""

import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

PACKAGE = "pipeline"
WARM, RUNS, SECONDS = 2, 50, 0.3  # calls that do not count; then so many, or for so long, of which one is made at least

Images = NDArray[np.uint8]  # [B, C, H, W]
Model = Callable[[Images], Sequence[Any]]  # logits and probabilities, [B, K]


class Refusal(MetaPathFinder):
    """The package is not to be found, wherever and however it is installed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Raises ImportError if `name` is of the package."""
        if name.partition(".")[0] == PACKAGE:
            raise ImportError(f"{name}: an export is to be used without the package that made it")


def onnx(file: str, threads: int) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits", "probabilities"], {"images": images})


def pt2(file: str, threads: int) -> Model:
    import torch

    torch.set_num_threads(threads)
    return _of_torch(torch.export.load(file).module())


def aotinductor(file: str, threads: int) -> Model:
    import torch

    os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"  # as its user is told to
    torch.set_num_threads(threads)
    return _of_torch(torch._inductor.aoti_load_package(file))


def _of_torch(program: Callable[..., Any]) -> Model:
    import torch

    def run(images: Images) -> Sequence[Any]:
        with torch.no_grad():
            return [found.numpy() for found in program(torch.from_numpy(images))]

    return run


OPEN: dict[str, Callable[[str, int], Model]] = {"onnx": onnx, "int8": onnx, "pt2": pt2, "aotinductor": aotinductor}


def weights(file: str) -> dict[str, list[Any]]:
    from safetensors.numpy import load_file

    return {
        name: [str(found.dtype), list(found.shape), hashlib.sha256(found.tobytes()).hexdigest()] for name, found in load_file(file).items()
    }


def timed(model: Model, images: Images) -> dict[str, Any]:
    """The median of several runs, in milliseconds."""
    for _ in range(WARM):
        model(images)
    passed: list[float] = []
    while not passed or (len(passed) < RUNS and sum(passed) < SECONDS):
        began = time.perf_counter()
        model(images)
        passed.append(time.perf_counter() - began)
    return {"ms": 1000 * statistics.median(passed), "runs": len(passed)}


def answer(asked: dict[str, Any], images: Images, models: dict[str, Model]) -> tuple[dict[str, Any], bytes]:
    """The line that answers `asked`, and the bytes after it; `models` are those that are open."""
    if "weights" in asked:
        return {"weights": weights(asked["weights"])}, b""
    if "open" in asked:
        models[asked["open"]] = OPEN[asked["open"]](asked["file"], asked["threads"])
        return {}, b""
    if "run" in asked:
        found = np.stack([np.asarray(each, np.float32) for each in models[asked["run"]](images)])
        return {"shape": found.shape}, found.tobytes()
    if "time" in asked:
        return timed(models[asked["time"]], images), b""
    return {"imported": [name for name in sys.modules if name.partition(".")[0] == asked["imported"]]}, b""


def main(told: BinaryIO, said: BinaryIO) -> None:
    models: dict[str, Model] = {}
    for line in told:
        asked = json.loads(line)
        shape = asked.get("shape", [0])
        images = np.frombuffer(told.read(math.prod(shape)), np.uint8).reshape(shape).copy()  # which torch may write to
        try:
            found, content = answer(asked, images, models)
        except Exception as error:
            found, content = {"error": f"{type(error).__name__}: {error}"}, b""
        said.write(json.dumps(found).encode() + b"\n" + content)
        said.flush()


if __name__ == "__main__":
    sys.meta_path.insert(0, Refusal())
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    main(sys.stdin.buffer, answers)
