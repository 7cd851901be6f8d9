"""What forked processes need not do again each: the digests of the package's code, and torch's table of ONNX operations."""

from torch.onnx._internal.exporter._registration import ONNXRegistry

from pipeline.plan import EVALUATE, EXPORT, LR_FIND, PREPARE, TRAIN
from pipeline.runtime import fingerprint

for stage in (PREPARE, TRAIN, EVALUATE, EXPORT, LR_FIND):
    fingerprint.of_modules(stage.module)
ONNXRegistry.from_torchlib()
