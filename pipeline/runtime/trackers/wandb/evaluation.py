"""What W&B shows of an evaluation: a table of predictions with their images, confusion matrix, ROC and precision-recall curves."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.runtime import manifests

ROWS = 100  # of the table: as many mistakes, at most, and as many others
MATRIX, CURVES = 50, 20  # classes: of more, nobody can read them

Numbers = NDArray[np.int64]


def shown(report: Path, data: Path) -> dict[str, Any]:
    """By name, what is to be logged of the artifacts `report` and `data`."""
    import wandb
    from safetensors.numpy import load_file

    manifest, _ = manifests.read(data)
    answers = load_file(report / "predictions.safetensors")
    if manifest is None:
        return {}
    classes: list[str] = manifest.result["classes"]
    labels, predicted = answers["test.labels"], answers["test.predicted"]
    found: dict[str, Any] = {"predictions": _table(answers, manifest.result, data)}
    if len(classes) <= MATRIX:
        found["confusion_matrix"] = wandb.plot.confusion_matrix(y_true=labels.tolist(), preds=predicted.tolist(), class_names=classes)
    if len(classes) <= CURVES and "test.probabilities" in answers:
        present = np.unique(labels)  # the client takes the columns for those of the classes that are there
        kept: dict[str, Any] = {"y_true": labels, "y_probas": answers["test.probabilities"][:, present], "labels": classes}
        found |= {"roc": wandb.plot.roc_curve(**kept), "precision_recall": wandb.plot.pr_curve(**kept)}
    return found


def _table(answers: dict[str, NDArray[Any]], facts: dict[str, Any], data: Path) -> Any:
    import wandb

    labels, predicted, confidence = (answers[f"test.{name}"] for name in ("labels", "predicted", "confidence"))
    classes, rows = facts["classes"], chosen(labels, predicted, confidence)
    table = wandb.Table(columns=["image", "label", "predicted", "confidence", "correct"])
    for row, image in zip(rows, _images([data / name for name in facts["shards"]["test"]], facts["shape"], rows), strict=True):
        label, said = int(labels[row]), int(predicted[row])
        table.add_data(wandb.Image(image), classes[label], classes[said], float(confidence[row]), label == said)
    return table


def chosen(labels: Numbers, predicted: Numbers, confidence: NDArray[np.float32]) -> Numbers:
    """Rows [at most 2 * ROWS]: the mistakes of which the model was surest, then others, spread evenly over the split."""
    wrong = np.flatnonzero(labels != predicted)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:ROWS]
    others = np.setdiff1d(np.arange(len(labels)), wrong)
    return np.concatenate([wrong, others[np.linspace(0, len(others) - 1, min(ROWS, len(others))).astype(np.int64)]])


def _images(shards: list[Path], shape: tuple[int, int, int], rows: Numbers) -> list[NDArray[np.uint8]]:
    """[H, W, C] each, or [H, W] if grey: the rows of the split whose shards are memory-mapped one after the other."""
    import pyarrow as pa

    found: dict[int, NDArray[np.uint8]] = {}
    first = 0
    for path in shards:
        with pa.memory_map(str(path)) as source:
            column = pa.ipc.open_stream(source).read_next_batch().column("image")
            for row in rows[(rows >= first) & (rows < first + len(column))]:
                values = column[int(row) - first].values
                pixels = np.frombuffer(values.buffers()[1], np.uint8, len(values), values.offset).reshape(shape)
                found[int(row)] = pixels.transpose(1, 2, 0).squeeze().copy()
            first += len(column)
    return [found[int(row)] for row in rows]
