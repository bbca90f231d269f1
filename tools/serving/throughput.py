"""Throughput of servers in images per second, side by side, and latency against queue length."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image


def draw(url: str, seed: int) -> str:
    """Request one image in base64, for a prompt and its seed."""
    body = json.dumps({"prompt": f"picture {seed % 16}", "seed": seed}).encode()
    with urlopen(
        Request(f"{url}/v1/images/generations", body, {"Content-Type": "application/json"}), timeout=300
    ) as answer:
        return json.load(answer)["data"][0]["b64_json"]


def pictures_a_second(url: str, clients: int, seconds: float, found: dict[int, str]) -> float:
    """Throughput with so many clients, each one request after the other; images go to `found`, by seed."""
    over, counts = time.monotonic() + seconds, [0] * clients

    def ask_on(number: int) -> None:
        while time.monotonic() < over:
            seed = 1000 * number + counts[number]
            found[seed] = draw(url, seed)
            counts[number] += 1

    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def compare(urls: Sequence[str], clients: int, rounds: int, seconds: float) -> list[tuple[float, ...]]:
    """Images per second of each server in each round; the order changes from round to round, and images are compared.

    Raises ValueError where two servers drew different pictures of one prompt and seed: one level of 255 is the rounding of
    decoders that sum in another order, and counted.
    """
    found: list[dict[int, str]] = [{} for _ in urls]
    for place, url in enumerate(urls):
        pictures_a_second(url, clients, 2.0, found[place])  # warm-up: memory that is allocated once
    rates = []
    for number in range(rounds):
        order = range(len(urls)) if number % 2 == 0 else reversed(range(len(urls)))
        rate = {place: pictures_a_second(urls[place], clients, seconds, found[place]) for place in order}
        rates.append(tuple(rate[place] for place in range(len(urls))))
        print(f"round {number + 1}: " + ", ".join(f"{one:.2f}" for one in rates[-1]) + " pictures a second", flush=True)
    shared = set.intersection(*(set(one) for one in found))
    levels = {seed: most_apart([one[seed] for one in found]) for seed in shared}
    differ = [seed for seed, apart in levels.items() if apart > 1]
    if differ:
        raise ValueError(
            f"{len(differ)} of {len(shared)} pictures differ between the servers, as that of seed {differ[0]} "
            f"by {levels[differ[0]]} of 255 levels"
        )
    rounded = sum(levels.values())
    print(
        f"{len(shared)} pictures of both are equal"
        + (f", {rounded} of them but for one of 255 levels" if rounded else "")
    )
    return rates


def most_apart(pictures: Sequence[str]) -> int:
    """Largest difference, of 255 levels, between the first of some images in base64 and the others; 255 for another
    size."""
    first, *others = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB"), np.int16) for each in pictures
    )
    return max(int(abs(other - first).max()) if other.shape == first.shape else 255 for other in others)


def latencies(url: str, at_once: int, expected: dict[int, str]) -> list[float]:
    """Latency in seconds of each of so many concurrent requests. Raises ValueError for an image that is not that of its
    seed."""
    together = threading.Barrier(at_once)

    def one(seed: int) -> float:
        together.wait()
        began = time.monotonic()
        if draw(url, seed) != expected[seed]:
            raise ValueError(f"seed {seed}: not the picture that it gives alone")
        return time.monotonic() - began

    with ThreadPoolExecutor(at_once) as pool:
        return sorted(pool.map(one, range(at_once)))


def queue_table(url: str, most: int, rounds: int = 3) -> list[str]:
    """Table of latency against concurrent requests, up to `most`."""
    expected = {seed: draw(url, seed) for seed in range(most)}
    lines = ["| at once | median s | 95 % s | longest s |", "|---|---|---|---|"]
    at_once = 1
    while at_once <= most:
        found = sorted(second for _ in range(rounds) for second in latencies(url, at_once, expected))
        late = found[int(0.95 * (len(found) - 1))]
        lines.append(f"| {at_once} | {median(found):.3f} | {late:.3f} | {found[-1]:.3f} |")
        at_once *= 2
    return lines
