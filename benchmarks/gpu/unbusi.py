"""On the GPU machine: BUSI at the tables' sizes as PNG, from what `small_busi.py` packed.

python unbusi.py      # in the kit's folder: busi224 -> BUSI224, busi112 -> BUSI112
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2


def convert(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), cv2.imread(str(source), cv2.IMREAD_GRAYSCALE), [cv2.IMWRITE_PNG_COMPRESSION, 1])


def main() -> None:
    for size in (224, 112):
        packed, whole = Path(f"busi{size}"), Path(f"BUSI{size}")
        files = [path for path in sorted(packed.rglob("*")) if path.is_file()]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda p, a=packed, b=whole: convert(p, (b / p.relative_to(a)).with_suffix(".png")), files))


if __name__ == "__main__":
    main()
