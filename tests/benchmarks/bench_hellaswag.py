"""How many HellaSwag items a second, beside the plain loop that most scripts have, and how much memory.

    python tests/benchmarks/bench_hellaswag.py                  # prints a table, writes results/hellaswag.json
    python tests/benchmarks/bench_hellaswag.py --device cuda --items 2048

The plain loop reads each item as four padded rows, context and ending, and computes all logits of all four, one item
after another, each under an autocast of its own; "outer" is the same loop with one autocast round all of it, which
spares bfloat16 a cast of all weights for every item. All get the same random weights of the 124M shape and the same
made items: a context of 29 tokens in the mean and endings of 14, as in the validation set. They take turns in one
process (plain, outer, fast, plain, ...); the table has the median of the items a second, the lowest and the highest.
Memory is the peak of a fresh process that scores so many items, and of one that has only loaded the model.
"""

import argparse
import contextlib
import copy
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from hardware import cpu_name
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from generate import pack_weights  # noqa: E402  the line above makes the project importable from anywhere
from hellaswag import Example, evaluate  # noqa: E402
from train_gpt2 import GPT, GPTConfig  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "hellaswag.json"
MEMORY_ITEMS = (0, 32, 256, 1024)


class Numbers:
    """In place of a tokenizer: the texts of this benchmark are token ids in decimal."""

    name, n_vocab = "numbers", 50257

    def encode_ordinary(self, text):
        return [int(word) for word in text.split()]


def made_items(count, seed=2):
    """Items whose lengths are spread as in the data set, made the same on every machine."""
    rng = random.Random(seed)

    def text(mean):
        return " ".join(str(rng.randrange(50257)) for _ in range(max(1, round(mean))))

    items = []
    for i in range(count):
        context, length = text(rng.gammavariate(4, 29 / 4)), rng.gammavariate(4, 14 / 4)
        endings = tuple(text(length * rng.uniform(0.6, 1.4)) for _ in range(4))
        items.append(Example(i, "", context, "", context, endings, i % 4))
    return items


def ready(model, device, dtype):
    """The model as hellaswag.py runs it: on a CPU in float32 with packed weights."""
    return pack_weights(model) if device.type == "cpu" and dtype == torch.float32 else model


@torch.no_grad()
def plain_loop(model, items, encoding, device, autocast=contextlib.nullcontext):
    """Four padded rows an item, all of their logits, one item after another: the mean loss of each ending."""
    results = []
    for item in items:
        context, endings = encoding.encode_ordinary(item.context), [encoding.encode_ordinary(e) for e in item.endings]
        tokens = torch.zeros(4, len(context) + max(map(len, endings)), dtype=torch.long)
        scored = torch.zeros(tokens.shape)
        for k, ending in enumerate(endings):
            end = len(context) + len(ending)
            tokens[k, :end], scored[k, len(context) : end] = torch.tensor(context + ending), 1
        tokens, scored = tokens.to(device), scored[:, 1:].to(device)
        with autocast():
            logits, _ = model(tokens)
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(4, -1)
        results.append(((losses * scored).sum(1) / scored.sum(1)).tolist())
    return results


def measure(model, dtype, device, items, repeats):
    """The rates of the three in turn, after one turn to warm up, and how far the losses of the fast one are off."""
    encoding, losses = Numbers(), {}
    fast_model = ready(copy.deepcopy(model), device, dtype)

    def autocast():
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def outer():
        with autocast():
            return plain_loop(model, items, encoding, device)

    runs = {
        "plain": lambda: plain_loop(model, items, encoding, device, autocast),
        "outer": outer,
        "fast": lambda: evaluate(fast_model, items, encoding, autocast=autocast),
    }
    if dtype == torch.float32:
        del runs["outer"]  # nothing is cast
    rates = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            losses[name] = run()  # ends with numbers on the CPU, so a GPU has finished too
            if turn:
                rates[name].append(len(items) / (time.perf_counter() - begin))
    difference = torch.tensor(losses["plain"]) - torch.tensor([item["losses"] for item in losses["fast"]["items"]])
    row = {"dtype": str(dtype)[6:], "items": len(items), "repeats": repeats}
    for name, r in rates.items():
        row[name] = {"median": round(statistics.median(r), 2), "low": round(min(r), 2), "high": round(max(r), 2)}
    for name in rates.keys() - {"fast"}:
        row[f"times_{name}"] = round(row["fast"]["median"] / row[name]["median"], 2)
    row["largest_difference_nats"] = float(f"{difference.abs().max().item():.1e}")
    return row


def peak_memory(count, device):
    """Bytes at the peak of a fresh process that scores `count` items in float32."""
    import resource  # not on Windows

    model = ready(GPT(GPTConfig()).to(device), device, torch.float32)
    evaluate(model, made_items(count), Numbers())
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--no_memory", action="store_true", help="leave the memory out: it takes minutes on a CPU")
    parser.add_argument("--memory_of", type=int, help="internal: print the peak in bytes for so many items")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory_of is not None:
        print(peak_memory(args.memory_of, args.device))
        return 0
    model, items = GPT(GPTConfig()).to(args.device), made_items(args.items)
    machine = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else cpu_name()
    report = {
        "what": "HellaSwag items a second, 124M shape", "machine": machine, "threads": args.threads,
        "date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "torch": torch.__version__, "rows": [],
    }  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        row = measure(model, dtype, args.device, items, args.repeats)
        report["rows"].append(row)
        print(json.dumps(row))
    if not args.no_memory:
        report["peak_memory_mb"] = {}
        for count in MEMORY_ITEMS:
            options = ["--memory_of", count, "--device", args.device, "--threads", args.threads]
            command = [sys.executable, __file__, *map(str, options)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            report["peak_memory_mb"][str(count)] = round(int(output) / 2**20)
        print("peak memory in MB by items scored:", report["peak_memory_mb"])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
