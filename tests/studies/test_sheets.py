"""The sheets of the worst images: which images stand on them, in which order, and that they are drawn."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from bustseg import box
from bustseg.data.sources import BUSBRA, BUSUCLM
from studies.cross_source import sheets
from tests.data import layouts


def test_lesions_by_dice_and_false_alarms_by_presence() -> None:
    table = pd.DataFrame(
        {
            "image": list("abcdef"),
            "lesion": [True, True, True, False, False, False],
            "dice": [0.9, 0.1, 0.4, 0.0, 1.0, 0.0],
            "presence": [0.9, 0.8, 0.7, 0.2, 0.1, 0.6],
            "outlined": [True, False, True, True, False, True],
        }
    )
    found = sheets.worst(table, 2)
    assert found["lesions"]["image"].tolist() == ["b", "c"]
    assert found["normals"]["image"].tolist() == ["f", "d"], "a normal image without an outline is no false alarm"


def test_a_sheet_and_a_table_for_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = {"bus_bra": layouts.busbra(tmp_path / "bra"), "bus_uclm": layouts.busuclm(tmp_path / "uclm")}
    names = [
        *(f"bus-bra/{sample.id}" for sample in BUSBRA().read(roots["bus_bra"])),
        *(f"bus-uclm/{sample.id}" for sample in BUSUCLM().read(roots["bus_uclm"])),
    ]
    pd.DataFrame({"image": names, "subset": "val"}).to_csv(tmp_path / "split.csv", index=False)
    options = [item for name, root in roots.items() for item in (f"--{name}", str(root))]
    out = tmp_path / "out"
    monkeypatch.setattr(
        "sys.argv", ["sheets", str(box.FOLDER), "--split", str(tmp_path / "split.csv"), "--out", str(out), *options]
    )
    sheets.main()
    assert len(pd.read_csv(out / "bus-bra.csv")) == 12
    table = pd.read_csv(out / "bus-uclm.csv")
    assert table["lesion"].sum() == 6
    assert table["presence"].between(0, 1).all()
    assert Image.open(out / "bus-bra-lesions.png").width > 1000
