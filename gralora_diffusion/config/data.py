"""Options: the base model, the images, and the class images."""

from dataclasses import dataclass

from gralora_diffusion.config.choices import BAD, CAPTION_LINES, INTERPOLATIONS, MODEL
from gralora_diffusion.config.groups import MASKED, SHUFFLED, base, data, dataset, images, prior, start


@dataclass(frozen=True)
class DataOptions:
    """The base model, the images, and the class images."""

    pretrained_model_name_or_path: str | None = base(
        None,
        "folder, .safetensors file or hub id; by default the embedded base",
        label="Base model",
        hint="The demo model, one in the folder models, or a Hugging Face ID typed here",
        kind=MODEL,
    )
    pretrained_vae_model_name_or_path: str | None = base(
        None, "another VAE, for instance madebyollin/sdxl-vae-fp16-fix", label="VAE", kind=MODEL
    )
    revision: str | None = base(None, "revision of the base on the hub", label="Base revision")
    variant: str | None = base(
        None, "variant of the base's files, for instance fp16", label="Base file variant"
    )
    cache_dir: str | None = base(
        None,
        "folder for downloads from the hub",
        label="Download folder",
        hint="Folder for downloads from the hub; leave blank for the usual one",
        kind="folder",
        resumable=True,
    )
    start_from: str | None = start(
        None,
        "run or adapter file from any tool to start from; converted if its kind or sizes differ",
        label="Start from adapter",
        hint="Continue from one of your runs or adapters instead of from scratch",
        kind="adapter",
    )
    instance_data_dir: str | None = images(
        None,
        "folder of training images, with captions in NAME.txt, NAME.caption, NAME.json, metadata.jsonl or "
        "metadata.csv; or with subfolders such as '10_sks dog', with repeats and caption; by default the "
        "bundled robot",
        kind="images",
        label="Dataset",
        hint="The images to learn from; add your own under Dataset",
    )
    concepts: str | None = images(
        None,
        "JSON or TOML file of several folders, each with its repeats, prompt and class",
        label="File of several datasets",
        kind="file",
    )
    instance_prompt: str | None = images(
        None,
        "caption of images without one, such as 'a photo of sks dog'",
        kind="text",
        label="Trigger caption",
        hint="Caption for images without one, e.g. a photo of sks dog",
    )
    resolution: int | None = data(
        None,
        "side in pixels; by default the base's",
        label="Resolution (pixels)",
        hint="Side of the training images. Leave blank for that of the base model",
        at_least=64,
        at_most=8192,
    )
    use_aspect_ratio_buckets: bool = data(
        False, "crop to the nearest of SDXL's shapes instead of a square", label="Aspect-ratio buckets"
    )
    center_crop: bool = data(
        False, "crop in the middle; by default at up to four places per image", label="Center crop"
    )
    random_flip: bool = data(False, "mirror images at random", label="Random mirroring")
    repeats: int = data(1, "times each image is used in one epoch", label="Repeats per epoch", at_least=1)
    caption_dropout: float = data(
        0.0,
        "share of training images used without a caption (0.1 is usual)",
        label="Caption dropout (share)",
        at_least=0,
        at_most=1,
    )
    shuffle_captions: bool = data(
        False,
        "train on up to eight orders of each caption's comma-separated tags",
        label="Shuffle caption tags",
    )
    keep_tokens: int = data(
        0,
        "number of tags at the front that are not shuffled",
        label="Tags kept in place",
        at_least=0,
        needs=SHUFFLED,
    )
    max_token_length: int = data(
        225,
        "tokens of a caption that are read, in chunks of 75: 75, 150 or 225",
        label="Caption length (tokens)",
        at_least=75,
        at_most=225,
    )
    weighted_captions: bool = data(
        False,
        "read (words:1.2), (words) and [words] in captions as weights",
        label="Weighted words in captions",
    )
    clip_skip: int = data(
        2,
        "layer of the text encoders, counted from the last: 2 is the second-to-last",
        label="CLIP skip (layers)",
        at_least=1,
        at_most=12,
    )
    caption_lines: str = images(
        "first",
        "which lines of a caption file to use: the first, all joined, or a random one",
        label="Caption file lines",
        choices=CAPTION_LINES,
    )
    caption_wildcards: bool = data(
        False, "draw one of the words of {red|blue} in a caption at each use", label="Caption wildcards"
    )
    mask_dir: str | None = images(
        None,
        "folder of masks with the images' names; by default NAME-masklabel.png beside NAME.png, or its alpha "
        "channel",
        label="Dataset of masks",
        hint="Masks with the images' names. Leave blank for those of the dataset",
        kind="images",
        needs=MASKED,
    )
    image_interpolation_mode: str = data(
        "lanczos", "how images are resized", label="Image resizing", choices=INTERPOLATIONS
    )
    on_bad_image: str = data(
        "stop", "stop at unusable files, or skip them", label="Unusable images", choices=BAD, resumable=True
    )
    dataset_name: str | None = data(
        None,
        "dataset on the hub or on disk instead of --instance_data_dir",
        label="Dataset from the hub",
        hint="Hugging Face ID of a dataset, instead of a dataset on this page",
        kind="dataset",
    )
    dataset_config_name: str | None = dataset(
        None, "the dataset's configuration, if it has several", label="Hub dataset configuration"
    )
    image_column: str = data("image", "column of images in the dataset", label="Image column")
    caption_column: str | None = data(
        None,
        "column of captions in the dataset, or in metadata.jsonl or metadata.csv",
        label="Caption column",
    )
    streaming: bool = dataset(
        False,
        "read the dataset row by row into the cache instead of downloading it first",
        label="Stream the hub dataset",
        resumable=True,
    )
    max_train_samples: int | None = dataset(
        None, "use only the first rows of the dataset", label="Rows to use", at_least=1
    )
    with_prior_preservation: bool = prior(
        False, "train on class images too, to preserve the class", label="Prior preservation"
    )
    prior_by_prediction: bool = prior(
        False,
        "preserve the class without images: predict as the base does with the class prompt",
        label="Prior by prediction",
    )
    class_data_dir: str | None = prior(
        None,
        "folder of class images; the base generates missing ones",
        label="Class images",
        hint="Dataset of class images; the base model generates missing ones",
        kind="images",
        resumable=True,
    )
    class_prompt: str | None = prior(
        None, "prompt and caption of class images", label="Class prompt", kind="text"
    )
    prior_loss_weight: float = prior(
        1.0, "weight of the class images' loss", label="Prior loss weight", at_least=0
    )
    num_class_images: int = prior(100, "class images to train on", label="Number of class images", at_least=1)
    sample_batch_size: int = prior(
        4, "class images generated at once", label="Class images at once", at_least=1, resumable=True
    )
    prior_generation_precision: str | None = prior(
        None,
        "precision for class images; by default the run's",
        label="Class image precision",
        blank="that of the run",
        choices=("no", "fp32", "fp16", "bf16"),
    )
