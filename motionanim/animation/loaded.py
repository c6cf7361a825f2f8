"""A model that stays loaded from job to job."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motionanim.files import file_sha256

if TYPE_CHECKING:
    from motionanim.sampling.animator import Animator


class Loaded:
    """Keeps the animator of the last call; another base, LoRA or setting replaces it."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._made: tuple[Animator, str] | None = None

    def animator(self, **settings: Any) -> "tuple[Animator, str]":
        """What `Animator.load` gives for these arguments, which all count; a LoRA file counts by its content."""
        from motionanim.sampling.animator import Animator  # this takes seconds, which a job without a model saves

        files = [Path(path) for path, _ in settings["loras"]]
        contents = [file_sha256(file) if file.is_file() else None for file in files]  # a missing one is refused below
        key = json.dumps([settings, contents], sort_keys=True, default=str)
        if key != self._key:
            self._key = self._made = None  # first, so that two models never need memory at once
            self._made = Animator.load(**settings)
            self._key = key
        return self._made
