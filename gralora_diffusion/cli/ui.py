"""gralora ui: the page in a browser."""

from gralora_diffusion.ui.server import main  # noqa: F401
