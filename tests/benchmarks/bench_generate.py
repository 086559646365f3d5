"""How fast text is generated, beside transformers' generate() with its cache: GPT-2's 124M shape with random weights.

    python tests/benchmarks/bench_generate.py                   # prints its rows, writes results/generate.json
    python tests/benchmarks/bench_generate.py --dtypes bfloat16 # only these rows; the file keeps its others
    python tests/benchmarks/bench_generate.py --positions_only  # only the last table
    python tests/benchmarks/bench_generate.py --device cuda --no_save

Each repeat times all ways one after the other, A B C A B C, in this process, so that a machine that slows down slows
all of them; it prints the median, the file has the best and the worst too. A way is one of:

    plain         GPT.generate with the model as it is
    packed        the same after generate.pack_weights, as generate.py runs it on a CPU
    transformers  GPT2LMHeadModel.generate

"limit" is what memory allows: each token reads all weights once, and a row of the batch costs nothing more. Last
come the milliseconds of a token by its position, and beside them what attention over so many keys costs alone, when
the keys are not in the processor's cache: all weights have gone through it since the last token.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

from hardware import cpu_name, memory_gb_per_s

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the line above makes the project importable from anywhere
from torch.nn import functional as F  # noqa: E402

from generate import pack_weights  # noqa: E402
from train_gpt2 import GPT, GPTConfig  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "generate.json"
PROMPT, NEW = 16, 128  # tokens


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def make_models(dtype, device):
    """The three ways, each with weights of its own so that none finds another's in the cache."""
    import transformers

    def ours():
        torch.manual_seed(0)
        return GPT(GPTConfig.from_name("gpt2")).to(device, dtype).eval()

    models = {"plain": ours(), "transformers": transformers.GPT2LMHeadModel(transformers.GPT2Config())}
    models["transformers"].to(device, dtype).eval()
    if torch.device(device).type == "cpu":
        models["packed"] = pack_weights(ours())
    return models


def generate(model, idx, temperature):
    """NEW more tokens: greedy at temperature 0, else drawn from the 50 likeliest."""
    if isinstance(model, GPT):
        out = model.generate(idx, NEW, temperature, top_k=50 if temperature else None)
    else:
        how = dict(do_sample=True, temperature=temperature, top_k=50) if temperature else dict(do_sample=False)
        length = dict(max_new_tokens=NEW, min_new_tokens=NEW)
        out = model.generate(idx, attention_mask=torch.ones_like(idx), pad_token_id=50256, **length, **how)
    assert out.shape == (idx.size(0), PROMPT + NEW)


def compare(models, dtype, device, repeats, bandwidth):
    """Tokens/s of every way, for a batch of 1 and of 8, greedy and sampled."""
    rows = []
    for B in (1, 8):
        idx = torch.randint(0, 50257, (B, PROMPT), device=device)
        for temperature in (0.0, 1.0):
            rate = {name: [] for name in models}  # tokens/s
            for repeat in range(repeats + 1):
                for name, model in models.items():
                    time_s = seconds(lambda: generate(model, idx, temperature))  # noqa: B023  called at once
                    if repeat:  # the first one warms up
                        rate[name].append(B * NEW / time_s)
            ours = rate.get("packed", rate["plain"])
            ratios = [a / b for a, b in zip(ours, rate["transformers"], strict=True)]
            row = dict(dtype=str(dtype)[6:], batch=B, how="sampled" if temperature else "greedy")
            for name, r in rate.items():
                row[name] = dict(median=statistics.median(r), best=max(r), worst=min(r))
            row["ratio"] = dict(median=statistics.median(ratios), best=max(ratios), worst=min(ratios))
            if bandwidth:
                row["limit"] = B * bandwidth * 1e9 / (124_439_808 * dtype.itemsize)
            rows.append(row)
            show_row(row)
    return rows


def cold_seconds(function, others):
    """Seconds of a call after many other numbers were read."""
    others.sum().item()
    return seconds(function)


@torch.no_grad()
def by_position(model, dtype, device, repeats, width=128):
    """Milliseconds of a token in each stretch of the block, and attention's part of them."""
    config, times = model.config, []
    for _ in range(repeats):
        begin, run = time.perf_counter(), []
        for _ in model.stream(torch.zeros(1, 1, dtype=torch.long, device=device), config.block_size, temperature=0):
            now = time.perf_counter()
            run.append((now - begin) * 1000)
            begin = now
        times.append(run)
    rows = []
    for start in range(0, config.block_size, width):
        whole = statistics.median(t for run in times for t in run[max(start, 1) : start + width])
        rows.append(dict(dtype=str(dtype)[6:], position=start + width // 2, ms=whole))
    hs, nh = config.n_embd // config.n_head, config.n_head
    keys, values = torch.randn(2, config.n_layer, 1, nh, config.block_size, hs, dtype=dtype, device=device)
    q = torch.randn(1, nh, 1, hs, dtype=dtype, device=device)
    others = torch.ones(100_000_000, device=device)  # 400 MB, like the weights
    for row in rows:
        T = row["position"]
        alone = lambda T=T: [  # noqa: E731
            F.scaled_dot_product_attention(q, k[:, :, :T], v[:, :, :T]) for k, v in zip(keys, values, strict=True)
        ]
        row["attention_ms"] = statistics.median(cold_seconds(alone, others) for _ in range(20)) * 1000
        print("{dtype} position {position}: {ms:.2f} ms, attention {attention_ms:.2f} ms".format(**row), flush=True)
    return rows


def show_row(row):
    ways = [name for name in ("plain", "packed", "transformers") if name in row]
    cells = ", ".join(f"{name} {row[name]['median']:.1f}" for name in ways)
    limit = f", limit {row['limit']:.0f}" if "limit" in row else ""
    ratio = f"{row['ratio']['median']:.2f} times transformers"
    print(f"{row['dtype']} batch {row['batch']} {row['how']}: {cells}{limit} tokens/s; {ratio}", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--positions_only", action="store_true", help="only the times by position")
    parser.add_argument("--no_save", action="store_true", help="leave results/generate.json as it is")
    args = parser.parse_args(argv)
    import transformers

    on_cpu = torch.device(args.device).type == "cpu"
    bandwidth = memory_gb_per_s() if on_cpu else None
    old = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else dict(rows=[], positions=[])
    rows, positions = ([r for r in old[key] if r["dtype"] not in args.dtypes] for key in ("rows", "positions"))
    rows = old["rows"] if args.positions_only else rows
    for name in args.dtypes:
        dtype = getattr(torch, name)
        models = make_models(dtype, args.device)
        if not args.positions_only:
            rows += compare(models, dtype, args.device, args.repeats, bandwidth)
        positions += by_position(models.get("packed", models["plain"]), dtype, args.device, 3)
    hardware = dict(cpu=cpu_name(), threads=torch.get_num_threads(), memory_gb_per_s=bandwidth)
    if not on_cpu:
        hardware["gpu"] = torch.cuda.get_device_name()
    result = dict(
        what="tokens/s of generating 128 tokens after 16, GPT-2's 124M shape, random weights",
        date=time.strftime("%Y-%m-%d"),
        hardware=hardware,
        versions=dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__),
        repeats=old.get("repeats") if args.positions_only else args.repeats, rows=rows, positions=positions,
    )  # fmt: skip
    if not args.no_save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {RESULTS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
