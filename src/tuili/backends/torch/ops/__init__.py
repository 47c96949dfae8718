"""Everything that has a Triton kernel, beside its plain torch twin; `choose_ops` says which of them a device gets."""

from tuili.backends.torch.ops.choose import choose_ops
from tuili.backends.torch.ops.packed import DenseWeight, PackedFormat, PackedWeight, unpack
from tuili.backends.torch.ops.packed_formats import FP8_BLOCK, FP8_ROW, PACKABLE, pack, pack_fp8
from tuili.backends.torch.ops.protocol import (
    AttentionConstants,
    AttentionPlan,
    HeadConstants,
    HeadNorm,
    HeadPositions,
    LayerCache,
    Ops,
    RowEntry,
    RowProducts,
)

__all__ = [
    "FP8_BLOCK",
    "FP8_ROW",
    "PACKABLE",
    "AttentionConstants",
    "AttentionPlan",
    "DenseWeight",
    "HeadConstants",
    "HeadNorm",
    "HeadPositions",
    "LayerCache",
    "Ops",
    "PackedFormat",
    "PackedWeight",
    "RowEntry",
    "RowProducts",
    "choose_ops",
    "pack",
    "pack_fp8",
    "unpack",
]
