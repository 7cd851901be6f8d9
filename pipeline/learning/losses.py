"""What training makes small: functions of logits [B, K] and targets to losses [B], one an image.

Targets are labels, int64 [B], or shares of every class that sum to 1, float [B, K]; a label stands for
the whole of its class.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

Of = Literal["probabilities", "logits"]


def cross_entropy(logits: "Tensor", targets: "Tensor", *, label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0) -> "Tensor":
    from torch.nn import functional as F

    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


def mse(logits: "Tensor", targets: "Tensor", *, of: Of = "probabilities") -> "Tensor":
    """The mean over classes of the squared difference; of probabilities, the Brier score over K."""
    return (_outputs(logits, of) - _shares(targets, logits)).square().mean(1)


def l1(logits: "Tensor", targets: "Tensor", *, of: Of = "probabilities") -> "Tensor":
    """The mean over classes of the absolute difference."""
    return (_outputs(logits, of) - _shares(targets, logits)).abs().mean(1)


def kl_div(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """KL(target || softmax): the cross-entropy less the target's own entropy, so 0 at best, with the same gradient."""
    from torch.nn import functional as F

    return F.kl_div(logits.log_softmax(1), _shares(targets, logits), reduction="none").sum(1)


def focal(logits: "Tensor", targets: "Tensor", *, gamma: Annotated[float, Field(ge=0)] = 2.0) -> "Tensor":
    """The cross-entropy with (1 - p)^gamma before each class's logarithm: less of what is easy.

    T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017, equation 4, with a softmax.
    """
    import torch

    log_p = logits.log_softmax(1)
    missing = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)  # 1 - p; a power below 1 has no slope at 0
    return -(_shares(targets, logits) * missing.pow(gamma) * log_p).sum(1)


def _outputs(logits: "Tensor", of: Of) -> "Tensor":
    return logits.softmax(1) if of == "probabilities" else logits


def _shares(targets: "Tensor", logits: "Tensor") -> "Tensor":
    """Targets as float [B, K]."""
    from torch.nn import functional as F

    return targets if targets.is_floating_point() else F.one_hot(targets, logits.shape[1]).to(logits.dtype)


LOSSES: dict[str, Callable[..., "Tensor"]] = {"cross_entropy": cross_entropy, "mse": mse, "l1": l1, "kl_div": kl_div, "focal": focal}
