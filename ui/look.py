"""How the page looks: fonts that every machine has, one accent, light and dark, from 390 px up."""

import gradio as gr

HEADER = """<header><svg viewBox="0 0 32 32" width="30" height="30" aria-hidden="true"><rect x="1" y="1" width="14" height="14" rx="4"/>
<rect x="17" y="1" width="14" height="14" rx="4" opacity=".45"/><rect x="1" y="17" width="14" height="14" rx="4" opacity=".45"/>
<rect x="17" y="17" width="14" height="14" rx="4"/></svg><div><h1>GraLoRA</h1><p>teach SDXL a subject from a handful of pictures</p></div></header>"""
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO, radius_size="md", spacing_size="md", text_size="md"
    ).set(body_background_fill="#f6f8f9", body_background_fill_dark="#0c1216", block_shadow="none", block_label_background_fill="transparent")


CSS = ""
