"""Draw the bundled example subject, a robot that the embedded base has never seen: six PNG files of 256 x 256
with a caption each.

    python scripts/draw_example.py gralora_diffusion/example        (needs the extra `build`)
"""

import sys
from pathlib import Path

import resvg_py

CREAM, VISOR, EYE, ORANGE, TEAL, DARK = "#fff3d6", "#2b2d42", "#5ff2ff", "#ff7a1a", "#12a594", "#0b6e63"
POSES = [  # background and its name, left arm, right arm (degrees, 0 hangs down), tilt, scale, look (-1 left to 1 right)
    ("#fafafa", "white", 20, -20, 0, 1.00, 0),
    ("#fad732", "yellow", 150, -20, -4, 0.96, 1),
    ("#96cdf5", "light blue", 60, -60, 0, 0.92, 0),
    ("#828284", "grey", 20, -150, 6, 0.94, -1),
    ("#faa0c3", "pink", 140, -140, 0, 0.90, 0),
    ("#32964a", "green", 10, -75, -6, 1.00, -1),
]


def robot(background, left, right, tilt, scale, look) -> str:
    def arm(x, angle):
        return (
            f'<g transform="rotate({angle} {x} 150)"><rect x="{x - 11}" y="146" width="22" height="54" rx="11" fill="{TEAL}"/>'
            f'<circle cx="{x}" cy="204" r="16" fill="{DARK}"/></g>'
        )

    eyes = "".join(f'<circle cx="{x + 7 * look}" cy="92" r="15" fill="{EYE}"/>' for x in (102, 154))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="256" height="256" viewBox="0 0 256 256">
<rect width="256" height="256" fill="{background}"/>
<g transform="translate(128 132) rotate({tilt}) scale({scale}) translate(-128 -132)">
<rect x="123" y="18" width="10" height="34" fill="{DARK}"/><circle cx="128" cy="18" r="13" fill="{ORANGE}"/>
{arm(72, left)}{arm(184, right)}
<rect x="90" y="204" width="28" height="38" rx="10" fill="{DARK}"/><rect x="138" y="204" width="28" height="38" rx="10" fill="{DARK}"/>
<rect x="76" y="132" width="104" height="84" rx="24" fill="{ORANGE}"/>
<path d="M128 160l8 16 18 2-13 12 3 18-16-8-16 8 3-18-13-12 18-2z" fill="{CREAM}"/>
<rect x="58" y="44" width="140" height="96" rx="34" fill="{CREAM}"/><rect x="74" y="64" width="108" height="56" rx="27" fill="{VISOR}"/>
{eyes}</g></svg>"""


folder = Path(sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__))
folder.mkdir(parents=True, exist_ok=True)
for i, (background, name, *pose) in enumerate(POSES):
    (folder / f"{i:02d}.png").write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=robot(background, *pose))))
    (folder / f"{i:02d}.txt").write_text(f"a photo of sks robot on a {name} background\n")
