"""A small run, variations of it, and the places in the code by which its phases are known."""

import conftest

TINY = [*conftest.TINY, "train.epochs=2", "run.checkpoint_every=4", "run.trackers=[]"]
RECIPES = {
    "momentum": ["train.optimizer={name: sgd, momentum: 0.9}"],
    "adamw, average": ["train.optimizer=adamw", "train.lr=0.003", "train.average={name: ema, decay: 0.9}", "train.warmup=1"],
    "dropout, batch norm": ["train.model={name: wrn_16_4, depth: 10, widen: 1, dropout: 0.3}", "train.steps=12"],
    "accumulation": ["train.accumulate=3", "train.batch_size=13"],
    "workers": ["run.workers=2"],
    "float16": ["train.precision=fp16", "train.lr=1"],
    "a checkpoint a step": ["run.checkpoint_every=1", "run.keep=1"],
    "lines that span": ["run.log_every=7", "run.checkpoint_every=3", "train.validate_every=0.4"],
    "mixup, plateau": ["train.mix=mixup", "train.schedule={name: plateau, patience: 0, factor: 0.5}", "train.validate_every=0.3"],
    "wandb": ["run.trackers=[{name: wandb, mode: offline}]"],
}
PHASES = {
    "start-up": ["pipeline.main:make", "pipeline.runtime.world:World.__init__", "pipeline.stages.train:initial_state"],
    "prepare": ["pipeline.stages.prepare:prepare", "pipeline.data.shards:write"],
    "in the batch": ["pipeline.data.batches:TrainBatches._batch"],
    "forward": ["pipeline.runtime.world:World.forward"],
    "backward": ["torch:Tensor.backward"],
    "optimizer": ["torch.amp.grad_scaler:GradScaler.step"],
    "log line": ["pipeline.stages.record:Record.training", "pipeline.runtime.journal:Journal.append"],
    "validation": ["pipeline.stages.train:validate"],
    "checkpoint": [
        "pipeline.stages.record:Record.save",
        "pipeline.learning.state:save",
        "pipeline.learning.state:write",
        "pipeline.runtime.files:commit_folder",
        "pipeline.runtime.files:sync",
        "pipeline.runtime.files:remove",
    ],
    "last weights": ["pipeline.stages.train:finish", "pipeline.learning.state:write"],
    "manifest": ["pipeline.runtime.runner:commit"],
    "evaluation": ["pipeline.stages.evaluate:_answers", "pipeline.stages.evaluate:_keep", "pipeline.stages.evaluate:_write"],
    "export": ["pipeline.stages.export:_write", "pipeline.stages.export.check:compare", "pipeline.stages.export.card:card"],
    "any moment": [""],
}
UNTIL = {"evaluation": "evaluate", "export": "run", "manifest": "run", "any moment": "run"}  # of other phases train: seconds less
PLACES = list(dict.fromkeys(place for places in PHASES.values() for place in places if place))
