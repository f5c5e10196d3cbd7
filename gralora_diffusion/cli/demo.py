"""Train on the embedded base model and the bundled images of a robot, generate images with and without the adapter, and score them.

    gralora demo

The run is in the folder demo; the same command resumes it.
"""

from pathlib import Path

from gralora_diffusion.cli import evaluate, sample, train
from gralora_diffusion.command_line import Parser

PROMPTS = (
    "sks robot at sunset",
    "a drawing of sks robot",
    "sks robot next to a red apple on a white background",
    "sks robot on a purple background",
)


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo"), help="the run folder (default: demo)"
    )
    run = parser.parse_args(argv).output_dir
    train.main(["--gralora_rank", "64", "--output_dir", str(run)])
    sheet = [
        "--compare",
        "--num_images",
        "1",
        "--prompt",
        "|".join(PROMPTS),
        "--output",
        str(run / "unseen.png"),
    ]
    sample.main(["--adapter", str(run), *sheet])
    evaluate.main(["--run", str(run)])
