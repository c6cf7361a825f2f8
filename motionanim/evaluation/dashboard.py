"""Makes a W&B workspace for the runs that evaluate.py logged.

python -m motionanim.evaluation.dashboard --entity E --project motionanim

The report of motionanim.evaluation.report shows more (intervals, protocols, paired differences), without an account.
"""

import argparse
import sys
from collections.abc import Sequence

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from motionanim.evaluation.report.columns import column_of, known_columns

CAVEAT = """These panels show means only. Compare runs whose `n` and benchmark agree; intervals, protocol fingerprints,
paired differences and the meaning of reference rows are in `report.html`, which `evaluate.py` and
`python -m motionanim.evaluation.report` write."""
MOST_RUNS = 100


def scatter(x: str, y: str, *, log_x: bool = False) -> wr.ScatterPlot:
    """A panel with a point for each run."""
    title = f"{column_of(y).header} against {column_of(x).header}"
    return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), log_x=log_x or None)


def bars(key: str) -> wr.BarPlot:
    """A panel with a bar for each run."""
    return wr.BarPlot(
        title=column_of(key).header, metrics=[key], max_bars_to_show=MOST_RUNS, max_runs_to_show=MOST_RUNS
    )


def build_workspace(
    entity: str, project: str, *, group: str | None = None, features: Sequence[str] = ("embedded",)
) -> ws.Workspace:
    """The workspace, not yet saved; needs no server.

    Args:
        entity: W&B user or team.
        project: W&B project that evaluate.py logged to.
        group: Shows only runs of this group, such as gamma or table1; None shows all groups.
        features: Feature extractors whose FVD is shown: NAME of the keys fvd_NAME.

    Raises:
        ValueError: If `entity`, `project` or `features` is empty.
    """
    if not features or not entity or not project:
        raise ValueError(f"entity={entity!r}, project={project!r}, features={list(features)}: none may be empty")
    fvds = [f"fvd_{name}" for name in features]
    quality, control, long_video = (
        [key for key, column in known_columns().items() if column.group == group_name]
        for group_name in ("quality", "control", "long")
    )
    sections = {
        "Gamma: quality and time (Fig. 8)": [
            *(scatter("axes/gamma", fvd) for fvd in fvds),
            scatter("axes/gamma", "seconds"),
            *(scatter("axes/sigma", fvd, log_x=True) for fvd in fvds),
            scatter("axes/gamma", "calls"),
            *(scatter("seconds", fvd) for fvd in fvds),
        ],
        "Quality (Table 1)": [bars(key) for key in (*fvds, *quality)],
        "Long video (Table 2)": [bars(key) for key in (*fvds, "seconds", "calls", *long_video, "warp_error")],
        "Strength and omega (Fig. 7)": [
            scatter("axes/strength", "realised_strength"),
            scatter("requested_strength", "realised_strength"),
            *(scatter("axes/omega", key) for key in (*fvds, "seam_ratio")),
        ],
        "Control": [bars(key) for key in control if column_of(key).direction is not None],
        "Samples side by side": [
            wr.MediaBrowser(title=key, media_keys=[key], num_columns=4, mode="grid", grid_x_axis="index",
                            grid_y_axis="run")
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
            # Grouped by name too, because a group alone would be drawn as one mean.
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
