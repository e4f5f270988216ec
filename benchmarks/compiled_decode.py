"""Decoding on a GPU under `torch.compile`: Gemma-2-2B shapes, random weights, bf16, static cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from interleaved import AGAIN, PLAIN, Case, Plan, Section

PROMPT, STEPS = 16, 32
BATCHES = (1, 32, 256)
GEMMA_2_2B: dict[str, int] = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}


def why_not() -> str | None:
    """Why this section cannot run here; `None` where it can."""
    return None if torch.cuda.is_available() else "no CUDA"


def plans(
    device: str = "cuda",
    shapes: dict[str, int] = GEMMA_2_2B,
    batches: tuple[int, ...] = BATCHES,
    mode: str | None = "reduce-overhead",
) -> Iterator[Plan]:
    """One section a batch size and number of edited layers."""
    layers = shapes["num_hidden_layers"]
    loaded = functools.cache(functools.partial(_loaded, device, shapes, mode))
    for rows in batches:
        for name, site in (("one layer", f"resid_post.{layers // 2}"), (f"all {layers} layers", "resid_post.*")):
            title = f"GPU, compiled: decode {STEPS} tokens at batch {rows}, add a vector at {name}"
            yield title, functools.partial(_section, loaded, rows, site)


def _loaded(device: str, shapes: dict[str, int], mode: str | None) -> tuple[Any, Any, Any]:
    import inlay

    hf = gemma(device, shapes)
    return hf, inlay.load(hf), torch.compile(hf, fullgraph=True, mode=mode)


def _section(loaded: Callable[[], tuple[Any, Any, Any]], rows: int, site: str, title: str) -> Section:
    import inlay

    hf, model, step = loaded()
    width = hf.config.hidden_size
    vector = torch.randn(width, generator=torch.Generator().manual_seed(2)).to(hf.device, hf.dtype) / width**0.5
    decode, edit = decoder(hf, step, rows), inlay.Edit(site, inlay.Add(vector))

    def edited() -> None:
        with model.edited(edit):
            decode()

    cases = (Case(PLAIN, decode), Case(AGAIN, decode), Case("inlay, model.edited", edited, 1.03))
    return Section(title, cases, 31)


def gemma(device: str, shapes: dict[str, int]) -> Any:
    """A Gemma 2 with random weights in bf16."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(dtype="bfloat16", **shapes)
    with torch.device(device):
        made = Gemma2ForCausalLM(config)
    return made.to(device, torch.bfloat16).eval().requires_grad_(False)


def decoder(hf: Any, step: Callable[..., Any], rows: int) -> Callable[[], None]:
    """Greedy decoding of `STEPS` tokens behind a prefilled static cache, which is rewound afterwards."""
    from transformers import StaticCache

    device = hf.device
    cache = StaticCache(config=hf.config, max_cache_len=PROMPT + STEPS)
    ids = torch.randint(1, hf.config.vocab_size, (rows, PROMPT), generator=torch.Generator().manual_seed(1))
    first = hf(input_ids=ids.to(device), cache=cache).logits[:, -1:].argmax(-1)

    def decode() -> None:
        token = first
        for _ in range(STEPS):
            token = step(input_ids=token, cache=cache).logits[:, -1:].argmax(-1)
        cache.crop(-STEPS)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return decode
