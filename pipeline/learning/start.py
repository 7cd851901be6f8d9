"""How training begins: the weights drawn or loaded, and the parameters that stay as they are."""

import difflib
import fnmatch
import hashlib
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pipeline import reading
from pipeline.config import Spec
from pipeline.errors import ConfigError, DataError
from pipeline.learning.inits import INITS
from pipeline.runtime import files, pickled
from pipeline.runtime.console import say
from pipeline.runtime.trackers.wandb.fetch import fetch

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = ("train/weights.safetensors", "weights.safetensors", "export/model.safetensors", "model.safetensors")


def weights(model: "nn.Module", *, path: str = "", head: Literal["auto", "new"] = "auto") -> None:
    """Copy the weights at `path` into `model`: a run, an export, a .safetensors file, or a .pth file of tensors.

    The last layer stays as drawn if `head` is new, or if that of the file has other classes. The
    first convolution of a model for grey images takes the sum over colours.

    Raises:
        ConfigError: another layer is missing or has another shape.
    """
    kept, fresh = fitting(model, path=path, head=head)
    model.load_state_dict(kept, strict=False)
    say(f"train: begins with {path}" + (f", but for a new last layer ({fresh})" if fresh else ""))


def fitting(model: "nn.Module", *, path: str, head: str) -> "tuple[dict[str, Tensor], str]":
    """What of the weights at `path` goes into `model`, by name; and the last layer, if that stays as drawn. As of `weights`."""
    from pipeline.learning.models import head as head_of

    found, wanted = _read(find(path)), model.state_dict()
    kept: dict[str, Tensor] = {}
    last = head_of(model)
    fresh = {name for name in wanted if name.rpartition(".")[0] == last}
    if head == "auto" and all(name in found and found[name].shape == wanted[name].shape for name in fresh):
        fresh = set()
    for name, target in wanted.items():
        value = found.get(name)
        if value is not None and value.dim() == 4 and value.shape[1] == 3 and target.shape == (len(value), 1, *value.shape[2:]):
            value = value.sum(1, keepdim=True)
        if value is not None and value.shape == target.shape:
            kept[name] = value
        elif name not in fresh and not name.endswith("num_batches_tracked"):
            what = "no" if value is None else f"{list(value.shape)} for the {list(target.shape)} of"
            raise ConfigError(f"train.init: {path} has {what} {name}; choose the train.model that it was made with")
    return {name: value for name, value in kept.items() if name not in fresh}, last if fresh else ""


BEGINNINGS: dict[str, Callable[..., None]] = {**INITS, "weights": weights}


def beginning(spec: Spec) -> Spec:
    """`train.init` as it is written in full: a name that is none of the table is a place."""
    is_place = spec.name not in BEGINNINGS and (re.search(r"[/:]|\.(safetensors|pth?)$", spec.name) or Path(spec.name).exists())
    return Spec(name="weights", options={"path": spec.name, **spec.options}) if is_place else spec


def at_hand(spec: Spec, artifacts: Path) -> Spec:
    """`spec` with its weights in a file: those of `wandb:entity/project/name:alias` are fetched to below `artifacts`.

    Raises:
        ConfigError: there are none, or the file holds something else.
    """
    if spec.name != "weights":
        return spec
    path: str = spec.options["path"]
    if path.startswith("wandb:"):
        path = str(fetch(path.removeprefix("wandb:"), artifacts))
    _look(find(path))
    return Spec(name=spec.name, options={**spec.options, "path": path})


@dataclass(frozen=True)
class Beginning:
    """What training depends on: the content of the weights that it begins with, not their place."""

    spec: Spec

    def reasons(self) -> dict[str, Any]:
        if self.spec.name != "weights":
            return {}
        path = find(self.spec.options["path"])
        _look(path)
        with reading.opened(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"train.init": {"name": "weights", "head": self.spec.options["head"], "sha256": digest}}


def find(path: str) -> Path:
    """The file of weights of a run, an export, or itself; as the manifest says that lies beside it, if one does.

    Raises:
        ConfigError: there is none.
        DataError: it, or the manifest, has changed.
    """
    place = Path(path).expanduser()
    for candidate in (place / name for name in WEIGHTS) if place.is_dir() else (place,):
        if candidate.is_file():
            manifest, broken = files.read_manifest(candidate.parent)
            outputs = {} if manifest is None else manifest.get("outputs", {})
            listed = {name: found for name, found in outputs.items() if name == candidate.name}
            if broken := broken or files.damage(candidate.parent, listed):
                raise DataError(f"train.init: {candidate.parent} is damaged: {broken}; the command that made it makes it again")
            return candidate
    raise ConfigError(f"train.init: no weights in {path or 'train.init.path'}; give a run, an export, or a .safetensors or .pth file")


def _read(file: Path) -> "dict[str, Tensor]":
    import torch
    from safetensors.torch import load_file

    _look(file)
    try:
        found = (
            load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
        )  # runs no code
    except Exception:  # both raise anything on what they have not written
        raise ConfigError(f"train.init: {file} is no file of tensors alone; save the state dict of the model") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(name, str) and _is_plain(value) for name, value in found.items()):
        raise ConfigError(f"train.init: {file} is not a state dict; save model.state_dict()")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in found.items()}


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with all its numbers in memory."""
    import torch

    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _look(file: Path) -> None:
    """See that a file of weights is what its name says, and stands for no more bytes than it has, before any is loaded.

    torch's own reader runs no code, but takes memory as a file tells it to: by `bytearray`, or a packed part of its zip.

    Raises:
        ConfigError: it is not.
    """
    from safetensors import safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "numpy"):  # maps it, and compares its head with its size
                return
        with reading.opened(file) as opened:
            if zipfile.is_zipfile(opened):
                _look_zipped(opened)
            else:
                opened.seek(0)
                for _ in range(5):  # as torch wrote them before 1.6: a number, a version, the machine, the values, the names of storages
                    pickled.read(opened, _is_of_tensors)
    except pickled.Refused as error:
        raise ConfigError(f"train.init: {file} is no file of tensors alone: it {error}") from None
    except Exception as error:  # zipfile's own, safetensors' own, OSError
        raise ConfigError(f"train.init: {file} is no file of tensors alone: {' '.join(str(error).split())[:200]}") from None


def _look_zipped(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as parts:
        listed = parts.infolist()
        if (
            any(part.compress_type != zipfile.ZIP_STORED for part in listed)
            or sum(part.file_size for part in listed) > os.fstat(file.fileno()).st_size
        ):
            raise ValueError("its parts are packed, or overlap")
        values = [part for part in listed if part.filename.rpartition("/")[2] == "data.pkl"]
        if len(values) != 1:
            raise ValueError("it has no data.pkl, or several")
        pickled.read(parts.read(values[0]), _is_of_tensors)


def _is_of_tensors(name: str) -> bool:
    """Whether what a pickle names is part of a tensor, or an ordered dict; torch has a list of those, some of which take memory."""
    return name.startswith(("torch.", "collections.OrderedDict")) and name.count(".") <= 3


def freeze(model: "nn.Module", patterns: tuple[str, ...]) -> None:
    """Let the parameters whose names match a pattern stay as they are: `layer1.*`, `*.bias`.

    Raises:
        ConfigError: a pattern matches none, or together they match all.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        matched = fnmatch.filter(named, pattern)
        if not matched:
            raise ConfigError(f"train.freeze: no parameter is named {pattern!r}{_nearest(pattern, [*named])}")
        for name in matched:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigError("train.freeze: no parameter is left to learn; freeze fewer")


def _nearest(pattern: str, names: list[str]) -> str:
    """What of `names`, or of all in one layer, could have been meant; else what they look like."""
    layers = [f"{'.'.join(parts[:k])}.*" for parts in (name.split(".") for name in names) for k in range(1, len(parts))]
    if near := difflib.get_close_matches(pattern, [*names, *layers], n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; among them are {', '.join(names[:3])}, {names[-1]}, and `pipeline model` names all"


def train_mode(model: "nn.Module") -> None:
    """`model.train()`, but for frozen BatchNorms: their running statistics stay as well."""
    from pipeline.runtime.strategies import batch_norms

    model.train()
    for norm in batch_norms(model):
        parameters = list(norm.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            norm.eval()
