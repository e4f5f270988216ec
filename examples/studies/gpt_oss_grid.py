"""Patching a mixture of experts with attention sinks: a grid on gpt-oss.

pyvene's notebook on gpt-oss, with random weights in the place of 20 billion: a small model of that family, whose blocks
route each token to 2 of 4 experts, whose heads may attend to nothing (a learned sink takes a share of each softmax),
and of which block 1 sees all tokens and the others only 3.

Asserted, because the architecture makes it so: what a token holds before a block reaches the last token only if the
windows above span the distance (2 tokens a block) or block 1 is still to come. All cells outside of this cone leave the
answer as it was, all inside change it, and the last token behind the last block is the source's answer. Every cell is
what a forward hook on the Hugging Face module gives. The pattern of a head sums to less than 1, by what its sink takes;
a sink that takes everything is the same as the head's `z` set to zero.

    python examples/studies/gpt_oss_grid.py [figure.png]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

import inlay
from inlay import Edit, Zero
from inlay.causal import patch_grid

LAYERS, TOKENS, REACH, FULL = 4, 11, 2, 1


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hf = small()
    model = inlay.load(hf)
    base, source = torch.randint(5, 64, (2, 6, TOKENS)).tolist()

    def first(logits: Tensor) -> Tensor:
        """The logit of token 0, which stands for any answer."""
        return logits[:, 0]

    grid = patch_grid(model, base, source, "resid_pre.*", metric=first)
    change = abs(grid - grid["corrupted"])
    end = patch_grid(model, base, source, f"resid_post.{LAYERS - 1}", -1, metric=first)
    by_hand = [[hooked(hf, base, source, layer, token) for token in range(TOKENS)] for layer in range(LAYERS)]

    distance = TOKENS - 1 - torch.arange(TOKENS)
    above = torch.arange(LAYERS)[:, None]
    reaches = (above <= FULL) | (distance <= REACH * (LAYERS - above))
    print("how far the answer moves; cells in brackets cannot reach the last token")
    for layer, row in enumerate(change.mean("pair").values):
        cells = (f" {v:4.2f} " if r else f"({v:4.2f})" for v, r in zip(row, reaches[layer], strict=True))
        print(f"before block {layer}  " + " ".join(cells))
    pattern = model.read(base, "pattern.0")["pattern.0"].sum(-1)
    print(f"a head's attention sums to {pattern.mean():.2f} on average, of which the rest is its sink's")
    if len(sys.argv) > 1:
        change.mean("pair").plot(title="gpt-oss").savefig(sys.argv[1], dpi=150)

    moved = torch.tensor(change.mean("pair").values)
    assert (moved[~reaches] < 1e-5).all() and (moved[reaches] > 1e-2).all()
    torch.testing.assert_close(
        torch.tensor(grid.values), torch.stack([torch.stack(row) for row in by_hand]), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(torch.tensor(end.values[0, 0]), torch.tensor(end["clean"].values), rtol=1e-4, atol=1e-4)
    assert (pattern < 1 + 1e-5).all() and pattern.mean() < 0.95

    silent = model.forward(base, edit=Edit("z.2.h1", Zero())).logits
    with torch.no_grad():
        hf.model.layers[2].self_attn.sinks[1] = 1e4
    torch.testing.assert_close(model.forward(base).logits, silent, rtol=1e-4, atol=1e-4)


def small() -> GptOssForCausalLM:
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["full_attention" if layer == FULL else "sliding_attention" for layer in range(LAYERS)],
        sliding_window=REACH + 1,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=None,
    )
    return GptOssForCausalLM(config).eval()


@torch.no_grad()
def hooked(hf: GptOssForCausalLM, base: list[list[int]], source: list[list[int]], layer: int, token: int) -> Tensor:
    """The answer's logits with a bare hook in the place of a cell."""
    kept: list[Tensor] = []
    block = hf.model.layers[layer]
    handle = block.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
    hf(torch.tensor(source))
    handle.remove()

    def put(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h = args[0].clone()
        h[:, token] = kept[0][:, token]
        return (h, *args[1:])

    handle = block.register_forward_pre_hook(put)
    found = hf(torch.tensor(base)).logits[:, -1, 0]
    handle.remove()
    return found


if __name__ == "__main__":
    main()
