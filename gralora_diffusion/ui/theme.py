"""How the page looks: fonts that every machine has, one accent, light and dark, from 390 px up."""

from pathlib import Path

import gradio as gr

HEADER = """<header><svg viewBox="0 0 32 32" width="34" height="34" aria-hidden="true"><rect x="1" y="1" width="14" height="14" rx="4"/>
<rect x="17" y="1" width="14" height="14" rx="4" opacity=".38"/><rect x="1" y="17" width="14" height="14" rx="4" opacity=".38"/>
<rect x="17" y="17" width="14" height="14" rx="4"/></svg><div><h1>GraLoRA</h1><p>Teach SDXL a subject from a handful of images</p></div></header>"""
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    base = gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=SANS,
        font_mono=MONO,
        radius_size="lg",
        spacing_size="md",
        text_size="md",
    )
    return base.set(
        body_background_fill="#f4f6f8", body_background_fill_dark="#0b1115", block_background_fill="#ffffff", block_background_fill_dark="#131b21",
        background_fill_secondary_dark="#0f161b", border_color_primary="#dfe5ea", border_color_primary_dark="#25313a", block_border_color="#dfe5ea",
        block_border_color_dark="#25313a", block_shadow="0 1px 2px rgba(15,23,42,.04)", block_shadow_dark="none", input_background_fill="#f7f9fa",
        input_background_fill_dark="#0d1419", input_border_color="#d3dbe1", input_border_color_dark="#2a3741", input_border_width="1px",
        block_label_background_fill="#ffffff", block_label_background_fill_dark="#131b21", body_text_color_subdued="#5b6b7c",
        body_text_color_subdued_dark="#93a3ae",
        block_label_border_width="0px",
        block_label_text_color="#475569", block_label_text_color_dark="#a7b4be", block_title_text_weight="600", block_title_text_size="13px",
        block_title_text_color="#334155", block_title_text_color_dark="#cbd5dc", block_info_text_color="#5b6b7c",
        block_info_text_color_dark="#93a3ae",
        block_info_text_size="12px", button_primary_background_fill="#0f766e", button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e", button_primary_background_fill_hover_dark="#14857b", button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff", button_secondary_background_fill_hover="#f1f5f7", button_secondary_background_fill_dark="#1a242b",
        button_secondary_background_fill_hover_dark="#22303a", button_secondary_border_color="#cfd8df", button_secondary_border_color_dark="#30404b",
        button_border_width="1px", button_large_text_size="14px", button_large_text_weight="600", button_large_padding="9px 16px",
        button_small_text_size="13px", table_even_background_fill_dark="#131b21", table_odd_background_fill_dark="#0f161b",
        table_even_background_fill="#ffffff", table_odd_background_fill="#f7f9fa", table_border_color="#dfe5ea", table_border_color_dark="#25313a",
        background_fill_primary_dark="#131b21",        slider_color="#0d9488", slider_color_dark="#2dd4bf",
        link_text_color="#0f766e", link_text_color_dark="#5eead4",
    )  # fmt: skip


CSS = Path(__file__).with_name("page.css").read_text()
HEAD = """<script>
document.addEventListener('keydown', event => {  // from tab to tab by arrows
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], list = event.target.closest?.('[role=tab]')?.closest('[role=tablist]');
    if (!step || !list) return;
    const tabs = [...list.querySelectorAll('[role=tab]')];
    tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length].focus();
    event.preventDefault();
});
</script>"""
