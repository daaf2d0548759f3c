"""What `import pb_jax` offers."""

from pb_jax.compaction import (
    CompactState,
    apply_compact,
    compact,
    compact_gradients,
    compact_state,
    expand_state,
)
from pb_jax.granularity import by_group
from pb_jax.masks import (
    LeafSummary,
    MaskSummary,
    PackedLeaf,
    frozen_fraction,
    mask_summary,
    pack_mask,
    unpack_mask,
    zero_gradient_fraction,
)
from pb_jax.rules import (
    Rule,
    Selection,
    fixed_threshold,
    kde_otsu,
    mean_threshold,
    none,
    quantile,
    random,
    weight_magnitude,
)
from pb_jax.threshold import ThresholdEstimate, estimate_threshold
from pb_jax.transforms import (
    FreezeElementsState,
    MultiplyByMaskState,
    PartialBackpropState,
    freeze_elements,
    multiply_by_mask,
    partial_backprop,
)

__all__ = [
    "CompactState",
    "FreezeElementsState",
    "LeafSummary",
    "MaskSummary",
    "MultiplyByMaskState",
    "PackedLeaf",
    "PartialBackpropState",
    "Rule",
    "Selection",
    "ThresholdEstimate",
    "apply_compact",
    "by_group",
    "compact",
    "compact_gradients",
    "compact_state",
    "estimate_threshold",
    "expand_state",
    "fixed_threshold",
    "freeze_elements",
    "frozen_fraction",
    "kde_otsu",
    "mask_summary",
    "mean_threshold",
    "multiply_by_mask",
    "none",
    "pack_mask",
    "partial_backprop",
    "quantile",
    "random",
    "unpack_mask",
    "weight_magnitude",
    "zero_gradient_fraction",
]
