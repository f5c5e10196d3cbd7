"""The preset of a card is the largest that its free memory has room for."""

import pytest
import torch

from gralora_diffusion import devices
from gralora_diffusion.command_line import parse
from gralora_diffusion.options import ConfigError
from gralora_diffusion.presets import BY_CARD, PRESETS, preset_of_card, preset_options

CARDS = {5.5: "6gb", 5.6: "6gb", 7.45: "8gb", 11.6: "12gb", 15.5: "16gb", 23.5: "24gb", 80.0: "24gb"}


def with_free(monkeypatch, gib: float | None) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda device: None if gib is None else int(gib * 2**30))
    monkeypatch.setattr(devices, "best_device", lambda: torch.device("cpu"))


@pytest.mark.parametrize(("gib", "name"), CARDS.items())
def test_the_preset_of_a_card(monkeypatch, gib, name):
    with_free(monkeypatch, gib)
    assert preset_of_card("subject") == f"subject-{name}"
    assert preset_options("subject") == PRESETS[f"subject-{name}"]["options"]


def test_no_card_and_a_card_that_is_too_small(monkeypatch):
    assert BY_CARD == ("subject", "style")
    with_free(monkeypatch, None)
    with pytest.raises(ConfigError, match="depends on the memory of a GPU, and this machine has none"):
        preset_of_card("subject")
    with_free(monkeypatch, 5.8)
    with pytest.raises(ConfigError, match=r"has 5\.8 GiB free, but --preset style needs 7\.5"):
        preset_of_card("style")


def test_presets_of_one_target_take_more_memory_on_larger_cards():
    for target in BY_CARD:
        own = [preset for name, preset in PRESETS.items() if name.startswith(target)]
        assert [p["usable_gib"] for p in own] == sorted(p["usable_gib"] for p in own)
        assert all(p["forecast_gib"] < p["usable_gib"] for p in own)


@pytest.mark.parametrize("preset", [*PRESETS, *BY_CARD])
def test_a_preset_is_refused_on_the_embedded_base(preset, capsys):
    with pytest.raises(SystemExit):
        parse("", ["--preset", preset])
    assert "not for the embedded base" in capsys.readouterr().err
