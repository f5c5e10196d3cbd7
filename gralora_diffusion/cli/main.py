"""gralora COMMAND ...: one file per command, imported only when it is called, so that --help is fast."""

import importlib
import os
import sys

from gralora_diffusion import __version__, console

COMMANDS = {
    "train": "train an adapter on your images",
    "sample": "generate images with a trained adapter",
    "mask": "make masks of the subject for --masked_loss",
    "caption": "write captions beside images, with a captioning model or a tagger",
    "ui": "train, sample, compare and export in a browser",
    "convert": "convert adapters for other tools, combine several, or merge them into a base model",
    "extract": "extract an adapter from the difference between a fine-tuned model and its base",
    "inspect": "show what an adapter file contains",
    "evaluate": "score generated images: subject, prompt, diversity, copies",
    "compare": "compare adapter methods over seeds, learning rates and subjects",
    "entanglement": "measure how gradients mix across the blocks of each layer",
    "env": "print versions, devices and memory, for a bug report",
    "demo": "train on the embedded base model and score the result, in one to two minutes",
}
STOPPED = {  # while libraries load; later a training run handles signals itself
    "train": "stopped before the first step; nothing is lost: run the same command to start again",
    "compare": "stopped; finished runs are kept: run the same command to resume",
}
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # a user's own choice
NO_MEMORY = (
    "out of memory: close other programs, or lower --batch_size, --train_batch_size or --resolution, "
    "if the command has them"
)
EXAMPLE = "gralora train --instance_data_dir photos/my_dog --instance_prompt 'a photo of sks dog'"


def main(argv: list[str] | None = None) -> None:
    """Run `gralora COMMAND ...`; argv is without the program's name.  Exits with 2 for a mistake."""
    argv = sys.argv[1:] if argv is None else argv
    console.print_any_character()
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        print(f"gralora {__version__}")
        return
    name, *options = argv
    if name not in COMMANDS:
        from gralora_diffusion.options import did_you_mean

        console.set_program("gralora")
        console.fail(
            f"unknown command {name!r}{did_you_mean(name, COMMANDS) or ';'} gralora --help lists all commands"
        )
    console.set_program(f"gralora {name}")
    console.quiet_libraries()
    console.no_telemetry()
    console.plain_warnings()
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # no holes between tensors
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warning of no memory comes with our sentence
    try:
        importlib.import_module(f"gralora_diffusion.cli.{name}").main(options)
    except KeyboardInterrupt:
        console.fail(STOPPED.get(name, "stopped; run the same command to start again"), code=130)
    except (RuntimeError, MemoryError) as error:
        from gralora_diffusion.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        console.fail(NO_MEMORY, code=1)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gralora COMMAND [options]",
            "",
            "Train low-rank adapters for SDXL text-to-image models: GraLoRA, Hybrid GraLoRA, GoRA and LoRA.",
            "",
            "commands:",
            *lines,
            "",
            "gralora COMMAND --help lists a command's options; --version prints the version.",
            "",
            f"example: {EXAMPLE}",
        ]
    )
