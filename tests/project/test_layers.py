"""Rules of the code base: which part imports which, where third parties are imported, sizes of files and folders."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "motionanim"
ENTRY_POINTS = {
    "train.py", "evaluate.py", "motionanim/cli/command.py", "motionanim/animate.py",
    "motionanim/data/prepare/__main__.py", "motionanim/data/encode.py", "motionanim/export.py",
    "motionanim/page/__main__.py",
}  # fmt: skip

# A part imports its own folder and parts of lower layers. A module belongs to the longest name that fits it.
LAYERS = {
    "types": 0, "files": 0, "cli.settings": 0, "cli.progress": 0, "cli.memory": 0,
    "media": 1, "data.video": 2, "motion": 2, "models": 3,
    "data": 4, "metrics": 4, "sampling": 4, "evaluation.manifest": 4, "evaluation.templates": 4,
    "evaluation.vbench.scores": 4,
    "evaluation.scores.statistics": 5,
    "evaluation.report": 6, "evaluation.study": 6,
    "training": 7, "evaluation": 7, "animation": 7,
    "cli.command": 8, "animation.job": 9, "export": 9, "interchange": 9, "animate": 10, "page": 11,
}  # fmt: skip
MOST_FILES = 12  # per folder

# Third party: beginnings of the paths that may import it.
FENCES = {
    "decord": ("motionanim/data/video/reader.py", "benchmarks/data_loading.py"),
    "av": ("motionanim/data/video/", "tests/", "benchmarks/"),
    "imageio_ffmpeg": ("benchmarks/",),
    "pillow_heif": ("motionanim/media/image_io.py", "benchmarks/fuzz.py", "tests/"),
    "timm": ("motionanim/models/pretrained.py", "motionanim/models/video_transformer.py"),
    "diffusers": (
        "motionanim/models/svd/", "motionanim/training/patch_pca.py", "motionanim/cli/command.py", "tests/",
        "benchmarks/",
    ),
    "lightning": (
        "motionanim/training/", "motionanim/data/", "train.py", "motionanim/cli/command.py", "tests/", "benchmarks/",
    ),
    "hydra": (
        *ENTRY_POINTS, "motionanim/animation/job.py", "motionanim/cli/settings.py", "tests/", "benchmarks/",
    ),
    "fsspec": ("motionanim/data/latents/remote.py", "tests/"),
    "litdata": ("benchmarks/",),
    "pyarrow": ("motionanim/data/hdvila_index.py", "tests/", "benchmarks/data_growth.py"),
    "ray": ("motionanim/data/engine.py", "tests/"),
    "webdataset": ("tests/", "benchmarks/"),
    "starlette": ("motionanim/page/", "tests/"),
    "uvicorn": ("motionanim/page/__main__.py",),
    "wandb": ("train.py", "evaluate.py", "motionanim/evaluation/dashboard.py"),
    "wandb_workspaces": ("motionanim/evaluation/dashboard.py", "tests/"),
}  # fmt: skip


def sources() -> list[Path]:
    folders = (PACKAGE, ROOT / "tests", ROOT / "benchmarks")
    return [ROOT / "train.py", ROOT / "evaluate.py", *(path for folder in folders for path in folder.rglob("*.py"))]


@functools.cache
def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(module: str) -> str | None:
    """The part of the package that a module, without `motionanim.`, belongs to."""
    fitting = [name for name in LAYERS if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


def module_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE)).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_files_import_lower_layers_or_their_own_folder() -> None:
    wrong = []
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"}:
        if str(path.relative_to(ROOT)) in ENTRY_POINTS:
            continue
        own = part(module_of(path))
        for name in imports(path):
            other = part(name.removeprefix("motionanim.")) if name.startswith("motionanim.") else None
            if other not in (None, own) and LAYERS[other] >= LAYERS[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_every_module_of_the_package_has_a_layer() -> None:
    for path in PACKAGE.rglob("*.py"):
        folder = path.name == "__init__.py" and any(name.startswith(module_of(path)) for name in LAYERS)
        assert folder or path == PACKAGE / "__init__.py" or part(module_of(path)), path


def test_folders_stay_small() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    sizes = {str(each.relative_to(ROOT)): len(list(each.glob("*.py"))) for each in folders}
    assert {name: count for name, count in sizes.items() if count > MOST_FILES} == {}
    assert sizes["motionanim"] <= 7


def test_animate_imports_nothing_that_windows_lacks() -> None:
    todo = [PACKAGE / "animate.py", *(PACKAGE / "sampling").glob("*.py")]  # those are named by the settings
    seen = set()
    while todo:
        path = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        at_once = ast.unparse([node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import)])
        assert {"fcntl", "resource", "pwd", "termios"}.isdisjoint(at_once.split()), path
        for name in imports(path):
            stem = ROOT / name.replace(".", "/")
            todo += [stem.with_suffix(".py"), stem / "__init__.py"]
    assert len(seen) > 30


def test_third_parties_are_imported_where_they_may_be() -> None:
    wrong = []
    for path in sources():
        relative = str(path.relative_to(ROOT))
        for name in imports(path):
            fence = FENCES.get(name.split(".")[0])
            if fence is not None and not relative.startswith(fence):
                wrong.append(f"{relative} imports {name}")
    assert wrong == []


def test_files_stay_small() -> None:
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources() if "tests" not in p.parts}
    assert {name: lines for name, lines in sizes.items() if lines > 350} == {}
