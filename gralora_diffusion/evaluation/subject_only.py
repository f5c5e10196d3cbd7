"""Images without their background: what is left is the subject, on gray."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gralora_diffusion.console import note
from gralora_diffusion.data.images import open_image
from gralora_diffusion.data.listing import printable, reason_of
from gralora_diffusion.data.mask_images import Mask, mask_in_alpha, mask_in_file
from gralora_diffusion.data.masked_images import files_of_masks
from gralora_diffusion.data.saliency import Saliency
from gralora_diffusion.options import ConfigError

GRAY = (128, 128, 128)


@dataclass(frozen=True)
class SubjectOnly:
    """Cuts out subjects: by an image's own mask, where it has one, else by what a model finds salient."""

    masks: dict[Path, Mask]
    saliency: Saliency

    def cut_out(self, path: Path, image: Image.Image) -> Image.Image:
        """The RGB image of this file with all but its subject gray; where nothing is salient, as it is."""
        if mask := self.masks.get(path):
            selected = mask.open().resize(image.size, Image.Resampling.BOX)
        else:
            selected = self.saliency.mask(image)
        if selected.getextrema()[1] == 0:
            note(f"nothing stands out in {path}: it is scored with its background")
            return image
        return Image.composite(image, Image.new("RGB", image.size, GRAY), selected)


def own_masks(
    paths: list[Path], folder: Path | None = None, mask_folder: Path | None = None
) -> dict[Path, Mask]:
    """{image: its mask} of those that have one, as training finds them.

    folder: that of the images, by default the first one's. Raises ConfigError for a mask that cannot be used.
    """
    if not paths:
        return {}
    files = files_of_masks(paths, folder or paths[0].parent, mask_folder)
    found = {}
    for path in paths:
        try:
            if path in files:
                image = open_image(path)
                mask = mask_in_file(files[path], path, (image.height, image.width), None)
            else:
                mask = mask_in_alpha(path, None)
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            name = printable(files.get(path, path))
            raise ConfigError(f"{name} cannot be used: {reason_of(error)}", option="masked") from None
        if mask:
            found[path] = mask
    return found
