"""report.html: one page for a run, without network: loss curve, sample images, config and files."""

import base64
import html
import io
import json
from pathlib import Path

from PIL import Image

from gralora_diffusion.files import write_text
from gralora_diffusion.training.run_folder import read_metrics, read_status

STYLE = """:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}.row{display:flex;gap:8px;overflow-x:auto}.row img{width:160px;height:160px;object-fit:cover;
border-radius:6px}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}svg{width:100%;height:auto}
.dim{opacity:.65}code{overflow-wrap:anywhere}"""


def write_report(run: Path) -> None:
    """Write run/report.html from what the folder holds."""
    config, metrics = json.loads((run / "config.json").read_text()), read_metrics(run)
    steps = sorted(p for p in (run / "samples").glob("step-*") if p.is_dir())
    parts = [
        f"<h1>{html.escape(run.resolve().name)}</h1>",
        f"<p>{summary(config, metrics)}</p>",
        "<h2>Loss</h2>",
        loss_curve(metrics),
        "<h2>Sample images</h2>" if steps else "",
        *(
            f"<p class=dim>step {int(folder.name[5:])}</p><div class=row>{thumbnails(folder)}</div>"
            for folder in steps
        ),
        "<h2>Files</h2>",
        files(run),
        forecast_table(read_status(run)),
        "<h2>Config</h2>",
        f"<table>{rows(flat(config))}</table>",
    ]
    head = f'<meta charset=utf-8><meta name=viewport content="width=device-width"><title>{html.escape(run.resolve().name)}</title><style>{STYLE}</style>'
    write_text(
        run / "report.html",
        f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n",
    )


def summary(config: dict, metrics: list[dict]) -> str:
    adapter = config["adapter"]
    seconds = sum(line["seconds"] for line in metrics)
    what = f"{adapter['method']} of rank {adapter['rank']} on {html.escape(str(config['pretrained_model_name_or_path'] or 'the embedded base'))}"
    return f"{what}: {len(metrics)} steps in {seconds / 60:.1f} minutes ({len(metrics) / max(seconds, 1e-9):.2f} steps/s)."


def loss_curve(metrics: list[dict], width: int = 1000, height: int = 280) -> str:
    """An SVG: each step's loss, faint, and its running mean."""
    if not metrics:
        return "<p>no steps</p>"
    losses, smooth = [line["loss"] for line in metrics], []
    for loss in losses:
        smooth.append(loss if not smooth else 0.95 * smooth[-1] + 0.05 * loss)
    top, last = sorted(losses)[int(0.98 * (len(losses) - 1))] * 1.1 or 1, max(metrics[-1]["step"], 2)

    def line(values, style):
        every = max(1, len(values) // 1000)
        points = " ".join(
            f"{50 + (width - 60) * (m['step'] - 1) / (last - 1):.1f},{(height - 30) * (1 - min(v, top) / top) + 5:.1f}"
            for m, v in list(zip(metrics, values, strict=True))[::every]
        )
        return f'<polyline points="{points}" fill="none" {style}/>'

    marks = "".join(
        f'<text x="44" y="{(height - 30) * (1 - part) + 9:.0f}" text-anchor="end">{top * part:.3g}</text>'
        f'<line x1="50" x2="{width - 10}" y1="{(height - 30) * (1 - part) + 5:.0f}" y2="{(height - 30) * (1 - part) + 5:.0f}" '
        'stroke="currentColor" opacity=".15"/>'
        for part in (0, 0.5, 1)
    )
    ends = f'<text x="50" y="{height - 6}">step 1</text><text x="{width - 10}" y="{height - 6}" text-anchor="end">step {last}</text>'
    faint, strong = 'stroke="currentColor" opacity=".25"', 'stroke="#3b82f6" stroke-width="2"'
    drawn = line(losses, faint) + line(smooth, strong)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss against step" font-size="13" fill="currentColor">{marks}{ends}{drawn}</svg>'


def thumbnails(folder: Path) -> str:
    """Each image in small, inside the page, and a link to the file."""
    out = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            small = image.convert("RGB")
        small.thumbnail((320, 320))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode()
        name = f"samples/{folder.name}/{path.name}"
        out.append(f'<a href="{name}"><img src="data:image/jpeg;base64,{data}" alt="{name}"></a>')
    return "".join(out)


def files(run: Path) -> str:
    found = sorted(p for p in run.iterdir() if not p.name.startswith("."))
    sizes = {
        p: sum(f.stat().st_size for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()) for p in found
    }
    shown = {
        p.name: f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB" for p, size in sizes.items()
    }
    return f"<table>{''.join(f'<tr><td><code>{html.escape(name)}</code><td>{size}' for name, size in shown.items())}</table>"


def forecast_table(status: dict) -> str:
    expected, actual = status.get("forecast"), status.get("actual")
    if not expected or not actual:
        return ""
    lines = "".join(f"<tr><td>{name}<td>{expected[name]:,.1f}<td>{actual[name]:,.1f}" for name in expected)
    return f"<h2>Forecast and what happened</h2><table><tr><th><th>forecast<th>actual{lines}</table>"


def flat(config: dict) -> dict:
    return {**config.pop("adapter"), **config}


def rows(values: dict) -> str:
    return "".join(
        f"<tr><td>{html.escape(name)}<td><code>{html.escape(json.dumps(value))}</code>"
        for name, value in values.items()
    )
