"""Builds the Pixabay benchmark: chooses clips, fetches them, locks them by hash. Run it again to go on, or to check.

python benchmarks/pixabay/build.py                         with PIXABAY_API_KEY set: choose and fetch 1 024 videos
python benchmarks/pixabay/build.py --from-folder FOLDER    lock videos that are there already; no network
python benchmarks/pixabay/build.py --check                 compare the videos with the manifest; no network
"""

import argparse
import logging
import os
import time
from pathlib import Path

from api import API, CATEGORIES, PixabayClient, choose, confirm_terms
from download import LIMITS, Limits, Sleep
from fetch import FetchReport, Needs, fetch, lock_folder, rejected_path, write_spares

from motionanim.evaluation.manifest import manifest_clips, read_manifest, write_manifest

HERE = Path(__file__).resolve().parent


def main(args: argparse.Namespace, *, sleep: Sleep | None = None) -> int:
    """Returns 0 if every clip is there and locked, 1 if some are not. `sleep` waits that many seconds."""
    needs = Needs(args.frames, args.fps, args.min_width, args.min_height)
    limits = Limits(round(args.max_megabytes * 1e6), (*LIMITS.hosts, *args.allow_host))
    if limits.bytes < 1:
        raise ValueError(f"--max-megabytes {args.max_megabytes}: must be above 0")
    if needs.frames < 1 or not needs.fps > 0 or args.workers < 1 or (args.n is not None and args.n < 1):
        raise ValueError(f"n={args.n}, frames={needs.frames}, fps={needs.fps}, workers={args.workers}: must be above 0")
    if args.check:
        clips = manifest_clips(args.manifest, args.root, n=args.n)
        print(f"all {len(clips)} clips under {args.root} are as {args.manifest} locks them")
        return 0
    if args.from_folder:
        _absent(args.manifest)
        entries, rejected = lock_folder(args.from_folder, n=args.n, seed=args.seed, needs=needs, licence=args.licence)
        write_manifest(args.manifest, entries)
        for name, reason in rejected:
            print(f"left out: {name} {reason}")
        print(f"{args.manifest} locks {len(entries)} clips: benchmark.root={args.from_folder}")
        return 0

    confirmed = False
    if not args.manifest.exists():
        confirm_terms(accepted=args.accept_terms)
        confirmed = True
        _list(args, needs, sleep or time.sleep)
    entries = read_manifest(args.manifest)
    if args.n not in (None, len(entries)):
        raise ValueError(f"--n {args.n}: {args.manifest} has {len(entries)} clips; remove it to choose anew")
    if args.list_only:
        return 0
    if not confirmed and not all((args.root / entry.file).exists() for entry in entries):
        confirm_terms(accepted=args.accept_terms)
    report = fetch(args.manifest, args.root, needs=needs, workers=args.workers, limits=limits, sleep=sleep)
    return _said(report, len(entries))


def _list(args: argparse.Namespace, needs: Needs, sleep: Sleep) -> None:
    _absent(rejected_path(args.manifest))
    key = args.key or os.environ.get("PIXABAY_API_KEY", "")
    if not key:
        raise ValueError("no API key: set PIXABAY_API_KEY to the one that pixabay.com/api/docs/ shows you")
    client = PixabayClient(key=key, cache=args.cache, api=args.api, sleep=sleep)
    entries, spares = choose(
        client, categories=args.category or CATEGORIES, queries=args.query or [""], n=args.n or 1024, seed=args.seed,
        needs=needs,
    )  # fmt: skip
    # Before the manifest, so that a manifest never stands without its spares.
    write_spares(args.manifest, spares)
    write_manifest(args.manifest, entries)
    print(f"{args.manifest}: {len(entries)} clips and {len(spares)} spares, {client.requests} requests")


def _said(report: FetchReport, total: int) -> int:
    for clip, reason in report.rejected:
        print(f"replaced: {clip} {reason}")
    for clip, reason in report.failed:
        print(f"failed: {clip}: {reason}")
    print(f"{report.locked} of {total} clips are there and locked")
    return 1 if report.failed else 0


def _absent(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists and would be replaced: move it away, or give another --manifest")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--n", type=int, help="number of clips: 1024 (Sec. 4.1), or with --from-folder all")
    add("--seed", type=int, default=0, help="of the choice")
    add("--manifest", type=Path, default=HERE / "manifest.csv")
    add("--root", type=Path, default=HERE / "videos", help="folder of the videos")
    add("--from-folder", type=Path, metavar="FOLDER", help="lock the videos of this folder")
    add("--licence", default="unknown", help="of the videos of --from-folder")
    add("--check", action="store_true", help="only compare the videos with the manifest")
    add("--list-only", action="store_true", help="choose, but fetch no video")
    add("--category", action="append", choices=CATEGORIES, help="may be repeated; without it all")
    add("--query", action="append", help="search term within each category; may be repeated; without it everything")
    add("--frames", type=int, default=125, help="that a clip must have (default 125)")
    add("--fps", type=float, default=7.0, help="at this rate (default 7)")
    add("--min-width", type=int, default=512, help="px")
    add("--min-height", type=int, default=512, help="px")
    add("--key", help="API key; better set PIXABAY_API_KEY, which other users of the machine cannot see")
    add("--api", default=API, help="another address that speaks the same API")
    add("--cache", type=Path, default=Path(".cache/pixabay"), help="folder of answers, kept for 24 hours")
    add("--workers", type=int, default=2, help="downloads at a time")
    add("--max-megabytes", type=float, default=LIMITS.bytes / 1e6, help="of a file (default 500)")
    add("--allow-host", action="append", default=[], metavar="HOST",
        help="to which pixabay.com may redirect by https, with its subdomains; may be repeated")  # fmt: skip
    add("--accept-terms", action="store_true", help="the terms were read and are accepted")
    return parser


if __name__ == "__main__":
    parser = arguments()
    logging.basicConfig(format="%(message)s")
    try:
        parser.exit(main(parser.parse_args()))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: run again to go on\n")
