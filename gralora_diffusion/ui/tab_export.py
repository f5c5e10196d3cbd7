"""Export: choose an adapter and formats, download the files, compare their checksums."""

from types import SimpleNamespace

import gradio as gr

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import export as exporting
from gralora_diffusion.ui.export import DTYPES, KINDS
from gralora_diffusion.ui.handlers import plain, tell
from gralora_diffusion.ui.workspace import Workspace


def build(home: Workspace) -> SimpleNamespace:
    hint = gr.Markdown(
        "### Nothing to export yet\nTrain an adapter under **Train**; its files are offered here.",
        visible=False,
        elem_id="nothing-to-export",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            adapter = gr.Dropdown(
                [],
                allow_custom_value=True,
                label="Adapter",
                info="A run, one of its checkpoints, or a file that was added",
                elem_id="export-adapter",
            )
            kinds = gr.CheckboxGroup(
                [(f"{kind}: {text}", kind) for kind, text in KINDS.items()],
                value=["comfyui"],
                label="Formats",
                elem_id="kinds",
            )
            with gr.Row():
                dtype = gr.Dropdown(
                    list(DTYPES), value="fp16", label="Precision", elem_id="dtype", min_width=120
                )
                rank = gr.Textbox(
                    label="Rank",
                    placeholder="exact",
                    info="Blank keeps it exact; a number makes it smaller",
                    max_length=4,
                    elem_id="export-rank",
                    min_width=140,
                )
            write = gr.Button("Make the files", variant="primary", elem_id="export")
        with gr.Column(scale=3, min_width=300):
            table = gr.Dataframe(
                headers=["file", "size", "SHA-256"],
                datatype="str",
                interactive=False,
                wrap=True,
                label="Files",
                elem_id="exported",
                column_widths=["30%", "15%", "55%"],
            )
            files = gr.File(label="Download", file_count="multiple", interactive=False, elem_id="download")

    def export(adapter, kinds, rank, dtype):
        if not adapter:
            raise ConfigError("choose an adapter; train one first if there is none")
        if not kinds:
            raise ConfigError("choose at least one format")
        text = str(rank or "").strip()
        if text and not (text.isascii() and text.isdigit()):
            raise ConfigError(f"the rank is {text!r}; it must be a whole number, or blank")
        made, rows = [], []
        for kind in kinds:
            path, digest = exporting.export(home, adapter, kind, int(text) if text else None, dtype)
            made.append(str(path))
            rows.append([path.name, exporting.size(path), digest])
            yield rows, made
        tell(f"{len(made)} file{'s' * (len(made) != 1)} to download")

    def lists(adapter):
        names = home.adapter_names()
        return gr.update(
            choices=names, value=adapter if adapter in names else names[0] if names else None
        ), gr.update(visible=not names)

    write.click(
        plain(export), [adapter, kinds, rank, dtype], [table, files], api_name="export", concurrency_id="gpu"
    )
    return SimpleNamespace(
        listed=dict(
            fn=plain(lists),
            inputs=adapter,
            outputs=[adapter, hint],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    )
