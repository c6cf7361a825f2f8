"""Evaluate a method on a benchmark, or a sweep.

python evaluate.py benchmark=synthetic16 method=ours
python evaluate.py -m sweep=gamma
python evaluate.py truth=DIR videos=DIR
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import wandb
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from motionanim.cli.command import one_line_errors, quiet, wandb_offline, wandb_unreachable
from motionanim.cli.settings import command
from motionanim.evaluation.benchmark import Benchmark
from motionanim.evaluation.harness import Finished, Options, evaluate
from motionanim.evaluation.methods import Method
from motionanim.evaluation.report import write_report
from motionanim.evaluation.scores.scoring import FeatureCache, Missing, Scorer
from motionanim.models.pretrained import MissingWeights
from motionanim.sampling.animator import pick_device
from motionanim.training.runs.folder import tracking_id

LOGGED = "wandb.logged"  # marks a run folder that W&B has

# Settings left out of a method's identity: a name, and paths of files that are identified by their hashes. `control`
# and `release` are left out because methods put them into their own identity where they act.
NOT_SETTINGS = ("label", "base", "refiner", "loras", "folders", "side", "control", "release")


@command
@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@one_line_errors
def main(cfg: DictConfig) -> None:
    quiet()
    # Everything is read and checked before any work, so that a wrong folder is found at once.
    benchmark = hydra.utils.instantiate(cfg.benchmark, _convert_="all")
    todo = list(methods(cfg, benchmark))
    scorer = build_scorer(cfg)
    if benchmark.request is None:
        print("\n".join(f"{cfg.name}: {note}" for note in benchmark.stated["notes"]))
        if not cfg.metrics.required:
            scorer.leave_out_short(benchmark.reading.num_frames)
    options = Options(keep_frames=cfg.keep_frames, show=cfg.show, progress=cfg.progress)
    root, sweep = Path(cfg.paths.run), HydraConfig.get().runtime.choices.get("sweep")
    finished = []
    for method, settings in todo:
        axes = {} if method.reference or cfg.axes is None else OmegaConf.to_container(cfg.axes, resolve=True)
        done = evaluate(
            benchmark.of(method.place), method, scorer, root=root, seed=cfg.seed, window=cfg.scale.num_frames,
            settings=settings, about={"sweep": sweep, "axes": axes}, options=options,
        )  # fmt: skip
        did = "read" if method.place else "made"
        print(f"{done.label}: {done.made} clips {did}, {done.scored} scored: {done.folder}")
        finished.append(done)
    print(f"features of true clips that were not in the cache: {scorer.cache.computed}")
    # With several processes, the one that finds all summaries writes the report.
    if all((done.folder / "result.json").exists() for done in finished):
        page = write_report([root], root / "report", skip_unfinished=True)
        # The table is what somebody with videos of their own came for; LaTeX too, so that it can go into a paper.
        kinds = ("paper.md", "paper.tex") if benchmark.request is None else ("paper.md",)
        print(*((page.parent / name).read_text(encoding="utf-8") for name in kinds), f"report: {page}", sep="\n")
    for done in finished:
        if cfg.wandb and done.result is not None and (done.scored or not (done.folder / LOGGED).exists()):
            log(cfg, done)
            (done.folder / LOGGED).touch()


def methods(cfg: DictConfig, benchmark: Benchmark) -> Iterator[tuple[Method, dict[str, Any]]]:
    """The reference rows and then the method or methods, each with the settings that determine its videos."""
    for name in cfg.reference_rows:
        node = compose(f"method/{name}").method
        if node.kind == "flipped" and benchmark.request is None:
            continue  # there is no motion to oppose
        yield hydra.utils.instantiate(node), {"kind": node.kind}
    given = {}
    if "folders" in cfg.method:
        truth = cfg.benchmark.get("root") or cfg.benchmark.get("truth") or ""
        given = {"benchmark": benchmark, "truth": truth}
    made = hydra.utils.instantiate(cfg.method, _convert_="all", **given)
    settings = OmegaConf.to_container(cfg.method, resolve=True)
    settings = {key: value for key, value in settings.items() if key not in NOT_SETTINGS}
    for method in made if isinstance(made, list) else [made]:
        yield method, settings


def scores_given_videos(arguments: list[str]) -> list[str]:
    """The arguments of a command line, with score=given if they name truth= or videos=.

    Raises:
        ValueError: If one of the two is missing, or a benchmark or a method is chosen beside them.
    """
    names = [argument.partition("=")[0] for argument in arguments]
    if not {"truth", "videos"} & set(names) or "score" in names:
        return arguments
    for name, other in (("truth", "videos"), ("videos", "truth")):
        if name not in names:
            raise ValueError(f"{name}= is missing: truth=DIR videos=DIR scores given videos, and {other}= is given")
    if chosen := {"benchmark", "method"} & set(names):
        raise ValueError(
            f"{min(chosen)}= beside truth= and videos=: these score given videos. To score a method on clips of your "
            "own, give benchmark=folder benchmark.root=DIR method=..."
        )
    return ["score=given", *arguments]


def build_scorer(cfg: DictConfig) -> Scorer:
    """The metrics, with `Missing` for those whose weights are not here.

    Raises:
        ValueError: If weights of a metric in `metrics.required` are missing, whose message names all such files, or two
            extractors compute the same features.
    """
    device, absent = pick_device(), []
    ready: dict[str, dict[str, Any]] = {"clip": {}, "features": {}}
    for part, built in ready.items():
        for name, node in cfg.metrics[part].items():
            try:
                made = hydra.utils.instantiate(node, _convert_="all").to(device)
            except InstantiationException as error:
                cause = error
                while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
                    cause = cause.__cause__
                if not isinstance(cause, MissingWeights):
                    raise
                if name in cfg.metrics.required:
                    absent.append(str(cause))
                kind = hydra.utils.get_object(node._target_)
                made = Missing(tuple(kind.keys) if part == "clip" else (), cause.short)
            # An extractor is named after its protocol, whatever the configuration calls it.
            own = f"i3d_{node.protocol}" if node._target_.endswith(".I3DFeatures") else name
            if own in built:
                raise ValueError(f"metrics.{part}.{name}: another one computes {own} too; leave one of the two out")
            built[own] = made
    if absent:
        raise ValueError("; ".join(absent))
    return Scorer(ready["clip"], ready["features"], FeatureCache(Path(cfg.paths.features)))


def log(cfg: DictConfig, done: Finished) -> None:
    """Log a W&B run of one method: summary, a row per clip, sample videos, strips of frames, and the report's plots."""
    result, offline = done.result, wandb_offline()
    if not offline and (reason := wandb_unreachable()) is not None:
        print(f"W&B cannot be reached ({reason}): {result['label']} is logged offline; `wandb sync` uploads it later")
        offline = True
    run = wandb.init(
        project="motionanim", group=cfg.name[:128], job_type="evaluate", name=result["label"][:128],  # W&B's bound
        id=tracking_id(done.folder), resume="allow", dir=done.folder, mode="offline" if offline else None,
        config={key: result[key] for key in ("benchmark", "n", "reference", "saw_motion", "seed", "settings")},
        settings=wandb.Settings(silent=True),
    )  # fmt: skip
    table = wandb.Table(["clip", "seconds", "calls", *result["metrics"]])
    for row in done.rows:
        table.add_data(
            row["clip"], row["seconds"], row["calls"], *(row["metrics"].get(key) for key in result["metrics"])
        )
    plots = sorted((done.folder.parent / "report" / "plots").glob("*.png"))
    videos, strips = (sorted((done.folder / part).glob("*")) for part in ("videos", "strips"))
    run.log(
        {
            "clips": table,
            "samples": [wandb.Video(str(path), caption=path.stem, format="mp4") for path in videos],
            "strips": [wandb.Image(str(path), caption=path.stem) for path in strips],
            **{f"plots/{path.stem}": wandb.Image(str(path)) for path in plots},
        }
    )
    scalars = {key: entry["mean"] for key, entry in result["metrics"].items()} | result["cost"]
    scalars |= {f"axes/{name}": value for name, value in result["axes"].items()}
    run.summary.update({key: value for key, value in scalars.items() if value is not None})
    run.finish()


if __name__ == "__main__":
    try:
        sys.argv[1:] = scores_given_videos(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    main()
