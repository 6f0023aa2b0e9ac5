"""Trains the tiny SigLIP tower that VILA and VITA see with.

    python examples/tiny/siglip/train.py --out OUT [--seed N]

OUT then is a repository of a `SiglipVisionModel`: configuration, preprocessing, and weights in bfloat16.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Final

# Read when torch is loaded: threads that wait for one another sleep. Spinning is slow on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tiny import eyes
from tiny.learning import Progress
from tiny.trainer import THREADS

PICTURES: Final = 12_000
STEPS: Final = 1200


def main() -> None:
    """Train and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True, help="folder to write to; made if absent")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--effort", type=float, default=1.0, help="scales the training: steps, and media")
    arguments.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    wanted = arguments.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(wanted.seed)
    amount, steps = round(wanted.effort * PICTURES), round(wanted.effort * STEPS)
    eyes.save_siglip(wanted.out, eyes.train_siglip(amount, steps, wanted.seed, wanted.device, Progress()))


if __name__ == "__main__":
    main()
