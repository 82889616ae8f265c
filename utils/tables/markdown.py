"""Markdown tables, and how their figures are written."""

import statistics


def markdown_table(header, rows):
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def mean_std(values):
    """ "87.20 ± 0.10 (3)": mean, sample standard deviation, count; "87.20 (1)" of a single value."""
    if len(values) == 1:
        return f"{values[0]:.2f} (1)"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"
