"""Vision transformers of many makes, as small as their libraries build them, with random weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from psaq.models.transformers_library import library as transformers_library

Build = Callable[[], nn.Module]

_SHALLOW = {"depth": 2}
_SMALL = {**_SHALLOW, "embed_dim": 96, "num_heads": 3}

TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", _SMALL),
    "cait": ("cait_xxs24_224", _SHALLOW),
    "coat": ("coat_tiny", {}),
    "coatnet": ("coatnet_0_224", {}),
    "convit": ("convit_tiny", {}),
    "crossvit": ("crossvit_9_240", {}),
    "davit": ("davit_tiny", {}),
    "deit": ("deit_tiny_patch16_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", {**_SMALL, "img_size": 224}),
    "dinov3": ("vit_small_patch16_dinov3", _SMALL),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformerv2": ("efficientformerv2_s0", {}),
    "efficientvit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "eva02": ("eva02_tiny_patch14_224", _SHALLOW),
    "fastvit": ("fastvit_sa12", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "hiera": ("hiera_tiny_224", {}),
    "sam2 hieradet": ("hieradet_small", {}),
    "levit": ("levit_128s", {}),
    "maxvit": ("maxvit_rmlp_pico_rw_256", {}),
    "mobilenetv4 hybrid": ("mobilenetv4_hybrid_medium", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mobilevitv2": ("mobilevitv2_050", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_gap", _SMALL),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "pit": ("pit_ti_224", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "samvit": ("samvit_base_patch16_224", _SMALL),
    "shvit": ("shvit_s1", {}),
    "siglip": ("vit_base_patch16_siglip_224", _SMALL),
    "swiftformer": ("swiftformer_xs", {}),
    "swin": ("swin_tiny_patch4_window7_224", {}),
    "swinv2": ("swinv2_tiny_window8_256", {}),
    "swinv2_cr": ("swinv2_cr_tiny_224", {}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_patch16_224", _SHALLOW),
    "twins": ("twins_svt_small", {}),
    "visformer": ("visformer_tiny", {}),
    "vit": ("vit_tiny_patch16_224", {}),
    "vit_relpos": ("vit_relpos_small_patch16_224", _SMALL),
    "hybrid vit": ("vit_tiny_r_s16_p8_224", {}),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "xcit": ("xcit_nano_12_p16_224", {}),
}
"""Family → timm's name and options."""

_PLAIN = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
_PATCHES = {**_PLAIN, "image_size": 64, "patch_size": 8}
_SWIN = {"image_size": 64, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_STAGES = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 1, 1, 1], "image_size": 64}
_PYRAMID = {**_SWIN, "depths": [1] * 4, "num_heads": [2] * 4, "out_features": [f"stage{n}" for n in range(1, 5)]}
_DPT = {"neck_hidden_sizes": [8, 16, 16, 16], "fusion_hidden_size": 16}
_LOUD = {"initializer_range": 0.1}
"""Where the usual 0.02 lets nothing arrive at the answer."""

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViT": ("ViTForImageClassification", "ViTConfig", _PATCHES),
    "DeiT": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", _PATCHES),
    "BEiT": ("BeitForImageClassification", "BeitConfig", _PATCHES),
    "Swin": ("SwinForImageClassification", "SwinConfig", _SWIN),
    "Swin V2": ("Swinv2ForImageClassification", "Swinv2Config", _SWIN),
    "DINOv2": ("Dinov2ForImageClassification", "Dinov2Config", {**_PATCHES, "mlp_ratio": 2}),
    "DINOv2 with registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {**_PATCHES, "mlp_ratio": 2, "num_register_tokens": 4},
    ),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**_PATCHES, "num_register_tokens": 4}),
    "SigLIP vision": ("SiglipVisionModel", "SiglipVisionConfig", _PATCHES),
    "CLIP vision": ("CLIPVisionModel", "CLIPVisionConfig", _PATCHES),
    "SAM vision": (
        "SamVisionModel",
        "SamVisionConfig",
        {**_PATCHES, "window_size": 4, "global_attn_indexes": [1], "output_channels": 16, "mlp_dim": 128},
    ),
    "Hiera": (
        "HieraForImageClassification",
        "HieraConfig",
        {"embed_dim": 16, "depths": [1] * 4, "image_size": [224] * 2},
    ),
    "PVT": ("PvtForImageClassification", "PvtConfig", _STAGES),
    "PVT V2": ("PvtV2ForImageClassification", "PvtV2Config", _STAGES),
    "MobileViT": ("MobileViTForImageClassification", "MobileViTConfig", {"image_size": 128, **_LOUD}),
    "MobileViT V2": ("MobileViTV2ForImageClassification", "MobileViTV2Config", {"image_size": 128, **_LOUD}),
    "SegFormer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {**_STAGES, "decoder_hidden_size": 16, "num_labels": 5},
    ),
    "DPT": (
        "DPTForSemanticSegmentation",
        "DPTConfig",
        {**_PLAIN, **_DPT, "image_size": 64, "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3], "num_labels": 5},
    ),
    "Depth Anything": (
        "DepthAnythingForDepthEstimation",
        "DepthAnythingConfig",
        {
            **_DPT,
            **_LOUD,
            "reassemble_hidden_size": 64,
            "patch_size": 14,
            "backbone": (
                "Dinov2Config",
                {
                    **_PLAIN,
                    "image_size": 56,
                    "patch_size": 14,
                    "mlp_ratio": 2,
                    "out_indices": [1, 2, 3, 4],
                    "reshape_hidden_states": False,
                },
            ),
        },
    ),
    "UperNet": (
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        {
            "hidden_size": 16,
            "pool_scales": [1, 2],
            "auxiliary_channels": 8,
            "auxiliary_in_channels": 64,
            "num_labels": 5,
            "backbone": ("SwinConfig", _PYRAMID),
        },
    ),
    "YOLOS": (
        "YolosForObjectDetection",
        "YolosConfig",
        {**_PATCHES, "image_size": [64, 64], "num_detection_tokens": 5, "num_labels": 3},
    ),
    "Mask2Former": (
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerConfig",
        {
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 2,
            "dim_feedforward": 32,
            "num_queries": 5,
            "num_labels": 3,
            "backbone": ("SwinConfig", _PYRAMID),
        },
    ),
}
"""Name → transformers' class, its configuration's, and what is set in it."""


def architectures() -> dict[str, Build]:
    """ "library: name" → a function that builds the model, always with the same weights."""
    builds: dict[str, Build] = {f"timm: {name}": partial(_timm, *made) for name, made in TIMM.items()}
    builds |= {f"transformers: {name}": partial(_transformers, *made) for name, made in TRANSFORMERS.items()}
    return builds | {
        f"torchvision: {name}": partial(_torchvision, name) for name in ("vit_b_16", "swin_t", "swin_v2_t")
    }


def _timm(name: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return awake(timm.create_model(name, **options))


def _transformers(model: str, config: str, options: dict[str, Any]) -> nn.Module:
    library = transformers_library()
    torch.manual_seed(0)
    options = dict(options)
    if "backbone" in options:
        kind, settings = options.pop("backbone")
        options["backbone_config"] = getattr(library, kind)(**settings)
    return awake(getattr(library, model)(getattr(library, config)(**options)))


def _torchvision(name: str) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    if name == "vit_b_16":  # of its width and heads, with two of its twelve layers
        return awake(torchvision.models.VisionTransformer(224, 16, 2, 12, 768, 3072))
    return awake(getattr(torchvision.models, name)())


@torch.no_grad()
def awake(model: nn.Module) -> nn.Module:
    """A fresh model whose every part counts: what begins at zero, or is scaled by next to nothing, gets a size."""
    for parameter in model.parameters():
        largest = float(parameter.abs().max())
        if parameter.ndim > 1 and largest < _ASLEEP:
            nn.init.normal_(parameter, std=0.02)
        elif 0 < largest < _ASLEEP:
            parameter.fill_(1)
    return model.eval()


_ASLEEP = 1e-2
"""Matrices and scales as small as this were meant to grow in training."""
