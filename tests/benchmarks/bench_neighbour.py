"""What a busy neighbour costs: ms of a step of the default run, alone and beside a program that keeps a core busy.

    python tests/benchmarks/bench_neighbour.py

For each way of waiting that OpenMP can be told before torch is imported (train_gpt2.py sets GOMP_SPINCOUNT), a fresh
process does steps in blocks; the neighbour runs during every other block. Writes results/neighbour.json. Linux only:
there torch waits with GNU's libgomp. Run it on a machine that does nothing else.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from hardware import cpu_name

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "neighbour.json"
WAYS = {
    "as torch comes": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (1000, 2000, 5000, 10_000, 30_000)},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BLOCKS, STEPS, QUICK = 6, 30, 5  # blocks of each kind, steps in a quiet block and in a disturbed one
NEIGHBOUR = [sys.executable, "-c", "while True: pass"]


def measure():
    """In a process of its own: the ms of a step in quiet blocks and in blocks beside a neighbour, as JSON."""
    sys.path.insert(0, str(ROOT))
    import torch  # before train_gpt2, which then comes too late to ask for anything

    from train_gpt2 import GPT, GPTConfig, TrainConfig, configure_optimizers, setup_runtime, train_step

    cfg, rt = TrainConfig(), setup_runtime()
    model = GPT(GPTConfig.from_name("tales"))
    optimizers = configure_optimizers(model, cfg, rt.device)
    T = model.config.block_size
    x = torch.randint(0, model.config.vocab_size, (cfg.total_batch // T, T), generator=torch.Generator().manual_seed(1))
    found = {"quiet": [], "beside": []}
    for block in range(2 * BLOCKS + 1):  # the first one warms up
        kind = ("beside", "quiet")[block % 2]
        neighbour = subprocess.Popen(NEIGHBOUR) if kind == "beside" and block else None
        time.sleep(0.2)
        begin, steps = time.perf_counter(), QUICK if neighbour else STEPS
        for _ in range(steps):
            train_step(model, [(x, x)], optimizers, rt, cfg.clip)
        ms = (time.perf_counter() - begin) * 1000 / steps
        if neighbour:
            neighbour.kill()
            neighbour.wait()
        if block:
            found[kind].append(ms)
    print(json.dumps(dict(found, threads=torch.get_num_threads(), torch=torch.__version__, dtype=str(rt.dtype)[6:])))


def main():
    rows = []
    for way, settings in WAYS.items():
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        environment = {k: v for k, v in os.environ.items() if k not in names}
        command = [sys.executable, __file__, "--measure"]
        done = subprocess.run(command, env=environment | settings, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        quiet, beside = (statistics.median(found[kind]) for kind in ("quiet", "beside"))
        spread = {kind: [min(found[kind]), max(found[kind])] for kind in ("quiet", "beside")}
        rows.append(dict(way=way, quiet_ms=quiet, beside_ms=beside, spread=spread, threads=found["threads"]))
        print(f"{way:<24} quiet {quiet:7.1f} ms   beside a busy program {beside:7.1f} ms", flush=True)
    result = dict(rows=rows, cpu=cpu_name(), cores=os.cpu_count(), torch=found["torch"], dtype=found["dtype"])
    result |= dict(blocks=BLOCKS, python=platform.python_version(), date=time.strftime("%Y-%m-%d"))
    RESULTS.write_text(json.dumps(result, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(measure() if sys.argv[1:] == ["--measure"] else main())
