"""`serve`: a gallery over HTTP, with the model loaded once."""

import os
import signal
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import uvicorn

from ..gallery.audit import audit_of
from ..gallery.gallery import Gallery
from ..model.shipped_models import shipped_folder
from ..options.gallery_arguments import GalleryModelArguments, PlaceArguments, ServeArguments, storage_options
from ..options.parser import parse
from ..serving.protection import Access
from ..serving.server import build_app, protected
from ..serving.service import GalleryService
from ..utils.errors import UserError

# Seconds that running requests get after SIGTERM.
GRACE = 20


def main(argv: list[str]) -> None:
    """Serves until SIGTERM or an interrupt; running requests are answered first."""
    place, args, model = parse((PlaceArguments, ServeArguments, GalleryModelArguments), argv, "serve")
    access = Access.of(args.host, args.user)
    gallery = Gallery(place.gallery, model.model, storage_options(place.storage_options))
    listener = _listen(args.host, args.port)
    service = GalleryService(gallery, audit_of(place.gallery, place.audit, place.audit_days))
    # uvicorn finishes its work at a signal, and then raises it again.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    # Gradio keeps uploads and pictures in this folder. They show people.
    with tempfile.TemporaryDirectory(prefix="mllmreid-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        app = build_app(service)
        if args.page or (args.page is None and find_spec("gradio") is not None):
            from ..serving.page import mount_page  # it takes seconds to import

            app = mount_page(app, service, _card(gallery.metadata.model))
        servers: list[uvicorn.Server] = []
        protection = protected(app, access, args.host, lambda: servers[0].should_exit)
        config = uvicorn.Config(protection, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE)
        servers.append(uvicorn.Server(config))
        shown = f"[{args.host}]" if ":" in args.host else args.host
        print(f"{place.gallery}: http://{shown}:{listener.getsockname()[1]} (Ctrl+C stops it)", flush=True)
        servers[0].run(sockets=[listener])


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
