"""Entry of `python3 cluster`."""

import sys

from multimodal_cluster.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
