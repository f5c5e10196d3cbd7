"""How the page looks: fonts that every machine has, one accent color, light and dark, from 390 px up."""

from pathlib import Path

import gradio as gr

from gralora_diffusion.ui.caption_cards import CAPTION_KEYS
from gralora_diffusion.ui.follow_log import LOG_HEAD
from gralora_diffusion.ui.into_view import SHOW_HEAD
from gralora_diffusion.ui.notifications import NOTIFY_HEAD
from gralora_diffusion.ui.outdated_checks import OUTDATED_CHECKS

LOGO = """<svg viewBox="0 0 32 32" width="34" height="34" aria-hidden="true">
<rect x="1" y="1" width="14" height="14" rx="4"/>
<rect x="17" y="1" width="14" height="14" rx="4" opacity=".38"/>
<rect x="1" y="17" width="14" height="14" rx="4" opacity=".38"/>
<rect x="17" y="17" width="14" height="14" rx="4"/></svg>"""
TITLE = "<div><h1>GraLoRA</h1><p>Teach SDXL a subject from a few images</p></div>"
HEADER = f"<header>{LOGO}{TITLE}</header>"
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
COLORS = {  # name: (light, dark)
    "body_background_fill": ("#f4f6f8", "#0b1115"),
    "block_background_fill": ("#ffffff", "#131b21"),
    "border_color_primary": ("#dfe5ea", "#25313a"),
    "block_border_color": ("#dfe5ea", "#25313a"),
    "block_shadow": ("0 1px 2px rgba(15,23,42,.04)", "none"),
    "input_background_fill": ("#f7f9fa", "#0d1419"),
    "input_border_color": ("#d3dbe1", "#2a3741"),
    "block_label_background_fill": ("#ffffff", "#131b21"),
    "body_text_color_subdued": ("#5b6b7c", "#93a3ae"),
    "block_label_text_color": ("#475569", "#a7b4be"),
    "block_title_text_color": ("#334155", "#cbd5dc"),
    "block_info_text_color": ("#5b6b7c", "#93a3ae"),
    "button_primary_background_fill": ("#0f766e", "#0f766e"),
    "button_primary_background_fill_hover": ("#115e59", "#14857b"),
    "button_secondary_background_fill": ("#ffffff", "#1a242b"),
    "button_secondary_background_fill_hover": ("#f1f5f7", "#22303a"),
    "button_secondary_border_color": ("#cfd8df", "#30404b"),
    "table_even_background_fill": ("#ffffff", "#131b21"),
    "table_odd_background_fill": ("#f7f9fa", "#0f161b"),
    "table_border_color": ("#dfe5ea", "#25313a"),
    "slider_color": ("#0d9488", "#2dd4bf"),
    "link_text_color": ("#0f766e", "#5eead4"),
}
DARK = {  # of the dark theme alone
    "background_fill_secondary": "#0f161b",
    "background_fill_primary": "#131b21",
}
SHAPES = {
    "input_border_width": "1px",
    "block_label_border_width": "0px",
    "block_title_text_weight": "600",
    "block_title_text_size": "13px",
    "block_info_text_size": "12px",
    "button_primary_text_color": "#ffffff",
    "button_border_width": "1px",
    "button_large_text_size": "14px",
    "button_large_text_weight": "600",
    "button_large_padding": "9px 16px",
    "button_small_text_size": "13px",
}
STYLES = ("page.css", "train.css")
CSS = "".join(Path(__file__).with_name(name).read_text() for name in STYLES)
HEAD = """<script>
document.addEventListener('keydown', event => {  // from tab to tab by arrows
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    const list = event.target.closest?.('[role=tab]')?.closest('[role=tablist]');
    if (!step || !list) return;
    const tabs = [...list.querySelectorAll('[role=tab]')];
    tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length].focus();
    event.preventDefault();
});
document.addEventListener('visibilitychange', () => {
    if (document.hidden && window.graloraWaits?.()) return;  // a notification was asked for
    document.getElementById(document.hidden ? 'page-hidden' : 'page-visible')?.click();
});
</script>"""
HEAD += """<script>
{  // Gradio names its empty views and gives them no role, without which a name must not be
    const empty = '[aria-label="Empty value"]:not([role])';
    const nameViews = () => {
        document.querySelectorAll(empty).forEach(view => view.setAttribute('role', 'img'));
    };
    new MutationObserver(nameViews).observe(document, {childList: true, subtree: true});
}
</script>"""
HEAD += CAPTION_KEYS + OUTDATED_CHECKS + NOTIFY_HEAD + LOG_HEAD + SHOW_HEAD


def words_for_gradio() -> gr.I18n:
    """Texts that Gradio 6.31 reads to screen readers and has in no language: it would say their keys."""
    return gr.I18n(en={"common.complete": "Done"})


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
    light = {name: value for name, (value, _) in COLORS.items()}
    dark = {f"{name}_dark": value for name, (_, value) in COLORS.items()}
    dark |= {f"{name}_dark": value for name, value in DARK.items()}
    return base.set(**light, **dark, **SHAPES)
