"""How the page looks: fonts that every machine has, one accent, light and dark, from 390 px up."""

import gradio as gr

HEADER = """<header><svg viewBox="0 0 32 32" width="34" height="34" aria-hidden="true"><rect x="1" y="1" width="14" height="14" rx="4"/>
<rect x="17" y="1" width="14" height="14" rx="4" opacity=".38"/><rect x="1" y="17" width="14" height="14" rx="4" opacity=".38"/>
<rect x="17" y="17" width="14" height="14" rx="4"/></svg><div><h1>GraLoRA</h1><p>Teach SDXL a subject from a handful of pictures</p></div></header>"""
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    base = gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO, radius_size="lg", spacing_size="md", text_size="md"
    )
    return base.set(
        body_background_fill="#f4f6f8", body_background_fill_dark="#0b1115", block_background_fill="#ffffff", block_background_fill_dark="#131b21",
        background_fill_secondary_dark="#0f161b", border_color_primary="#dfe5ea", border_color_primary_dark="#25313a", block_border_color="#dfe5ea",
        block_border_color_dark="#25313a", block_shadow="0 1px 2px rgba(15,23,42,.04)", block_shadow_dark="none", input_background_fill="#f7f9fa",
        input_background_fill_dark="#0d1419", input_border_color="#d3dbe1", input_border_color_dark="#2a3741", input_border_width="1px",
        block_label_background_fill="transparent", block_label_background_fill_dark="transparent", block_label_border_width="0px",
        block_label_text_color="#475569", block_label_text_color_dark="#a7b4be", block_title_text_weight="600", block_title_text_size="13px",
        block_title_text_color="#334155", block_title_text_color_dark="#cbd5dc", block_info_text_color="#64748b", block_info_text_color_dark="#93a3ae",
        block_info_text_size="12px", button_primary_background_fill="#0f766e", button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e", button_primary_background_fill_hover_dark="#14857b", button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff", button_secondary_background_fill_hover="#f1f5f7", button_secondary_background_fill_dark="#1a242b",
        button_secondary_background_fill_hover_dark="#22303a", button_secondary_border_color="#cfd8df", button_secondary_border_color_dark="#30404b",
        button_border_width="1px", button_large_text_size="14px", button_large_text_weight="600", button_large_padding="9px 16px",
        button_small_text_size="13px", slider_color="#0d9488", slider_color_dark="#2dd4bf", link_text_color="#0f766e", link_text_color_dark="#5eead4",
    )  # fmt: skip


CSS = """
.gradio-container { max-width: 1360px !important; margin: 0 auto !important; padding: 14px 20px 48px !important; }
footer { display: none !important; }
#header header { display: flex; align-items: center; gap: 12px; padding: 6px 2px; }
#header svg { fill: #0f766e; flex: none; } .dark #header svg { fill: #2dd4bf; }
#header h1 { font-size: 21px; line-height: 1.1; font-weight: 700; letter-spacing: -.01em; margin: 0; }
#header p { margin: 2px 0 0; font-size: 13px; color: var(--body-text-color-subdued); }

/* the strip: six facts, the label small above, the value large below */
#strip { gap: 0; align-items: center; background: var(--block-background-fill); border: 1px solid var(--block-border-color); border-radius: 12px 12px 0 0;
  padding: 8px 14px 8px 6px; border-bottom: 0; flex-wrap: nowrap; }
#strip .form { border: 0; background: none; box-shadow: none; display: grid; grid-template-columns: 1.5fr 1fr 1fr 1fr .8fr 1fr; gap: 0; flex: 1; min-width: 0; }
#strip .block { padding: 2px 12px; min-width: 0 !important; border: 0; background: none; }
#strip .block + .block { border-left: 1px solid var(--block-border-color); }
#strip label span { font-size: 11px; font-weight: 600; letter-spacing: .05em; text-transform: uppercase; color: var(--body-text-color-subdued); margin: 0; }
#strip textarea, #strip input { background: none; border: 0; box-shadow: none; padding: 0; height: 24px !important; font-size: 16px; font-weight: 600; color:
  var(--body-text-color); -webkit-text-fill-color: var(--body-text-color); font-variant-numeric: tabular-nums; text-overflow: ellipsis; cursor: default; }
#strip button { flex: none; align-self: center; max-width: 140px; }
#strip button:disabled { opacity: .45; }
#bar { margin-top: calc(-1 * var(--layout-gap)); }
#bar .bar { height: 4px; background: var(--block-border-color); border-radius: 0 0 12px 12px; overflow: hidden; }
#bar .bar i { display: block; height: 100%; background: #0d9488; transition: width .5s ease; }

#tabs > .tab-wrapper { padding: 4px 0 0; } #tabs button[role=tab] { font-size: 15px; font-weight: 600; padding: 8px 16px; }
.group-title { padding: 2px 2px 0; } .group-title h4 { font-size: 14px; font-weight: 700; margin: 4px 0; }
.hint, .hint p { font-size: 13px; color: var(--body-text-color-subdued); }
.tight { align-items: end; gap: 10px; } .tight > button { align-self: end; flex-grow: 0; white-space: nowrap; }
#front .form, .options .form { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); }
#front .form > .block, .options .form > .block { min-width: 0 !important; }
#all-options .group-of-options { margin-top: 10px; } #all-options .group-title { padding: 10px 14px 0; }
#plan { position: sticky; top: 12px; }
.option .info, .block .info { line-height: 1.35; }
table, table * { font-family: var(--font) !important; font-size: 13.5px; } table { font-variant-numeric: tabular-nums; }
.cm-editor { font-size: 12.5px; }
#log textarea { font-family: var(--font-mono); font-size: 12px; line-height: 1.5; }
#problem textarea, #message textarea { color: #b45309; -webkit-text-fill-color: #b45309; font-weight: 600; }
.dark #problem textarea, .dark #message textarea { color: #fbbf24; -webkit-text-fill-color: #fbbf24; }
.grid-wrap img, .thumbnail-item img { image-rendering: auto; }
.caption-label { font-size: 11.5px !important; }
:focus-visible { outline: 2px solid #0d9488 !important; outline-offset: 2px; }
@media (max-width: 700px) {
  .gradio-container { padding: 10px 12px 40px !important; }
  #strip { flex-wrap: wrap; padding: 8px; } #strip .form { grid-template-columns: 1fr 1fr 1fr; row-gap: 6px; flex-basis: 100%; }
  #strip .block { border-left: 0 !important; padding: 2px 6px; } #strip textarea, #strip input { font-size: 14px; }
  #strip button { max-width: none; width: 100%; margin-top: 6px; }
  #tabs button[role=tab] { padding: 8px 10px; font-size: 14px; } #plan { position: static; }
  .tight { flex-wrap: wrap; } .tight > button { flex-grow: 1; }
}
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""
