"""Export: choose an adapter and formats, see how large the files will be, download or copy them."""

from collections.abc import Iterator

import gradio as gr

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.copy_to_tool import copy_to_tool
from gralora_diffusion.ui.export import DOWNLOADS, DTYPES, file_stem
from gralora_diffusion.ui.export_facts import (
    export_with_preview,
    fits_sdxl,
    preview_html,
    preview_of_adapter,
    trigger_words,
)
from gralora_diffusion.ui.export_sizes import error_of, is_smaller, size_text, sizes_of
from gralora_diffusion.ui.handlers import PRIVATE, QUIET, guarded, list_update, notify, on_end
from gralora_diffusion.ui.into_view import showing
from gralora_diffusion.ui.workspace import Workspace, quoted

SMALL = 32  # the rank of "small"
OTHER, FIRST_OTHER = "other", "16"  # the choice of a rank that is typed, and what it begins with
FILE_SIZES = [("Exact", ""), (f"Small (rank {SMALL})", str(SMALL)), ("Another rank", OTHER)]
BOTH_VISIBLE = "() => Array(2).fill({__type__: 'update', visible: true})"
NOT_THIS = "not for this one"  # in the place of a size: the format cannot hold the adapter as chosen
NO_ADAPTERS = (
    "### Nothing to export yet\nTrain an adapter: it is offered here when the run is done. Or add a file "
    "under **Sample**: **More**, then **Add an adapter file**."
)
FITS_NO_SDXL = (
    "**This adapter fits no SDXL model:** its layers have the sizes of another base, such as the demo model. "
    "ComfyUI and other tools cannot use it with SDXL. To use an adapter there, train it on an SDXL base."
)
ONLY_CHECKPOINTS = (
    "### No finished run yet\nWait until the run under **Watch** is done, or choose one of its checkpoints "
    "under **Adapter**."
)


class ExportTab:
    """The tab's components, handlers and events; the page connects `lists_event`."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.empty = gr.Markdown(
            NO_ADAPTERS,
            visible=False,
            elem_id="nothing-to-export",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.build_choices()
            with gr.Column(scale=3, min_width=300):
                with gr.Row(equal_height=False):
                    self.build_facts()
                self.build_files()
                self.build_copies()
        self.suggested = gr.State(None)  # the adapter that the tab chose by itself
        self.connect()

    def build_choices(self) -> None:
        self.adapter = gr.Dropdown(
            [],
            allow_custom_value=True,
            label="Adapter",
            info="A run, one of its checkpoints, or a file that was added",
            elem_id="export-adapter",
        )
        self.kinds = gr.CheckboxGroup(
            self.formats({}), value=["comfyui"], label="Formats, with the size of each file", elem_id="kinds"
        )
        with gr.Row():
            self.size = gr.Radio(
                FILE_SIZES, value="", label="File size", elem_id="export-size", min_width=300
            )
            self.rank = gr.Textbox(
                label="Rank",
                placeholder="exact",
                info="Lower = smaller file; blank = exact",
                max_length=4,
                visible=False,
                elem_id="export-rank",
                min_width=140,
            )
            self.dtype = gr.Dropdown(
                list(DTYPES), value="fp16", label="Precision", elem_id="dtype", min_width=120
            )
        self.error = gr.Markdown("", elem_id="export-error", elem_classes="hint")
        self.warning = gr.Markdown(visible=False, elem_id="export-warning", elem_classes="hint")
        self.write = gr.Button("Export", variant="primary", elem_id="export")

    def build_facts(self) -> None:
        with gr.Column(scale=1, min_width=140, visible=False) as self.preview_column:
            self.preview = gr.HTML(elem_id="export-preview", padding=False)
        self.triggers = gr.Textbox(
            label="Trigger words",
            info="Use them in the prompt",
            interactive=False,
            lines=4,
            max_lines=6,
            scale=2,
            min_width=200,
            visible=False,
            elem_id="export-triggers",
        )

    def build_files(self) -> None:
        self.table = gr.Dataframe(
            headers=["file", "size", "SHA-256"],
            datatype="str",
            interactive=False,
            wrap=True,
            label="Files",
            elem_id="exported",
            column_widths=["30%", "15%", "55%"],
            visible=False,
        )
        self.files = gr.File(
            label="Download. ComfyUI loads adapters from models/loras, A1111 and Forge from models/Lora",
            file_count="multiple",
            interactive=False,
            elem_id="download",
            visible=False,
        )

    def build_copies(self) -> None:
        """A button for each folder that the owner of the server named."""
        self.copies = {}
        with gr.Row(elem_classes="tight", visible=False) as self.copy_row:
            self.file_name = gr.Textbox(
                label="File name in the other tool", max_length=64, elem_id="copy-name", min_width=180
            )
            for tool in self.workspace.other_tools:
                self.copies[tool] = gr.Button(
                    f"Copy to {tool}", elem_id=f"copy-{tool.lower()}", min_width=140
                )

    def connect(self) -> None:
        written = self.write.click(
            guarded(self.export),
            [self.adapter, self.kinds, self.rank, self.dtype],
            [self.table, self.files],
            api_name="export",
            concurrency_id="gpu",
        )
        made = [self.table, self.files]
        on_end(written, None, None, made, js=BOTH_VISIBLE, **PRIVATE)  # also what was made before an error
        written.success(None, None, None, js=showing("exported", "export"), **PRIVATE)
        for tool, button in self.copies.items():
            # with several tools, Enter would not tell which
            asked = [button.click, *([self.file_name.submit] if len(self.copies) == 1 else [])]
            gr.on(
                asked,
                guarded(self.copier(tool)),
                [self.adapter, self.file_name, self.rank, self.dtype],
                None,
                concurrency_id="gpu",
                **PRIVATE,
            )
        self.size.input(rank_field, self.size, self.rank, **QUIET)
        facts = [self.preview_column, self.preview, self.triggers, self.copy_row, self.file_name]
        quiet = dict(show_progress="hidden", **PRIVATE)  # in the queue, without which no error is shown
        self.adapter.change(guarded(self.facts), self.adapter, facts, **quiet)
        self.adapter.change(guarded(self.warning_of), self.adapter, self.warning, **quiet)
        chosen = [self.adapter, self.rank, self.dtype]
        changed = gr.on(
            [self.adapter.change, self.rank.change, self.dtype.change],
            guarded(self.sizes),
            chosen,
            self.kinds,
            trigger_mode="always_last",
            **quiet,
        )
        changed.then(
            guarded(self.error_text),
            chosen[:2],
            self.error,
            trigger_mode="always_last",
            concurrency_id="error",
            concurrency_limit=1,
            show_progress="hidden",  # whose overlay scrolls within a line of text
            **PRIVATE,
        )
        lists = [self.adapter, self.empty, self.suggested]
        self.lists_event = dict(
            fn=guarded(self.lists), inputs=[self.adapter, self.suggested], outputs=lists, **QUIET
        )

    @staticmethod
    def formats(sizes: dict[str, int | None]) -> list[tuple[str, str]]:
        """The formats with what reads them, and their sizes as far as they are known."""
        choices = []
        for kind, text in DOWNLOADS.items():
            if kind in sizes:
                text += f" · {size_text(sizes[kind]) or NOT_THIS}"
            choices.append((f"{kind}: {text}", kind))
        return choices

    def sizes(self, adapter: str, rank: str, dtype: str) -> dict:
        """The formats with their sizes."""
        found = {}
        if adapter and dtype in DTYPES:
            try:
                found = sizes_of(self.workspace, adapter, rank_of(rank), dtype)
            except ConfigError:
                found = {}  # error_text() says why
        return gr.update(choices=self.formats(found))

    def error_text(self, adapter: str, rank: str) -> Iterator[str]:
        """How far the nearest LoRA of this rank is from the adapter, and whether it is no smaller.

        First, that it is computed.
        """
        number = rank_of(rank)
        if not adapter or number is None:
            yield ""
            return
        yield f"Computing what rank {number} keeps ..."
        error = error_of(self.workspace, adapter, number)
        kept = f"relative error {error:.3g} (0 is exact); {100 * (1 - error**2):.2f} % of the energy is kept."
        text = f"Rank {number} holds this adapter exactly." if error < 1e-6 else f"Rank {number}: {kept}"
        smaller = is_smaller(self.workspace, adapter, number)
        yield text if smaller else f"{text} **The file for ComfyUI is no smaller: choose Exact.**"

    def facts(self, adapter: str) -> tuple:
        """(column and image of the preview, trigger words, row and name of copies) of an adapter."""
        words = image = name = ""
        if adapter:
            words = trigger_words(self.workspace, adapter)
            image = preview_html(preview_of_adapter(self.workspace, adapter))
            name = file_stem(adapter)
        triggers = gr.update(value=words, visible=bool(words))
        copies = gr.update(visible=bool(name and self.copies))
        return gr.update(visible=bool(image)), image, triggers, copies, name

    def warning_of(self, adapter: str):
        """What to know before the adapter is used elsewhere; hidden where there is nothing."""
        needed = bool(adapter) and not fits_sdxl(self.workspace, adapter)
        return gr.update(value=FITS_NO_SDXL if needed else "", visible=needed)

    def export(self, adapter: str, kinds: list[str], rank: str, dtype: str):
        """(rows of the table, files) after each file."""
        if not adapter:
            raise ConfigError("choose an adapter; train one first if there is none")
        if not kinds:
            raise ConfigError("choose at least one format")
        number = rank_of(rank)
        files = []
        rows = []
        for kind in kinds:
            for path, digest in export_with_preview(self.workspace, adapter, kind, number, dtype):
                files.append(str(path))
                rows.append([path.name, size_text(path.stat().st_size), digest])
            yield rows, files
        notify(f"{len(files)} file{'' if len(files) == 1 else 's'} ready")

    def copier(self, tool: str):
        """The handler of the button of this tool."""

        def copy(adapter: str, file_name: str, rank: str, dtype: str) -> None:
            if not adapter:
                raise ConfigError("choose an adapter; train one first if there is none")
            written = copy_to_tool(self.workspace, tool, adapter, file_name, rank_of(rank), dtype)
            notify(f"{written} was copied to {tool}")

        return copy

    def lists(self, chosen: str | None, suggested: str | None = None) -> tuple:
        """The adapters of now, the chosen one kept where it is still there, and what to do where none is."""
        choices = self.workspace.adapter_choices()
        value = self.workspace.kept_or_suggested(chosen, suggested)
        newest = self.workspace.suggested_adapter()
        hint = gr.update(value=ONLY_CHECKPOINTS if choices else NO_ADAPTERS, visible=not value)
        return list_update(choices, value, chosen), hint, newest


def rank_field(size: str):
    """The field Rank after a choice of FILE_SIZES."""
    return gr.update(value=FIRST_OTHER if size == OTHER else size, visible=size == OTHER)


def rank_of(text: str) -> int | None:
    """The number in the field Rank, None where it is blank; raises ConfigError."""
    text = str(text or "").strip()
    if text and not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= 4096):
        raise ConfigError(f"the rank is {quoted(text)}; it must be a whole number from 1 to 4096, or blank")
    return int(text) if text else None
