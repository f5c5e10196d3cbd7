"""What the VAE takes on a card, by what can be moved away and whether it works in tiles."""

import pytest

from gralora_diffusion.sdxl.placement import DECODING, MARGIN, TILE, peak_of_vae

SIZE = 1024 * 1024
VAE, IN_USE, MOVABLE = 2**28, 6 * 2**30, 5 * 2**30
WHOLE, TILED = SIZE * DECODING, TILE * TILE * DECODING
ALL = IN_USE + VAE + WHOLE
CARDS = {
    "not known": (None, ALL),
    "room for all": (ALL + MARGIN, ALL),
    "the UNet is moved away": (ALL + MARGIN - 1, IN_USE),
    "no room for the whole image": (IN_USE - MOVABLE + VAE + WHOLE, IN_USE),
}


@pytest.mark.parametrize(("total", "peak"), CARDS.values(), ids=CARDS)
def test_the_peak_by_the_size_of_the_card(total, peak):
    assert peak_of_vae(DECODING, SIZE, VAE, IN_USE, MOVABLE, total) == peak


def test_tiles_where_nothing_can_be_moved_away():
    in_use = 2**29
    card = in_use + VAE + WHOLE + MARGIN
    assert peak_of_vae(DECODING, SIZE, VAE, in_use, 0, card) == in_use + VAE + WHOLE
    assert peak_of_vae(DECODING, SIZE, VAE, in_use, 0, card - 1) == in_use + VAE + TILED
