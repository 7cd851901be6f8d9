"""What training makes small: functions of logits [B, K] and labels [B] to losses [B], one an image."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(logits: "Tensor", labels: "Tensor", *, label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0) -> "Tensor":
    from torch.nn import functional as F

    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


LOSSES: dict[str, Callable[..., "Tensor"]] = {"cross_entropy": cross_entropy}
