"""How stages run: processes, signals, fingerprints, manifests, files, trackers."""
