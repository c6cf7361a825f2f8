"""Makes a blind study: a static page with videos under random names, and a separate key to the names.

The paper's user study asks for motion coordination, visual consistency and overall aesthetics (Mo-Coor, Vi-Co,
Overall-Aes). It does not publish the wording and the arrangement of the videos, so both are our own.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from motionanim.evaluation.study import media
from motionanim.evaluation.templates import render
from motionanim.files import file_sha256, text_sha256

SCHEMA = 1  # of the page's data, the key and the vote files; raise it when their meaning changes

QUESTIONS = {
    "mo_coor": ("Mo-Coor", "Motion: in which video is the movement best coordinated and most natural?"),
    "vi_co": ("Vi-Co", "Consistency: in which video do the scene and its objects best keep their look over time?"),
    "overall_aes": ("Overall-Aes", "Overall: which video do you find the most beautiful?"),
}


def round_robin(methods: list[str]) -> list[tuple[str, str]]:
    """All pairs, in rounds that show each method once (circle method; with an odd number, one method rests)."""
    seats: list[str | None] = [*methods, None] if len(methods) % 2 else [*methods]
    half, pairs = len(seats) // 2, []
    for _ in range(len(seats) - 1):
        for one, other in zip(seats[:half], reversed(seats[half:])):
            if one is not None and other is not None:
                pairs.append((one, other))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return pairs


def balanced(clips: list[str], groups: list[tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    """Each clip with each group of methods once, in an order in which any part shows all about equally often.

    The order runs through all clips again and again. The groups take turns, from one group further in each run.
    """
    return [
        (clip, groups[(place + turn) % len(groups)]) for turn in range(len(groups)) for place, clip in enumerate(clips)
    ]


def make_study(
    folders: dict[str, Path],
    out: Path,
    *,
    seed: int,
    choose_best: bool,
    pairs: int | None,
    per_participant: int | None,
    checks: int,
    image_folder: Path | None,
    as_they_are: bool,
    height: int | None,
    fps: float | None,
    seconds: float | None,
) -> dict[str, Any]:
    """Write `out`/page, which is handed out or served, and `out`/key.json, which stays with the maker.

    The random names follow from the seed and all bytes of the inputs, so the seed alone does not reveal them. The same
    inputs, options and seed give the same bytes, if x264 does; on one machine it always does. The content of a video,
    such as a watermark, stays.

    Args:
        folders: Method -> folder of its videos; the same clips in each.
        seed: Of the names, the balanced order and the damaged videos.
        choose_best: True compares all methods at once and asks for the best; False compares two.
        pairs: Number of comparisons of two; None takes every pair of methods on every clip.
        per_participant: Comparisons that a participant sees, neighbours in the balanced order; None shows all.
        checks: Attention checks that a participant sees besides: a video beside a damaged copy of itself.
        image_folder: The animated photos, `<clip>.png`, shown above the videos; None shows none.
        as_they_are, height, fps, seconds: As in `media.choose_looks`.

    Returns:
        The key, as written.

    Raises:
        ValueError: If the folders do not fit each other, an option is out of range, or `out` exists.
        motionanim.data.video.VideoError: If a video cannot be read.
    """
    if out.exists():
        raise ValueError(f"{out} exists: votes belong to the study they were given in, so choose another folder")
    found = media.find_videos(folders)
    images = media.find_images(image_folder, sorted({clip for _, clip in found})) if image_folder else {}
    inputs = hashlib.sha256(b"".join(bytes.fromhex(file_sha256(path)) for path in found.values()))
    rng = random.Random(f"{seed} {inputs.hexdigest()}")
    plan = _plan(rng, sorted(found), set(images), choose_best=choose_best, pairs=pairs, checks=checks)
    if per_participant is not None and not 1 <= per_participant <= len(plan.trials):
        raise ValueError(
            f"per_participant={per_participant}: must lie between 1 and {len(plan.trials)}, the whole study"
        )
    looks = media.choose_looks(found, as_they_are=as_they_are, height=height, fps=fps, seconds=seconds)

    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        made = Path(work) / "study"
        facts, hashes = _write_media(made / "page" / "media", plan, found, images, looks, rng)
        data = {
            "schema": SCHEMA, "perParticipant": per_participant or len(plan.trials),
            "questions": [{"id": name, "text": text} for name, (_, text) in QUESTIONS.items()],
            "trials": [plan.shown(name) for name in plan.trials],
            "always": [plan.shown(name) for name in plan.checks],
        }  # fmt: skip
        study = text_sha256(json.dumps([data, sorted(hashes.items())]))[:16]
        page = render("study/page.html", data=data | {"study": study})
        (made / "page" / "index.html").write_text(page, encoding="utf-8")
        key = {
            "schema": SCHEMA, "study": study, "seed": seed, "choose_best": choose_best, "methods": sorted(folders),
            "questions": list(QUESTIONS), "trials_per_participant": data["perParticipant"] + len(plan.checks),
            "trials": {name: {"clip": t.clip, "videos": t.videos} for name, t in plan.trials.items()},
            "checks": {name: t._asdict() for name, t in plan.checks.items()},
            "videos": facts,
        }  # fmt: skip
        (made / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
        os.replace(made, out)
    return key


class Trial(NamedTuple):
    """One comparison."""

    clip: str
    videos: list[str]  # random names, sorted
    intact: str | None  # of an attention check: the video that is not damaged


class Plan(NamedTuple):
    """The comparisons of a study and all random names."""

    videos: dict[str, tuple[str, str]]  # name -> (method, clip)
    images: dict[str, str]  # clip -> name
    trials: dict[str, Trial]  # by name, in the balanced order
    checks: dict[str, Trial]  # by name

    def shown(self, name: str) -> dict[str, Any]:
        """The data of a trial for the page."""
        trial = self.trials.get(name) or self.checks[name]
        return {"id": name, "image": self.images.get(trial.clip), "videos": trial.videos}


def _plan(
    rng: random.Random,
    videos: list[tuple[str, str]],
    images: set[str],
    *,
    choose_best: bool,
    pairs: int | None,
    checks: int,
) -> Plan:
    methods, clips = sorted({method for method, _ in videos}), sorted({clip for _, clip in videos})
    shuffled, turns = rng.sample(methods, len(methods)), rng.sample(clips, len(clips))
    groups: list[tuple[str, ...]] = [tuple(shuffled)] if choose_best else list(round_robin(shuffled))
    comparisons = balanced(turns, groups)
    if pairs is not None:
        if choose_best or not 1 <= pairs <= len(comparisons):
            most = len(clips) * len(methods) * (len(methods) - 1) // 2
            raise ValueError(f"pairs={pairs}: must lie between 1 and {most}, without choosing the best of all")
        comparisons = comparisons[:pairs]
        unseen = set(methods) - {method for _, group in comparisons for method in group}
        if unseen:
            raise ValueError(f"pairs={pairs}: too few to show {', '.join(sorted(unseen))} even once; take more")
    names = _names(rng)
    ids = {key: next(names) for key in dict.fromkeys((m, clip) for clip, group in comparisons for m in group)}
    if not 0 <= checks <= len(ids):
        raise ValueError(f"checks={checks}: must lie between 0 and {len(ids)}, the number of videos")
    return Plan(
        videos={name: key for key, name in ids.items()},
        images={clip: next(names) for clip in turns if clip in images},
        trials={next(names): Trial(c, sorted(ids[method, c] for method in g), None) for c, g in comparisons},
        checks={
            next(names): Trial(key[1], sorted([ids[key], next(names)]), ids[key])
            for key in rng.sample(sorted(ids), checks)
        },
    )


def _write_media(
    folder: Path,
    plan: Plan,
    found: dict[tuple[str, str], Path],
    images: dict[str, Path],
    looks: dict[tuple[str, str], media.Look],
    rng: random.Random,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write all videos and photos; returns facts of the videos for the key, and the hash of each file, by name."""
    facts, hashes = {}, {}
    # In the order of the random names, so that the times of the files reveal nothing.
    for name, key in sorted(plan.videos.items()):
        shot = media.read(found[key], looks[key])
        hashes[name] = media.write(folder / f"{name}.mp4", shot.frames, shot.rate)
        look = {"height": shot.frames.shape[2], "width": shot.frames.shape[3], "seconds": len(shot.frames) / shot.rate}
        facts[name] = {"method": key[0], "clip": key[1], **look, "frames": shot.sources, "fps": round(shot.fps, 3)}
    for trial in plan.checks.values():
        key = plan.videos[trial.intact]
        shot = media.read(found[key], looks[key])
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        (name,) = set(trial.videos) - {trial.intact}
        hashes[name] = media.write(folder / f"{name}.mp4", media.damage(shot.frames, generator), shot.rate)
    for clip, name in plan.images.items():
        look = next(looks[key] for key in plan.videos.values() if key[1] == clip)
        hashes[name] = media.write_image(folder / f"{name}.png", images[clip], look)
    return facts, hashes


def _names(rng: random.Random) -> Iterator[str]:
    """Endless unique names of ten random hexadecimal digits."""
    used: set[str] = set()
    while True:
        name = f"{rng.getrandbits(40):010x}"
        if name not in used:
            used.add(name)
            yield name
