"""presets.py FOUND.json: SDXL's size in one process: presets on their cards, drawing, and steps of the UNet.

FOUND.json: {"presets": {name: what full_size.run() gives}, "drawing": the lines of drawing.draw_all(),
             "unet": {kind of adapter: what step_counts.measure() gives}}
"""

import json
import sys
from pathlib import Path

import card

if __name__ == "__main__":
    card.start()

from gralora_diffusion import console
from gralora_diffusion.command_line import PRESETS

USABLE = {"8gb": 7.5, "12gb": 11.5, "16gb": 15.4, "24gb": 23.3}  # GiB, without what a desktop takes
DRAWN = [7.5, 11.5]  # where 11.5 GiB are enough, larger cards are


def usable(preset: str) -> float:
    """GiB of the card that a preset is for."""
    return USABLE[preset.rpartition("-")[2]]


def main() -> None:
    """Only here: the tests import this module in a process without the stub."""
    import counters
    import drawing
    import full_size
    import hollow
    import phases
    import stand_ins
    import step_counts

    base = hollow.install()
    stand_ins.colour_images()
    recorder = phases.Recorder()
    recorder.install(files=False)
    found = {}
    for preset in PRESETS:
        print(f"--- {preset}: {usable(preset)} GiB", flush=True)
        counters.set_limit(usable(preset))
        found[preset] = full_size.run(["--preset", preset], base, recorder)
    console.plain_warnings()
    drawn = drawing.draw_all(base, DRAWN, drawing.RANK)
    for line in drawn:
        print(drawing.text_of(line))
    counters.set_limit(USABLE["24gb"])
    steps = {kind: step_counts.measure(kind, checkpointing=False) for kind in step_counts.KINDS}
    everything = dict(presets=found, drawing=drawn, unet=steps)
    Path(sys.argv[1]).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
