"""What one GPU does with the recipe gpt2: one command for the first day on a card.

    python tests/benchmarks/bench_gpu.py                    about ten minutes on one card; writes results/gpu.json
    python tests/benchmarks/bench_gpu.py --device cpu       the same, tiny, writes nothing
    python tests/benchmarks/bench_ladder.py --device cuda   afterwards: the ladder, and bench_generate, bench_hellaswag

Each row is a process of its own, because what is measured cold (compiling, plans of kernels) is warm the second time:
    train      steps of `--recipe gpt2` on random tokens: tokens/s and MFU after the first lines, peak memory; a
               micro-batch that does not fit is a row that says so
    generate   the first and the second 100 tokens of a new process, with cuDNN's attention off (as the lesson does it)
               and on
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
import train_gpt2  # noqa: E402  the line above makes the project importable from anywhere
from train_gpt2 import GPT, GPTConfig, TrainConfig, UserError, setup_runtime, train  # noqa: E402

RESULTS = HERE / "results/gpu.json"
TINY = dict(n_layer=1, n_head=2, n_embd=32, block_size=32, total_batch=2048, warmup_steps=1)


def peak_gb(device):
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


def write_shards(folder, tokens):
    """Random ids below GPT-2's vocabulary: the speed does not depend on what they are."""
    generator = np.random.default_rng(0)
    for name, count in (("random_val_000000", 2**20 + 1), ("random_train_000001", tokens)):
        np.save(folder / f"{name}.npy", generator.integers(50257, size=count, dtype=np.uint16))


def measure_training(device, data, micro_batch, steps, **more):
    """A short run of the recipe -> its speed, or that it does not fit."""
    settings = dict(
        data=data, log_dir=data, name=f"run{micro_batch}", device=device, micro_batch=micro_batch, max_steps=steps,
        val_every=0, val_tokens=2**17, sample_every=0, save_every=0, log_every=5, **more,
    )  # fmt: skip
    try:
        events = train(TrainConfig.from_recipe("gpt2", **settings))
    except (torch.OutOfMemoryError, UserError) as e:
        return dict(micro_batch=micro_batch, failed=" ".join(str(e).split())[:120])
    lines = [e for e in events if e["event"] == "train"]
    warm = lines[2:]  # the first compiles, the second still takes memory
    rates = [e["tokens_per_s"] for e in warm]
    return dict(
        micro_batch=micro_batch, first_step_s=lines[0]["ms"] / 1000, lines=len(warm), mfu=warm[-1]["mfu"],
        tokens_per_s=dict(median=statistics.median(rates), low=min(rates), high=max(rates)), peak_gb=peak_gb(device),
    )  # fmt: skip


def measure_generation(device, cudnn, tokens, **sizes):
    """Seconds of the first and of the second `tokens` tokens in a process that has just begun."""
    rt = setup_runtime(device)
    model = GPT(GPTConfig(**sizes)).to(rt.device, rt.dtype)
    idx = torch.full((1, 1), 0, device=rt.device)
    leave_on = mock.patch.object(torch.backends.cuda, "enable_cudnn_sdp", lambda on: None)
    seconds = []
    with leave_on if cudnn else mock.patch.object(train_gpt2, "GPT", GPT):
        for _ in range(2):
            begin = time.perf_counter()
            model.generate(idx, tokens, generator=torch.Generator().manual_seed(0))
            seconds.append(time.perf_counter() - begin)
    return dict(cudnn_attention=cudnn, tokens=tokens, cold_s=seconds[0], warm_s=seconds[1], peak_gb=peak_gb(device))


MEASURES = dict(train=measure_training, generate=measure_generation)


def in_a_process(kind, **how):
    """One measurement in a fresh process -> its row."""
    command = [sys.executable, __file__, "--one", kind, json.dumps(how)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return dict(kind=kind, failed=done.stderr.strip().splitlines()[-1][:200], **how)
    row = dict(kind=kind, **json.loads(done.stdout.splitlines()[-1]))
    print(json.dumps(row), flush=True)
    return row


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--steps", type=int, default=60, help="steps of each training row (default: 60)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(MEASURES[args.one[0]](**json.loads(args.one[1]))))
        return
    tiny = args.device == "cpu"
    if not tiny and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device\nhint: --device cpu shows that the script works")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), 2**20 if tiny else args.steps * 2**19)
        for micro_batch in (0, 8) if tiny else (0, 64, 32, 16):
            more = TINY if tiny else {}
            rows.append(in_a_process("train", device=args.device, data=folder, micro_batch=micro_batch,
                                     steps=args.steps, **more))  # fmt: skip
    sizes = dict(n_layer=1, n_head=2, n_embd=32, block_size=256) if tiny else {}
    for cudnn in (False, True):
        rows.append(in_a_process("generate", device=args.device, cudnn=cudnn, tokens=100, **sizes))
    if not tiny:
        hardware = dict(card=torch.cuda.get_device_name(), driver_cuda=torch.version.cuda, torch=torch.__version__)
        facts = dict(hardware=hardware, python=platform.python_version(), date=date.today().isoformat(), rows=rows)
        RESULTS.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
