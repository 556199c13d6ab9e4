"""The page in Gradio: what is where, and which action of :mod:`text2sam.app.workbench` a button stands for."""

from __future__ import annotations

import functools
import html
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from text2sam.app.folder import FolderJob
from text2sam.app.workbench import MOST_BYTES, VIEW, Desk, Workbench, remove, take, undo
from text2sam.errors import MissingDependencyError, OutputError, StateError, Text2SamError
from text2sam.paint import OBJECT_COLOURS

os.environ.setdefault("GRADIO_RUN_HISTORY", "False")  # nothing of a picture is kept in the browser
try:
    import gradio as gr
except ImportError as error:
    raise MissingDependencyError("gradio", "text2sam app", "app") from error

Updates: TypeAlias = "dict[Any, Any]"
"""New values of components."""

Examples: TypeAlias = "Sequence[tuple[str, NDArray[np.uint8], str]]"
"""Name, picture (H, W, 3) uint8 RGB and a comma list of texts of each example."""

MOST_SESSIONS = 64
"""Pictures of so many people are kept; those of the people who were there first are forgotten."""

SECONDS = 3600
"""So long a picture is kept after its last use, and a download after it was made."""

_HERE = Path(__file__).parent
_LAYERS = {"Objects": "masks", "Similarity map": "heat", "Points": "points"}
_FORMATS = (("PNG", "png"), ("COCO", "coco"), ("labelme", "labelme"))
_CLICKS = [("adds", "add"), ("takes away", "cut"), ("new object", "new")]
_ONE = {"concurrency_id": "desk", "concurrency_limit": 1, "api_visibility": "private"}  # no action overtakes another
_FREE = {"concurrency_limit": None, "api_visibility": "private"}
_STRIP = {"rows": 1, "height": "auto", "show_label": False, "allow_preview": False, "interactive": False, "buttons": []}
_STALE = "the picture is no longer kept here; load the page again"

_CSS = (_HERE / "page.css").read_text(encoding="utf-8") + "\n".join(
    f"#objects label:nth-of-type({len(OBJECT_COLOURS)}n + {k + 1}) {{border-left-color: rgb{colour};}}"
    for k, colour in enumerate(OBJECT_COLOURS)
)

_DOWNLOAD = "(f) => {if (f) {const a = document.createElement('a'); a.href = f.url; a.download = f.orig_name; a.click();}}"

_FOCUS = "() => {if (matchMedia('(pointer: fine)').matches) document.querySelector('#texts :is(textarea, input)')?.focus()}"

_LOOK = """() => {
  const figure = document.querySelector("#figure img");
  figure?.decode().then(() => figure.scrollIntoView({behavior: "smooth", block: "nearest"}));
}"""


_HELP = "<p>Keys: <b>a</b> accept, <b>r</b> reject, <b>n</b> next, <b>b</b> back, <b>u</b> undo, <b>Delete</b> remove</p>"


class _Editor:
    """The picture, the list of its objects, and what corrects them."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.desk = gr.State(None, time_to_live=SECONDS)
        self.message = gr.HTML(visible=False, elem_id="message")

    def left(self) -> None:
        """The picture and what a click does."""
        self.picture = gr.Image(
            interactive=False, show_label=False, format="jpeg", buttons=["fullscreen"], elem_id="picture", container=False
        )
        with gr.Row(elem_id="tools"):
            self.mode = gr.Radio(_CLICKS, value="add", label="A click on the picture", elem_id="mode", scale=3, min_width=320)
            self.undo = gr.Button("Undo", size="sm", elem_id="undo", min_width=64)
            self.remove = gr.Button("Remove", size="sm", elem_id="remove", min_width=64)
            self.why = gr.Button("Why?", size="sm", elem_id="why", min_width=64)

    def right(self) -> None:
        """The objects, what else they might be, and the layers."""
        self.objects = gr.Radio([], label="Objects", elem_id="objects", visible=False)
        self.hint = gr.HTML(
            "<p>SAM's masks for the chosen object; click to take another</p>", elem_classes="hint", visible=False
        )
        self.masks = gr.Gallery(columns=3, object_fit="contain", elem_id="masks", visible=False, **_STRIP)
        with gr.Group() as self.settings:
            self.layers = gr.CheckboxGroup(list(_LAYERS), value=["Objects", "Points"], label="Show", elem_id="layers")
            self.alpha = gr.Slider(0, 1, 0.5, step=0.05, label="Overlay", elem_id="alpha")

    def below(self) -> None:
        """The figure that explains an answer."""
        self.figure = gr.Image(
            interactive=False, show_label=False, buttons=["fullscreen"], format="png", visible=False, elem_id="figure"
        )

    @property
    def view(self) -> list[Any]:
        """The components that say what is drawn."""
        return [self.layers, self.alpha]

    @property
    def shown(self) -> list[Any]:
        """The components that :meth:`show` and :meth:`acts` change."""
        return [self.desk, self.message, self.picture, self.objects, self.hint, self.masks, self.figure]

    def show(self, desk: Desk, layers: Sequence[str], alpha: float) -> Updates:
        """A desk as it stands."""
        rows, masks = desk.rows, desk.candidates()
        choices = [(row.label, _place(row.place)) for row in rows]
        return {
            self.desk: desk,
            self.message: _message(desk.notes),
            self.picture: _drawn(desk, layers, alpha),
            self.objects: gr.update(choices=choices, value=_place(desk.chosen) if rows else None, visible=bool(rows)),
            self.hint: gr.update(visible=len(masks) > 1),
            self.masks: gr.update(value=masks, columns=max(3, len(masks)), selected_index=None, visible=len(masks) > 1),
            self.figure: gr.update(value=None, visible=False),
        }

    def acts(self, action: Callable[..., Desk]) -> Callable[..., Updates]:
        """An action from desk to desk as a handler of (desk, layers, alpha, ...); an error becomes a message."""

        def handler(desk: Desk | None, layers: Sequence[str], alpha: float, *more: Any) -> Updates:
            if desk is None:
                raise StateError(_STALE)
            return self.show(action(desk, *more), layers, alpha)

        return self.catching(handler)

    def catching(self, handler: Callable[..., Updates]) -> Callable[..., Updates]:
        """A handler whose errors become messages on the page."""

        @functools.wraps(handler)
        def wrapped(*values: Any) -> Updates:
            try:
                return handler(*values)
            except Text2SamError as error:
                return {self.message: _message([str(error)])}

        return wrapped

    def connect(self) -> None:
        """The actions that both pages have."""
        inputs = [self.desk, *self.view]

        def click(desk: Desk | None, layers: Sequence[str], alpha: float, mode: str, event: gr.SelectData) -> Updates:
            def action(desk: Desk) -> Desk:
                point = [(value + 0.5) / _times(desk) - 0.5 for value in event.index]
                return self.bench.click(desk, point, positive=mode != "cut", new=mode == "new")

            return {**self.acts(action)(desk, layers, alpha), self.mode: "cut" if mode == "cut" else "add"}

        def candidate(desk: Desk | None, layers: Sequence[str], alpha: float, event: gr.SelectData) -> Updates:
            return self.acts(lambda desk: take(desk, event.index))(desk, layers, alpha)

        def redraw(desk: Desk | None, layers: Sequence[str], alpha: float) -> Any:
            return gr.skip() if desk is None else _drawn(desk, layers, alpha)

        def why(desk: Desk | None) -> Any:
            with self.bench.talking():  # matplotlib warns of letters it lacks
                figure = None if desk is None else desk.explain()
            return gr.skip() if figure is None else gr.update(value=figure, visible=True)

        choose = self.acts(lambda desk, place: desk.choose(place.split("/")))
        self.picture.select(click, [*inputs, self.mode], [*self.shown, self.mode], trigger_mode="multiple", **_ONE)
        self.masks.select(candidate, inputs, self.shown, **_ONE)
        self.objects.input(choose, [*inputs, self.objects], self.shown, **_ONE)
        self.undo.click(self.acts(undo), inputs, self.shown, trigger_mode="multiple", **_ONE)
        self.remove.click(self.acts(remove), inputs, self.shown, **_ONE)
        for change in (self.layers.input, self.alpha.release):
            change(redraw, inputs, self.picture, show_progress="hidden", trigger_mode="always_last", **_FREE)
        self.why.click(why, self.desk, self.figure, **_FREE).then(None, None, None, js=_LOOK)


def picture_page(bench: Workbench, examples: Examples = ()) -> gr.Blocks:
    """The page for pictures that people bring.

    Args:
        bench: the model.
        examples: pictures to begin with.
    """
    downloads = tempfile.TemporaryDirectory(prefix="text2sam-app-")
    with _blocks() as blocks:
        blocks.text2sam_downloads = downloads  # lives as long as the page
        editor = _Editor(bench)
        with gr.Column(elem_id="start") as start:
            upload = gr.Image(
                sources=["upload"],
                type="filepath",
                show_label=False,
                placeholder="Drop a picture here, paste it, or click to pick one",
                height=280,
                elem_id="upload",
            )
            upload.preprocess = lambda file: getattr(file, "path", None)  # the workbench opens files, within its limits
            gr.HTML("<p>or begin with one of these</p>", elem_classes="hint", visible=bool(examples))
            gallery = gr.Gallery(
                [(picture, name) for name, picture, _ in examples],
                columns=max(len(examples), 1),
                object_fit="cover",
                visible=bool(examples),
                elem_id="examples",
                **_STRIP,
            )
        with gr.Column(visible=False, elem_id="work") as work:
            with gr.Row(elem_id="ask"):
                texts = gr.Textbox(label="Find", placeholder="cat, dog", scale=4, min_width=200, elem_id="texts")
                exclude = gr.Textbox(label="Leave out", placeholder="optional", scale=2, min_width=120, elem_id="exclude")
                find = gr.Button("Find", variant="primary", scale=1, min_width=90, elem_id="find")
                again = gr.Button("New picture", scale=1, min_width=130, elem_id="again")
            with gr.Row():
                with gr.Column(scale=3, min_width=440):
                    editor.left()
                with gr.Column(scale=2, min_width=320):
                    editor.right()
                    with editor.settings:
                        limit = bench.model.presence_threshold
                        threshold = gr.Slider(0, 1, limit, step=0.01, label="Presence needed", elem_id="threshold")
                    with gr.Row(elem_id="save"):
                        saves = [
                            (gr.Button(f"↓ {name}", size="sm", min_width=80, elem_id=kind), kind) for name, kind in _FORMATS
                        ]
            editor.below()
        file = gr.File(visible=False)

        wanted = [texts, exclude, threshold]
        everything = [*editor.shown, start, work, upload, texts, exclude]
        inputs = [editor.desk, *editor.view]
        opened = {start: gr.update(visible=False), work: gr.update(visible=True), upload: None}

        def load(path: str | None, layers: Sequence[str], alpha: float) -> Updates:
            if path is None:
                return {upload: None}
            try:
                return {**editor.show(bench.open(path), layers, alpha), **opened, texts: "", exclude: ""}
            except Text2SamError as error:
                return {editor.message: _message([str(error)]), upload: None}

        def example(layers: Sequence[str], alpha: float, limit: float, event: gr.SelectData) -> Updates:
            name, picture, names = examples[event.index]
            desk = bench.ask(bench.start(picture, name), names, "", limit)
            return {**editor.show(desk, layers, alpha), **opened, texts: names, exclude: ""}

        def reset() -> Updates:
            return {
                editor.desk: None,
                editor.message: _message(()),
                editor.picture: None,
                start: gr.update(visible=True),
                work: gr.update(visible=False),
                upload: None,
            }

        def save(desk: Desk | None, format: str) -> Updates:
            if desk is None:
                raise StateError(_STALE)
            for old in Path(downloads.name).iterdir():
                if old.stat().st_mtime < time.time() - SECONDS:
                    for part in old.iterdir():
                        part.unlink(missing_ok=True)
            return {file: str(desk.save(tempfile.mkdtemp(dir=downloads.name), format))}

        upload.input(load, [upload, *editor.view], everything, **_ONE).then(None, None, None, js=_FOCUS)
        upload.clear(reset, None, everything, **_ONE)
        gallery.select(editor.catching(example), [*editor.view, threshold], everything, **_ONE)
        again.click(reset, None, everything, **_ONE)
        gr.on(
            [find.click, texts.submit, exclude.submit, threshold.release],
            editor.acts(bench.ask),
            [*inputs, *wanted],
            editor.shown,
            trigger_mode="always_last",
            **_ONE,
        )
        for button, kind in saves:
            made = button.click(
                editor.catching(functools.partial(save, format=kind)), editor.desk, [file, editor.message], **_FREE
            )
            made.success(None, file, None, js=_DOWNLOAD)
        editor.connect()
    return blocks


def folder_page(job: FolderJob) -> gr.Blocks:
    """The page for a folder, picture by picture."""
    with _blocks() as blocks:
        editor = _Editor(job.bench)
        index = gr.State(0)
        progress = gr.HTML(elem_id="progress")
        with gr.Row(elem_id="decide"):
            back = gr.Button("← Back", min_width=60, size="md", elem_id="back")
            reject = gr.Button("Reject", min_width=60, size="md", elem_id="reject")
            accept = gr.Button("Accept", variant="primary", min_width=60, size="md", elem_id="accept")
            following = gr.Button("Next →", min_width=60, size="md", elem_id="next")
        with gr.Row():
            with gr.Column(scale=3, min_width=440):
                editor.left()
            with gr.Column(scale=2, min_width=320):
                editor.right()
                gr.HTML(_HELP, elem_classes=["hint", "wide"])
        editor.below()

        everything = [*editor.shown, index, progress]

        def turn(to: int, layers: Sequence[str], alpha: float) -> Updates:
            to = min(max(to, 0), len(job) - 1)
            where = {index: to, progress: _progress(job, to)}
            try:
                return {**editor.show(job.open(to), layers, alpha), **where}
            except Text2SamError as error:  # a picture that cannot be read is no reason to stop
                empty = {editor.desk: None, editor.picture: None}
                hidden = {part: gr.update(visible=False) for part in (editor.objects, editor.hint, editor.masks, editor.figure)}
                return {**empty, **hidden, **where, editor.message: _message([f"{job.name(to)}: {error}"])}

        def take_in(desk: Desk | None, at: int, layers: Sequence[str], alpha: float) -> Updates:
            if desk is None:
                raise StateError("there is no picture to accept; reject it, or go on")
            job.accept(at, desk)
            return turn(job.after(at + 1), layers, alpha)

        def leave_out(at: int, layers: Sequence[str], alpha: float) -> Updates:
            job.reject(at)
            return turn(job.after(at + 1), layers, alpha)

        at = [index, *editor.view]
        blocks.load(lambda *view: turn(job.after(0), *view), editor.view, everything, **_ONE)
        accept.click(editor.catching(take_in), [editor.desk, *at], everything, **_ONE)
        reject.click(editor.catching(leave_out), at, everything, **_ONE)
        back.click(lambda at, *view: turn(at - 1, *view), at, everything, **_ONE)
        following.click(lambda at, *view: turn(at + 1, *view), at, everything, **_ONE)
        editor.connect()
    return blocks


def serve(blocks: gr.Blocks, *, host: str = "127.0.0.1", port: int | None = None, browser: bool = False) -> str:
    """Starts a page's server in threads of its own.

    Args:
        blocks: the page.
        host, port: where it listens; None is a free port from 7860 on.
        browser: open it in a browser.

    Returns:
        The address; one that is taken is an OutputError.
    """
    blocks.queue(max_size=MOST_SESSIONS)
    if hasattr(blocks._queue, "pending_event_ids_session"):
        blocks._queue.pending_event_ids_session = _Streams()
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            _frontend=False,  # or a page that does not answer within 3 s, on a busy machine, counts as unreachable
            max_file_size=MOST_BYTES,
            state_session_capacity=MOST_SESSIONS,
            enable_monitoring=False,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(
                primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=_CSS,
            js=(_HERE / "page.js").read_text(encoding="utf-8"),
        )
    except OSError as error:
        raise OutputError(f"the page cannot be served at {host}:{port or 7860}: {error}; give another --port") from error
    return str(address)


def close(blocks: gr.Blocks) -> None:
    """Ends a page's server at once, though browsers wait for answers on streams that stay open."""
    if blocks.server is not None:
        blocks.server.force_exit = True
        logging.getLogger("uvicorn.error").disabled = True  # it would print each stream's end as an error
    blocks.close(verbose=False)


class _Streams(dict[str, set[str]]):
    """Gradio's events under way in each browser tab, with one that never ends.

    Gradio closes a tab's stream of answers after the last event. The answer to an action that the tab begins before it knows
    of that is never shown: on a busy machine "Accept" was done, but the page stayed where it was. So streams stay open.
    """

    def __setitem__(self, session: str, events: set[str]) -> None:
        super().__setitem__(session, events | {"open"})


def _blocks() -> gr.Blocks:
    blocks = gr.Blocks(title="text2sam", analytics_enabled=False, fill_width=True, delete_cache=(SECONDS, SECONDS))
    with blocks:
        gr.HTML("<h1>text2sam</h1><p>Name a thing, get its mask, correct it by clicks.</p>", elem_id="title")
    return blocks


def _place(place: Sequence[int]) -> str:
    return "/".join(map(str, place))


def _times(desk: Desk) -> int:
    """How many times a small picture is enlarged here: Gradio misplaces clicks on a picture that the browser enlarges, which is
    why the style sheet only scales down."""
    return -(-VIEW // max(desk.small.shape))


def _drawn(desk: Desk, layers: Sequence[str], alpha: float) -> NDArray[np.uint8]:
    from PIL import Image

    picture = Image.fromarray(desk.draw(**{layer: name in layers for name, layer in _LAYERS.items()}, alpha=alpha))
    return np.asarray(picture.resize((_times(desk) * picture.width, _times(desk) * picture.height)))


def _message(lines: Sequence[str]) -> Any:
    """What the page says; nothing where there are no lines."""
    return gr.update(value="<br>".join(html.escape(line) for line in lines), visible=bool(lines))


def _progress(job: FolderJob, index: int) -> str:
    counts = Counter(job.states)
    figures = ", ".join(f"{counts[name]} {name}" for name in ("accepted", "rejected", "failed") if counts[name])
    state = f" · {job.states[index]}" if job.states[index] else ""
    end = "" if counts[""] else f" · all done, the dataset is in {html.escape(str(job.run.folder.out))}"
    where = f"picture {index + 1} of {len(job)}{': ' if figures else ''}{figures}{end}"
    return f"<p><b>{html.escape(job.name(index))}</b>{state} &nbsp; {where}</p>"
