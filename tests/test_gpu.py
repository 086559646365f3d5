"""The CUDA path. First what a CPU can prove of it, with stand-ins; then, marked gpu, what needs a card.

The second half runs on Python 3.12 with torch 2.11 too, and needs neither `datasets` nor jupyter:
    python -m pytest -m gpu
"""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import losses, options, tiny, write_shards

import train_gpt2
from train_gpt2 import (
    GPT,
    GPTConfig,
    RunLog,
    UserError,
    choose_device,
    configure_optimizers,
    load_checkpoint,
    read_log,
    restore,
    save_checkpoint,
    setup_runtime,
    train,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIG = GPTConfig(block_size=32, vocab_size=300, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards")


def of(events, kind):
    return [event for event in events if event["event"] == kind]


# ---- Without a card: which device, and what is said of it -----------------------------------------------------------
@pytest.fixture
def machine(monkeypatch):
    """machine(gpu, tool, build): whether torch reaches a GPU, whether a driver is there, and torch's CUDA version."""

    def set_up(gpu=False, tool=None, build=None):
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(shutil, "which", lambda name: tool if name == "nvidia-smi" else None)
        monkeypatch.setattr(torch.version, "cuda", build)

    return set_up


@pytest.mark.parametrize("tool, build, words", [
    (None, None, "no GPU here"),
    (None, "13.0", "no GPU here"),
    ("/usr/bin/nvidia-smi", "13.0", "driver of this NVIDIA GPU is too old"),
    ("/usr/bin/nvidia-smi", None, "this build of torch is for CPUs only, though an NVIDIA GPU is here"),
])  # fmt: skip
def test_the_reason_says_why_no_gpu_is_used(machine, monkeypatch, tool, build, words):
    machine(tool=tool, build=build)
    device, why = choose_device("auto")
    assert device.type == "cpu" and words in why
    monkeypatch.setenv("RANK", "0")  # under torchrun an idle card is a mistake, not a choice
    if tool:
        with pytest.raises(UserError, match=words) as caught:
            choose_device("auto")
        assert "driver" in caught.value.hint
    else:
        assert choose_device("auto")[0].type == "cpu"
    assert choose_device("cpu") == (torch.device("cpu"), "as asked")


def test_a_gpu_that_is_there_is_used(machine, monkeypatch):
    machine(gpu=True, build="13.0")
    made, ones = [], torch.ones
    monkeypatch.setattr(torch, "ones", lambda n, device: made.append(device) or ones(n))
    assert choose_device("auto", local_rank=3) == (torch.device("cuda", 3), "a GPU is here")
    assert made == [torch.device("cuda", 3)]  # a sum was run on it


@pytest.mark.parametrize("message", ["CUDA error: no kernel image is available", "CUDA error: invalid device ordinal"])
def test_a_card_that_cannot_compute_is_refused(machine, monkeypatch, message):
    """Older than the kernels of this build of torch, or not there: more processes than GPUs."""
    machine(gpu=True, build="13.0")

    def ones(n, device):
        raise RuntimeError(message + "\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, rank in (("auto", 2), ("cuda:7", 0)):
        with pytest.raises(UserError, match=message) as caught:
            choose_device(name, rank)
        assert "GPUs here: 2" in caught.value.hint and "\n" not in str(caught.value)


def test_one_card_for_all_processes_is_refused(monkeypatch):
    for name, value in dict(RANK=1, LOCAL_RANK=1, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(train_gpt2, "choose_device", lambda *args: (torch.device("cuda", 0), "as asked"))
    monkeypatch.setattr(train_gpt2, "choose_dtype", lambda *args: (torch.bfloat16, ""))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(UserError, match="all would use cuda:0") as caught:
        setup_runtime("cuda:0")
    assert "--device cuda" in caught.value.hint


def test_peaks_are_of_exactly_these_cards_and_of_16_bits(monkeypatch, tmp_path):
    """An H100 behind PCIe, a slice of one, or a T400 are other cards; float32 has another peak."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: monkeypatch.card)
    stream = train_gpt2.TokenStream([np.zeros(100, np.uint16)], 300)
    data = SimpleNamespace(train=stream, val=stream, source="x", encoding=None, tokenizer_file=None)

    def peak(card, dtype=torch.bfloat16):
        monkeypatch.card = card
        rt = train_gpt2.Runtime(0, 1, torch.device("cuda", 0), dtype, False, [], torch.amp.GradScaler("cpu"))
        return RunLog(None, tiny("x", tmp_path), rt, data, GPT(CONFIG), 0, (1.0, 0)).peak

    assert peak("NVIDIA H100 80GB HBM3") == 989e12 and peak("NVIDIA H100 PCIe") == 756e12
    for card in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA T400", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        assert peak(card) == float("inf")
    assert peak("NVIDIA H100 80GB HBM3", torch.float32) == float("inf")


# ---- Without a card: checkpoints and resume -------------------------------------------------------------------------
def make_run(scale):
    """A model, its optimizers, and a Runtime whose scaler is switched on, as on a card without bfloat16."""
    rt = setup_runtime("cpu", "float32")
    rt.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    model, cfg = GPT(CONFIG), tiny("x", "y")
    return rt, model, configure_optimizers(model, cfg, "cpu"), cfg


def test_the_scale_of_float16_is_in_the_checkpoint(tmp_path):
    rt, model, optimizers, cfg = make_run(scale=1234.0)
    config = dict(vars(cfg))
    save_checkpoint(tmp_path / "c.pt", model, optimizers, rt, step=3, best=[1.0, 0], config=config, data="d")
    rt, model, optimizers, cfg = make_run(scale=2.0)
    data = SimpleNamespace(identity="d")
    assert restore(load_checkpoint(tmp_path / "c.pt"), model, optimizers, rt, cfg, data) == (3, (1.0, 0))
    assert rt.scaler.get_scale() == 1234.0


def test_the_step_of_fused_adamw_comes_back_on_its_parameters_device(tmp_path):
    """ZeroRedundancyOptimizer leaves it on the CPU (pytorch issue 124133), and the fused kernel refuses it there."""
    rt, model, _, cfg = make_run(scale=1.0)
    p = torch.nn.Parameter(torch.zeros(3, device="meta"))  # a device that is not the CPU
    inner = SimpleNamespace(state={p: dict(step=torch.tensor(5.0), exp_avg=torch.zeros(3))})
    loaded = SimpleNamespace(param_groups=[], state={p: dict(step=1)}, load_state_dict=lambda state: None, optim=inner)
    config = dict(vars(cfg))
    save_checkpoint(tmp_path / "c.pt", model, [], rt, step=3, best=[1.0, 0], config=config, data="d")
    ckpt = load_checkpoint(tmp_path / "c.pt") | dict(optimizers=[dict(param_groups=[])])
    restore(ckpt, model, [loaded], rt, cfg, SimpleNamespace(identity="d"))
    assert {m.device.type for m in inner.state[p].values()} == {"meta"}
    assert not loaded.state  # torch's wrapper keeps a second copy there


def test_what_was_auto_is_chosen_anew_on_another_machine(shards, tmp_path, monkeypatch):
    cfg = tiny(shards, tmp_path / "log", device="auto", dtype="auto", compile="auto", micro_batch=0, max_steps=6)
    monkeypatch.setattr(train_gpt2, "choose_dtype", lambda name, device: (torch.float32, f"asked: {name}"))
    train(cfg)
    path = tmp_path / "log/tales/ckpt_000006.pt"
    assert {load_checkpoint(path)["config"][k] for k in ("device", "dtype", "compile")} == {"auto"}
    asked = []
    monkeypatch.setattr(train_gpt2, "choose_dtype", lambda name, device: asked.append(name) or (torch.bfloat16, ""))
    monkeypatch.setattr(train_gpt2, "largest_micro_batch", lambda model, sequences, rt: asked.append(sequences) or 4)
    assert train_gpt2.main(["--resume", str(path), "--max_steps", "8"]) == 0
    assert asked == ["auto", 8]
    assert [e["dtype"] for e in of(read_log(path.parent), "config")] == ["float32", "bfloat16"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc for mapped files")
def test_a_checkpoint_is_unmapped_before_training_goes_on(shards, tmp_path, monkeypatch):
    """Mapped, every process would keep 12 bytes a parameter of it for the whole run."""
    train(tiny(shards, tmp_path / "log", max_steps=6))
    path, step, seen = tmp_path / "log/tales/ckpt_000006.pt", train_gpt2.train_step, []

    def look(*args):
        gc.collect()  # torch.load may leave a cycle of references, which Python frees when it next looks for such
        seen.append("ckpt_" in Path("/proc/self/maps").read_text())
        return step(*args)

    ckpt = load_checkpoint(path)
    assert "ckpt_" in Path("/proc/self/maps").read_text()  # it is mapped while it is read
    del ckpt
    monkeypatch.setattr(train_gpt2, "train_step", look)
    assert train_gpt2.main(["--resume", str(path), "--max_steps", "8"]) == 0
    assert seen == [False, False]


def test_cudnn_attention_is_off_while_lengths_change(monkeypatch):
    seen, sample = [], GPT.sample_next
    look = lambda *args: seen.append(torch.backends.cuda.cudnn_sdp_enabled()) or sample(*args)  # noqa: E731
    monkeypatch.setattr(GPT, "sample_next", staticmethod(look))
    model = GPT(CONFIG)
    for before in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(before)
        seen.clear()
        model.generate(torch.zeros(1, 3, dtype=torch.long), 4)
        assert seen == [False] * 4 and torch.backends.cuda.cudnn_sdp_enabled() is before
    torch.backends.cuda.enable_cudnn_sdp(True)


# ---- With a card ----------------------------------------------------------------------------------------------------
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_CUDA = dict(device="cuda", dtype="float32", compile="false")


@gpu
@needs_cuda
@pytest.mark.parametrize("change", [{}, dict(compile="true"), dict(optimizer="muon"), dict(dropout=0.0, micro_batch=0)])
def test_losses_on_cuda_are_those_on_the_cpu(shards, tmp_path, change):
    change = dict(dict(dropout=0.0), **change)
    cpu = train(tiny(shards, tmp_path / "cpu", **(change | dict(compile="false", micro_batch=2))))
    cuda = train(tiny(shards, tmp_path / "cuda", **(ON_CUDA | change)))
    assert losses(cuda) == pytest.approx(losses(cpu), abs=5e-3)
    ours, theirs = ([e["val_loss"] for e in of(events, "val")] for events in (cuda, cpu))
    assert ours == pytest.approx(theirs, abs=5e-3)


@gpu
@needs_cuda
@pytest.mark.parametrize("change", [
    {}, dict(dtype="bfloat16", compile="true"), dict(dtype="float16"), dict(optimizer="muon"),
    dict(dropout=0.2, activation_checkpointing=True),
])  # fmt: skip
def test_a_run_on_cuda_goes_on_as_if_it_had_not_stopped(shards, tmp_path, change):
    """Up to rounding: some of a card's kernels add in no fixed order."""
    settings = ON_CUDA | change
    straight = train(tiny(shards, tmp_path / "a", **settings))  # 12 steps, checkpoints at 6 and 12
    (tmp_path / "b").mkdir()
    path = shutil.copy(tmp_path / "a/tales/ckpt_000006.pt", tmp_path / "b")
    assert train_gpt2.main(["--resume", str(path)]) == 0
    again, expected = losses(read_log(tmp_path / "b")), losses(straight)
    assert again == pytest.approx({step: expected[step] for step in range(6, 12)}, rel=2e-3)
    if change.get("dtype") == "float16":
        assert load_checkpoint(path)["scaler"]["scale"] > 0


@gpu
@needs_cuda
def test_zero_resumes_on_cuda(shards, tmp_path):
    cfg = tiny(shards, tmp_path / "log", zero=True, resume="auto", max_steps=6, **ON_CUDA)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    command = [*torchrun, str(ROOT / "train_gpt2.py"), *options(cfg)]
    for more in ([], ["--max_steps", "9"]):
        done = subprocess.run([*command, *more], env=dict(os.environ), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(losses(read_log(tmp_path / "log/tales"))) == list(range(9))


@gpu
@needs_cuda
def test_text_is_the_same_on_cuda_and_cpu_and_comes_without_a_plan_for_each_length():
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    idx = torch.randint(300, (2, 5))
    cpu = model.generate(idx, 60, temperature=0)
    cuda = model.to("cuda").generate(idx.to("cuda"), 60, temperature=0)
    assert torch.equal(cpu, cuda.cpu())  # greedy, float32, over the end of the block


@gpu
@needs_cuda
def test_training_compiles_one_graph_and_validation_one(shards, tmp_path):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    train(tiny(shards, tmp_path, sample_every=3, val_every=3, **(ON_CUDA | dict(compile="true", dtype="bfloat16"))))
    assert counters["stats"]["unique_graphs"] == 2
