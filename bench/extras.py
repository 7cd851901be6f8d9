"""What the extras cost: python -m bench.extras DATA [--pairs N]

LeNet-5 on MNIST, batch 64: a checkpoint every epoch, metrics of every step, told every step or (as by default) every fifty, W&B
offline, beside the same training without them, in windows of an epoch that take turns. The ratio is the median of those of
neighbours; the first window, which warms up, is left out.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from bench.alternate import ratio, windows
from bench.measure import Row, keep, spread

EXTRAS = ("pipeline.stages.record:Record.training", "pipeline.learning.metrics:Tally.add")  # what is told to W&B is told by the first
WORK = ("data.source=mnist", "train.model=lenet5", "train.augment=[]", "data.validation=0", "run.trackers=[wandb]", "run.threads=1")
BATCH, EPOCH = 64, 937  # steps of an epoch of 60,000 images


def measured(data: Path, pairs: int, every: int) -> Row:
    often = (
        f"train.batch_size={BATCH}",
        f"run.log_every={every}",
        f"run.checkpoint_every={EPOCH}",
        f"train.steps={(2 * pairs + 1) * EPOCH}",
    )
    with tempfile.TemporaryDirectory() as work:
        on, off = windows(Path(work), ["train", "--data-dir", str(data), *WORK, *often], EXTRAS)
    without, ours = (statistics.median(seconds) / EPOCH * 1e3 for seconds in (off, on))
    each = {"without, ms": round(without, 3), "ours, ms": round(ours, 3), "ratio": round(ratio(on, off), 4)}
    what = f"a step with a checkpoint every epoch, metrics of every step, told every {every}, W&B offline"
    return {"what": what, **each, "pairs": pairs, "spread": spread(on), "least, ratio": round(min(on) / min(off), 4)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    asked = parser.parse_args()
    keep("extras", [measured(asked.data.absolute(), asked.pairs, every) for every in (1, 50)], settings=WORK)
