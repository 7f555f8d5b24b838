"""Tables as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[object]], right: Sequence[int] | None = None) -> str:
    """A Markdown table.

    Args:
        head: titles of the columns
        lines: cells; None gives an empty one
        right: positions of right-aligned columns; none when not given
    """
    rows = [["" if cell is None else str(cell).replace("|", "\\|") for cell in line] for line in lines]
    aligned = ["right" if position in (right or ()) else "left" for position in range(len(head))]
    # cells are already formatted: tabulate must not parse them as numbers
    return pd.DataFrame(rows, columns=list(head), dtype=str).to_markdown(
        index=False, colalign=aligned if rows else None, disable_numparse=True
    )


def latex_table(frame: pd.DataFrame, caption: str, label: str) -> str:
    """A LaTeX table with the rules of the package booktabs, the first column left- and the others right-aligned.

    Args:
        frame: cells and titles as plain text, which is escaped
        caption: caption above the table, also as plain text
        label: label for references
    """
    escaped = pd.DataFrame({_escape(str(name)): [_escape(str(cell)) for cell in frame[name]] for name in frame})
    return escaped.to_latex(
        index=False,
        escape=False,
        caption=_escape(caption),
        label=label,
        position="tb",
        column_format="l" + "r" * (len(frame.columns) - 1),
    )


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$",
    "−": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _escape(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)
