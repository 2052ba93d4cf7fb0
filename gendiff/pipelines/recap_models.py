"""Which networks can reuse their context (ReCAP), and switching that on and off for a network."""

from __future__ import annotations

from typing import Any

from diffusers import UVit2DModel
from diffusers.utils import logging
from torch import nn

from gendiff.models.masked.uvit_adapter import UVitAdapter
from gendiff.samplers.recap import ReCAPConfig

logger = logging.get_logger(__name__)

SUPPORTED = (
    "MaskGITTransformer2DModel",
    "HaltonTransformer2DModel",
    "MAGETransformer2DModel",
    "MARTransformer2DModel",
    "UVit2DModel",
)
CONTRACT = ("num_tokens", "num_prefix_rows", "make_cache", "forward")


def masked_network(transformer: Any) -> Any:
    """The network as one that follows `MaskedModel`: itself, or diffusers' U-ViT behind its adapter.

    Raises:
        TypeError: it is neither; lists what is supported, and the contract.
    """
    if isinstance(transformer, UVit2DModel):
        # One for each network, because what a call costs is remembered by its adapter.
        return transformer.__dict__.get("_masked_network") or _adapted(transformer)
    if isinstance(transformer, nn.Module) and all(hasattr(transformer, name) for name in CONTRACT):
        return transformer
    raise TypeError(
        f"transformer must be one of {', '.join(SUPPORTED)}, or have {', '.join(CONTRACT)} as in "
        f"gendiff.models.masked.contract.MaskedModel, got {type(transformer).__name__}."
    )


def _adapted(transformer: UVit2DModel) -> UVitAdapter:
    adapter = transformer.__dict__["_masked_network"] = UVitAdapter(transformer)
    return adapter


def enable_recap(transformer: Any, config: ReCAPConfig | None = None) -> None:
    """Decode with light steps wherever `MaskedGenerationPipeline` uses this network and its call says nothing else.

    Args:
        transformer: a network over hidden tokens; its weights and its forward stay as they are.
        config: where light steps lie; None for one after each full step.

    Raises:
        TypeError: the network cannot; lists those that can, and the contract.
        ValueError: the configuration is something else.
    """
    masked_network(transformer)
    if config is not None and not isinstance(config, ReCAPConfig):
        raise ValueError(f"config must be a ReCAPConfig or None, got {type(config).__name__}.")
    if enabled_recap(transformer) is not None:
        logger.info("ReCAP was enabled already; the new configuration replaces the old one.")
    transformer.recap_config = ReCAPConfig() if config is None else config


def disable_recap(transformer: Any) -> None:
    """Undo `enable_recap`; harmless where there is nothing to undo."""
    transformer.__dict__.pop("recap_config", None)


def enabled_recap(transformer: Any) -> ReCAPConfig | None:
    """What `enable_recap` has set, None for nothing."""
    return transformer.__dict__.get("recap_config")
