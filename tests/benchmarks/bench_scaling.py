"""Bigger or longer? GPT-2s of seven sizes, each trained on several numbers of tokens of input.txt, and what came of it.

    python tests/benchmarks/bench_scaling.py                # about eight minutes on one core; goes on where it stopped
    python tests/benchmarks/bench_scaling.py --again        # forget what was measured and do it all once more
    python tests/benchmarks/bench_scaling.py --table        # only print the table of the result file

Width and depth grow together; everything else is the same for all: tokenizer, batch, context, float32, Muon (with so
few tokens AdamW leaves the larger sizes half-trained, and then size makes little difference), and a cosine that ends
at the run's own last step (as Hoffmann et al. 2022 advise, arXiv 2203.15556, section 3.1). The peak learning rate
falls with the width, by a rule that the runs called "lr" try out at two sizes: half and double of what it says. The
longest run reads the text three times, which is nearly as good as new text (Muennighoff et al. 2023, arXiv
2305.16264). The length that all sizes share is made with three seeds.

Losses, not times, are the result: it may run beside other work. Writes results/scaling.json after every run; lesson 10
reads it, and each of its entries holds all that train_gpt2.TrainConfig needs to be run again.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from hardware import cpu_name

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the line above makes the project importable from anywhere

from train_gpt2 import GPT, GPTConfig, TrainConfig, load_data, train  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "scaling.json"
SIZES = [(1, 32), (2, 32), (2, 48), (2, 64), (3, 80), (4, 96), (4, 128)]  # (n_layer, n_embd); the last is held out
STEPS = [128, 256, 512]  # of 512 tokens: 0.2 to 0.8 passes over the text
LONGER = {0: [1024, 2048], 1: [1024, 2048], 2: [1024], 3: [1024]}  # small ones at the price of larger ones
SEEDS = [1, 2, 3]  # of the runs of STEPS[-1]; the others have the first
COMMON = dict(
    data="input.txt", vocab_size=1024, block_size=128, micro_batch=4, total_batch=512, optimizer="muon", min_lr=0.0,
    weight_decay=0.1, device="cpu", dtype="float32", sample_every=0, save_every=0, val_tokens=200_000,
)  # fmt: skip


def learning_rate(n_embd):
    return 0.014 * math.sqrt(32 / n_embd)


def planned():
    """The runs, the first seed before the others, the cheap before the dear: (kind, settings beside COMMON)."""
    jobs = []
    for i, (layers, width) in enumerate(SIZES):
        for steps in STEPS + LONGER.get(i, []):
            for seed in SEEDS if steps == STEPS[-1] else SEEDS[:1]:
                jobs.append(("size and length", settings(layers, width, steps, seed)))
    for layers, width in (SIZES[2], SIZES[-3]):
        for factor in (0.5, 2.0):
            jobs.append(("lr", settings(layers, width, STEPS[1], SEEDS[0], factor)))
    price = lambda s: s["n_layer"] * s["n_embd"] ** 2 * s["max_steps"]  # noqa: E731
    return sorted(jobs, key=lambda job: (job[1]["seed"], price(job[1])))


def settings(n_layer, n_embd, max_steps, seed, factor=1.0):
    way_points = max_steps // 4 if (max_steps, seed) == (STEPS[-1], SEEDS[0]) else 0  # 0: only at the end
    return dict(
        n_layer=n_layer, n_head=max(1, n_embd // 32), n_embd=n_embd, max_steps=max_steps, warmup_steps=max_steps // 16,
        lr=round(factor * learning_rate(n_embd), 6), val_every=way_points, seed=seed,
    )  # fmt: skip


def measure(kind, job):
    """One run -> an entry of the result file."""
    unread = mock.patch("train_gpt2.sample_texts", lambda *args, **kwargs: [])  # they take time, and nobody reads them
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), unread:
        cfg = TrainConfig.from_recipe("tales", **COMMON, **job, log_dir=folder)
        begin = time.process_time()
        events = train(cfg)
        seconds = time.process_time() - begin
    if events[-1]["event"] != "checkpoint" or events[-1]["step"] < cfg.max_steps:
        raise SystemExit("stopped; the same command goes on")  # Ctrl-C reached train(), which ends its run in order
    start = next(e for e in events if e["event"] == "config")
    model = GPT(GPTConfig(**start["model"]))
    embeddings = sum(getattr(model.transformer, name).weight.numel() for name in ("wte", "wpe"))
    tokens = job["max_steps"] * cfg.total_batch
    last = [e["loss"] for e in events if e["event"] == "train"][-16:]
    curve = [dict(tokens=e["step"] * cfg.total_batch, val_loss=e["val_loss"]) for e in events if e["event"] == "val"]
    final = [e for e in events if e["event"] == "val"][-1]
    return dict(
        kind=kind, settings=job, parameters=model.num_params(), non_embedding=model.num_params() - embeddings,
        tokens=tokens, flops=tokens * model.flops_per_token(), val_loss=final["val_loss"], val_bpb=final["val_bpb"],
        train_loss=statistics.mean(last), curve=curve, cpu_seconds=round(seconds, 1),
    )  # fmt: skip


def text_facts():
    """Tokens of the text that is read and of what is held out."""
    with tempfile.TemporaryDirectory() as folder:
        data = load_data(TrainConfig.from_recipe("tales", **COMMON), Path(folder))
    return dict(train_tokens=len(data.train), val_tokens=len(data.val), val_bytes=data.val_bytes)


def write(result):
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    os.replace(temporary, RESULTS)


def print_table(runs):
    print("| layers x width | parameters without embeddings | tokens | FLOP | val loss, nats | bits per byte | seeds |")
    print("|---" * 7 + "|")
    keys = {(r["non_embedding"], r["tokens"]) for r in runs if r["kind"] == "size and length"}
    for n, tokens in sorted(keys):
        same = [r for r in runs if (r["kind"], r["non_embedding"], r["tokens"]) == ("size and length", n, tokens)]
        loss, bpb = (statistics.mean(r[name] for r in same) for name in ("val_loss", "val_bpb"))
        shape = f"{same[0]['settings']['n_layer']} x {same[0]['settings']['n_embd']}"
        print(f"| {shape} | {n:,} | {tokens:,} | {same[0]['flops']:.1e} | {loss:.3f} | {bpb:.3f} | {len(same)} |")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--again", action="store_true", help="measure everything anew")
    parser.add_argument("--table", action="store_true", help="print the table of the result file, train nothing")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    known = json.loads(RESULTS.read_text("utf-8"))["runs"] if RESULTS.exists() and not args.again else []
    if not args.table:
        torch.set_num_threads(args.threads)
        jobs = planned()
        runs = [r for r in known if (r["kind"], r["settings"]) in jobs]  # what was measured in another way is no use
        result = dict(
            what="held-out loss of GPT-2s of several sizes, each trained on several numbers of tokens",
            date=time.strftime("%Y-%m-%d"), hardware=dict(cpu=cpu_name(), threads=args.threads),
            versions=dict(python=platform.python_version(), torch=torch.__version__),
            text=text_facts(), common=COMMON, runs=runs,
        )  # fmt: skip
        for kind, job in jobs:
            if any((r["kind"], r["settings"]) == (kind, job) for r in runs):
                continue
            runs.append(measure(kind, job))
            print(f"{kind} {job}: {runs[-1]['val_loss']:.4f} nats, {runs[-1]['cpu_seconds']} s", flush=True)
            write(result)
        known = runs
    print_table(known)
    return 0


if __name__ == "__main__":
    sys.exit(main())
