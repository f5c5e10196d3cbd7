"""Where do this base's gradients entangle, and which k suits each layer?

    gralora entanglement --output entanglement
    gralora entanglement --pretrained_model_name_or_path BASE --instance_data_dir photos --instance_prompt "a photo of sks dog" \\
        --ranks 16 64 --ks 1 2 4 8 --trained runs/my_dog --output entanglement

takes all options of training (data, targets, precision, loss), and writes report.json, report.html and four PNG plots.
"""

import functools
import hashlib
import json
from pathlib import Path

from gralora_diffusion.command_line import Parser, add_options, expand
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import fail
from gralora_diffusion.options import ConfigError, from_flat


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("entanglement"),
        help="folder for the report (default: entanglement)",
    )
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        default=[16, 64],
        help="ranks to look at; k is recommended for the first",
    )
    parser.add_argument(
        "--ks", type=int, nargs="+", default=[1, 2, 4, 8], help="GraLoRA's k to look at; 1 is LoRA"
    )
    parser.add_argument("--bins", type=int, default=4, help="bins of timesteps")
    parser.add_argument("--batches", type=int, default=8, help="batches in each bin")
    parser.add_argument(
        "--trained", type=Path, help="a run folder or adapter file, for the effective rank of what was learnt"
    )
    add_options(parser, TrainConfig)
    given = vars(parser.parse_args(argv))
    own = {name: given.pop(name) for name in ("output", "ranks", "ks", "bins", "batches", "trained")}
    try:
        if min(*own["ranks"], *own["ks"], own["bins"], own["batches"]) < 1 or 1 not in own["ks"]:
            raise ConfigError(
                "--ranks, --ks, --bins and --batches are whole numbers from 1, and --ks must have 1, which is LoRA"
            )
        report(from_flat(TrainConfig, expand(given)), **own)
    except ConfigError as error:
        fail(str(error))


def report(
    config: TrainConfig,
    output: Path,
    ranks: list[int],
    ks: list[int],
    bins: int,
    batches: int,
    trained: Path | None,
) -> None:
    from gralora_diffusion.adapters.control import enable
    from gralora_diffusion.adapters.gradients import stratified
    from gralora_diffusion.data.batches import plan_batches
    from gralora_diffusion.data.cache import Cache
    from gralora_diffusion.data.dataset import image_cache
    from gralora_diffusion.experiments.entanglement import measure, summary, table
    from gralora_diffusion.experiments.entanglement_report import page, plots
    from gralora_diffusion.files import write_text
    from gralora_diffusion.formats.read import read_adapter
    from gralora_diffusion.sdxl.base import encode_prompts
    from gralora_diffusion.training.loss import draw_noise
    from gralora_diffusion.training.objective import objective
    from gralora_diffusion.training.setup import make_trainable, set_up

    job = set_up(config.resolved())
    adapter = read_adapter(trained) if trained else None
    deltas = (
        {
            f"{c}.{path}": up @ down
            for c, path, _ in adapter.items()
            for down, up in [adapter.low_rank(c, path)]
        }
        if adapter
        else {}
    )
    for model in job.models.values():
        enable(model, False)
    pipeline, config = job.pipeline.to(job.accelerator.device), job.config
    series = plan_batches(
        job.images,
        job.class_images,
        pipeline.vae,
        config,
        image_cache(config) or Cache(output / "cache"),
        job.accelerator,
    )
    encode = functools.partial(encode_prompts, pipeline)
    make_trainable(job.models, config)
    needs = pipeline.unet, pipeline.scheduler, series, encode, config, job.accelerator, job.dtype
    losses = [objective(*needs, stratified(draw_noise, i / bins, (i + 1) / bins)) for i in range(bins)]
    rows = measure(job.layers(), losses, job.accelerator, batches, ranks, ks, config.seed, deltas)
    weights = hashlib.sha256(json.dumps(job.facts["must_match"]["base"]).encode()).hexdigest()[:16]
    facts = dict(
        base=config.pretrained_model_name_or_path or "the embedded base",
        fingerprint=weights,
        trained=str(trained) if trained else None,
    )
    facts |= dict(
        images=len(job.images),
        prompt=config.instance_prompt,
        bins=bins,
        batches_per_bin=batches,
        batch_size=config.train_batch_size,
    )
    facts["means"] = summary(rows)
    text, images = table(rows, facts), plots(rows, facts)
    output.mkdir(parents=True, exist_ok=True)
    for name, data in images.items():
        (output / name).write_bytes(data)
    write_text(output / "report.json", json.dumps(facts | dict(layers=rows), indent=1) + "\n")
    write_text(output / "report.html", page(rows, facts, images, text))
    print(f"{text}\n-> {output}/report.html")
