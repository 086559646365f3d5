"""The model is GPT-2, and generates what it should: promises 1, 2, 3 and 12 of the design, on tiny random models.

    python -m pytest tests/test_model.py

Weights are made large and all different (`lively`), so that a swapped, transposed or forgotten one shows.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from train_gpt2 import (
    GPT,
    PRESETS,
    GPTConfig,
    UserError,
    causal_attention,
)

TINY = GPTConfig(block_size=16, vocab_size=101, n_layer=3, n_head=2, n_embd=32)  # padded vocabulary: 128


@torch.no_grad()
def lively(model, seed=0, scale=0.2):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.add_(torch.randn(p.shape, generator=generator) * scale)
    if isinstance(model, GPT):
        model.transformer.wte.weight[model.config.vocab_size :] = 0.0
    return model.eval()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return lively(GPT(TINY))


def ids(B, T, seed=1, V=TINY.vocab_size):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------------------------------------
# The same as transformers, and as plain formulas
# ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def theirs():
    transformers = pytest.importorskip("transformers")
    sizes = dict(vocab_size=101, n_positions=16, n_embd=32, n_layer=3, n_head=2)
    config = transformers.GPT2Config(**sizes, bos_token_id=100, eos_token_id=100)
    return lively(transformers.GPT2LMHeadModel(config), seed=3)


@torch.no_grad()
def test_logits_equal_transformers_after_loading_its_weights(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    idx = ids(2, 16)
    expected = theirs(idx).logits
    assert expected.std() > 1
    torch.testing.assert_close(GPT.from_pretrained(tmp_path).eval()(idx)[0], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_transformers_gives_our_logits_after_loading_our_weights(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    model.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    idx = ids(2, 16)
    torch.testing.assert_close(theirs(idx).logits, model(idx)[0], atol=1e-4, rtol=0)


def test_loss_equals_transformers(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path).eval()
    idx = ids(2, 16)
    x, y = idx[:, :-1], idx[:, 1:]
    torch.testing.assert_close(ours(x, y)[1], theirs(idx, labels=idx).loss, atol=1e-5, rtol=0)
    skip = y.clone()
    skip[:, ::2] = -1  # tokens not to be scored
    expected = F.cross_entropy(ours(x)[0][:, 1::2].flatten(0, 1), y[:, 1::2].flatten())
    torch.testing.assert_close(ours(x, skip)[1], expected)


@pytest.mark.parametrize(("Tq", "Tk"), [(7, 7), (3, 7), (1, 7)])
def test_causal_attention_is_the_formula(Tq, Tk):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, T, 8, generator=generator) for T in (Tq, Tk, Tk))
    y, weights = causal_attention(q, k, v, return_weights=True)
    for t in range(Tq):
        n = Tk - Tq + t + 1  # what query t may see
        e = ((q[0, 1, t] @ k[0, 1, :n].T) / math.sqrt(8)).exp()
        torch.testing.assert_close(y[0, 1, t], (e / e.sum()) @ v[0, 1, :n])
        assert (weights[0, 1, t, n:] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, Tq))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # bfloat16 on a CPU takes the plain path
def test_attention_layer_equals_explicit_attention(model, dtype):
    layer = model.transformer.h[0].attn.to(dtype)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, k, v = (t.view(2, 9, 2, 16).transpose(1, 2) for t in layer.c_attn(x).split(32, dim=2))
    expected = layer.c_proj(causal_attention(q, k, v).transpose(1, 2).reshape(2, 9, 32))
    torch.testing.assert_close(layer(x), expected)


# ----------------------------------------------------------------------------------------------------------------------
# Causality
# ----------------------------------------------------------------------------------------------------------------------
def test_a_later_token_changes_no_earlier_logit(model):
    idx = ids(1, 16)
    before = model(idx)[0]
    for t in (1, 8, 15):
        changed = idx.clone()
        changed[0, t] = (changed[0, t] + 1) % TINY.vocab_size
        after = model(changed)[0]
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[0, t:] != before[0, t:]).any(dim=-1).all()


def test_jacobian_of_the_stack_is_lower_triangular(model):
    def stack(x):
        for block in model.transformer.h:
            x = block(x)
        return x[0]

    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    J = torch.autograd.functional.jacobian(stack, x)[:, :, 0].abs().sum(dim=(1, 3))  # (T out, T in)
    assert (J.triu(1) == 0).all() and (J[torch.ones_like(J).tril() > 0] > 0).all()


# ----------------------------------------------------------------------------------------------------------------------
# The cache
# ----------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 16, [16], [5, 1, 1, 4, 5], [15, 1]])
def test_logits_with_cache_equal_those_without(model, chunks):
    idx, cache = ids(3, 16), model.new_cache()
    parts = [model.head(model.hidden(part, cache)) for part in idx.split(chunks, dim=1)]
    assert [c.length for c in cache] == [16] * 3  # one for each layer
    torch.testing.assert_close(torch.cat(parts, 1)[..., : TINY.vocab_size], model(idx)[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_cache_has_room_for_what_it_is_told_and_no_more(model):
    idx = ids(2, 7)
    cache = model.new_cache(7)
    parts = [model.head(model.hidden(part, cache)) for part in idx.split([4, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1)[..., : TINY.vocab_size], model(idx)[0], atol=1e-4, rtol=0)
    assert cache[0].k.shape == cache[0].v.shape == (2, 2, 7, 16)  # (B, nh, max_length, hs)
    assert model.new_cache()[0].max_length == TINY.block_size
    with pytest.raises((UserError, RuntimeError)):  # not a token that is lost without a word
        model.hidden(idx[:, :1], cache)


@torch.no_grad()
def test_a_cache_that_is_repeated_continues_each_row_in_several_ways(model):
    """As hellaswag.py uses it: a context is read once, and then continued by several endings."""
    contexts, endings = ids(2, 6), ids(8, 5, seed=9)
    cache, longer = model.new_cache(6), model.new_cache(11)
    model.hidden(contexts, cache)
    for one, four in zip(cache, longer, strict=True):
        four.append(one.k.repeat_interleave(4, dim=0), one.v.repeat_interleave(4, dim=0))
    whole = model.hidden(torch.cat((contexts.repeat_interleave(4, dim=0), endings), dim=1))
    torch.testing.assert_close(model.hidden(endings, longer), whole[:, 6:], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("T", [1, 10, 16, 23])  # 23: a prompt longer than the block
def test_greedy_generation_equals_plain_recomputation_past_the_end_of_the_block(model, T):
    expected = ids(3, T)
    for _ in range(24):
        logits = model(expected[:, -16:])[0][:, -1]
        expected = torch.cat((expected, logits.argmax(-1, keepdim=True)), dim=1)
    assert expected[:, T:].unique().numel() > 5  # not one word over and over
    assert torch.equal(model.generate(ids(3, T), 24, temperature=0), expected)
    streamed = list(model.stream(ids(3, T), 24, temperature=0))
    assert torch.equal(torch.cat(streamed, 1), expected[:, T:])


def test_rows_of_a_batch_do_not_touch_each_other(model):
    idx = ids(4, 6)
    together = model.generate(idx, 20, temperature=0)
    for i in range(4):
        assert torch.equal(together[i : i + 1], model.generate(idx[i : i + 1], 20, temperature=0))


def test_more_tokens_than_the_block_are_refused(model):
    with pytest.raises(UserError, match="17 tokens"):
        model(ids(1, 17))
    cache = model.new_cache()
    model.hidden(ids(1, 16), cache)
    with pytest.raises(UserError, match="17 tokens"):
        model.hidden(ids(1, 1), cache)


# ----------------------------------------------------------------------------------------------------------------------
# Sizes and initial weights
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "params"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_number_of_parameters(name, params):
    with torch.device("meta"):
        model = GPT(GPTConfig.from_name(name))
    assert model.num_params() == params
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.size(0) == model.config.vocab_size == 50257  # filled up in the loss only
    if name == "gpt2":  # 6 for each weight but the positions', and 12 C T for each layer
        assert model.flops_per_token() == 6 * (params - 1024 * 768) + 12 * 12 * 768 * 1024 == 855_166_464


def test_initial_weights():
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=256, vocab_size=1001, n_layer=8, n_head=2, n_embd=64))
    seen = set()
    for name, p in model.named_parameters():
        kind = next((k for k in ("c_proj.weight", "wpe") if k in name), "matrix" if p.dim() == 2 else "")
        std = {"c_proj.weight": 0.02 / math.sqrt(2 * 8), "wpe": 0.01, "matrix": 0.02}.get(kind)
        if std:
            assert p.std().item() == pytest.approx(std, rel=0.06), name
            assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name
        else:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name
        seen.add(kind)
    assert seen == {"c_proj.weight", "wpe", "matrix", ""}
    loss = model(ids(8, 64, V=1001), ids(8, 64, seed=2, V=1001))[1]
    assert loss.item() == pytest.approx(math.log(1001), abs=0.1)  # it knows nothing yet


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (dict(n_layer=0), "n_layer is 0"),
        (dict(vocab_size=-5), "vocab_size is -5"),
        (dict(block_size=1.5), "block_size is 1.5"),
        (dict(n_head=5), "5 heads"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(dropout=-0.1), "dropout is -0.1"),
        (dict(dropout=math.nan), "dropout is nan"),
    ],
)
def test_mistakes_in_the_configuration(mistake, message):
    with pytest.raises(UserError, match=message) as e:
        GPTConfig(**mistake)
    assert e.value.hint


def test_configurations_by_name():
    with pytest.raises(UserError, match="gpt3") as e:
        GPTConfig.from_name("gpt3")
    assert "gpt2-xl" in e.value.hint
    assert GPTConfig.from_name("gpt2-medium", block_size=64) == GPTConfig(64, 50257, 24, 16, 1024)
    assert all(GPTConfig.from_name(name).n_layer == PRESETS[name]["n_layer"] for name in PRESETS)


# ----------------------------------------------------------------------------------------------------------------------
# The vocabulary, filled up to a multiple of 64 in the loss
# ----------------------------------------------------------------------------------------------------------------------
def test_only_tokens_of_the_vocabulary_are_sampled():
    torch.manual_seed(0)
    model = GPT(TINY)  # untrained, so all ids are about equally likely
    generator = torch.Generator().manual_seed(0)
    how = dict(temperature=100.0, generator=generator)
    drawn = torch.cat([model.generate(ids(64, 1, seed=s), 16, **how) for s in range(4)])
    assert drawn.max().item() == TINY.vocab_size - 1 and drawn.unique().numel() == TINY.vocab_size


@pytest.mark.parametrize("V", [64, 101, 128, 129])
def test_filling_up_the_vocabulary_does_not_change_loss_or_gradient(V):
    torch.manual_seed(0)
    model = lively(GPT(replace(TINY, vocab_size=V)))
    idx = ids(4, 17) % V
    logits, loss = model(idx[:, :-1], idx[:, 1:])
    assert logits.shape == (4, 16, V) and not logits.requires_grad  # they would drag a gradient of zeros along
    loss.backward()
    got = model.transformer.wte.weight.grad.clone()
    model.zero_grad()
    plain = F.cross_entropy(model(idx[:, :-1])[0].flatten(0, 1), idx[:, 1:].flatten())
    torch.testing.assert_close(loss, plain)
    plain.backward()
    torch.testing.assert_close(got, model.transformer.wte.weight.grad, atol=1e-6, rtol=1e-4)


def test_the_head_of_the_loss_has_a_multiple_of_64_rows(model, monkeypatch):
    """Tiles of matrix units: 101 rows are filled up to 128, whose probabilities are zero."""
    seen, loss = [], F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda z, *rest, **how: seen.append(z) or loss(z, *rest, **how))
    idx = ids(4, 17)
    model(idx[:, :-1], idx[:, 1:])
    assert seen[0].shape == (64, 128) and (seen[0].softmax(-1)[:, 101:] == 0).all()


# ----------------------------------------------------------------------------------------------------------------------
# Training mode, checkpointing, bfloat16
# ----------------------------------------------------------------------------------------------------------------------
def test_dropout_only_in_training():
    torch.manual_seed(0)
    model = lively(GPT(GPTConfig(16, 101, 2, 2, 32, dropout=0.5)))
    idx = ids(2, 8)
    assert torch.equal(model(idx)[0], model(idx)[0])
    model.train()
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert len(dropouts) == 1 + 2 * 2  # after the embeddings and at the end of each branch
    attentions = [block.attn for block in model.transformer.h]  # these drop weights of attention
    for off in dropouts:
        off.p = 0.0
    for off in attentions:
        assert not torch.equal(model(idx)[0], model(idx)[0])
        off.dropout = 0.0
    assert torch.equal(model(idx)[0], model.eval()(idx)[0])
    for on in dropouts:
        on.p = 0.5
        assert not torch.equal(model.train()(idx)[0], model(idx)[0])
        on.p = 0.0


def test_generating_leaves_the_mode_and_the_global_generator_alone():
    model = GPT(GPTConfig(16, 101, 2, 2, 32, dropout=0.5)).train()
    state = torch.get_rng_state()
    a, b = (model.generate(ids(2, 4), 20, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)  # the same seed, the same text: dropout was off
    assert not torch.equal(a, model.generate(ids(2, 4), 20, generator=torch.Generator().manual_seed(6)))
    assert torch.equal(torch.get_rng_state(), state) and model.training and not a.requires_grad
    next(stream := model.stream(ids(1, 4), 20))
    stream.close()  # a reader that stops early
    assert model.training and torch.is_grad_enabled()


def test_activation_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    model = lively(GPT(GPTConfig(16, 101, 2, 2, 32, dropout=0.2))).train()
    idx, grads = ids(4, 17), []
    for on in (False, True):
        model.activation_checkpointing = on
        model.zero_grad()
        torch.manual_seed(7)
        model(idx[:, :-1], idx[:, 1:])[1].backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_autocast_is_close_to_float32(model):
    torch.manual_seed(0)
    model = lively(GPT(TINY), scale=0.05)
    idx = ids(4, 17)
    x, y = idx[:, :-1], idx[:, 1:]
    logits, loss = model(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        logits16, loss16 = model(x, y)
    assert logits16.dtype == torch.bfloat16
    assert (logits16.float() - logits).abs().max() < 0.05 * logits.abs().max()
    assert loss16.float().item() == pytest.approx(loss.item(), abs=0.03)
    whole = lively(GPT(TINY), scale=0.0)
    whole.load_state_dict(model.state_dict())
    logits16 = whole.to(torch.bfloat16)(x)[0]  # as generate.py runs it
    assert (logits16.float() - logits).abs().max() < 0.05 * logits.abs().max()


# ----------------------------------------------------------------------------------------------------------------------
# Sampling
# ----------------------------------------------------------------------------------------------------------------------
def reference_distribution(logits, temperature, top_k, top_p):
    """A list of logits -> a list of probabilities, step by step."""
    weights = [math.exp(x / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -weights[i])
    kept = order[:top_k] if top_k else order
    if top_p:
        total, nucleus = sum(weights[i] for i in kept), []
        while sum(weights[i] for i in nucleus) < top_p * total:
            nucleus.append(kept[len(nucleus)])
        kept = nucleus
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(None, None), (1, None), (4, None), (99, None), (None, 0.7), (None, 1e-9), (5, 0.8)]
)
def test_sampling_follows_the_reference(temperature, top_k, top_p):
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(3)) * 1.5
    n, generator = 20_000, torch.Generator().manual_seed(0)
    drawn = GPT.sample_next(logits.repeat_interleave(n, dim=0), temperature, top_k, top_p, generator)
    assert drawn.shape == (2 * n, 1)
    for row, tokens in zip(logits.tolist(), drawn.view(2, n), strict=True):
        expected = reference_distribution(row, temperature, top_k, top_p)
        for p, got in zip(expected, (tokens.bincount(minlength=10) / n).tolist(), strict=True):
            assert (got == 0) if p == 0 else abs(got - p) <= 5 * math.sqrt(p * (1 - p) / n)


def test_temperature_zero_is_the_likeliest_token(model):
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(3))
    assert torch.equal(GPT.sample_next(logits, temperature=0, top_k=3, top_p=0.5)[:, 0], logits.argmax(-1))


@pytest.mark.parametrize("wrong", [dict(temperature=-0.1), dict(temperature=math.nan), dict(temperature=math.inf),
                                   dict(top_k=0), dict(top_p=0.0), dict(top_p=1.1), dict(top_p=math.nan)])  # fmt: skip
def test_mistakes_in_sampling(wrong):
    with pytest.raises(UserError) as e:
        GPT.sample_next(torch.zeros(1, 4), **wrong)
    assert e.value.hint


def test_stop_token_ends_each_row_by_itself(model):
    said = torch.tensor([[5, 9, 6, 7, 8], [1, 2, 3, 9, 4], [9, 3, 3, 3, 3]])
    model.stream = lambda *_: iter(said.split(1, dim=1))
    start = torch.zeros(3, 1, dtype=torch.long)
    expected = [[0, 5, 9, 9, 9], [0, 1, 2, 3, 9], [0, 9, 9, 9, 9]]  # all have stopped after four tokens
    assert model.generate(start, 5, stop_token=9).tolist() == expected
    assert torch.equal(model.generate(start, 5), torch.cat((start, said), dim=1))
    assert torch.equal(model.generate(start, 5, stop_token=99)[:, 1:], said)  # never said: all five tokens
