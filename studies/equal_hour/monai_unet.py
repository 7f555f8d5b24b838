"""MONAI's tutorial for a 2-D U-Net (``2d_segmentation/torch``), on BUSI instead of synthetic discs."""

from __future__ import annotations

import cv2
import monai
import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, EnsureTyped, RandCropByPosNegLabeld, RandRotate90d, ScaleIntensityd

from studies.equal_hour import common

SIZE = 256
CROP = 96


def resized(image: np.ndarray, how: int) -> np.ndarray:
    """An image (H, W) as float (1, SIZE, SIZE)."""
    return cv2.resize(image, (SIZE, SIZE), interpolation=how).astype(np.float32)[None]


def main() -> None:
    """Train for the hour, then predict."""
    args = common.arguments(__doc__)
    monai.utils.set_determinism(0)
    pairs = [
        {"img": resized(image, cv2.INTER_LINEAR), "seg": resized(mask, cv2.INTER_NEAREST)}
        for _, image, mask in common.images(args.data, "train")
    ]
    augment = Compose(
        [
            ScaleIntensityd("img"),
            RandCropByPosNegLabeld(["img", "seg"], label_key="seg", spatial_size=(CROP, CROP), num_samples=4),
            RandRotate90d(["img", "seg"], prob=0.5, spatial_axes=(0, 1)),
            EnsureTyped(["img", "seg"]),
        ]
    )
    loader = DataLoader(Dataset(pairs, augment), batch_size=2, shuffle=True)
    network = monai.networks.nets.UNet(2, 1, 1, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    loss_of = monai.losses.DiceLoss(sigmoid=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    @torch.inference_mode()
    def predict(image: np.ndarray) -> np.ndarray:
        scaled = ScaleIntensityd("img")({"img": torch.from_numpy(resized(image, cv2.INTER_LINEAR))})["img"]
        logits = sliding_window_inference(torch.as_tensor(np.asarray(scaled))[None], (CROP, CROP), 4, network)
        height, width = image.shape
        full = cv2.resize(np.asarray(logits)[0, 0], (width, height), interpolation=cv2.INTER_LINEAR)
        return (full > 0).astype(np.uint8)

    curve, best, steps, epochs, validating = common.Curve(args.out), args.out / "best.pt", 0, 0, 0.0
    while not epochs or common.elapsed() < args.seconds - validating:
        network.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_of(network(batch["img"]), batch["seg"])
            loss.backward()
            optimizer.step()
            steps += 1
            if common.elapsed() > args.seconds - validating:
                break
        epochs += 1
        network.eval()
        begun = common.elapsed()
        if curve.add(common.lesion_dice(predict, args.data)):
            torch.save(network.state_dict(), best)
        validating = max(validating, 1.1 * (common.elapsed() - begun))
    network.load_state_dict(torch.load(best, weights_only=True))
    network.eval()
    common.finish(args.out, args.data, predict, epochs=epochs, steps=steps, monai=monai.__version__)


if __name__ == "__main__":
    main()
