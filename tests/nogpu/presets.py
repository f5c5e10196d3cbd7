"""presets.py FOUND.json: SDXL's size in one process: presets on their cards, drawing, and steps of the UNet.

FOUND.json: {"presets": {name: what full_size.run() gives}, "drawing": the lines of drawing.draw_all(),
             "unet": {kind of adapter: what step_counts.measure() gives}, "optimizers": their counts}
"""

import json
import sys
from pathlib import Path

import card

if __name__ == "__main__":
    card.start()

from gralora_diffusion import console
from gralora_diffusion.presets import PRESETS

DRAWN = [5.5, 11.5]  # GiB: the models make room for each other, and all stay
LARGEST = 23.3


def usable(preset: str) -> float:
    """GiB of the card that a preset is for, without what a desktop takes."""
    return PRESETS[preset]["usable_gib"]


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
    stand_ins.color_images()
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
    counters.set_limit(LARGEST)
    steps = {kind: step_counts.measure(kind, checkpointing=False) for kind in step_counts.KINDS}
    everything = dict(presets=found, drawing=drawn, unet=steps, optimizers=step_counts.optimizer_counts())
    Path(sys.argv[1]).write_text(json.dumps(everything, indent=1))
    print("\n".join(tables(everything)))


def tables(found: dict) -> list[str]:
    """What docs/gpu.md shows: GiB at the peak of each phase, and the counts of the last step."""
    lines = ["| preset | usable | estimate | encoding | step | sample images | reserved | launches | syncs |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for preset, run in found["presets"].items():
        peaks = {}
        for line in run["phases"]:
            kind = line["phase"].split()[0]
            peaks[kind] = max(peaks.get(kind, 0), line["peak"])
        step = [line for line in run["phases"] if line["phase"].startswith("step ")][-1]
        numbers = [usable(preset), run["forecast_gib"], peaks["encode"], peaks["step"], peaks["previews"]]
        sizes = " | ".join(f"{number:.2f}" for number in [*numbers, step["peak_reserved"]])
        lines.append(f"| {preset} | {sizes} | {step['launches']:,} | {step['syncs']} |")
    lines += ["", "| generating an image of 1024 px | usable | peak | reserved |", "|---|---|---|---|"]
    for line in found["drawing"]:
        sizes = " | ".join(f"{line[name]:.2f}" for name in ("gib", "peak", "reserved"))
        lines.append(f"| {line['way']} | {sizes} |")
    lines += ["", "| a step of the UNet | launches | peak |", "|---|---|---|"]
    for kind, line in found["unet"].items():
        lines.append(f"| {kind} | {line['launches']:,} | {line['peak']:.2f} |")
    lines += ["", "| an optimizer's step | launches | synchronizations |", "|---|---|---|"]
    for name, line in found["optimizers"].items():
        lines.append(f"| {name} | {line['launches']} | {line['syncs']} |")
    return lines


if __name__ == "__main__":
    main()
