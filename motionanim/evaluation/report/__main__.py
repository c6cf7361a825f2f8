"""Write a report of evaluation runs: tables with intervals, paired differences and plots.

python -m motionanim.evaluation.report runs/evaluate/* --out runs/evaluate/report
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from motionanim.evaluation.report.write import FILES, write_report
from motionanim.files import check_own


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m motionanim.evaluation.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run folders that evaluate.py left, or folders of them")
    parser.add_argument("--out", type=Path, help="folder to write (default: report/ beside the runs)")
    parser.add_argument("--against", metavar="LABEL", help="baseline of paired differences (default: the first run)")
    parser.add_argument(
        "--rank-by", metavar="KEY", help="order rows by this metric; an error where it is not comparable"
    )
    parser.add_argument(
        "--skip-unfinished", action="store_true", help="leave out runs that cannot be read, and name them"
    )
    parser.add_argument(
        "--strips", type=int, default=4, metavar="N", help="strips for each run in the page (default 4)"
    )
    options = vars(parser.parse_args(arguments))
    try:
        if options["out"] is not None:
            check_own(options["out"], (*FILES, "plots"), FILES, option="--out ")
        page = write_report(options.pop("folders"), options.pop("out"), **options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
