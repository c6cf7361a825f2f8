"""Make a blind user study from folders of videos, or count its votes."""

import argparse
from collections import Counter
from pathlib import Path

from motionanim.evaluation.study.make import make_study
from motionanim.evaluation.study.report import count_study


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(prog="python -m motionanim.evaluation.study", description=__doc__)
    sub = commands.add_subparsers(dest="command", required=True)

    make = sub.add_parser("make", help="a page to hand out (OUT/page) and the key to keep (OUT/key.json)")
    make.add_argument(
        "folders", nargs="+", metavar="FOLDER",
        help="a method's videos, <clip>.mp4; the method is named after the folder, or give NAME=FOLDER",
    )  # fmt: skip
    make.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    make.add_argument("--seed", type=int, default=0)
    kind = make.add_mutually_exclusive_group()
    kind.add_argument("--pairs", type=int, metavar="N", help="number of comparisons of two (default: all pairs)")
    kind.add_argument("--choose", choices=["best-of-all"], help="show all methods at once and ask for the best")
    make.add_argument(
        "--per-participant", type=int, metavar="K", help="comparisons each participant sees (default: all)"
    )
    make.add_argument("--checks", type=int, default=0, metavar="C", help="attention checks besides: a damaged video")
    make.add_argument("--image-folder", type=Path, help="photos, <clip>.png, shown above the videos")
    make.add_argument("--height", type=int, help="px (default: 512, or less so that no video is enlarged)")
    make.add_argument("--fps", type=float, help="frames a second, about (default: the lowest rate)")
    make.add_argument("--seconds", type=float, help="length shown (default: that of the shortest video)")
    make.add_argument(
        "--as-they-are", action="store_true", help="own size, rate and length, which may reveal the method"
    )

    count = sub.add_parser("count", help="votes to percentages with intervals: Markdown, CSV, a plot")
    count.add_argument("key", type=Path, help="key.json, as `make` wrote it")
    count.add_argument("votes", type=Path, nargs="+", help="the files that participants saved")
    count.add_argument("--out", type=Path, required=True, help="folder for the results")
    count.add_argument(
        "--exclude-failed", action="store_true", help="leave out participants who failed the attention checks"
    )
    return commands


def named(arguments: list[str]) -> dict[str, Path]:
    """Method -> folder.

    Raises:
        ValueError: If two methods have one name.
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, given, folder = argument.partition("=")
        # The name of an existing folder may contain "=", as Hydra's do.
        path = Path(folder) if given and name and not Path(argument).is_dir() else Path(argument)
        method = path.resolve().name if path == Path(argument) else name
        if method in folders:
            raise ValueError(f"{argument}: a second method named {method}; tell them apart as NAME=FOLDER")
        folders[method] = path
    return folders


def main(arguments: list[str] | None = None) -> None:
    commands = parser()
    given = commands.parse_args(arguments)
    try:
        if given.command == "count":
            for line in count_study(given.key, given.votes, given.out, exclude_failed=given.exclude_failed):
                print(line)
            return
        options = {name: value for name, value in vars(given).items() if name not in ("command", "folders", "choose")}
        key = make_study(named(given.folders), choose_best=given.choose is not None, **options)
    except (ValueError, OSError) as error:
        commands.exit(2, f"error: {' '.join(str(error).split())}\n")
    print(f"{len(key['methods'])} methods, {len(key['trials'])} comparisons of which a participant sees ", end="")
    print(f"{key['trials_per_participant'] - len(key['checks'])}, and {len(key['checks'])} attention checks")
    looks = Counter(
        f"{v['width']}x{v['height']} px, {v['seconds']:.3g} s, {v['frames']} frames at {v['fps']:.3g}/s"
        for v in key["videos"].values()
    )
    print("shown:", "; ".join(f"{number} x {look}" for look, number in sorted(looks.items())))
    print("look through the videos first: a watermark may reveal a method and is not removed")
    print(f"hand out {given.out / 'page'} or put it on a web server; index.html?p=0, ?p=1... balance the comparisons")
    print(f"keep {given.out / 'key.json'} to yourself: it names the methods")


if __name__ == "__main__":
    main()
