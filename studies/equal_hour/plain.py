"""The tutorial script: segmentation-models-pytorch in Lightning, using only the packaged weights from bustseg."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset

from bustseg.models.weights import use_packaged_weights
from studies.equal_hour import common

SIZE = 256
BATCH = 16
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Grey image (H, W) as the encoder's input (3, SIZE, SIZE)."""
    small = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    return torch.from_numpy(((small[..., None] - MEAN) / STD).transpose(2, 0, 1).copy())


class Images(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """PNG files, read again in each epoch, flipped at random."""

    def __init__(self, data: Path) -> None:
        self.paths = sorted((data / "images" / "train").glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        path = self.paths[index]
        image = to_tensor(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        mask = cv2.imread(str(path).replace("/images/", "/masks/"), cv2.IMREAD_GRAYSCALE)
        mask = cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
        pair = image, torch.from_numpy((mask > 127).astype(np.float32))[None]
        return (pair[0].flip(-1), pair[1].flip(-1)) if torch.rand(()) < 0.5 else pair


class Plain(pl.LightningModule):
    """Unet, Dice loss, Adam with a cosine over the hour."""

    def __init__(self, data: Path, out: Path, seconds: float) -> None:
        super().__init__()
        self.net = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights="imagenet", in_channels=3, classes=1)
        self.loss = smp.losses.DiceLoss("binary", from_logits=True)
        self.data, self.curve, self.seconds = data, common.Curve(out), seconds
        self.best = out / "best.pt"
        self.rounds, self.validating = 0, 0.0

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Loss of a batch."""
        loss: torch.Tensor = self.loss(self.net(batch[0]), batch[1])
        # the cosine is over the hour, since the number of epochs is unknown
        rate = 0.5 * (1 + np.cos(np.pi * min(common.elapsed() / self.seconds, 1.0)))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = 1e-5 + (2e-4 - 1e-5) * rate
        if common.elapsed() > self.seconds - self.validating:
            self.trainer.should_stop = True
            self.trainer.limit_train_batches = index
        return loss

    def on_train_epoch_end(self) -> None:
        """Score the validation images and keep the best weights."""
        self.rounds += 1
        begun = time.time()
        self.eval()
        if self.curve.add(common.lesion_dice(self.predict, self.data)):
            torch.save(self.net.state_dict(), self.best)
        self.train()
        self.validating = max(self.validating, 1.1 * (time.time() - begun))

    @torch.inference_mode()
    def predict(self, image: np.ndarray) -> np.ndarray:
        """Mask of an image at its own size."""
        logits = self.net(to_tensor(image)[None])[0, 0].numpy()
        height, width = image.shape
        return (cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) > 0).astype(np.uint8)

    def configure_optimizers(self) -> Any:
        """Adam, as in the tutorial."""
        return torch.optim.Adam(self.parameters(), lr=2e-4)


def main() -> None:
    """Train for the hour, then predict."""
    args = common.arguments(__doc__)
    use_packaged_weights()
    pl.seed_everything(0)
    task = Plain(args.data, args.out, args.seconds)
    loader = DataLoader(Images(args.data), BATCH, shuffle=True, drop_last=True)
    trainer = pl.Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(task, loader)
    task.net.load_state_dict(torch.load(task.best, weights_only=True))
    task.eval()
    common.finish(args.out, args.data, task.predict, epochs=task.rounds, steps=trainer.global_step)


if __name__ == "__main__":
    main()
