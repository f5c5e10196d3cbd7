"""Dataset: images in, captions in one table that is saved at every edit, checks with what to do."""

from types import SimpleNamespace

import gradio as gr
from PIL import Image

from gralora_diffusion.data.images import EXTENSIONS, open_image
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import image_sets as image_sets
from gralora_diffusion.ui.drawing import serve
from gralora_diffusion.ui.handlers import plain, tell
from gralora_diffusion.ui.workspace import BUNDLED, Workspace

RESOLUTIONS = ["64", "512", "768", "1024"]


def build(home: Workspace) -> SimpleNamespace:
    gr.Markdown(
        "**Start here.** Drop a few images of one subject, caption them, then go to **Train** and press **Start**. "
        "Nothing at hand? The robot's images are ready: go to **Train** right away.",
        elem_id="start-here",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            chosen = gr.Dropdown(
                home.set_names(),
                value=BUNDLED,
                allow_custom_value=True,
                label="Image set",
                info="robot comes with the page",
                elem_id="set",
            )
            drop = gr.File(
                label="Drop 3 to 20 images of your subject here",
                file_count="multiple",
                file_types=sorted(EXTENSIONS),
                elem_id="drop",
                height=150,
            )
            name = gr.Textbox(label="New set", placeholder="my-dog", max_length=64, elem_id="new-set")
            with gr.Row(elem_classes="pair"):
                create = gr.Button("Create it empty", elem_id="create-set", min_width=120)
                copy = gr.Button("Copy this set", elem_id="copy-set", min_width=120)
            notes = gr.Textbox(
                label="What happened to each file", lines=3, interactive=False, visible=False, elem_id="notes"
            )
            size = gr.Dropdown(
                RESOLUTIONS,
                value="64",
                label="Resolution to train at",
                info="64 for the embedded base",
                elem_id="check-size",
            )
            check = gr.Button("Check the images", elem_id="check-set")
        with gr.Column(scale=5, min_width=300):
            gallery = gr.Gallery(
                label="Images",
                columns=6,
                height="auto",
                object_fit="cover",
                format="png",
                elem_id="images",
                allow_preview=True,
            )
            gr.Markdown(
                "**Captions** · click into one to edit it; every edit is saved at once. Name the subject with a rare word: *a photo of sks dog*."
            )
            table = gr.Dataframe(
                headers=["image", "caption"], datatype="str", column_count=(2, "fixed"), static_columns=[0], interactive=True, wrap=True,
                row_count=1,                 label="Captions", show_label=False, elem_id="captions", column_widths=["160px", "auto"],
            )  # fmt: skip
            with gr.Row(elem_classes="tight"):
                before = gr.Textbox(
                    label="Put before every caption",
                    placeholder="a photo of sks dog,",
                    max_length=200,
                    elem_id="before",
                    scale=3,
                )
                apply = gr.Button("Put before", elem_id="put-before", scale=1, min_width=80)
                gone = gr.Dropdown(
                    [], allow_custom_value=True, label="Take an image out", elem_id="gone", scale=3
                )
                remove = gr.Button("Remove", elem_id="remove-image", scale=1, min_width=80, variant="stop")
    findings = gr.Dataframe(
        headers=["image", "what was found", "what to do"],
        datatype="str",
        interactive=False,
        wrap=True,
        visible=False,
        label="Checks",
        elem_id="findings",
    )

    def show(name):
        folder = home.image_set(name)
        files = image_sets.images_of(folder)
        images = [(thumbnail(home, path), path.name) for path in files]
        rows = [[path.name, image_sets.caption_of(path)] for path in files] or [["", ""]]
        return images, gr.update(value=rows), gr.update(choices=[p.name for p in files], value=None)

    def switch(name):
        return *show(name), gr.update(visible=False)

    def add(files, name):
        if not files:
            return [gr.skip()] * 6
        if name == BUNDLED:
            from gralora_diffusion.ui.workspace import free_name

            name = image_sets.create(home, free_name("images", home.set_names()))
        told = image_sets.add(home, name, files)
        count = len(files) - sum(" was left out: " in line for line in told)
        tell(f"{count} of {len(files)} added to {name}")
        notes = gr.update(value="\n".join(told), visible=bool(told), lines=min(8, max(2, len(told))))
        return gr.update(choices=home.set_names(), value=name), *show(name), None, notes

    def save(name, rows):
        saved = image_sets.save_captions(
            home, name, {row[0]: row[1] or "" for row in rows.values.tolist() if row[0]}
        )
        if saved:
            tell(f"saved: {', '.join(saved[:3])}{' ...' * (len(saved) > 3)}")

    def put_before(name, words):
        if not words.strip():
            raise ConfigError("write the words that every caption is to begin with")
        files = image_sets.images_of(image_sets.own(home, name))
        captions = {p.name: image_sets.caption_of(p) for p in files}
        image_sets.save_captions(
            home,
            name,
            {n: c if c.startswith(words.strip()) else f"{words.strip()} {c}" for n, c in captions.items()},
        )
        return show(name)

    def take_out(name, file):
        image_sets.remove(home, name, file)
        return show(name)

    def made(name):
        return gr.update(choices=home.set_names(), value=name), *show(name), "", gr.update(visible=False)

    def look(name, resolution):
        found = image_sets.checks(home, name, int(resolution))
        return gr.update(value=found or [["all", "nothing to mend", "go on to Train"]], visible=True)

    shown = [gallery, table, gone]
    chosen.input(plain(switch), chosen, [*shown, findings], api_visibility="private")
    drop.upload(plain(add), [drop, chosen], [chosen, *shown, drop, notes], api_visibility="private")
    table.input(
        plain(save),
        [chosen, table],
        None,
        api_visibility="private",
        show_progress="hidden",
        concurrency_limit=1,
    )
    apply.click(plain(put_before), [chosen, before], shown, api_visibility="private")
    remove.click(plain(take_out), [chosen, gone], shown, api_visibility="private")
    create.click(
        plain(lambda new: made(image_sets.create(home, new))),
        name,
        [chosen, *shown, name, findings],
        api_visibility="private",
    )
    copy.click(
        plain(lambda old, new: made(image_sets.copy(home, old, new))),
        [chosen, name],
        [chosen, *shown, name, findings],
        api_visibility="private",
    )
    check.click(plain(look), [chosen, size], findings, api_visibility="private")
    return SimpleNamespace(chosen=chosen, shown=shown, show=show)


_thumbnails: dict[tuple, str] = {}


def thumbnail(home: Workspace, path) -> str:
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if key not in _thumbnails:
        image = open_image(path)
        image.thumbnail((384, 384), Image.Resampling.LANCZOS)
        _thumbnails[key] = serve(home, image, "thumbnail.png")
    return _thumbnails[key]
