"""Mistakes of people who type: one line that says where, what was found and what to write instead; exit code 2, and nothing done.

A table's key is what follows `pipeline run`, or all that follows `pipeline`; its value is how the line begins.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt
from conftest import Run
from mistakes import told
from pydantic.fields import FieldInfo
from safetensors.numpy import save_file

from pipeline.arguments import _commands, _parser
from pipeline.config import Config, Spec, options_of, validated
from pipeline.data.augment import AUGMENTATIONS, MIXES, VIEWS
from pipeline.data.datasets import DATASETS
from pipeline.errors import ConfigError
from pipeline.learning.losses import LOSSES
from pipeline.learning.models import MODELS
from pipeline.learning.optim import OPTIMIZERS
from pipeline.learning.schedules import AVERAGES, SCHEDULES
from pipeline.learning.start import BEGINNINGS
from pipeline.plan import check
from pipeline.runtime.folder import vacate
from pipeline.runtime.trackers import TRACKERS
from pipeline.stages.export.formats import FORMATS

WORDS = {
    "train.lr": "cannot read the configuration train.lr: No such file or directory; a setting is written as section.key=value",
    "train": "cannot read the configuration train: No such file or directory; a setting is written as section.key=value",
    "=3": "'=3' is neither a configuration file nor section.key=value",
    "train.=3": "'train.=3' is neither a configuration file nor section.key=value",
    ".lr=3": "'.lr=3' is neither a configuration file nor section.key=value",
    "train..lr=3": "'train..lr=3' is neither a configuration file nor section.key=value",
    "lr=3": "'lr=3' is neither a configuration file nor section.key=value; did you mean train.lr?",
    "seed=3": "'seed=3' is neither a configuration file nor section.key=value; did you mean data.seed or train.seed?",
    "model=lenet": "'model=lenet' is neither a configuration file nor section.key=value; did you mean train.model?",
    "trian.lr=1": "trian: no such key; did you mean 'train'?",
    "train.lrate=1": (
        "train.lrate: no such key; choose from model, init, freeze, batch_norm, loss, optimizer, lr, schedule, lr_by, warmup, clip,"
    ),
    "train.device=cpu": "train.device: no such key; did you mean 'run.device'?",
    "run.lr=1": "run.lr: no such key; did you mean 'train.lr'?",
    "train.epohcs=3": "train.epohcs: no such key; did you mean 'epochs'?",
    "train=3": "'train=3' is neither a configuration file nor section.key=value; did you mean train.KEY=VALUE?",
    "train={lr: 1}": "'train={lr: 1}' is neither a configuration file nor section.key=value; did you mean train.KEY=VALUE?",
    "train.model.nmae=lenet": "train.model.nmae: no such key; choose from channels, kernel, pool, hidden, dropout",
    "Train.lr=1": "Train: no such key; did you mean 'train'?",
    "train.LR=1": "train.LR: no such key; did you mean 'lr'?",
    "--train.lr=1": (
        "run: --train.lr=1 is not understood; choose from --help, --data-dir, --seed, --force, --json (see `pipeline run --help`)"
    ),
    "train:lr=1": "'train:lr=1' is neither a configuration file nor section.key=value",
    "train.model.kernal=3": "train.model.kernal: no such key; did you mean 'kernel'?",
    "train.model={name: lenet, options: {kernel: 3}, dropout: 0.5}": "train.model.dropout: no such key; choose from name, options",
    "train.optimizer.lr=3": "train.optimizer.lr: no such key; choose from momentum, nesterov, weight_decay, decay, bias_lr",
    "train.schedule.milestones=[1]": "train.schedule.milestones: no such key; choose from warmup, start, end",
    "data.source.train=0": "data.source.train: no such key; choose from size",
    "data.source={name: huggingface, revison: x}": "data.source.revison: no such key; did you mean 'revision'?",
    "evaluate.min_acuracy=1": "evaluate.min_acuracy: no such key; did you mean 'min_accuracy'?",
    "export.format=onnx": "export.format: no such key; did you mean 'formats'?",
    "export.formats=[onxx]": "export.formats.0: no 'onxx'; did you mean 'onnx'?",
    "export.int8_loss=2": "export.int8_loss: expected 1 or less (got 2)",
    "x.y.z=1": "x: no such key; choose from data, train, evaluate, export, run",
}

DATA_AND_RUN = {
    "data.seed=-1": "data.seed: expected 0 or more (got -1)",
    "run.name=": "run.name: nothing stands behind '='; give a value, or leave it out",
    "run.name=null": "run.name: expected text (got null)",
    "run.name=a/b": (
        "run.name: a name is of letters, digits and . _ -, of which the first is a letter or digit, and at most 100 long (got 'a/b')"
    ),
    "run.name=../up": (
        "run.name: a name is of letters, digits and . _ -, of which the first is a letter or digit, and at most 100 long (got '../up')"
    ),
    "run.name=-rf": (
        "run.name: a name is of letters, digits and . _ -, of which the first is a letter or digit, and at most 100 long (got '-rf')"
    ),
    "run.name=a b": (
        "run.name: a name is of letters, digits and . _ -, of which the first is a letter or digit, and at most 100 long (got 'a b')"
    ),
    "run.name=3": "run.name: expected text (got 3; in quotes, '\"3\"', it is text)",
    "run.name=[a]": 'run.name: expected text (got ["a"])',
    "run.folder=": "run.folder: nothing stands behind '='; give a value, or leave it out",
    "run.folder=[a]": 'run.folder: expected a path (got ["a"])',
    'run.folder="a\\0b"': "run.folder: expected a path, in which no character is NUL (got 'a\\x00b')",
    "run.artifacts=3": "run.artifacts: expected a path (got 3)",
    "data.root=null": "data.root: expected a path (got null)",
    "run.trackers=wandb,tensorboard": "run.trackers.0: no 'wandb,tensorboard'; did you mean 'tensorboard'?",
    "run.trackers=[wandb, {name: wandb, project: other}]": (
        "run.trackers: wandb is named twice; once is enough for all that there is to tell"
    ),
    "run.trackers=tensorboardX": "run.trackers.0: no 'tensorboardX'; did you mean 'tensorboard'?",
    "run.trackers={wandb: 1}": 'run.trackers: expected a list of values, as [a, b], or [] for none (got {"wandb": 1})',
    "run.trackers=null": "run.trackers: expected a list of values, as [a, b], or [] for none (got null)",
    "run.trackers=false": "run.trackers.0: expected a name, or {name: ..., option: ...} (got false)",
    "run.trackers=[wanbd]": "run.trackers.0: no 'wanbd'; did you mean 'wandb'?",
    "run.trackers.mode=offline": "'run.trackers.mode=offline': trackers is [\"wandb\"], which has no keys; give it a value as a whole",
    "run.trackers.0=wandb": "'run.trackers.0=wandb': trackers is [\"wandb\"], which has no keys; give it a value as a whole",
    "run.trackers=[{name: wandb, mode: of}]": "run.trackers.0.mode: no choice 'of'; choose from auto, online, offline, disabled",
    "data.source=minst": "data.source: no 'minst'; did you mean 'mnist'?",
    "data.source=/data/x": "data.source: no '/data/x'; choose from digits, synthetic, mnist, cifar10, folder, huggingface",
    "data.source={name: synthetic, classes: 0}": "data.source.classes: expected 1 or more (got 0)",
    "data.source={name: synthetic, channels: 2}": "data.source.channels: no choice 2; choose from 1, 3",
    "data.size=0": "data.size: expected 1 or more (got 0)",
    "data.size=28x28": "data.size: expected a whole number (got '28x28')",
    "data.size=[28, 28]": "data.size: expected a whole number (got [28, 28])",
    "data.size=100000": "data.size: expected 8192 or less (got 100000)",
    "data.channels=2": "data.channels: no choice 2; choose from 1, 3",
    "data.channels=rgb": "data.channels: no choice 'rgb'; choose from 1, 3",
    "data.channels=true": "data.channels: expected a number, not true or false (got true)",
    "data.validation=1": "data.validation: expected a number below 1 (got 1)",
    "data.validation=50": "data.validation: expected a number below 1 (got 50)",
    "data.validation=10%": "data.validation: expected a number (got '10%'; write 0.1)",
    "data.validation=-0.1": "data.validation: expected 0 or more (got -0.1)",
    "evaluate.views=[miror]": "evaluate.views.0: no 'miror'; did you mean 'mirror'?",
    "evaluate.views=[{name: shift, pixels: 0}]": "evaluate.views.0.pixels: expected 1 or more (got 0)",
    "evaluate.min_accuracy=95": "evaluate.min_accuracy: expected 1 or less (got 95)",
    "export.tolerance=0": "export.tolerance: expected a number above 0 (got 0)",
    "run.device=gpu": "run.device: no choice 'gpu'; did you mean 'cpu'?",
    "run.device=cuda": "run.device: no choice 'cuda'; choose from auto, cpu",
    "run.strategy=dpd": "run.strategy: no choice 'dpd'; did you mean 'dp'?",
    "run.strategy=DDP": "run.strategy: no choice 'DDP'; did you mean 'ddp'?",
    "run.compile=yes": "run.compile: no choice 'yes'; choose from no, inductor, aot_eager",
    "run.compile=true": "run.compile: no choice true; choose from no, inductor, aot_eager",
    "run.cuda_graph=yes": "run.cuda_graph: no choice 'yes'; choose from auto, no",
    "run.channels_last=maybe": "run.channels_last: expected true or false (got 'maybe')",
    "run.time_limit=2x": "run.time_limit: a duration is written as 90s, 45m, 1h30m or 2d (got '2x')",
    "run.time_limit=0s": "run.time_limit: expected a duration above 0 (got '0s')",
    "run.time_limit=1:30:00": "run.time_limit: a duration is written as 90s, 45m, 1h30m or 2d (got '1:30:00')",
    "run.time_limit=-5m": "run.time_limit: a duration is written as 90s, 45m, 1h30m or 2d (got '-5m')",
    "run.time_limit=true": "run.time_limit: expected a duration, as 45m, not true or false (got true)",
    "run.hang_timeout=never": "run.hang_timeout: a duration is written as 90s, 45m, 1h30m or 2d (got 'never')",
    "run.processes=0": "run.processes: expected 1 or more (got 0)",
    "run.threads=-1": "run.threads: expected 1 or more (got -1)",
    "run.threads=100000": "run.threads: expected 1024 or less (got 100000)",
    "run.workers=-1": "run.workers: expected 0 or more (got -1)",
    "run.workers=1.5": "run.workers: expected a whole number (got 1.5)",
    "run.scratch=3": "run.scratch: expected text (got 3; in quotes, '\"3\"', it is text)",
    "run.keep=0": "run.keep: expected 1 or more (got 0)",
    "run.log_every=0": "run.log_every: expected 1 or more (got 0)",
    "run.checkpoint_every=0": "run.checkpoint_every: expected 1 or more (got 0)",
    "run.eval_batch_size=0": "run.eval_batch_size: expected 1 or more (got 0)",
    "data.root=https://me:secret12345@host/x": (
        "data.root: this looks like a credential, and a configuration is kept and shown; put it into the environment or ~/.netrc"
    ),
    "run.folder=good.yaml": "run.folder: good.yaml is a file, and a folder is needed; move it, or give another run.folder",
    "run.artifacts=good.yaml/x": "run.artifacts: good.yaml is a file, and a folder is needed; move it, or give another run.artifacts",
}

TRAIN = {
    "train.lr=": "train.lr: nothing stands behind '='; give a value, or leave it out",
    "train.model=": "train.model: nothing stands behind '='; give a value, or leave it out",
    "train.model.=3": "'train.model.=3' is neither a configuration file nor section.key=value",
    "train.model.name=3": 'train.model: expected a name, or {name: ..., option: ...} (got {"name": 3})',
    "train.lr=[1": "train.lr: expected a number (got '[1')",
    "train.lr=0,1": "train.lr: expected a number (got '0,1')",
    "train.lr=1/3": "train.lr: expected a number (got '1/3')",
    "train.lr=10%": "train.lr: expected a number (got '10%'; write 0.1)",
    "train.lr=true": "train.lr: expected a number, not true or false (got true)",
    "train.lr=1:30": "train.lr: expected a number (got '1:30')",
    "train.lr=null": "train.lr: expected a number (got null)",
    "train.lr=big": "train.lr: expected a number (got 'big')",
    "train.lr=-1": "train.lr: expected a number above 0 (got -1)",
    "train.lr=0": "train.lr: expected a number above 0 (got 0)",
    "train.lr=.inf": "train.lr: expected a finite number (got Infinity)",
    "train.lr=nan": "train.lr: expected a finite number (got 'nan')",
    "train.lr=1e400": "train.lr: expected a finite number (got '1e400')",
    "train.lr=[0.1]": "train.lr: expected a number (got [0.1])",
    "train.lr=2026-01-01": "train.lr: expected a number (got '2026-01-01')",
    "train.lr.x=3": "'train.lr.x=3': lr is 0.02, which has no keys; give it a value as a whole",
    "train.seed=-1": "train.seed: expected 0 or more (got -1)",
    "train.seed=1.5": "train.seed: expected a whole number (got 1.5)",
    "train.seed=true": "train.seed: expected a number, not true or false (got true)",
    "train.seed=4294967296": "train.seed: expected a number below 4294967296 (got 4294967296)",
    "train.seed=1e3": "train.seed: expected a whole number (got '1e3')",
    "train.epochs=true": "train.epochs: expected a number, not true or false (got true)",
    "train.epochs=0": "train.epochs: expected a number above 0 (got 0)",
    "train.steps=0": "train.steps: expected 1 or more (got 0)",
    "train.steps=1.5": "train.steps: expected a whole number (got 1.5)",
    "train.lr==1": "train.lr: expected a number (got '=1')",
    "train.augment=none": (
        "train.augment.0: no 'none'; choose from flip, alternating_flip, crop, cutout, color_jitter, rand_augment, trivial_augment,"
    ),
    "train.augment=null": "train.augment: expected a list of values, as [a, b], or [] for none (got null)",
    "train.augment=[flop]": "train.augment.0: no 'flop'; did you mean 'flip'?",
    "train.augment={name: crop}": 'train.augment: expected a list of values, as [a, b], or [] for none (got {"name": "crop"})',
    "train.augment=[crop: 4]": 'train.augment.0: expected a name, or {name: ..., option: ...} (got {"crop": 4})',
    "train.augment=[[crop, 4]]": 'train.augment.0: expected a name, or {name: ..., option: ...} (got ["crop", 4])',
    "train.augment=[{name: crop, padding: -1}]": "train.augment.0.padding: expected 0 or more (got -1)",
    "train.augment=[crop, {name: crop, padding: x}]": "train.augment.1.padding: expected a whole number (got 'x')",
    "train.augment=[{name: flip, probability: 1.5}]": "train.augment.0.probability: expected 1 or less (got 1.5)",
    "train.augment=[{name: rand_augment, magnitude: 31}]": (
        "train.augment.0.bins: the magnitude 31, counted from 0, needs 32 bins or more (got 31)"
    ),
    "train.model=lenet55": "train.model: no 'lenet55'; did you mean 'lenet5'?",
    "train.model=LeNet": "train.model: no 'LeNet'; did you mean 'lenet'?",
    "train.model=resnet": "train.model: no 'resnet'; did you mean 'resnet9'?",
    "train.model=torchvision:resnet18": "train.model: no 'torchvision:resnet18'; did you mean 'torchvision'?",
    "train.model={nmae: lenet}": 'train.model: expected a name, or {name: ..., option: ...} (got {"nmae": "lenet"})',
    "train.model={}": "train.model: expected a name, or {name: ..., option: ...} (got {})",
    "train.model=[lenet]": 'train.model: expected a name, or {name: ..., option: ...} (got ["lenet"])',
    "train.model.kernel=big": "train.model.kernel: expected a whole number (got 'big')",
    "train.model.kernel=0": "train.model.kernel: expected 1 or more (got 0)",
    "train.model.kernel=true": "train.model.kernel: expected a number, not true or false (got true)",
    "train.model.kernel.size=3": 'train.model: expected a name, or {name: ..., option: ...} (got {"kernel": {"size": 3}})',
    "train.model.pool=maxx": "train.model.pool: no choice 'maxx'; did you mean 'max'?",
    "train.model.channels=16": "train.model.channels: expected a list of values, as [a, b], or [] for none (got 16)",
    "train.model.channels=[0]": "train.model.channels.0: expected 1 or more (got 0)",
    "train.model={name: lenet, dropout: 1}": "train.model.dropout: expected a number below 1 (got 1)",
    "train.model={name: wrn_16_4, depth: 17}": "train.model.depth: a wide ResNet has 6n + 4 layers; take 10, 16, 22, 28 or 40 (got 17)",
    "train.model={name: resnet, depth: 101}": "train.model: no 'resnet'; did you mean 'resnet9'?",
    "train.optimizer=adma": "train.optimizer: no 'adma'; did you mean 'adam'?",
    "train.optimizer={lr: 3}": 'train.optimizer: expected a name, or {name: ..., option: ...} (got {"lr": 3})',
    "train.optimizer={name: sgd, nesterov: true}": "train.optimizer.nesterov: needs a momentum above 0 (got true)",
    "train.optimizer={name: sgd, momentum: 1.1}": "train.optimizer.momentum: expected 1 or less (got 1.1)",
    "train.optimizer={name: adam, beta1: 1}": "train.optimizer.beta1: expected a number below 1 (got 1)",
    "train.optimizer={name: adam, weight_decay: -1}": "train.optimizer.weight_decay: expected 0 or more (got -1)",
    "train.schedule=onecycle": "train.schedule: no 'onecycle'; did you mean 'one_cycle'?",
    "train.schedule={name: step, every: 0}": "train.schedule.every: expected a number above 0 (got 0)",
    "train.schedule={name: multi_step, milestones: 3}": (
        "train.schedule.milestones: expected a list of values, as [a, b], or [] for none (got 3)"
    ),
    "train.schedule={name: multi_step, milestones: [-1]}": "train.schedule.milestones.0: expected a number above 0 (got -1)",
    "train.schedule={name: multi_step, milestones: [60, 70]}": (
        "train.schedule.milestones: 70 never comes in 45 epochs; give earlier ones, or more train.epochs"
    ),
    "train.schedule={name: one_cycle, warmup: 2}": "train.schedule.warmup: expected 1 or less (got 2)",
    "train.average=true": "train.average: expected a name, or {name: ..., option: ...} (got true)",
    "train.average.decay=0.9": 'train.average: expected a name, or {name: ..., option: ...} (got {"decay": 0.9})',
    "train.average={name: ema, decay: 1}": "train.average.decay: expected a number below 1 (got 1)",
    "train.average={name: ema, decay: 2}": "train.average.decay: expected a number below 1 (got 2)",
    "train.average={name: swa, start: 1}": "train.average.start: expected a number below 1 (got 1)",
    "train.loss=entropy": "train.loss: no 'entropy'; did you mean 'cross_entropy'?",
    "train.loss=CrossEntropyLoss": "train.loss: no 'CrossEntropyLoss'; did you mean 'cross_entropy'?",
    "train.loss={name: focal, gamma: -1}": "train.loss.gamma: expected 0 or more (got -1)",
    "train.loss={name: cross_entropy, label_smoothing: 2}": "train.loss.label_smoothing: expected 1 or less (got 2)",
    "train.mix=mixupp": "train.mix.0: no 'mixupp'; did you mean 'mixup'?",
    "train.mix=[{name: mixup, alpha: 0}]": "train.mix.0.alpha: expected a number above 0 (got 0)",
    "train.init=kaimin": "train.init: no 'kaimin'; did you mean 'kaiming'?",
    "train.init=imagenet": "train.init: no 'imagenet'; choose from default, kaiming, xavier, orthogonal, normal, dirac, weights",
    "train.init=nowhere/weights.pth": (
        "train.init: no weights in nowhere/weights.pth; give a run, an export, or a .safetensors or .pth file"
    ),
    "train.init=evil.pth": "train.init: evil.pth is no file of tensors alone: it is no pickle (",
    "train.init={name: weights}": "train.init: no weights in train.init.path; give a run, an export, or a .safetensors or .pth file",
    "train.init=wandb:x": "train.init: wandb:x names no artifact; write wandb:entity/project/name:alias",
    "train.init=": "train.init: nothing stands behind '='; give a value, or leave it out",
    "train.precision=bf61": "train.precision: no choice 'bf61'; did you mean 'bf16'?",
    "train.precision=16": "train.precision: no choice 16; did you mean 'fp16'?",
    "train.precision=fp32": "train.precision: no choice 'fp32'; did you mean 'tf32'?",
    "train.determinism=true": "train.determinism: no choice true; choose from resume, elastic",
    "train.shards=3": "train.shards: shards are halved over and over, so take a power of two, as 4 or 8 (got 3)",
    "train.metric=acuracy": "train.metric: no choice 'acuracy'; did you mean 'accuracy'?",
    "train.metric=f1": "train.metric: no choice 'f1'; choose from accuracy, loss, top5, balanced_accuracy, macro_f1",
    "train.select=first": "train.select: no choice 'first'; choose from best, last",
    "train.patience=0": "train.patience: expected 1 or more (got 0)",
    "train.clip=0": "train.clip: expected a number above 0 (got 0)",
    "train.warmup=-1": "train.warmup: expected 0 or more (got -1)",
    "train.warmup=100": "train.warmup: 100 epochs of 45 leave none to train; give fewer, or more train.epochs",
    "train.accumulate=0": "train.accumulate: expected 1 or more (got 0)",
    "train.freeze={a: b}": 'train.freeze: expected a list of values, as [a, b], or [] for none (got {"a": "b"})',
    "train.freeze=3": "train.freeze.0: expected text (got 3; in quotes, '\"3\"', it is text)",
    "train.mean=[a]": "train.mean.0: expected a number (got 'a')",
    "train.mean=[]": "train.mean: expected 1 or more (got [])",
    "train.mean=125.3": "train.mean.0: expected 1 or less (got 125.3)",
    "train.std=0": "train.std.0: expected a number above 0 (got 0)",
    "train.std=63": "train.std.0: expected 1 or less (got 63)",
    "train.batch_size=0": "train.batch_size: expected 1 or more, or 'all' (got 0)",
    "train.batch_size=1.5": "train.batch_size: expected a whole number, or 'all' (got 1.5)",
    "train.batch_size=1k": "train.batch_size: expected a whole number, or 'all' (got '1k')",
    "train.batch_size=all images": "train.batch_size: expected a whole number, or 'all' (got 'all images')",
    "train.batch_size=true": "train.batch_size: expected a number, not true or false (got true)",
    "train.batch_norm=1": "train.batch_norm: expected 'sync' or 'local', or 2 or more (got 1)",
    "train.batch_norm=synk": "train.batch_norm: expected 'sync' or 'local', or a whole number (got 'synk')",
    "train.nonfinite=ignore": "train.nonfinite: no choice 'ignore'; choose from stop, skip, restore",
    "train.validate_every=0": "train.validate_every: expected a number above 0 (got 0)",
    "train.lr_by=batch": "train.lr_by: no choice 'batch'; choose from step, epoch",
}

TOGETHER = {
    "run.strategy=ddp": "run.strategy: ddp needs several processes; start with torchrun, accelerate or srun, or use auto",
    "run.strategy=fsdp": "run.strategy: fsdp needs several processes; start with torchrun, accelerate or srun, or use auto",
    "run.processes=2": (
        "2 processes were asked for, but this is 1 of 1; start `torchrun --nproc-per-node 2 launch/run.py` instead (`accelerate"
    ),
    ("data.validation=0", "train.patience=3"): "train.patience looks at the validation split, but data.validation=0; raise that",
    ("data.validation=0", "train.schedule=plateau"): (
        "train.schedule: plateau looks at the validation split, but data.validation=0; raise that"
    ),
    ("train.determinism=elastic", "train.batch_size=4"): (
        "train.batch_size: 4 images cannot be cut into 8 parts (8 shards, train.accumulate=1); use 8 or more"
    ),
    ("train.batch_size=4", "train.accumulate=8"): (
        "train.batch_size: 4 images cannot be cut into 8 parts (1 process, train.accumulate=8); use 8 or more"
    ),
    ("train.determinism=elastic", "run.strategy=fsdp"): (
        "run.strategy: fsdp adds up gradients in an order of its own; with train.determinism=elastic use auto"
    ),
    ("train.determinism=elastic", "run.strategy=dp"): (
        "run.strategy: dp adds up gradients in an order of its own; with train.determinism=elastic use auto"
    ),
    ("train.epochs=5", "train.warmup=5"): "train.warmup: 5 epochs of 5 leave none to train; give fewer, or more train.epochs",
    ("train.schedule={name: multi_step, milestones: [8]}", "train.epochs=10", "train.warmup=2"): (
        "train.schedule.milestones: 8 never comes in 10 epochs, of which train.warmup takes 2; give earlier ones, or more train.epochs"
    ),
    ("train.model=resnet18", "train.model.kernel=3"): "train.model.kernel: no such key; choose from depth, width, stem",
}

CONTENTS = {
    "list.yaml": "- train\n- data\n",
    "scalar.yaml": "42\n",
    "words.yaml": "train lr 3\n",
    "tabs.yaml": "train:\n\tlr: 0.1\n",
    "twice.yaml": "train:\n  lr: 0.1\n  lr: 0.2\n",
    "section_twice.yaml": "train: {lr: 1}\nrun: {name: a}\ntrain: {epochs: 3}\n",
    "option_twice.yaml": "train: {model: {name: lenet, name: mlp}}\n",
    "documents.yaml": "train: {lr: 1}\n---\ntrain: {lr: 2}\n",
    "flat.yaml": "train.lr: 0.1\n",
    "section_is_number.yaml": "train: 3\n",
    "number_as_key.yaml": "train: {1: 2}\n",
    "number_as_section.yaml": "1: {a: 2}\n",
    "holds_itself.yaml": "train: &a {model: *a}\n",
    "date.yaml": "train: {lr: 2026-01-01}\n",
    "name_is_number.yaml": "run: {name: 3}\n",
    "name_is_null.yaml": "run: {name: null}\n",
    "list_for_name.yaml": "train: {model: [lenet]}\n",
    "merge.yaml": "train: {<<: 3}\n",
    "bytes.yaml": "train: {lr: !!binary aGk=}\n",
    "nan.yaml": "train: {lr: .nan}\n",
    "control.yaml": "train: {lr: \x07}\n",
    "set.yaml": "train: !!set {a, b}\n",
    "minutes.yaml": "train: {lr: 1:30}\n",
    "many_digits.yaml": "train: {seed: " + "9" * 6000 + "}",
    "deep.yaml": "[" * 1200,
    "no_such_anchor.yaml": "train: *x\n",
    "tag.yaml": "train: !!foo 3\n",
    "own_tag.yaml": "train: !foo 3\n",
    "star.yaml": "train: {freeze: [*.bias]}\n",
    "at.yaml": "run: {name: @x}\n",
    "indented.yaml": "train:\n  lr: 3\n model: lenet\n",
    "unclosed.yaml": '{"train": {"lr": 1',
    "quote.yaml": 'train: {loss: "x}\n',
    "list_as_key.yaml": "? [a, b]\n: 3\n",
    "two_colons.yaml": "train: lr: 3\n",
    "percent.yaml": "data: {validation: 10%}\n",
    "misspelt.yaml": "trian: {lr: 1}\n",
    "bom.yaml": "\ufefftrain: {lr: big}\n",
}

FILES = {
    ("bom.yaml",): "train.lr: expected a number (got 'big')",
    ("bytes.yaml",): "train.lr: expected a number (got b'hi')",
    ("control.yaml",): "control.yaml is not YAML: it holds the character #x0007, which text has not",
    ("gone.yaml",): "cannot read the configuration gone.yaml: No such file or directory; it is a link to nowhere.yaml",
    ("itself.yaml",): "cannot read the configuration itself.yaml: Too many levels of symbolic links; it is a link to itself.yaml",
    ("date.yaml",): "train.lr: expected a number (got '2026-01-01')",
    ("deep.yaml",): "deep.yaml is not YAML: it is nested too deeply",
    ("documents.yaml",): "documents.yaml is not YAML: line 2, column 1: expected a single document in the stream, but found another",
    ("flat.yaml",): "flat.yaml: expected sections (data, train, evaluate, export, run) of key: value (got train.lr: 0.1)",
    ("folder.yaml",): "cannot read the configuration folder.yaml: it is a folder",
    ("holds_itself.yaml",): "holds_itself.yaml is not YAML: line 1, column 8: it holds itself",
    ("latin.yaml",): "cannot read the configuration latin.yaml: it is not UTF-8 text",
    ("list.yaml",): 'list.yaml: expected sections (data, train, evaluate, export, run) of key: value (got ["train", "data"])',
    ("list_as_key.yaml",): "list_as_key.yaml is not YAML: line 1, column 3: a list or mapping cannot be a key",
    ("list_for_name.yaml",): 'train.model: expected a name, or {name: ..., option: ...} (got ["lenet"])',
    ("many_digits.yaml",): "many_digits.yaml is not YAML: line 1, column 15: a number of 6,000 digits",
    ("merge.yaml",): "merge.yaml is not YAML: line 1, column 13: expected a mapping or list of mappings for merging, but found",
    ("minutes.yaml",): "train.lr: expected a number (got '1:30')",
    ("misspelt.yaml",): "trian: no such key; did you mean 'train'?",
    ("name_is_null.yaml",): "run.name: expected text (got null)",
    ("name_is_number.yaml",): "run.name: expected text (got 3; in quotes, '\"3\"', it is text)",
    ("nan.yaml",): "train.lr: expected a finite number (got NaN)",
    ("no_such_anchor.yaml",): "no_such_anchor.yaml is not YAML: line 1, column 8: *x stands for what no &x has named; put text that",
    ("number_as_key.yaml",): "train.1: keys should be strings (got 1)",
    ("number_as_section.yaml",): "1: keys should be strings (got 1)",
    ("option_twice.yaml",): "option_twice.yaml is not YAML: line 1, column 30: name is there twice; keep one",
    ("percent.yaml",): "data.validation: expected a number (got '10%'; write 0.1)",
    ("quote.yaml",): "quote.yaml is not YAML: line 2, column 1: found unexpected end of stream",
    ("scalar.yaml",): "scalar.yaml: expected sections (data, train, evaluate, export, run) of key: value (got 42)",
    (
        "section_is_number.yaml",
    ): "section_is_number.yaml: expected sections (data, train, evaluate, export, run) of key: value (got train: 3)",
    ("section_twice.yaml",): "section_twice.yaml is not YAML: line 3, column 1: train is there twice; keep one",
    ("set.yaml",): "set.yaml: expected sections (data, train, evaluate, export, run) of key: value (got train: ",
    ("tabs.yaml",): "tabs.yaml is not YAML: line 2, column 1: found character '\\t' that cannot start any token; indent with spaces",
    ("tag.yaml",): "tag.yaml is not YAML: line 1, column 8: the tag !!foo means nothing here; leave it out",
    ("own_tag.yaml",): "own_tag.yaml is not YAML: line 1, column 8: the tag !foo means nothing here; leave it out",
    ("star.yaml",): "star.yaml is not YAML: line 1, column 19: what begins with * or & is to have a name; put text that does into",
    ("at.yaml",): "at.yaml is not YAML: line 1, column 13: no value begins with @; put text that does into quotes",
    ("indented.yaml",): "indented.yaml is not YAML: line 3, column 2: it is indented in another way than the lines above",
    ("twice.yaml",): "twice.yaml is not YAML: line 3, column 3: lr is there twice; keep one",
    ("two_colons.yaml",): "two_colons.yaml is not YAML: line 1, column 10: a second ':' in a line; put text that has one into quotes",
    ("unclosed.yaml",): "unclosed.yaml is not YAML: line 1, column 19: expected ',' or '}', but got '<stream end>'",
    ("utf16.yaml",): "cannot read the configuration utf16.yaml: it is not UTF-8 text",
    ("words.yaml",): "words.yaml: expected sections (data, train, evaluate, export, run) of key: value (got 'train lr 3')",
    ("tiny",): "cannot read the configuration tiny: No such file or directory; that of the run is runs/tiny/config.yaml",
    ("runs/tiny",): "cannot read the configuration runs/tiny: it is a folder; that of the run is runs/tiny/config.yaml",
    ("god.yaml",): "cannot read the configuration god.yaml: No such file or directory; did you mean 'good.yaml'?",
    ("good",): "cannot read the configuration good: No such file or directory; did you mean 'good.yaml'?",
    ("good.yml",): "cannot read the configuration good.yml: No such file or directory; did you mean 'good.yaml'?",
    ("",): "cannot read the configuration .: it is a folder",
    ("nowhere/x.yaml",): "cannot read the configuration nowhere/x.yaml: No such file or directory",
    ("good.yaml/x",): "cannot read the configuration good.yaml/x: Not a directory; a setting is written as section.key=value",
    ("a\nb.yaml",): "cannot read the configuration a\\nb.yaml: No such file or directory",
    ("good.yaml", "mine.yaml"): "'mine.yaml': the configuration file goes first, and there is one",
    ("train.lr=1", "good.yaml"): "'good.yaml': the configuration file goes first, and there is one",
    ("good.yaml", "x"): "'x' is neither a configuration file nor section.key=value",
}

COMMANDS = {
    ("run", "--nonsense"): "run: --nonsense is not understood; did you mean '--seed'?",
    ("prepare", "--nonsense"): "prepare: --nonsense is not understood; did you mean '--seed'?",
    ("train", "--nonsense"): "train: --nonsense is not understood; did you mean '--seed'?",
    ("evaluate", "--nonsense"): "evaluate: --nonsense is not understood; did you mean '--seed'?",
    ("export", "--nonsense"): "export: --nonsense is not understood; did you mean '--seed'?",
    ("seeds", "3", "--nonsense"): "seeds: --nonsense is not understood; choose from --help, --data-dir",
    ("lr-find", "--nonsense"): "lr-find: --nonsense is not understood; choose from --help, --data-dir",
    ("submit", "--nonsense"): "submit: --nonsense is not understood; did you mean '--nodes'?",
    ("bench", "--nonsense"): "bench: --nonsense is not understood; choose from --help, --data-dir, --json",
    ("model", "--nonsense"): "model: --nonsense is not understood; choose from --help, --data-dir",
    ("doctor", "--nonsense"): "doctor: --nonsense is not understood; choose from --help, --data-dir, --json",
    ("scale", "--nonsense"): "scale: --nonsense is not understood; choose from --help, --data-dir, --json, --up-to, --out",
    ("status", "--nonsense"): "status: --nonsense is not understood; did you mean '--seed'?",
    ("config", "--nonsense"): "config: --nonsense is not understood; choose from --help, --data-dir",
    ("sweep", "x.yaml", "--nonsense"): "sweep: --nonsense is not understood; did you mean '--seed'?",
    ("again", "--nonsense"): "again: --nonsense is not understood; did you mean '--seed'?",
    ("logs", "x", "--nonsense"): "logs: --nonsense is not understood; choose from --help, --follow, --rank",
    ("cancel", "x", "--nonsense"): "cancel: --nonsense is not understood; choose from --help",
    ("predict", "x", "y", "--nonsense"): "predict: --nonsense is not understood; choose from --help",
    ("demo", "x", "--nonsense"): "demo: --nonsense is not understood; choose from --help, --port, --host",
    ("demo",): "demo: the following arguments are required: EXPORT",
    ("demo", "none"): "no export in none; give the folder of a finished run or of an export, an .onnx file in it, or the name",
    ("demo", "x", "--port", "a"): "demo: --port: 'a' is no port; give a number up to 65535, or 0 for any that is free",
    ("publish", "x", "hub:a/b", "--nonsense"): "publish: --nonsense is not understood; choose from --help, --dry-run",
    ("publish", "x"): "publish: the following arguments are required: TARGET",
    ("publish", "none", "hub:a/b"): "none is no folder of a run, nor runs/none",
    ("publish", ".", "hub:a/b"): "no export in ",
    ("report", "x", "--nonsense"): "report: --nonsense is not understood; choose from --help",
    ("compare", "x", "y", "--nonsense"): "compare: --nonsense is not understood; choose from --help, --out",
    ("runs", "--nonsense"): "runs: --nonsense is not understood; choose from --help, --json",
    ("board", "--nonsense"): "board: --nonsense is not understood; choose from --help, --port, --host",
    ("seeds",): "seeds: the following arguments are required: N, CONFIG.yaml | section.key=value",
    ("sweep",): "sweep: the following arguments are required: SWEEP.yaml, section.key=value",
    ("logs",): "logs: the following arguments are required: RUN",
    ("cancel",): "cancel: the following arguments are required: RUN",
    ("predict", "x"): "predict: the following arguments are required: IMAGE",
    ("report",): "report: the following arguments are required: RUN",
    ("compare", "x"): "compare: give the folders of two runs or more",
    ("run", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("prepare", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("train", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("evaluate", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("export", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("seeds", "3", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("lr-find", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("submit", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("bench", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("model", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("doctor", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("scale", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("status", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("config", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    ("again", "train.lrr=1"): "train.lrr: no such key; did you mean 'lr'?",
    (): "the following arguments are required: COMMAND",
    ("rnu",): "no command 'rnu'; did you mean 'run'?",
    ("nonsense",): "no command 'nonsense'; choose from run, prepare, train, evaluate, export, seeds, lr-find, submit, bench,",
    ("--vresion",): "the following arguments are required: COMMAND",
    ("run", "--jsno"): "run: --jsno is not understood; did you mean '--json'?",
    ("run", "-x"): "run: -x is not understood",
    ("run", "--force"): "run: --force: expected one argument",
    ("run", "--force", "tarin"): "run: --force: no stage 'tarin'; did you mean 'train'?",
    ("run", "--seed", "x"): "run: --seed: 'x' is no whole number of 0 or more",
    ("run", "--seed", "-1"): "run: --seed: '-1' is no whole number of 0 or more",
    ("run", "--seed", "1.5"): "run: --seed: '1.5' is no whole number of 0 or more",
    ("run", "--seed", "4294967296"): "train.seed: expected a number below 4294967296 (got 4294967296)",
    ("run", "--data-dir"): "run: --data-dir: expected one argument",
    ("run", "--json=3"): "run: --json: ignored explicit argument '3'",
    ("config", "--json"): "config: --json is not understood; choose from --help, --data-dir",
    ("status", "--force", "train"): "status: --force is not understood; choose from --help, --data-dir, --seed",
    ("seeds", "0"): "seeds: N: '0' is no whole number of 1 or more",
    ("seeds", "-1"): "seeds: N: '-1' is no whole number of 1 or more",
    ("seeds", "x"): "seeds: N: 'x' is no whole number of 1 or more",
    ("seeds", "1e3"): "seeds: N: '1e3' is no whole number of 1 or more",
    ("seeds", "configs.yaml"): "seeds: N: 'configs.yaml' is no whole number of 1 or more",
    ("scale", "--up-to", "0"): "scale: --up-to: '0' is no whole number of 1 or more",
    ("scale", "--out"): "scale: --out: expected one argument",
    ("scale", "train.batch_size=all"): "train.batch_size: all cannot be made larger for more processes; give a number",
    ("runs", "none"): "none is no folder of runs; `pipeline run` makes runs, or name another",
    ("runs", "good.yaml"): "good.yaml is no folder of runs; `pipeline run` makes runs, or name another",
    ("runs", "a", "b"): "runs: b is not understood",
    ("board", "none"): "none is no folder of runs; `pipeline run` makes runs, or name another",
    ("board", "--port", "x"): "board: --port: 'x' is no port; give a number up to 65535, or 0 for any that is free",
    ("board", "--port", "65536"): "board: --port: '65536' is no port; give a number up to 65535, or 0 for any that is free",
    ("board", "a", "b"): "board: b is not understood",
    ("logs", "none"): "none is no folder of a run, nor runs/none",
    ("logs", "."): ". was not submitted; what its processes other than the main one print is in logs",
    ("logs", ".", "--rank", "-1"): "logs: --rank: '-1' is no whole number of 0 or more",
    ("logs", ".", "--rank", "x"): "logs: --rank: 'x' is no whole number of 0 or more",
    ("cancel", "none"): "none is no folder of a run, nor runs/none",
    ("cancel", "."): "nothing runs or is queued in .",
    ("cancel", "good.yaml"): "good.yaml is no folder of a run, nor runs/good.yaml",
    ("report", "none"): "none is no folder of a run, nor runs/none",
    ("report", "."): ". has no evaluation to report on; `pipeline evaluate` with its configuration makes one",
    ("report", "good.yaml"): "good.yaml is no folder of a run, nor runs/good.yaml",
    ("predict", "none", "x.png"): "no export in none; give the folder of a finished run or of an export",
    ("compare", "a"): "compare: give the folders of two runs or more",
    ("compare", "a", "b"): "a is not the folder of a run, nor one of seeds; a run leaves runs/NAME, seeds leave runs/NAME-seeds",
    ("compare", ".", "."): ". is not the folder of a run, nor one of seeds; a run leaves runs/NAME, seeds leave runs/NAME-seeds",
    ("sweep", "none.yaml"): "cannot read the sweep none.yaml: No such file or directory",
    ("sweep", "good.yaml"): "good.yaml is no sweep: it has no parameters; see configs/sweep.yaml",
    ("sweep", "list.yaml"): "list.yaml is no sweep: it has no parameters; see configs/sweep.yaml",
    ("sweep", "folder.yaml"): "cannot read the sweep folder.yaml: it is a folder",
    ("sweep", "good.yaml", "--count", "0"): "sweep: --count: '0' is no whole number of 1 or more",
    ("sweep", "good.yaml", "--seed", "-1"): "sweep: --seed: '-1' is no whole number of 0 or more",
    ("sweep", "train.lr=1"): "cannot read the sweep train.lr=1: No such file or directory; a setting is written as section.key=value",
    (
        "sweep",
        "tabs.yaml",
    ): "tabs.yaml is not YAML: line 2, column 1: found character '\\t' that cannot start any token; indent with spaces",
    ("run", "run.strategy=DDP"): "run.strategy: no choice 'DDP'; did you mean 'ddp'?",
}

JOBS = {
    ("submit", "--dry-run", "--nodes", "0"): "submit: --nodes: '0' is no whole number of 1 or more",
    ("submit", "--dry-run", "--nodes", "-1"): "submit: --nodes: '-1' is no whole number of 1 or more",
    ("submit", "--dry-run", "--nodes", "x"): "submit: --nodes: 'x' is no whole number of 1 or more",
    ("submit", "--dry-run", "--nodes", "1.5"): "submit: --nodes: '1.5' is no whole number of 1 or more",
    ("submit", "--dry-run", "--time", ""): "submit: time: expected a time of SLURM: minutes, hours:minutes:seconds, days-hours (got '')",
    (
        "submit",
        "--dry-run",
        "--time",
        "4h",
    ): "submit: time: expected a time of SLURM: minutes, hours:minutes:seconds, days-hours (got '4h')",
    (
        "submit",
        "--dry-run",
        "--time",
        "4 hours",
    ): "submit: time: expected a time of SLURM: minutes, hours:minutes:seconds, days-hours (got '4 hours')",
    (
        "submit",
        "--dry-run",
        "--time",
        "1:2:3:4",
    ): "submit: time: expected a time of SLURM: minutes, hours:minutes:seconds, days-hours (got '1:2:3:4')",
    (
        "submit",
        "--dry-run",
        "--time",
        "-1",
    ): "submit: time: expected a time of SLURM: minutes, hours:minutes:seconds, days-hours (got '-1')",
    ("submit", "--dry-run", "--array", "0-4"): "submit: --array '0-4' is not seeds=FIRST-LAST, as in seeds=0-4, of 1000 at most",
    (
        "submit",
        "--dry-run",
        "--array",
        "seeds=4-0",
    ): "submit: --array 'seeds=4-0' is not seeds=FIRST-LAST, as in seeds=0-4, of 1000 at most",
    ("submit", "--dry-run", "--array", "seeds=0-"): "submit: --array 'seeds=0-' is not seeds=FIRST-LAST, as in seeds=0-4, of 1000 at most",
    (
        "submit",
        "--dry-run",
        "--array",
        "seeds=-1-3",
    ): "submit: --array 'seeds=-1-3' is not seeds=FIRST-LAST, as in seeds=0-4, of 1000 at most",
    (
        "submit",
        "--dry-run",
        "--array",
        "seeds=0-99999",
    ): "submit: --array 'seeds=0-99999' is not seeds=FIRST-LAST, as in seeds=0-4, of 1000 at most",
    ("submit", "--dry-run", "--array", "seed=0-4"): "submit: --array 'seed=0-4' is not seeds=FIRST-LAST, as in seeds=0-4, of 1000 at most",
    (
        "submit",
        "--dry-run",
        "--array",
        "seeds=4294967290-4294967299",
    ): "submit: --array 'seeds=4294967290-4294967299' is not seeds=FIRST-LAST, as in seeds=0-4, of 1000 at most",
    ("submit", "--dry-run", "--tasks-per-node", "0"): "submit: --tasks-per-node: '0' is no whole number of 1 or more",
    ("submit", "--dry-run", "--gpus-per-node", "0"): "submit: --gpus-per-node: '0' is no whole number of 1 or more",
    ("submit", "--dry-run", "--gpus-per-node", "two"): "submit: --gpus-per-node: 'two' is no whole number of 1 or more",
    ("submit", "--dry-run", "--cpus-per-task", "0"): "submit: --cpus-per-task: '0' is no whole number of 1 or more",
    (
        "submit",
        "--dry-run",
        "--gpus-per-node",
        "2",
        "--tasks-per-node",
        "2",
    ): "submit: --tasks-per-node: not allowed with argument --gpus-per-node",
    ("submit", "--dry-run", "--partition", "a b"): "submit: partition: expected letters, digits and _ . , : / + @ = - alone (got 'a b')",
    ("submit", "--dry-run", "--account", "a;b"): "submit: account: expected letters, digits and _ . , : / + @ = - alone (got 'a;b')",
    (
        "submit",
        "--dry-run",
        "--prepare-partition",
        "$(id)",
    ): "submit: partition: expected letters, digits and _ . , : / + @ = - alone (got '$(id)')",
    ("submit", "--dry-run", "--after", "x"): "submit: --after 'x' is no job's id, as 123 or 123_4",
    ("submit", "--dry-run", "--after"): "submit: --after: expected at least one argument",
    ("submit", "--dry-run", "--node", "2", "--nods", "3"): "submit: --nods is not understood; did you mean '--nodes'?",
    ("submit", "--dry-run", "run.processes=3"): "run.processes: 3, but the job would start 1; leave it out, or ask for as many tasks",
    (
        "submit",
        "--dry-run",
        "--nodes",
        "64",
        "--tasks-per-node",
        "8",
    ): "train.batch_size: 32 images cannot be cut into 512 parts (512 processes, train.accumulate=1); use 512 or more",
    (
        "submit",
        "--dry-run",
        "run.folder=a b",
    ): "run.folder: 'a b/digits' cannot stand in a script of SLURM; use letters, digits and _ . / @ + = : , -",
    (
        "submit",
        "--dry-run",
        "run.strategy=ddp",
    ): "run.strategy: ddp needs several processes; start with torchrun, accelerate or srun, or use auto",
    (
        "submit",
        "--dry-run",
        "run.strategy=dp",
        "--nodes",
        "2",
    ): "run.strategy: dp is one process with several GPUs, but 2 were started; use ddp or auto",
    (
        "submit",
        "--dry-run",
        "train.determinism=elastic",
        "--nodes",
        "3",
    ): "train.shards: 8 cannot be shared out evenly to 3 processes; start one of 1, 2, 4, 8",
    (
        "submit",
        "--dry-run",
        "run.folder=good.yaml",
    ): "run.folder: good.yaml is a file, and a folder is needed; move it, or give another run.folder",
}

ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    ({"RANK": "first"}, "RANK='first' is in the environment, and no whole number"),
    ({"WORLD_SIZE": "-1"}, "WORLD_SIZE='-1' is in the environment, and no whole number"),
    ({"LOCAL_WORLD_SIZE": "two"}, "LOCAL_WORLD_SIZE='two' is in the environment, and no whole number"),
    ({"WORLD_SIZE": "0"}, "RANK=0 is none of WORLD_SIZE=0 processes"),
]

FORESEEN = {  # torch is asked, but no image is read
    "train.freeze=[nothing*]": "train.freeze: no parameter is named 'nothing*'; among them are 0.weight, 0.bias, 3.weight, 9.bias, and",
    "train.freeze=[0.wieght]": "train.freeze: no parameter is named '0.wieght'; did you mean '0.weight'?",
    "train.freeze=[bias]": "train.freeze: no parameter is named 'bias'; did you mean '9.bias'?",
    "train.freeze=['*']": "train.freeze: no parameter is left to learn; freeze fewer",
    "train.model.kernel=50": "train.model: lenet does not take images of 3x12x12: nothing is left after the convolution with 4 channels",
    "train.augment=[{name: progressive_resize, start: 4}]": "train.augment: lenet does not take images of 3x4x4: ",
    "train.model={name: mlp, hidden: [100000000000000]}": "train.model: mlp has not room in memory: 172,800,000,000,000,000 bytes",
    "data.size=2": "train.model: lenet does not take images of 3x2x2: nothing is left after the convolution with 4 channels",
    "train.metric=top5": "train.metric: top5 of 4 classes is always 1; choose accuracy, or loss",
    "train.init=other.safetensors": "train.init: other.safetensors has no 0.weight; choose the train.model that it was made with",
}

WITH_DATA = [  # which is 200 images of 12x12 pixels in 4 classes
    (2, ["train.batch_size=5000"], "train.batch_size: 5000 is more than the 181 training images; use all"),
    (2, ["train.augment=[flip, {name: crop, padding: 12}]"], "train.augment.1.padding: 12 pixels are as many as images have; give fewer"),
    (2, ["train.steps=5", "train.warmup=3"], "train.warmup: 3 epochs are 45 steps, and the training has 5; give fewer epochs"),
    (3, ["data.source.classes=1"], "classification needs two classes or more"),
    (
        3,
        ["data.source.train=20", "data.source.classes=50"],
        "classes without training images: class 0, class 2, class 4, class 5, class 6 and",
    ),
]

Table = Mapping[Any, str]
CONFIGURATIONS: dict[str, Table] = {"words": WORDS, "data and run": DATA_AND_RUN, "train": TRAIN, "together": TOGETHER}


@pytest.mark.parametrize("what", CONFIGURATIONS)
def test_a_mistake_in_the_configuration_is_one_line_and_nothing_is_done(tmp_path: Path, what: str) -> None:
    (tmp_path / "good.yaml").write_text("")
    (tmp_path / "evil.pth").write_text("nothing of the kind")
    table = {("run", *((key,) if isinstance(key, str) else key)): line for key, line in CONFIGURATIONS[what].items()}
    assert not wrong(tmp_path, table)


def test_a_file_that_is_no_configuration_is_one_line_and_nothing_is_done(tmp_path: Path) -> None:
    for name, text in CONTENTS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "utf16.yaml").write_bytes("train: {lr: 1}".encode("utf-16"))
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: caf\xe9}")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/config.yaml").write_text("")
    (tmp_path / "itself.yaml").symlink_to("itself.yaml")
    (tmp_path / "gone.yaml").symlink_to("nowhere.yaml")
    (tmp_path / "good.yaml").write_text("")
    assert not wrong(tmp_path, {("run", *words): line for words, line in FILES.items()})


@pytest.mark.parametrize("table", [COMMANDS, JOBS], ids=["commands", "jobs"])
def test_a_mistake_in_a_command_is_one_line_and_nothing_is_done(tmp_path: Path, table: Mapping[tuple[str, ...], str]) -> None:
    for name in ("list.yaml", "tabs.yaml", "nan.yaml"):
        (tmp_path / name).write_text(CONTENTS[name])
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "good.yaml").write_text("")
    assert not wrong(tmp_path, table)


def test_every_command_is_among_those_that_are_mistyped() -> None:
    assert {words[0] for words in COMMANDS if words[1:]} >= {*_commands(_parser())}


def test_an_environment_that_no_launcher_has_made_is_one_line(tmp_path: Path) -> None:
    ended = told(tmp_path, [(("run",), environment) for environment, _ in ENVIRONMENTS])
    for (_, line), each in zip(ENVIRONMENTS, ended, strict=True):
        assert (each.code, each.imported, each.changed) == (2, [], [])
        assert each.said.startswith(f"pipeline: {line}")


def test_what_the_shape_of_images_tells_is_one_line_and_nothing_is_done(run: Run, tmp_path: Path) -> None:
    save_file({"a.weight": np.zeros(3)}, tmp_path / "other.safetensors")
    for word, line in FORESEEN.items():
        ended = run(word)
        assert (ended.code, ended.output.count("\n"), ended.output[: len(line) + 10]) == (2, 1, f"pipeline: {line}")
        assert {path.name for path in tmp_path.iterdir()} == {"other.safetensors", "output.txt"}


def test_what_the_shape_of_images_tells_is_one_line_of_several_processes(run: Run, tmp_path: Path) -> None:
    ended = run("train.freeze=[nothing*]", processes=2)
    assert (ended.code, ended.output.count("\n")) == (2, 1)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "output-1.txt").read_text()


@pytest.mark.parametrize(("code", "words", "line"), WITH_DATA, ids=[words[-1] for _, words, _ in WITH_DATA])
def test_what_only_the_data_can_tell_is_refused_and_leaves_no_run(run: Run, tmp_path: Path, code: int, words: list[str], line: str) -> None:
    ended = run(*words, until="train")
    assert (ended.code, ended.output.splitlines()[-1][: len(line) + 10]) == (code, f"pipeline: {line}")
    assert "Traceback" not in ended.output
    assert not (tmp_path / "runs").exists()
    assert not [*(tmp_path / "artifacts").glob("*/*.partial-*")]


@pytest.mark.parametrize("word", ["train.freeze=[nothing*]", "train.batch_size=5000"])
def test_the_folder_of_a_job_says_what_was_the_mistake(run: Run, tmp_path: Path, word: str) -> None:
    place = tmp_path / "runs/tiny"
    place.mkdir(parents=True)
    (place / "job.json").write_text('{"jobs": ["1"]}')
    ended = run(word)
    status = json.loads((place / "status.json").read_text())
    assert (ended.code, status["state"], status["exit_code"]) == (2, "failed", 2)
    assert ended.output.splitlines()[-1] == f"pipeline: {status['message']}"


def test_a_mistake_does_not_remove_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vacate(tmp_path / "tiny", None)
    assert tmp_path.is_dir()


def test_a_mistake_leaves_what_a_run_says_of_itself(run: Run, tmp_path: Path) -> None:
    assert run(until="prepare").code == 0
    place = tmp_path / "runs/tiny"
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}, (place / "prepare").readlink()
    assert run("data.validation=0.2", "train.batch_size=5000").code == 2
    assert ({path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}, (place / "prepare").readlink()) == before


def wrong(folder: Path, table: Mapping[tuple[str, ...], str]) -> list[str]:
    """What of the commands of `table`, typed in `folder`, does not end as it is to."""
    found = []
    for (words, line), ended in zip(table.items(), told(folder, [(words, {}) for words in table]), strict=True):
        lines = ended.said.splitlines()
        if ended.code != 2 or len(lines) != 1 or not lines[0].startswith(f"pipeline: {line}"):
            found.append(f"{words} ended with {ended.code} and said {ended.said[-500:]!r}; expected {line!r}")
        if ended.imported or ended.changed:
            found.append(f"{words} imported {ended.imported} and changed {ended.changed}")
    return found


TABLES: dict[str, Mapping[str, Any]] = {
    "data.source": DATASETS,
    "train.model": MODELS,
    "train.init": BEGINNINGS,
    "train.loss": LOSSES,
    "train.optimizer": OPTIMIZERS,
    "train.schedule": SCHEDULES,
    "train.augment": AUGMENTATIONS,
    "train.mix": MIXES,
    "train.average": AVERAGES,
    "evaluate.views": VIEWS,
    "export.formats": FORMATS,
    "run.trackers": TRACKERS,
}


def keys() -> Iterator[tuple[str, FieldInfo, bool]]:
    """Every key of the configuration, what may be its value, and whether one value stands for a list of one."""
    for section, kind in Config.model_fields.items():
        schema: Any = kind.annotation
        for name, field in schema.model_fields.items():
            yield f"{section}.{name}", field, name in schema.lists


def options() -> Iterator[tuple[str, str, str, FieldInfo]]:
    """Every option of every entry of every table."""
    for (where, table), (key, _, is_list) in itertools.product(TABLES.items(), keys()):
        for name in table if key == where else ():
            for option, field in options_of(table[name]).model_fields.items():
                yield f"{where}{'.0' * is_list}", name, option, field


def with_option(where: str, name: str, option: str, value: Any) -> dict[str, Any]:
    section, key, *of_list = where.split(".")
    spec = {"name": name, option: value}
    return {section: {key: [spec] if of_list else spec}}


STRANGERS: dict[Any, Any] = {
    bool: True,
    float: 3.5,
    str: "no such word",
    list: [[]],
    type(None): None,
    dict: {"strange": {"as": 1}},
}  # a value of each kind
LIKE: dict[Any, set[Any]] = {Path: {str}, Spec: {str}, timedelta: {float, str}, tuple: {list}, dict: {dict}}  # what is written for it


def strangers(field: FieldInfo, *, one_for_a_list: bool) -> list[Any]:
    """Values of every kind that `field` does not take, and one of its kind that it cannot."""
    taken: set[Any] = set()
    for kind in kinds(field.annotation, inside=one_for_a_list):
        taken |= LIKE.get(kind, {kind})
    return [value for kind, value in STRANGERS.items() if kind not in taken]


def kinds(annotation: Any, *, inside: bool) -> set[Any]:
    """The types of values that an annotation takes; those in its lists too, if `inside`. Of a Literal none: it takes words of its own."""
    within, origin = get_args(annotation), get_origin(annotation)
    if origin is Literal:
        return set()
    if origin is Annotated:
        return kinds(within[0], inside=inside)
    if origin in (tuple, list, dict):
        return {origin}.union(*(kinds(each, inside=True) for each in within if inside and each is not ...))
    return set().union(*(kinds(each, inside=inside) for each in within)) if within else {annotation}


def test_every_key_refuses_a_value_of_another_kind_by_its_name() -> None:
    for where, field, one_for_a_list in keys():
        section, name = where.split(".")
        for value in strangers(field, one_for_a_list=one_for_a_list):
            refuse(where, {section: {name: value}})


def test_every_option_refuses_a_value_of_another_kind_by_its_name() -> None:
    for where, name, option, field in options():
        for value in strangers(field, one_for_a_list=False):
            refuse(f"{where}.{option}", with_option(where, name, option, value))


def bounds(annotation: Any, metadata: Any) -> Iterator[Any]:
    """What marks the ends of the range of a number, wherever in an annotation."""
    yield from (mark for mark in metadata if isinstance(mark, Ge | Gt | Le | Lt))
    for each in metadata:
        if isinstance(each, FieldInfo):
            yield from bounds(None, each.metadata)
    within = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from bounds(within[0], within[1:])
    elif get_origin(annotation) is not Literal:
        for each in within:
            yield from bounds(each, ())


def outside(mark: Any) -> Any:
    """The nearest that is not in the range."""
    if isinstance(mark, Gt | Lt):
        return mark.gt if isinstance(mark, Gt) else mark.lt
    end: Any = mark.ge if isinstance(mark, Ge) else mark.le
    return end - 1 if isinstance(mark, Ge) else end + 1


def out_of_range(where: str, field: FieldInfo) -> list[Any]:
    """Values just outside the range of `field`, in a list if it is one of numbers; a number without a lowest value is a mistake of ours."""
    found = kinds(field.annotation, inside=True)
    marks = list(bounds(field.annotation, field.metadata))
    if found & {int, float, timedelta}:
        assert any(isinstance(mark, Ge | Gt) for mark in marks), f"{where} has no lowest value"
    is_list = found & {tuple, list}
    return [[outside(mark)] if is_list else outside(mark) for mark in marks]


def test_every_number_has_a_range_and_is_refused_outside_of_it_by_its_name() -> None:
    for where, field, _ in keys():
        section, name = where.split(".")
        for value in out_of_range(where, field):
            refuse(where, {section: {name: value}})
    for where, name, option, field in options():
        for value in out_of_range(f"{where}.{option} of {name}", field):
            refuse(f"{where}.{option}", with_option(where, name, option, value))


def test_every_key_that_names_an_entry_of_a_table_is_walked() -> None:
    assert {where for where, field, _ in keys() if Spec in kinds(field.annotation, inside=True)} == TABLES.keys()


def refuse(where: str, tree: Any) -> None:
    with pytest.raises(ConfigError) as error:
        check(validated(Config, tree))
    line = str(error.value)
    assert line.startswith(where), f"{tree}: {line}"
    assert "\n" not in line
    assert len(line) < 400
