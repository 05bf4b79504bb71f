"""The page of a gallery: layout alone. What it does is in `service.py`."""

import html
import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import
try:
    import gradio as gr
except ImportError as error:
    raise ImportError("the page needs the extra `page`: pip install 'mllmreid[page]'") from error

from ..gallery.report import decision_line, group_line
from ..retrieval.sheet import decimals
from ..utils.errors import UserError
from .forms import typed_conditions, uploaded_photos
from .page_texts import ABOUT, CSS, NOTE
from .pictures import caption, result_pictures, verdict
from .service import PHOTO_BYTES, GalleryService

SHOWN_GROUPS, MOST_SHOWN = 30, 50


def build_page(service: GalleryService, card: str | None = None) -> gr.Blocks:
    """Builds the page.

    Args:
        service ([`GalleryService`]): The gallery.
        card (`str`, *optional*): The model's card in Markdown.

    Returns:
        `gr.Blocks`
    """
    with gr.Blocks(title="Person gallery", analytics_enabled=False, delete_cache=(600, 1800)) as page:
        gr.Markdown(f"# Person gallery\n{NOTE}")
        with gr.Tabs(overflow_behavior="wrap"):
            for name, tab in TABS.items():
                with gr.Tab(name):
                    tab(service)
            with gr.Tab("About"):
                gr.Markdown(ABOUT)
                gr.Markdown(card or "", elem_classes="card")
    built: gr.Blocks = page
    return built


def mount_page(app: Any, service: GalleryService, card: str | None = None) -> Any:
    """Serves the page at the root of an application, with fonts of the reader's own system.

    Args:
        app (`FastAPI`): The application.
        service ([`GalleryService`]): The gallery.
        card (`str`, *optional*): The model's card in Markdown.

    Returns:
        `FastAPI`
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = build_page(service, card)
    options = {"max_file_size": PHOTO_BYTES, "ssr_mode": False, "run_history": False, "footer_links": []}
    return gr.mount_gradio_app(app, page, "/", theme=theme, css=CSS, **options)


def _search_tab(service: GalleryService) -> None:
    """Search by photos or words; a click on a result shows which places of both crops are alike."""
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            photos = gr.File(label="Photos of one person", file_count="multiple", file_types=["image"], height=150)
            words = gr.Textbox(label="Or words", placeholder="a woman in a red coat", elem_id="words")
            cameras = gr.Textbox(label="Cameras", placeholder="all; or 1, 3", elem_id="cameras")
            with gr.Accordion("More", open=False):
                since = gr.Textbox(label="Since", placeholder="2026-11-28T08:00:00+01:00")
                until = gr.Textbox(label="Until", placeholder="2026-11-28T18:00:00+01:00")
                conditions = gr.Textbox(label="Conditions", placeholder="source=hall, person=Ida")
                top_k = gr.Slider(1, MOST_SHOWN, 10, step=1, label="Number of results")
                any_shape = gr.Checkbox(label="Photos may be wider than a person")
            button = gr.Button("Search", variant="primary", elem_id="search")
        with gr.Column(scale=3, min_width=320):
            answer = gr.Textbox(label="Result", interactive=False, elem_id="verdict")
            results = _pictures("Nearest", 5, elem_id="results")
            overlay = _pictures("Click a result: orange places are alike, blue ones differ", 2, elem_id="overlay")
    ids = gr.State([])

    @_shown
    def search(
        photos: Any,
        words: str,
        cameras: str,
        since: str,
        until: str,
        where: str,
        k: int,
        shape: bool,
        request: gr.Request,
    ) -> Any:
        asked: dict[str, Any] = {"where": typed_conditions(cameras, since, until, where), "who": _user(request)}
        found = service.search(uploaded_photos(photos, shape), words=words.strip(), k=int(k), **asked)
        digits = decimals([hit.distance for hit in found.hits])
        drawn = result_pictures(service.pictures([hit.id for hit in found.hits]), found.hits)
        captions = [caption(hit, place, digits) for place, hit in enumerate(found.hits, start=1)]
        return verdict(found), list(zip(drawn, captions, strict=True)), [hit.id for hit in found.hits], []

    @_shown
    def explain(photos: Any, ids: list[str], shape: bool, event: gr.SelectData) -> Any:
        picture = service.picture(ids[event.index])
        query, name = uploaded_photos(photos, shape), f"result {event.index + 1}"
        if not query:
            return [(service.overlay(picture, picture)[0], f"{name}: where its feature looked")]
        first, second = service.overlay(query[0].open(), picture)
        return [(first, "query"), (second, name)]

    inputs = [photos, words, cameras, since, until, conditions, top_k, any_shape]
    found = [answer, results, ids, overlay]
    # A mistake leaves no older result next to it.
    cleared = button.click(lambda: ("", [], [], []), None, found, show_progress="hidden")
    cleared.then(search, inputs, found, show_progress="minimal")
    results.select(explain, [photos, ids, any_shape], overlay)


def _compare_tab(service: GalleryService) -> None:
    """Two crops: distance, probability, and the places that are alike."""
    with gr.Row():
        first = gr.File(label="First crop", file_types=["image"], height=150, elem_id="first")
        second = gr.File(label="Second crop", file_types=["image"], height=150, elem_id="second")
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    answer = gr.Textbox(label="Result", interactive=False, lines=2, elem_id="comparison")
    overlay = _pictures("Orange places are alike, blue ones differ", 2, elem_id="compared")

    @_shown
    def compare(first: Any, second: Any, request: gr.Request) -> Any:
        one, other = uploaded_photos(first), uploaded_photos(second)
        if not (one and other):
            raise UserError("compare: give two crops")
        result = service.compare(one[0], other[0], who=_user(request))
        digits = decimals([result.distance])
        text = f"cosine distance {result.distance:.{digits}f}"
        if result.threshold is not None:
            side = "within" if result.distance <= result.threshold else "beyond"
            text += f", {side} the threshold {result.threshold:.{decimals([result.threshold])}f}"
        if result.probability is not None:
            text += f"\n{result.probability:.1%} probability of one person, if half of the compared pairs are one"
        return text, [*service.overlay(one[0].open(), other[0].open())]

    button.click(compare, [first, second], [answer, overlay])


def _people_tab(service: GalleryService) -> None:
    """Groups of unknown people, and decisions."""
    button = gr.Button("Group the crops", variant="primary", elem_id="group")
    answer = gr.Textbox(label="Result", interactive=False, lines=2, elem_id="groups")
    choice = gr.Dropdown(label="Group", choices=[], elem_id="choice")
    pictures = _pictures("Crops of this group", 6, elem_id="crops")
    with gr.Row():
        person = gr.Textbox(label="Name", placeholder="a new name is made up if it is empty", elem_id="person")
        new = gr.Textbox(label="New name", elem_id="new")
    with gr.Row():
        confirm = gr.Button("One person", elem_id="confirm")
        rename = gr.Button("Rename", elem_id="rename")
        undo = gr.Button("Undo the newest decision", elem_id="undo")
    made = gr.Textbox(label="Decisions, newest first", interactive=False, lines=4, elem_id="decisions")
    members = gr.State({})

    def listed() -> str:
        return "\n".join(decision_line(one) for one in reversed(service.decisions())) or "none"

    @_shown
    def group() -> Any:
        rows, found = service.groups()
        sizes = [int((found.labels == label).sum()) for label in range(int(found.labels.max(initial=-1)) + 1)]
        largest = sorted((label for label in range(len(sizes)) if sizes[label] > 1), key=lambda label: -sizes[label])
        known = {
            group_line(rows, found.labels == label, label): list(rows.ids[found.labels == label])
            for label in largest[:SHOWN_GROUPS]
        }
        text = f"{len(rows):,} rows, {len(largest):,} groups of two or more"
        for merge in found.merges[:5]:
            text += f"\nperhaps one person: groups {merge.first} and {merge.second}, {merge.confidence:.0%}"
        names = list(known)
        return text, gr.Dropdown(choices=names, value=names[0] if names else None), known, listed()

    @_shown
    def show(choice: str, known: dict[str, list[str]]) -> Any:
        return service.pictures(known.get(choice, [])[:MOST_SHOWN])

    @_shown
    def decide_one(choice: str, known: dict[str, list[str]], person: str, request: gr.Request) -> Any:
        service.decide("confirm", known.get(choice, []), person.strip() or None, who=_user(request))
        return listed()

    @_shown
    def give_name(person: str, new: str, request: gr.Request) -> Any:
        service.decide("rename", person=person.strip(), new=new.strip(), who=_user(request))
        return listed()

    @_shown
    def take_back(request: gr.Request) -> Any:
        return service.decide("undo", who=_user(request)) and listed()

    button.click(group, None, [answer, choice, members, made])
    choice.change(show, [choice, members], pictures)
    confirm.click(decide_one, [choice, members, person], made)
    rename.click(give_name, [person, new], made)
    undo.click(take_back, None, made)


def _gallery_tab(service: GalleryService) -> None:
    """Counts, and the erasure of rows after a look at them."""

    def count() -> str:
        info = service.info()
        cameras = ", ".join(f"{camera}: {rows:,}" for camera, rows in info["cameras"].items())
        times = f"{info['first'] or 'unknown'} to {info['last'] or 'unknown'}"
        return (
            f"{info['rows']:,} rows ({info['expired']:,} expired), {info['persons']:,} named persons\n"
            f"cameras: {cameras or 'none'}\ntimes: {times}\nmodel: {info['model']['model']}"
        )

    counts = gr.Textbox(count, label="Counts", interactive=False, lines=4, elem_id="counts")
    refresh = gr.Button("Refresh")
    gr.Markdown("**Erase rows.** They are shown first.")
    with gr.Row():
        cameras = gr.Textbox(label="Cameras", placeholder="1, 3", elem_id="delete-cameras")
        conditions = gr.Textbox(label="Conditions", placeholder="person=Ida", elem_id="delete-conditions")
    preview = gr.Button("Show the rows", elem_id="preview")
    shown = _pictures("Rows", 8, elem_id="rows")
    erase = gr.Button("Erase these rows for good", variant="stop", interactive=False, elem_id="erase")
    answer = gr.Textbox(label="Result", interactive=False, elem_id="erased")
    ids = gr.State([])

    @_shown
    def look(cameras: str, conditions: str) -> Any:
        hits = service.find(typed_conditions(cameras, "", "", conditions))
        names = [hit.id for hit in hits]
        pictures = service.pictures(names[:MOST_SHOWN])
        text = f"{len(hits):,} rows" + (f", the first {MOST_SHOWN} are shown" if len(hits) > MOST_SHOWN else "")
        return pictures, names, gr.Button(f"Erase these {len(hits):,} rows for good", interactive=bool(hits)), text

    @_shown
    def delete(names: Sequence[str], request: gr.Request) -> Any:
        erased = service.delete(names, who=_user(request))
        text = f"{erased.rows:,} rows erased, traces: {erased.traces.count}"
        return text, [], [], gr.Button("Erase these rows for good", interactive=False), count()

    def disarm() -> Any:
        """Only what is shown can be erased: nothing after a change of the conditions, or a mistake in them."""
        return [], [], gr.Button("Erase these rows for good", interactive=False), ""

    armed = [shown, ids, erase, answer]
    refresh.click(_shown(count), None, counts)
    for field in (cameras, conditions):
        field.input(disarm, None, armed)
    preview.click(disarm, None, armed).then(look, [cameras, conditions], armed)
    erase.click(delete, ids, [answer, ids, shown, erase, counts])


TABS = {"Search": _search_tab, "Compare": _compare_tab, "People": _people_tab, "Gallery": _gallery_tab}


def _pictures(label: str, columns: int, elem_id: str | None = None) -> Any:
    """Returns a grid of crops."""
    classes = ["crops", "large"] if columns == 2 else ["crops"]
    options: dict[str, Any] = {"allow_preview": False, "buttons": [], "interactive": False, "height": "auto"}
    return gr.Gallery(label=label, columns=columns, elem_id=elem_id, elem_classes=classes, **options)


def _shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows a mistake as one line on the page. The text may hold the name of a file: it is no HTML."""

    @wraps(function)
    def run(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (UserError, ImportError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    return run


def _user(request: gr.Request) -> str | None:
    """Returns the user of a request; None without a password, for the user who runs the server."""
    return None if request.request is None else request.request.scope.get("state", {}).get("user")
