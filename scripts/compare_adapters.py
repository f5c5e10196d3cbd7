"""Compare adapters: a table of short training runs (method x rank x learning rate x seed), all with one trainer, one data order and one
budget of trainable parameters: as many as a LoRA of this rank has.

    python scripts/compare_adapters.py --output runs/style --instance_data_dir pictures --methods lora gralora --ranks 4 8 --lrs 3e-4 1e-3 --seeds 0 1

Captioned pictures: a tenth is held out for --part validation (where learning rates are chosen), another for --part test; pictures drawn
from held-out captions are compared with the true ones, one by one.  With --prompts, a subject's pictures: all are learnt, and what is drawn
from the prompts is compared with them and with the prompts.  The same command goes on where it was stopped; started several times, the
processes share the table.  --report prints and plots what is there.  docs/experiments.md has the experiments that the README reports.
"""

import hashlib
import itertools
import json
from functools import partial
from pathlib import Path

from gralora_diffusion.config import AdapterConfig, ConfigError, Parser, TrainConfig, fail, to_dict


def arguments():
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the sweep: runs.jsonl, and a folder for each run")
    parser.add_argument("--instance_data_dir", help="folder with the pictures to learn; by default the bundled robot, which needs --prompts")
    parser.add_argument("--instance_prompt", help="caption of pictures without one of their own")
    parser.add_argument("--prompts", type=Path, help="text file of prompts for a subject; without it captions are held out")
    parser.add_argument("--pretrained_model_name_or_path", help="the base; by default the embedded tiny one")
    parser.add_argument("--methods", nargs="+", default=["lora", "gralora"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8], help="ranks of the LoRA whose number of parameters all must have")
    parser.add_argument("--k", nargs="+", type=int, default=[2], help="blocks per side of gralora, hybrid and t-gralora")
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, help="pictures per step; by default the base's")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--tuned", action="store_true", help="of --lrs, for each method and rank only the one that its validation runs chose")
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument(
        "--encoder", nargs="+", help="what scores, as in evaluate.py; by default imagenet and embedded, or clip-vit-l-14 and dinov2-base"
    )
    parser.add_argument("--score", help="what the report is of; by default the first score of the first encoder")
    parser.add_argument("--baseline", default="lora")
    parser.add_argument("--report", action="store_true", help="no runs: print the table and plot what is there")
    parser.add_argument("--dry_run", action="store_true", help="print the table of runs, their parameters and a forecast, and stop")
    args = parser.parse_args()
    if args.steps < 1 or min(args.ranks) < 1 or min(args.seeds) < 0 or min(args.lrs) <= 0:
        parser.error("--steps, --ranks and --lrs must be above 0, and --seeds not below")
    return args


def setting_of(config: TrainConfig, pictures: list, prompts: list[str], encoders: list[str]) -> str:
    """A hash of what all runs have in common, so that another command never takes their results for its own."""
    digest = hashlib.sha256(json.dumps([to_dict(config), prompts, encoders], sort_keys=True).encode())
    for picture in pictures:
        digest.update(f"{picture.caption}\0{picture.digest}".encode())
    return digest.hexdigest()[:12]


def table_of_runs(args, shapes: list[tuple[int, int]], setting: str) -> list[dict]:
    """Every run that fits its budget; those that cannot are said."""
    from gralora_diffusion.comparators import GRIDS, Spec, count, fit

    runs = []
    for rank, method in itertools.product(args.ranks, args.methods):
        for k in args.k if method in GRIDS else [None]:
            Spec(method, 1, k, targets=args.targets)
            try:
                size, parameters = fit(method, count("lora", rank, shapes), shapes, k)
            except ConfigError as error:
                print(f"rank {rank}, left out: {error}")
                continue
            what = dict(method=method, rank=rank, size=size, k=k, parameters=parameters, targets=args.targets, steps=args.steps, part=args.part)
            runs += [what | dict(setting=setting, lr=lr, seed=seed) for lr, seed in itertools.product(args.lrs, args.seeds)]
    return runs


def tuned(runs: list[dict], done: list[dict], score: str | None) -> list[dict]:
    """The runs at the learning rate that is best in the validation runs of the same method, rank and k."""
    from gralora_diffusion.comparison import at_best_rate

    done = [d for d in done if d["run"]["part"] == "validation" and d["run"]["setting"] == runs[0]["setting"]]
    score = score or first_score(done)
    best = {key[1:]: found[0]["run"]["lr"] for key, found in at_best_rate(done, score).items()}
    for run in runs:
        if (run["rank"], run["method"], run["k"] or 0, run["steps"]) not in best:
            raise ConfigError(f"--tuned: {run['method']} at rank {run['rank']} has no validation runs with these options yet; make them first")
    return [run for run in runs if run["lr"] == best[run["rank"], run["method"], run["k"] or 0, run["steps"]]]


def first_score(done: list[dict]) -> str:
    scores = [s for d in done for s in d.get("scores", {}) if "loss" not in s]
    if not scores:
        raise ConfigError("the sweep holds no finished runs to choose or report from")
    return scores[0]


def forecast(args, runs: list[dict], unet, config, drawn: int) -> str:
    """Operations of the whole sweep, counted on the UNet's shapes; and what that is in hours of a GPU that does 400 TFLOP/s."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side, width = (config.resolution or unet.config.sample_size * 8) // 8, unet.config.projection_class_embeddings_input_dim
    conditions = dict(
        text_embeds=torch.empty(1, width - 6 * unet.config.addition_time_embed_dim, device="meta"), time_ids=torch.empty(1, 6, device="meta")
    )
    inputs = torch.empty(1, unet.config.in_channels, side, side, device="meta"), torch.zeros(1, device="meta").long()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(*inputs, torch.empty(1, 77, unet.config.cross_attention_dim, device="meta"), added_cond_kwargs=conditions)
    forward = counter.get_total_flops()
    training = sum(2 * forward * config.train_batch_size * run["steps"] for run in runs)  # backward through frozen weights costs one more forward
    drawing = len(runs) * drawn * 2 * config.num_inference_steps * forward
    hours = (training + drawing) / 400e12 / 3600
    return f"{len(runs)} runs: {training / 1e12:,.0f} TFLOP of training, {drawing / 1e12:,.0f} of drawing: {hours:,.2f} hours of a GPU at 400 TFLOP/s"


def main():
    args = arguments()
    import torch
    from accelerate import Accelerator

    from gralora_diffusion.comparators import shapes_of
    from gralora_diffusion.comparison import plot, summary_table
    from gralora_diffusion.data import instance_pictures
    from gralora_diffusion.encoders import load_encoder
    from gralora_diffusion.evaluation import picture_features
    from gralora_diffusion.interrupts import Interrupts, Stopped
    from gralora_diffusion.sdxl import EMBEDDED, SDXL_UNET, shapes
    from gralora_diffusion.sweep import Bench, results, split, sweep, train_one

    names = ("instance_data_dir", "instance_prompt", "pretrained_model_name_or_path", "resolution")
    try:
        config = TrainConfig(
            adapter=AdapterConfig(targets=args.targets), max_train_steps=args.steps, train_batch_size=args.batch_size,
            **{name: getattr(args, name) for name in names},
        ).resolved()  # fmt: skip
        if args.report:
            done = results(args.output)
            score = args.score or first_score(done)
            print(summary_table(done, score, args.baseline))
            print("plots:", *plot(done, score, args.output))
            return
        if args.dry_run and args.pretrained_model_name_or_path == "stabilityai/stable-diffusion-xl-base-1.0":
            from diffusers import UNet2DConditionModel

            with torch.device("meta"):
                unet = UNet2DConditionModel.from_config(SDXL_UNET)  # its public config: nothing is fetched
        else:
            unet = shapes(args.pretrained_model_name_or_path)["unet"]
        prompts = [line for line in args.prompts.read_text().splitlines() if line.strip()] if args.prompts else []
        pictures = instance_pictures(config)
        embedded = args.pretrained_model_name_or_path in (None, str(EMBEDDED))
        names = args.encoder or (["imagenet", "embedded"] if embedded else ["clip-vit-l-14", "dinov2-base"])
        runs = table_of_runs(args, shapes_of(unet, args.targets), setting_of(config, pictures, prompts, names))
        runs = tuned(runs, results(args.output), args.score) if args.tuned and runs else runs
        learnt, held = (pictures, []) if prompts else split(pictures, args.part)
        if args.dry_run:
            for run in runs:
                print(json.dumps(run))
            print(f"{len(learnt)} pictures to learn, {len(prompts) or len(held)} drawn in each run")
            print(forecast(args, runs, unet, config, len(prompts) or len(held)))
            return
        accelerator = Accelerator(mixed_precision="no")
        encoders = [load_encoder(name, str(accelerator.device)) for name in names]
        features = partial(picture_features, cache=args.output / "features")
        bench = Bench(args.output, config, accelerator, learnt, held, prompts, encoders, features)
        with Interrupts(lambda: None) as interrupts:
            interrupts.patient = True
            sweep(args.output, runs, lambda run: train_one(run, bench, interrupts))
    except Stopped as stop:
        print(f"compare_adapters: {stop}")
    except (ConfigError, OSError) as error:
        fail(str(error))


if __name__ == "__main__":
    main()
