"""The page of a gallery: the layout of its tabs. What they do is in `service.py`.

Events that answer at once have `queue=False`. Gradio 6.31 can lose the answer of a queued event that starts while
another one ends, and a button then waits forever.
"""

import os
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import
try:
    import gradio as gr
except ImportError as error:
    raise ImportError("the page needs the extra `page`: pip install 'mllmreid[page]'") from error

from ..server import unknown_paths
from ..service import PHOTO_BYTES, GalleryService
from .compare import compare_tab
from .erasure import gallery_tab
from .forms import KEPT_SECONDS
from .people import people_tab
from .search import search_tab
from .texts import ABOUT, CSS, NOTE

TABS = {"Search": search_tab, "Compare": compare_tab, "People": people_tab, "Gallery": gallery_tab}
# Uploads that are older are removed; seconds between two looks.
CLEANING_SECONDS = 600


def build_page(service: GalleryService, card: str | None = None) -> gr.Blocks:
    """Builds the page.

    Args:
        service ([`GalleryService`]): The gallery.
        card (`str`, *optional*): The model's card in Markdown.

    Returns:
        `gr.Blocks`
    """
    cache = (CLEANING_SECONDS, KEPT_SECONDS)
    with gr.Blocks(title="Person gallery", analytics_enabled=False, delete_cache=cache) as page:
        gr.Markdown(f"# Person gallery\n{NOTE}")
        with gr.Tabs(overflow_behavior="wrap"):
            for name, fill in TABS.items():
                with gr.Tab(name) as tab:
                    fill(service, tab)
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
    unknown_paths(app)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = build_page(service, card)
    options = {"max_file_size": PHOTO_BYTES, "ssr_mode": False, "run_history": False, "footer_links": []}
    return gr.mount_gradio_app(app, page, "/", theme=theme, css=CSS, **options)
