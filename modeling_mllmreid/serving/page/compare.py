"""The tab Compare: two crops, their distance and probability, and the places that are alike."""

from typing import Any

import gradio as gr

from ...gallery.results import probability_note
from ...retrieval.sheet import decimals
from ...text.reasons import NOTE
from ...utils.errors import UserError
from ..service import Comparison, GalleryService
from .forms import shown, uploaded_photos, user
from .pictures import grid


def compare_tab(service: GalleryService, tab: gr.Tab) -> None:
    """Lays out the tab."""
    with gr.Row():
        first = gr.File(label="First crop", file_types=["image"], height=150, elem_id="first")
        second = gr.File(label="Second crop", file_types=["image"], height=150, elem_id="second")
    any_shape = gr.Checkbox(label="Crops may be wider than a person (any_shape)")
    describe = gr.Checkbox(
        label="Let the model describe both crops (generated text)",
        visible=service.describes(),
        elem_id="describe",
    )
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    answer = gr.Textbox(label="Result", interactive=False, lines=3, elem_id="comparison", elem_classes="answer")
    overlay = grid("Orange places are alike, blue ones differ", "compared", large=True)

    @shown(answer)
    def compare(first: Any, second: Any, shape: bool, reasons: bool, request: gr.Request) -> Any:
        photos = [*uploaded_photos(first, shape), *uploaded_photos(second, shape)]
        if len(photos) != 2:
            raise UserError("compare: give two crops")
        one, other = photos
        result = service.compare(one, other, reasons=reasons, who=user(request))
        with service.opened([one, other]) as (first_crop, second_crop):
            drawn = service.overlay([first_crop], second_crop)
        return comparison(result), list(zip(drawn, ["first", "second"], strict=True))

    # A mistake leaves no older result next to it.
    cleared = button.click(lambda: ("", []), None, [answer, overlay], show_progress="hidden", queue=False)
    cleared.then(compare, [first, second, any_shape, describe], [answer, overlay])


def comparison(result: Comparison) -> str:
    """Returns the result of a comparison as text."""
    text = f"cosine distance {result.distance:.{decimals([result.distance])}f}"
    if result.threshold is not None:
        side = "within" if result.distance <= result.threshold else "beyond"
        text += f", {side} the threshold of a search {result.threshold:.{decimals([result.threshold])}f}"
    if result.probability is not None:
        text += (
            f"\nembedding: {result.probability:.1%} probability of one person, if half of the compared pairs are one"
        )
    if result.pair_probability is not None and result.pair_top is not None and result.pair_gallery is not None:
        note = probability_note(result.pair_top, result.pair_gallery)
        text += f"\npair model: {result.pair_probability:.1%} probability of one person; it {note}"
    if result.reason is not None:
        first, second = f"first: {result.reason.first}", f"second: {result.reason.second}"
        lines = ["", f"What the model writes about each crop ({NOTE})", first, second]
        text += "\n".join(["", *lines, *result.reason.lines("first", "second")])
    return text
