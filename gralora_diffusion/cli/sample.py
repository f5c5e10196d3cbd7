"""Generate images from prompts, with trained adapters or with the base model alone.

Writes one grid of all images, and each image as its own file in a folder named like OUTPUT without .png. The
files hold their settings as text that AUTOMATIC1111's web UI and ComfyUI read. Few-step bases and adapters
need their own scheduler: for Lightning --scheduler lightning, its 2, 4 or 8 steps, guidance 1; for LCM
--scheduler lcm, 4 to 8 steps, guidance 1 to 2; for Turbo --scheduler turbo, 1 to 4 steps, guidance 1,
--size 512x512.
"""

import argparse
import contextlib
from pathlib import Path

from gralora_diffusion.checks import LEAST_SIDE, check_side, parse_size
from gralora_diffusion.command_line import Parser, path_text, strengths
from gralora_diffusion.config import EMBEDDED_DEFAULTS, SDXL_DEFAULTS
from gralora_diffusion.config.choices import PRECISIONS, SAMPLERS
from gralora_diffusion.console import counted, fail
from gralora_diffusion.options import ConfigError, TrainingError

EXAMPLE = """example:
  gralora sample --adapter runs/my_dog --prompt "a photo of sks dog on the beach|a drawing of sks dog" \\
      --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 --compare --output dog.png
"""
MOST_SEEDS = 1000


def main(argv: list[str]) -> None:
    args = parse(argv)
    for path in args.adapter:
        if not Path(path).exists():
            fail(f"--adapter {path} does not exist: give a run folder or an adapter file")
    try:
        from gralora_diffusion.cli.sample_images import generate_all

        generate_all(args)
    except ConfigError as error:
        fail(str(error))
    except TrainingError as error:
        fail(str(error), code=1)
    except OSError as error:
        fail(f"{args.output} cannot be written: {error.strerror or error}; choose another --output")
    finally:
        with contextlib.suppress(OSError):
            args.output.with_suffix("").rmdir()  # where it is empty


def parse(argv: list[str]) -> argparse.Namespace:
    usage = "%(prog)s [options] --prompt TEXT"
    parser = Parser(usage=usage, description=__doc__, epilog=EXAMPLE)
    add_adapter_options(parser.add_argument_group("Adapter and prompts"))
    add_image_options(parser.add_argument_group("Images"))
    add_file_options(parser.add_argument_group("Files, memory and speed"))
    args = parser.parse_args(argv)
    for name in ("num_inference_steps", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if args.num_images is not None and args.num_images < 1:
        parser.error(f"--num_images is {args.num_images}; it must be at least 1")
    if args.guidance_scale is not None and not 0 <= args.guidance_scale <= 1000:
        parser.error(f"--guidance_scale is {args.guidance_scale}; it must be from 0 to 1000")
    if args.prompt is None and args.prompt_file is None:
        parser.error("--prompt is required, or a --prompt_file")
    if args.prompt is not None and args.prompt_file is not None:
        parser.error("--prompt and --prompt_file both name the prompts: give one of them")
    if args.output.suffix != ".png":
        parser.error(f"--output is {args.output}; it must end in .png")
    if args.compare and not args.adapter:
        parser.error("--compare needs an adapter to compare with the base model: add --adapter")
    args.strength = strengths(parser, args.strength, max(1, len(args.adapter)))
    try:
        args.size = size_of(args)
        args.seeds = seeds_of(args.seed, args.num_images)
    except ConfigError as error:
        parser.error(str(error))
    return args


def add_adapter_options(group) -> None:
    about = "run folder or adapter file from any tool; can be repeated; by default the base model alone"
    group.add_argument("--adapter", metavar="PATH", type=path_text, action="append", default=[], help=about)
    about = "what to generate; | separates several prompts"
    group.add_argument("--prompt", metavar="TEXT", help=about)
    about = (
        "prompts from a text file, one per line; lines that begin with # are left out; a line may end in its "
    )
    about += "own settings, --n NEGATIVE --w WIDTH --h HEIGHT --d SEED --s STEPS --l GUIDANCE"
    group.add_argument("--prompt_file", metavar="FILE", type=Path, help=about)
    about = "what the images should not show; needs a guidance scale above 1"
    group.add_argument("--negative_prompt", metavar="TEXT", default="", help=about)
    about = "brackets in prompts are plain text; by default (words:1.2), (words) and [words] set weights"
    group.add_argument("--plain_prompts", action="store_true", help=about)
    about = (
        "layer of the text encoders; 2 is the second-to-last (default: as the adapters were trained, or 2)"
    )
    group.add_argument("--clip_skip", metavar="INT", type=int, help=about)
    about = "0 is the base model, 1 the adapter as trained; for several adapters one each: 1,0.6 (default: 1)"
    group.add_argument("--strength", metavar="FLOAT[,FLOAT...]", default="1", help=about)
    about = "generate the base model's images too, in a row above the adapter's"
    group.add_argument("--compare", action="store_true", help=about)
    about = "the base model: a folder, a .safetensors file or a hub id (default: the embedded one)"
    group.add_argument("--pretrained_model_name_or_path", metavar="PATH", type=path_text, help=about)
    about = "another VAE, for instance madebyollin/sdxl-vae-fp16-fix"
    group.add_argument("--pretrained_vae_model_name_or_path", metavar="PATH", type=path_text, help=about)
    group.add_argument("--revision", metavar="TEXT", help="revision of the base on the hub")
    group.add_argument("--variant", metavar="TEXT", help="variant of the base's files, for instance fp16")
    about = "folder for downloads from the hub"
    group.add_argument("--cache_dir", metavar="FOLDER", type=path_text, help=about)


def add_image_options(group) -> None:
    group.add_argument("--num_images", metavar="INT", type=int, help="images per prompt (default: 4)")
    about = "image n uses the noise of seed + n; or a seed for each image: 1,2,3 or 10-13 (default: 0)"
    group.add_argument("--seed", metavar="INT[,INT...]", default="0", help=about)
    about = "size of the images in pixels, multiples of 8 (default: the base's own)"
    group.add_argument("--size", metavar="WIDTHxHEIGHT", help=about)
    group.add_argument("--width", metavar="INT", type=int, help="width in pixels, with --height")
    group.add_argument("--height", metavar="INT", type=int, help="height in pixels, with --width")
    about = "denoising steps (default: 25)"
    group.add_argument("--num_inference_steps", metavar="INT", type=int, default=25, help=about)
    embedded = EMBEDDED_DEFAULTS["guidance_scale"]
    sdxl = SDXL_DEFAULTS["guidance_scale"]
    about = f"higher follows the prompt more closely (default: {sdxl:g}; embedded base {embedded:g})"
    group.add_argument("--guidance_scale", metavar="FLOAT", type=float, help=about)
    about = f"how noise is removed (default: the base's own): {', '.join(SAMPLERS)}"
    group.add_argument("--scheduler", metavar="NAME", type=scheduler_name, choices=SAMPLERS, help=about)


def add_file_options(group) -> None:
    about = "the grid, a .png file (default: sample.png)"
    group.add_argument("--output", metavar="FILE", type=Path, default=Path("sample.png"), help=about)
    about = "write the grid beside the single images (default: yes)"
    group.add_argument("--grid", action=argparse.BooleanOptionalAction, default=True, help=about)
    about = "images generated at once; it changes speed and memory, not the images (default: 4)"
    group.add_argument("--batch_size", metavar="INT", type=int, default=4, help=about)
    about = "precision of the computation (default: fp16 on a GPU, no on the CPU); the VAE computes in fp32"
    group.add_argument("--mixed_precision", choices=PRECISIONS, metavar="{no,fp16,bf16}", help=about)


def scheduler_name(text: str) -> str:
    """euler_a for "Euler a"."""
    return text.strip().lower().replace(" ", "_")


def size_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """(height, width) of --size, or of --width and --height.  Raises ConfigError."""
    given = args.width is not None, args.height is not None
    if args.size is not None and any(given):
        raise ConfigError("--size and --width or --height both set the size: give one of them")
    if args.size is not None:
        return parse_size(args.size)
    if not any(given):
        return None
    if not all(given):
        missing = "--height" if given[0] else "--width"
        raise ConfigError(
            f"{missing} is missing: give both --width and --height, each at least {LEAST_SIDE} pixels"
        )
    return check_side(args.height, "--height"), check_side(args.width, "--width")


def seeds_of(text: str, num_images: int | None) -> list[int]:
    """The seed of each image of a prompt.  Raises ConfigError."""
    problem = f"--seed is {text!r}; it must be whole numbers from 0, such as 7, or 1,2,3, or 10-13"
    seeds = []
    parts = text.split(",")
    for part in parts:
        first, dash, last = part.strip().partition("-")
        if not all(word.isascii() and word.isdigit() and len(word) < 19 for word in (first, last or "0")):
            raise ConfigError(problem, option="seed")
        end = int(last) if last else int(first)
        if (dash and not last) or not 0 <= end - int(first) < MOST_SEEDS:
            raise ConfigError(f"{problem}, at most {MOST_SEEDS:,} seeds", option="seed")
        seeds += range(int(first), end + 1)
    if len(seeds) > MOST_SEEDS:
        raise ConfigError(f"{problem}, at most {MOST_SEEDS:,} seeds", option="seed")
    if len(parts) == 1 and "-" not in text:
        return [seeds[0] + n for n in range(4 if num_images is None else num_images)]
    if num_images not in (None, len(seeds)):
        problem = f"--seed names {counted(len(seeds), 'seed')}, but --num_images is {num_images}"
        raise ConfigError(f"{problem}: drop one of the two")
    return seeds
