"""python -m gralora_diffusion COMMAND ... is the same as gralora COMMAND ..."""

from gralora_diffusion.cli.main import main

if __name__ == "__main__":
    main()
