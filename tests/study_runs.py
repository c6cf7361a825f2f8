"""Videos of three methods and the studies made of them, for tests of the study."""

import json
import re

import av
import numpy as np

from motionanim.evaluation.study.__main__ import main

METHODS = ("zebrafish", "quokka", "axolotl")
CLIPS = ("harbour_17", "glacier_42")


def write_clip(path, *, height=64, width=96, fps=6, frames=6, method="", codec="libx264"):
    """Frame k is grey of value 12 k + 20; the method's name stands in the metadata, as some tools write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        container.metadata["title"], container.metadata["comment"] = f"made by {method}", method
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for k in range(frames):
            pixels = np.full((height, width, 3), 12 * k + 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def make(folders, out, *options):
    main(["make", *(str(folders / m) for m in METHODS), "--out", str(out), "--seconds", "0.2", *map(str, options)])
    return json.loads((out / "key.json").read_text())


def page_data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
