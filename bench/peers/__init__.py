"""The others: what they would write who do not have this pipeline."""
