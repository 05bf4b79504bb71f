"""`serve`: a gallery over HTTP, with the model loaded once."""

from ..gallery.audit import audit_of
from ..gallery.gallery import Gallery
from ..options.gallery_arguments import GalleryModelArguments, PlaceArguments, ServeArguments, storage_options
from ..options.parser import parse
from ..serving.protection import Access
from ..serving.running import run_server


def main(argv: list[str]) -> None:
    """Serves until SIGTERM or an interrupt; running requests are answered first."""
    place, args, model = parse((PlaceArguments, ServeArguments, GalleryModelArguments), argv, "serve")
    access = Access.of(args.host, args.user)
    gallery = Gallery(place.gallery, model.model, storage_options(place.storage_options))
    audit = audit_of(place.gallery, place.audit, place.audit_days)
    run_server(gallery, audit, access, args.host, args.port, args.page)
