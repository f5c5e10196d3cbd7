"""Measure where a base's gradients entangle, and which GraLoRA k suits each layer.

Accepts all training options (data, targets, precision, loss), and writes report.json, report.html, four PNG
plots, and train-options.txt with the recommended k; to use it:
xargs gralora train --instance_data_dir photos < entanglement/train-options.txt
"""

import hashlib
import json
from pathlib import Path

from gralora_diffusion.command_line import Parser, add_options, expand
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import fail
from gralora_diffusion.options import ConfigError, from_flat

OWN = ("output", "ranks", "ks", "bins", "batches", "trained")
EPILOG = """example:
  gralora entanglement --output entanglement
  gralora entanglement --pretrained_model_name_or_path BASE --instance_data_dir photos \\
      --instance_prompt "a photo of sks dog" --ranks 16 64 --ks 1 2 4 8 --trained runs/my_dog
"""


def main(argv: list[str] | None = None) -> None:
    given = arguments(argv)
    own = {name: given.pop(name) for name in OWN}
    try:
        numbers = [*own["ranks"], *own["ks"], own["bins"], own["batches"]]
        if min(numbers) < 1 or 1 not in own["ks"]:
            raise ConfigError(
                "--ranks, --ks, --bins and --batches must be at least 1, and --ks must contain 1, which is "
                "LoRA"
            )
        report_entanglement(from_flat(TrainConfig, expand(given)), **own)
    except ConfigError as error:
        fail(str(error))


def arguments(argv: list[str] | None) -> dict:
    parser = Parser(description=__doc__, epilog=EPILOG)
    group = parser.add_argument_group("Report")
    folder = Path("entanglement")
    about = f"folder for the report (default: {folder})"
    group.add_argument("--output", type=Path, default=folder, metavar="FOLDER", help=about)
    about = "ranks to measure; k is recommended for the first one (default: 16 64)"
    group.add_argument("--ranks", type=int, nargs="+", default=[16, 64], metavar="RANK", help=about)
    about = "values of GraLoRA's k to measure; 1 is LoRA (default: 1 2 4 8)"
    group.add_argument("--ks", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K", help=about)
    group.add_argument("--bins", type=int, default=4, help="bins of timesteps (default: 4)")
    group.add_argument("--batches", type=int, default=8, help="batches in each bin (default: 8)")
    about = "a run folder or adapter file, for the effective rank of the trained delta"
    group.add_argument("--trained", type=Path, metavar="PATH", help=about)
    add_options(parser, TrainConfig)
    return vars(parser.parse_args(argv))


def report_entanglement(
    config: TrainConfig,
    output: Path,
    ranks: list[int],
    ks: list[int],
    bins: int,
    batches: int,
    trained: Path | None,
) -> None:
    """Measure, write the report and print its tables."""
    from gralora_diffusion.adapters.control import enable
    from gralora_diffusion.adapters.inject import with_convolutions
    from gralora_diffusion.experiments.entanglement import mean_over_layers, measure_layers
    from gralora_diffusion.experiments.entanglement_report import OPTIONS, options_of, write_entanglement
    from gralora_diffusion.training.setup import make_trainable, set_up

    if with_convolutions(config.adapter.targets):
        problem = f"--targets {config.adapter.targets} includes convolutions"
        problem += ", but the report covers linear layers only"
        raise ConfigError(f"{problem}: use attention+ff or all-linear", option="targets")
    setup = set_up(config.resolved())
    config = setup.config
    deltas = deltas_of(trained) if trained else {}
    for model in setup.models.values():
        enable(model, False)
    losses = losses_by_timestep(setup, output, bins)
    make_trainable(setup.models, config)
    layers = setup.layers()
    rows = measure_layers(layers, losses, setup.accelerator, batches, ranks, ks, config.seed, deltas)
    fingerprint = json.dumps(setup.facts["must_match"]["base"]).encode()
    facts = dict(
        base=config.pretrained_model_name_or_path or "the embedded base",
        fingerprint=hashlib.sha256(fingerprint).hexdigest()[:16],
        trained=str(trained) if trained else None,
        images=len(setup.images),
        prompt=config.instance_prompt,
        bins=bins,
        batches_per_bin=batches,
        batch_size=config.train_batch_size,
        means=mean_over_layers(rows),
    )
    print(write_entanglement(output, rows, facts, options_of(rows, config)))
    print(f"-> {output}/report.html; {output}/{OPTIONS} has the recommended k as options of gralora train")


def losses_by_timestep(setup, output: Path, bins: int) -> list:
    """loss_of(index) for each bin of timesteps, low noise first."""
    from gralora_diffusion.adapters.gradients import stratified
    from gralora_diffusion.data.batches import plan_batches
    from gralora_diffusion.data.cache import Cache
    from gralora_diffusion.data.dataset import image_cache
    from gralora_diffusion.sdxl.base import caption_encoder
    from gralora_diffusion.sdxl.prompt_chunks import PromptRules
    from gralora_diffusion.training.loss import draw_noise
    from gralora_diffusion.training.objective import objective

    config, accelerator = setup.config, setup.accelerator
    pipeline = setup.pipeline.to(accelerator.device)
    cache = image_cache(config) or Cache(output / "cache")
    batches = plan_batches(setup.images, setup.class_images, pipeline.vae, config, cache, accelerator)
    encode = caption_encoder(pipeline, batches.captions(), PromptRules.of(config))
    models = pipeline.unet, pipeline.scheduler
    losses = []
    for i in range(bins):
        in_bin = stratified(draw_noise, i / bins, (i + 1) / bins)
        losses.append(objective(*models, batches, encode, config, accelerator, setup.dtype, in_bin))
    return losses


def deltas_of(trained: Path) -> dict:
    """{component.layer: delta [M, N]} of a trained adapter."""
    from gralora_diffusion.formats.read import read_adapter

    adapter = read_adapter(trained)
    deltas = {}
    for component, path, _ in adapter.items():
        down, up = adapter.low_rank(component, path)
        deltas[f"{component}.{path}"] = up @ down
    return deltas
