"""Blocks, hashes, histories and the cache plan, each by itself."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuili.backend import CacheGroup
from tuili.config import EngineConfig
from tuili.engine.cache.block_manager import BlockManager, num_spanned
from tuili.engine.cache.block_pool import BlockPool
from tuili.engine.cache.cache_plan import plan_cache
from tuili.engine.cache.prefix_cache import HashChain, block_hash, chain_root
from tuili.engine.sampling.history import TokenHistory
from tuili.errors import InsufficientMemoryError, UnsupportedModelError


def group(window: int | None = None, *, block_bytes: int = 1, kind: str = "") -> CacheGroup:
    kind = kind or ("full" if window is None else "window")
    return CacheGroup(kind=kind, block_bytes=block_bytes, block_size=16, window=window)  # type: ignore[arg-type]


def manager(*windows: int | None, blocks: int = 8, budget: int = 64) -> BlockManager:
    return BlockManager(
        [group(w) for w in windows],
        [blocks] * len(windows),
        max_num_seqs=3,
        max_num_batched_tokens=budget,
        max_model_len=256,
    )


def digests(count: int, seed: int = 0) -> list[bytes]:
    return HashChain(16, chain_root(str(seed))).first(count, list(range(16 * count)))


def test_a_pool_gives_up_cached_blocks_last_and_oldest_first() -> None:
    pool = BlockPool(4)
    a, b, c, d = (pool.allocate() for _ in range(4))
    for block, digest in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.register(block, digest)
    for block in (b, a, d, c):
        pool.release(block)
    assert pool.num_free == 4
    assert [pool.allocate() for _ in range(3)] == [d, b, a]
    assert (pool.find(b"a"), pool.find(b"b"), pool.find(b"c")) == (None, None, c)
    pool.acquire(c)
    pool.check(np.bincount([a, b, c, d], minlength=4))
    assert pool.num_free == 0


def test_a_pool_gives_away_first_what_nobody_has_had() -> None:
    pool = BlockPool(8)
    first, second = pool.allocate(), pool.allocate()
    pool.release(first)
    assert pool.take_away(5) == [7, 6, 5, 4, 3]
    assert (pool.num_blocks, pool.num_free, pool.num_untouched) == (3, 2, 1)
    pool.check(np.bincount([second], minlength=8))
    assert [pool.allocate() for _ in range(pool.num_free)] == [first, 2]
    assert pool.num_free == 0
    pool.bring_back(3)
    assert [pool.allocate() for _ in range(pool.num_free)] == [3, 4, 5]
    with pytest.raises(AssertionError):
        pool.take_away(1)


def test_a_pool_gives_away_freed_blocks_before_cached_ones_and_takes_up_memory_again_last() -> None:
    pool = BlockPool(4)
    a, b, c, d = (pool.allocate() for _ in range(4))
    pool.register(a, b"a")
    pool.register(b, b"b")
    for block in (a, c, b, d):
        pool.release(block)
    assert pool.take_away(1) == [c]
    assert pool.take_away(2) == [d, a]
    assert (pool.find(b"a"), pool.find(b"b")) == (None, b)
    pool.check(np.zeros(4, dtype=np.int64))
    pool.forget()
    pool.bring_back(2)
    assert [pool.allocate() for _ in range(3)] == [b, a, c]


@given(st.integers(0, 2**32 - 1))
def test_a_pool_that_is_resized_at_any_moment_loses_no_block(seed: int) -> None:
    rng, pool, held = random.Random(seed), BlockPool(10), list[int]()
    untouched = set(range(10))
    for _ in range(60):
        if rng.random() < 0.2:
            untouched |= set(pool.take_away(rng.randint(0, pool.num_free)))
        elif rng.random() < 0.2:
            pool.bring_back(rng.randint(0, pool.size - pool.num_blocks))
        elif held and (rng.random() < 0.5 or not pool.num_free):
            pool.release(held.pop(rng.randrange(len(held))))
        elif pool.num_free:
            held.append(pool.allocate())
            untouched.discard(held[-1])
            if rng.random() < 0.5:
                pool.register(held[-1], rng.randbytes(8))
        pool.check(np.bincount(held, minlength=pool.size))
        assert pool.num_untouched == len(untouched) - sum(block in untouched for block in pool._away)


def test_an_equal_block_does_not_replace_the_first() -> None:
    pool = BlockPool(2)
    a, b = pool.allocate(), pool.allocate()
    pool.register(a, b"x")
    pool.register(b, b"x")
    pool.register(a, b"y")
    assert pool.find(b"x") == a
    assert pool.find(b"y") is None
    pool.release(b)
    pool.release(a)
    pool.forget()
    assert pool.find(b"x") is None
    pool.check(np.zeros(2, dtype=np.int64))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p._free.pop(), "lost"),
        (lambda p: p._free.append(p._free[0]), "twice"),
        (lambda p: p._cached.setdefault(p._free[0]), "two places"),
        (lambda p: p._hash_of.clear(), "disagree"),
        (lambda p: p._refcounts.__setitem__(0, 2), "reference counts"),
    ],
)
def test_check_finds_damage(damage: object, message: str) -> None:
    pool = BlockPool(4)
    pool.register(pool.allocate(), b"x")
    references = np.array([1, 0, 0, 0])
    pool.check(references)
    damage(pool)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=message):
        pool.check(references)


def test_manager_check_finds_a_stray_entry() -> None:
    blocks = manager(None)
    assert blocks.grow(0, 0, 20)
    blocks.check()
    blocks.tables[0, 1, 0] = 5
    with pytest.raises(AssertionError, match="slot 1 holds blocks past its end"):
        blocks.check()


def test_grow_takes_all_or_nothing_in_every_group() -> None:
    blocks = manager(None, None, blocks=4)
    assert blocks.grow(0, 0, 33)
    free = [pool.num_free for pool in blocks.pools]
    assert not blocks.grow(1, 0, 17)
    assert free == [pool.num_free for pool in blocks.pools] == [1, 1]
    assert blocks.grow(1, 0, 16)
    blocks.free(0)
    blocks.check()


def test_copy_on_write_copies_for_all_holders_but_the_last() -> None:
    blocks = manager(None)
    blocks.grow(0, 0, 20)
    blocks.fork(0, 1)
    blocks.fork(0, 2)
    shared = blocks.tables[0, :, 1].tolist()
    assert len(set(shared)) == 1
    assert all(blocks.grow(slot, 20, 21) for slot in range(3))
    copies = blocks.take_copies()
    assert copies.shape == (2, 3)
    assert set(copies[:, 1].tolist()) == {shared[0]}
    assert set(blocks.tables[0, :2, 1].tolist()) == set(copies[:, 2].tolist())
    assert blocks.tables[0, 2, 1] == shared[0]
    assert len(set(blocks.tables[0, :, 0].tolist())) == 1  # full blocks stay shared
    assert blocks.take_copies().shape == (0, 3)
    blocks.check()


def test_a_shared_block_needs_room_for_its_copy() -> None:
    blocks = manager(None, blocks=2)
    blocks.grow(0, 0, 20)
    blocks.fork(0, 1)
    assert not blocks.grow(0, 20, 21)
    blocks.free(1)
    assert blocks.grow(0, 20, 21)
    assert len(blocks.take_copies()) == 0


def test_a_window_table_forgets_what_no_query_sees() -> None:
    blocks = manager(None, 20)
    blocks.grow(0, 0, 64)
    assert blocks.grow(0, 64, 65)
    assert (blocks.tables[1, 0, :5] >= 0).tolist() == [False, False, True, True, True]  # 64 sees 45..64
    assert (blocks.tables[0, 0, :5] >= 0).all()
    blocks.grow(0, 67, 68)  # 67 sees 48..67
    assert (blocks.tables[1, 0, :5] >= 0).tolist() == [False, False, False, True, True]
    blocks.check()
    blocks.free(0)
    blocks.check()


def test_of_a_freed_context_the_beginning_stays_cached_longest() -> None:
    hashes = digests(4)
    blocks = manager(None, blocks=4)
    blocks.grow(0, 0, 64)
    blocks.register(0, 0, hashes)
    blocks.free(0)
    for left in (3, 2, 1):
        assert blocks.grow(1, 0, 16 * (4 - left))
        assert blocks.match(hashes) == left


def test_match_wants_every_block_of_a_full_group_and_the_last_window_of_a_window_group() -> None:
    hashes = digests(5)
    blocks = manager(None, 20)
    blocks.grow(0, 0, 80)
    blocks.register(0, 0, hashes)
    assert blocks.match(hashes) == 5
    assert blocks.match([*hashes[:2], b"other", *hashes[3:]]) == 2
    for lost, found in [(0, 5), (1, 5), (2, 5), (3, 3), (4, 4)]:  # the 80th token sees 61..80: blocks 3 and 4
        pool = blocks.pools[1]
        block = pool._block_of.pop(hashes[lost])
        assert blocks.match(hashes) == found
        pool._block_of[hashes[lost]] = block


@given(
    window=st.integers(1, 90),
    have=st.lists(st.booleans(), min_size=12, max_size=12),
    full=st.integers(0, 12),
)
def test_match_finds_the_longest_usable_prefix(window: int, have: list[bool], full: int) -> None:
    hashes = digests(12)
    blocks = manager(None, window, blocks=12, budget=256)
    for g, present in enumerate(([i < full for i in range(12)], have)):
        for digest, there in zip(hashes, present, strict=True):
            if there:
                blocks.pools[g].register(blocks.pools[g].allocate(), digest)

    def usable(count: int) -> bool:
        visible = range(max(count * 16 - window + 1, 0), count * 16)
        return count <= full and all(have[position // 16] for position in visible)

    assert blocks.match(hashes) == max(count for count in range(13) if usable(count))


def test_fits_counts_cached_blocks_it_would_revive() -> None:
    hashes = digests(3)
    blocks = manager(None, blocks=4)
    blocks.grow(0, 0, 48)
    blocks.register(0, 0, hashes)
    assert blocks.fits(64, hashes)  # three held by slot 0, one free
    assert not blocks.fits(65, hashes)
    blocks.free(0)
    assert blocks.fits(64, hashes)  # three revived, one free
    assert not blocks.fits(65, hashes)
    blocks.grow(1, 0, 16)
    assert not blocks.fits(64, hashes)


@given(st.integers(1, 200), st.integers(0, 400), st.sampled_from([16, 32]))
def test_num_spanned_is_the_most_a_run_can_touch(length: int, start: int, size: int) -> None:
    touched = (start + length - 1) // size - start // size + 1
    assert touched <= num_spanned(length, size)
    worst = size - 1
    assert (worst + length - 1) // size - worst // size + 1 == num_spanned(length, size)


def test_hash_chains_depend_on_everything_before() -> None:
    root = chain_root("salt")
    assert root == hashlib.sha256((4).to_bytes(8, "little") + b"salt").digest()
    assert len({chain_root("ab"), chain_root("a", "b"), chain_root("", "ab"), chain_root("b", "a")}) == 4
    tokens = list(range(40))
    chain = HashChain(16, root)
    first = block_hash(root, tokens[:16])
    assert first == hashlib.sha256(root + np.arange(16, dtype=np.int32).tobytes()).digest()
    assert chain.first(2, tokens) == [first, block_hash(first, tokens[16:32])]
    twin = chain.copy()
    assert twin.first(2, tokens) == chain.first(2, tokens)
    assert block_hash(root, tokens[:16], b"image") != first


@given(prompt=st.lists(st.integers(0, 40), min_size=1, max_size=60), output=st.lists(st.integers(0, 80), max_size=40))
def test_a_history_counts_like_a_counter(prompt: list[int], output: list[int]) -> None:
    history = TokenHistory(prompt)
    before = history.copy()
    foreseen = history.seen_along(output)
    for i, token_id in enumerate([*output, None]):
        for ids, counts in (history.seen, foreseen[i]):
            assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
                seen: Counter(output[:i])[seen] for seen in {*prompt, *output[:i]}
            }
        if token_id is not None:
            history.add(token_id)
    assert len(foreseen) == len(output) + 1
    ids, counts = before.seen
    assert (ids.tolist(), set(counts.tolist())) == (list(dict.fromkeys(prompt)), {0})


def config(**limits: int) -> EngineConfig:
    return EngineConfig(**{"max_model_len": 160, "block_size": 16, "max_num_seqs": 4, **limits})  # type: ignore[arg-type]


def test_the_plan_spends_the_budget_evenly_and_never_more() -> None:
    groups = [group(block_bytes=300), group(20, block_bytes=100)]
    assert plan_cache(groups, config(kv_cache_memory_bytes=4000, max_num_batched_tokens=16)) == [10, 10]
    # 4 decoding windows of at most 3 blocks and a chunk of at most 2: the window group needs no more than 14
    assert plan_cache(groups, config(kv_cache_memory_bytes=7999, max_num_batched_tokens=16)) == [21, 14]
    assert plan_cache(groups, config(max_num_batched_tokens=16)) == [40, 14]
    assert plan_cache([group(block_bytes=1 << 28)], config()) == [4]


def test_the_plan_refuses_what_it_cannot_do() -> None:
    with pytest.raises(InsufficientMemoryError, match="399 bytes were given, one block of 16 tokens needs 400"):
        plan_cache([group(block_bytes=300), group(20, block_bytes=100)], config(kv_cache_memory_bytes=399))
    for kind in ("state", "cross"):
        with pytest.raises(UnsupportedModelError, match=f"cache group 1 is of kind '{kind}'"):
            plan_cache([group(), group(kind=kind)], config())


def test_capacity_is_that_of_the_tightest_group() -> None:
    assert manager(None, blocks=5).capacity == 80
    assert manager(None, 16, blocks=5).capacity == 80
    assert manager(16, blocks=6).capacity is None
    assert manager(16, blocks=5).capacity == 80
