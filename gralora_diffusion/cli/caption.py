"""Write captions beside images, with a captioning model or a tagger.

gralora caption photos/my_dog --model Salesforce/blip-image-captioning-large --prefix "a photo of sks dog"
gralora caption photos/my_dog --model models/Florence-2-base --prompt "<MORE_DETAILED_CAPTION>"
gralora caption drawings --model models/wd-vit-tagger-v3 --prefix sks --threshold 0.4

--model is the hub id or folder of a BLIP or Florence-2 model of transformers, or a folder with model.onnx
and selected_tags.csv of a WD14 tagger. Existing captions are kept. Read the captions before training.
"""

import argparse
from pathlib import Path

from gralora_diffusion.command_line import Parser, path_text
from gralora_diffusion.console import counted, fail
from gralora_diffusion.options import ConfigError

OF_TAGGERS = ("threshold", "character_threshold")
OF_CAPTIONERS = ("prompt", "max_tokens")
MOST_TOKENS = 512


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    from tqdm import tqdm

    from gralora_diffusion.data.write_captions import jobs_of, one_line, write_captions

    try:
        jobs = jobs_of(args.folder)
        captioner = captioner_of(args)
        bar = tqdm(jobs, "captions", unit="image")
        written = write_captions(bar, captioner, one_line(args.prefix), args.overwrite)
    except (ConfigError, OSError) as error:
        fail(str(error))
    for name, caption in list(written.captions.items())[:3]:
        print(f"{name}: {caption}")
    print(f"{counted(len(written.captions), 'caption')} by {captioner.name}; {len(written.kept)} kept")
    if written.bad:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in written.bad.items())
        fail(f"{counted(len(written.bad), 'image')} of {args.folder} got no caption: {reasons}")


def captioner_of(args: argparse.Namespace):
    """The model that --model names. Raises ConfigError for options of the other kind."""
    from gralora_diffusion.data.captioner import load_captioner
    from gralora_diffusion.data.tagger import is_tagger, load_tagger

    tagger = is_tagger(Path(args.model))
    others = OF_CAPTIONERS if tagger else OF_TAGGERS
    for name in others:
        if getattr(args, name) is not None:
            kind = (
                "a captioning model, and --model is a tagger"
                if tagger
                else "a tagger, and --model is not one"
            )
            raise ConfigError(f"--{name} is an option of {kind}: drop it", option=name)
    if tagger:
        return load_tagger(Path(args.model), args.threshold, args.character_threshold)
    return load_captioner(args.model, args.prompt, args.max_tokens)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(usage="%(prog)s [options] FOLDER --model MODEL", description=__doc__)
    about = "folder of images, or of subfolders such as '10_sks dog'"
    parser.add_argument("folder", metavar="FOLDER", type=Path, help=about)
    about = "hub id or folder of a BLIP or Florence-2 model, or folder of a tagger"
    parser.add_argument("--model", required=True, type=path_text, help=about)
    about = "text before each caption, followed by a comma, such as the trigger word"
    parser.add_argument("--prefix", default="", metavar="TEXT", help=about)
    parser.add_argument("--overwrite", action="store_true", help="replace captions that exist")
    about = "BLIP: the words that captions begin with; Florence-2: the task (default: <DETAILED_CAPTION>)"
    parser.add_argument("--prompt", metavar="TEXT", help=about)
    parser.add_argument("--max_tokens", type=int, help="maximum length of a caption, in tokens (default: 64)")
    about = "taggers: minimum probability of a tag (default: 0.35)"
    parser.add_argument("--threshold", type=float, help=about)
    about = "taggers: minimum probability of a character's name (default: 0.85)"
    parser.add_argument("--character_threshold", type=float, help=about)
    args = parser.parse_args(argv)
    for name in OF_TAGGERS:
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            parser.error(f"--{name} is {value}; it must be from 0 to 1")
    if args.max_tokens is not None and not 1 <= args.max_tokens <= MOST_TOKENS:
        parser.error(f"--max_tokens is {args.max_tokens}; it must be from 1 to {MOST_TOKENS}")
    return args
