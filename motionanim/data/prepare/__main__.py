"""python -m motionanim.data.prepare root=FOLDER: index videos, cache their flow, and find the fixed-lens ones."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from motionanim.cli.command import CONF, one_line_errors
from motionanim.cli.settings import command
from motionanim.data.clips import check_root
from motionanim.data.folder import folder_names
from motionanim.data.hdvila import hdvila_names
from motionanim.data.prepare.collect import prepare
from motionanim.data.prepare.examine import Settings


@command
@hydra.main(config_path=str(CONF), config_name="prepare", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    """Prepare `root`: see conf/prepare.yaml."""
    root = check_root(config.root).absolute()
    out = Path(config.out)
    names = folder_names(root) if config.jsonl is None else hdvila_names(root, jsonl=config.jsonl)
    counts = prepare(
        root=root,
        names=names,
        out=out,
        cache=Path(config.flow_cache).absolute(),
        settings=Settings(**config.settings),
        flow_estimator=hydra.utils.instantiate(config.flow_estimator),
        engine=hydra.utils.instantiate(config.engine),
        max_static=config.max_static,
        shapes=hydra.utils.instantiate(config.shapes),
    )
    print((out / "report.md").read_text(encoding="utf-8"))
    print(f"{counts['resumed']} clips were done before; results are in {out}")


if __name__ == "__main__":
    main()
