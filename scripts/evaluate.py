"""How much do generated pictures resemble the subject's?  Mean cosine in the features of an ImageNet encoder.

python scripts/evaluate.py --run runs/robot-gralora-r64        samples before and after training against the training pictures
python scripts/evaluate.py --reference photos --generated out1 out2
"""

import json
from pathlib import Path

from gralora_diffusion.config import ConfigError, Parser, TrainConfig, fail, from_dict


def read_config(path: Path) -> TrainConfig:
    try:
        return from_dict(TrainConfig, json.loads(path.read_text()))
    except OSError:
        raise ConfigError(f"{path.parent} is not a run folder: it holds no config.json") from None
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run folder")
    parser.add_argument("--reference", type=Path, help="folder with the subject's pictures")
    parser.add_argument("--generated", type=Path, nargs="+", default=[], help="folders with generated pictures")
    args = parser.parse_args()
    if (args.run is None) == (args.reference is None) or (args.reference is not None and not args.generated):
        parser.error("give --run, or --reference with --generated")
    from PIL import ImageOps

    from gralora_diffusion.data import instance
    from gralora_diffusion.evaluation import imagenet_encoder, pictures_in, similarities

    try:
        if args.run:
            args.reference = instance(read_config(args.run / "config.json"))[0]
            args.generated = sorted((args.run / "samples").glob("step-*"))
        encode = imagenet_encoder()
        subject = pictures_in(args.reference)
        print(f"mean cosine to the {len(subject)} pictures in {args.reference}, EfficientNet-Lite2 (ImageNet) features")
        for folder in args.generated:
            images = pictures_in(folder)
            references = [ImageOps.fit(picture, images[0].size) for picture in subject]  # as many pixels on both sides
            scores = similarities(encode(images), encode(references))
            print(f"  {folder!s:<40} {scores.mean():.3f}  (sd {scores.std(correction=0):.3f}, n {len(scores)})")
    except ConfigError as error:
        fail(str(error))
    except ImportError as error:
        fail(f"the evaluators need the extra eval, {error.name} is missing: pip install 'gralora-diffusion[eval]'")


if __name__ == "__main__":
    main()
