"""Runs as jobs of SLURM: submitted, followed, stopped at a checkpoint, started again."""
