"""Export: choose an adapter and formats, download the files, compare their checksums."""

import gradio as gr

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.export import DOWNLOADS, DTYPES, export, file_size
from gralora_diffusion.ui.handlers import QUIET, guarded, notify
from gralora_diffusion.ui.workspace import Workspace, quoted


class ExportTab:
    """The tab's components, handlers and events; the page connects `lists_event`."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.empty = gr.Markdown(
            "### Nothing to export yet\nTrain an adapter under **Train**; its files are offered here.",
            visible=False,
            elem_id="nothing-to-export",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.build_choices()
            with gr.Column(scale=3, min_width=300):
                self.build_files()
        self.write.click(
            guarded(self.export),
            [self.adapter, self.kinds, self.rank, self.dtype],
            [self.table, self.files],
            api_name="export",
            concurrency_id="gpu",
        )
        suggested = gr.State(None)  # the adapter that the tab chose by itself
        lists = [self.adapter, self.empty, suggested]
        self.lists_event = dict(
            fn=guarded(self.lists), inputs=[self.adapter, suggested], outputs=lists, **QUIET
        )

    def build_choices(self) -> None:
        self.adapter = gr.Dropdown(
            [],
            allow_custom_value=True,
            label="Adapter",
            info="A run, one of its checkpoints, or a file that was added",
            elem_id="export-adapter",
        )
        self.kinds = gr.CheckboxGroup(
            [(f"{kind}: {text}", kind) for kind, text in DOWNLOADS.items()],
            value=["comfyui"],
            label="Formats",
            elem_id="kinds",
        )
        with gr.Row():
            self.dtype = gr.Dropdown(
                list(DTYPES), value="fp16", label="Precision", elem_id="dtype", min_width=120
            )
            self.rank = gr.Textbox(
                label="Rank",
                placeholder="exact",
                info="Blank keeps it exact; a number makes it smaller",
                max_length=4,
                elem_id="export-rank",
                min_width=140,
            )
        self.write = gr.Button("Export", variant="primary", elem_id="export")

    def build_files(self) -> None:
        self.table = gr.Dataframe(
            headers=["file", "size", "SHA-256"],
            datatype="str",
            interactive=False,
            wrap=True,
            label="Files",
            elem_id="exported",
            column_widths=["30%", "15%", "55%"],
        )
        self.files = gr.File(label="Download", file_count="multiple", interactive=False, elem_id="download")

    def export(self, adapter: str, kinds: list[str], rank: str, dtype: str):
        """(rows of the table, files) after each file."""
        if not adapter:
            raise ConfigError("choose an adapter; train one first if there is none")
        if not kinds:
            raise ConfigError("choose at least one format")
        text = str(rank or "").strip()
        if text and not (text.isascii() and text.isdigit()):
            raise ConfigError(f"the rank is {quoted(text)}; it must be a whole number, or blank")
        files = []
        rows = []
        for kind in kinds:
            path, digest = export(self.workspace, adapter, kind, int(text) if text else None, dtype)
            files.append(str(path))
            rows.append([path.name, file_size(path), digest])
            yield rows, files
        notify(f"{len(files)} file{'' if len(files) == 1 else 's'} ready")

    def lists(self, chosen: str | None, suggested: str | None = None) -> tuple:
        """The adapters of now, the chosen one kept where it is still there."""
        names = self.workspace.adapter_names()
        value = self.workspace.kept_or_suggested(chosen, suggested)
        newest = self.workspace.suggested_adapter()
        return gr.update(choices=names, value=value), gr.update(visible=not names), newest
