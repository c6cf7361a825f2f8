"""Files from other tools and for them: check a download of SVD, convert LoRAs, merge them, make a folder to upload.

    python -m motionanim.interchange check-base stable-video-diffusion-img2vid-xt
    python -m motionanim.interchange lora lora.safetensors --base BASE --layout comfyui --out lora_comfyui.safetensors
    python -m motionanim.interchange merge BASE --lora lora.safetensors=0.8 --out merged
    python -m motionanim.interchange hub runs/motion_lora/NAME --out my-lora

Nothing is uploaded, and no file is replaced.
"""

import argparse
import sys
from pathlib import Path

from motionanim.cli.progress import Progress
from motionanim.models.svd.interchange.whole import check_base, published


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(
        prog="python -m motionanim.interchange", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub = commands.add_subparsers(dest="command", required=True)
    check = sub.add_parser("check-base", help="is a download of SVD whole? one line for each file; exit code 2 if not")
    check.add_argument("folder", type=Path)

    lora = sub.add_parser("lora", help="write a LoRA in the layout of another tool")
    lora.add_argument("file", type=Path, help="safetensors, in the layout of diffusers, kohya or ComfyUI")
    lora.add_argument("--base", required=True, help="pipeline folder or hub id that the LoRA is for")
    lora.add_argument("--layout", choices=["diffusers", "comfyui"], required=True)
    lora.add_argument("--out", type=Path, required=True, help="file to make")

    merge = sub.add_parser("merge", help="write a pipeline folder with LoRAs merged into it")
    merge.add_argument("base", help="pipeline folder or hub id")
    merge.add_argument("--lora", action="append", default=[], metavar="FILE[=WEIGHT]", help="may be given repeatedly")
    merge.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="float16: variant fp16")
    merge.add_argument("--out", type=Path, required=True, help="folder to make")

    hub = sub.add_parser("hub", help="write what a run trained as a folder to upload, with a model card")
    hub.add_argument("run", type=Path, help="folder of a run of train.py")
    hub.add_argument("--out", type=Path, required=True, help="folder to make")
    return commands


def weighted(text: str) -> tuple[str, float]:
    """FILE or FILE=WEIGHT. Raises ValueError if the weight is no number."""
    file, given, weight = text.rpartition("=")
    if not given or Path(text).is_file():
        return text, 1.0
    try:
        return file, float(weight)
    except ValueError:
        raise ValueError(f"--lora {text}: the weight must be a number, such as {file}=0.8") from None


def _check(folder: Path) -> int:
    record = published()
    with Progress() as progress:
        found = check_base(folder, record, progress)
    width = max(len(each.file) for each in found)
    for each in found:
        print(f"{each.file:{width}}  {each.told}")
    wrong = sum(each.wrong for each in found)
    if wrong:
        told = f"{wrong} of {len(found)} files are missing or unlike those of {record['source']}"
        print(f"error: {folder} is not whole: {told}", file=sys.stderr)
        return 2
    print(f"{folder} is whole: use it as scale=svd scale.base={folder}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code, 2 for a mistake or a base that is not whole."""
    given = parser().parse_args(arguments)
    try:
        if given.command == "check-base":
            return _check(given.folder)
        # Imported here: they take seconds, which checking a download does not need.
        from motionanim.cli.command import quiet
        from motionanim.models.svd.interchange import pipelines

        quiet()
        if given.command == "lora":
            pipelines.convert_lora(given.file, given.out, base=given.base, layout=given.layout)
        elif given.command == "merge":
            loras = [weighted(text) for text in given.lora]
            pipelines.merge_pipeline(given.base, given.out, loras=loras, dtype=given.dtype)
        else:
            pipelines.hub_folder(given.run, given.out)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
