"""How good the default run gets, and how fast: bits per byte against tokens and seconds, AdamW beside Muon.

    python tests/benchmarks/bench_quality.py                                    # the Tales, both optimizers, seed 1337
    python tests/benchmarks/bench_quality.py --text shakespeare=my_copy.txt --seeds 1 2 3
    python tests/benchmarks/bench_quality.py --draw                             # only draw the picture again

Each run is the recipe `tales` as it stands, but for data, optimizer and seed; its validations give the curve. Seconds
count training alone, as the log's own milliseconds do. Writes results/quality.json, a run an entry, replacing earlier
entries of the same data, optimizer and seed; and results/quality.png. Run it on a machine that does nothing else.
"""

import argparse
import contextlib
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from hardware import cpu_name

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the line above makes the project importable from anywhere

from train_gpt2 import TrainConfig, train  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "quality.json"
COLORS = {"adamw": "#0072B2", "muon": "#D55E00"}


def run(name, text, optimizer, seed):
    """One run of the recipe -> an entry of the result file."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = TrainConfig.from_recipe("tales", data=str(text), optimizer=optimizer, seed=seed, log_dir=folder)
        start = time.perf_counter()
        events = train(cfg)
        wall = time.perf_counter() - start
        if (name, optimizer, seed) == ("tales", "adamw", TrainConfig.seed):  # the README's picture: the default run
            RESULTS.with_name("tales_loss.png").write_bytes((Path(folder) / "tales" / "loss.png").read_bytes())
    curve, seconds, last = [], 0.0, -1
    for e in events:
        if e["event"] == "train":  # its ms are the mean over the steps since the last one
            seconds, last = seconds + e["ms"] * (e["step"] - last) / 1000, e["step"]
        if e["event"] == "val":
            curve.append(dict(step=e["step"], tokens=e["step"] * cfg.total_batch, seconds=seconds, bpb=e["val_bpb"]))
    parameters = next(e["model"] for e in events if e["event"] == "config")
    samples = [e["text"] for e in events if e["event"] == "sample"][-3:]
    return dict(
        data=name, optimizer=optimizer, seed=seed, final_bpb=curve[-1]["bpb"], train_seconds=curve[-1]["seconds"],
        wall_seconds=wall, curve=curve, samples=samples, model=parameters, threads=torch.get_num_threads(),
        hardware=platform.processor() or platform.machine(), cpu=cpu_name(), torch=torch.__version__,
        python=platform.python_version(), date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip


def print_table(entries):
    print("| data | optimizer | bits per byte (median of seeds) | seconds of training | seeds |\n|---|---|---|---|---|")
    for key in sorted({(e["data"], e["optimizer"]) for e in entries}):
        same = [e for e in entries if (e["data"], e["optimizer"]) == key]
        bpb = statistics.median(e["final_bpb"] for e in same)
        spread = f" ({min(e['final_bpb'] for e in same):.3f} to {max(e['final_bpb'] for e in same):.3f})"
        seconds = statistics.median(e["train_seconds"] for e in same)
        print(f"| {key[0]} | {key[1]} | {bpb:.3f}{spread if len(same) > 1 else ''} | {seconds:.0f} | {len(same)} |")


def draw(entries):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted({e["data"] for e in entries}, reverse=True)
    figure = Figure(figsize=(5 * len(names), 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        labelled = set()  # a name in the legend once, however many seeds
        for e in [e for e in entries if e["data"] == name]:
            points = [(p["seconds"], p["bpb"]) for p in e["curve"] if p["step"] > 0]
            label = None if e["optimizer"] in labelled else e["optimizer"]
            labelled.add(e["optimizer"])
            axes.plot(*zip(*points, strict=True), "o-", markersize=3, color=COLORS[e["optimizer"]], label=label)
        axes.set(xlabel="training time (s, two CPU cores)", ylabel="held-out bits per byte", title=name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(RESULTS.with_suffix(".png"))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", action="append", default=[], help="NAME=PATH of another text; may be repeated")
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--only", help="NAME of the one text to train on")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1337])
    parser.add_argument("--draw", action="store_true", help="draw the picture from the result file, train nothing")
    args = parser.parse_args(argv)
    entries = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    texts = {"tales": ROOT / "input.txt"} | dict(t.split("=", 1) for t in args.text)
    jobs = (
        []
        if args.draw
        else [
            (n, t, o, s)
            for s in args.seeds
            for n, t in texts.items()
            if args.only in (None, n)
            for o in args.optimizers
        ]
    )
    for name, text, optimizer, seed in jobs:
        entry = run(name, text, optimizer, seed)
        key = (name, optimizer, seed)
        entries = [e for e in entries if (e["data"], e["optimizer"], e["seed"]) != key] + [entry]
        print(f"{key}: {entry['final_bpb']:.4f} bits per byte in {entry['train_seconds']:.0f} s", flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(entries, indent=1), "utf-8")
    print_table(entries)
    draw(entries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
