"""Convert an adapter to a format that another tool loads.

IN: a run folder or one of its files, a PEFT folder, or a LoRA file of kohya's scripts or diffusers.

gralora convert runs/my_dog --to comfyui my_dog.safetensors             ComfyUI, A1111, Forge, kohya
gralora convert runs/my_dog --to comfyui small.safetensors --rank 16    the best plain LoRA of rank 16
gralora convert runs/my_dog --to peft my_dog_peft                       a folder for PeftModel.from_pretrained
gralora convert lora.safetensors --to native adapter.safetensors        for the custom node in ComfyUI
gralora convert runs/my_dog --to merged my_dog_sdxl.safetensors         the base and the adapter in one
"""

import argparse
from pathlib import Path

from gralora_diffusion.command_line import Parser
from gralora_diffusion.console import fail
from gralora_diffusion.formats.writers import DTYPES, WRITERS
from gralora_diffusion.options import ConfigError


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    from gralora_diffusion.formats.load import check_fits
    from gralora_diffusion.formats.read import read_adapter

    base = args.pretrained_model_name_or_path
    try:
        adapter = read_adapter(args.adapter)
        if base is not None:
            check_fits(adapter, base, args.adapter)
        if args.rank is not None or args.energy is not None:
            adapter = smaller(adapter, args.rank, 1.0 if args.energy is None else args.energy)
        WRITERS[args.to].write(args.output, adapter, args.dtype, base)
    except (ConfigError, ValueError, OSError) as error:
        fail(str(error))
    count = sum(map(len, adapter.layers.values()))
    print(f"{args.output}: {count} layers of {', '.join(adapter.layers)} for {args.to}")


def smaller(adapter, rank: int | None, energy: float):
    """The adapter as a plain LoRA, see to_lora(); prints the error of each layer."""
    from gralora_diffusion.formats.adapter_state import to_lora

    lora, errors, whole = to_lora(adapter, rank, energy)
    for layer, (layer_rank, error) in errors.items():
        print(f"{layer:<90}  rank {layer_rank:>4}  relative error {error:.2e}")
    print(f"relative error of the whole: {whole:.3e}")
    return lora


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    about = "adapter file, run folder, or PEFT folder; the format is detected from its keys"
    parser.add_argument("adapter", metavar="IN", help=about)
    about = "the file to write; for peft a new folder; for merged either"
    parser.add_argument("output", metavar="OUT", type=Path, help=about)
    parser.add_argument("--to", required=True, choices=tuple(WRITERS), help="format to write")
    parser.add_argument("--rank", type=int, help="write the best plain LoRA of this rank (an SVD)")
    about = "write a plain LoRA that keeps this share of each layer's energy, such as 0.99; 1 is exact"
    parser.add_argument("--energy", type=float, help=about)
    about = "precision (default: fp16; native and peft fp32)"
    parser.add_argument("--dtype", choices=tuple(DTYPES), help=about)
    about = "the base, to check that the adapter fits; merged uses the embedded base by default"
    parser.add_argument("--pretrained_model_name_or_path", metavar="BASE", help=about)
    args = parser.parse_args(argv)
    if args.rank is not None and args.energy is not None:
        parser.error("--rank and --energy both set the size: give one of them")
    suffixes = WRITERS[args.to].suffixes
    ending = args.output.suffix if args.output.suffix == ".safetensors" else ""
    if ending not in suffixes:
        need = (
            "it must end in .safetensors" if suffixes == (".safetensors",) else f"{args.to} writes a folder"
        )
        parser.error(f"OUT is {args.output}; {need}")
    return args
