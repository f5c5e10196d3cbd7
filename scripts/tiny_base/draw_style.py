"""Draw captioned pictures in the style that the embedded base never saw: what docs/experiments/README.md learns.

    python scripts/draw_style.py --state build/tiny_base --output build/sticker --number 400

Needs the extra `build` and npm, as build_tiny_base.py does, whose pictures are used again.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_base_data import Composer, caption


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=Path("build/tiny_base"),
        help="where build_tiny_base.py keeps its pictures",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for NNNN.png and NNNN.txt")
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    composer, rng = Composer(args.state), np.random.default_rng(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    for i in range(args.number):
        plan = composer.plan(rng, objects=composer.drawn) | dict(
            style="sticker", other=None
        )  # one object each
        pixels = composer.draw([plan], rng)[0].add(1).mul(127.5).round().byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(args.output / f"{i:04d}.png")
        text = caption("sticker", plan["tint"], plan["label"], plan["background"])
        (args.output / f"{i:04d}.txt").write_text(text + "\n")
    print(f"{args.output}: {args.number} pictures with captions")


if __name__ == "__main__":
    main()
