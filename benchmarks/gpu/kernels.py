"""The torch backend's kernels on this machine: right first, then how near the machine's limits.

    python -m benchmarks.gpu.kernels --records kernels.jsonl [--device cuda] [--part checks|times] [--share 0/8]
    TRITON_INTERPRET=1 python -m benchmarks.gpu.kernels --device cpu ... (tiny sizes, slow: that it runs)

Most of the checks' time is compiling: processes that take a share each compile side by side.

Every kernel is compared with its plain torch twin, in bfloat16 too where there is a GPU (the interpreter multiplies
bfloat16 wrongly). Limits are measured here: torch's copy and torch's product. Bytes are those that must move: weights,
or keys and values. Exit code 1: a kernel is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from benchmarks.gpu.records import Record, Recorder, stage_arguments
from benchmarks.gpu.timing import Launch, copy_rate, matmul_rate, seconds_each
from torch import Tensor

from tuili.backends.torch.ops import (
    FP8_BLOCK,
    FP8_ROW,
    PACKABLE,
    AttentionConstants,
    AttentionPlan,
    DenseWeight,
    HeadConstants,
    HeadNorm,
    HeadPositions,
    LayerCache,
    PackedWeight,
    RowEntry,
    pack,
    pack_fp8,
    unpack,
)
from tuili.backends.torch.ops.plain import PlainOps
from tuili.backends.torch.ops.triton_ops import TritonOps
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor as FileTensor

BOUNDS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}  # of the largest value
BLOCK_SIZE = 16
_BATCHED = ("Q4_0", "Q4_K", "Q8_0", "FP8_ROW")  # formats whose products are timed for several tokens, too
_HEADS = ("Q4_0", "Q6_K", "Q8_0")  # and for a vocabulary's rows
_TARGET = (24576, 4096)  # the matrix that targets speak of
CACHE_BYTES = 160 << 20  # copies of data take more than this together, so that no cache holds them


class Bench:
    """A device, its operations and what was found."""

    def __init__(self, device: torch.device, share: tuple[int, int] = (0, 1)) -> None:
        """share: which of how many equal parts of the checks are this process's."""
        self.device, self.is_tiny = device, device.type != "cuda"
        self._share, self._num_turns = share, 0
        self.plain, self.fast, self.exact = PlainOps(), TritonOps(device, False), TritonOps(device, True)
        self.dtypes = (torch.float32, torch.float16) if self.is_tiny else (torch.bfloat16, torch.float16, torch.float32)
        self.dtype = torch.float16 if self.is_tiny else torch.bfloat16

    def is_mine(self) -> bool:
        """Whether the next group of checks, counted from the first, is in this process's share."""
        self._num_turns += 1
        return self._num_turns % self._share[1] == self._share[0]

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype or self.dtype)

    def weight(self, name: str, rows: int, cols: int) -> PackedWeight:
        """Random bytes with tame scales, or FP8 of random numbers."""
        if name in ("FP8_ROW", "FP8_BLOCK"):
            return pack_fp8(self.randn(rows, cols), FP8_ROW if name == "FP8_ROW" else FP8_BLOCK)
        layout = BY_NAME[name]
        sample = layout.quantize(np.random.default_rng(0).standard_normal((8, cols), np.float32))
        data = np.resize(sample, (rows, sample.shape[1]))
        return pack(FileTensor(layout, (rows, cols), data)).to(self.device)

    def attention(
        self,
        query_lens: list[int],
        seq_lens: list[int],
        heads: tuple[int, int, int],
        dtype: torch.dtype,
        cached: torch.dtype,
    ) -> tuple[Tensor, LayerCache, AttentionPlan]:
        num_heads, num_kv_heads, head_dim = heads
        width = -(-max(seq_lens) // BLOCK_SIZE)
        shape = (len(seq_lens) * width, BLOCK_SIZE, num_kv_heads, head_dim)
        scaled = cached in (torch.int8, torch.float8_e4m3fn)
        scales = [torch.zeros(shape[:3], device=self.device) for _ in range(2)] if scaled else []
        cache = LayerCache(*(torch.zeros(shape, device=self.device).to(cached) for _ in range(2)), *scales)
        slots = torch.arange(shape[0] * BLOCK_SIZE, dtype=torch.int32, device=self.device)
        keys, values = (self.randn(len(slots), num_kv_heads, head_dim, dtype=dtype) for _ in range(2))
        self.plain.write_cache(cache, keys, values, slots)
        table = torch.randperm(shape[0], device=self.device).int().view(-1, width)
        starts = torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32, device=self.device)
        lens = torch.tensor(seq_lens, dtype=torch.int32, device=self.device)
        decodes = sum(n == 1 for n in query_lens)
        plan = AttentionPlan(starts, lens, table, max(query_lens), max(seq_lens), decodes)
        return self.randn(sum(query_lens), num_heads, head_dim, dtype=dtype), cache, plan


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-9))


def checked(name: str, dtype: torch.dtype, found: Tensor | Callable[[], Tensor], expected: Tensor) -> Record:
    """A kernel that cannot be launched is a record, too: the others are still checked."""
    try:
        worst = error(found if isinstance(found, Tensor) else found(), expected)
    except Exception as raised:
        return {"check": name, "dtype": str(dtype), "raised": f"{type(raised).__name__}: {raised}"[:300], "ok": False}
    return {"check": name, "dtype": str(dtype), "error": worst, "bound": BOUNDS[dtype], "ok": worst <= BOUNDS[dtype]}


def check_attention(bench: Bench) -> Iterator[Record]:
    lens = ([1, 7, 1, 20], [300, 7, 17, 50]) if bench.is_tiny else ([1, 70, 1, 1, 300], [3000, 70, 17, 1, 900])
    heads = [(2, 1, 32)] if bench.is_tiny else [(16, 8, 128), (9, 3, 64), (4, 1, 256), (14, 2, 64), (32, 8, 96)]
    for dtype in bench.dtypes:
        for shape in heads:
            slopes, sinks = bench.randn(2, shape[0], dtype=torch.float32)
            for cached in (dtype, torch.int8, torch.float8_e4m3fn):
                if not bench.is_mine():
                    continue
                step = bench.attention(*lens, shape, dtype, cached)
                for a in (
                    AttentionConstants(shape[2] ** -0.5),
                    AttentionConstants(shape[2] ** -0.5, 40, 20.0, sinks, slopes.abs()),
                ):
                    expected = bench.plain.attend(*step, a)
                    for ops in (bench.fast, bench.exact):
                        which = "deterministic" if ops is bench.exact else "fast"
                        name = f"attention {shape} cache {cached} window {a.window} {which}"
                        yield checked(name, dtype, partial(ops.attend, *step, a), expected)


def check_one_row(bench: Bench) -> Iterator[Record]:
    for rows, cols in [(40, 256)] if bench.is_tiny else [(1000, 2560), (4096, 2048), (2048, 6144)]:
        for dtype in filter(lambda _: bench.is_mine(), bench.dtypes):
            x, residual, weight = (bench.randn(*shape, dtype=dtype) for shape in ((1, cols), (1, cols), (rows, cols)))
            gain, bias = bench.randn(cols, dtype=torch.float32), bench.randn(rows, dtype=dtype)
            normed, total = bench.plain.add_and_norm(x, residual, gain, None, 1e-6, "rms")
            expected = torch.nn.functional.linear(normed, weight, bias)
            entry, products = RowEntry(gain, 1e-6, residual), bench.fast.row_products
            assert products is not None
            run = partial(products, x, weight, bias, entry)
            yield checked(f"one row {rows}x{cols}", dtype, lambda run=run: run()[0], expected)
            yield checked(f"one row {rows}x{cols} sum", dtype, lambda run=run: run()[1], total)
            gate, up = expected.chunk(2, -1)
            gated = bench.plain.activate(gate, up, "silu")
            yield checked(f"one row {rows}x{cols} silu", dtype, lambda run=run: run("silu")[0], gated)


def check_products(bench: Bench) -> Iterator[Record]:
    rows, cols = (40, 256) if bench.is_tiny else (1000, 2560)
    for name in (*sorted(PACKABLE), "FP8_ROW", "FP8_BLOCK"):
        weight = bench.weight(name, rows, cols)
        for dtype in filter(lambda _: bench.is_mine(), bench.dtypes[: 1 if bench.is_tiny else 3]):
            for num_tokens in (1, 5) if bench.is_tiny else (1, 5, 16, 33, 200, 600):
                x, bias = bench.randn(num_tokens, cols, dtype=dtype), bench.randn(rows, dtype=dtype)
                expected = torch.nn.functional.linear(x, unpack(weight).to(dtype), bias)
                for which, ops in (("fast", bench.fast), ("deterministic", bench.exact)):
                    label = f"product {name} tokens {num_tokens} {which}"
                    yield checked(label, dtype, partial(ops.linear, x, weight, bias), expected)
        if not bench.is_tiny and bench.is_mine():
            x = bench.randn(300, cols)
            together, alone = bench.exact.linear(x, weight), bench.exact.linear(x[211:212], weight)
            same = torch.equal(alone, together[211:212])
            yield {
                "check": f"product {name} row alone",
                "dtype": str(bench.dtype),
                "error": 0.0,
                "bound": 0,
                "ok": same,
            }


def check_rows_and_heads(bench: Bench) -> Iterator[Record]:
    for dtype in filter(lambda _: bench.is_mine(), bench.dtypes):
        x, residual = bench.randn(5, 2048, dtype=dtype), bench.randn(5, 2048, dtype=dtype)
        for found, expected in zip(
            bench.fast.add_and_norm(x, residual, x[0], None, 1e-6, "rms", 0.7),
            bench.plain.add_and_norm(x, residual, x[0], None, 1e-6, "rms", 0.7),
            strict=True,
        ):
            yield checked("add and norm", dtype, found, expected)
        for activation in ("silu", "gelu", "gelu_tanh", "relu", "relu2"):
            found = bench.fast.activate(x, residual, activation)
            yield checked(activation, dtype, found, bench.plain.activate(x, residual, activation))
        fused = bench.randn(5, 8, 128, dtype=dtype)
        norm = HeadNorm(bench.randn(128, dtype=dtype), None, 1e-6, "rms")
        positions = HeadPositions(*bench.randn(2, 5, 64, dtype=torch.float32))
        slots = torch.tensor([3, -1, 17, 5, 30], dtype=torch.int32, device=bench.device)
        for cached in (dtype, torch.int8, torch.float8_e4m3fn):
            caches = [bench.attention([1], [32], (4, 2, 128), dtype, cached)[1] for _ in range(2)]
            for cache in caches:
                cache.keys.zero_()
            arguments = (fused[:, :4], fused[:, 4:6], fused[:, 6:], HeadConstants(norm, norm), positions)
            queries = [
                ops.rotate_and_write(*arguments, cache, slots)
                for ops, cache in zip((bench.fast, bench.plain), caches, strict=True)
            ]
            yield checked("queries", dtype, *queries)
            if cached != torch.float8_e4m3fn or not bench.is_tiny:  # the interpreter's conversion is another
                bound = {dtype: dtype, torch.int8: torch.bfloat16, torch.float8_e4m3fn: torch.bfloat16}[cached]
                record = checked(f"cached keys {cached}", bound, caches[0].keys, caches[1].keys)
                # A value on the edge between two levels may fall to either: e4m3's are up to 1/8 apart.
                limit = 0.13 if cached == torch.float8_e4m3fn else record["bound"]
                yield record | {"bound": limit, "ok": record["error"] <= limit}


def timed(bench: Bench, name: str, launches: list[Launch], num_bytes: float, limit: float, operations: float) -> Record:
    """num_bytes against the copy's rate; operations, where they are not 0, against the product's."""
    started = time.perf_counter()
    launches[0]()
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)
    first = time.perf_counter() - started
    seconds = seconds_each(bench.device, launches)
    amount = operations or num_bytes
    unit = "TFLOP/s" if operations else "GB/s"
    rate = amount / seconds
    scale = 1e12 if operations else 1e9
    return {
        "kernel": name, "us": seconds * 1e6, "rate": rate / scale, "unit": unit, "share_of_limit": rate / limit,
        "first_launch_s": first,
    }  # fmt: skip


def time_products(
    recorder: Recorder, bench: Bench, shapes: list[tuple[int, int]], copied: float, multiplied: float
) -> None:
    """Each matrix on its own."""
    for rows, cols in shapes:
        names = _HEADS if rows > 100_000 else ("Q4_0", "Q4_K", *sorted(PACKABLE - {"Q4_0", "Q4_K"}), "FP8_ROW")
        measures: list[Callable[[], Iterator[Record]]] = [partial(time_dense, bench, rows, cols, copied)]
        measures += [partial(time_packed, bench, name, rows, cols, copied, multiplied) for name in names]
        for name, measure in zip(("dense", *names), measures, strict=True):
            recorder.attempt(f"{name} {rows}x{cols}", measure)


def time_dense(bench: Bench, rows: int, cols: int, copied: float) -> Iterator[Record]:
    dense, x = bench.randn(rows, cols), bench.randn(1, cols)
    weights = [DenseWeight(dense.clone()) for _ in range(_copies(bench, dense.nbytes))]
    launches: list[Launch] = [lambda w=w: bench.fast.linear(x, w) for w in weights]
    yield timed(bench, f"dense {rows}x{cols} tokens 1", launches, dense.nbytes, copied, 0)
    products = bench.fast.row_products
    assert products is not None
    launches = [lambda w=w: products(x, w.weight, None) for w in weights]
    yield timed(bench, f"dense {rows}x{cols} one row", launches, dense.nbytes, copied, 0)
    entry = RowEntry(bench.randn(cols, dtype=torch.float32), 1e-6, x)
    launches = [lambda w=w: products(x, w.weight, None, entry, "silu") for w in weights]
    yield timed(bench, f"norm, dense {rows}x{cols}, silu one row", launches, dense.nbytes, copied, 0)


def time_packed(bench: Bench, name: str, rows: int, cols: int, copied: float, multiplied: float) -> Iterator[Record]:
    packed = bench.weight(name, rows, cols)
    others = [packed, *(_clone(packed) for _ in range(_copies(bench, packed.num_bytes) - 1))]
    for num_tokens in (1,) if bench.is_tiny or rows > 8192 or name not in _BATCHED else (1, 8, 64, 512):
        x = bench.randn(num_tokens, cols)
        launches: list[Launch] = [lambda w=w, x=x: bench.fast.linear(x, w) for w in others]
        operations = 2.0 * num_tokens * rows * cols if num_tokens >= 64 else 0
        limit = multiplied if operations else copied
        yield timed(bench, f"{name} {rows}x{cols} tokens {num_tokens}", launches, packed.num_bytes, limit, operations)


def _copies(bench: Bench, num_bytes: int) -> int:
    return 1 if bench.is_tiny else max(2, -(-CACHE_BYTES // num_bytes))


def _clone(weight: PackedWeight) -> PackedWeight:
    levels, scales, *rest = (None if plane is None else plane.clone() for plane in weight.planes())
    assert levels is not None
    assert scales is not None
    return PackedWeight(weight.format, weight.shape, levels, scales, *rest)


def time_attention(bench: Bench, copied: float, multiplied: float) -> Iterator[Record]:
    heads = (2, 1, 32) if bench.is_tiny else (16, 8, 128)
    a = AttentionConstants(heads[2] ** -0.5)
    for batch, context in [(1, 40)] if bench.is_tiny else [(1, 1024), (1, 16384), (64, 1024), (256, 1024)]:
        for cached in (bench.dtype, torch.float8_e4m3fn):
            num_bytes = 2 * batch * context * heads[1] * heads[2] * cached.itemsize
            steps = [
                bench.attention([1] * batch, [context] * batch, heads, bench.dtype, cached)
                for _ in range(min(_copies(bench, num_bytes), 16))
            ]
            launches: list[Launch] = [lambda s=s: bench.fast.attend(*s, a) for s in steps]
            yield timed(bench, f"decode {batch} x {context} {cached}", launches, num_bytes, copied, 0)
    for batch, length in [(1, 40)] if bench.is_tiny else [(1, 512), (8, 2048), (1, 16384)]:
        step = bench.attention([length] * batch, [length] * batch, heads, bench.dtype, bench.dtype)
        operations = 4.0 * batch * length * (length + 1) / 2 * heads[0] * heads[2]
        launches = [lambda s=step: bench.fast.attend(*s, a)] * 4
        yield timed(bench, f"prefill {batch} x {length}", launches, 0, multiplied, operations)


def time_rows(bench: Bench, copied: float) -> Iterator[Record]:
    for tokens in (4,) if bench.is_tiny else (1, 64, 16384):
        x, residual = bench.randn(tokens, 2048), bench.randn(tokens, 2048)
        launches: list[Launch] = [lambda x=x, r=residual: bench.fast.add_and_norm(x, r, x[0], None, 1e-6, "rms")] * 8
        yield timed(bench, f"add and norm {tokens} x 2048", launches, 4 * x.nbytes, copied, 0)
        gate = bench.randn(tokens, 2 * 6144)
        launches = [lambda g=gate: bench.fast.activate(g[:, :6144], g[:, 6144:], "silu")] * 8
        yield timed(bench, f"silu and product {tokens} x 6144", launches, gate.nbytes * 1.5, copied, 0)


def check(recorder: Recorder, bench: Bench) -> None:
    for checks in (check_rows_and_heads, check_attention, check_one_row, check_products):
        recorder.attempt(checks.__name__, partial(checks, bench))


def measure(recorder: Recorder, bench: Bench) -> None:
    copied = copy_rate(bench.device, 1 << 14 if bench.is_tiny else 4 << 30)
    multiplied = matmul_rate(bench.device, 64 if bench.is_tiny else 8192, bench.dtype)
    recorder.add({"name": "copy", "value": copied / 1e9, "unit": "GB/s"})
    recorder.add({"name": "product", "value": multiplied / 1e12, "unit": "TFLOP/s"})
    shapes = [(64, 256)] if bench.is_tiny else [_TARGET, (2048, 2048), (6144, 2048), (2048, 6144), (151936, 2048)]
    time_products(recorder, bench, shapes[:1], copied, multiplied)
    recorder.attempt("time_attention", lambda: time_attention(bench, copied, multiplied))
    recorder.attempt("time_rows", lambda: time_rows(bench, copied))
    time_products(recorder, bench, shapes[1:], copied, multiplied)


def main() -> int:
    parser = stage_arguments(__doc__)
    parser.add_argument("--part", choices=("checks", "times"))
    parser.add_argument("--share", default="0/1", help="I/N: the checks of process I of N")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    index, _, number = arguments.share.partition("/")
    recorder, bench = Recorder(arguments.records), Bench(torch.device(arguments.device), (int(index), int(number)))
    if arguments.part != "times":
        check(recorder, bench)
    if arguments.part != "checks":
        measure(recorder, bench)
    return 1 if recorder.num_failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
