"""The page that a person opens: a run told from what its artifacts hold, in one file that needs no other."""
