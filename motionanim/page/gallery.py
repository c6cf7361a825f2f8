"""The videos that `animate` left in a folder, by their records."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from motionanim.page.photos import ID_DIGITS
from motionanim.page.settings import of_command

MOST_BYTES = 16 * 2**20  # of a record; a drawing of thousands of strokes has a few megabytes
SUFFIXES = {
    "mp4": ".mp4", "png": ".png", "json": ".json", "gif": ".gif", "webp": ".webp", "arrows": ".arrows.json",
}  # fmt: skip

Video = dict[str, Any]


class Gallery:
    """Reads each record once for each of its versions. All calls must come from one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[tuple[int, int], Video | None]] = {}

    def videos(self) -> list[Video]:
        """What the page shows of each video, newest first; other JSON files are skipped."""
        names = [path.name for path in self._folder.glob("*.json") if not path.name.startswith(".")]
        self._read = {name: self._read[name] for name in names if name in self._read}
        found = [video for name in names if (video := self._video(name)) is not None]
        return sorted(found, key=lambda video: (-video["made"], video["name"]))

    def file(self, name: str) -> Path | None:
        """A file of one of the videos by its name; None if there is no such file."""
        if Path(name).name != name or name.startswith("."):
            return None
        suffix = max((each for each in SUFFIXES.values() if name.endswith(each)), key=len, default=None)
        if suffix is None:
            return None
        video = self._video(name.removesuffix(suffix) + ".json")
        return self._folder / name if video is not None and name in video["files"].values() else None

    def _video(self, name: str) -> Video | None:
        path = self._folder / name
        try:
            found = path.stat()
            version = found.st_size, found.st_mtime_ns
            if self._read.get(name, ((), None))[0] != version:
                record = json.loads(path.read_text(encoding="utf-8")) if found.st_size <= MOST_BYTES else None
                self._read[name] = version, self._shown(path, record, found.st_mtime)
        except (OSError, ValueError, RecursionError):
            return None
        except (LookupError, TypeError, AttributeError):  # JSON of another program
            self._read[name] = version, None
        video = self._read[name][1]
        files = self._files(path.stem)
        return None if video is None or "mp4" not in files else video | {"files": files}

    def _shown(self, path: Path, record: Mapping[str, Any], made: float) -> Video:
        """A record as the page shows it; raises one of Python's errors if it is no record."""
        command, seconds = record["command"], record["seconds"]
        image = command["image"]
        if path.with_suffix(".mp4").name not in record["files"] or not isinstance(seconds, int | float):
            raise ValueError(f"{path} is no record of a video")
        return {
            "name": path.stem,
            "made": made,
            "settings": of_command(command),
            "image": Path(image).name,
            "photo": record["sha256"][image][:ID_DIGITS] if Path(image).name == image else None,
        }

    def _files(self, stem: str) -> dict[str, str]:
        names = {kind: stem + suffix for kind, suffix in SUFFIXES.items()}
        return {kind: name for kind, name in names.items() if (self._folder / name).is_file()}
