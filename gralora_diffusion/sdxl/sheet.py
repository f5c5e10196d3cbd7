"""One image of many: labeled rows, and a caption above each column."""

from PIL import Image, ImageDraw, ImageFont


def sheet(
    rows: dict[str, list[Image.Image]],
    columns: list[str],
    size: int = 192,
    above: dict[str, list[Image.Image]] | None = None,
) -> Image.Image:
    """One image of all: a labeled row for each entry, and a caption above each column.

    above: rows that are placed over the captions.
    """
    left, heading, font, pitch = 110, 34, ImageFont.load_default(13), size + 6
    rows, first = (above or {}) | rows, pitch * len(above or {})
    page = Image.new(
        "RGB", (left + max(map(len, rows.values())) * pitch, heading + len(rows) * pitch), "white"
    )
    draw = ImageDraw.Draw(page)
    for c, text in enumerate(columns):
        draw.multiline_text(
            (left + c * pitch, first + 2), wrap(text, size, font), fill="black", font=font, spacing=1
        )
    for r, (label, images) in enumerate(rows.items()):
        top = r * pitch + (heading if r * pitch >= first else 0)
        draw.multiline_text((4, top + size // 2 - 8), wrap(label, left - 8, font), fill="black", font=font)
        for c, image in enumerate(images):
            scaled = image.convert("RGB").resize(
                (size, size), Image.Resampling.LANCZOS if min(image.size) > size else Image.Resampling.NEAREST
            )
            page.paste(scaled, (left + c * pitch, top))
    return page


def wrap(text: str, width: int, font) -> str:
    """`text` broken at spaces into at most two lines of `width` pixels; longer text ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > 2:
        lines = [lines[0], lines[1] + " ..."]
    return "\n".join(lines)
