"""Everything until the stage `export`: `accelerate launch launch/export.py [CONFIG.yaml] [section.key=value ...]`."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
