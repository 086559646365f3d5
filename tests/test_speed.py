"""What makes training fast changes no result; the files that say how fast it is are whole. Nothing is timed here."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from train_gpt2 import GPT, CausalSelfAttention, GPTConfig, TrainConfig, causal_attention

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import bench_ladder  # noqa: E402

RUNGS = bench_ladder.rungs("cpu")
SMALL = GPTConfig(block_size=48, vocab_size=300, n_layer=2, n_head=2, n_embd=32)


def losses(way, steps=4):
    """Of some steps on one batch, the same weights at the start whatever the way."""
    cfg = TrainConfig.from_recipe("tales", lr=1e-2)
    torch.manual_seed(7)
    start = GPT(SMALL).state_dict()
    with bench_ladder.running(way):
        step, model = bench_ladder.make_step(way, "cpu", SMALL, 3, cfg)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(start[name][: p.size(0)])  # without padding there are fewer rows
        return [float(step()) for _ in range(steps)]


@pytest.mark.parametrize("name, way", [(name, way) for name, _, way in RUNGS[1:]], ids=[r[0] for r in RUNGS[1:]])
def test_every_rung_of_the_ladder_trains_to_the_losses_of_the_plain_way(name, way):
    plain = losses(bench_ladder.Way())
    assert plain[-1] < plain[0] - 0.3, "the loss must move, or the comparison says nothing"
    in_float32 = replace(way, dtype="float32")
    assert losses(in_float32) == pytest.approx(plain, abs=2e-5)
    assert losses(way) == pytest.approx(plain, abs=3e-2)  # bfloat16 has 8 bits


def test_a_wrong_attention_would_be_noticed(monkeypatch):
    import train_gpt2

    plain = losses(bench_ladder.Way(), steps=10)
    wrong = lambda q, k, v, *rest, **more: F.scaled_dot_product_attention(q, k, v)  # noqa: E731  sees the future
    monkeypatch.setattr(train_gpt2, "causal_attention", wrong)
    way = replace(RUNGS[-1][2], dtype="bfloat16")
    assert losses(way, steps=10) != pytest.approx(plain, abs=3e-2)


@pytest.mark.parametrize("T", [1, 7, 256, 257])
def test_both_attentions_of_a_cpu_in_bfloat16_are_the_explicit_one(T):
    torch.manual_seed(0)
    attention = CausalSelfAttention(GPTConfig(block_size=512, vocab_size=300, n_layer=1, n_head=2, n_embd=32)).eval()
    x = torch.randn(2, T, 32)
    with torch.no_grad():
        exact = attention(x)
        fast = attention.bfloat16()(x.bfloat16()).float()
    torch.testing.assert_close(fast, exact, atol=2e-2, rtol=0)
    q = torch.randn(2, 2, T, 16)
    torch.testing.assert_close(causal_attention(q, q, q), F.scaled_dot_product_attention(q, q, q, is_causal=True))


def test_keys_and_values_in_bfloat16_models_lose_nothing_in_the_cache():
    torch.manual_seed(0)
    model = GPT(SMALL).bfloat16().eval()
    idx = torch.randint(300, (2, 20))
    with torch.no_grad():
        whole = model.head(model.hidden(idx))[:, -1, :300].float()
        cache = model.new_cache()
        model.hidden(idx[:, :12], cache)
        rest = [model.hidden(idx[:, i : i + 1], cache) for i in range(12, 20)]
        stepwise = model.head(rest[-1])[:, -1, :300].float()
    torch.testing.assert_close(stepwise, whole, atol=2e-2, rtol=0)


# What a file must hold: hardware, versions, date, how often it was measured, a middle and a spread.
FILES = {
    "ladder": (["machines", "rows"], ["tokens_per_s", "ms", "mfu", "peak_memory_gb", "turns"]),
    "generate": (["hardware", "versions", "date", "repeats", "rows"], ["transformers", "ratio"]),
    "hellaswag": (["machine", "threads", "torch", "python", "date", "rows"], ["plain", "fast", "repeats"]),
}


@pytest.mark.parametrize("name", FILES)
def test_result_files_say_where_they_come_from(name):
    file = BENCHMARKS / "results" / f"{name}.json"
    result = json.loads(file.read_text("utf-8"))
    whole, row = FILES[name]
    assert set(whole) <= set(result)
    assert result["rows"] and all(set(row) <= set(r) for r in result["rows"])
    spread = result["rows"][0][row[0]]
    low, high = (spread.get(k) for k in (("worst", "best") if "best" in spread else ("low", "high")))
    assert 0 < low <= spread["median"] <= high
