"""Everything until the stage `prepare`: `accelerate launch launch/prepare.py [CONFIG.yaml] [section.key=value ...]`."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
