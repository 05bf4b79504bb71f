"""The tab Search: photos or words, conditions, the ranking, and where a result and the query are alike."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..service import MOST_VERIFIED, GalleryService
from .forms import kept, listed, photos_field, shown, typed_conditions, uploaded_photos, user
from .pictures import MOST_SHOWN, found_pictures, grid, verdict


@dataclass(frozen=True)
class Asked:
    """What was searched with. The uploads themselves stay where they are, and are removed when their time has come.

    Args:
        files (`list[str]`): Paths of the photos.
        any_shape (`bool`): Whether they may be wider than a person.
        words (`str`): The words, if there was no photo.
    """

    files: list[str]
    any_shape: bool
    words: str


def search_tab(service: GalleryService, tab: gr.Tab) -> None:
    """Lays out the tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            photos = photos_field("photos")
            words = gr.Textbox(label="Or words", placeholder="a woman in a red coat", elem_id="words")
            cameras = gr.Textbox(label="Cameras", placeholder="all; or 1, 3", elem_id="cameras")
            with gr.Accordion("More", open=False):
                since = gr.Textbox(label="Since", placeholder="2026-11-28T08:00:00+01:00")
                until = gr.Textbox(label="Until", placeholder="2026-11-28T18:00:00+01:00")
                conditions = gr.Textbox(label="Conditions", placeholder="source=hall, person=Ida")
                top_k = gr.Slider(1, MOST_SHOWN, 10, step=1, label="Number of results")
                # For a model that compares pairs.
                verify_top = gr.Slider(
                    *(0, MOST_VERIFIED, 0),
                    step=1,
                    label="Verify the first N: compare each with the photo (0: none)",
                    visible=service.pair_fusion() is not None,
                    elem_id="verify",
                )
                any_shape = gr.Checkbox(label="Photos may be wider than a person (any_shape)")
            button = gr.Button("Search", variant="primary", elem_id="search")
        with gr.Column(scale=5, min_width=320):
            answer = gr.Textbox(label="Result", interactive=False, elem_id="verdict", elem_classes="answer")
            results = grid("Nearest first", "results")
            overlay = grid("Click a result: orange is alike, blue differs", "overlay", large=True)
    ids, asked = kept([]), kept(None)

    @shown(answer)
    def search(
        photos: Any,
        words: str,
        cameras: str,
        since: str,
        until: str,
        where: str,
        k: int,
        verify: int,
        shape: bool,
        request: gr.Request,
    ) -> Any:
        query = Asked(photos or [], shape, words.strip())
        conditions = typed_conditions(cameras, since, until, where)
        sent = uploaded_photos(query.files, shape)
        options: dict[str, Any] = {"k": int(k), "verify_top": int(verify), "who": user(request)}
        found = service.search(sent, words=query.words, where=conditions, **options)
        return verdict(found), found_pictures(service, found), [], [hit.id for hit in found.hits], query

    @shown(None, overlay)
    def explain(ids: list[str], query: Asked | None, event: gr.SelectData) -> Any:
        row, name = listed(ids, event.index), f"result {event.index + 1}"
        query = listed([query] if query else [], 0)
        photos = uploaded_photos(query.files, query.any_shape)
        names = ["query"] if len(photos) == 1 else [f"query {place}" for place in range(1, len(photos) + 1)]
        last = name if photos else f"{name}: orange places are alike to the words"
        return list(zip(service.explain(row, photos, query.words), [*names, last], strict=True))

    inputs = [photos, words, cameras, since, until, conditions, top_k, verify_top, any_shape]
    found = [answer, results, overlay, ids, asked]
    # A mistake leaves no older result next to it.
    cleared = button.click(lambda: ("", [], [], [], None), None, found, show_progress="hidden", queue=False)
    cleared.then(search, inputs, found, show_progress="minimal")
    results.select(explain, [ids, asked], overlay, trigger_mode="always_last")
