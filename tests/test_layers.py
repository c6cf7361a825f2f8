"""The house rules that code can check: who may import whom, and file sizes."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "motionanim"
ENTRY_POINTS = {
    "train.py", "evaluate.py", "motionanim/entry.py", "motionanim/animate.py",
    "motionanim/data/prepare.py", "motionanim/data/encode.py", "motionanim/export.py",
}  # fmt: skip

LAYERS = {
    "types": 0, "files": 0, "bases": 0, "settings": 0, "fingerprint": 0, "run_folder": 0, "interval": 0,
    "precision": 0, "progress": 0,
    "flow": 1, "schedule": 1, "camera": 1, "hints": 1, "pictures": 1, "images": 1,
    "paths": 1, "example_arrows": 1, "regions": 1, "drawing": 1, "motion_kinds": 1,
    "report": 2, "losses": 2, "sampling": 2, "models": 2, "data": 2, "metrics": 2, "controls": 2,
    "long_video": 3, "study": 3,
    "generate": 4,
    "training": 5, "evaluation": 5, "renderers": 5,
    "entry": 6, "dashboard": 6, "animation": 7, "export": 7, "animate": 8,
}  # fmt: skip

# Third party -> where it may be imported, as path prefixes.
FENCES = {
    "decord": ("motionanim/data/video.py", "benchmarks/data_loading.py"),
    "av": (
        "motionanim/data/video.py",
        "motionanim/data/video_index.py",
        "motionanim/data/video_frames.py",
        "motionanim/data/layouts.py",
        "tests/",
        "benchmarks/",
    ),
    "imageio_ffmpeg": ("benchmarks/",),
    "pillow_heif": ("motionanim/images.py", "tests/"),
    "timm": ("motionanim/models/pretrained.py",),
    "diffusers": ("motionanim/models/", "motionanim/entry.py", "tests/", "benchmarks/"),
    "lightning": (
        "motionanim/training/",
        "motionanim/data/",
        "train.py",
        "motionanim/entry.py",
        "tests/",
        "benchmarks/",
    ),
    "hydra": (*ENTRY_POINTS, "motionanim/animation.py", "motionanim/settings.py", "tests/", "benchmarks/"),
    "fsspec": ("motionanim/data/remote.py", "tests/"),
    "litdata": ("benchmarks/",),
    "pyarrow": ("motionanim/data/hdvila_index.py", "tests/", "benchmarks/data_growth.py"),
    "ray": ("motionanim/data/engine.py", "tests/"),
    "webdataset": ("tests/", "benchmarks/"),
    "wandb": ("train.py", "evaluate.py", "motionanim/dashboard.py"),
    "wandb_workspaces": ("motionanim/dashboard.py", "tests/"),
}


def sources() -> list[Path]:
    return [
        ROOT / "train.py",
        ROOT / "evaluate.py",
        *PACKAGE.rglob("*.py"),
        *(ROOT / "tests").glob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_lower_layers_or_its_own_folder(path: Path) -> None:
    if path == PACKAGE / "__init__.py" or str(path.relative_to(ROOT)) in ENTRY_POINTS:
        return
    own = part(path)
    for name in imports(path):
        if name.startswith("motionanim."):
            other = name.split(".")[1]
            if other in LAYERS:
                same_folder = other == own and path.parent != PACKAGE
                same_layer_file = other != own and path.parent == PACKAGE and LAYERS[other] == LAYERS[own] == 1
                assert LAYERS[other] < LAYERS[own] or same_folder or same_layer_file, f"{own} imports {other}"


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {part(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} <= LAYERS.keys()


def test_animate_imports_nothing_that_windows_lacks() -> None:
    todo = [PACKAGE / "animate.py", *(PACKAGE / "long_video").glob("*.py")]  # those are named by the settings
    seen = set()
    while todo:
        path = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        at_once = ast.unparse([node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import)])
        assert {"fcntl", "resource", "pwd", "termios"}.isdisjoint(at_once.split()), path
        todo += [ROOT / f"{name.replace('.', '/')}.py" for name in imports(path)]
    assert len(seen) > 30


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_third_parties_stay_behind_their_fences(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    for name in imports(path):
        fence = FENCES.get(name.split(".")[0])
        assert fence is None or relative.startswith(fence), f"{relative} imports {name}"


def test_files_stay_small() -> None:
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources() if "tests" not in p.parts}
    assert {name: lines for name, lines in sizes.items() if lines > 350} == {}
