"""Draw the bundled example subject, a robot on which the embedded base was never trained.

    python scripts/tiny_base/draw_example.py gralora_diffusion/example

Writes six PNG files of 256 x 256 pixels with a caption each.  Needs pip install -e ".[build]".
"""

import sys
from pathlib import Path

import resvg_py

CREAM, VISOR, EYE, ORANGE, TEAL, DARK = "#fff3d6", "#2b2d42", "#5ff2ff", "#ff7a1a", "#12a594", "#0b6e63"
# Background, its name, left and right arm in degrees (0 hangs down), tilt, scale, look (-1 left, 1 right).
POSES = [
    ("#fafafa", "white", 20, -20, 0, 1.00, 0),
    ("#fad732", "yellow", 150, -20, -4, 0.96, 1),
    ("#96cdf5", "light blue", 60, -60, 0, 0.92, 0),
    ("#828284", "grey", 20, -150, 6, 0.94, -1),
    ("#faa0c3", "pink", 140, -140, 0, 0.90, 0),
    ("#32964a", "green", 10, -75, -6, 1.00, -1),
]
STAR = f'<path d="M128 160l8 16 18 2-13 12 3 18-16-8-16 8 3-18-13-12 18-2z" fill="{CREAM}"/>'


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for i, (background, name, *pose) in enumerate(POSES):
        png = resvg_py.svg_to_bytes(svg_string=robot(background, *pose))
        (folder / f"{i:02d}.png").write_bytes(bytes(png))
        (folder / f"{i:02d}.txt").write_text(f"a photo of sks robot on a {name} background\n")


def robot(background: str, left: int, right: int, tilt: int, scale: float, look: int) -> str:
    """The SVG of one pose."""
    eyes = [circle(x + 7 * look, 92, 15, EYE) for x in (102, 154)]
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="256" height="256" viewBox="0 0 256 256">',
        f'<rect width="256" height="256" fill="{background}"/>',
        f'<g transform="translate(128 132) rotate({tilt}) scale({scale}) translate(-128 -132)">',
        f'<rect x="123" y="18" width="10" height="34" fill="{DARK}"/>' + circle(128, 18, 13, ORANGE),
        arm(72, left) + arm(184, right),
        rect(90, 204, 28, 38, 10, DARK) + rect(138, 204, 28, 38, 10, DARK),
        rect(76, 132, 104, 84, 24, ORANGE),
        STAR,
        rect(58, 44, 140, 96, 34, CREAM) + rect(74, 64, 108, 56, 27, VISOR),
        "".join(eyes) + "</g></svg>",
    ]
    return "\n".join(lines)


def arm(x: int, angle: int) -> str:
    hand = circle(x, 204, 16, DARK)
    return f'<g transform="rotate({angle} {x} 150)">{rect(x - 11, 146, 22, 54, 11, TEAL)}{hand}</g>'


def rect(x: int, y: int, width: int, height: int, rx: int, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{rx}" fill="{fill}"/>'


def circle(x: int, y: int, r: int, fill: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="{r}" fill="{fill}"/>'


if __name__ == "__main__":
    main()
