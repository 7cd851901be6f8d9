"""Everything until the stage `train`: `accelerate launch launch/train.py [CONFIG.yaml] [section.key=value ...]`."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
