"""How much faster than what people use today? train_gpt2.py on a CPU beside two other recipes, by turns in one process.

    python tests/benchmarks/bench_recipes.py                # five minutes; prints a table, writes results/recipes.json

    lecture   the 124M shape, 4 x 256 tokens: bfloat16 autocast, fused attention, padded vocabulary, AdamW not fused
    nanogpt   the shape and batch of the recipe `tales`: float32, fused attention, AdamW not fused

Both run this project's own model and step with these settings (see bench_ladder.py), so that only the recipe differs;
the C library's way with freed memory is the usual one for them. A turn is a few steps of one, then a few of the other:
A B A B ... A ratio is taken in each turn; the table has the median, the lowest and the highest. Then torch.profiler
says which share of a step goes where, for both.
"""

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from bench_ladder import Way, make_step, measured_peak, running, seconds_of
from hardware import cpu_name

from train_gpt2 import GPTConfig, TrainConfig, keep_freed_memory, setup_runtime

RESULTS = Path(__file__).parent / "results" / "recipes.json"
PARTS = {  # which operators make up which part of a step
    "matrix products": ("aten::mm", "aten::addmm", "aten::linear", "mkldnn"),
    "attention": ("aten::bmm", "aten::_scaled_dot", "aten::_softmax", "aten::_softmax_backward_data", "aten::triu"),
    "softmax over the vocabulary": ("aten::_log_softmax", "aten::_log_softmax_backward_data", "aten::nll_loss"),
    "optimizer": (
        "aten::_fused_adamw_",
        "aten::lerp_",
        "aten::addcmul_",
        "aten::addcdiv_",
        "aten::sqrt",
        "aten::_foreach",
    ),
    "casts and copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_"),
}


def usual_memory():
    """Undoes keep_freed_memory: the thresholds at which glibc arrives by itself after the first large tensors."""
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(trim_threshold, 2**26)
    libc.mallopt(mmap_threshold, 2**25)
    libc.malloc_trim(0)


def ours(dtype):
    return Way(dtype=dtype, attention="chosen", padded=True, fused_adamw=True, keep_memory=True)


def contest(theirs, mine, config, B, cfg, turns, steps):
    """Tokens/s of both, turn by turn, and where their time goes."""
    ways, made, rates = dict(theirs=theirs, ours=mine), {}, dict(theirs=[], ours=[])
    for name, way in ways.items():
        with running(way):
            made[name] = make_step(way, "cpu", config, B, cfg)[0]
    for turn in range(turns + 1):  # the first one warms up
        for name, way in ways.items():
            with running(way):
                keep_freed_memory() if way.keep_memory else usual_memory()
                made[name]()  # memory is taken again
                times = [seconds_of(made[name]) for _ in range(steps)]
            if turn:
                rates[name].append(B * config.block_size / statistics.median(times))
    ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
    result = {name: spread(r) for name, r in (rates | dict(ratio=ratios)).items()}
    for name, way in ways.items():
        with running(way):
            keep_freed_memory() if way.keep_memory else usual_memory()
            result[f"{name}_parts"] = parts_of(made[name])
    return result


def spread(values):
    return dict(median=statistics.median(values), low=min(values), high=max(values))


def parts_of(step):
    """Milliseconds of each part of a step, by torch.profiler."""
    step()
    with torch.profiler.profile() as profile:
        step()
    parts = dict.fromkeys([*PARTS, "all else"], 0.0)
    for event in profile.key_averages():
        part = next((part for part, names in PARTS.items() if event.key.startswith(names)), "all else")
        parts[part] += event.self_cpu_time_total / 1000
    return {part: round(ms, 2) for part, ms in parts.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=["lecture", "nanogpt"])
    parser.add_argument("--no_save", action="store_true", help="leave the result file as it is")
    args = parser.parse_args(argv)
    lecture = Way(dtype="bfloat16", attention="fused", padded=True)
    nanogpt = Way(dtype="float32", attention="fused", padded=True)
    best = str(setup_runtime("cpu").dtype)[6:]  # what `auto` takes here
    tales, shape = TrainConfig.from_recipe("tales"), GPTConfig.from_name("tales")
    jobs = {
        "lecture": lambda: contest(lecture, ours(best), GPTConfig(block_size=256), 4, None, args.turns, 3),
        "nanogpt": lambda: contest(nanogpt, ours(best), shape, tales.micro_batch, tales, args.turns, 60),
    }
    result = dict(
        what="tokens/s of training on a CPU, beside two other recipes", date=time.strftime("%Y-%m-%d"), cpu=cpu_name(),
        threads=torch.get_num_threads(), peak_gflops=measured_peak("cpu", getattr(torch, best)) / 1e9, dtype=best,
        python=platform.python_version(), torch=torch.__version__, turns=args.turns,
    )  # fmt: skip
    for name, job in jobs.items():
        if args.only in (None, name):
            r = result[name] = job()
            print(
                f"{name}: theirs {r['theirs']['median']:,.0f}, ours {r['ours']['median']:,.0f} tokens/s: "
                f"{r['ratio']['median']:.2f} times ({r['ratio']['low']:.2f} to {r['ratio']['high']:.2f})",
            )
            for part in r["ours_parts"]:
                print(f"    {part}: theirs {r['theirs_parts'][part]} ms, ours {r['ours_parts'][part]} ms", flush=True)
    if not args.no_save and not args.only:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
