"""command.py [--gib FLOAT] COMMAND OPTIONS: `gralora COMMAND OPTIONS` on the stub of a GPU."""

import sys

import card

if __name__ == "__main__":
    card.start()

import stand_ins  # noqa: F401 - installs them
import torch

from gralora_diffusion.cli.main import main

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    finally:
        allocated = torch.cuda.max_memory_allocated() / card.GIB
        reserved = torch.cuda.max_memory_reserved() / card.GIB
        print(f"peak {allocated:.3f} GiB allocated, {reserved:.3f} GiB reserved", flush=True)
