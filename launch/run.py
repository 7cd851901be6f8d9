"""The whole pipeline: `accelerate launch launch/run.py [CONFIG.yaml] [section.key=value ...]`."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
