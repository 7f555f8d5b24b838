"""Networks: plain modules that know nothing of training. Images (B, C, H, W) in, logits out."""

from bustseg.models.attention import ATTENTIONS, CBAM, NonLocal, build_attention
from bustseg.models.decoder import DSCBlock, DSCDecoder
from bustseg.models.depthwise import use_fast_depthwise
from bustseg.models.encoders import Encoder, build_encoder
from bustseg.models.fusion_unet import FusionUNet
from bustseg.models.weights import PACKAGED, use_packaged_weights

__all__ = [
    "ATTENTIONS",
    "CBAM",
    "PACKAGED",
    "DSCBlock",
    "DSCDecoder",
    "Encoder",
    "FusionUNet",
    "NonLocal",
    "build_attention",
    "build_encoder",
    "use_fast_depthwise",
    "use_packaged_weights",
]
