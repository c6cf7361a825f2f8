"""The routes of the page: photos, motion fields, jobs and the gallery."""

import asyncio
import errno
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from motionanim.page.gallery import Gallery
from motionanim.page.guard import Guard, TooLarge, body, refusal
from motionanim.page.jobs import Queue
from motionanim.page.photos import Photo, Photos
from motionanim.page.settings import METHODS, Settings, checked

if TYPE_CHECKING:
    from motionanim.page.preview import Preview

STATIC = Path(__file__).parent / "static"
MOST_PHOTO = 64 * 2**20  # bytes
MOST_JSON = 8 * 2**20
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Page:
    """The state of the page, and its routes.

    Photos are decoded and fields computed in one thread, which first imports PyTorch: so the page opens at once, and
    what needs PyTorch waits for it.

    Args:
        folder: Working folder: photos, drawings and videos.
        config: conf/animate.yaml as the jobs compose it.
        base: The overrides that it was composed with.
        defaults: Settings that the page begins with.
        image: A photo to begin with.
    """

    def __init__(
        self, folder: Path, config: DictConfig, *, base: Sequence[str], defaults: Settings, image: Path | None
    ) -> None:
        self._folder, self._config, self._base, self._defaults, self._image = folder, config, base, defaults, image
        self._photos, self._gallery = Photos(folder), Gallery(folder)
        self._listing = asyncio.Lock()  # of the gallery

    def app(self, hosts: Sequence[str]) -> Guard:
        """The application, for requests to one of `hosts`, each with its port."""
        routes = [
            Route("/", self._index),
            Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
            Route("/files/{name}", self._file),
            Route("/api/state", self._state),
            Route("/api/photos", self._add_photo, methods=["POST"]),
            Route("/api/photos/{id}", self._photo),
            Route("/api/photos/{id}/picture", self._picture),
            Route("/api/field", self._field, methods=["POST"]),
            Route("/api/magic", self._magic, methods=["POST"]),
            Route("/api/proposal", self._proposal, methods=["POST"]),
            Route("/api/jobs", self._jobs),
            Route("/api/jobs", self._add_job, methods=["POST"]),
            Route("/api/jobs/{id}/drawing", self._drawing),
            Route("/api/jobs/{id}/cancel", self._cancel, methods=["POST"]),
            Route("/api/command", self._command, methods=["POST"]),
            Route("/api/gallery", self._videos),
        ]
        answers = {
            ValueError: _mistake, LookupError: _missing, TooLarge: _too_large, OSError: _of_system,
            HTTPException: _of_http,
        }  # fmt: skip
        return Guard(Starlette(routes=routes, exception_handlers=answers, lifespan=self._lifespan), hosts)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._thread = ThreadPoolExecutor(1, "preview")
        self._ready = self._in_thread(self._prepared)
        self._queue = Queue(self._folder, list(self._base))
        work = asyncio.create_task(self._work())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        await self._ready  # the page comes first: the process that makes videos imports PyTorch too
        await self._queue.run()

    def _in_thread(self, call: Callable[..., Any], *given: Any) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().run_in_executor(self._thread, call, *given)

    def _prepared(self) -> "tuple[Preview, Photo | None, str | None]":
        """What computes fields, and the photo that the page begins with or why there is none."""
        from motionanim.page.preview import Preview

        preview, photo, reason = Preview(self._config, self._photos), None, None
        if self._image is not None:
            try:
                photo = self._photos.add(self._image.name, self._image.read_bytes())
            except (OSError, ValueError) as error:
                reason = f"image={self._image}: {error}"
                print(f"error: {reason}", file=sys.stderr)
        return preview, photo, reason

    async def _index(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def _state(self, _: Request) -> Response:
        _, photo, reason = await self._ready
        loras = await asyncio.to_thread(lambda: sorted(path.name for path in self._folder.glob("*.safetensors")))
        return JSONResponse(
            {
                "photo": None if photo is None else photo.json(), "defaults": self._defaults, "methods": METHODS,
                "loras": loras, "span": self._config.controls.span, "most_bytes": MOST_PHOTO,
                "folder": self._folder.resolve().name, "error": reason,
            }
        )  # fmt: skip

    async def _add_photo(self, request: Request) -> Response:
        content = await body(request, MOST_PHOTO)
        if not content:
            raise ValueError("the photo is empty: choose an image file")
        name = request.query_params.get("name", "photo.png")
        return JSONResponse((await self._in_thread(self._photos.add, name, content)).json())

    async def _photo(self, request: Request) -> Response:
        name = request.query_params.get("name")
        return JSONResponse((await self._in_thread(self._photos.get, request.path_params["id"], name)).json())

    async def _picture(self, request: Request) -> Response:
        def made() -> bytes:
            return self._photos.picture(self._photos.get(request.path_params["id"]))

        kept = {"Cache-Control": "private, max-age=31536000, immutable"}  # an id has one picture
        return Response(await self._in_thread(made), media_type="image/jpeg", headers=kept)

    async def _field(self, request: Request) -> Response:
        preview, asked, photo, settings = await self._asked(request, {"photo", "drawing", "settings", "side"})
        given = asked.get("drawing", {}), settings, asked.get("side", 512)
        content = await self._in_thread(preview.field, photo, *given)
        return Response(content, media_type="application/octet-stream")

    async def _magic(self, request: Request) -> Response:
        preview, asked, photo, _ = await self._asked(request, {"photo", "brush", "radius", "pins"})
        given = (asked.get(key) for key in ("brush", "radius", "pins"))
        return JSONResponse(await self._in_thread(preview.magic, photo, *given))

    async def _proposal(self, request: Request) -> Response:
        preview, asked, photo, settings = await self._asked(request, {"photo", "drawing", "settings"})
        return JSONResponse(await self._in_thread(preview.proposal, photo, asked.get("drawing", {}), settings))

    async def _add_job(self, request: Request) -> Response:
        preview, asked, photo, settings = await self._asked(request, {"photo", "drawing", "settings"})
        drawing = asked.get("drawing", {})
        await self._in_thread(preview.check, photo, drawing, settings)
        return JSONResponse(await self._queue.add(photo, drawing, settings))

    async def _command(self, request: Request) -> Response:
        _, _, photo, settings = await self._asked(request, {"photo", "drawing", "settings"})
        return JSONResponse({"command": await self._queue.preview(photo, settings)})

    async def _jobs(self, _: Request) -> Response:
        return JSONResponse({"jobs": self._queue.listed()})

    async def _drawing(self, request: Request) -> Response:
        return JSONResponse(self._queue.drawing(request.path_params["id"]))

    async def _cancel(self, request: Request) -> Response:
        return JSONResponse(await self._queue.cancel(request.path_params["id"]))

    async def _videos(self, _: Request) -> Response:
        async with self._listing:
            return JSONResponse({"videos": await asyncio.to_thread(self._gallery.videos)})

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        async with self._listing:
            path = await asyncio.to_thread(self._gallery.file, name)
        if path is None:
            raise LookupError(f"no file {name[:80]} of a video in the folder: the gallery lists them")
        saved_as = name if "download" in request.query_params else None
        return FileResponse(path, filename=saved_as, headers={"Cache-Control": "no-cache"})

    async def _asked(self, request: Request, keys: set[str]) -> "tuple[Preview, dict[str, Any], Photo, Settings]":
        """The JSON object of a request, its photo and its settings; waits until fields can be computed."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ValueError("Content-Type: must be application/json")
        content = await body(request, MOST_JSON)
        try:
            asked = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the request is no usable JSON: {error}") from error
        if not isinstance(asked, dict) or not set(asked) <= keys:
            raise ValueError(f"the request must be an object with {', '.join(sorted(keys))}")
        preview, *_ = await self._ready
        photo = await self._in_thread(self._photos.get, str(asked.get("photo")))
        return preview, asked, photo, checked(asked.get("settings", {}), self._defaults)


def _mistake(_: Request, error: Exception) -> Response:
    return refusal(str(error), 400)


def _missing(_: Request, error: Exception) -> Response:
    return refusal(str(error.args[0]) if error.args else "not found", 404)


def _too_large(_: Request, error: Exception) -> Response:
    what = "the photo is larger than {} MB: save it smaller, such as a JPEG"
    if error.most == MOST_JSON:
        what = "the drawing is larger than {} MB: use fewer and shorter strokes"
    answer = refusal(what.format(error.most // 2**20), 413)
    answer.headers["Connection"] = "close"  # the rest of the body is not read
    return answer


def _of_system(_: Request, error: Exception) -> Response:
    if error.errno in FULL:
        return refusal("the disk is full: free some space and try again", 507)
    return refusal(f"the folder cannot be used: {error.strerror or error}", 500)


def _of_http(_: Request, error: Exception) -> Response:
    return refusal(str(error.detail), error.status_code)
