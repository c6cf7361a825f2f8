"""Score our runs by VBench: write their videos as it reads them, and read its results into the report.

python -m motionanim.evaluation.vbench write runs/evaluate/a/* --images my_videos --out vb
python vb/score.py            in an environment of its own that has `vbench`
python -m motionanim.evaluation.vbench read vb
python -m motionanim.evaluation.report runs/evaluate/a
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from motionanim.data.video import VideoError
from motionanim.evaluation.vbench.layout import write
from motionanim.evaluation.vbench.results import read


def main(arguments: Sequence[str] | None = None) -> int:
    commands = argparse.ArgumentParser(
        prog="python -m motionanim.evaluation.vbench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub = commands.add_subparsers(dest="command", required=True)
    writing = sub.add_parser("write", help="write the videos, and a script that scores them")
    writing.add_argument("folders", nargs="+", type=Path, help="run folders that evaluate.py left, or folders of them")
    writing.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    writing.add_argument(
        "--images", type=Path, metavar="FOLDER",
        help="the true videos, named by clip, whose first frames are the condition images: adds VBench-I2V",
    )  # fmt: skip
    writing.add_argument("--fps", type=float, help="rate of the videos (default: that of each run's own videos)")
    reading = sub.add_parser("read", help="read the results into the runs' folders")
    reading.add_argument("out", type=Path, help="the folder that `write` made")
    options = commands.parse_args(arguments)
    try:
        if options.command == "write":
            count = write(options.folders, options.out, images=options.images, fps=options.fps)
            print(
                f"{count} videos: {options.out}; now run `python {options.out / 'score.py'}` where VBench is installed"
            )
        else:
            for folder in read(options.out):
                print(f"scores: {folder}; the next report shows them")
    except (ValueError, OSError, VideoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
