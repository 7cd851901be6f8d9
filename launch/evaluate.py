"""Everything until the stage `evaluate`: `accelerate launch launch/evaluate.py [CONFIG.yaml] [section.key=value ...]`."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
