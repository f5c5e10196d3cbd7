"""Compare adapter methods: short training runs of every method, rank, learning rate and seed.

All share one trainer and data order, and at each rank one budget: as many trainable parameters as a LoRA of
that rank.

Captioned images: a tenth is held out for --part validation, where learning rates are chosen, and another
for --part test; images generated from held-out captions are compared with the true images in pairs.
With --prompts: all images of a subject are trained on, and images generated from the prompts are compared
with them and with the prompts; --subjects does this for several subjects.
The same command resumes. If it is started several times, the processes share the runs; on a CPU, set
OMP_NUM_THREADS=1. --report prints and plots the finished runs.
docs/experiments/README.md describes the experiments that the README summarizes.
"""

import json
import math
import textwrap
from argparse import Namespace
from pathlib import Path

from gralora_diffusion.command_line import Parser, path_text
from gralora_diffusion.config.choices import OPTIMIZERS
from gralora_diffusion.console import counted, fail, only_options
from gralora_diffusion.evaluation.encoder_names import parse_encoder_name
from gralora_diffusion.evaluation.metric import METRICS
from gralora_diffusion.experiments.methods import METHODS, WITH_K
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError

NAMES = textwrap.fill(f"methods: {', '.join(METHODS)}", 100, subsequent_indent="  ", break_on_hyphens=False)
EPILOG = f"""{NAMES}

example:
  gralora compare --output runs/style --instance_data_dir images --methods lora gralora --ranks 4 8 \\
      --lrs 3e-4 1e-3 --seeds 0 1
  gralora compare --output runs/style --report
"""


def arguments(argv: list[str] | None) -> Namespace:
    usage = "%(prog)s [options] --output FOLDER"
    parser = Parser(usage=usage, description=__doc__, epilog=EPILOG)
    add_runs(parser.add_argument_group("Runs"))
    add_images(parser.add_argument_group("Images and prompts"))
    add_training(parser.add_argument_group("Base model and training"))
    add_scores(parser.add_argument_group("Scores"))
    add_report(parser.add_argument_group("Report"))
    args = parser.parse_args(argv)
    if not args.report:
        defaults = dict(methods=["lora", "gralora"], ranks=[8], k=[2], lrs=[1e-3], outliers=[1.0])
        for name, default in defaults.items():
            setattr(args, name, getattr(args, name) or default)
        args.steps = 300 if args.steps is None else args.steps
    if problem := problem_with(args):
        parser.error(problem)
    return args


def add_runs(group) -> None:
    about = "folder of the sweep: runs.jsonl, and a folder for each run"
    group.add_argument("--output", type=Path, required=True, metavar="FOLDER", help=about)
    about = "methods, listed below (default: lora gralora; lora is PEFT's, our-lora this package's)"
    group.add_argument("--methods", nargs="+", metavar="METHOD", help=about)
    about = "budgets: every method gets the parameter count of a LoRA of this rank (default: 8)"
    group.add_argument("--ranks", nargs="+", type=int, metavar="RANK", help=about)
    about = f"blocks per side of {', '.join(WITH_K)} (default: 2)"
    group.add_argument("--k", nargs="+", type=int, metavar="K", help=about)
    about = "learning rates (default: 1e-3)"
    group.add_argument("--lrs", nargs="+", type=float, metavar="RATE", help=about)
    group.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="random seeds (default: 0)"
    )
    about = (
        "plant outlier channels in the UNet, this many times as large, without changing what it computes "
        "(default: 1, which plants none)"
    )
    group.add_argument("--outliers", nargs="+", type=float, metavar="SCALE", help=about)
    about = "plant one outlier channel in each of this many equal slices of a layer's inputs (default: 1)"
    group.add_argument("--outlier_slices", type=int, metavar="N", help=about)
    about = "training steps of each run (default: 300); with --report, only runs of this length"
    group.add_argument("--steps", type=int, help=about)
    about = "which held-out images are scored (default: validation)"
    group.add_argument("--part", choices=("validation", "test"), default="validation", help=about)
    about = (
        "for each method and rank, use only the rate of --lrs that was best in the validation runs of this "
        "sweep, or of the sweep in FOLDER"
    )
    group.add_argument("--tuned", nargs="?", type=Path, const=Path(), metavar="FOLDER", help=about)
    about = (
        "distribute the runs over the Ray cluster at this address (HOST:PORT, auto, or local for this "
        "machine); the folders must have the same paths on all its machines"
    )
    group.add_argument("--ray", metavar="ADDRESS", help=about)
    about = "print the runs, their parameters and an estimate, and stop"
    group.add_argument("--dry_run", action="store_true", help=about)


def add_images(group) -> None:
    about = (
        "folder with the training images; by default the bundled robot, which needs --prompts or "
        "--training_loss"
    )
    group.add_argument("--instance_data_dir", metavar="FOLDER", type=path_text, help=about)
    about = "caption of images without one; with --subjects, {} stands for the class"
    group.add_argument("--instance_prompt", metavar="TEXT", help=about)
    about = "text file of prompts for a subject; without it, captioned images are held out"
    group.add_argument("--prompts", type=Path, metavar="FILE", help=about)
    about = "several subjects, each with its own runs; {} in --prompts stands for the class"
    group.add_argument("--subjects", nargs="+", metavar="FOLDER[=CLASS]", type=path_text, help=about)


def add_training(group) -> None:
    about = "the base model; by default the embedded one"
    group.add_argument("--pretrained_model_name_or_path", metavar="BASE", type=path_text, help=about)
    about = "images per step; by default the base's"
    group.add_argument("--batch_size", type=int, help=about)
    group.add_argument("--resolution", type=int, help="side of the images; by default the base's")
    about = f"optimizer: {', '.join(OPTIMIZERS)} (default: AdamW)"
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="AdamW", metavar="NAME", help=about)
    about = "precision of the frozen base and the computation (default: no, which is fp32)"
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help=about)
    about = (
        "layers to adapt: attention, attention+ff, all-linear, or a regular expression (default: attention)"
    )
    group.add_argument("--targets", default="attention", help=about)
    about = "denoising steps of the scored images; by default the trainer's"
    group.add_argument("--num_inference_steps", type=int, help=about)


def add_scores(group) -> None:
    about = (
        "as in gralora evaluate; by default clip-vit-l-14 and dinov2-base, or imagenet and embedded on the "
        "embedded base"
    )
    group.add_argument("--encoder", nargs="+", metavar="NAME", help=about)
    about = (
        f"score that --tuned and the report use: {', '.join(METRICS)}, by the first encoder, or "
        "'METRIC, ENCODER' as in the report; by default the first metric of the runs"
    )
    group.add_argument("--score", help=about)
    about = "measure the loss on held-out noise every N steps"
    group.add_argument("--held_out_every", type=int, metavar="STEPS", help=about)
    about = "score the loss on held-out images alone, and generate no images"
    group.add_argument("--loss_only", action="store_true", help=about)
    about = "train on all images and score the training loss of the last third of the steps alone"
    group.add_argument("--training_loss", action="store_true", help=about)
    about = "also generate and score at these strengths of the adapter, besides 1"
    group.add_argument("--strengths", nargs="+", type=float, default=[], metavar="STRENGTH", help=about)
    about = "text file of prompts without the subject, to measure drift from the base"
    group.add_argument("--drift_prompts", type=Path, metavar="FILE", help=about)


def add_report(group) -> None:
    about = "start no runs; report the finished ones, filtered by --methods, --ranks, --k and --lrs"
    group.add_argument("--report", action="store_true", help=about)
    about = (
        "methods that the report compares the others with, with k if they have one, such as 'gralora k1' "
        "(default: lora, which is PEFT's LoRA; our-lora is this package's)"
    )
    group.add_argument("--baseline", nargs="+", metavar="METHOD", help=about)
    about = "unit of analysis, by which differences are paired (default: seed)"
    group.add_argument("--unit", choices=("seed", "subject"), default="seed", help=about)
    about = "also report this score at equal --score, from the curves over the learning rates"
    group.add_argument("--front", metavar="SCORE", help=about)
    about = "with --report: write the report there, with a short runs.jsonl that can be reported again"
    group.add_argument("--keep", type=Path, metavar="FOLDER", help=about)


def problem_with(args: Namespace) -> str | None:
    """What is wrong with options, alone or together."""
    if args.keep and not args.report:
        return "--keep needs --report"
    for name in ("methods", "ranks", "k", "lrs", "seeds", "outliers"):
        values = getattr(args, name) or []
        if len(set(values)) < len(values):
            return f"--{name} has a value twice: {' '.join(map(str, values))}"
    positive = [*(args.ranks or []), *(args.lrs or []), 1 if args.steps is None else args.steps]
    if min(positive) <= 0 or min(args.seeds) < 0:
        return "--steps, --ranks and --lrs must be above 0, and --seeds at least 0"
    scales = args.outliers or [1.0]
    slices = 1 if args.outlier_slices is None else args.outlier_slices
    if not all(1 <= scale < math.inf for scale in scales) or slices < 1:
        return "--outliers and --outlier_slices must be at least 1, and finite"
    if args.outlier_slices and max(scales) == 1 and not args.report:
        return "--outlier_slices needs --outliers above 1"
    losses_alone = "--loss_only" if args.loss_only else "--training_loss" if args.training_loss else None
    if losses_alone and (args.prompts or args.strengths or args.drift_prompts or args.encoder):
        return (
            f"{losses_alone} generates no images: drop --prompts, --strengths, --drift_prompts and --encoder"
        )
    if args.loss_only and args.training_loss:
        return "--loss_only scores held-out images and --training_loss holds none out: choose one"
    if args.subjects and not args.prompts:
        return "--subjects needs --prompts, from which images of each subject are generated"
    if args.ray and (args.report or args.dry_run):
        return "--ray cannot be combined with --report or --dry_run"
    for name in ("held_out_every", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            return f"--{name} must be above 0"
    return None


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with only_options(vars(args)):  # the trainer's sentences name options of `gralora train`
        compare(args)


def compare(args: Namespace) -> None:
    # torch is imported only after --help and wrong options are dealt with
    from gralora_diffusion.training.signals import Stopped

    try:
        for name in args.encoder or []:
            parse_encoder_name(name)
        if args.report:
            report_runs(args)
        elif args.dry_run:
            dry_run(args)
        else:
            run_sweep(args)
    except Stopped as stop:
        fail(str(stop), 130)  # so that a chain of commands stops too
    except (ConfigError, OSError) as error:
        fail(str(error))


def report_runs(args: Namespace) -> None:
    from gralora_diffusion.experiments.report import report_sweep, select

    if args.keep and resolved(args.keep) == resolved(args.output):
        raise ConfigError("--keep must not be the folder of --output, whose runs.jsonl it would shorten")
    among = dict(method=args.methods, rank=args.ranks, lr=args.lrs)
    among["k"] = [None, *args.k] if args.k else None
    among["steps"] = [args.steps] if args.steps else None
    among["outliers"] = [None if scale == 1 else scale for scale in args.outliers or []]
    among["outlier_slices"] = [args.outlier_slices] if args.outlier_slices else None
    done = select(args.output, **among)
    options = dict(score=args.score, baselines=args.baseline, unit=args.unit, front=args.front)
    folder = args.keep or args.output
    text, plots = report_sweep(done, folder, **options, keep_runs=args.keep is not None)
    print(text)
    if plots:
        print("plots:", *plots)


def dry_run(args: Namespace) -> None:
    from gralora_diffusion.experiments.plan import forecast_sweep, plan_sweep

    plan = plan_sweep(args)
    for run in plan.runs:
        print(json.dumps(run))
    print(forecast_sweep(plan, args).text())


def run_sweep(args: Namespace) -> None:
    from gralora_diffusion.experiments.plan import plan_sweep

    plan = plan_sweep(args)
    if args.ray:
        from gralora_diffusion.experiments.cluster import do_sweep_on_ray

        do_sweep_on_ray(plan, args.output, args.ray, args.mixed_precision)
    else:
        from gralora_diffusion.experiments.sweep import do_sweep

        do_sweep(plan, args.output, args.mixed_precision)
    print(f"{counted(len(plan.runs), 'run')} done: --report prints the results in {args.output}")
