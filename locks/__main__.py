"""Entry of `python3 locks`."""

import sys
from pathlib import Path

# Commands with deadlines, progress and the cache folder are the cluster scripts' too.
sys.path.append(str(Path(__file__).resolve().parent.parent / "cluster"))

from multimodal_locks.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
