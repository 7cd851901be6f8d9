"""Image classification, prepare to export, the same result on one process or many."""

__version__ = "0.1.0"
