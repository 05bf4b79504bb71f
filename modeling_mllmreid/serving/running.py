"""Runs the server of a gallery until it is stopped."""

import os
import signal
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ..gallery.audit import Audit
from ..gallery.gallery import Gallery
from ..model.shipped_models import shipped_folder
from ..utils.errors import UserError
from ..utils.outputs import scratch_folder
from .protection import NO_FRAMES, Access
from .server import build_app, protected
from .service import GalleryService

# Seconds that running requests get after SIGTERM.
GRACE = 20


def run_server(
    gallery: Gallery,
    audit: Audit,
    access: Access,
    host: str,
    port: int,
    page: bool | None = None,
    frames: str = NO_FRAMES,
) -> None:
    """Serves until SIGTERM or an interrupt; running requests are answered first.

    Args:
        gallery ([`Gallery`]): The gallery.
        audit ([`Audit`]): Its audit trail.
        access ([`Access`]): Who may use the server.
        host (`str`): The address that it listens on.
        port (`int`): The port; 0 for a free one.
        page (`bool`, *optional*): Whether it has the page; by default, if Gradio is installed.
        frames (`str`): Sites that may show the page in a frame; by default none.

    Raises:
        UserError: The address cannot be used, or the model cannot be loaded.
    """
    import uvicorn

    listener = _listen(host, port)
    service = GalleryService(gallery, audit)
    # uvicorn finishes its work at a signal, and then raises it again.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    # Gradio keeps uploads and pictures in this folder. They show people. Folders of killed servers are removed.
    with scratch_folder(Path(tempfile.gettempdir(), f"mllmreid-page-{os.getuid()}")) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        app = build_app(service)
        if page or (page is None and find_spec("gradio") is not None):
            from .page import mount_page  # it takes seconds to import

            app = mount_page(app, service, _card(gallery.metadata.model))
        servers: list[uvicorn.Server] = []
        protection = protected(app, access, host, lambda: servers[0].should_exit, frames)
        config = uvicorn.Config(protection, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE)
        servers.append(uvicorn.Server(config))
        shown = f"[{host}]" if ":" in host else host
        print(f"{gallery.store.place}: http://{shown}:{listener.getsockname()[1]} (Ctrl+C stops it)", flush=True)
        try:
            servers[0].run(sockets=[listener])
        finally:
            cut = f"; uploads that were not complete: {protection.unfinished}" if protection.unfinished else ""
            print(f"stopped{cut}", flush=True)


def _card(model: str) -> str | None:
    """Returns the card of a model in a folder or in this package, without its metadata."""
    path = Path(shipped_folder(model), "README.md")
    return path.read_text(encoding="utf-8").rpartition("\n---\n")[2] if path.is_file() else None


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. Raises UserError if the address is not this machine's, or in use."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be used ({error.strerror}): give another host or port") from error
    return listener
