"""Figures: each from one command, with its hardware, repeats and spread, in bench/results/."""
