"""The LightningDataModule: combines source, split, cache and augmentation into batches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import albumentations as A
import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from bustseg.data.cache import ImageCache, cache_root, cached_groups, load_cache
from bustseg.data.duplicates import THRESHOLD
from bustseg.data.sources import BUSI, LABELS, Sample, Source
from bustseg.data.splits import make_split, needs_groups, split_digest
from bustseg.data.transforms import Augmentation
from bustseg.errors import DataError
from bustseg.framing import Framing, Resize

SUBSETS = ("train", "val", "test")
Preset = Literal["none", "ultrasound", "ultrasound_strong", "ultrasound_scanners"]
"""Names of :data:`bustseg.data.transforms.PRESETS`."""


class Batch(TypedDict):
    """A batch of a data loader: B images of equal size. B may be 0 on one of several processes, see `EqualBatches`.

    Until it is on the device an image stays one grey ``uint8`` channel, a twelfth of the bytes of three float32
    channels.
    """

    image: Tensor
    """``uint8`` (B, 1, H, W)"""
    mask: Tensor
    """``uint8`` 0 or 1, (B, 1, H, W)"""
    label: Tensor
    """``int64`` (B,), position in :data:`bustseg.data.sources.LABELS`"""
    index: Tensor
    """``int64`` (B,), position in the data module's ``samples``"""
    features: NotRequired[list[Tensor]]
    """Features of the network's frozen part, where a callback has cached them; no loader yields them"""


class SegmentationDataset(Dataset[Batch]):
    """A subset of the cache. Keys include the epoch (``epoch * len + position``), on which augmentation depends."""

    def __init__(
        self,
        cache: ImageCache,
        samples: Sequence[Sample],
        indices: np.ndarray,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.cache = cache
        self.indices = indices
        self.labels = np.array([LABELS.index(samples[i].label) for i in indices], dtype=np.int64)
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        """Batch of the given keys: one gather from the arrays, without decoding."""
        epochs, positions = np.divmod(np.asarray(keys, dtype=np.int64), len(self))
        indices = self.indices[positions]
        images = self.cache.images[indices]
        masks = self.cache.masks[indices]
        if self.augmentation:
            for k, (epoch, index) in enumerate(zip(epochs, indices, strict=True)):
                images[k], masks[k] = self.augmentation(
                    images[k], masks[k], int(epoch), int(index), _Rows(self.cache, self.indices)
                )
        return {
            "image": torch.from_numpy(images).unsqueeze(1),
            "mask": torch.from_numpy(masks).unsqueeze(1),
            "label": torch.from_numpy(self.labels[positions]),
            "index": torch.from_numpy(indices),
        }

    def __getitem__(self, key: int) -> Batch:
        return self.__getitems__([key])


class _Rows:
    """Selected images and masks of the cache, read on access."""

    def __init__(self, cache: ImageCache, indices: np.ndarray) -> None:
        self.cache, self.indices = cache, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        index = self.indices[position]
        return np.asarray(self.cache.images[index]), np.asarray(self.cache.masks[index])


def _one_thread(worker: int = 0) -> None:
    """Limit OpenCV to one thread in each loader process: there is already one process per core.

    Called in this process before its loaders fork: a forked child that changed the number would wait for threads that a
    fork does not copy.
    """
    import cv2

    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)


def _as_is(batch: Any) -> Any:
    return batch  # __getitems__ collates already


class EpochSampler(Sampler[int]):
    """Order of one epoch, determined by (seed, epoch) only, sharded over ranks without padding in evaluation.

    Unlike ``DistributedSampler`` no evaluation image is counted twice; in training the last incomplete round is filled
    so that all ranks make the same number of steps. In each step the ranks' batches together equal the batch of a
    single process with the total batch size.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        shuffle: bool,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.epoch, self.rank, self.world_size = epoch, rank, world_size
        self.weights = weights

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def _positions(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.length)[self.rank :: self.world_size]
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length) if self.weights is None else weighted_order(self.weights, rng)
        return np.resize(order, self.length + -self.length % self.world_size)[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch if self.shuffle else 0
        yield from (self._positions() + epoch * self.length).tolist()

    def __len__(self) -> int:
        return len(self._positions())

    @property
    def longest(self) -> int:
        """Length of the longest shard, the first rank's."""
        return -(-self.length // self.world_size)


def weighted_order(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many positions as there are weights, in proportion to them, in random order.

    Systematic sampling: a position with expected count c is drawn floor(c) or ceil(c) times, so that no image is missed
    by chance.

    Args:
        weights: positive, shape (n,)

    Returns:
        positions, shape (n,), each from 0 to n - 1
    """
    shuffled = rng.permutation(len(weights))
    edges = np.cumsum(weights[shuffled] / weights.sum()) * len(weights)
    points = np.arange(len(weights)) + rng.random()
    return rng.permutation(shuffled[np.minimum(np.searchsorted(edges, points), len(weights) - 1)])


def balanced_weights(cells: Sequence[Any], balance: float) -> np.ndarray:
    """Weight of each image by its cell, such as its source and whether it shows a lesion; shape (n,).

    Args:
        cells: one per image
        balance: 0 draws every image equally often, 1 every cell; in between, a cell of n images is drawn in proportion
            to n to the power of 1 - ``balance``
    """
    _, cell, count = np.unique([repr(name) for name in cells], return_inverse=True, return_counts=True)
    return count[cell].astype(float) ** -balance


class EqualBatches(BatchSampler):
    """Batches of a sampler's shard, equally many on every rank: a rank that runs out of images gets empty batches.

    Lightning refuses a rank without any batch; DDP's first forward of a validation is collective (it broadcasts the
    first rank's buffers); and any other collective operation would wait for a rank with fewer steps.
    """

    sampler: EpochSampler

    def __iter__(self) -> Iterator[list[int]]:
        taken = 0
        for batch in super().__iter__():
            taken += 1
            yield batch
        for _ in range(taken, len(self)):
            yield []

    def __len__(self) -> int:
        images, size = self.sampler.longest, self.batch_size
        return images // size if self.drop_last else -(-images // size)


class UltrasoundDataModule(LightningDataModule):
    """Images and masks of BUSI, or of any other :class:`~bustseg.data.sources.Source`, as batches.

    Defaults are the paper's protocol: 624/78/78 images of 224 x 224, batch 16, no augmentation.

    Args:
        root: data folder; by default the source's own (BUSI: the environment variable ``BUSI_ROOT``)
        source: reader of the folder's layout
        split: ``paper`` (624/78/78 of all images), ``grouped`` (the same with duplicates and patients kept together),
            ``lesion`` (images with a lesion, 8:1:1), ``curated`` (images of a list), ``kfold``, ``left_out`` (the
            images of one source or device are tested), ``test_all`` (every image is tested), or a CSV file with the
            columns ``image,subset`` and optionally ``fold``
        split_seed: seed of the split, independent of the training's seed
        fold: fold that is tested, for ``kfold`` and ``left_out`` (the first by default) and a CSV that has several
        folds: number of folds of ``kfold``
        kfold_of: scheme that ``kfold`` divides: ``grouped``, ``paper``, ``lesion`` or ``curated``
        left_out_by: column whose values are the folds of ``left_out``: ``source``, or one of the source's table, such
            as BUS-BRA's ``device``
        curated_list: list of the images that ``curated`` keeps, a CSV file with the columns ``class;id`` or ``image``
        duplicate_threshold: score from which two images count as duplicates, for ``grouped``
        image_size: height and width of the network's input; one number for a square
        resize: ``stretch`` gives every image these proportions, ``letterbox`` keeps its own and pads it with black
        batch_size: images per training step, on each process of several
        eval_batch_size: images per evaluation step; ``batch_size`` when not given
        augmentation: ``none``, ``ultrasound``, ``ultrasound_strong``, ``ultrasound_scanners``, or a list of
            albumentations transforms
        num_workers: loader processes; ``auto`` uses none without a GPU (with the cache there is little to do, and they
            would take cores from the training) and up to 8 with one
        seed: seed of order and augmentation; ``seed_everything``'s when not given
        balance: how far training balances sources and normal images, from 0 (every image once per epoch) to 1 (every
            source, and within it images with and without a lesion, equally often)
        lesion_free: share of the training images with a lesion that are replaced by a part without the lesion, as
            additional normal images
        transplants: share of the training images that get a piece of another: a lesion where there was none, or tissue
            over or beside a lesion
    """

    def __init__(
        self,
        root: str | None = None,
        source: Source | None = None,
        split: str = "paper",
        split_seed: int = 0,
        fold: int | None = None,
        folds: int = 5,
        kfold_of: str = "grouped",
        left_out_by: str = "source",
        curated_list: str | None = None,
        duplicate_threshold: float = THRESHOLD,
        image_size: int | tuple[int, int] = 224,
        resize: Resize = "stretch",
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        augmentation: Literal["none", "ultrasound", "ultrasound_strong", "ultrasound_scanners"]
        | list[A.BasicTransform] = "none",
        num_workers: int | Literal["auto"] = "auto",
        seed: int | None = None,
        balance: float = 0.0,
        lesion_free: float = 0.0,
        transplants: float = 0.0,
    ) -> None:
        super().__init__()
        for name, share in (("balance", balance), ("lesion_free", lesion_free), ("transplants", transplants)):
            if not 0 <= share <= 1:
                raise DataError(f"data.{name} is {share}: give a value from 0 to 1")
        sides = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        counts = {"batch_size": batch_size, "eval_batch_size": 1 if eval_batch_size is None else eval_batch_size}
        for name, count in (*counts.items(), ("image_size", min(sides))):
            if count < 1:
                raise DataError(f"data.{name} is {count}: it must be at least 1")
        if num_workers != "auto" and num_workers < 0:
            raise DataError(f"data.num_workers is {num_workers}: it must be auto, or at least 0")
        self.root = root
        self.source = source if source is not None else BUSI()
        self.split_scheme, self.split_seed, self.fold = split, split_seed, fold
        self.folds, self.kfold_of, self.duplicate_threshold = folds, kfold_of, duplicate_threshold
        self.left_out_by = left_out_by
        self.curated_list = Path(curated_list).expanduser() if curated_list else None
        self.framing = Framing(sides, resize)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.balance, self.lesion_free, self.transplants = balance, lesion_free, transplants
        self._seed = seed
        self.samples: list[Sample] = []
        self.split: pd.DataFrame | None = None
        self.cache: ImageCache | None = None
        self._prepared: tuple[list[Sample], ImageCache] | None = None
        self.indices: dict[str, np.ndarray] = {}

    @property
    def data_root(self) -> Path:
        """Folder of the data.

        Raises:
            DataError: none is given, and the source has no default
        """
        root = self.root or self.source.default_root()
        if root is None:
            raise DataError("no data folder: set --data.root or BUSI_ROOT (`bustseg data phantom DEST` makes one)")
        return Path(root).expanduser()

    @property
    def image_size(self) -> tuple[int, int]:
        """(h, w) of the network's input."""
        return self.framing.size

    @property
    def resize(self) -> Resize:
        """``stretch`` or ``letterbox``."""
        return self.framing.resize

    @property
    def seed(self) -> int:
        """Seed of order and augmentation."""
        return self._seed if self._seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))

    @property
    def data_digest(self) -> str:
        """Digest of the images, masks and labels in use."""
        assert self.cache is not None, "setup() comes first"
        return self.cache.digest

    @property
    def split_digest(self) -> str:
        """Digest of the split in use."""
        assert self.split is not None, "setup() comes first"
        return split_digest(self.split)

    def subset_digest(self, subset: str) -> str:
        """Digest of a subset's images, 16 hex digits: equal for the same images of the same data, however split."""
        ids = sorted(self.samples[index].id for index in self.indices[subset])
        return hashlib.sha256("\n".join([self.data_digest, *ids]).encode()).hexdigest()[:16]

    def prepare_data(self) -> None:
        """Create or fetch the data if the source can, and fill the cache (in one process per machine)."""
        if self.cache is not None:
            return
        self.source.prepare(self.data_root)
        samples, cache = self._read()
        self._groups(samples, cache.digest)

    def _read(self) -> tuple[list[Sample], ImageCache]:
        """Samples and their decoded images; `setup` reuses what `prepare_data` has read."""
        if self._prepared is None:
            samples = self.source.read(self.data_root)
            self._prepared = samples, load_cache(samples, self.framing, cache_root(self.data_root))
        return self._prepared

    def _groups(self, samples: Sequence[Sample], digest: str) -> Mapping[str, str] | None:
        if not needs_groups(self.split_scheme, self.kfold_of):
            return None
        return cached_groups(samples, cache_root(self.data_root), self.duplicate_threshold, digest)

    def setup(self, stage: str | None = None) -> None:
        """Read the samples, the split and the cache; may be called repeatedly.

        Raises:
            DataError: no data, unusable files, a split that does not fit the data
        """
        if self.cache is not None:
            return
        self.samples, cache = self._read()
        self.split = make_split(
            self.samples,
            self.split_scheme,
            self.split_seed,
            fold=self.fold,
            folds=self.folds,
            of=self.kfold_of,
            groups=self._groups(self.samples, cache.digest),
            curated_list=self.curated_list,
            by=self.left_out_by,
        )
        position = {sample.id: index for index, sample in enumerate(self.samples)}
        for subset in SUBSETS:
            ids = self.split.loc[self.split["subset"] == subset, "image"]
            self.indices[subset] = np.sort(np.array([position[i] for i in ids], dtype=np.int64))
        self.cache = cache
        self._prepared = None

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask of ``samples[index]`` as in a batch: ``uint8`` (H, W), the mask 0 or 1."""
        assert self.cache is not None, "setup() comes first"
        return np.asarray(self.cache.images[index]), np.asarray(self.cache.masks[index])

    def checked_augmentation(self) -> Augmentation:
        """The augmentation of the training, after a check.

        Raises:
            DataError: it changes the type or the size of images or masks, or moves one without the other
        """
        augmentation = Augmentation(self.augmentation, self.seed, self.lesion_free, self.transplants)
        if not isinstance(self.augmentation, str):  # presets are checked by their tests
            augmentation.check(self.image_size)
        return augmentation

    def dataset(self, subset: str, augment: bool = False) -> SegmentationDataset:
        """Images of ``train``, ``val`` or ``test``, augmented or as they are."""
        assert self.cache is not None, "setup() comes first"
        if not len(self.indices[subset]):
            raise DataError(f"the split has no {subset} images: name another split with --data.split")
        augmentation = self.checked_augmentation() if augment else None
        return SegmentationDataset(self.cache, self.samples, self.indices[subset], augmentation)

    def loader(self, subset: str, training: bool = False) -> DataLoader[Batch]:
        """Loader over a subset: shuffled, augmented and without an incomplete last batch when ``training``."""
        dataset = self.dataset(subset, augment=training)
        trainer = self.trainer
        sampler = EpochSampler(
            len(dataset),
            self.seed,
            shuffle=training,
            # a resumed fit creates its loader after the loops are restored, and its first iterator before set_epoch
            epoch=trainer.current_epoch if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            weights=self._weights(dataset.indices) if training and self.balance else None,
        )
        batch_size = self.batch_size if training else self.eval_batch_size
        drop_last = training and self._drops_last(len(sampler))
        workers = self._workers()
        if workers:
            _one_thread()
        return DataLoader(
            dataset,
            batch_sampler=EqualBatches(sampler, batch_size, drop_last=drop_last),
            collate_fn=_as_is,
            num_workers=workers,
            # a separate generator: a loader draws its workers' seed when it starts, and a resumed fit starts at another
            # point
            generator=torch.Generator(),
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread,
            pin_memory=torch.cuda.is_available(),
        )

    def _weights(self, indices: np.ndarray) -> np.ndarray:
        samples = [self.samples[index] for index in indices]
        return balanced_weights([(sample.source, sample.label == "normal") for sample in samples], self.balance)

    def _drops_last(self, images: int) -> bool:
        # BatchNorm cannot train on a last batch of one image; the image is used in other epochs
        return images % self.batch_size == 1 and images > self.batch_size

    def smallest_batch(self, processes: int = 1) -> int:
        """Number of images in the smallest training batch of an epoch on each of several processes."""
        images = -(-len(self.indices["train"]) // processes)
        rest = images % self.batch_size
        return rest if rest and not self._drops_last(images) else min(self.batch_size, images)

    def _workers(self) -> int:
        if self.num_workers != "auto":
            return int(self.num_workers)
        return min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0

    def train_dataloader(self) -> DataLoader[Batch]:
        return self.loader("train", training=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.loader("test")


BUSIDataModule = UltrasoundDataModule
"""Former name, kept for programs that use it."""
