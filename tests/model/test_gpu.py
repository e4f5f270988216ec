"""What only a GPU can show: edits follow the Site's device, captured graphs, and half precision on real kernels."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inlay
from inlay import Add, Bank, Clamp, Edit, Noise

pytestmark = pytest.mark.gpu

WIDTH, LAYERS = 64, 3


def build(dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().to("cuda", dtype)


def ids(rows=2, tokens=9):
    return torch.randint(3, 96, (rows, tokens), generator=torch.Generator().manual_seed(1)).cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_made_on_the_cpu_follows_the_site_to_the_gpu(dtype):
    hf = build(dtype)
    vector = torch.randn(WIDTH)
    handle = hf.model.layers[1].register_forward_hook(lambda m, a, out: out + vector.to(out))
    with torch.no_grad():
        expected = hf(ids()).logits
    handle.remove()
    with torch.no_grad(), inlay.load(hf).edited(Edit("resid_post.1", Add(vector))):
        found = hf(ids()).logits
    assert torch.equal(found, expected)


def test_bank_rows_clamp_and_noise_equal_the_cpu():
    on_gpu, bank = build(), Bank([Add(torch.randn(WIDTH)) for _ in range(4)])
    on_cpu = build().cpu()
    edit = (
        Edit("resid_post.0", bank)
        + Edit("resid_post.1", Clamp(torch.randn(WIDTH), 1.0))
        + Edit("resid_pre.2", Noise(0.1))
    )
    found = inlay.load(on_gpu).forward(ids(4), edit=edit, rows=[0, 4, 2, 2]).logits.cpu()
    expected = inlay.load(on_cpu).forward(ids(4).cpu(), edit=edit, rows=[0, 4, 2, 2]).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tokens", ["all", "prompt", "response", "last"])
def test_static_cache_with_captured_graphs_equals_dynamic_cache(tokens):
    hf = build()
    model = inlay.load(hf)
    edit = Edit("resid_post.1", Add(torch.randn(WIDTH)), tokens=tokens)
    with model.edited(edit):
        dynamic = hf.generate(ids(), max_new_tokens=12, do_sample=False)
    for _ in range(2):  # the second time meets the compiled call of the first
        with model.edited(edit):
            static = hf.generate(ids(), max_new_tokens=12, do_sample=False, cache_implementation="static")
        assert torch.equal(static, dynamic)
    plain = hf.generate(ids(), max_new_tokens=12, do_sample=False, cache_implementation="static")
    assert torch.equal(plain, hf.generate(ids(), max_new_tokens=12, do_sample=False))


def test_decoding_an_edit_waits_for_the_gpu_no_more_often_than_plain_decoding():
    hf = build()
    model = inlay.load(hf)
    edit = Edit("resid_post.*", Add(torch.randn(WIDTH, device="cuda")), tokens="all")
    token = ids(4, 1)
    with torch.no_grad(), model.edited(edit):
        hf(token)
        torch.cuda.set_sync_debug_mode("error")
        try:
            hf(token, attention_mask=torch.ones_like(token))
        finally:
            torch.cuda.set_sync_debug_mode("default")
