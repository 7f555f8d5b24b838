"""Test the paper's comparisons on rows of table 1 that were run with several seeds.

    python -m studies.paper_claims ROWS

``ROWS`` holds ``row_RR_seed_S.csv``: the per-image table from `bustseg test` (``tables/test.csv``). For
each comparison the images' Dice (convention `paper`) is averaged over the seeds that both rows have; the interval is a
bootstrap over images and seeds together, p is Wilcoxon's over images, corrected by Holm over all comparisons.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from bustseg.statistics import holm, wilcoxon

CLAIMS = [
    ("CBAM is better than no attention (BCE)", 1, 7, +1),
    ("Non-Local is better than no attention (BCE)", 3, 7, +1),
    ("CBAM is better than Non-Local (BCE)", 1, 3, +1),
    ("CBAM is better than no attention (Dice loss)", 2, 8, +1),
    ("BCE is better than Dice loss (CBAM)", 1, 2, +1),
    ("BCE is better than Dice loss (no attention)", 7, 8, +1),
    ("trainable encoders are better than frozen (BCE)", 7, 6, +1),
    ("trainable encoders are better than frozen (Dice loss)", 8, 5, +1),
    ("three encoders are better than two (BCE)", 7, 19, +1),
]
"""The conclusions of the paper's table 1: a sentence, the better row, the other row, and the sign."""

RESAMPLES = 10_000


def read(folder: Path) -> dict[int, dict[int, pd.Series]]:
    """Dice per image by row and seed."""
    found: dict[int, dict[int, pd.Series]] = {}
    for path in sorted(folder.glob("row_*_seed_*.csv")):
        match = re.fullmatch(r"row_(\d+)_seed_(\d+)", path.stem)
        assert match is not None
        table = pd.read_csv(path).set_index("image")["dice_paper"]
        found.setdefault(int(match[1]), {})[int(match[2])] = table.sort_index()
    return found


def difference(first: Mapping[int, pd.Series], second: Mapping[int, pd.Series]) -> tuple[float, float, float, float]:
    """Mean difference over images and common seeds, the limits of its 95 % interval, and p."""
    seeds = sorted(set(first) & set(second))
    values = np.stack([(first[seed] - second[seed]).to_numpy() for seed in seeds])  # (seeds, images)
    rng = np.random.default_rng(0)
    draws = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        chosen = values[rng.integers(len(seeds), size=len(seeds))].mean(0)
        draws[k] = chosen[rng.integers(values.shape[1], size=values.shape[1])].mean()
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(values.mean()), float(low), float(high), wilcoxon(values.mean(0))


def claims(rows: Mapping[int, Mapping[int, pd.Series]], paper: Mapping[int, float]) -> pd.DataFrame:
    """A row per comparison for which both rows are available.

    Args:
        rows: Dice per image by row and seed
        paper: the paper's Dice by row
    """
    known = [claim for claim in CLAIMS if claim[1] in rows and claim[2] in rows]
    found = [difference(rows[first], rows[second]) for _, first, second, _ in known]
    corrected = holm([p for *_, p in found])
    table = []
    for (text, first, second, sign), (mean, low, high, _), p in zip(known, found, corrected, strict=True):
        decided = p < 0.05 and low * high > 0
        verdict = "not decided" if not decided else "the same" if mean * sign > 0 else "the opposite"
        table.append(
            {
                "the paper says": text,
                "rows": f"{first}, {second}",
                "its difference": f"{paper[first] - paper[second]:+.3f}",
                "ours": f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]",
                "seeds": len(set(rows[first]) & set(rows[second])),
                "p (Holm)": f"{p:.3f}",
                "verdict": verdict,
            }
        )
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    args = parser.parse_args()
    from bustseg.paper.tables import find_table, read_table

    paper = {row.row: row.paper["dice"] for row in read_table(find_table("1", "offline")).rows}
    print(claims(read(args.rows), paper).to_markdown(index=False))


if __name__ == "__main__":
    main()
