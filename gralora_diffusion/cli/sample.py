"""Draw images with a trained adapter.

gralora sample --adapter runs/robot-gralora-r64 --prompt "a photo of sks robot on the beach" --output robot.png
"""

from pathlib import Path

from gralora_diffusion.command_line import Parser
from gralora_diffusion.config import EMBEDDED_DEFAULTS, SDXL_DEFAULTS
from gralora_diffusion.console import fail
from gralora_diffusion.options import ConfigError


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--adapter", help="run folder or adapter file; without it the base alone draws")
    parser.add_argument("--prompt", required=True, help="what to draw; several prompts are separated by |")
    parser.add_argument("--pretrained_model_name_or_path", help="the base; by default the embedded tiny one")
    parser.add_argument("--seed", type=int, default=0, help="image n starts from the noise of seed + n")
    parser.add_argument("--strength", type=float, default=1.0, help="0 is the base, 1 the adapter as trained")
    parser.add_argument("--num_images", type=int, default=4, help="images per prompt")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, help="3 on the embedded base, 5 on others")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=4,
        help="images drawn at once; changes the speed, not the images",
    )
    parser.add_argument("--compare", action="store_true", help="draw the base's images too, in a row above")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("sample.png"),
        help="one sheet with all images; each one alone goes to the folder OUTPUT without .png",
    )
    args = parser.parse_args(argv)
    if args.num_images < 1 or args.num_inference_steps < 1 or args.batch_size < 1:
        parser.error("--num_images, --num_inference_steps and --batch_size must be at least 1")
    if args.output.suffix != ".png":
        parser.error(f"--output is {args.output}; it must end in .png")
    if args.compare and not args.adapter:
        parser.error("--compare shows the base beside an adapter: give one with --adapter")

    import torch

    from gralora_diffusion import load_adapter, load_sdxl
    from gralora_diffusion.adapters.inject import merge, remove
    from gralora_diffusion.sdxl.sampling import as_trained, sample, sheet

    prompts = [p.strip() for p in args.prompt.split("|")]
    drawing = dict(seed=args.seed, num_images=args.num_images, num_inference_steps=args.num_inference_steps)
    base = SDXL_DEFAULTS if args.pretrained_model_name_or_path else EMBEDDED_DEFAULTS
    guidance = base["guidance_scale"] if args.guidance_scale is None else args.guidance_scale
    drawing |= dict(guidance_scale=guidance, batch_size=args.batch_size)
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pipeline = load_sdxl(
            args.pretrained_model_name_or_path, dtype=torch.float16 if device == "cuda" else torch.float32
        ).to(device)
        rows = {"base": sample(pipeline, prompts, **drawing)} if args.compare or not args.adapter else {}
        if args.adapter:
            facts = load_adapter(pipeline, args.adapter, args.strength)
            if not facts["config"]["tlora"]:  # its ranks act by the timestep
                merge(pipeline.unet)
                remove(pipeline.unet)  # the merged weights stay, at no cost
            scheduler = as_trained(pipeline.scheduler, **facts.get("objective", {}))
            rows[f"strength {args.strength:g}"] = sample(pipeline, prompts, **drawing, scheduler=scheduler)
    except ConfigError as error:
        fail(str(error))
    folder = args.output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for label, images in rows.items():
        for i, image in enumerate(images):
            image.save(folder / f"{label.replace(' ', '-')}-{i:03d}.png")
    sheet(rows, [p for p in prompts for _ in range(args.num_images)]).save(args.output)
    print(
        f"{args.output}: {' and '.join(f'{len(images)} image(s) of {label}' for label, images in rows.items())}; each one alone in {folder}/"
    )
