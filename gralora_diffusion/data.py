"""Pictures and captions from a folder, and their latents: what one training step takes."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps

from .config import ConfigError
from .loss import generator
from .sdxl import encode_images, time_ids

EXAMPLE = Path(__file__).parent / "example"  # six pictures of a robot, drawn for this project
EXAMPLE_PROMPT = "a photo of sks robot"
EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".mpo", ".avif"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")  # a phone's MPO is a JPEG; never EPS, which would start Ghostscript
IGNORED = {"thumbs.db", "desktop.ini", "readme.md"}
MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb
MAX_ASPECT = 10
CROPS = 4  # random places that a picture without --center_crop is cut at


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str


@dataclass(frozen=True)
class Record:
    """One cut of one picture: what belongs together stays together."""

    path: Path
    caption: str
    moments: torch.Tensor  # [2, channels, h/8, w/8]: mean and std of the scaled latents
    time_ids: torch.Tensor  # [6]


def find_pictures(folder: str | Path, prompt: str | None) -> list[Picture]:
    """The folder's pictures in order of name; NAME.txt beside NAME.png is its caption, `prompt` stands in where there is none.

    Every file is opened and decoded here.  Raises ConfigError with one sentence that names all files that cannot be used.
    """
    folder = Path(folder)
    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder: --instance_data_dir must name a folder with pictures")
        files = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in IGNORED)
    except OSError as error:
        raise ConfigError(f"the folder of --instance_data_dir cannot be read: {error}") from None
    captions = {p.stem: p for p in files if p.suffix.lower() == ".txt"}
    stems = {p.stem for p in files if p.suffix.lower() in EXTENSIONS}
    found, bad = [], []
    for path in files:
        try:
            if path.suffix.lower() in EXTENSIONS:
                open_picture(path)
                found.append(Picture(path, caption_of(captions.get(path.stem), prompt)))
            elif path.suffix.lower() == ".txt" and path.stem in stems:
                continue
            elif path.suffix.lower() == ".txt":
                bad.append(f"{path.name} (a text file that is no picture's caption: there is no picture named {path.stem})")
            elif path.is_file():
                bad.append(f"{path.name} (not a picture)")
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            bad.append(f"{path.name} ({error})")
    if bad:
        raise ConfigError(f"{folder} holds {len(bad)} file(s) that cannot be used, take them out or mend them: {'; '.join(bad)}")
    if not found:
        raise ConfigError(f"{folder} holds no pictures ({', '.join(sorted(EXTENSIONS))})")
    return found


def caption_of(beside: Path | None, prompt: str | None) -> str:
    if beside is None and prompt is None:
        raise ValueError("no caption in a .txt file beside it, and no --instance_prompt to stand in")
    if beside is None:
        return prompt
    try:
        text = " ".join(beside.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise ValueError(f"its caption {beside.name} is not UTF-8 text") from None
    if not text:
        raise ValueError(f"its caption {beside.name} is empty")
    return text


def open_picture(path: Path) -> Image.Image:
    """RGB, upright by its EXIF, transparency on white, 16 bits scaled to 8; raises ValueError in plain words."""
    if os.path.getsize(path) == 0:
        raise ValueError("empty file")
    Image.init()  # all plugins; AVIF is not in every Pillow
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):  # refused below
            image = Image.open(path, formats=[f for f in FORMATS if f in Image.OPEN])
    except Image.UnidentifiedImageError:
        raise ValueError("not a picture, whatever its name says") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels is more than the limit of {MAX_PIXELS:,}")
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels is too thin: crop it to a ratio below {MAX_ASPECT}")
        if image.mode == "F":
            raise ValueError("a picture of floating-point numbers: save it as 8 or 16 bits")
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = image.point(lambda v: v / 257).convert("L")
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")


def to_pixels(image: Image.Image) -> torch.Tensor:
    """[3, h, w] in [-1, 1]"""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return data.permute(2, 0, 1).float() / 127.5 - 1


def cuts(image: Image.Image, resolution: int, center_crop: bool, random_flip: bool, random: torch.Generator):
    """The shorter side scaled to `resolution`, then square cuts: yields (pixels [3, r, r], time ids [6])."""
    original = (image.height, image.width)
    scale = resolution / min(image.size)
    image = image.resize([max(resolution, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    spare = torch.tensor([image.height - resolution, image.width - resolution])
    if center_crop or not spare.any():
        places = [(spare // 2).tolist()]
    else:
        places = (torch.rand(CROPS, 2, generator=random) * (spare + 1)).long().tolist()
    for top, left in places:
        cut = image.crop((left, top, left + resolution, top + resolution))
        yield to_pixels(cut), time_ids(original, (top, left), (resolution, resolution))
        if random_flip:  # the place is counted in the mirrored picture
            yield to_pixels(ImageOps.mirror(cut)), time_ids(original, (top, spare[1].item() - left), (resolution, resolution))


@torch.no_grad()
def encode_pictures(pictures: list[Picture], vae, config, resolution: int) -> list[list[Record]]:
    """One list per picture, with a record for each of its cuts; on the CPU, fp32."""
    out = []
    for i, picture in enumerate(pictures):
        made = cuts(open_picture(picture.path), resolution, config.center_crop, config.random_flip, generator(config.seed, 1, i))
        records = []
        for pixels, ids in made:
            moments = encode_images(vae, pixels[None])[0].cpu()
            if not moments.isfinite().all():
                raise ConfigError(
                    f"the VAE gives numbers that are not finite for {picture.path.name}: use another, e.g. madebyollin/sdxl-vae-fp16-fix"
                )
            records.append(Record(picture.path, picture.caption, moments, ids))
        out.append(records)
    return out


def choose(records: list[list[Record]], positions, seed: int) -> list[Record]:
    """The records at these positions of an endless shuffled series: a function of its arguments alone, so that any run can resume at any step."""
    chosen = []
    for position in positions:
        epoch, place = divmod(position, len(records))
        cuts_of = records[torch.randperm(len(records), generator=generator(seed, 2, epoch))[place]]
        chosen.append(cuts_of[torch.randint(len(cuts_of), (1,), generator=generator(seed, 3, position)).item()])
    return chosen
