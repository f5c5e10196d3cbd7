"""Compose captioned images in a style that the embedded base was never trained on, for docs/experiments.

    python scripts/tiny_base/draw_style.py --state build/tiny_base --output build/sticker --number 400
    python scripts/tiny_base/draw_style.py --icons fxemoji@1.2.2 --output build/fxemoji

Needs npm and pip install -e ".[build]", as build_tiny_base.py does, whose sprites are used where they exist.
"""

import argparse
from pathlib import Path

import numpy as np
from captions import caption
from composer import Composer
from PIL import Image
from sprites import other_sprites

from gralora_diffusion.console import counted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--state", type=Path, default=Path("build/tiny_base"), help="build_tiny_base.py's --state"
    )
    about = "another emoji set of @iconify-json, as NAME@VERSION (default: Twemoji)"
    parser.add_argument("--icons", metavar="SET", help=about)
    parser.add_argument("--output", type=Path, required=True, help="folder for NNNN.png and NNNN.txt")
    parser.add_argument("--number", type=int, default=400, help="of images (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    composer = Composer(args.state)
    if args.icons:
        composer.redraw_style("sticker", other_sprites(args.state, args.icons))
        if len(composer.unet_objects) < 50:
            parser.error(f"{args.icons} has only {len(composer.unet_objects)} of the objects")
    rng = np.random.default_rng(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    for i in range(args.number):
        plan = composer.plan(rng, objects=composer.unet_objects)
        plan |= dict(style="sticker", other=None)  # one object each
        pixels = composer.compose([plan], rng)[0].add(1).mul(127.5).round().byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(args.output / f"{i:04d}.png")
        text = caption("sticker", plan["tint"], plan["label"], plan["background"])
        (args.output / f"{i:04d}.txt").write_text(text + "\n")
    print(f"{args.output}: {counted(args.number, 'image')} with captions")


if __name__ == "__main__":
    main()
