"""The gallery over HTTP: JSON end points, and the page where it is installed."""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from PIL import Image

from ..gallery.filters import Where
from ..gallery.gallery import Limit
from ..gallery.results import Hit
from ..gallery.rows import DIGEST
from ..utils.errors import NotFound, TooLarge, Unavailable, UserError
from .protection import NO_FRAMES, Access, Protection
from .service import PHOTO_BYTES, PICTURE, GalleryService, Photo

try:
    from fastapi import FastAPI, File, Form, Request, UploadFile
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from pydantic import BaseModel
    from starlette.exceptions import HTTPException
    from starlette.routing import Match
except ImportError as error:
    raise ImportError("serve needs the extra `serve`: pip install 'mllmreid[serve]'") from error

# Of a request: two photos of any size that is allowed, or more smaller ones, and the form around them.
MOST_BYTES = 2 * PHOTO_BYTES + 2**20
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
STATUSES = {NotFound: 404, TooLarge: 413, Unavailable: 503, UserError: 400}


class Conditions(BaseModel):
    """Which rows are meant, as in `Where`."""

    cameras: list[int] = []
    since: str | None = None
    until: str | None = None
    where: list[str] = []
    ids: list[str] | None = None

    def built(self) -> Where:
        """Returns the conditions. Raises UserError for one that is not valid."""
        return Where(self.cameras, self.since, self.until, self.where, self.ids)


class Deletion(Conditions):
    """Rows to erase: without `confirm` they are shown; with it, `ids` names those that were shown."""

    confirm: bool = False


class NewDecision(BaseModel):
    """A decision, as in `GalleryService.decide`."""

    action: str
    ids: list[str] = []
    person: str | None = None
    new: str | None = None


def build_app(service: GalleryService) -> FastAPI:
    """Builds the application, without protection.

    Args:
        service ([`GalleryService`]): The gallery.

    Returns:
        `FastAPI`
    """
    app = FastAPI(title="MLLMReID gallery", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")

    @app.exception_handler(UserError)
    def refuse(request: Request, error: UserError) -> JSONResponse:
        status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
        model = service.gallery.encoder.settings().model
        return JSONResponse({"error": str(error).replace(model, _base_name(model))}, status_code=status)

    @app.exception_handler(RequestValidationError)
    def refuse_form(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # Of a body that is no JSON, the place is a number of characters.
        place = () if first["type"] == "json_invalid" else first["loc"][1:]
        name = ".".join(map(str, place)) or "request"
        return JSONResponse({"error": f"{name}: {first['msg']}"[:300]}, status_code=422)

    @app.exception_handler(HTTPException)
    def refuse_request(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code)

    @app.exception_handler(ImportError)
    def refuse_missing(request: Request, error: ImportError) -> JSONResponse:
        return JSONResponse({"error": " ".join(str(error).split())[:300]}, status_code=501)

    @app.exception_handler(Exception)
    def report_fault(request: Request, error: Exception) -> JSONResponse:
        # The server's log has the traceback.
        return JSONResponse({"error": f"a fault of the server, not yours: {type(error).__name__}"}, status_code=500)

    @app.get("/health")
    async def health() -> dict[str, str]:  # it waits for no thread
        return {"status": "ok"}

    @app.get("/api/info")
    def info() -> dict[str, Any]:
        found = service.info()
        found["model"]["model"] = _base_name(found["model"]["model"])
        return found

    @app.post("/api/search")
    def search(
        request: Request,
        photos: Annotated[list[UploadFile], File()] = [],  # noqa: B006 - FastAPI copies it
        words: Annotated[str | None, Form()] = None,
        id: Annotated[str | None, Form()] = None,
        top_k: Annotated[int, Form()] = 10,
        cameras: Annotated[list[int], Form()] = [],  # noqa: B006
        since: Annotated[str | None, Form()] = None,
        until: Annotated[str | None, Form()] = None,
        where: Annotated[list[str], Form()] = [],  # noqa: B006
        threshold: Annotated[float | None, Form(ge=0, le=2)] = None,
        rerank: Annotated[bool, Form()] = False,
        verify_top: Annotated[int, Form()] = 0,
        any_shape: Annotated[bool, Form()] = False,
    ) -> dict[str, Any]:
        found = service.search(
            _photos(photos, any_shape),
            words=words,
            id=id,
            where=Where(cameras, since, until, where),
            k=top_k,
            threshold="model" if threshold is None else threshold,
            rerank=rerank,
            verify_top=verify_top,
            who=_user(request),
        )
        return {
            "hits": [hit_json(hit) for hit in found.hits],
            "threshold": found.threshold,
            "searched": found.searched,
            "nobody": found.nobody,
            "verification": None if found.verification is None else vars(found.verification),
        }

    @app.post("/api/compare")
    def compare(
        request: Request,
        photos: Annotated[list[UploadFile], File()],
        reasons: Annotated[bool, Form()] = False,
        any_shape: Annotated[bool, Form()] = False,
    ) -> dict[str, Any]:
        if len(photos) != 2:
            raise UserError(f"photos: {len(photos)} were sent: send two")
        return asdict(service.compare(*_photos(photos, any_shape), reasons=reasons, who=_user(request)))

    @app.post("/api/overlay")
    def overlay(
        request: Request,
        photos: Annotated[list[UploadFile], File()],
        id: Annotated[str | None, Form()] = None,
        any_shape: Annotated[bool, Form()] = False,
    ) -> Response:
        drawn = service.overlay_photos(_photos(photos, any_shape), None if id is None else _id(id), who=_user(request))
        return _picture(_side_by_side(drawn), "PNG")

    @app.get("/api/rows/{id}/picture")
    def picture(id: str) -> Response:
        return _picture(service.row_picture(_id(id)), "JPEG")

    @app.post("/api/person")
    def person(
        request: Request,
        photos: Annotated[list[UploadFile], File()],
        cameras: Annotated[list[int], Form()] = [],  # noqa: B006
        since: Annotated[str | None, Form()] = None,
        until: Annotated[str | None, Form()] = None,
        where: Annotated[list[str], Form()] = [],  # noqa: B006
        threshold: Annotated[float | None, Form(ge=0, le=2)] = None,
        any_shape: Annotated[bool, Form()] = False,
    ) -> dict[str, Any]:
        limit: Limit = "model" if threshold is None else threshold
        conditions, sent = Where(cameras, since, until, where), _photos(photos, any_shape)
        hits, beyond = service.find_person(sent, where=conditions, threshold=limit, who=_user(request))
        return {"rows": [hit_json(hit) for hit in hits], "beyond": [hit_json(hit) for hit in beyond]}

    @app.post("/api/delete")
    def delete(request: Request, asked: Deletion) -> dict[str, Any]:
        hits = service.find(asked.built())
        if not asked.confirm:
            return {"rows": [hit_json(hit) for hit in hits], "erased": 0}
        if asked.ids is None:
            raise UserError("delete: give the ids of the rows that were shown, and no other conditions, to erase them")
        erased = service.delete([hit.id for hit in hits], who=_user(request))
        return {"erased": erased.rows, "traces": erased.traces.count}

    @app.post("/api/groups")
    def groups(asked: Conditions) -> dict[str, Any]:
        rows, found = service.groups(asked.built())
        members: dict[int, list[str]] = {}
        for label, name in zip(found.labels.tolist(), rows.ids, strict=True):
            members.setdefault(label, []).append(name)
        return {
            "groups": [members[label] for label in sorted(members)],
            "merges": [vars(merge) for merge in found.merges],
        }

    @app.get("/api/decisions")
    def decisions() -> list[dict[str, Any]]:
        return [vars(made) for made in service.decisions()]

    @app.post("/api/decisions")
    def decide(request: Request, asked: NewDecision) -> dict[str, Any]:
        return vars(service.decide(asked.action, asked.ids, asked.person, asked.new, who=_user(request)))

    return app


def unknown_paths(app: FastAPI) -> None:
    """Answers unknown paths of the end points, before a page at the root of the application answers them."""

    @app.api_route("/api/{path:path}", methods=METHODS, include_in_schema=False)
    def refuse_path(request: Request) -> None:
        matches = (route.matches(request.scope)[0] for route in app.routes)
        raise HTTPException(405 if Match.PARTIAL in matches else 404)


def protected(
    app: Any,
    access: Access,
    host: str,
    ending: Callable[[], bool] = lambda: False,
    frames: str = NO_FRAMES,
) -> Protection:
    """Returns the application behind the checks of `protection.py`."""
    return Protection(app, access, host, MOST_BYTES, PHOTO_BYTES, ending, frames)


def hit_json(hit: Hit) -> dict[str, Any]:
    """Returns a row as JSON. An unknown distance is null; of the image file it has the base name alone."""
    known = {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in hit.crop.known().items()
    }
    distance = hit.distance if hit.distance == hit.distance else None
    name = None if hit.file_name is None else _base_name(hit.file_name)
    fields = {"id": hit.id, "distance": distance, "probability": hit.probability, "beyond": hit.beyond}
    return {**fields, "file_name": name, **known}


def _base_name(path: str) -> str:
    """Returns an absolute path without its folders, which are no client's business; any other text as it is."""
    return os.path.basename(path) if os.path.isabs(path) else path


def _id(text: str) -> str:
    """Returns the id of a row. Raises UserError if it is none."""
    if not DIGEST.fullmatch(text):
        raise UserError(f"id {text[:16]!r}: is no SHA-256 digest in hexadecimal digits")
    return text


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Returns pictures next to each other, in the height of the highest one, but at most that of a row's picture."""
    height = min(max(picture.height for picture in pictures), PICTURE[1])
    scaled = [picture.resize((max(1, round(picture.width * height / picture.height)), height)) for picture in pictures]
    whole = Image.new("RGB", (sum(picture.width for picture in scaled), height))
    left = 0
    for picture in scaled:
        whole.paste(picture, (left, 0))
        left += picture.width
    return whole


def _picture(image: Image.Image, kind: Literal["JPEG", "PNG"]) -> Response:
    """Returns a picture that no cache keeps."""
    file = io.BytesIO()
    image.save(file, kind, quality=90)
    return Response(file.getvalue(), media_type=f"image/{kind.lower()}", headers={"cache-control": "no-store"})


def _photos(uploads: Sequence[UploadFile], any_shape: bool) -> list[Photo]:
    """Returns the photos of a form."""
    return [Photo(upload.file.read(PHOTO_BYTES + 1), upload.filename or "photo", any_shape) for upload in uploads]


def _user(request: Request) -> str | None:
    """Returns the user of a request; None without a password, for the user who runs the server."""
    return getattr(request.state, "user", None)
