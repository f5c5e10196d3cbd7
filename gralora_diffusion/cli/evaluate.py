"""Score generated images: how like the subject, how true to the prompt, how far from the base, how varied, and whether they are copies.

gralora evaluate --run runs/my_dog                     a run's samples, before and after training, against its training images
gralora evaluate --reference photos --generated out1 out2 --prompts prompts.txt        two folders, and their paired difference
gralora evaluate --paired held_out --generated out     each image against the true image of the same caption
gralora evaluate --base out_base --generated out       drift: on prompts without the subject, with and without the adapter
gralora evaluate --subjects dreambooth --encoder imagenet      does an encoder tell subjects apart?  A sub-folder for each

Encoders: clip-vit-l-14, clip-vit-b-32, clip:MODEL:TAG, clip:MODEL:FILE.safetensors, clip:FOLDER (open_clip), dinov2-small, dinov2-base, dinov2-large,
dinov2:HUB_ID, dinov2:FOLDER (transformers), imagenet (EfficientNet-Lite2, from a package), embedded (the embedded base's own, for its emoji only).
By default clip-vit-l-14 and dinov2-base, for runs on the embedded base imagenet and embedded, which need no download, and for --subjects imagenet.
The images that generated ones are compared with are first cut to their size, where they all have one: as many pixels on both sides.
"""

import json
import os
from functools import partial
from pathlib import Path

from gralora_diffusion.command_line import Parser
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import fail, note
from gralora_diffusion.options import ConfigError, from_dict

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gralora_diffusion" / "features"


def read_config(path: Path) -> TrainConfig:
    try:
        return from_dict(TrainConfig, json.loads(path.read_text()))
    except OSError:
        raise ConfigError(f"{path.parent} is not a run folder: it holds no config.json") from None
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be used: {error}") from None
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def arguments(argv: list[str] | None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--run", type=Path, help="a run folder: its samples of each step, its training images, its prompts"
    )
    parser.add_argument(
        "--generated",
        nargs="+",
        default=[],
        help="folders with generated images, or patterns such as 'out/base-*.png'",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        help="folder with the subject's images: CLIP-I, DINO, and the nearest training image",
    )
    parser.add_argument(
        "--paired",
        type=Path,
        help="folder with the true images, one for each generated one; NAME.txt is the caption",
    )
    parser.add_argument(
        "--base", type=Path, help="folder with the base's images of the same prompts and seeds: drift"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        help="text file, a prompt a line, each for as many images in a row; else NAME.txt beside NAME.png",
    )
    parser.add_argument(
        "--drop",
        nargs="+",
        default=[],
        metavar="WORD",
        help="words to leave out of the prompts, for instance the rare one",
    )
    parser.add_argument(
        "--subjects",
        type=Path,
        help="folder of folders, one for each subject: print how well the encoders tell them apart",
    )
    parser.add_argument(
        "--encoder", nargs="+", metavar="NAME", help="what scores; several are computed side by side"
    )
    parser.add_argument("--unpaired", action="store_true", help="no differences between the folders")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for scores.json, CSV files and index.html; by default RUN/evaluation, or evaluation",
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"features by content (default: {CACHE})")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--device", help="by default cuda where there is one")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    if sum(x is not None for x in (args.run, args.subjects, args.generated or None)) != 1:
        parser.error("give one of --run, --generated and --subjects")
    unused = [f"--{name}" for name in ("reference", "paired", "base", "prompts") if getattr(args, name)]
    if unused and not args.generated:
        parser.error(
            f"{' and '.join(unused)} can be given with --generated alone: --run and --subjects have their own images and prompts"
        )
    unused = [f"--{name}" for name in ("output", "drop", "unpaired") if getattr(args, name)]
    if unused and args.subjects:
        parser.error(
            f"{' and '.join(unused)} cannot be given with --subjects, which prints one line for each encoder and writes nothing"
        )
    if len({Path(name).resolve() for name in args.generated}) < len(args.generated):
        parser.error(f"--generated names one folder twice: {' '.join(args.generated)}")
    if args.batch_size < 1 or args.seed < 0:
        parser.error("--batch_size must be at least 1, and --seed at least 0")
    return args


def what_to_score(args):
    """(runs, what they are measured against, the default encoders)"""
    from gralora_diffusion.evaluation.image_sets import (
        ImageSet,
        References,
        common_size,
        images_in,
        prompts_for,
        repeated,
    )

    if args.run is None:
        given = {
            name: images_in(where) if where else []
            for name, where in dict(references=args.reference, originals=args.paired, base=args.base).items()
        }
        found = [(name, images_in(name)) for name in args.generated]
        runs = [
            ImageSet(
                name,
                paths,
                prompts_for(
                    paths if args.prompts or not given["originals"] else given["originals"], args.prompts
                ),
            )
            for name, paths in found
        ]
        return (
            runs,
            References(size=common_size(runs), drop=tuple(args.drop), **given),
            ["clip-vit-l-14", "dinov2-base"],
        )
    from gralora_diffusion.data.dataset import instance
    from gralora_diffusion.training.validation_images import prompts_of

    config = read_config(args.run / "config.json")
    folders = sorted((args.run / "samples").glob("step-*"))
    if not folders:
        raise ConfigError(
            f"{args.run} holds no samples: it was trained with --skip_final_inference, or is not finished"
        )
    found = [(folder.name, images_in(folder)) for folder in folders]
    prompts = prompts_of(config)
    runs = [ImageSet(name, paths, repeated(prompts, paths, "the run's config.json")) for name, paths in found]
    against = References(
        references=images_in(instance(config)[0]), size=common_size(runs), drop=tuple(args.drop)
    )
    return (
        runs,
        against,
        ["imagenet", "embedded"]
        if config.pretrained_model_name_or_path is None
        else ["clip-vit-l-14", "dinov2-base"],
    )


def subject_images(folder: Path) -> list[Path]:
    from gralora_diffusion.evaluation.image_sets import images_in

    subjects = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if len(subjects) < 2:
        raise ConfigError(
            f"--subjects {folder} must be a folder that holds a folder of images for each of two subjects or more"
        )
    return [image for subject in subjects for image in images_in(subject)]


def check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(
            f"--device {device} cannot be used here: {str(error).splitlines()[0].split('. ')[0]}"
        ) from None


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    import torch

    from gralora_diffusion.evaluation.encoders import load_encoder
    from gralora_diffusion.evaluation.features import image_features
    from gralora_diffusion.evaluation.metrics import evaluate
    from gralora_diffusion.evaluation.report import table, write_report
    from gralora_diffusion.evaluation.retrieval import subject_retrieval

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        check_device(device)
        runs, against, default = ([], None, ["imagenet"]) if args.subjects else what_to_score(args)
        encoders = [
            load_encoder(name, device, getattr(torch, args.dtype)) for name in args.encoder or default
        ]
        cached = partial(image_features, batch_size=args.batch_size, cache=args.cache)
        if args.subjects:
            paths = subject_images(args.subjects)
            for encoder in encoders:
                print(
                    json.dumps(
                        dict(encoder=encoder.name)
                        | subject_retrieval(cached(encoder, paths), [p.parent.name for p in paths])
                    )
                )
            return
        result = evaluate(encoders, runs, against, cached, not args.unpaired, args.seed)
        if not result["scores"]:
            raise ConfigError(
                "there is nothing to score: give --reference, --paired or --base; or --prompts, with an encoder that reads them or several "
                "images of one prompt"
            )
        if (args.prompts or args.drop) and not any(entry["score"] == "prompt" for entry in result["scores"]):
            note("the prompts were not scored: none of these encoders reads text")
        print(table(result))
        output = args.output or (args.run or Path()) / "evaluation"
        write_report(output, result, runs, against)
    except (ConfigError, OSError) as error:
        fail(str(error))
    print(
        f"{output}/index.html shows every image beside its scores; scores.json and the CSV files hold the numbers"
    )
