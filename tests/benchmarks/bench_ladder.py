"""Where does the speed come from? The 124M shape, from plain float32 to everything on, one change a rung.

    python tests/benchmarks/bench_ladder.py                       # CPU: 4 x 256 and 4 x 1,024 tokens, 15 minutes
    python tests/benchmarks/bench_ladder.py --device cuda --shapes 16x1024 64x1024
    python tests/benchmarks/bench_ladder.py --draw                # only draw the picture again

A rung is a way of running train_gpt2.train_step; each keeps what the rungs before it brought. Every measurement has a
process of its own, so that its peak of memory is its own, and the rungs take turns (1 2 3 .. 1 2 3 ..), so that a
machine that slows down slows all of them. A number is the median over all steps of all turns; the first steps of a
process (taking memory, compiling) are not counted. "gain" is how many times faster than the rung before.

MFU is the share of the peak rate of bfloat16 matrix products that the model's own operations (GPT.flops_per_token)
reach: the card's by its data sheet, or, where the name is unknown and on a CPU, of a large product measured here.
Writes results/ladder.json, replacing earlier rows of the same device and shape, and results/ladder.png.
"""

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

from hardware import cpu_name, memory_gb_per_s

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the line above makes the project importable from anywhere
from torch.nn import functional as F  # noqa: E402

import train_gpt2  # noqa: E402
from train_gpt2 import GPT, GPTConfig, TrainConfig, compile_and_ddp, configure_optimizers, train_step  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "ladder.json"


@dataclass(frozen=True)
class Way:
    """How a step is run. The fields' defaults are the plainest way; EVERYTHING is how train_gpt2.py does it."""

    dtype: str = "float32"
    tf32: bool = False
    compile: bool = False
    attention: str = "explicit"  # "explicit", "fused", or "chosen": as the lesson chooses between the two
    padded: bool = False
    fused_adamw: bool = False
    keep_memory: bool = False


def rungs(device):
    """(name, what it changes, Way) in the order in which one climbs."""
    changes = [("plain", "float32, attention in plain products, 50,257 rows, AdamW tensor by tensor", {})]
    if device == "cuda":
        changes += [("TF32", "float32 products on tensor cores", dict(tf32=True))]
    changes += [("bfloat16", "autocast: matrix products in bfloat16", dict(dtype="bfloat16"))]
    if device == "cuda":
        changes += [("compile", "torch.compile", dict(compile=True))]
    changes += [
        ("fused attention", "scaled_dot_product_attention", dict(attention="fused")),
        ("padded vocabulary", "50,304 rows", dict(padded=True)),
        ("fused AdamW", "one kernel for all tensors", dict(fused_adamw=True)),
    ]
    if device == "cpu":
        changes += [("kept memory", "freed memory stays with the process", dict(keep_memory=True))]
        changes += [("chosen attention", "plain products again where T <= 256", dict(attention="chosen"))]
    way, result = Way(), []
    for name, what, change in changes:
        way = replace(way, **change)
        result.append((name, what, way))
    return result


@contextlib.contextmanager
def running(way):
    """The lesson's own code, with what `way` does not want taken out of it."""
    with contextlib.ExitStack() as stack:
        if way.attention == "explicit":
            plain = lambda q, k, v, **how: train_gpt2.causal_attention(q, k, v)  # noqa: E731
            stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", plain))
        if way.attention == "fused":
            fused = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
            stack.enter_context(mock.patch.object(train_gpt2, "causal_attention", fused))
        if not way.padded:
            stack.enter_context(mock.patch.object(F, "pad", lambda x, *rows, **how: x))
        if not way.keep_memory:
            stack.enter_context(mock.patch.object(train_gpt2, "keep_freed_memory", lambda: None))
        yield


def make_step(way, device, config, B, cfg=None):
    """-> (step, model): step() trains on one batch of B x block_size made tokens. All of it inside running(way)."""
    cfg = cfg or TrainConfig.from_recipe("gpt2")
    rt = train_gpt2.setup_runtime(device, way.dtype, "true" if way.compile else "false")
    if rt.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if way.tf32 else "highest")
    torch.manual_seed(0)
    model = GPT(config).to(rt.device)
    optimizers = configure_optimizers(model, cfg, rt.device)
    if not way.fused_adamw:
        groups = [{name: group[name] for name in ("params", "weight_decay")} for group in optimizers[0].param_groups]
        optimizers = [torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.95), eps=1e-8, fused=False)]
    step_model = compile_and_ddp(model, rt)[1]
    rows = torch.randint(config.vocab_size, (B, config.block_size + 1), generator=torch.Generator().manual_seed(1))
    batches = [(rows[:, :-1], rows[:, 1:])]

    def step():
        loss, _ = train_step(step_model, batches, optimizers, rt, cfg.clip)
        if rt.device.type == "cuda":
            torch.cuda.synchronize()
        return loss

    return step, model


def seconds_of(step):
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def measure(way, device, B, T, steps):
    """In a process of its own: seconds of each step, peak memory in bytes, operations a token."""
    with running(way):
        step, model = make_step(way, device, GPTConfig(block_size=T), B)
        for _ in range(5 if device == "cuda" else 1):
            step()
        times = [seconds_of(step) for _ in range(steps)]
        flops = model.flops_per_token()
    return dict(seconds=times, peak_bytes=peak_memory(device), flops_per_token=flops)


def peak_memory(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_flops(device):
    """Operations a second in bfloat16: of a card that train_gpt2 knows by its data sheet, else of a large product."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    known = [1e12 * tera for card, tera in train_gpt2.PEAK_TFLOPS.items() if card == name]
    return known[0] if known else measured_peak(device, torch.bfloat16)


def measured_peak(device, dtype, repeats=10):
    """Operations a second of the best of some large matrix products."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best


def hardware(device):
    peaks = {name: measured_peak(device, getattr(torch, name)) / 1e9 for name in ("float32", "bfloat16")}
    result = dict(cpu=cpu_name(), threads=torch.get_num_threads(), peak_gflops=peaks)
    if device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    return result | dict(memory_gb_per_s=memory_gb_per_s(device))


def climb(device, B, T, turns, steps):
    """All rungs, turn after turn -> rows of the result file."""
    found = {name: [] for name, _, _ in rungs(device)}
    for _ in range(turns):
        for name, _, way in rungs(device):
            job = json.dumps(dict(way=asdict(way), device=device, B=B, T=T, steps=steps))
            command = [sys.executable, __file__, "--measure", job]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(output.splitlines()[-1]))
            seconds = statistics.median(found[name][-1]["seconds"])
            print(f"{device} {B} x {T} {name}: {B * T / seconds:,.0f} tokens/s", flush=True)
    peak, rows, before = peak_flops(device), [], None
    for name, what, _ in rungs(device):
        seconds = [s for turn in found[name] for s in turn["seconds"]]
        ms = statistics.median(seconds) * 1000
        rates = [B * T / s for s in seconds]
        flops = found[name][0]["flops_per_token"]
        rows.append(dict(
            device=device, B=B, T=T, rung=name, what=what, ms=ms, gain=before / ms if before else None,
            tokens_per_s=dict(median=B * T / ms * 1000, low=min(rates), high=max(rates)),
            mfu=flops * B * T / ms * 1000 / peak, peak_memory_gb=max(t["peak_bytes"] for t in found[name]) / 2**30,
            peak_gflops=peak / 1e9, turns=turns, steps=steps,
        ))  # fmt: skip
        before = ms
    return rows


def print_table(rows):
    print("| device | B x T | rung | tokens/s | ms | times the rung before | MFU | memory, GiB |\n" + "|---" * 8 + "|")
    for r in rows:
        gain = f"{r['gain']:.2f}" if r["gain"] else ""
        print(
            f"| {r['device']} | {r['B']} x {r['T']:,} | {r['rung']} | {r['tokens_per_s']['median']:,.0f} "
            f"| {r['ms']:,.0f} | {gain} | {r['mfu']:.0%} | {r['peak_memory_gb']:.1f} |"
        )


def draw(rows):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shapes = sorted({(r["device"], r["B"], r["T"]) for r in rows})
    figure = Figure(figsize=(4.6 * len(shapes), 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, shape in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        climbed = [r for r in rows if (r["device"], r["B"], r["T"]) == shape]
        rates = [r["tokens_per_s"]["median"] for r in climbed]
        names = [("" if i == 0 else "+ ") + r["rung"] for i, r in enumerate(climbed)]
        bars = axes.barh(names, rates, color="#0072B2")
        axes.bar_label(bars, [f" {r['tokens_per_s']['median']:,.0f}" for r in climbed])
        axes.invert_yaxis()
        axes.set(
            xlabel="tokens a second", title=f"{shape[0]}, {shape[1]} x {shape[2]:,} tokens", xlim=(0, max(rates) * 1.25)
        )
    figure.savefig(RESULTS.with_suffix(".png"))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", help="B x T, such as 4x256")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, help="measured steps a turn (default: 3 on a CPU, 20 on a GPU)")
    parser.add_argument("--draw", action="store_true", help="draw the picture from the result file, measure nothing")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        job = json.loads(args.measure)
        print(json.dumps(measure(Way(**job.pop("way")), **job)))
        return 0
    old = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else dict(rows=[], machines={})
    if not args.draw:
        old["what"] = "training the 124M shape, one change a rung"
        shapes = args.shapes or (["16x1024", "64x1024"] if args.device == "cuda" else ["4x256", "4x1024"])
        old["machines"][args.device] = hardware(args.device) | dict(
            date=time.strftime("%Y-%m-%d"), python=platform.python_version(), torch=torch.__version__
        )
        for B, T in (map(int, shape.split("x")) for shape in shapes):
            rows = climb(args.device, B, T, args.turns, args.steps or (20 if args.device == "cuda" else 3))
            others = [r for r in old["rows"] if (r["device"], r["B"], r["T"]) != (args.device, B, T)]
            old["rows"] = others + rows
            RESULTS.write_text(json.dumps(old, indent=1) + "\n", "utf-8")
    print_table(old["rows"])
    draw(old["rows"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
