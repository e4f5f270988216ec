"""Order: every example once an epoch, one generator that runs on, partial batches and steps."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from inlay.train.order import Order


@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_every_example_is_seen_once_an_epoch(count: int, batch: int, accumulate: int, epochs: int, seed: int) -> None:
    order = Order.of(count, batch=batch, accumulate=accumulate, epochs=epochs, seed=seed)
    starts = [0, *order.ends[:-1]]
    draws = torch.Generator().manual_seed(seed)
    for start, end in zip(starts, order.ends, strict=True):
        seen = [i for step in order.steps[start:end] for some in step for i in some]
        assert seen == torch.randperm(count, generator=draws).tolist()
        assert all(len(step) == accumulate for step in order.steps[start : end - 1])
        assert 1 <= len(order.steps[end - 1]) <= accumulate
    assert order.ends[-1] == len(order.steps)
    sizes = [len(some) for step in order.steps for some in step]
    assert max(sizes) <= batch and sum(sizes) == count * epochs


def test_mini_batches_are_counted_over_epochs() -> None:
    order = Order.of(5, batch=2, accumulate=2, epochs=2, seed=0)
    assert [len(step) for step in order.steps] == [2, 1, 2, 1]
    assert [order.first(step) for step in range(4)] == [0, 2, 3, 5]
