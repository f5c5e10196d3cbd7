"""Options: the base model, the images, and the class images."""

from dataclasses import dataclass

from gralora_diffusion.config.choices import BAD, CAPTION_LINES, INTERPOLATIONS, MODEL
from gralora_diffusion.config.groups import MASKED, SHUFFLED, base, data, dataset, images, prior, start


@dataclass(frozen=True)
class DataOptions:
    """The base model, the images, and the class images."""

    pretrained_model_name_or_path: str | None = base(
        None, "folder, .safetensors file or hub id; by default the embedded base", label="Base", kind=MODEL
    )
    pretrained_vae_model_name_or_path: str | None = base(
        None, "another VAE, for instance madebyollin/sdxl-vae-fp16-fix", kind=MODEL
    )
    revision: str | None = base(None, "revision of the base on the hub")
    variant: str | None = base(None, "variant of the base's files, for instance fp16")
    cache_dir: str | None = base(None, "folder for downloads from the hub", kind="folder", resumable=True)
    start_from: str | None = start(
        None,
        "run or adapter file of any tool to start from; converted if its kind or sizes differ",
        kind="adapter",
    )
    instance_data_dir: str | None = images(
        None,
        "folder of training images, with captions in NAME.txt, NAME.caption, NAME.json or metadata.jsonl; or "
        "with subfolders such as '10_sks dog', with repeats and caption; by default the bundled robot",
        kind="images",
        label="Images",
    )
    concepts: str | None = images(
        None, "JSON or TOML file of several folders, each with its repeats, prompt and class", kind="file"
    )
    instance_prompt: str | None = images(
        None,
        "caption of images without one, such as 'a photo of sks dog'",
        kind="text",
        label="Trigger prompt",
    )
    resolution: int | None = data(None, "side in pixels; by default the base's", at_least=64, at_most=8192)
    use_aspect_ratio_buckets: bool = data(False, "crop to the nearest of SDXL's shapes instead of a square")
    center_crop: bool = data(False, "crop in the middle; by default at up to four places per image")
    random_flip: bool = data(False, "mirror images at random")
    repeats: int = data(1, "times each image is used in one epoch", at_least=1)
    caption_dropout: float = data(
        0.0, "share of the training images used without a caption (0.1 is usual)", at_least=0, at_most=1
    )
    shuffle_captions: bool = data(False, "train on up to eight orders of each caption's comma-separated tags")
    keep_tokens: int = data(0, "tags at the front that are not shuffled", at_least=0, needs=SHUFFLED)
    max_token_length: int = data(
        225, "tokens of a caption that are read, in chunks of 75: 75, 150 or 225", at_least=75, at_most=225
    )
    weighted_captions: bool = data(False, "read (words:1.2), (words) and [words] in captions as weights")
    clip_skip: int = data(
        2,
        "layer of the text encoders, counted from the last: 2 is the second-to-last",
        at_least=1,
        at_most=12,
    )
    caption_lines: str = images(
        "first",
        "lines to use of a caption file: the first, all joined, or a random one",
        choices=CAPTION_LINES,
    )
    caption_wildcards: bool = data(False, "draw one of the words of {red|blue} in a caption at each use")
    mask_dir: str | None = images(
        None,
        "folder of masks with the images' names; by default NAME-masklabel.png beside NAME.png, or its alpha",
        kind="images",
        needs=MASKED,
    )
    image_interpolation_mode: str = data("lanczos", "how images are resized", choices=INTERPOLATIONS)
    on_bad_image: str = data("stop", "stop at unusable files, or skip them", choices=BAD, resumable=True)
    dataset_name: str | None = data(
        None, "dataset on the hub or on disk instead of --instance_data_dir", kind="dataset"
    )
    dataset_config_name: str | None = dataset(None, "the dataset's configuration, if it has several")
    image_column: str = data("image", "the dataset's column of images")
    caption_column: str | None = data(None, "the column of captions in the dataset or in metadata.jsonl")
    streaming: bool = dataset(
        False, "read the dataset row by row into the cache instead of downloading it first", resumable=True
    )
    max_train_samples: int | None = dataset(None, "use only the first rows of the dataset", at_least=1)
    with_prior_preservation: bool = prior(False, "train on class images too, to preserve the class")
    prior_by_prediction: bool = prior(
        False, "preserve the class without images: predict as the base does with --class_prompt"
    )
    class_data_dir: str | None = prior(
        None, "folder of class images; the base generates missing ones", kind="images", resumable=True
    )
    class_prompt: str | None = prior(None, "prompt and caption of class images", kind="text")
    prior_loss_weight: float = prior(1.0, "weight of the class images' loss", at_least=0)
    num_class_images: int = prior(100, "class images to train on", at_least=1)
    sample_batch_size: int = prior(4, "class images generated at once", at_least=1, resumable=True)
    prior_generation_precision: str | None = prior(
        None, "precision for class images; by default the run's", choices=("no", "fp32", "fp16", "bf16")
    )
