"""Composes images and captions for the embedded tiny base: emoji objects on backgrounds.

Objects, style, tint, position, size, mirroring and background of an image depend on the random generator
only.  Held out for tests and experiments: the style "sticker" (Twemoji), the objects in HELD_OUT, and one in
ten of all (object, background) and (object, tint) pairs.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import COLORS, PLAIN_PREFIXES, SCENES, STYLES, TINTS, TRAIN_STYLES, caption, pair_held_out
from objects import HELD_OUT, OBJECTS, RENAMED, UNET_OBJECTS
from sprites import fetch_sprites

SIZE = 64  # pixels a side
LOOSE = 0.15  # share of the objects that are smaller, off the middle, or mirrored
SCENE_COLORS = {  # top of the sky, bottom of the sky, ground: RGB from 0 to 255
    "on the grass": ((120, 190, 250), (200, 230, 255), (80, 170, 60)),
    "on the beach": ((90, 180, 250), (40, 130, 210), (240, 215, 150)),
    "in the snow": ((160, 190, 220), (215, 228, 240), (248, 250, 255)),
    "at night": ((8, 8, 40), (30, 30, 90), (20, 25, 45)),
    "at sunset": ((90, 50, 130), (255, 150, 60), (70, 45, 60)),
}


class Composer:
    """Plans, images and captions from the sprites in a folder, which are downloaded where they are absent."""

    def __init__(self, folder: Path):
        data = torch.from_numpy(np.load(fetch_sprites(folder))["sprites"]).float().div_(255)
        data = data.permute(0, 1, 4, 2, 3)
        alpha = data[:, :, 3:]
        # [style, object, 4, SPRITE, SPRITE], premultiplied alpha
        self.sprites = torch.cat([data[:, :, :3] * alpha, alpha], 2)
        # low-passed, for images of two objects, which have half the size
        small = F.interpolate(self.sprites.flatten(0, 1), scale_factor=0.5, mode="area")
        small = F.interpolate(small, scale_factor=2, mode="bilinear")
        self.small_sprites = small.unflatten(0, data.shape[:2])
        self.labels = [RENAMED.get(name, name) for name in OBJECTS]
        self.objects = [i for i, name in enumerate(OBJECTS) if name not in HELD_OUT]
        self.unet_objects = [OBJECTS.index(name) for name in UNET_OBJECTS]

    def redraw_style(self, style: str, sprites: dict[int, np.ndarray]) -> None:
        """Give a style the sprites {number in OBJECTS: uint8 [SPRITE, SPRITE, 4]} of another icon set.

        unet_objects loses those that the set lacks.  For images of one object.
        """
        for number, sprite in sprites.items():
            straight = torch.from_numpy(sprite).float().div(255).permute(2, 0, 1)
            alpha = straight[3:]
            self.sprites[STYLES.index(style), number] = torch.cat([straight[:3] * alpha, alpha])
        self.unet_objects = [number for number in self.unet_objects if number in sprites]

    def plan(self, rng: np.random.Generator, held_out=False, objects: list[int] | None = None) -> dict:
        """What an image shows, of self.objects or `objects`.

        held_out: with a background or a tint that is never paired with the object in training.
        """
        while True:
            style = TRAIN_STYLES[rng.integers(2)]
            first, second = rng.choice(objects or self.objects, 2, replace=False)
            label = self.labels[first]
            backgrounds = SCENES if rng.random() < 0.25 else list(COLORS)
            background = backgrounds[rng.integers(len(backgrounds))]
            tint = TINTS[rng.integers(len(TINTS))] if rng.random() < 0.15 else None
            other = (None, self.labels[second]) if rng.random() < 0.1 and not held_out else None
            pairs = [background, tint] if tint else [background]
            if any(pair_held_out(label, word) for word in pairs) == held_out:
                return dict(
                    style=style,
                    object=int(first),
                    second=int(second),
                    tint=tint,
                    label=label,
                    background=background,
                    other=other,
                )

    def compose(self, plans: list[dict], rng: np.random.Generator) -> torch.Tensor:
        """The images of these plans: [n, 3, SIZE, SIZE] in [-1, 1]."""
        images = torch.stack([scene(plan["background"], rng) for plan in plans])
        self.paste(images, plans, list(range(len(plans))), "object", rng)
        pairs = [i for i, plan in enumerate(plans) if plan["other"]]
        if pairs:
            self.paste(images, plans, pairs, "second", rng)
        return images.mul_(2).sub_(1).clamp_(-1, 1)

    def paste(self, images: torch.Tensor, plans: list[dict], rows: list[int], slot: str, rng) -> None:
        """Put the objects of a slot, "object" or "second", on the images of these rows, in place."""
        sprites = torch.stack([self.sprite(plans[i], slot) for i in rows])
        pair = torch.tensor([plans[i]["other"] is not None for i in rows]).float()
        theta = placement(pair, 0.5 if slot == "second" else -0.5, rng)
        grid = F.affine_grid(theta, [len(rows), 4, SIZE, SIZE], align_corners=False)
        layer = F.grid_sample(sprites, grid, align_corners=False)
        images[rows] = layer[:, :3] + images[rows] * (1 - layer[:, 3:])

    def sprite(self, plan: dict, slot: str) -> torch.Tensor:
        """[4, SPRITE, SPRITE]; a tint is that of the first object."""
        sprites = self.small_sprites if plan["other"] else self.sprites
        sprite = sprites[STYLES.index(plan["style"]), plan[slot]]
        if slot == "object" and plan["tint"]:
            return tinted(sprite, COLORS[plan["tint"]])
        return sprite

    def describe(self, plan: dict, rng: np.random.Generator) -> str:
        """A caption that may leave out style or background, as people's prompts do."""
        u = rng.random(3)
        background = plan["background"] if u[0] < 0.85 else None
        prefix = PLAIN_PREFIXES[rng.integers(len(PLAIN_PREFIXES))] if u[1] < 0.25 else None
        rare = u[2] < 0.05
        return caption(plan["style"], plan["tint"], plan["label"], background, plan["other"], prefix, rare)


def placement(pair: torch.Tensor, x_of_pair: float, rng: np.random.Generator) -> torch.Tensor:
    """Affine matrices [n, 2, 3] from image to sprite coordinates, for F.affine_grid.

    pair: [n], 1.0 where the image has two objects, whose x is x_of_pair in [-1, 1], and 0.0 elsewhere.
    Most single objects are in the middle and nearly fill the image: shapes form faster that way.
    """
    u = torch.from_numpy(rng.random((len(pair), 5))).float()
    loose = (u[:, 4] < LOOSE).float()
    size_of_one = 0.95 + 0.05 * u[:, 0] - 0.15 * loose  # of the image's side
    size_of_pair = 0.46 + 0.04 * u[:, 0]
    size = size_of_one * (1 - pair) + size_of_pair * pair
    room = (1 - size) * (0.5 + 0.5 * loose)
    x = (u[:, 1] * 2 - 1) * room * (1 - pair) + pair * (x_of_pair + (u[:, 1] - 0.5) * 0.04)
    y = (u[:, 2] * 2 - 1) * room * (1 - pair) + pair * (0.15 + (u[:, 2] - 0.5) * 0.2 * loose)
    mirror = torch.where(u[:, 3] < 0.5 * loose, -1.0, 1.0)
    theta = torch.zeros(len(pair), 2, 3)
    theta[:, 0, 0] = mirror / size
    theta[:, 0, 2] = -mirror * x / size
    theta[:, 1, 1] = 1 / size
    theta[:, 1, 2] = -y / size
    return theta


def scene(background: str, rng: np.random.Generator) -> torch.Tensor:
    """[3, SIZE, SIZE] in [0, 1]: one color, or a sky above a ground with a soft horizon."""
    jitter = torch.from_numpy(rng.uniform(-0.03, 0.03, (2, 3, 1, 1))).float()
    if background in COLORS:
        share = 0.25 if background in ("white", "black") else 1
        color = rgb(COLORS[background]) + share * jitter[0]
        return color.clamp(0, 1).expand(3, SIZE, SIZE).clone()
    top, bottom, ground = (rgb(color) for color in SCENE_COLORS[background])
    y = torch.linspace(0, 1, SIZE).view(1, SIZE, 1)
    horizon = float(rng.uniform(0.55, 0.72))
    sky = top + (bottom - top) * (y / horizon).clamp(0, 1) + jitter[0]
    below = (ground + jitter[1]) * (1 - 0.25 * (y - horizon).clamp(0, 1))
    blend = ((y - horizon) * SIZE / 2 + 0.5).clamp(0, 1)
    image = (sky * (1 - blend) + below * blend).clamp(0, 1).expand(3, SIZE, SIZE).clone()
    if background == "at night":
        rows = rng.integers(0, int(horizon * SIZE) - 2, 14)
        columns = rng.integers(0, SIZE, 14)
        image[:, rows, columns] = 0.95  # stars
    return image


def tinted(sprite: torch.Tensor, color: tuple[int, int, int]) -> torch.Tensor:
    """Recolor a sprite [4, h, w] with premultiplied alpha; its light and dark parts stay so."""
    alpha = sprite[3:]
    luma = torch.tensor([0.3, 0.59, 0.11]).view(3, 1, 1)
    gray = (sprite[:3] * luma).sum(0, keepdim=True)
    color = rgb(color)
    dark = color * 0.25
    light = color + (1 - color) * 0.55
    g = (gray / alpha.clamp_min(1e-4)).clamp(0.02, 0.98)
    mean = float((g * alpha).sum() / alpha.sum().clamp_min(1e-4))
    g = g ** (np.log(0.5) / np.log(mean))  # near 0.5 on average, whatever it was
    shadows = dark + (color - dark) * 2 * g
    lights = color + (light - color) * (2 * g - 1)
    return torch.cat([torch.where(g < 0.5, shadows, lights) * alpha, alpha])


def rgb(color: tuple[int, int, int]) -> torch.Tensor:
    """[3, 1, 1] in [0, 1]"""
    return torch.tensor(color).view(3, 1, 1) / 255
