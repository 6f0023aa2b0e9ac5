"""Entry of `python3 demo`."""

import sys
from pathlib import Path

# The cluster's and the images' commands are not installed: they run from the tree, and so does this.
ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / folder) for folder in ("cluster", "examples", "images", "locks")]

from multimodal_demo.main import main  # noqa: E402 -- the path above makes it importable

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
