"""Compare adapters: a table of short training runs (method x rank x learning rate x seed), all with one trainer, one data order and one
budget of trainable parameters: as many as a LoRA of this rank has.

    gralora compare --output runs/style --instance_data_dir images --methods lora gralora --ranks 4 8 --lrs 3e-4 1e-3 --seeds 0 1

Captioned images: a tenth is held out for --part validation (where learning rates are chosen), another for --part test; images drawn
from held-out captions are compared with the true ones, one by one.  With --prompts, a subject's images: all are learnt, and what is drawn
from the prompts is compared with them and with the prompts; --subjects does so for several.  The same command goes on where it was stopped;
started several times, the processes share the table (on a CPU with OMP_NUM_THREADS=1 for each, or they hold each other up).  --report prints
and plots what is there; --keep puts it, small, into another folder.
docs/experiments/README.md has the experiments that the README reports.

Methods: gralora, hybrid, lora (PEFT's), our-lora (the trainer's), rslora, lora+, dora, pissa, olora, eva, vera, fourierft, lokr, loha, oft, mora,
rasa, t-lora, t-gralora, full; with ranks or a start from gradients gora, gora-ours, gralora-gora, gralora-energy, gralora-ralora, gralora-random,
gralora-inverse, gralora-ranks, gralora-start.
"""

import dataclasses
import hashlib
import itertools
import json
from functools import partial
from pathlib import Path

from gralora_diffusion.command_line import Parser
from gralora_diffusion.config import AdapterConfig, TrainConfig
from gralora_diffusion.console import fail, note
from gralora_diffusion.options import ConfigError, to_dict

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def arguments(argv: list[str] | None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of the sweep: runs.jsonl, and a folder for each run",
    )
    parser.add_argument(
        "--instance_data_dir",
        help="folder with the images to learn; by default the bundled robot, which needs --prompts",
    )
    parser.add_argument(
        "--instance_prompt",
        help="caption of images without one of their own; with --subjects {} is the class",
    )
    parser.add_argument(
        "--prompts", type=Path, help="text file of prompts for a subject; without it captions are held out"
    )
    parser.add_argument(
        "--subjects",
        nargs="+",
        metavar="FOLDER[=CLASS]",
        help="several subjects, each with runs of its own; {} in --prompts is the class",
    )
    parser.add_argument("--pretrained_model_name_or_path", help="the base; by default the embedded tiny one")
    parser.add_argument("--methods", nargs="+", help="by default lora and gralora; all are named above")
    parser.add_argument(
        "--ranks",
        nargs="+",
        type=int,
        help="ranks of the LoRA whose number of parameters all must have; by default 8",
    )
    parser.add_argument(
        "--k", nargs="+", type=int, help="blocks per side of gralora, hybrid and t-gralora; by default 2"
    )
    parser.add_argument("--lrs", nargs="+", type=float, help="learning rates; by default 1e-3")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="by default 300; with --report those that it is to show")
    parser.add_argument("--batch_size", type=int, help="images per step; by default the base's")
    parser.add_argument("--resolution", type=int)
    parser.add_argument(
        "--num_inference_steps",
        type=int,
        help="denoising steps of the images that are scored; by default the trainer's",
    )
    parser.add_argument(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        help="of the frozen base and the computation; by default no: fp32",
    )
    parser.add_argument("--targets", default="attention")
    parser.add_argument(
        "--tuned", nargs="?", type=Path, const=Path(), metavar="FOLDER",
        help="of --lrs, for each method and rank only the one that its validation runs chose, in this sweep or in another's folder",
    )  # fmt: skip
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument(
        "--encoder",
        nargs="+",
        help="what scores, as in evaluate.py; by default imagenet and embedded, or clip-vit-l-14 and dinov2-base",
    )
    parser.add_argument(
        "--held_out_every",
        type=int,
        metavar="STEPS",
        help="measure the loss on held-out noise so often while training",
    )
    parser.add_argument(
        "--strengths",
        nargs="+",
        type=float,
        default=[],
        help="draw and score at these strengths too, beside 1",
    )
    parser.add_argument(
        "--drift_prompts",
        type=Path,
        help="text file of prompts without the subject, drawn to see how far the base has moved",
    )
    parser.add_argument(
        "--score",
        help="what --tuned chooses by and the report is of; by default the first score of the first encoder",
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        help='what the report subtracts: methods, each with its k where it has one, as "gralora k1"; by default lora',
    )
    parser.add_argument(
        "--unit",
        choices=("seed", "subject"),
        default="seed",
        help="what the report counts as one: differences are paired by it",
    )
    parser.add_argument(
        "--front",
        metavar="SCORE",
        help="report this score at equal --score too, from the curves over the learning rates",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="no runs: print and plot what is there, of --methods, --ranks, --k and --lrs if given",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="with --report: write it there, with a short runs.jsonl to report from again",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the table of runs, their parameters and a forecast, and stop",
    )
    args = parser.parse_args(argv)
    if args.keep and not args.report:
        parser.error("--keep goes with --report")
    if not args.report:
        args.methods, args.ranks, args.k, args.lrs = (
            args.methods or ["lora", "gralora"],
            args.ranks or [8],
            args.k or [2],
            args.lrs or [1e-3],
        )
        args.steps = 300 if args.steps is None else args.steps
    for name in ("methods", "ranks", "k", "lrs", "seeds"):
        if len(set(getattr(args, name) or [])) < len(getattr(args, name) or []):
            parser.error(f"--{name} names one twice: {' '.join(map(str, getattr(args, name)))}")
    if (
        (args.steps is not None and args.steps < 1)
        or min(args.ranks or [1]) < 1
        or min(args.seeds) < 0
        or min(args.lrs or [1]) <= 0
    ):
        parser.error("--steps, --ranks and --lrs must be above 0, and --seeds not below")
    if args.subjects and not args.prompts:
        parser.error("--subjects needs --prompts: what is drawn of each subject")
    if args.held_out_every is not None and args.held_out_every < 1:
        parser.error("--held_out_every must be above 0")
    return args


def lines_of(path: Path | None) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()] if path else []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a text file of prompts, one a line: {error}") from None
    if path and not lines:
        raise ConfigError(f"{path} holds no prompts: one a line")
    return lines


def subjects_of(args, config: TrainConfig) -> dict[str | None, tuple[TrainConfig, list[str]]]:
    """{subject: (config, prompts)}; the only one is None without --subjects."""
    prompts, found = lines_of(args.prompts), {}
    for given in args.subjects or []:
        folder, _, word = given.partition("=")
        word = word or Path(folder).name.replace("_", " ")
        caption = (args.instance_prompt or "a photo of sks {}").replace("{}", word)
        mine = dataclasses.replace(config, instance_data_dir=folder, instance_prompt=caption)
        found[Path(folder).name] = mine, [prompt.replace("{}", word) for prompt in prompts]
    return found or {None: (config, prompts)}


def setting_of(config: TrainConfig, images: list, *common) -> str:
    """A hash of what all runs have in common, so that another command never takes their results for its own."""
    digest = hashlib.sha256(json.dumps([to_dict(config), *common], sort_keys=True).encode())
    for image in images:
        digest.update(f"{image.caption}\0{image.digest}".encode())
    return digest.hexdigest()[:12]


def table_of_runs(args, shapes: list[tuple[int, int]]) -> list[dict]:
    """Every run that fits its budget; those that cannot are said."""
    from gralora_diffusion.experiments.budget import GRIDS, count, fit
    from gralora_diffusion.experiments.methods import OURS, Spec

    runs, common = [], dict(targets=args.targets, steps=args.steps, part=args.part)
    for rank, method in itertools.product(args.ranks, args.methods):
        for k in args.k if method in GRIDS else [None]:
            Spec(method, 1, k, targets=args.targets)
            if args.strengths and method not in OURS:
                raise ConfigError(f"--strengths goes with {', '.join(OURS)}, and {method} is not among them")
            try:
                size, parameters = fit(method, count("lora", rank, shapes), shapes, k)
            except ConfigError as error:
                print(f"rank {rank}, left out: {error}")
                continue
            if method == "full":
                print(
                    f"rank {rank}: full trains {parameters:,} parameters, whatever the budget, and gets no verdict"
                )
            what = dict(method=method, rank=rank, size=size, k=k, parameters=parameters) | common
            runs += [what | dict(lr=lr, seed=seed) for lr, seed in itertools.product(args.lrs, args.seeds)]
    if not runs:
        raise ConfigError("no run is left: no method of --methods can have the budget of a rank in --ranks")
    return runs


def forecast(runs: list[dict], unet, config, drawn: int, looked: int) -> str:
    """Operations of the whole sweep, counted on the UNet's shapes; and what that is in time of a GPU that does 400 TFLOP/s.

    drawn: images a run;  looked: batches a run, forward alone.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from gralora_diffusion.experiments.methods import GRADIENTS
    from gralora_diffusion.sdxl.base import blank_inputs, predict

    side = (config.resolution or unet.config.sample_size * 8) // 8
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predict(unet, *blank_inputs(unet.config, 1, side, device="meta"))
    forward = counter.get_total_flops()
    batches = sum(
        2 * run["steps"] + looked for run in runs
    )  # backward through frozen weights costs one more forward
    batches += sum(3 * config.gora_batches for run in runs if run["method"] in GRADIENTS)
    training, drawing = (
        forward * config.train_batch_size * batches,
        len(runs) * drawn * 2 * config.num_inference_steps * forward,
    )
    seconds = (training + drawing) / 400e12
    time = f"{seconds / 3600:,.2f} hours" if seconds >= 360 else f"{seconds:.3g} seconds"
    return f"{len(runs)} runs: {training / 1e12:,.0f} TFLOP of training, {drawing / 1e12:,.0f} of drawing: {time} of a GPU at 400 TFLOP/s"


def plain_unet(path: str | None, dry_run: bool):
    """The UNet in shapes alone; SDXL's from its public config, so that a dry run fetches nothing."""
    import torch
    from diffusers import UNet2DConditionModel

    from gralora_diffusion.sdxl.load import shapes
    from gralora_diffusion.sdxl.single_file import SDXL_UNET

    if dry_run and path == SDXL:
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(SDXL_UNET)
    return shapes(path)["unet"]


def plan(args) -> tuple[list[dict], dict[str | None, object]]:
    """(the runs, {subject: its bench, with the encoders' names in place of the encoders})"""
    from gralora_diffusion.data.dataset import instance_images
    from gralora_diffusion.evaluation.features import image_features
    from gralora_diffusion.experiments.analysis import tuned
    from gralora_diffusion.experiments.methods import shapes_of
    from gralora_diffusion.experiments.queue import results, split
    from gralora_diffusion.experiments.run import Experiment
    from gralora_diffusion.sdxl.load import EMBEDDED

    names = (
        "instance_data_dir",
        "instance_prompt",
        "pretrained_model_name_or_path",
        "resolution",
        "mixed_precision",
    )
    given = {name: getattr(args, name) for name in names} | (
        {} if args.num_inference_steps is None else dict(num_inference_steps=args.num_inference_steps)
    )
    if args.subjects:
        given |= dict(instance_data_dir=None, instance_prompt=None)
    config = TrainConfig(
        adapter=AdapterConfig(targets=args.targets),
        max_train_steps=args.steps,
        train_batch_size=args.batch_size,
        **given,
    ).resolved()
    embedded = args.pretrained_model_name_or_path in (None, str(EMBEDDED))
    encoders = args.encoder or (["imagenet", "embedded"] if embedded else ["clip-vit-l-14", "dinov2-base"])
    strengths, drift = sorted({*args.strengths, 1.0}), lines_of(args.drift_prompts)
    features, looked = (
        partial(image_features, cache=args.output / "features"),
        [args.held_out_every, args.strengths, drift],
    )
    shapes, runs, benches = (
        shapes_of(plain_unet(args.pretrained_model_name_or_path, args.dry_run), args.targets),
        [],
        {},
    )
    table = table_of_runs(args, shapes)
    for subject, (mine, prompts) in subjects_of(args, config).items():
        images = instance_images(mine)
        setting = setting_of(mine, images, prompts, encoders, *(looked if any(looked) else []))
        runs += [(dict(subject=subject) if subject else {}) | run | dict(setting=setting) for run in table]
        learnt, held = (images, []) if prompts else split(images, args.part)
        benches[subject] = Experiment(
            args.output,
            mine,
            None,
            learnt,
            held,
            prompts,
            encoders,
            features,
            args.held_out_every,
            strengths,
            drift,
        )
    if args.tuned is not None:
        elsewhere = args.tuned != Path()
        runs = tuned(runs, results(args.tuned if elsewhere else args.output), args.score, elsewhere)
    return runs, benches


def report(args) -> None:
    from gralora_diffusion.experiments.analysis import check_baseline, check_settings, first_score, in_short
    from gralora_diffusion.experiments.plots import PLOTS, plot
    from gralora_diffusion.experiments.queue import RESULTS, results
    from gralora_diffusion.experiments.tables import summary
    from gralora_diffusion.files import complete_or_absent

    if args.keep and args.keep.resolve() == args.output.resolve():
        raise ConfigError("--keep must be another folder than --output, whose runs.jsonl it would shorten")
    wanted = dict(
        method=args.methods,
        rank=args.ranks,
        k=args.k and [None, *args.k],
        lr=args.lrs,
        steps=args.steps and [args.steps],
    )
    there = results(args.output)
    done = [d for d in there if all(d["run"].get(name) in among for name, among in wanted.items() if among)]
    folder = args.keep or args.output
    if there and not done:
        raise ConfigError(
            f"none of the {len(there)} runs in {args.output} is of the given --methods, --ranks, --k, --lrs and --steps"
        )
    check_settings(done)
    score = args.score or first_score(done)
    for baseline in args.baseline or []:
        check_baseline(done, baseline)
    text = summary(done, score, args.baseline or ["lora"], args.unit, args.front)
    print(text)
    if args.keep:
        with complete_or_absent(folder / RESULTS) as part:
            part.write_text("".join(json.dumps(in_short(entry)) + "\n" for entry in done))
    with complete_or_absent(folder / "table.md") as part:
        part.write_text(text + "\n")
    written = plot(done, score, folder, args.unit, args.front)
    for path in {folder / f"{name}.png" for name in PLOTS}.difference(written):
        path.unlink(missing_ok=True)  # an earlier report's
    print("plots:", *written)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    import torch
    from accelerate import Accelerator

    from gralora_diffusion.evaluation.encoders import check_name, load_encoder
    from gralora_diffusion.experiments.queue import alive, sweep
    from gralora_diffusion.experiments.run import run_experiment
    from gralora_diffusion.training.signals import Interrupts, Stopped

    try:
        if args.report:
            return report(args)
        for name in args.encoder or []:
            check_name(name)
        runs, benches = plan(args)
        if args.dry_run:
            for run in runs:
                print(json.dumps(run))
            bench = next(iter(benches.values()))
            drawn = len(bench.wanted()) * len(bench.strengths)
            print(f"{len(bench.images)} images to learn, {drawn} drawn in each run")
            looked = 8 * (1 + args.steps // bench.every) if bench.every else 0
            print(
                forecast(
                    runs, plain_unet(args.pretrained_model_name_or_path, True), bench.config, drawn, looked
                )
            )
            return
        accelerator = Accelerator(mixed_precision=args.mixed_precision or "no")
        encoders = [
            load_encoder(name, str(accelerator.device)) for name in next(iter(benches.values())).encoders
        ]
        for bench in benches.values():
            bench.accelerator, bench.encoders = accelerator, encoders
        others = any(map(alive, (args.output / "claims").glob("*")))
        if others and accelerator.device.type == "cpu" and torch.get_num_threads() > 1:
            note(
                "another process shares this table: OMP_NUM_THREADS=1 for each of them is several times faster on a CPU"
            )
        with Interrupts(lambda: None) as interrupts:
            interrupts.patient = True
            sweep(
                args.output,
                runs,
                lambda run: run_experiment(run, benches[run.get("subject")], interrupts),
                asked=lambda: interrupts.asked,
            )
        print(f"{len(runs)} runs are done: --report shows what is in {args.output}")
    except Stopped as stop:
        fail(str(stop), 130)  # so that a chain of commands stops too
    except (ConfigError, OSError) as error:
        fail(str(error))
