"""gralora train, for `accelerate launch train_sdxl.py --gralora_rank 64`."""

import sys

from gralora_diffusion.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
