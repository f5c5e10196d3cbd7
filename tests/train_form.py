"""The values of the form of the Train tab, as a browser sends them."""

from gralora_diffusion.ui.config_form import FIELDS, initial_value


def form_values(**values) -> dict:
    """Those of the untouched form, but for these."""
    return {name: initial_value(option) for name, option in FIELDS.items()} | values
