"""Convert an adapter: any of our files, run folders, PEFT folders, kohya's or diffusers' LoRA files, into what another tool loads.

gralora convert runs/my_dog --to comfyui my_dog.safetensors             ComfyUI, A1111, Forge, kohya, and diffusers
gralora convert runs/my_dog --to comfyui small.safetensors --rank 16    the best plain LoRA of rank 16, with its error
gralora convert runs/my_dog --to peft my_dog_peft                       a folder for PeftModel.from_pretrained
gralora convert lora.safetensors --to native adapter.safetensors        to train on, or for the custom node in ComfyUI
gralora convert runs/my_dog --to merged my_dog_sdxl.safetensors         the base with the adapter baked in
"""

from pathlib import Path

from gralora_diffusion.command_line import Parser
from gralora_diffusion.console import fail
from gralora_diffusion.options import ConfigError

FORMATS = ("comfyui", "diffusers", "peft", "native", "merged")


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "adapter",
        metavar="IN",
        help="adapter file, run folder, or PEFT folder; its kind is found by its keys",
    )
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="the file to write; a new folder for peft; either for merged"
    )
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--rank", type=int, help="write the best plain LoRA of this rank (an SVD)")
    parser.add_argument(
        "--energy",
        type=float,
        help="write a plain LoRA that keeps this part of each layer, for instance 0.99; 1 is exact",
    )
    parser.add_argument(
        "--dtype", choices=("fp16", "bf16", "fp32"), help="by default fp16, and fp32 for native and peft"
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        metavar="BASE",
        help="the base: checks that the adapter fits it; for merged, the embedded one",
    )
    args = parser.parse_args(argv)
    if args.rank is not None and args.energy is not None:
        parser.error("--rank and --energy are two ways to say how small: give one of them")
    if (args.output.suffix == ".safetensors") != (args.to != "peft") and args.to != "merged":
        parser.error(
            f"OUT is {args.output}; "
            + ("peft writes a folder" if args.to == "peft" else "it must end in .safetensors")
        )

    import torch

    from gralora_diffusion.formats import load as formats
    from gralora_diffusion.formats import merge_base as merging
    from gralora_diffusion.formats.adapter_state import to_lora

    dtype = dict(fp16=torch.float16, bf16=torch.bfloat16, fp32=torch.float32)[
        args.dtype or ("fp32" if args.to in ("native", "peft") else "fp16")
    ]
    base, write = args.pretrained_model_name_or_path, getattr(formats, f"write_{args.to}", None)
    try:
        adapter = formats.read_adapter(args.adapter)
        if base is not None:
            formats.check_fits(adapter, base, args.adapter)
        if args.rank is not None or args.energy is not None:
            adapter, errors, whole = to_lora(adapter, args.rank, 1.0 if args.energy is None else args.energy)
            for layer, (rank, error) in errors.items():
                print(f"{layer:<90}  rank {rank:>4}  relative error {error:.2e}")
            print(f"relative error of the whole: {whole:.3e}")
        if args.to == "merged":
            merging.write_merged(args.output, adapter, base, dtype)
        else:
            write(args.output, adapter, dtype)
    except (ConfigError, ValueError, OSError) as error:
        fail(str(error))
    print(
        f"{args.output}: {sum(map(len, adapter.layers.values()))} layers of {', '.join(adapter.layers)} for {args.to}"
    )
