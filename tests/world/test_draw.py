"""Draw: streams that a key fixes, and draws with the frequencies that they say."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b

import pytest

from inlay.world.draw import Draw

N = 20_000


def test_a_key_is_a_stream_of_the_documented_seed() -> None:
    seed = int.from_bytes(blake2b(b"tidepool-1/safety/test/0/17", digest_size=8).digest(), "big")
    stream = random.Random(seed)
    draw = Draw("tidepool-1", "safety", "test", 0, 17)
    assert [draw.unit() for _ in range(5)] == [stream.random() for _ in range(5)]


def test_other_keys_are_other_streams() -> None:
    first = {Draw("a", i).unit() for i in range(1000)}
    assert len(first) == 1000


def test_values_that_must_never_change() -> None:
    """Python guarantees `random()`; what is made of it is ours to keep."""
    draw = Draw("fixed")
    units = random.Random(int.from_bytes(blake2b(b"fixed", digest_size=8).digest(), "big"))
    values = [units.random() for _ in range(9)]
    assert draw.pick("abcdefg") == "abcdefg"[int(values[0] * 7)]
    assert draw.number(3, 6) == 3 + int(values[1] * 4)
    assert draw.chance(0.5) == (values[2] < 0.5)
    mixed = list("abcd")  # Fisher and Yates, from the last place down
    for last, value in zip((3, 2, 1), values[3:6], strict=True):
        other = int(value * (last + 1))
        mixed[last], mixed[other] = mixed[other], mixed[last]
    assert draw.shuffled("abcd") == mixed


def test_picks_are_uniform() -> None:
    draw = Draw("uniform")
    counts = Counter(draw.pick(range(10)) for _ in range(N))
    assert all(abs(count - N / 10) < 5 * (N * 0.09) ** 0.5 for count in counts.values()) and len(counts) == 10


def test_weighted_draws_have_their_weights_and_never_a_weight_of_zero() -> None:
    draw = Draw("weighted")
    counts = Counter(draw.weighted([0.0, 1.0, 3.0, 0.0]) for _ in range(N))
    assert set(counts) == {1, 2} and abs(counts[2] / N - 0.75) < 0.02


@pytest.mark.parametrize("n", [0, 1, 5, 10])
def test_samples_are_different_ones(n: int) -> None:
    found = Draw("sample", n).sample(range(10), n)
    assert len(set(found)) == n and set(found) <= set(range(10))


def test_every_order_is_as_likely() -> None:
    draw = Draw("orders")
    counts = Counter(tuple(draw.shuffled("abc")) for _ in range(N))
    assert len(counts) == 6 and all(abs(count / N - 1 / 6) < 0.02 for count in counts.values())
