"""The streaming metrics in two real processes. Few imports: each process repeats them."""

from pathlib import Path

import torch
from torch import Tensor

from bustseg.metrics import ImageShapes, PixelCurves, SegmentationMetrics, ThresholdSweep


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(12, 1, 9, 7, generator=generator)
    mask = (torch.rand(12, 1, 9, 7, generator=generator) < 0.3) & (torch.rand(12, 1, 1, 1, generator=generator) < 0.8)
    return logits, mask, torch.randint(0, 4, (12,), generator=generator)


def overlap(*parts: list[int]) -> SegmentationMetrics:
    logits, mask, label = data()
    metric = SegmentationMetrics()
    for part in parts:
        metric.update(logits[part], mask[part], label[part], torch.tensor(part))
    return metric


def curves(*parts: list[int]) -> PixelCurves:
    logits, mask, _ = data()
    metric = PixelCurves()
    for part in parts:
        metric.update(logits[part], mask[part])
    return metric


def shapes(*parts: list[int]) -> tuple[ImageShapes, ThresholdSweep]:
    logits, mask, _ = data()
    metrics = ImageShapes(), ThresholdSweep()
    for part in parts:
        for metric in metrics:
            metric.update(logits[part], mask[part], torch.tensor(part))
    return metrics


def _process(rank: int, store: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    padded = overlap(*([[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11, 0]])[rank])
    one_sided = overlap(*([[*range(12)]], [])[rank])
    pixels = curves(*([[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11]])[rank])
    outlines, sweep = shapes(*([[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11, 0]])[rank])
    found = {
        "shapes": {name: torch.from_numpy(values.copy()) for name, values in outlines.per_image().items()},
        "sweep": sweep.compute(),
        "padded": padded.compute(),
        "images": padded.per_image(),
        "own rows": sum(map(len, padded.rows)),
        "one-sided": one_sided.compute(),
        "auc": pixels.compute(),
        "roc": pixels.roc(),
    }
    torch.save(found, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The first process has 8 images, the second 4 and one of the first's; and once the second has none at all."""
    torch.multiprocessing.spawn(_process, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    everything = list(range(12))
    whole, pixels = overlap(everything).compute(), curves(everything)
    outlines, sweep = shapes(everything)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["padded"] == found["one-sided"] == whole
        assert found["images"]["index"].tolist() == everything
        assert found["own rows"] == (8, 5)[rank]  # joining leaves each process its own part
        for name, values in outlines.per_image().items():
            # not to the last bit: a vectorised sigmoid depends on a pixel's place in the batch
            torch.testing.assert_close(
                found["shapes"][name], torch.from_numpy(values.copy()), rtol=1e-6, atol=0, equal_nan=True
            )
        assert all(torch.equal(found["sweep"][name], values) for name, values in sweep.compute().items())
        assert found["auc"] == pixels.compute()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found["roc"], pixels.roc(), strict=True))
