"""Known encoders: facts that their repositories do not state, or only show after access is granted.

Facts and normalisation are from the model cards, because the config.json of some repositories
states another network's normalisation (Lunit, kaiko ViTs). The tests count the parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from huggingface_hub import try_to_load_from_cache


@dataclasses.dataclass(frozen=True)
class KnownEncoder:
    """Facts about a published encoder.

    Attributes:
        name: Its common name.
        source: The source for `load_encoder`.
        mean: Normalisation mean, RGB.
        std: Normalisation standard deviation, RGB.
        embedding_dim: Width of the class token.
        parameters: Number of weights without a classifier, counted with timm.
        license: Licence identifier as on the Hub; None for a network without published weights.
        non_commercial: Whether a licence that the Hub calls `other` forbids commercial use.
        architecture: timm's name for the network.
        model_kwargs: Arguments that `timm.create_model` needs beyond the architecture, or beyond
            the repository's config.
        input_size: Height and width of its images, in pixels.
        gated: Whether the Hub requires an agreement before access.
        alternative: Another source of the same weights that is not gated.
        eva: Its name in eva's registry, without `eva:`.
    """

    name: str
    source: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    embedding_dim: int
    parameters: int
    license: str | None
    architecture: str
    model_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input_size: int = 224
    gated: bool = False
    alternative: str | None = None
    eva: str | None = None
    non_commercial: bool = False

    @property
    def repo_id(self) -> str | None:
        """Its repository on the Hub; None for other sources."""
        scheme, _, name = self.source.partition(":")
        return name if scheme == "hf-hub" else None

    def is_cached(self) -> bool:
        """Whether its weights are in the Hub's local cache."""
        return self.repo_id is not None and isinstance(
            try_to_load_from_cache(self.repo_id, "model.safetensors"), str
        )


_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_LUNIT: dict[str, Any] = {
    "mean": (0.70322989, 0.53606487, 0.66096631),
    "std": (0.21716536, 0.26081574, 0.20723464),
}
_HIBOU: dict[str, Any] = {"mean": (0.7068, 0.5755, 0.722), "std": (0.195, 0.2316, 0.1816)}
_BIOPTIMUS: dict[str, Any] = {
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
}
_H_OPTIMUS: dict[str, Any] = {
    **_BIOPTIMUS,
    "embedding_dim": 1536,
    "parameters": 1_134_774_272,
    "architecture": "vit_giant_patch14_reg4_dinov2",
    "model_kwargs": {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
}
_H_OPTIMUS_0_OPEN = "hf-hub:1aurent/vit_giant_patch14_reg4_224.h-optimus-v0"
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_VIRCHOW: dict[str, Any] = {
    **_IMAGENET,
    "embedding_dim": 1280,
    "architecture": "vit_huge_patch14_224",
    "gated": True,
}
_VIRCHOW_KWARGS = {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "token", **_SWIGLU}
_VITL14 = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 5.34375, "img_size": 224}
_VITB14_SWIGLU = {
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 16 / 3,
    "img_size": 224,
}
_KAIKO = "kaiko_ai_towards_large_pathology_fms"


def _kaiko(
    name: str, architecture: str, embedding_dim: int, parameters: int, eva: str
) -> KnownEncoder:
    return KnownEncoder(
        name=f"kaiko {name}",
        source=f"hf-hub:1aurent/{architecture.replace('dinov2', '224')}.{_KAIKO}",
        **_HALF,
        embedding_dim=embedding_dim,
        parameters=parameters,
        license="other",
        non_commercial=True,
        architecture=architecture,
        model_kwargs={"img_size": 224},
        eva=f"pathology/{eva}",
    )


_ENCODERS = (
    KnownEncoder(
        name="H-optimus-0",
        source="hf-hub:bioptimus/H-optimus-0",
        license="apache-2.0",
        gated=True,
        alternative=_H_OPTIMUS_0_OPEN,
        eva="pathology/bioptimus_h_optimus_0",
        **_H_OPTIMUS,
    ),
    KnownEncoder(
        name="H-optimus-0 (open copy)",
        source=_H_OPTIMUS_0_OPEN,
        license="apache-2.0",
        **_H_OPTIMUS,
    ),
    KnownEncoder(
        name="H-optimus-1",
        source="hf-hub:bioptimus/H-optimus-1",
        license="cc-by-nc-nd-4.0",
        gated=True,
        **_H_OPTIMUS,
    ),
    KnownEncoder(
        name="H0-mini",
        source="hf-hub:bioptimus/H0-mini",
        **_BIOPTIMUS,
        embedding_dim=768,
        parameters=85_739_520,
        license="cc-by-nc-nd-4.0",
        architecture="vit_base_patch14_reg4_dinov2",
        model_kwargs={"img_size": 224, "mlp_ratio": 2.66667 * 2, **_SWIGLU},
        gated=True,
        eva="pathology/bioptimus_h0_mini",
    ),
    KnownEncoder(
        name="UNI",
        source="hf-hub:MahmoodLab/UNI",
        **_IMAGENET,
        embedding_dim=1024,
        parameters=303_350_784,
        license="cc-by-nc-nd-4.0",
        architecture="vit_large_patch16_224",
        model_kwargs={"init_values": 1e-5},
        gated=True,
        eva="pathology/mahmood_uni",
    ),
    KnownEncoder(
        name="UNI2-h",
        source="hf-hub:MahmoodLab/UNI2-h",
        **_IMAGENET,
        embedding_dim=1536,
        parameters=681_394_176,
        license="cc-by-nc-nd-4.0",
        architecture="vit_giant_patch14_224",
        model_kwargs={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            **_SWIGLU,
        },
        gated=True,
        eva="pathology/mahmood_uni2_h",
    ),
    KnownEncoder(
        name="Virchow",
        source="hf-hub:paige-ai/Virchow",
        parameters=631_229_184,
        license="apache-2.0",
        model_kwargs=_VIRCHOW_KWARGS,
        **_VIRCHOW,
    ),
    KnownEncoder(
        name="Virchow2",
        source="hf-hub:paige-ai/Virchow2",
        parameters=631_239_424,
        license="cc-by-nc-nd-4.0",
        model_kwargs={"reg_tokens": 4, **_VIRCHOW_KWARGS},
        eva="pathology/paige_virchow2",
        **_VIRCHOW,
    ),
    KnownEncoder(
        name="Prov-GigaPath",
        source="hf-hub:prov-gigapath/prov-gigapath",
        **_IMAGENET,
        embedding_dim=1536,
        parameters=1_134_953_984,
        license="apache-2.0",
        architecture="vit_giant_patch14_dinov2",
        model_kwargs={"img_size": 224, "patch_size": 16},
        gated=True,
        eva="pathology/prov_gigapath",
    ),
    KnownEncoder(
        name="Midnight-12k",
        source="hf-hub:kaiko-ai/midnight",
        **_HALF,
        embedding_dim=1536,
        parameters=1_134_768_128,
        license="mit",
        architecture="vit_giant_patch14_reg4_dinov2",
        model_kwargs={"img_size": 224, "reg_tokens": 0},
        eva="pathology/kaiko_midnight_12k",
    ),
    KnownEncoder(
        name="Hibou-B",
        source="hf-hub:histai/hibou-b",
        **_HIBOU,
        embedding_dim=768,
        parameters=85_739_520,
        license="apache-2.0",
        architecture="vit_giant_patch14_reg4_dinov2",
        model_kwargs=_VITB14_SWIGLU,
        gated=True,
        eva="pathology/histai_hibou_b",
    ),
    KnownEncoder(
        name="Hibou-L",
        source="hf-hub:histai/hibou-L",
        **_HIBOU,
        embedding_dim=1024,
        parameters=303_657_216,
        license="apache-2.0",
        architecture="vit_giant_patch14_reg4_dinov2",
        model_kwargs=_VITL14,
        gated=True,
        eva="pathology/histai_hibou_l",
    ),
    KnownEncoder(
        name="Phikon",
        source="hf-hub:owkin/phikon",
        **_IMAGENET,
        embedding_dim=768,
        parameters=85_797_888,
        license="other",
        non_commercial=True,
        architecture="vit_base_patch14_reg4_dinov2",
        model_kwargs={"img_size": 224, "patch_size": 16, "reg_tokens": 0, "init_values": 0},
        eva="pathology/owkin_phikon",
    ),
    KnownEncoder(
        name="Phikon-v2",
        source="hf-hub:owkin/phikon-v2",
        **_IMAGENET,
        embedding_dim=1024,
        parameters=303_349_760,
        license="other",
        non_commercial=True,
        architecture="vit_large_patch14_reg4_dinov2",
        model_kwargs={"img_size": 224, "patch_size": 16, "reg_tokens": 0},
        eva="pathology/owkin_phikon_v2",
    ),
    _kaiko("ViT-S/16", "vit_small_patch16_224", 384, 21_665_664, "kaiko_vits16"),
    _kaiko("ViT-S/8", "vit_small_patch8_224", 384, 21_670_272, "kaiko_vits8"),
    _kaiko("ViT-B/16", "vit_base_patch16_224", 768, 85_798_656, "kaiko_vitb16"),
    _kaiko("ViT-B/8", "vit_base_patch8_224", 768, 85_807_872, "kaiko_vitb8"),
    _kaiko("ViT-L/14", "vit_large_patch14_reg4_dinov2", 1024, 303_230_976, "kaiko_vitl14"),
    KnownEncoder(
        name="Lunit ViT-S/16",
        source="hf-hub:1aurent/vit_small_patch16_224.lunit_dino",
        **_LUNIT,
        embedding_dim=384,
        parameters=21_665_664,
        license="other",
        non_commercial=True,
        architecture="vit_small_patch16_224",
        eva="pathology/lunit_vits16",
    ),
    KnownEncoder(
        name="Lunit ViT-S/8",
        source="hf-hub:1aurent/vit_small_patch8_224.lunit_dino",
        **_LUNIT,
        embedding_dim=384,
        parameters=21_670_272,
        license="other",
        non_commercial=True,
        architecture="vit_small_patch8_224",
        eva="pathology/lunit_vits8",
    ),
    KnownEncoder(
        name="ViT-L/14 from scratch",
        source="scratch:vitl14",
        **_HIBOU,
        embedding_dim=1024,
        parameters=303_657_216,
        license=None,
        architecture="vit_giant_patch14_reg4_dinov2",
        model_kwargs=_VITL14,
    ),
    KnownEncoder(
        name="ViT-B/14 from scratch",
        source="scratch:vitb14",
        **_HIBOU,
        embedding_dim=768,
        parameters=85_727_232,
        license=None,
        architecture="vit_base_patch14_reg4_dinov2",
        model_kwargs={"img_size": 224},
    ),
    KnownEncoder(
        name="ViT-S/14 from scratch",
        source="scratch:vits14",
        **_HIBOU,
        embedding_dim=384,
        parameters=21_629_952,
        license=None,
        architecture="vit_small_patch14_reg4_dinov2",
        model_kwargs={"img_size": 224},
    ),
)

KNOWN_ENCODERS: dict[str, KnownEncoder] = {encoder.source: encoder for encoder in _ENCODERS}
"""Known encoders by source."""

_BY_NAME = {source.lower(): encoder for source, encoder in KNOWN_ENCODERS.items()} | {
    f"eva:{encoder.eva}": encoder for encoder in _ENCODERS if encoder.eva
}


def find_known(source: str) -> KnownEncoder | None:
    """Finds the known encoder of a Hub, `scratch:` or `eva:` source; None for other sources."""
    # The Hub ignores case in a repository's name.
    return _BY_NAME.get(source.lower())
