"""
The training: each piece against a plain reference (schedule, groups, one step, evaluation, bits per byte), then whole
runs of a second: what they write, keep, repeat and refuse.

    python -m pytest tests/test_training.py
"""

import copy
import functools
import itertools
import json
import math
import random
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_runs
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import generate
import hellaswag
import tokenizer
import train_gpt2
from train_gpt2 import (
    GPT,
    PRESETS,
    RECIPES,
    CausalSelfAttention,
    Data,
    DataLoaderLite,
    GPTConfig,
    RunLog,
    TokenStream,
    TrainConfig,
    UserError,
    causal_attention,
    configure_optimizers,
    evaluate,
    get_lr,
    largest_micro_batch,
    load_checkpoint,
    load_data,
    read_log,
    setup_runtime,
    train,
    train_step,
)

ITEMS = Path(__file__).parent / "data" / "hellaswag_items.jsonl"
SMALL = GPTConfig(block_size=16, vocab_size=101, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def rt():
    return setup_runtime("cpu", "float32", "false")


def new_model(seed=0, config=SMALL, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**{**vars(config), **changes}))


def random_batches(n, B=2, config=SMALL, seed=0):
    """n micro-batches (x, y) of random tokens, B sequences each."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 2, B, config.block_size)
    return list(torch.randint(0, config.vocab_size, shape, generator=generator).unbind())


draw = train_gpt2.plot


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than a tiny run. (The run `finished`, which is made before, has its picture.)"""
    monkeypatch.setattr(train_gpt2, "plot", lambda run_dir: True)


def of(events, kind):
    return [e for e in events if e["event"] == kind]


def losses(events):
    return [(e["step"], e["loss"], e["norm"]) for e in of(events, "train")]


# ----------------------------------------------------------------------------------------------- schedule, optimizer
@pytest.mark.parametrize("recipe", RECIPES)
def test_learning_rate_is_the_closed_form(recipe):
    cfg = TrainConfig.from_recipe(recipe)
    lr, low, W, N = cfg.lr, cfg.min_lr, cfg.warmup_steps, cfg.max_steps
    assert get_lr(0, cfg) == pytest.approx(lr / W)
    assert get_lr(W // 2 - 1, cfg) == pytest.approx(lr * (W // 2) / W)
    assert get_lr(W - 1, cfg) == pytest.approx(lr) and get_lr(W, cfg) == pytest.approx(lr)
    assert get_lr(N, cfg) == pytest.approx(low)
    assert get_lr(N + 1000, cfg) == pytest.approx(low)  # after the end it stays there
    for quarter, height in [(0.25, (2 + math.sqrt(2)) / 4), (0.5, 0.5), (0.75, (2 - math.sqrt(2)) / 4)]:
        assert get_lr(W + quarter * (N - W), cfg) == pytest.approx(low + height * (lr - low))
    rates = [get_lr(step, cfg) for step in range(N + 1)]
    assert rates[:W] == sorted(rates[:W]) and rates[W:] == sorted(rates[W:], reverse=True)
    assert len(set(rates[:W])) == W


def test_learning_rate_without_warmup_and_with_nothing_else():
    assert get_lr(0, TrainConfig(lr=6e-4, warmup_steps=0)) == 6e-4
    assert get_lr(4, TrainConfig(lr=6e-4, warmup_steps=10, max_steps=5)) == pytest.approx(3e-4)
    assert get_lr(5, TrainConfig(lr=6e-4, warmup_steps=5, max_steps=5)) == pytest.approx(6e-4)  # no division by zero


def test_decay_groups_of_the_124M_model():
    """GPT-2 124M; the tied matrix is counted once. No memory is taken."""
    with torch.device("meta"):
        model = GPT(GPTConfig())
    (optimizer,) = configure_optimizers(model, TrainConfig(weight_decay=0.1), "meta")
    matrices, vectors = optimizer.param_groups
    assert (len(matrices["params"]), sum(p.numel() for p in matrices["params"])) == (50, 124_318_464)
    assert (len(vectors["params"]), sum(p.numel() for p in vectors["params"])) == (98, 121_344)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_each_parameter_is_in_exactly_one_group(kind):
    model = new_model()
    optimizers = configure_optimizers(model, TrainConfig(optimizer=kind, weight_decay=0.25), "cpu")
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    counts = Counter(id(p) for group in groups for p in group["params"])
    assert counts == {id(p): 1 for p in model.parameters()}
    for group in groups:
        assert {p.dim() for p in group["params"]} in ({1}, {2})
        assert all(group["weight_decay"] == (0.25 if p.dim() == 2 else 0) for p in group["params"])
        assert "betas" not in group or group["betas"] == (0.9, 0.95)


def test_muon_owns_exactly_the_hidden_matrices():
    model = new_model()
    adamw, muon = configure_optimizers(model, TrainConfig(optimizer="muon"), "cpu")
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    mine = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert mine == {f"transformer.h.{i}.{kind}.weight" for i in range(2) for kind in kinds}
    theirs = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= theirs and not mine & theirs


def test_both_optimizers_of_muon_save_and_load(rt):
    cfg = TrainConfig(optimizer="muon", lr=0.01)
    one, other = new_model(), new_model()
    a, b = configure_optimizers(one, cfg, "cpu"), configure_optimizers(other, cfg, "cpu")
    train_step(one, random_batches(1), a, rt, 1.0)
    other.load_state_dict(one.state_dict())
    for ours, theirs in zip(a, b, strict=True):
        theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for model, optimizers in ((one, a), (other, b)):
        train_step(model, random_batches(1, seed=1), optimizers, rt, 1.0)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def plain_groups(model):
    """Reference: decay for the matrices, none for the vectors."""
    return [
        dict(params=[p for p in model.parameters() if p.dim() == 2], weight_decay=0.1),
        dict(params=[p for p in model.parameters() if p.dim() == 1], weight_decay=0.0),
    ]


def test_fused_adamw_takes_the_path_of_the_plain_one(rt):
    """20 steps of ours (fused) beside torch's loop over tensors: the same path, but for the order of sums."""
    fused, plain = new_model(), new_model()
    ours = configure_optimizers(fused, TrainConfig(lr=0.01, weight_decay=0.1), "cpu")
    assert all(group["fused"] for group in ours[0].param_groups)
    options = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    theirs = [torch.optim.AdamW(plain_groups(plain), **options)]
    for seed in range(20):
        batches = random_batches(1, seed=seed % 3)
        a, _ = train_step(fused, batches, ours, rt, 1.0)
        b, _ = train_step(plain, batches, theirs, rt, 1.0)
        assert a.item() == pytest.approx(b.item(), abs=1e-3)
    assert a.item() < 4.2  # from ln 101 = 4.6: the path led somewhere


# --------------------------------------------------------------------------------------------------------- one step
def gradients(model, batches):
    """Reference: the mean loss over all sequences at once and its gradients, without any of our machinery."""
    x, y = (torch.cat(halves) for halves in zip(*batches, strict=True))
    loss = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))


class Sgd(torch.optim.SGD):
    """Plain descent at rate 1: the weights move by exactly the gradient that the optimizer was given."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=1.0)


def moves(model, batches, rt, clip):
    """What train_step subtracts from each parameter, with what it returns."""
    before = [p.detach().clone() for p in model.parameters()]
    loss, norm = train_step(model, batches, [Sgd(model)], rt, clip)
    return [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)], loss, norm


@pytest.mark.parametrize("n", [1, 2, 5])
def test_accumulation_is_one_big_batch(rt, n):
    """Gradients of n micro-batches, in double precision, equal those of the n times larger batch."""
    model, batches = new_model().double(), random_batches(n)
    expected_loss, expected = gradients(model, batches)
    got, loss, norm = moves(model, batches, rt, clip=1e9)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)  # the total is kept in float32
    assert norm.item() == pytest.approx(math.sqrt(sum(g.pow(2).sum().item() for g in expected)), rel=1e-9)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())  # nothing is left over for the next step


def test_accumulation_in_float32(rt):
    model, batches = new_model(), random_batches(4)
    _, expected = gradients(model, batches)
    got, _, _ = moves(model, batches, rt, clip=1e9)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-6)


def test_clipping_shortens_the_gradient_and_reports_its_length_before(rt):
    model, batches = new_model(), random_batches(2)
    _, expected = gradients(model, batches)
    length = torch.cat([g.flatten() for g in expected]).norm().item()
    got, _, norm = moves(model, batches, rt, clip=length / 4)
    assert norm.item() == pytest.approx(length, rel=1e-5)
    assert torch.cat([g.flatten() for g in got]).norm().item() == pytest.approx(length / 4, rel=1e-4)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e / 4, rtol=1e-3, atol=1e-6)


def test_train_step_is_the_loop_that_one_would_write(rt):
    """Five steps with schedule, accumulation, clipping and AdamW beside the loop written out in plain torch."""
    cfg = TrainConfig(lr=0.01, warmup_steps=2, max_steps=5, min_lr=0.001, weight_decay=0.1)
    ours, plain = new_model(), new_model()
    (optimizer,) = configure_optimizers(ours, cfg, "cpu")
    reference = torch.optim.AdamW(plain_groups(plain), betas=(0.9, 0.95))
    for step in range(5):
        batches = random_batches(3, seed=step)
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step, cfg)
        loss, norm = train_step(ours, batches, [optimizer], rt, clip=0.5)

        expected = 0.0
        reference.zero_grad()
        for x, y in batches:
            micro_loss = F.cross_entropy(plain(x)[0].flatten(0, 1), y.flatten()) / 3
            micro_loss.backward()
            expected += micro_loss.item()
        expected_norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5).item()
        for group in reference.param_groups:
            group["lr"] = get_lr(step, cfg)
        reference.step()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert norm.item() == pytest.approx(expected_norm, rel=1e-4)
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_plain_attention_on_a_cpu_in_bfloat16_equals_the_fused_one(monkeypatch):
    """Short contexts in bfloat16 go through causal_attention. Both paths are as near to float32 as bfloat16 is."""
    torch.manual_seed(0)
    layer = CausalSelfAttention(GPTConfig(block_size=64, n_head=4, n_embd=64)).eval()
    x = torch.randn(2, 64, 64)
    calls = []

    def results(dtype, attention=causal_attention):
        monkeypatch.setattr(train_gpt2, "causal_attention", lambda *a: calls.append(1) or attention(*a))
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(inputs)
        y.float().square().mean().backward()
        return y.detach().float(), inputs.grad

    exact, exact_grad = results(torch.float32)
    assert not calls
    plain, plain_grad = results(torch.bfloat16)
    assert len(calls) == 1
    fused, fused_grad = results(torch.bfloat16, functools.partial(F.scaled_dot_product_attention, is_causal=True))
    assert len(calls) == 2
    for ours, theirs, truth in ((plain, fused, exact), (plain_grad, fused_grad, exact_grad)):
        scale = truth.abs().max()
        assert (ours - truth).abs().max() < 0.02 * scale
        assert (ours - theirs).abs().max() < 0.02 * scale
        assert (ours - truth).abs().mean() < 1.5 * (theirs - truth).abs().mean()


# ------------------------------------------------------------------------------------------------------- evaluation
def slow_loss(model, tokens, count):
    """Reference: each target by itself, from the window that begins at the last multiple of T; mean nats per token."""
    T, total = model.config.block_size, 0.0
    for i in range(count):
        context = torch.tensor([tokens[i // T * T : i + 1]])
        with torch.no_grad():
            logits = model.eval()(context)[0][0, -1].double()
        total -= logits.log_softmax(-1)[tokens[i + 1]].item()
    return total / count


@pytest.mark.parametrize("max_tokens", [1, 16, 90, 10**6])
def test_validation_loss_is_the_slow_one_for_every_micro_batch(rt, max_tokens):
    tokens = np.random.default_rng(0).integers(0, 101, 123).astype(np.uint16)
    model = new_model(dropout=0.5).train()
    with torch.no_grad():  # far from uniform, so that a target counted twice or forgotten shows
        model.transformer.wte.weight.mul_(20)
    expected = slow_loss(copy.deepcopy(model), tokens.tolist(), min(max_tokens, 122))
    stream = TokenStream(np.split(tokens, [7, 8, 50]), 101)
    for B in (1, 2, 3, 8, 100):
        assert evaluate(model, stream, B, 16, max_tokens, rt) == pytest.approx(expected, rel=1e-6)
    assert model.training  # left as it was: without this, the rest of the run would train without dropout


DOCUMENTS = ["Once there was a quay.\n", "Ünïcode has more bytes than letters: 東京 🙂\n", "The end\n"] * 20


@pytest.fixture(scope="module")
def documents_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "documents.txt"
    path.write_text("<|endoftext|>\n".join(DOCUMENTS), encoding="utf-8")
    return path


def test_bits_per_byte_against_the_text_itself(rt, documents_file):
    """From the text: which documents are held out, how many bytes they have, and what each of their tokens costs."""
    cfg = TrainConfig(data=str(documents_file), vocab_size=300)
    data = load_data(cfg, None)
    text = documents_file.read_text("utf-8")
    raw = text.encode("utf-8")
    marker = "<|endoftext|>\n"
    held_out = text[text.index(marker, len(raw[: len(raw) * 9 // 10].decode("utf-8", "ignore"))) + len(marker) :]
    assert held_out and text.endswith(held_out)
    documents = held_out.split(marker)
    assert all(d in DOCUMENTS for d in documents)  # cut at a document's end
    n_bytes = sum(len(d.encode("utf-8")) for d in documents)
    assert data.val_bytes == n_bytes

    eot = data.encoding.n_vocab - 1
    ids = [i for d in documents for i in [eot, *data.encoding.encode_ordinary(d)]]
    assert data.val.read(0, len(data.val)).tolist() == ids
    n_train = len(DOCUMENTS) - len(documents)
    expected = [i for d in DOCUMENTS[:n_train] for i in [eot, *data.encoding.encode_ordinary(d)]]
    assert data.train.read(0, len(data.train)).tolist() == expected

    model = new_model(vocab_size=data.val.vocab_size)
    loss = evaluate(model, data.val, 4, 16, 10**6, rt)
    bits = slow_loss(model, ids, len(ids) - 1) * (len(ids) - 1) / math.log(2)
    assert data.bits_per_byte(loss) == pytest.approx(bits / n_bytes, rel=1e-6)


def test_bits_per_byte_do_not_depend_on_the_tokenizer(documents_file):
    """Equal knowledge through two tokenizers: a model that spreads its belief evenly over n bytes' worth of tokens."""
    for vocab_size in (257, 280, 300):
        data = load_data(TrainConfig(data=str(documents_file), vocab_size=vocab_size), None)
        n_targets = len(data.val) - 1
        eight_bits_a_byte = data.val_bytes * 8 * math.log(2) / n_targets  # nats per token that cost 8 bits a byte
        assert data.bits_per_byte(eight_bits_a_byte) == pytest.approx(8)


# -------------------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_text):
    """A run to look at: (its events, its folder, its configuration)."""
    from conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    settings = TINY | dict(max_steps=6, total_batch=256, lr=1e-2, sample_every=4, dropout=0.1, epochs=None)
    cfg = TrainConfig.from_recipe("tales", data=str(small_text), log_dir=str(folder), **settings)
    return train(cfg), folder / "tales", cfg


def test_log_has_the_promised_lines_and_keys(finished):
    events, folder, cfg = finished
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    assert lines == events  # in full precision
    assert lines[0]["event"] == "config" and len(of(lines, "config")) == 1
    first = lines[0]
    assert first["config"]["n_embd"] == 32 and first["config"]["lr"] == cfg.lr and first["config"]["seed"] == 1337
    assert first["model"] == dict(block_size=32, vocab_size=300, n_layer=1, n_head=2, n_embd=32, dropout=0.1)
    assert first["versions"].keys() >= {"python", "torch", "numpy"}
    assert {"device", "dtype", "world_size", "known"} <= first.keys() and "commit" in first["versions"]
    required = {
        "train": {"loss", "lr", "norm", "ms", "tokens_per_s"},
        "val": {"val_loss", "val_bpb"},
        "sample": {"text"},
        "checkpoint": {"path"},
    }
    for e in lines[1:]:
        assert required[e["event"]] | {"event", "step"} <= e.keys()
        assert all(math.isfinite(v) for v in e.values() if isinstance(v, float))
    assert [e["step"] for e in of(lines, "train")] == list(range(6))
    assert [e["lr"] for e in of(lines, "train")] == [get_lr(step, cfg) for step in range(6)]
    assert [e["step"] for e in of(lines, "val")] == [0, 2, 4, 6]
    assert [e["step"] for e in of(lines, "sample")] == [0, 4, 6, 6, 6]  # three at the end
    assert [e["step"] for e in of(lines, "checkpoint")] == [2, 4, 6]
    assert of(lines, "val")[0]["val_loss"] == pytest.approx(math.log(300), rel=0.02)  # a new model knows nothing
    assert all(isinstance(e["text"], str) for e in of(lines, "sample"))


def test_folder_of_a_run(finished):
    _, folder, _ = finished
    names = sorted(p.name for p in folder.iterdir())
    checkpoints = [n for n in names if n.startswith("ckpt_")]
    assert sorted(set(names) - set(checkpoints)) == ["log.jsonl", "loss.png", "samples.txt", "tokenizer.json"]
    written = (folder / "samples.txt").read_bytes().decode()
    samples = of(read_log(folder), "sample")
    assert len(samples) == 5
    assert written == "".join(f"--- step {e['step']}\n{e['text']}\n\n" for e in samples)
    png = (folder / "loss.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png[-8:-4] == b"IEND" and len(png) > 5000
    assert tokenizer.load_tokenizer(folder / "tokenizer.json").n_vocab == 300
    for name in checkpoints:
        ckpt = load_checkpoint(folder / name)
        assert name == f"ckpt_{ckpt['step']:06d}.pt"
        assert ckpt["model_config"]["n_embd"] == 32
        assert not any(key.startswith(("module.", "_orig_mod.")) for key in ckpt["model"])


def test_picture_shows_the_curves_with_landmarks_and_units(finished, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or savefig(self, *a, **k))
    events, folder, _ = finished
    draw(folder)
    (axes,) = figures[0].axes
    training, validation, *landmarks = axes.get_lines()
    assert training.get_xydata().tolist() == [[e["step"], e["loss"]] for e in of(events, "train")]
    assert validation.get_xydata().tolist() == [[e["step"], e["val_loss"]] for e in of(events, "val")]
    tokens = load_data(TrainConfig(**read_log(folder)[0]["config"]), folder).train
    ids = tokens.read(0, len(tokens)).tolist()

    def entropy(things):
        return -sum(n / len(things) * math.log(n / len(things)) for n in Counter(things).values())

    unigram, pairs = entropy(ids), entropy(list(itertools.pairwise(ids)))
    expected = [math.log(300), unigram, pairs - unigram]
    assert [line.get_ydata()[0] for line in landmarks] == pytest.approx(expected, rel=1e-3)
    assert "tokens" in axes.get_xlabel() and "nats" in axes.get_ylabel() and axes.get_legend()


def make_log(rt, config=None, source="HuggingFaceFW/fineweb-edu", run_dir=None, **settings):
    """The log of a run of the recipe gpt2 that does not take place. Its model takes no memory."""
    stream = TokenStream([np.zeros(100, np.uint16)], 50257)
    data = Data(stream, stream, None, None, math.nan, "", source)
    with torch.device("meta"):
        model = GPT(config or GPTConfig())
    return RunLog(run_dir, TrainConfig.from_recipe("gpt2", **settings), rt, data, model, 0, (math.inf, -1))


def test_how_a_run_stands_beside_a_good_one(rt, capsys):
    """In words, on the line of the validation."""
    log = make_log(rt)
    assert of(log.events, "config")[0]["known"] is True

    def word(step, loss):
        log.val(step, loss)
        line = capsys.readouterr().out.splitlines()[-1]
        assert f"val loss {loss:.4f}" in line
        return line.split(" | ")[2] if line.count(" | ") == 2 else None

    assert word(0, 10.9) == "on track: a good run has 10.95 here"
    assert word(250, 6.5) == "behind by 0.34: a good run has 6.16 here"
    assert word(1250, 3.8) == "ahead by 0.15: a good run has 3.95 here"
    assert word(TrainConfig.from_recipe("gpt2").max_steps, 3.04).startswith("on track")
    assert word(500, 5.0) is None
    assert sorted(train_gpt2.EXPECTED_LOSS) == [0, 250, 1000, 1250, 19_073]
    assert [e["step"] for e in of(log.events, "val")] == [0, 250, 1250, 19_073, 500]


PUBLISHED = dict(config=GPTConfig(), source="HuggingFaceFW/fineweb-edu", total_batch=524_288)


@pytest.mark.parametrize("known, change", [
    (True, dict()),
    (True, dict(source="edu_fineweb10B, 99 + 1 shards, no manifest.json")),  # build-nanogpt's folder
    (True, dict(config=GPTConfig(dropout=0.1))),
    (False, dict(source="HuggingFaceFW/fineweb")),
    (False, dict(source="input.txt, 50,257 kinds of tokens")),
    (False, dict(total_batch=262_144)),
    (False, dict(config=GPTConfig.from_name("gpt2-medium"))),
    (False, dict(config=GPTConfig(n_layer=11))),
    (False, dict(config=GPTConfig(vocab_size=50_000))),
    (False, dict(config=GPTConfig(block_size=512))),
    (False, dict(config=SMALL)),
])  # fmt: skip
def test_only_runs_like_the_published_one_are_measured_by_it(rt, capsys, known, change):
    """The 124M shape, on FineWeb-Edu, with 524,288 tokens a step. All others get no word and no landmark."""
    log = make_log(rt, **{**PUBLISHED, **change})
    log.val(0, 10.9)
    log.val(250, 9.0)
    out = capsys.readouterr().out
    assert of(log.events, "config")[0]["known"] is known
    assert out.count("a good run has") == (2 if known else 0)
    assert ("on track" in out) is known and ("behind by" in out) is known


def write_data(folder, encoding=None):
    """Shards with a manifest, as fineweb.py writes them for FineWeb-Edu, but tiny."""
    tiny_runs.write_shards(folder)
    encoding = encoding or tiny_runs.encoding()
    tokenizer.save_tokenizer(encoding, folder / "tokenizer.json")
    lengths = {f.name: len(np.load(f)) for f in sorted(folder.glob("*.npy"))}
    shards = [dict(file=name, split=name.split("_")[1], tokens=n, bytes=3 * n) for name, n in lengths.items()]
    names = dict(vocab_size=300, sha256=tokenizer.fingerprint(encoding))
    manifest = dict(source=dict(dataset="HuggingFaceFW/fineweb-edu"), tokenizer=names, shards=shards)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_tiny_model_on_fineweb_edu_is_not_measured_by_the_large_one(rt, tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_gpt2, "EXPECTED_LOSS", {0: math.log(300), 2: 1.0, 4: 50.0})
    cfg = tiny_config(recipe="gpt2", data=str(write_data(tmp_path / "data")))
    source = load_data(cfg, None).source
    assert "fineweb-edu" in source
    events = train(cfg)
    out = capsys.readouterr().out
    assert "fineweb-edu" in out and "a good run" not in out and "on track" not in out
    assert of(events, "config")[0]["known"] is False
    assert [e["step"] for e in of(events, "val")] == [0, 2, 4]
    assert make_log(rt, source=source).known  # the same data with the model that the curve is of


def test_picture_of_a_run_like_the_published_one_has_its_landmarks(rt, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))

    def drawn(folder, **change):
        folder.mkdir()
        log = make_log(rt, run_dir=folder, log_every=1, **change)
        log.val(0, 10.9)
        for step in range(3):
            log.train(step, torch.tensor(9.0), torch.tensor(1.0), 1e-4)
        log.val(3, 8.9)
        draw(folder)
        return figures[-1].axes[0].get_lines()

    lines = drawn(tmp_path / "gpt2")
    assert any(line.get_ydata()[0] == train_gpt2.GPT2_LOSS for line in lines)
    # The later ones are not drawn yet: they would squeeze the run to the left edge.
    near = [[step, loss] for step, loss in train_gpt2.EXPECTED_LOSS.items() if step <= 250]
    assert len(near) == 2 and near in [line.get_xydata().tolist() for line in lines]
    assert len(drawn(tmp_path / "other", config=SMALL)) == len(lines) - 2


def test_console_lines(tiny_config, capsys):
    train(tiny_config())
    out = capsys.readouterr().out
    for words in ("device cpu: as asked", "dtype float32", "compile False", "300 kinds of tokens", "parameters"):
        assert words in out
    assert f"folder {Path(tiny_config().log_dir) / 'tales'}" in out
    assert "val loss" in out and "bits per byte" in out and "tok/s" in out and "norm" in out
    assert out.count("warming up") == 1  # the first step is reported apart
    first, *others = [line for line in out.splitlines() if " | loss " in line]
    assert first.endswith("warming up") and len(others) == 3
    assert all(re.search(r" \| \d+ m \d\d s left$", line) for line in others)


@pytest.mark.parametrize("more, left", [
    (0, "0 m 00 s left"), (1, "0 m 02 s left"), (100, "3 m 20 s left"), (2999, "99 m 58 s left"),
    (3000, "1 h 40 m left"), (18_000, "10 h 0 m left"),
])  # fmt: skip
def test_time_left_is_that_of_the_steps_to_come(rt, monkeypatch, capsys, more, left):
    """A step takes 2 s. The first one with its 60 s, and a validation of an hour, do not count."""
    clock = SimpleNamespace(now=1000.0)
    clocks = SimpleNamespace(perf_counter=lambda: clock.now, thread_time=lambda: clock.now)
    monkeypatch.setattr(train_gpt2, "time", clocks)
    log = make_log(rt, config=SMALL, max_steps=20 + more, log_every=10)
    for step in range(20):
        clock.now += 2 if step else 60
        log.train(step, torch.tensor(1.0), torch.tensor(1.0), 1e-4)
        if step == 9:
            clock.now += 3600
            log.val(10, 1.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if " | loss " in line]
    assert [line.split()[1] for line in lines] == [f"{step}/{20 + more}" for step in (0, 9, 19)]
    assert lines[0].endswith("| warming up") and lines[-1].endswith(f"| {left}")
    assert [e["ms"] for e in of(log.events, "train")] == [60_000, 2000, 2000]


@pytest.mark.parametrize("share, told", [(1.0, 0), (0.7, 0), (0.5, 1), (0.1, 1)])
def test_a_run_beside_a_busy_neighbour_says_so_once(rt, monkeypatch, capsys, share, told):
    """The thread of the loop has its core for a share of the time; the first step, which reads much, does not count."""
    clock = SimpleNamespace(now=1000.0)
    clocks = SimpleNamespace(perf_counter=lambda: clock.now, thread_time=lambda: share * clock.now)
    monkeypatch.setattr(train_gpt2, "time", clocks)
    log = make_log(rt, config=SMALL, max_steps=40, log_every=10)
    for step in range(40):
        clock.now += 2
        log.train(step, torch.tensor(1.0), torch.tensor(1.0), 1e-4)
    out = capsys.readouterr().out
    assert out.count("another program uses this CPU") == told
    assert told == 0 or f"for {share:.0%} of the time; end that program, or try OMP_NUM_THREADS=1" in out


@pytest.mark.parametrize("ends", [True, False])
def test_a_sample_ends_where_its_text_ends_or_says_that_it_was_cut(rt, monkeypatch, ends):
    encoding = tiny_runs.encoding()
    words, eot = encoding.encode_ordinary("the quick brown fox"), encoding.n_vocab - 1

    def generate(model, start, new, stop_token, **how):
        said = [*words, stop_token, *words] if ends else words
        rows = (said * new)[:new] if not ends else (said + [stop_token] * new)[:new]
        return torch.cat((start, torch.tensor([rows] * len(start))), dim=1)

    monkeypatch.setattr(GPT, "generate", generate)
    model = new_model(vocab_size=encoding.n_vocab)
    texts = train_gpt2.sample_texts(model, encoding, rt, 2, 1)
    assert eot == 299 and len(texts) == 2
    assert all(text == "the quick brown fox" if ends else text.endswith(" [cut]") for text in texts)


def test_last_line_says_what_to_look_at_and_what_to_run_next(tiny_config, capsys):
    cfg = tiny_config(name="mine")
    train(cfg)
    folder = Path(cfg.log_dir) / "mine"
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"look at loss.png and samples.txt in {folder};" in last
    assert (folder / "samples.txt").exists()
    command = shlex.split(last[last.index("python generate.py") :])
    assert command[2:] == ["--checkpoint", str(folder)]
    assert generate.main([*command[2:], "--max_tokens=5", "--device=cpu", "--dtype=float32"]) == 0  # it works as it is


class OnDevice(torch.Tensor):
    """A tensor that notes in `reads` each time a number is taken out of it."""

    reads: list

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        takes = ("item", "tolist", "numpy", "cpu", "to", "__float__", "__bool__", "__int__", "__format__", "__array__")
        if func.__name__ in takes:
            cls.reads.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("log_every, expected", [(1, [*range(12)]), (5, [0, 4, 9, 11]), (100, [0, 11])])
def test_losses_are_read_from_the_device_at_the_interval_only(tiny_config, monkeypatch, log_every, expected):
    """A read makes the CPU wait for the GPU. After the first step it happens at the interval and at the end."""
    OnDevice.reads, read_at, steps = [], [], itertools.count()
    note_step = RunLog.train

    def on_device(*args):
        return tuple(value.as_subclass(OnDevice) for value in train_step(*args))

    def note_reads(self, step, *values):
        note_step(self, step, *values)
        if OnDevice.reads:
            read_at.append(step)
            OnDevice.reads.clear()
        assert step == next(steps)

    monkeypatch.setattr(train_gpt2, "train_step", on_device)
    monkeypatch.setattr(RunLog, "train", note_reads)
    events = train(tiny_config(max_steps=12, log_every=log_every, val_every=0, save_every=0))
    if OnDevice.reads:  # at the end of the run
        read_at.append(11)
    assert read_at == expected
    assert [e["step"] for e in of(events, "train")] == expected


class CountReads(TorchDispatchMode):
    """Counts the operation by which item(), float() and `if tensor` take a number from a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_reads_nothing_from_the_device(rt, kind):
    model = new_model()
    optimizers = configure_optimizers(model, TrainConfig(optimizer=kind), "cpu")
    train_step(model, random_batches(2), optimizers, rt, 1.0)
    with CountReads() as reads:
        loss, _ = train_step(model, random_batches(2), optimizers, rt, 1.0)
    assert reads.count == 0
    with CountReads() as reads:
        loss.item()
    assert reads.count == 1  # the count works


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_same_seed_same_losses(tiny_config, tmp_path, optimizer):
    """Promise 14, whatever the caller has drawn before; and another seed is another run."""
    cfg = tiny_config(dropout=0.2, optimizer=optimizer, sample_every=2)
    one = train(cfg)
    torch.rand(7), random.random(), np.random.rand()
    two = train(cfg)
    assert losses(one) == losses(two)
    assert of(one, "sample") == of(two, "sample")
    assert [e["val_loss"] for e in of(one, "val")] == [e["val_loss"] for e in of(two, "val")]
    other = train(tiny_config(dropout=0.2, optimizer=optimizer, seed=1338, max_steps=1))
    assert losses(other)[0] != losses(one)[0]


def test_the_caller_keeps_its_generators(tiny_config):
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train(tiny_config(dropout=0.2, max_steps=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and np.random.get_state()[1].tolist() == before[2]


def test_dropout_depends_on_seed_step_and_rank_alone(tiny_config, monkeypatch):
    """Masks of the same step are the same whatever was sampled, validated, drawn or resumed before."""
    masks = []

    def note_mask(*args):
        with torch.random.fork_rng([]):
            masks.append(F.dropout(torch.ones(64), 0.5).tolist())
        return train_step(*args)

    monkeypatch.setattr(train_gpt2, "train_step", note_mask)

    def run(rank=0, **settings):
        masks.clear()
        monkeypatch.setattr(train_gpt2, "setup_runtime", lambda *a: replace(setup_runtime(*a), rank=rank))
        events = train(tiny_config(**{**dict(dropout=0.3, val_every=0), **settings}))
        return list(masks), losses(events)

    expected, expected_losses = run(name="mine")
    assert len({tuple(mask) for mask in expected}) == 4  # another one each step
    assert run(sample_every=1, val_every=1, save_every=1) == (expected, expected_losses)
    torch.manual_seed(3)
    assert run(micro_batch=4, log_every=100)[0] == expected
    (Path(tiny_config().log_dir) / "mine" / "ckpt_000004.pt").unlink()
    assert run(name="mine", resume="auto") == (expected[2:], expected_losses[2:])
    other_seed, _ = run(seed=7)
    rank_1, _ = run(rank=1)
    assert run(rank=1)[0] == rank_1
    assert len({tuple(mask) for mask in expected + other_seed + rank_1}) == 12


@pytest.mark.parametrize("optimizer, steps, share", [("adamw", 150, 0.88), ("muon", 60, 0.83)])
def test_learning_really_happens(tiny_config, optimizer, steps, share):
    """Below the entropy of single tokens, so it uses the context; a loop that does not learn cannot get there."""
    events = train(tiny_config(
        optimizer=optimizer, max_steps=steps, total_batch=1024, micro_batch=32, lr=2e-2, min_lr=1e-3, warmup_steps=10,
        val_every=0, save_every=0, log_every=50, seed=1338,  # not every seed gets so far in so few steps
    ))  # fmt: skip
    data = load_data(tiny_config(), None)
    counts = np.bincount(data.train.read(0, len(data.train)))
    p = counts[counts > 0] / counts.sum()
    unigram = -(p * np.log(p)).sum()
    final = of(events, "val")[-1]["val_loss"]
    assert final < share * unigram < share * math.log(300)


def test_samples_come_from_the_model(tiny_config):
    """A model that has learned one line by heart says it."""
    line = "the grey cat sat on the quay all day\n"
    path = Path(tiny_config().log_dir).parent / "line.txt"
    path.write_text(line * 400, encoding="utf-8")
    events = train(tiny_config(
        data=str(path), vocab_size=257, max_steps=150, total_batch=512, micro_batch=16, lr=1e-2, warmup_steps=5,
        val_every=0, save_every=0, log_every=50,
    ))  # fmt: skip
    texts = [e["text"] for e in of(events, "sample")]
    assert len(texts) == 3
    words = [word for text in texts for word in text.split()]
    assert sum(word in line.split() for word in words) > 0.8 * len(words) > 20


# ------------------------------------------------------------------------------------------------------ only looking
@pytest.fixture
def few_items(monkeypatch):
    """HellaSwag of three items that lie in the repository."""
    few = hellaswag.load_examples(ITEMS)[:3]
    monkeypatch.setattr(hellaswag, "default_path", lambda split="val": ITEMS)
    monkeypatch.setattr(hellaswag, "load_examples", lambda path: few)


def tree(*folders):
    """Everything in these folders: names, contents, and when each was written."""
    found = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return [(path, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in found]


@pytest.mark.parametrize("kind", ["text", "shards", "manifest"])
@pytest.mark.parametrize("source", ["run", "checkpoint", "directory"])
def test_no_steps_only_look(finished, small_text, rt, tmp_path, monkeypatch, few_items, capsys, kind, source):
    """--max_steps 0 validates, scores and samples the model of --init on any data, and writes nothing at all."""
    _, folder, _ = finished
    init, data, more = folder, small_text, []
    if kind != "text":
        data = write_data(tmp_path / "data", tokenizer.load_tokenizer(folder / "tokenizer.json"))
        if kind == "shards":
            (data / "manifest.json").unlink()
    if source == "checkpoint":
        init = folder / "ckpt_000006.pt"
    elif source == "directory":
        init, more = tmp_path / "exported", [f"--tokenizer={folder / 'tokenizer.json'}"] if kind == "text" else []
        GPT.from_pretrained(folder).save_pretrained(init)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    looked = []
    monkeypatch.setattr(train_gpt2, "train", lambda cfg: looked.append(train(cfg)))
    before = tree(tmp_path, folder, small_text.parent)
    command = ["--recipe=finetune", f"--init={init}", f"--data={data}", "--max_steps=0", "--hellaswag_every=1",
               "--val_tokens=400", "--device=cpu", "--dtype=float32", *more]  # fmt: skip
    assert train_gpt2.main(command) == 0
    assert tree(tmp_path, folder, small_text.parent) == before  # not even log/

    (events,) = looked
    assert Counter(e["event"] for e in events) == dict(config=1, val=1, hellaswag=1, sample=3)
    assert {e["step"] for e in events} == {0}
    read = load_data(TrainConfig(data=str(data), tokenizer=str(folder / "tokenizer.json")), None)
    loss = evaluate(GPT.from_pretrained(folder), read.val, 4, 32, 400, rt)
    (val,) = of(events, "val")
    assert val["val_loss"] == pytest.approx(loss, rel=1e-6)
    out = capsys.readouterr().out
    assert f"val loss {loss:.4f}" in out and "HellaSwag acc" in out and out.count("sample: ") == 3
    if kind == "shards":
        assert val["val_bpb"] is None
    else:
        assert val["val_bpb"] == pytest.approx(read.bits_per_byte(loss), rel=1e-6)
        assert f"{val['val_bpb']:.4f} bits per byte" in out


def test_no_steps_leave_a_run_of_that_name_alone(tiny_config, tmp_path):
    train(tiny_config(name="mine"))
    before = tree(tmp_path)
    events = train(tiny_config(name="mine", max_steps=0))
    assert [e["event"] for e in events] == ["config", "val", "sample", "sample", "sample"]  # no HellaSwag: not asked
    assert events[1]["val_loss"] == pytest.approx(math.log(300), rel=0.02)  # without --init: a new model
    assert tree(tmp_path) == before


# ------------------------------------------------------------------------------------------- size of the vocabulary
@pytest.mark.parametrize("kind", ["text with tokenizer", "text with init", "manifest", "own tokenizer.json", "both"])
def test_a_vocabulary_size_that_contradicts_the_data_is_refused(finished, tiny_config, tmp_path, capsys, kind):
    """The size of what is given counts: a number beside it must be that size."""
    _, folder, _ = finished
    more = {}
    if kind == "text with tokenizer":
        more = dict(tokenizer=str(folder / "tokenizer.json"))
    elif kind == "text with init":
        more = dict(init=str(folder))
    else:
        more = dict(data=str(write_data(tmp_path / "data")))
        unwanted = {"manifest": "tokenizer.json", "own tokenizer.json": "manifest.json"}.get(kind)
        if unwanted:
            (tmp_path / "data" / unwanted).unlink()
    before = tree(tmp_path)
    for size in (1, 299, 301, 1024, 50257):
        assert train_gpt2.main(command_line(tiny_config(vocab_size=size, max_steps=1, **more))) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and "\nhint: " in err and "Traceback" not in err
        assert "vocab_size" in err and str(size) in err and "300" in err
    assert tree(tmp_path) == before
    for size in (300, None):
        assert train_gpt2.main(command_line(tiny_config(vocab_size=size, max_steps=1, **more))) == 0
    for name in ("tales", "tales-2"):
        saved = load_checkpoint(Path(tiny_config().log_dir) / name / "ckpt_000001.pt")
        assert saved["model_config"]["vocab_size"] == 300


# -------------------------------------------------------------------------------------------------- folders, resuming
def test_a_second_run_gets_a_folder_of_its_own(tiny_config, capsys):
    cfg = tiny_config(max_steps=1)
    log_dir = Path(cfg.log_dir)
    train(cfg)
    first = {p: p.read_bytes() for p in (log_dir / "tales").iterdir()}
    train(cfg)
    train(cfg)
    assert sorted(p.name for p in log_dir.iterdir()) == ["tales", "tales-2", "tales-3"]
    assert {p: p.read_bytes() for p in (log_dir / "tales").iterdir()} == first
    assert "tales-3" in capsys.readouterr().out
    train(tiny_config(max_steps=1, name="mine"))
    with pytest.raises(UserError, match="mine holds a run already") as e:
        train(tiny_config(max_steps=1, name="mine"))
    assert "--resume" in e.value.hint
    assert sorted(p.name for p in log_dir.iterdir()) == ["mine", "tales", "tales-2", "tales-3"]


@pytest.mark.parametrize("name", ["[x]", "a*", "tales-", "?"])
def test_a_run_with_an_odd_name_is_protected_too(tiny_config, name):
    train(tiny_config(max_steps=1, name=name))
    with pytest.raises(UserError, match="holds a run already"):
        train(tiny_config(max_steps=1, name=name))
    assert [p.name for p in Path(tiny_config().log_dir).iterdir()] == [name]


def command_line(cfg, *more):
    """The options that give cfg, as one would type them."""
    given = {name: value for name, value in vars(cfg).items() if value is not None}
    switches = {True: "--{}", False: "--no-{}"}
    words = [switches[v].format(k) if isinstance(v, bool) else f"--{k}={v}" for k, v in given.items()]
    return [*words, *more]


def test_resume_takes_the_settings_of_the_run(tiny_config, capsys):
    """--resume alone goes on with the run's own numbers; what is given beside it counts."""
    cfg = tiny_config(lr=0.003, seed=5, name="mine")
    assert train_gpt2.main(command_line(cfg)) == 0
    options = ["--name=mine", f"--log_dir={cfg.log_dir}", "--resume", "--max_steps=6", "--save_every=1"]
    assert train_gpt2.main(options) == 0
    events = read_log(Path(cfg.log_dir) / "mine")
    then, now = (e["config"] for e in of(events, "config"))
    changed = {k for k in then if then[k] != now[k]}
    assert changed == {"max_steps", "save_every", "resume"}
    assert now["max_steps"] == 6 and now["lr"] == 0.003 and now["seed"] == 5
    assert [e["step"] for e in of(events, "train")] == list(range(6))
    assert "going on from step 4" in capsys.readouterr().out


def test_resume_refuses_what_would_be_another_run(tiny_config, documents_file):
    train(tiny_config(name="mine"))
    path = next(Path(tiny_config().log_dir).glob("mine/ckpt_000004.pt"))
    before = path.read_bytes()
    log = (path.parent / "log.jsonl").read_text()
    for change in (
        dict(data=str(documents_file)), dict(block_size=16), dict(n_head=1), dict(n_embd=16), dict(max_steps=3)
    ):  # fmt: skip
        with pytest.raises(UserError) as e:
            train(tiny_config(name="mine", resume="auto", **change))
        assert e.value.hint, change
    assert path.read_bytes() == before and (path.parent / "log.jsonl").read_text() == log


def test_last_two_and_best_checkpoints_stay(tiny_config, monkeypatch):
    losses = {0: 9.0, 1: 5.0, 2: 3.0, 3: 4.0, 4: 6.0, 5: 3.5, 6: 7.0}
    steps = iter(range(7))
    monkeypatch.setattr(train_gpt2, "evaluate", lambda *a: losses[next(steps)])
    cfg = tiny_config(max_steps=6, val_every=1, save_every=1, name="mine")
    train(cfg)
    folder = Path(cfg.log_dir) / "mine"
    assert sorted(p.name for p in folder.glob("*.pt")) == ["ckpt_000002.pt", "ckpt_000005.pt", "ckpt_000006.pt"]
    assert load_checkpoint(folder / "ckpt_000006.pt")["best"] == [3.0, 2]
    # A resumed run remembers the best.
    monkeypatch.setattr(train_gpt2, "evaluate", lambda *a: 3.2)
    train(tiny_config(max_steps=8, val_every=1, save_every=1, name="mine", resume="auto"))
    assert sorted(p.name for p in folder.glob("*.pt")) == ["ckpt_000002.pt", "ckpt_000007.pt", "ckpt_000008.pt"]


@pytest.mark.parametrize("epochs", [0.5, 1, 2.5])
def test_epochs_are_another_way_to_say_steps(tiny_config, epochs):
    cfg = tiny_config(epochs=epochs, save_every=0, val_every=0, total_batch=2048, micro_batch=8, lr=1e-3)
    events = train(cfg)
    windows = len(load_data(cfg, None).train) // 32
    steps = of(events, "train")
    assert len(steps) == math.ceil(epochs * windows / 64)
    settled = of(events, "config")[0]["config"]
    assert settled["max_steps"] == len(steps)
    assert steps[-1]["lr"] == get_lr(len(steps) - 1, TrainConfig(**settled))  # the schedule ends with the run


# -------------------------------------------------------------------------------------------------------- divergence
def explode(monkeypatch, at, lr):
    """From step `at` on the learning rate is absurd."""
    normal = get_lr
    monkeypatch.setattr(train_gpt2, "get_lr", lambda step, cfg: lr if step >= at else normal(step, cfg))


def files(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*.pt")}


@pytest.mark.parametrize("val_every", [0, 1, 2])
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_diverged_run_stops_with_advice_and_the_last_good_checkpoint(
    tiny_config, monkeypatch, capsys, val_every, log_every
):
    """Step 3 ruins the weights; step 4 would save them. Whoever looks first, the loop, the validation or the saving,
    the run ends there with exit code 2, and the checkpoint of step 2 is the newest."""
    explode(monkeypatch, at=3, lr=1e39)
    cfg = tiny_config(max_steps=20, val_every=val_every, log_every=log_every, save_every=2, name="mine")
    assert train_gpt2.main(command_line(cfg)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "\nhint: " in err and "Traceback" not in err
    assert "diverged" in err and "step" in err and "--lr" in err and "mine" in err
    folder = Path(cfg.log_dir) / "mine"
    assert list(files(folder)) == ["ckpt_000002.pt"]
    model = GPT.from_pretrained(folder / "ckpt_000002.pt")
    assert all(p.isfinite().all() for p in model.parameters())
    for line in (folder / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_a_loss_that_is_no_number_is_named_with_its_step(tiny_config, monkeypatch):
    explode(monkeypatch, at=2, lr=1e30)  # finite weights, but no logit is
    cfg = tiny_config(max_steps=20, val_every=0, save_every=2, name="mine")
    with pytest.raises(UserError, match=r"loss is (nan|inf).* at step 3") as e:
        train(cfg)
    assert "--lr" in e.value.hint and "--warmup_steps" in e.value.hint
    assert list(files(Path(cfg.log_dir) / "mine")) == ["ckpt_000002.pt"]


# ------------------------------------------------------------------------------------------------------- fine-tuning
@pytest.fixture(scope="module")
def rhyme(tmp_path_factory):
    path = tmp_path_factory.mktemp("rhyme") / "rhyme.txt"
    words = ["moon", "spoon", "noon", "tune"]
    lines = [f"{a} after {b} before {c}\n" for a, b, c in itertools.permutations(words, 3)]
    path.write_text("".join(lines * 30), encoding="utf-8")
    return path


@pytest.mark.parametrize("source", ["checkpoint", "directory"])
def test_finetuning_lowers_the_loss_on_the_new_text(finished, tiny_config, rhyme, tmp_path, source):
    _, folder, _ = finished
    init, more = folder / "ckpt_000006.pt", {}
    if source == "directory":
        GPT.from_pretrained(init).save_pretrained(tmp_path / "exported")
        init, more = tmp_path / "exported", dict(tokenizer=str(folder / "tokenizer.json"))
    sizes = dict(n_layer=None, n_head=None, n_embd=None, block_size=None)
    steps = dict(max_steps=20, total_batch=512, micro_batch=0, lr=1e-3, min_lr=1e-4, save_every=0)
    cfg = tiny_config(recipe="finetune", init=str(init), data=str(rhyme), val_every=20, **sizes, **steps, **more)
    events = train(cfg)
    before, after = (e["val_loss"] for e in of(events, "val"))
    assert after < before - 0.3
    assert [p.name for p in Path(cfg.log_dir).iterdir()] == ["finetune"]
    saved = load_checkpoint(Path(cfg.log_dir) / "finetune" / "ckpt_000020.pt")
    assert saved["model_config"]["n_embd"] == 32
    events = train(replace(cfg, max_steps=21, resume="auto"))  # the sizes are those of the checkpoint
    assert [e["step"] for e in of(events, "train")] == [20]


def test_finetuning_starts_from_the_weights_and_may_shorten_the_block(finished, tiny_config, rhyme, rt):
    _, folder, _ = finished
    sizes = dict(n_layer=None, n_head=None, n_embd=None, block_size=16)
    cfg = tiny_config(recipe="finetune", init=str(folder / "ckpt_000006.pt"), data=str(rhyme), max_steps=1, **sizes)
    first = of(train(cfg), "val")[0]["val_loss"]
    model = GPT.from_pretrained(folder / "ckpt_000006.pt", block_size=16)
    data = load_data(cfg, folder)
    assert first == pytest.approx(evaluate(model, data.val, 2, 16, 500, rt))


# ----------------------------------------------------------------------------------------------------- torch.compile
def test_training_and_validation_are_compiled_once_each(tiny_config, monkeypatch, few_items):
    """One graph to train and one to validate, whose last batch is filled up. Sampling (a token at a time) and HellaSwag
    (all lengths) run on the raw model, and compile nothing. The counting backend needs no C++ compiler."""
    from torch._dynamo.testing import CompileCounter

    compile = torch.compile

    def counted(**settings):
        torch._dynamo.reset()
        counter = CompileCounter()
        monkeypatch.setattr(torch, "compile", lambda model, **how: compile(model, backend=counter, **how))
        events = train(tiny_config(max_steps=4, val_every=1, dropout=0.0, **settings))
        return events, counter

    often = dict(sample_every=2, hellaswag_every=2)
    events, counter = counted(compile="true", **often)
    assert counter.frame_count == 2  # each for the whole model, made once
    assert counter.op_count > 40
    assert counted(compile="true")[1].frame_count == 2
    assert [e["step"] for e in of(events, "val")] == list(range(5))
    assert [e["step"] for e in of(events, "hellaswag")] == [0, 2, 4]
    assert all(0 <= e["acc"] <= 1 and 0 <= e["acc_norm"] <= 1 for e in of(events, "hellaswag"))
    assert len(of(events, "sample")) == 2 + 3
    saved = load_checkpoint(Path(tiny_config().log_dir) / "tales" / "ckpt_000004.pt")
    assert not any("_orig_mod" in name for name in saved["model"])
    eager, counter = counted(compile="false", **often)
    assert counter.frame_count == 0
    for (step, loss, norm), (same, expected, expected_norm) in zip(losses(events), losses(eager), strict=True):
        assert step == same and loss == pytest.approx(expected, rel=1e-4)
        assert norm == pytest.approx(expected_norm, rel=1e-3)
    for ours, theirs in zip(of(events, "val"), of(eager, "val"), strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- recipes
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_together(name):
    cfg = TrainConfig.from_recipe(name)
    assert cfg.recipe == name
    assert 0 <= cfg.min_lr < cfg.lr < 0.1 and cfg.warmup_steps < cfg.max_steps
    if name == "finetune":
        assert (cfg.n_layer, cfg.n_head, cfg.n_embd, cfg.block_size) == (None,) * 4
        return
    sizes = {k: getattr(cfg, k) for k in ("n_layer", "n_head", "n_embd", "block_size")}
    config = GPTConfig.from_name(name, **sizes)
    assert {k: PRESETS[name].get(k, v) for k, v in sizes.items()} == sizes
    for world_size in (1, 8) if name != "tales" else (1,):
        assert cfg.total_batch % (config.block_size * world_size) == 0
    if cfg.micro_batch:
        assert cfg.total_batch // config.block_size % cfg.micro_batch == 0


def test_the_default_recipe_is_the_preset_tales():
    """The sizes stand in both: as a page of knobs, and as a model to make by its name."""
    cfg = TrainConfig()
    sizes = {k: getattr(cfg, k) for k in ("n_layer", "n_head", "n_embd", "block_size")}
    assert sizes | dict(vocab_size=2048) == PRESETS["tales"]


def test_the_gpt2_recipe_is_the_published_one():
    cfg = TrainConfig.from_recipe("gpt2")
    assert (cfg.total_batch, cfg.max_steps, cfg.warmup_steps) == (524_288, 19_073, 715)
    assert (cfg.lr, cfg.min_lr, cfg.weight_decay, cfg.clip) == (6e-4, 6e-5, 0.1, 1.0)
    assert (cfg.val_tokens, cfg.data) == (10_485_760, "edu_fineweb10B")
    assert 0.99e10 < cfg.total_batch * cfg.max_steps < 1.01e10  # one pass over ten billion tokens


class Cuda(str):
    """The name of a device that torch takes for the CPU, and our code for a GPU."""

    type = "cuda"


class Limited(GPT):
    """A model for which memory ends at `most` sequences."""

    most, tried = 10**9, ()

    def forward(self, idx, targets=None):
        self.tried = (*self.tried, len(idx))
        if len(idx) > self.most:
            raise torch.OutOfMemoryError
        return super().forward(idx, targets)


def test_micro_batch_0_is_the_largest_that_fits_and_divides(rt):
    gpu = replace(rt, device=Cuda("cpu"))

    def on_gpu(most):
        model = Limited(SMALL)
        model.most = most
        B = largest_micro_batch(model, 24, gpu)
        assert all(p.grad is None for p in model.parameters())
        return B, model.tried

    assert on_gpu(10**9) == (24, (24,))
    assert on_gpu(7) == (6, (24, 12, 8, 6))  # stops at the first that fits
    assert on_gpu(1)[0] == 1
    with pytest.raises(UserError, match="not even one sequence"):
        on_gpu(0)
    model = Limited(SMALL)
    assert largest_micro_batch(model, 24, rt) == 24 and not model.tried  # on a CPU memory is not the limit
    long = GPTConfig(**{**vars(SMALL), "block_size": 512})
    assert largest_micro_batch(GPT(long), 10**6, rt) == 8  # 4,096 tokens keep a CPU busy


def test_shuffle_false_reads_the_text_in_order(tiny_config, monkeypatch):
    """The option reaches the loader: the first step reads the beginning of the text."""
    seen = []

    def note(model, batches, *rest):
        seen.append(batches)
        return train_step(model, batches, *rest)

    monkeypatch.setattr(train_gpt2, "train_step", note)
    cfg = tiny_config(shuffle=False, max_steps=2)
    train(cfg)
    data = load_data(cfg, None)
    x = torch.cat([x for batches in seen for x, _ in batches]).flatten()
    assert x.tolist() == data.train.read(0, 512).tolist()
    loader = DataLoaderLite(data.train, 2, 32, 4, seed=cfg.seed)
    seen.clear()
    train(tiny_config(max_steps=1))
    expected = [loader.batch(0, m)[0] for m in range(4)]
    assert all(torch.equal(x, e) for (x, _), e in zip(seen[0], expected, strict=True))
