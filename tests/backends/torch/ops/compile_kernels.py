"""Compiles kernels for an H200 in bfloat16 and prints what came out, as JSON.

`all`: every variant. `benchmark I/N`: part I of N of what benchmarks/gpu checks and times, in every dtype.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import torch

from support.ahead_of_time import compiled, launching
from support.attention_cases import constants, empty_cache, plan_of
from tuili.backends.torch.ops import (
    FP8_BLOCK,
    FP8_ROW,
    PACKABLE,
    DenseWeight,
    HeadConstants,
    HeadNorm,
    HeadPositions,
    RowEntry,
    pack,
    pack_fp8,
)
from tuili.backends.torch.ops.plain import PlainOps
from tuili.backends.torch.ops.triton_ops import TritonOps
from tuili.models.spec import Activation
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor

CPU = torch.device("cpu")
FAST, DETERMINISTIC = TritonOps(CPU, False), TritonOps(CPU, True)
HALF, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
Launch = Callable[[], object]


def attention(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, cached: torch.dtype, **a) -> Launch:
    queries = torch.zeros(66, num_heads, head_dim, dtype=dtype)
    plan = plan_of((1, 1, 64), (1000, 50, 64), torch.zeros(3, 80, dtype=torch.int32))
    cache = empty_cache(4, num_kv_heads, head_dim, cached)
    return lambda: FAST.attend(queries, cache, plan, constants(num_heads, **a))


def product(name: str, num_tokens: int, ops: TritonOps = FAST) -> Launch:
    layouts = {"FP8_ROW": FP8_ROW, "FP8_BLOCK": FP8_BLOCK}
    x = torch.zeros(num_tokens, 2048, dtype=HALF)
    if name == "dense":
        return lambda: ops.linear(x, DenseWeight(torch.zeros(512, 2048, dtype=HALF)))
    if name in layouts:
        weight = pack_fp8(torch.zeros(512, 2048), layouts[name])
    else:
        layout = BY_NAME[name]
        weight = pack(Tensor(layout, (512, 2048), np.zeros((512, layout.row_bytes(2048)), np.uint8)))
    return lambda: ops.linear(x, weight, x[0, :512])


def heads(cached: torch.dtype, half: int = 64) -> Launch:
    q, kv = torch.zeros(64, 16, 128, dtype=HALF), torch.zeros(64, 8, 128, dtype=HALF)
    norm = HeadNorm(q[0, 0].clone(), None, 1e-6, "rms")
    positions = HeadPositions(torch.zeros(64, half), torch.zeros(64, half))
    cache, slots = empty_cache(4, 8, 128, cached), torch.zeros(64, dtype=torch.int32)
    return lambda: FAST.rotate_and_write(q, kv, kv, HeadConstants(norm, norm), positions, cache, slots)


def one_row(hidden: int, heads: int, out: int, inner: int) -> Iterator[Launch]:
    """The products of a layer and of the head."""
    products = FAST.row_products
    assert products is not None
    x, entry = (
        torch.zeros(1, hidden, dtype=HALF),
        RowEntry(torch.zeros(hidden), 1e-6, torch.zeros(1, hidden, dtype=HALF)),
    )

    def weight(num_rows: int, num_cols: int) -> torch.Tensor:
        return torch.empty(num_rows, num_cols, dtype=HALF)

    yield lambda: products(x, weight(heads, hidden), None, entry)
    yield lambda: products(x, weight(2 * inner, hidden), None, entry, "silu")
    yield lambda: products(torch.zeros(1, out, dtype=HALF), weight(hidden, out), None)
    yield lambda: products(torch.zeros(1, inner, dtype=HALF), weight(hidden, inner), None)
    yield lambda: products(x, weight(151936, hidden), None, out_dtype=torch.float32)


def few() -> Iterator[Launch]:
    x = torch.zeros(64, 2048, dtype=HALF)
    yield attention(8, 4, 64, HALF, HALF)
    yield lambda: FAST.add_and_norm(x, x, x[0], None, 1e-6, "rms")
    yield product("Q4_K", 1)
    yield product("Q4_K", 16)
    yield from one_row(2048, 4096, 2048, 6144)


def the_rest() -> Iterator[Launch]:
    x = torch.zeros(64, 2048, dtype=HALF)
    everything = {"window": 512, "softcap": 30.0, "sinks": True, "alibi": True}
    yield attention(16, 8, 128, HALF, HALF)
    yield attention(32, 8, 128, HALF, HALF, **everything)
    yield attention(16, 8, 128, HALF, FP8)
    yield attention(16, 8, 128, HALF, INT8, window=512)
    yield attention(4, 1, 256, HALF, HALF, window=512)
    yield attention(4, 1, 256, HALF, FP8, softcap=50.0)
    yield attention(9, 3, 64, torch.float16, torch.float16)
    yield attention(9, 3, 64, torch.float32, torch.float32)
    yield attention(71, 1, 64, HALF, HALF, alibi=True)
    yield from (heads(cached, half) for cached in (HALF, INT8, FP8) for half in (64, 16))
    yield lambda: FAST.norm(x, x[0], x[0], 1e-6, "layer")
    yield lambda: FAST.finish_logits(x, 1.0, 30.0)
    yield from (lambda name=name: FAST.activate(x, x, name) for name in get_args(Activation))
    for name in (*sorted(PACKABLE), "FP8_ROW", "FP8_BLOCK"):
        yield from (product(name, num_tokens) for num_tokens in (1, 16, 64, 256, 600))
    yield from one_row(4096, 6144, 4096, 12288)
    yield from (product(name, 64, DETERMINISTIC) for name in ("Q4_K", "FP8_ROW", "dense"))


class Unread:
    """Plain operations whose results nobody reads."""

    def attend(self, queries: torch.Tensor, *rest: object) -> torch.Tensor:
        return torch.zeros_like(queries)

    def __getattr__(self, name: str) -> Any:
        return getattr(PlainOps(), name)


def benchmark() -> Iterator[Launch]:
    from benchmarks.gpu import kernels

    kernels.unpack = lambda weight: torch.zeros(weight.shape)  # what products are compared with is not read, either
    torch.nn.functional.linear = lambda x, weight, bias=None: x.new_zeros((len(x), len(weight)))
    bench = kernels.Bench(CPU)
    bench.is_tiny, bench.plain, bench.dtype = False, Unread(), HALF
    bench.dtypes = (HALF, torch.float16, torch.float32)
    groups = (kernels.check_rows_and_heads, kernels.check_attention, kernels.check_one_row, kernels.check_products)
    for checks in groups:
        yield lambda checks=checks: [refuse(record) for record in checks(bench)]
    for name in (*sorted(PACKABLE), "FP8_ROW"):
        for num_rows in (512, 8192):
            weight = bench.weight(name, num_rows, 2048)
            for num_tokens in (1, 8, 17, 256, 512):
                x = torch.zeros(num_tokens, 2048, dtype=HALF)
                yield from (lambda a=(x, weight, None, t): FAST.linear(*a) for t in (HALF, torch.float32))


def refuse(record: dict[str, object]) -> None:
    assert "raised" not in record, record


def main() -> None:
    if sys.argv[1:2] == ["benchmark"]:
        launches, (part, count) = benchmark(), map(int, sys.argv[2].split("/"))
    else:
        launches, (part, count) = iter([*few(), *(the_rest() if sys.argv[1:] == ["all"] else ())]), (0, 1)
    with launching() as found:
        for launch in launches:
            launch()
    found = found[part::count]
    made = [compiled(variant) for variant in found]
    sys.stdout.write(json.dumps([{name: getattr(c, name) for name in c.__slots__} for c in made]))


if __name__ == "__main__":
    main()
