"""Train a GraLoRA, GoRA or LoRA adapter for SDXL on a few images.

Without options it trains on the embedded base model and the bundled images of a robot, in a few minutes.
--dry_run prints the plan: steps, memory, time, disk; --verbose adds the resolved config and every layer.
"""

import os
import sys

from gralora_diffusion.checks import check_paths
from gralora_diffusion.cli.processes import launch
from gralora_diffusion.command_line import parser_of, to_config
from gralora_diffusion.console import fail
from gralora_diffusion.options import ConfigError, TrainingError

LOADING = "loading torch and diffusers ..."
EXAMPLE = """example:
  gralora train --preset subject-12gb \\
      --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 \\
      --instance_data_dir photos/my_dog --instance_prompt "a photo of sks dog" --output_dir runs/my_dog
"""


def main(argv: list[str]) -> None:
    parser = parser_of(__doc__, EXAMPLE)
    given = vars(parser.parse_args(argv))
    processes = given["num_processes"]
    if processes < 1:
        parser.error(f"--num_processes is {processes}; it must be at least 1")
    config = to_config(parser, given)
    if given["verbose"] and not config.dry_run:
        parser.error("--verbose lists the layers of a --dry_run: add --dry_run, or drop --verbose")
    try:
        check_paths(config)
    except ConfigError as error:
        fail(str(error))
    if processes > 1 and not config.dry_run:
        launch(without("--num_processes", argv), processes)
        return
    say_what_takes_time(config.dry_run)
    # torch is imported only after --help, wrong options and wrong paths are dealt with
    from gralora_diffusion.training.dry_run import plan
    from gralora_diffusion.training.signals import Stopped
    from gralora_diffusion.training.train import train

    try:
        if config.dry_run:
            print(plan(config, timed=True).text(given["verbose"]))
            return
        train(config)
    except ConfigError as error:
        fail(str(error))
    except TrainingError as error:
        fail(str(error), code=1)
    except Stopped as stop:
        print(stop, flush=True)


def say_what_takes_time(dry_run: bool) -> None:
    """One line before the imports; but for a plan in a file, and for processes beside the first."""
    if sys.stderr.isatty():
        print(LOADING, file=sys.stderr, flush=True)
    elif not dry_run and os.environ.get("RANK", "0") == "0":
        print(LOADING, flush=True)


def without(flag: str, argv: list[str]) -> list[str]:
    """The command line without this flag and its value."""
    kept, skip = [], False
    for word in argv:
        if not skip and word != flag and not word.startswith(f"{flag}="):
            kept.append(word)
        skip = word == flag
    return kept
