"""A W&B workspace over the runs that evaluate.py logged.

python -m motionanim.evaluation.dashboard --entity E --project motionanim

The page of motionanim.evaluation.report says more (intervals, protocols, paired differences) and needs no account.
"""

import argparse
import sys
from collections.abc import Sequence

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from motionanim.evaluation.report.keys import describe

CAVEAT = """These panels show means only. Compare runs whose `n` and benchmark agree; intervals, protocol fingerprints,
paired differences and the control rows' meaning are in `report.html`, which `evaluate.py` and
`python -m motionanim.evaluation.report` write."""
MOST_RUNS = 100


def scatter(x: str, y: str, *, log_x: bool = False) -> wr.ScatterPlot:
    """A point a run."""
    return wr.ScatterPlot(
        title=f"{describe(y).header} against {describe(x).header}",
        x=wr.SummaryMetric(x),
        y=wr.SummaryMetric(y),
        log_x=log_x or None,
    )


def bars(key: str) -> wr.BarPlot:
    """A bar a run."""
    return wr.BarPlot(title=describe(key).header, metrics=[key], max_bars_to_show=MOST_RUNS, max_runs_to_show=MOST_RUNS)


def build_workspace(
    entity: str, project: str, *, group: str | None = None, features: Sequence[str] = ("embedded",)
) -> ws.Workspace:
    """The workspace, not yet saved; asks nothing of a server.

    Args:
        entity: W&B user or team.
        project: Where evaluate.py logged to.
        group: Only runs of this group, such as gamma or table1; None shows all, grouped.
        features: Feature extractors whose FVD is shown, as in the keys fvd_NAME.

    Raises:
        ValueError: If `entity`, `project` or `features` is empty.
    """
    if not features or not entity or not project:
        raise ValueError(f"entity={entity!r}, project={project!r}, features={list(features)}: none may be empty")
    fvds = [f"fvd_{name}" for name in features]
    sections = {
        "Gamma: quality and time (Fig. 8)": [
            *(scatter("axes/gamma", fvd) for fvd in fvds),
            scatter("axes/gamma", "seconds"),
            *(scatter("axes/sigma", fvd, log_x=True) for fvd in fvds),
            scatter("axes/gamma", "calls"),
            *(scatter("seconds", fvd) for fvd in fvds),
        ],
        "Quality (Table 1)": list(map(bars, (*fvds, "psnr", "ssim", "lpips", "clip_consistency", "flicker"))),
        "Long video (Table 2)": list(
            map(bars, (*fvds, "seconds", "calls", "seam_ratio", "wrap_ratio", "periodicity", "warp_error"))
        ),
        "Strength and omega (Fig. 7)": [
            scatter("axes/strength", "realised_strength"),
            scatter("requested_strength", "realised_strength"),
            *(scatter("axes/omega", key) for key in (*fvds, "seam_ratio")),
        ],
        "Control": list(
            map(
                bars,
                (
                    "flow_epe", "direction_error", "within_30", "speed_gain", "static_drift", "static_change",
                    "moved_precision", "moved_recall", "camera_residual",
                ),
            )
        ),
        "Samples side by side": [
            wr.MediaBrowser(
                title=key, media_keys=[key], num_columns=4, mode="grid", grid_x_axis="index", grid_y_axis="run"
            )
            for key in ("samples", "strips")
        ],
        "Clips and settings": [
            wr.MarkdownPanel(CAVEAT),
            wr.WeavePanelSummaryTable(table_name="clips"),
            wr.RunComparer(diff_only="split"),
        ],
    }  # fmt: skip
    pinned = (*fvds, "psnr", "lpips", "seam_ratio", "seconds", "calls", "axes/gamma", "axes/sigma")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Evaluation: {group}" if group else "Evaluation",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == group) if group else "",
            # Name below group: by group alone a sweep would be drawn as one mean.
            groupby=[ws.Metric("Group"), ws.Metric("Name")],
            order=[ws.Ordering(ws.Metric("Name"), ascending=True)],
            pinned_columns=[f"summary:{key}" for key in pinned],
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m motionanim.evaluation.dashboard", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", required=True, help="W&B project that evaluate.py logged to: motionanim")
    parser.add_argument("--group", help="only runs of this group, such as gamma or table1 (default: all)")
    parser.add_argument(
        "--features", nargs="+", default=["embedded"], metavar="NAME", help="extractors whose FVD to show"
    )
    options = parser.parse_args(arguments)
    try:
        built = build_workspace(options.entity, options.project, group=options.group, features=options.features)
        print(built.save().url)
    except wandb.errors.UsageError as error:
        told = "run `wandb login` or set WANDB_API_KEY; without an account open report.html, which evaluate.py writes"
        print(f"error: W&B refused ({' '.join(str(error).split())}): {told}", file=sys.stderr)
        return 2
    except (ValueError, OSError, wandb.errors.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
