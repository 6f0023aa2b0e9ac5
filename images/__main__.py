"""Entry of `python3 images`."""

import sys
from pathlib import Path

# Commands with deadlines and the cache folder are the cluster scripts' too, and uv the locks'.
ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "cluster"), str(ROOT / "locks")]

from multimodal_images.main import main  # noqa: E402 -- the path above makes it importable

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
