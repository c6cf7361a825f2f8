"""Makes videos of every odd kind by ffmpeg (package imageio-ffmpeg) from one test picture."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg

_SOURCE = ("-f", "lavfi", "-i", "testsrc2=size=192x112:rate=24:duration=3")
_H264 = ("-c:v", "libx264", "-g", "24", "-pix_fmt", "yuv420p")
_OPEN_GOP = ("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0")
_HEVC = ("-c:v", "libx265", "-x265-params", "log-level=error:keyint=12:open-gop=1")
_VFR = ("-vf", "select='not(mod(n,5)*mod(n,3))',settb=1/1000", "-fps_mode", "vfr")

# By name, ffmpeg's arguments between the source and the output.
_MADE: dict[str, Iterable[str]] = {
    "h264.mp4": _H264,
    "h264_faststart.mp4": (*_H264, "-movflags", "faststart"),
    "h264.mkv": _H264,
    "h264.ts": _H264,
    "h264.flv": _H264,
    "h264_fragments.mp4": (*_H264, "-movflags", "frag_keyframe+empty_moov"),
    "h264_open_gop.mp4": _OPEN_GOP,
    "h264_intra_refresh.mp4": ("-c:v", "libx264", "-x264-params", "intra-refresh=1:keyint=24"),
    "h264_10bit.mp4": ("-c:v", "libx264", "-pix_fmt", "yuv420p10le"),
    "h264_full_range.mp4": (*_H264, "-vf", "scale=out_range=full", "-color_range", "pc", "-colorspace", "bt709"),
    "h264_interlaced.mp4": (*_H264, "-flags", "+ilme+ildct", "-vf", "interlace"),
    "h264_interlaced.ts": (*_H264, "-flags", "+ilme+ildct", "-vf", "interlace"),
    "h264_sar.mp4": (*_H264, "-vf", "setsar=2/1"),
    "h264_sar.mkv": (*_H264, "-vf", "setsar=16/15"),
    "h264_narrow.mp4": (*_H264, "-vf", "scale=48:64"),
    "h264_one_frame.mp4": (*_H264, "-frames:v", "1"),
    "h264_one_frame.mkv": (*_H264, "-frames:v", "1"),
    "h264_odd_size.mp4": ("-c:v", "libx264", "-vf", "scale=97:65", "-pix_fmt", "yuv444p"),
    "h264_vfr.mp4": (*_VFR, *_H264),
    "h264_vfr.mkv": (*_VFR, *_H264),
    "h264_wall_clock.mkv": (*_H264, "-output_ts_offset", "1700000000"),
    "hevc.mp4": (*_HEVC, "-tag:v", "hvc1"),
    "hevc_10bit.mkv": (*_HEVC, "-pix_fmt", "yuv420p10le"),
    "av1.mp4": ("-c:v", "libsvtav1", "-preset", "10", "-g", "24", "-svtav1-params", "lp=1"),
    "vp8.webm": ("-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-b:v", "200k"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-cpu-used", "8"),
    "vp9_wall_clock.webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-output_ts_offset", "1700000000"),
    "mpeg4_b_frames.avi": ("-c:v", "mpeg4", "-bf", "2"),
    "mpeg4.mp4": ("-c:v", "mpeg4", "-bf", "2"),
    "mjpeg.avi": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p"),
    "mjpeg.mov": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p"),
    "mpeg1.mpg": ("-c:v", "mpeg1video", "-bf", "2"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-bf", "2", "-f", "mpeg"),
    "mpeg2_interlaced.ts": ("-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-bf", "2"),
    "prores.mov": ("-c:v", "prores_ks",),
    "ffv1.mkv": ("-c:v", "ffv1",),
    "theora.ogv": ("-c:v", "libtheora",),
    "wmv2.wmv": ("-c:v", "wmv2",),
    "h263.3gp": ("-c:v", "h263", "-vf", "scale=176:144"),
    "animated.gif": ("-t", "1"),
    "pause_of_an_hour.mkv": (*_H264, "-vf", "setpts='if(gt(N,36),PTS+3600/TB,PTS)'", "-fps_mode", "vfr"),
}  # fmt: skip

# By name, the source, and ffmpeg's arguments before and after the input. Packets are copied as they are.
_COPIED: dict[str, tuple[str, Iterable[str], Iterable[str]]] = {
    "edit_list.mp4": ("h264.mp4", ("-ss", "0.6"), ()),
    "edit_list_later.mp4": ("h264.mp4", ("-ss", "1.4"), ()),
    "edit_list_open_gop.mp4": ("h264_open_gop.mp4", ("-ss", "0.75"), ()),
    "edit_list_hevc.mp4": ("hevc.mp4", ("-ss", "0.75"), ("-tag:v", "hvc1")),
    "edit_list_late.mp4": ("h264.mp4", ("-itsoffset", "0.5"), ()),
    "open_gop_cut.mkv": ("h264_open_gop.mp4", ("-ss", "0.75"), ()),
    "turned_90.mp4": ("h264.mp4", ("-display_rotation", "90"), ()),
    "turned_180.mp4": ("h264.mp4", ("-display_rotation", "180"), ()),
    "turned_270.mp4": ("h264.mp4", ("-display_rotation", "270"), ()),
    "turned_30.mp4": ("h264.mp4", ("-display_rotation", "30"), ()),
    "mirrored.mp4": ("h264.mp4", ("-display_hflip",), ()),
    "turned_mirrored.mp4": ("h264.mp4", ("-display_rotation", "90", "-display_vflip"), ()),
    "turned_sar.mp4": ("h264_sar.mp4", ("-display_rotation", "90"), ()),
}

# Files that begin between key frames: packets with these numbers are left out.
_MID_GOP = {
    "mid_gop.mkv": "h264.mp4", "mid_gop.ts": "h264.ts", "mid_gop_hevc.mkv": "hevc.mp4", "mid_gop_av1.mkv": "av1.mp4",
}  # fmt: skip

# Files that end early: so many per cent are left.
_TRUNCATED = {
    f"truncated_{part}.{source[-3:]}": source
    for source in ("h264_faststart.mp4", "h264.mkv")
    for part in range(10, 99, 20)
}


def ffmpeg(*arguments: str) -> bytes:
    """Run ffmpeg; returns its stdout, even if it fails."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, check=False).stdout


def make(folder: Path, names: Iterable[str] | None = None) -> list[Path]:
    """Write all files, or those in `names`, that are not there yet; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, arguments in _MADE.items():
        if not (folder / name).exists() and (names is None or name in _needed(names)):
            ffmpeg(*_SOURCE, *arguments, str(folder / name))
    for name, (source, before, after) in _COPIED.items():
        if not (folder / name).exists() and (names is None or name in names):
            ffmpeg(*before, "-i", str(folder / source), "-c", "copy", *after, str(folder / name))
    for name, source in _MID_GOP.items():
        if not (folder / name).exists() and (names is None or name in names):
            skip = ("-copyinkf", "-bsf:v", "noise=drop='lt(n,7)'")
            ffmpeg("-i", str(folder / source), "-c", "copy", *skip, str(folder / name))
    for name, source in _TRUNCATED.items():
        if not (folder / name).exists() and (names is None or name in names):
            content = (folder / source).read_bytes()
            (folder / name).write_bytes(content[: len(content) * int(name[10:12]) // 100])
    wanted = (*_MADE, *_COPIED, *_MID_GOP, *_TRUNCATED)
    return [folder / name for name in wanted if names is None or name in names]


def _needed(names: Iterable[str]) -> set[str]:
    """The names and the names of their sources."""
    sources = {name: source for name, (source, _, _) in _COPIED.items()} | _MID_GOP | _TRUNCATED
    return {*names} | {sources.get(name, name) for name in names}
