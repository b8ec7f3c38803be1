"""What the benchmark of methods measured, as a table and as a picture."""

from pathlib import Path
from typing import Any

from rich.table import Table


def table(result: dict[str, Any]) -> Table:
    """A row for each method and budget; bounds stand in brackets."""
    made = Table(title=f"5-way accuracy, {result['dataset']}, {result['teachers']}; random init {result['random']}")
    for heading in ("method", "queries", "1-shot", "5-shot", "seeds", "seconds a run"):
        made.add_column(heading, justify="right")
    for method, budgets in result["methods"].items():
        name = f"({method})" if method in result["bounds"] else method
        for budget, row in budgets.items():
            if row == "not_run":
                made.add_row(name, budget, *["not run"] * 4)
                continue
            cells = [f"{row[shot]:.1f} ± {row['interval'][shot]:.1f}" for shot in ("1shot", "5shot")]
            made.add_row(name, f"{row['queries']:,}", *cells, str(row["seeds"]), f"{row['seconds']:.0f}")
    return made


def plot(result: dict[str, Any], path: Path) -> None:
    """A curve of accuracy for each method with two budgets or more, written as PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    colours = {"5shot": "#0b7285", "1shot": "#e8590c"}
    for method, budgets in result["methods"].items():
        done = [row for row in budgets.values() if row != "not_run" and row["queries"]]
        if len(done) < 2:  # no curve
            continue
        for shot, colour in colours.items():
            axes.errorbar(
                [row["queries"] for row in done],
                [row[shot] for row in done],
                [row["interval"][shot] for row in done],
                marker="o", capsize=3, color=colour, label=f"{method}, {shot[0]}-shot",
            )  # fmt: skip
    for shot, colour in colours.items():
        axes.axhline(result["random"][shot], color=colour, linestyle=":", label=f"untrained network, {shot[0]}-shot")
    axes.set(
        xscale="log",
        xlabel="images sent to all APIs together",
        ylabel="5-way accuracy, %",
        title=f"{result['dataset']}: {result['teachers']}",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
