"""Tables of reports in Markdown, aligned so that they also read well on a terminal."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """Returns a table whose first row is its head; numbers are right-aligned.

    Args:
        rows: Cells, as many in each row.
        words: Left-aligns the first column.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{'-' * (width - 1)}:" for width in widths]
    if words:
        lines[0] = "-" * widths[0]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        if words:
            cells[0] = row[0].ljust(widths[0])
        return f"| {' | '.join(cells)} |"

    head, *others = rows
    return "\n".join(map(line, [head, lines, *others]))
