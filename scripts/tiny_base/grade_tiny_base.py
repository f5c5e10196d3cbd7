"""Grade the embedded base: a grid of 32 fixed prompts, and how often a machine recognises what held-out captions ask for.

    python scripts/grade_tiny_base.py --state build/tiny_base --grid docs/tiny_base.png

Held-out captions pair an object with a background or a tint that training never paired it with.  The judge is the base's own
image-text encoder (tiny/vision_encoder with text_encoder_2), trained on composed pictures only; its rate on composed pictures
of the same captions, and on those after the VAE's round trip, is the ceiling.  The background's colour is also read off the pixels.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tiny_base_data import COLOURS, SCENES, TINTS, TRAIN_STYLES, Composer, caption
from transformers import CLIPVisionModelWithProjection

from gralora_diffusion import load_sdxl
from gralora_diffusion.config import EMBEDDED_DEFAULTS as DEFAULTS
from gralora_diffusion.data.images import to_pixels
from gralora_diffusion.sdxl.load import EMBEDDED
from gralora_diffusion.sdxl.sampling import sample, sheet

GUIDANCE = DEFAULTS["guidance_scale"]
GRID = """
objects: a dog | a cat | a rocket | a cactus | a red heart | a teapot | a robot | a bus
colours, styles: a purple apple | a green snail | a blue rabbit | a yellow bird | a 3d render of a guitar | a drawing of a guitar
    | a dog next to a cat | a red apple next to a banana
backgrounds: a penguin on the beach | a crab in the snow | a fox at night | a horse on the grass | a lion at sunset | a key on a black background
    | a rose on a white background | a star on a purple background
never paired in training: an elephant in the snow | a red dog | a blue car | a pink fish | a rocket on the grass | a butterfly on the grass
    | a drawing of a cat on a black background | a 3d render of a hamburger on a yellow background
"""


def grid_prompts() -> dict[str, list[str]]:
    rows = (line.split(":") for line in GRID.replace("\n    |", "|").strip().splitlines())
    return {name: [prompt.strip() for prompt in prompts.split("|")] for name, prompts in rows}


@torch.no_grad()
def grade(images: torch.Tensor, plans: list[dict], composer: Composer, pipeline, vision) -> dict[str, float]:
    """Shares of images [n, 3, 64, 64] whose best caption, with one part of it varied, is the true one."""

    def texts(captions):
        ids = pipeline.tokenizer_2(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return F.normalize(
            torch.cat([pipeline.text_encoder_2(part).text_embeds for part in ids.split(256)]), dim=-1
        )

    seen = F.normalize(vision(images).image_embeds, dim=-1)
    parts = {
        "label": [composer.labels[i] for i in composer.drawn],
        "background": [*COLOURS, *SCENES],
        "tint": [None, *TINTS],
        "style": list(TRAIN_STYLES),
    }
    right = dict.fromkeys(parts, 0)
    for feature, plan in zip(seen, plans, strict=True):
        truth = {k: plan[k] for k in parts}
        for name, values in parts.items():
            scores = texts([caption(**(truth | {name: value})) for value in values]) @ feature
            right[name] += values[int(scores.argmax())] == plan[name]
    plain = [i for i, p in enumerate(plans) if p["background"] in COLOURS]
    corners = images[plain][:, :, [1, 1, -2, -2], [1, -2, 1, -2]].median(-1).values * 127.5 + 127.5
    nearest = torch.cdist(corners, torch.tensor(list(COLOURS.values())).float()).argmin(1)
    colour = sum(
        list(COLOURS)[n] == plans[i]["background"] for n, i in zip(nearest, plain, strict=True)
    ) / len(plain)
    return {name: round(count / len(plans), 3) for name, count in right.items()} | {
        "background_by_pixels": round(colour, 3)
    }


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
    parser.add_argument("--base", default=str(EMBEDDED))
    parser.add_argument("--grid", type=Path, help="write the grid of 32 prompts here")
    parser.add_argument("--captions", type=int, default=256, help="number of held-out captions")
    args = parser.parse_args()
    pipeline = load_sdxl(args.base)
    if args.grid:
        grid = grid_prompts()
        pictures = sample(
            pipeline, [p for prompts in grid.values() for p in prompts], seed=0, guidance_scale=GUIDANCE
        )
        args.grid.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            sheet({name: pictures[8 * r : 8 * r + 8]}, prompts, 128)
            for r, (name, prompts) in enumerate(grid.items())
        ]
        page = rows[0].resize((rows[0].width, sum(r.height for r in rows)))
        for r, row in enumerate(rows):
            page.paste(row, (0, r * row.height))
        page.save(args.grid)
    composer, rng = Composer(args.state), np.random.default_rng(123)
    vision = CLIPVisionModelWithProjection.from_pretrained(Path(args.base) / "vision_encoder").eval()
    plans = [composer.plan(rng, held_out=True, objects=composer.drawn) for _ in range(args.captions)]
    captions = [caption(p["style"], p["tint"], p["label"], p["background"]) for p in plans]
    drawn = torch.stack(
        [
            to_pixels(image)
            for image in sample(pipeline, captions, seed=1000, batch_size=32, guidance_scale=GUIDANCE)
        ]
    )
    composed = composer.draw(plans, rng)
    with torch.no_grad():
        latents = torch.cat([pipeline.vae.encode(part).latent_dist.mean for part in composed.split(32)])
        round_trip = torch.cat([pipeline.vae.decode(part).sample for part in latents.split(32)]).clamp(-1, 1)
    psnr = (10 * torch.log10(4 / (composed - round_trip).square().mean((1, 2, 3)))).mean()
    for name, images in (
        ("drawn by the base", drawn),
        ("composed, after the VAE", round_trip),
        ("composed", composed),
    ):
        print(
            json.dumps(
                {"pictures": name, "captions": len(plans)} | grade(images, plans, composer, pipeline, vision)
            )
        )
    print(
        json.dumps(
            {
                "vae_psnr_db": round(float(psnr), 2),
                "chance": {"label": round(1 / len(composer.drawn), 4), "background": round(1 / 17, 3)},
            }
        )
    )


if __name__ == "__main__":
    main()
