"""The dimensions of VBench (Huang et al., CVPR 2024) and VBench-I2V, as columns of reports under vbench/DIMENSION."""

from typing import NamedTuple

from motionanim.metrics.base import Column

PREFIX = "vbench/"


class Dimension(NamedTuple):
    """One of VBench's numbers that needs no prompt."""

    title: str
    scale: float = 1.0  # VBench divides its values of single videos by this in their mean
    remark: str = ""


DIMENSIONS = {
    "subject_consistency": Dimension("subject"),
    "background_consistency": Dimension("background"),
    "temporal_flickering": Dimension("flickering", remark="a still picture scores 1"),
    "motion_smoothness": Dimension("smoothness", remark="a still picture scores 1"),
    "dynamic_degree": Dimension("dynamic degree", remark="share of clips that move much"),
    "aesthetic_quality": Dimension("aesthetics"),
    "imaging_quality": Dimension("imaging", scale=100.0),
}
I2V = {"i2v_subject": Dimension("I2V subject"), "i2v_background": Dimension("I2V background")}


def vbench_column(key: str) -> Column | None:
    """The column of vbench/DIMENSION; None for other keys.

    The best dynamic degree is that of the true clips, unlike in VBench, where more is better.
    """
    if not key.startswith(PREFIX):
        return None
    name = key.removeprefix(PREFIX)
    dimension = (DIMENSIONS | I2V).get(name)
    if dimension is None:
        return Column(key, f"VBench {name}", 4, None, "vbench")
    direction = "real" if name == "dynamic_degree" else "higher"
    return Column(key, f"VBench {dimension.title}", 4, direction, "vbench", remark=dimension.remark, range=(0, 1))
