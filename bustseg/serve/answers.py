"""The requests and responses, as in the OpenAPI document."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from bustseg.data.sources import LABELS
from bustseg.disclaimer import NOTICE
from bustseg.serve.uploads import ID

UploadId = Annotated[str, Field(pattern=ID, description="name of an upload")]
Side = Annotated[int, Field(ge=1, le=100_000)]


class MaskForm(StrEnum):
    """Encoding of a mask."""

    polygons = "polygons"
    rle = "rle"
    png = "png"
    none = "none"


class Verdict(StrEnum):
    """An annotator's verdict on a prediction."""

    accepted = "accepted"
    corrected = "corrected"
    rejected = "rejected"


Label = Literal["benign", "malignant", "normal", "unknown"]
assert get_args(Label) == LABELS


class Notice(BaseModel):
    """Part of every response."""

    notice: str = Field(default=NOTICE, description="research software, not a medical device")


class Problem(Notice):
    """An error."""

    error: str


class Polygon(BaseModel):
    """A component of a mask, given by the centres of its border pixels as [x, y] from the top left."""

    outer: list[list[int]]
    holes: list[list[list[int]]] = Field(description="rings around holes; the rings themselves belong to the lesion")


class RunLengths(BaseModel):
    """COCO's uncompressed run lengths: column by column, zeros first."""

    model_config = ConfigDict(extra="forbid")
    size: Annotated[list[Side], Field(min_length=2, max_length=2, description="height and width")]
    counts: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=4_000_000)]


class Found(BaseModel):
    """The network's result for one image."""

    file: str = Field(description="the file's name, as it was sent")
    frame: int | None = Field(description="position in a file of several images, from 0")
    frames: int = Field(description="images in the file")
    width: int | None = None
    height: int | None = None
    area_px: int | None = Field(default=None, description="pixels of the mask")
    area_mm2: float | None = Field(default=None, description="area of the mask, if the file gives the pixel size")
    components: int | None = Field(default=None, description="8-connected parts of the mask")
    largest_component_px: int | None = None
    presence: float | None = Field(
        default=None, description="calibrated probability that there is a lesion; null if the model is not calibrated"
    )
    lesion_probability: float | None = Field(default=None, description="the highest probability of a pixel")
    confidence: float | None = Field(default=None, description="calibrated; null if the model is not")
    threshold: float | None = Field(default=None, description="probability above which a pixel is in the mask")
    look_at_this: bool | None = Field(default=None, description="whether a person should look at it")
    reasons: list[str] = Field(default=[], description="why")
    polygons: list[Polygon] | None = None
    rle: RunLengths | None = None
    png: str | None = Field(default=None, description="mask of 0 and 255 as a PNG file in base64")
    error: str | None = Field(default=None, description="why there is no prediction; everything else is null then")


class Predictions(Notice):
    """Response of ``/predict``: an entry for each image, in the order of the files."""

    model: str = Field(description="first 12 digits of the model's digest")
    results: list[Found]


class Health(Notice):
    """The server is up and its network works."""

    status: str = "ok"
    waiting: int = Field(description="images that wait for the network")
    requests: int = Field(description="requests in progress")


class Model(Notice):
    """The model and the settings of its masks."""

    name: str
    digest: str
    version: str = Field(description="version of bustseg")
    image_size: list[int] = Field(description="height and width of the network's input")
    threshold: float
    postprocess: dict[str, Any]
    calibrated: bool
    temperature: float | None
    training_images: dict[str, Any]
    explanation: str = Field(description="method of the heat map: Grad-CAM, or Occlusion for exported models")
    corrections: bool = Field(description="whether corrections are saved")


class Uploaded(Notice):
    """A file that the server keeps for a while."""

    id: UploadId
    file: str
    frames: int
    dicom: bool = Field(description="whether a DICOM SEG of it can be created")


class PageImage(Found):
    """The page's data of one image; everything refers to the scanned region."""

    picture_width: int = Field(description="width of the file's whole picture")
    picture_height: int
    box: list[int] | None = Field(description="the scanned region in the picture, as top, left, height, width")
    spacing: list[float] | None = Field(description="size of a pixel in mm, as row, column")
    may_name_patient: bool = Field(description="whether text in the picture may name the patient")


class MaskOfFrame(BaseModel):
    """A mask that replaces the predicted one."""

    model_config = ConfigDict(extra="forbid")
    frame: Annotated[int, Field(ge=0, le=1_000_000)]
    rle: RunLengths


class SegmentationWish(BaseModel):
    """Masks of a DICOM SEG; for other frames the network's masks are used."""

    model_config = ConfigDict(extra="forbid")
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    masks: Annotated[list[MaskOfFrame], Field(max_length=10_000)] = []


class Correction(BaseModel):
    """An annotator's correction of one image."""

    model_config = ConfigDict(extra="forbid")
    verdict: Verdict
    rle: RunLengths = Field(description="the corrected mask")
    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="threshold of the prediction that was shown"
    )
    who: Annotated[str, Field(max_length=200)] = ""
    label: Label = "unknown"
    no_text: bool = Field(default=False, description="the annotator has checked that the picture shows no name")


class Saved(Notice):
    """A saved correction."""

    image: str = Field(description="its name in the folder of corrections")
    verdict: Verdict
    who: str
    when: str
    label: Label
    threshold: float
    changed_px: int = Field(description="pixels that differ from the prediction")
    rle: RunLengths
