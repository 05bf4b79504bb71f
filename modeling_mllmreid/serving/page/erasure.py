"""The tab Gallery: counts, and the erasure of rows that a human has looked at."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ...gallery.audit import query_digest
from ...gallery.gallery import Limit
from ...gallery.results import Hit, counted
from ...utils.errors import UserError
from ..service import GalleryService
from .forms import kept, listed, photos_field, shown, toggled, typed_conditions, uploaded_photos, user
from .pictures import MOST_SHOWN, grid, row_pictures


def gallery_tab(service: GalleryService, tab: gr.Tab) -> None:
    """Lays out the tab."""
    counts = gr.Textbox(label="Counts", interactive=False, lines=4, elem_id="counts", elem_classes="answer")
    gr.Markdown("### Erase rows\nThose that show the person on a photo, those that meet conditions, or both.")
    with gr.Row():
        with gr.Column(min_width=260):
            photos = photos_field("delete-photos")
            any_shape = gr.Checkbox(label="Photos may be wider than a person (any_shape)")
        with gr.Column(min_width=260):
            cameras = gr.Textbox(label="Cameras", placeholder="all; or 1, 3", elem_id="delete-cameras")
            conditions = gr.Textbox(label="Conditions", placeholder="person=Ida", elem_id="delete-conditions")
            largest = gr.Textbox(
                label="Largest distance to the photos (threshold)", placeholder="that of the model", elem_id="largest"
            )
    preview = gr.Button("Show the rows", variant="primary", elem_id="preview")
    answer = gr.Textbox(label="Result", interactive=False, lines=2, elem_id="erased", elem_classes="answer")
    rows = grid("Click rows to keep them, or kept ones to have them erased", "rows", marks=True)
    erase = _eraser(0)
    # All rows that were found, those of them that are shown, those that are kept, and the digest of the photos.
    ids, hits, spared, digest = kept([]), kept([]), kept([]), kept(None)

    @shown(answer)
    def look(photos: Any, shape: bool, cameras: str, typed: str, largest: str, request: gr.Request) -> Any:
        where, limit = typed_conditions(cameras, conditions=typed), _distance(largest)
        sent = uploaded_photos(photos, shape)
        if not sent and limit != "model":
            raise UserError("threshold: is a distance to photos, and there is none: give a photo, or leave it out")
        if sent:
            found, beyond = service.find_person(sent, where=where, threshold=limit, who=user(request))
        else:
            found, beyond = service.find(where), []
        text = counted(len(found), "row") + (": click those to keep, and erase the others" if found else "")
        if len(found) > MOST_SHOWN:
            text = f"{len(found):,} rows, the first {MOST_SHOWN} are shown"
        if sent and len(found) > MOST_SHOWN:
            # Conditions are exact, a distance is not: only what a human has looked at is erased.
            found, text = found[:MOST_SHOWN], f"{text}: erase them, and show the others afterwards"
        # A threshold misses some images of a person: the next ones are kept unless somebody clicks them.
        beyond = beyond[: MOST_SHOWN - len(found[:MOST_SHOWN])]
        if beyond:
            text += f"\n{counted(len(beyond), 'row')} beyond the threshold: kept, click those that show the person too"
        names, first = [hit.id for hit in (*found, *beyond)], [*found[:MOST_SHOWN], *beyond]
        spared = [hit.id for hit in beyond]
        query = query_digest([photo.content for photo in sent]) if sent else None
        pictures = row_pictures(service, first, kept=spared)
        return text, pictures, _eraser(len(found)), names, first, spared, query

    @shown(answer)
    def keep(ids: list[str], hits: list[Hit], spared: list[str], event: gr.SelectData) -> Any:
        spared = toggled(spared, listed(hits, event.index).id)
        return row_pictures(service, hits, kept=spared), _eraser(len(ids) - len(spared)), spared, gr.skip()

    @shown(answer)
    def delete(ids: Sequence[str], spared: Sequence[str], query: str | None, request: gr.Request) -> Any:
        gone = set(ids) - set(spared)
        listed(sorted(gone), 0)
        erased = service.delete(sorted(gone), query=query, who=user(request))
        return f"{counted(erased.rows, 'row')} erased, traces: {erased.traces.count}", [], _eraser(0), [], [], [], None

    def disarm() -> Any:
        """Only what is shown can be erased: nothing after a change of the form, or a mistake in it."""
        return "", [], _eraser(0), [], [], [], None

    def count() -> str:
        return _counts(service)

    tab.select(shown(counts)(count), None, counts, queue=False)
    form, armed = [photos, any_shape, cameras, conditions, largest], [answer, rows, erase, ids, hits, spared, digest]
    for field in (cameras, conditions, largest, any_shape):
        field.input(disarm, None, armed, queue=False)
    photos.change(disarm, None, armed, queue=False)
    preview.click(disarm, None, armed, queue=False).then(look, form, armed)
    rows.select(keep, [ids, hits, spared], [rows, erase, spared, answer], trigger_mode="multiple")
    erase.click(delete, [ids, spared, digest], armed).then(shown(counts)(count), None, counts, queue=False)


def _eraser(count: int) -> gr.Button:
    """Returns the button that erases; it cannot be clicked if there is nothing to erase."""
    rows = counted(count, "row") if count else "these rows"
    return gr.Button(f"Erase {rows} for good", variant="stop", interactive=count > 0, elem_id="erase")


def _distance(text: str | None) -> Limit:
    """Reads a threshold that was typed. Raises UserError if it is no distance."""
    if not (text or "").strip():
        return "model"
    try:
        distance = float(str(text))
    except ValueError:
        distance = -1.0
    if not 0 <= distance <= 2:
        raise UserError(f"threshold {str(text)[:40]!r}: is no cosine distance: give a number from 0 to 2")
    return distance


def _counts(service: GalleryService) -> str:
    """Returns what is in the gallery as lines."""
    info = service.info()
    cameras = ", ".join(f"{camera}: {rows:,}" for camera, rows in info["cameras"].items())
    times = f"{info['first'] or 'unknown'} to {info['last'] or 'unknown'}"
    return (
        f"{counted(info['rows'], 'row')} ({info['expired']:,} expired), {counted(info['persons'], 'named person')}\n"
        f"rows of each camera: {cameras or 'none'}\ntimes: {times}\nmodel: {info['model']['model']}"
    )
