"""Generate images from prompts, with a trained adapter or with the base model alone.

Writes one grid of all images, and each image as its own file in a folder named as OUTPUT without .png.
"""

import argparse
import contextlib
from pathlib import Path

from gralora_diffusion.command_line import Parser, strengths
from gralora_diffusion.config import EMBEDDED_DEFAULTS, SDXL_DEFAULTS
from gralora_diffusion.console import counted, fail
from gralora_diffusion.options import ConfigError

EXAMPLE = """example:
  gralora sample --adapter runs/my_dog --prompt "a photo of sks dog on the beach|a drawing of sks dog" \\
      --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 --compare --output dog.png
"""


def main(argv: list[str]) -> None:
    args = parse(argv)
    prompts = [prompt.strip() for prompt in args.prompt.split("|")]
    try:
        for path in args.adapter:
            if not Path(path).exists():
                fail(f"--adapter {path} does not exist: give a run folder or an adapter file")
        args.output.with_suffix("").mkdir(parents=True, exist_ok=True)
        rows = generate(args, prompts)
        columns = [prompt for prompt in prompts for _ in range(args.num_images)]
        save(rows, columns, args.output)
    except ConfigError as error:
        with contextlib.suppress(OSError):
            args.output.with_suffix("").rmdir()  # where it is empty
        fail(str(error))
    except OSError as error:
        fail(f"{args.output} cannot be written: {error.strerror or error}; choose another --output")


def parse(argv: list[str]) -> argparse.Namespace:
    usage = "%(prog)s [options] --prompt TEXT"
    parser = Parser(usage=usage, description=__doc__, epilog=EXAMPLE)
    group = parser.add_argument_group("Adapter and prompts")
    about = "run folder or adapter file of any tool; can be repeated; without it, only the base model is used"
    group.add_argument("--adapter", metavar="PATH", action="append", default=[], help=about)
    about = "what to generate; | separates several prompts"
    group.add_argument("--prompt", metavar="TEXT", required=True, help=about)
    about = "0 is the base model, 1 the adapter as trained; for several adapters, such as 1,0.6 (default: 1)"
    group.add_argument("--strength", metavar="FLOAT[,FLOAT...]", default="1", help=about)
    about = "generate the base model's images too, in a row above the adapter's"
    group.add_argument("--compare", action="store_true", help=about)
    about = "the base model: a folder, a .safetensors file or a hub id (default: the embedded one)"
    group.add_argument("--pretrained_model_name_or_path", metavar="PATH", help=about)

    group = parser.add_argument_group("Images")
    group.add_argument("--num_images", metavar="INT", type=int, default=4, help="per prompt (default: 4)")
    about = "image n starts from the noise of seed + n (default: 0)"
    group.add_argument("--seed", metavar="INT", type=int, default=0, help=about)
    about = "denoising steps (default: 25)"
    group.add_argument("--num_inference_steps", metavar="INT", type=int, default=25, help=about)
    embedded = EMBEDDED_DEFAULTS["guidance_scale"]
    sdxl = SDXL_DEFAULTS["guidance_scale"]
    about = f"higher follows the prompt more closely (default: {sdxl:g}; embedded base {embedded:g})"
    group.add_argument("--guidance_scale", metavar="FLOAT", type=float, help=about)

    group = parser.add_argument_group("Files, memory and speed")
    about = "the grid, a .png file (default: sample.png)"
    group.add_argument("--output", metavar="FILE", type=Path, default=Path("sample.png"), help=about)
    about = "images generated at once; it changes speed and memory, not the images (default: 4)"
    group.add_argument("--batch_size", metavar="INT", type=int, default=4, help=about)

    args = parser.parse_args(argv)
    for name in ("num_images", "num_inference_steps", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if args.output.suffix != ".png":
        parser.error(f"--output is {args.output}; it must end in .png")
    if args.compare and not args.adapter:
        parser.error("--compare needs an adapter to compare with the base model: add --adapter")
    args.strength = strengths(parser, args.strength, max(1, len(args.adapter)))
    return args


def generate(args: argparse.Namespace, prompts: list[str]) -> dict[str, list]:
    """{label of a row: its images}"""
    from gralora_diffusion import load_sdxl
    from gralora_diffusion.adapters.control import bake_in
    from gralora_diffusion.devices import best_device, drawing_dtype
    from gralora_diffusion.sdxl.objective import objective_of_scheduler, objective_text
    from gralora_diffusion.sdxl.placement import bring
    from gralora_diffusion.sdxl.sampling import as_trained, sample

    base = args.pretrained_model_name_or_path
    guidance = args.guidance_scale
    if guidance is None:
        guidance = (SDXL_DEFAULTS if base else EMBEDDED_DEFAULTS)["guidance_scale"]
    settings = dict(
        seed=args.seed,
        num_images=args.num_images,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=guidance,
        batch_size=args.batch_size,
        device=best_device(),
    )
    pipeline = load_sdxl(base, dtype=drawing_dtype(best_device()))
    rows = {}
    if args.compare or not args.adapter:
        rows["base"] = sample(pipeline, prompts, **settings)
    if args.adapter:
        bring(pipeline, ("unet",), best_device(), 0)
        facts = load_all(pipeline, args.adapter, args.strength)
        if not any(own["config"]["tlora"] for own in facts):  # T-LoRA's active ranks depend on the timestep
            bake_in(pipeline.unet)
        scheduler = as_trained(pipeline.scheduler, **common_objective(facts))
        print(f"prediction: {objective_text(objective_of_scheduler(scheduler.config))}")
        label = "strength " + ", ".join(f"{strength:g}" for strength in args.strength)
        rows[label] = sample(pipeline, prompts, **settings, scheduler=scheduler)
    return rows


def load_all(pipeline, paths: list[str], strengths: list[float]) -> list[dict]:
    """The facts of the adapters, which are now in the pipeline, each under a name of its own."""
    from gralora_diffusion import load_adapter

    facts = []
    for number, (path, strength) in enumerate(zip(paths, strengths, strict=True)):
        facts.append(load_adapter(pipeline, path, strength, name=f"adapter {number + 1}"))
    return facts


def common_objective(facts: list[dict]) -> dict:
    """What the adapters were trained to predict.  Raises ConfigError where they differ."""
    from gralora_diffusion.sdxl.objective import objective_text

    known = [own["objective"] for own in facts if own.get("objective")]
    for objective in known:
        if objective != known[0]:
            problem = f"one is for {objective_text(known[0])}, another for {objective_text(objective)}"
            raise ConfigError(f"the adapters cannot be used together: {problem}")
    return known[0] if known else {}


def save(rows: dict[str, list], columns: list[str], output: Path) -> None:
    """Write the sheet, with a caption for each column, and the single images; print where they are."""
    from gralora_diffusion.sdxl.sampling import sheet

    folder = output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    counts = []
    for label, images in rows.items():
        counts.append(f"{counted(len(images), 'image')} of {label}")
        for i, image in enumerate(images):
            image.save(folder / f"{label.replace(' ', '-')}-{i:03d}.png")
    sheet(rows, columns).save(output)
    print(f"{output}: {' and '.join(counts)}; single images in {folder}/")
