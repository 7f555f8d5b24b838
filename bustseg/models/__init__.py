"""Networks: plain modules, independent of training. Images (B, C, H, W) in, logits out."""

from bustseg.models.activations import use_lean_activations
from bustseg.models.adu_net import ADUNet
from bustseg.models.attention import ATTENTIONS, CBAM, NonLocal, SelectiveKernel, Transformer, build_attention
from bustseg.models.ddra_net import DDRANet
from bustseg.models.decoder import DSCBlock, DSCDecoder
from bustseg.models.depthwise import use_fast_depthwise
from bustseg.models.dpnet import DPNet
from bustseg.models.encoders import Encoder, build_encoder
from bustseg.models.ensemble import Ensemble
from bustseg.models.fusion_unet import FusionUNet
from bustseg.models.mrfe_cnn import MRFECNN
from bustseg.models.swin_unet import SwinUNet
from bustseg.models.weights import PACKAGED, use_packaged_weights

__all__ = [
    "ATTENTIONS",
    "CBAM",
    "MRFECNN",
    "PACKAGED",
    "ADUNet",
    "DDRANet",
    "DPNet",
    "DSCBlock",
    "DSCDecoder",
    "Encoder",
    "Ensemble",
    "FusionUNet",
    "NonLocal",
    "SelectiveKernel",
    "SwinUNet",
    "Transformer",
    "build_attention",
    "build_encoder",
    "use_fast_depthwise",
    "use_lean_activations",
    "use_packaged_weights",
]
