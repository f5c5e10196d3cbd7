"""Convert adapters to a format that another tool loads, change their strength, or combine several.

IN: a run folder or one of its files, a PEFT folder, or an adapter file of another tool, of any kind that is
in use for SDXL: LoRA, LoCon, LoHa, LoKr, DoRA, GLoRA, OFT, BOFT, IA3, full differences, norms and biases.

gralora convert runs/my_dog my_dog.safetensors --to comfyui             ComfyUI, A1111, Forge, kohya
gralora convert runs/my_dog small.safetensors --to comfyui --rank 16    the best plain LoRA of rank 16
gralora convert runs/my_dog my_dog_peft --to peft                       a folder for PeftModel.from_pretrained
gralora convert lora.safetensors adapter.safetensors --to native        for the custom node in ComfyUI
gralora convert runs/my_dog my_dog_sdxl.safetensors --to merged         the base and the adapter in one
gralora convert dog.safetensors style.safetensors both.safetensors --to comfyui --strength 1,0.6
"""

import argparse
import re
from pathlib import Path

from gralora_diffusion.command_line import Parser, path_text, strengths
from gralora_diffusion.console import counted, fail, note
from gralora_diffusion.files import resolved
from gralora_diffusion.formats.writers import DTYPES, WRITERS
from gralora_diffusion.options import ConfigError

TOOLS = ("kohya", "a1111", "forge", "webui", "sd-scripts")  # that load the files for ComfyUI
NAMED = 5  # parameters without a LoRA that are named


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    from gralora_diffusion.formats.combine import Weighted, summed
    from gralora_diffusion.formats.load import check_fits_base, fits_sdxl
    from gralora_diffusion.formats.preview import copy_preview, preview_of
    from gralora_diffusion.formats.read import read_adapter
    from gralora_diffusion.formats.run_files import name_of
    from gralora_diffusion.sdxl.objective import objective_text

    base = args.pretrained_model_name_or_path
    try:
        inputs = []
        for path, strength in zip(args.adapters, args.strength, strict=True):
            adapter = read_adapter(path)
            if base is not None or args.to == "merged":
                check_fits_base(adapter, base, path)
            inputs.append(Weighted(adapter, strength, args.layer_strength))
        adapter = summed(inputs)
        if len(inputs) > 1:
            adapter.facts["merged_from"] = [name_of(path) for path in args.adapters]
        if args.to != "merged" or args.rank is not None or args.energy is not None:
            adapter = plain(adapter, args)
        objective = WRITERS[args.to].write(args.output, adapter, args.dtype, base)
        preview = args.output.with_suffix(".png")
        if args.to == "comfyui" and len(inputs) == 1 and not preview.exists():
            image = preview_of(Path(args.adapters[0]))
            if image is not None:
                copy_preview(image, preview)
                print(f"preview: {preview}")
    except (ConfigError, ValueError, OSError) as error:
        fail(str(error))
    layers = sum(map(len, adapter.layers.values())) + sum(map(len, adapter.deltas.values()))
    print(f"{args.output}: {counted(layers, 'layer')} of {', '.join(adapter.components)} for {args.to}")
    print(f"prediction: {objective_text(objective)}")
    if base is None and args.to != "merged" and not fits_sdxl(adapter):
        note("this adapter does not fit SDXL: its layers are those of another base, such as the embedded one")


def plain(adapter, args: argparse.Namespace):
    """The adapter in a kind that files hold: as it is, exactly as a LoRA, or the nearest of a given size.

    Prints the error of each layer, and names what is left out.
    """
    from gralora_diffusion.formats.base_weights import BaseWeights
    from gralora_diffusion.formats.nearest import as_lora, nearest

    if args.rank is None and args.energy is None:
        if not adapter.deltas:
            return adapter
        converted = as_lora(adapter)
        note_left_out(converted)
        return converted.adapter
    needs_base = any(delta.needs_base for _, _, delta in adapter.changes())
    given = args.pretrained_model_name_or_path is not None
    base = BaseWeights(args.pretrained_model_name_or_path) if needs_base and given else None
    energy = 1.0 if args.energy is None else args.energy
    converted = nearest(adapter, args.rank, energy, args.k, base)
    print_converted(converted)
    return converted.adapter


def print_converted(converted) -> None:
    """Print the rank and the error of each layer, and the overall error."""
    for layer, row in converted.rows.items():
        print(f"{layer:<90}  rank {row.rank:>4}  relative error {row.error:.2e}")
    print(f"overall relative error: {converted.error:.3e}")
    note_left_out(converted)


def note_left_out(converted) -> None:
    names = converted.left_out
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        some = ", ".join(names[:NAMED])
        note(f"left out, since a LoRA cannot hold norms, biases and embeddings: {some}{more}")


def format_to_write(name: str) -> str:
    """The format; a tool's name gets a hint.  Raises ArgumentTypeError."""
    if name.lower() in TOOLS:
        raise argparse.ArgumentTypeError(f"is {name!r}; --to comfyui writes the file for that tool too")
    return name


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(usage="%(prog)s [options] --to FORMAT IN [IN ...] OUT", description=__doc__)
    about = "adapter file, run folder, or PEFT folder; the format is detected from its keys"
    parser.add_argument("adapters", metavar="IN", nargs="+", type=path_text, help=about)
    about = "the file to write; for peft a new folder; for merged either"
    parser.add_argument("output", metavar="OUT", type=Path, help=about)
    about = "format to write; comfyui is for A1111, Forge and kohya's scripts too"
    parser.add_argument("--to", required=True, type=format_to_write, choices=tuple(WRITERS), help=about)
    about = "strength of each IN, such as 1,0.6; one number applies to all (default: 1)"
    parser.add_argument("--strength", metavar="FLOAT[,FLOAT...]", default="1", help=about)
    about = "factor for the layers that match a regular expression, such as 'attn2=0.5'; can be repeated"
    parser.add_argument("--layer_strength", metavar="PATTERN=FLOAT", action="append", default=[], help=about)
    parser.add_argument("--rank", type=int, help="write the best plain LoRA of this rank (an SVD)")
    about = "write a plain LoRA that keeps this share of each layer's energy, such as 0.99; 1 is exact"
    parser.add_argument("--energy", type=float, help=about)
    add_output_options(parser)
    about = "the base: to check that the adapter fits, and for kinds that depend on its weights, such as DoRA"
    about += "; merged uses the embedded base by default"
    parser.add_argument("--pretrained_model_name_or_path", metavar="BASE", type=path_text, help=about)
    args = parser.parse_args(argv)
    if args.rank is not None and args.energy is not None:
        parser.error("--rank and --energy both set the size: give one of them")
    args.strength = strengths(parser, args.strength, len(args.adapters))
    args.layer_strength = layer_strengths(parser, args.layer_strength)
    check_output(parser, args, args.adapters)
    if args.method == "gralora" and args.rank is None:
        parser.error("--method gralora needs --rank: the rank of the GraLoRA")
    return args


def add_output_options(parser: Parser) -> None:
    """The options that gralora convert and gralora extract share."""
    about = "kind to write with --rank: a plain lora (default), or a gralora with --k blocks per side"
    parser.add_argument("--method", choices=("lora", "gralora"), help=about)
    parser.add_argument("--k", type=int, help="blocks per side of a GraLoRA (default: 4)")
    about = "precision (default: fp16; native and peft fp32)"
    parser.add_argument("--dtype", choices=tuple(DTYPES), help=about)


def check_output(parser: Parser, args: argparse.Namespace, inputs: list[str]) -> None:
    """Check OUT's ending, that it is none of the inputs, and the kind; sets k for a GraLoRA."""
    suffixes = WRITERS[args.to].suffixes
    ending = args.output.suffix if args.output.suffix == ".safetensors" else ""
    if ending not in suffixes:
        must = "it must end in .safetensors"
        need = must if suffixes == (".safetensors",) else f"{args.to} writes a folder"
        parser.error(f"OUT is {args.output}; {need}")
    for path in map(Path, inputs):
        if args.output.exists() and path.exists():
            inside = path.is_dir() and resolved(args.output).is_relative_to(resolved(path))
            if inside or args.output.samefile(path):
                parser.error(f"OUT is {args.output}, which is an input or a file of one: choose another name")
    if args.k is not None and args.method is None:
        args.method = "gralora"
    if args.method == "lora" and args.k is not None:
        parser.error("--k needs --method gralora")
    if args.method == "gralora" and args.k is None:
        args.k = 4


def layer_strengths(parser: Parser, texts: list[str]) -> dict[str, float]:
    """{regular expression: factor}"""
    found = {}
    for text in texts:
        pattern, _, number = text.rpartition("=")
        try:
            re.compile(pattern)
            found[pattern] = float(number)
        except (ValueError, re.error):
            found[pattern] = float("nan")
        if not pattern or not abs(found[pattern]) <= 100:
            rule = "it must be PATTERN=NUMBER, such as attn2=0.5, with a number from -100 to 100"
            parser.error(f"--layer_strength is {text!r}; {rule}")
    return found
