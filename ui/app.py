"""gralora ui, as a script."""

import sys

from gralora_diffusion.cli.main import main

if __name__ == "__main__":
    main(["ui", *sys.argv[1:]])
