"""Train on the embedded base model and the bundled images of a robot, then generate images and score them.

The images are generated with and without the adapter. The same command resumes a run that was stopped.
"""

from pathlib import Path

from gralora_diffusion.cli import evaluate, sample, train
from gralora_diffusion.command_line import Parser

EXAMPLE = """example:
  gralora demo
"""
STEPS, RATE = 300, 2e-3  # chosen by scripts/demo_sweep.py: docs/experiments/README.md, Demo
PROMPTS = (
    "sks robot at sunset",
    "a drawing of sks robot",
    "sks robot on the grass",
    "sks robot on a purple background",
)


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    group = parser.add_argument_group("Files")
    about = "the run folder; its before_after.png and unseen.png show the images (default: demo)"
    group.add_argument("--output_dir", metavar="FOLDER", type=Path, default=Path("demo"), help=about)
    run = str(parser.parse_args(argv).output_dir)
    options = ["--gralora_rank", "64", "--max_train_steps", str(STEPS), "--learning_rate", str(RATE)]
    train.main([*options, "--output_dir", run])
    output = str(Path(run) / "unseen.png")
    prompts = ["--prompt", "|".join(PROMPTS), "--num_images", "1"]
    sample.main(["--adapter", run, *prompts, "--compare", "--output", output])
    evaluate.main(["--run", run])
    print(
        f"\nLook at {run}/before_after.png: the adapter's images show the robot, but follow the prompts less."
    )
    print("Next: your own images, with `gralora ui` or `gralora train --help`.")
