"""What the benchmark of methods measured, as a table and as a picture."""

from itertools import cycle
from pathlib import Path
from typing import Any

from rich.table import Table

COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#f08c00", "#1864ab", "#862e9c", "#495057", "#c92a2a")
GREYS = ("#adb5bd", "#343a40", "#868e96")
LEVELS = ("purer", "free", "best_single")
"""Methods on weights that are drawn; the table has all."""


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
    """Accuracy against queries, 1 shot beside 5 shots, written as PNG: a colour a method.

    What spends no query, such as a method on published weights, is a level in the method's colour; a bound is one in grey.
    Answers that tell less are in the table alone.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.axes import Axes

    figure, both = pyplot.subplots(1, 2, figsize=(9.5, 4.4), layout="constrained")
    shots = ("1shot", "5shot")

    def level(axes: Axes, shot: str, name: str, row: dict[str, Any], style: str, colour: str) -> None:
        axes.axhline(row[shot], color=colour, linestyle=style, linewidth=1.3, label=name)

    for axes, shot in zip(both, shots, strict=True):
        palette, greys = cycle(COLOURS), cycle(GREYS)
        for method, budgets in result["methods"].items():
            if any(part == "label" or ":" in part for part in method.split(", ")):
                continue
            done = [row for row in budgets.values() if row != "not_run"]
            if method in result["bounds"]:
                for row in done[:1]:
                    level(axes, shot, f"({method})", row, "-.", next(greys))
                continue
            asked = [row for row in done if row["queries"]]
            levels = [row for row in done if not row["queries"] and method in LEVELS]
            if not asked and not levels:
                continue
            colour = next(palette)
            for row in levels:
                level(axes, shot, f"{method}, on weights", row, "--", colour)
            if asked:
                axes.errorbar(
                    [row["queries"] for row in asked],
                    [row[shot] for row in asked],
                    [row["interval"][shot] for row in asked],
                    marker="o", markersize=5, capsize=3, color=colour, label=method,
                )  # fmt: skip
        level(axes, shot, "untrained network", result["random"], ":", "#495057")
        axes.set(
            xscale="log",
            xlabel="images sent to all APIs together",
            ylabel="5-way accuracy, %",
            title=f"{shot[0]} example{'s' if shot[0] != '1' else ''} a class",
        )
        axes.grid(alpha=0.3)
    figure.suptitle(f"{result['dataset']}: {result['teachers']}")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
