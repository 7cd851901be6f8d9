"""What a process frees stays its own, and is not asked of the kernel again page by page."""

import ctypes
import resource
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from pipeline.runtime.launch import keep_freed_memory

def step():
    for megabytes in (1, 40, 100):
        torch.ones(megabytes << 18)

{before}
for _ in range(20):
    step()
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_a_step_gets_the_memory_of_those_before() -> None:
    pages = (141 << 20) // resource.getpagesize()
    faults = {
        before: int(subprocess.check_output([sys.executable, "-c", STEPS.format(before=before)])) for before in ("", "keep_freed_memory()")
    }
    assert faults[""] > pages / 2
    assert faults["keep_freed_memory()"] < pages / 100
