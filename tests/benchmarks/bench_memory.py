"""What training takes in memory: measured, for memory_table.py to be checked against. CPU and gloo; no GPU needed.

    python tests/benchmarks/bench_memory.py                 # all but the large model: two minutes, 6 GB
    python tests/benchmarks/bench_memory.py --large 1 2     # only that, in one process and in two; 16 and 22 GB

Three things, into results/memory.json:
    optimizer    bytes of AdamW's state in each of two processes, plain and with --zero, for gpt2
    activations  bytes that autograd keeps from the forward pass for the backward pass (each storage once, weights not
                 counted, but for their casts to bfloat16), and how far the process grew in both passes, with and
                 without --activation_checkpointing
    large        one step of gpt2-large on 1,024 tokens with both options
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from hardware import cpu_name

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
import train_gpt2  # noqa: E402  the line above makes the project importable from anywhere
from train_gpt2 import GPT, GPTConfig, TrainConfig, configure_optimizers, setup_runtime  # noqa: E402

RESULTS = HERE / "results/memory.json"
GIB = 2**30


def peak_bytes():
    """The most memory that this process has had since reset_peak."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


def of_all(rt, number):
    """A whole number of each process -> the list of all of them, by rank, in every process."""
    return [int(n) for n in rt.sum([number if rank == rt.rank else 0 for rank in range(rt.world_size)])]


def state_bytes(optimizer):
    local = getattr(optimizer, "optim", optimizer)  # with --zero: the part that is ours
    return sum(v.numel() * v.element_size() for s in local.state.values() for v in s.values() if v.dim())


def optimizer(preset, zero):
    """In one of two processes: a step with gradients of zero, then what the optimizer holds."""
    rt = setup_runtime("cpu", "float32")
    model = GPT(GPTConfig.from_name(preset))
    cfg = TrainConfig.from_recipe(preset, zero=zero)
    [adamw] = configure_optimizers(model, cfg, rt.device)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    adamw.step()
    held = of_all(rt, state_bytes(adamw))
    dist.destroy_process_group()
    return dict(preset=preset, zero=zero, processes=rt.world_size, bytes=held)


def activations(preset, T, dtype, checkpointing):
    """One sequence: what the forward pass keeps, and the growth of the process over both passes."""
    torch.manual_seed(0)
    model = GPT(GPTConfig.from_name(preset, block_size=T))
    model.activation_checkpointing = checkpointing
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # there already, as after the first micro-step
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randint(model.config.vocab_size, (1, T))
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    for _ in range(2):  # the second time, the libraries have all they need
        reset_peak()
        before = peak_bytes()
        with autocast():
            loss = model(x, x)[1]
        loss.backward()
        growth = peak_bytes() - before
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast():
        loss = model(x, x)[1]  # held, so that what is kept is there to be counted
    case = dict(preset=preset, T=T, dtype=dtype, checkpointing=checkpointing)
    return dict(case, kept_bytes=sum(kept.values()), growth_bytes=growth)


def large(preset="gpt2-large"):
    """One step with both options; nothing is saved. Seconds, the largest process, and the sum over processes."""
    rt = setup_runtime("cpu", "auto")
    torch.manual_seed(0)
    cfg = TrainConfig.from_recipe(preset, zero=True, activation_checkpointing=True)
    model = GPT(GPTConfig.from_name(preset))
    model.activation_checkpointing = True
    optimizers = configure_optimizers(model, cfg, rt.device)
    step_model = train_gpt2.compile_and_ddp(model, rt)[1]
    x = torch.randint(model.config.vocab_size, (1, model.config.block_size))
    begin = time.perf_counter()
    loss = train_gpt2.train_step(step_model, [(x, x)], optimizers, rt, cfg.clip)[0]
    seconds = time.perf_counter() - begin
    peaks = of_all(rt, peak_bytes())
    dtype, losses = str(rt.dtype)[6:], rt.sum([float(loss)])
    dist.destroy_process_group()
    return dict(
        preset=preset, T=model.config.block_size, micro_batch=1, processes=rt.world_size, dtype=dtype,
        threads=torch.get_num_threads(), seconds=round(seconds, 1), peak_bytes=peaks, loss=losses[0] / rt.world_size,
    )  # fmt: skip


def in_processes(count, name, **arguments):
    """Calls the function of that name in new processes, so that each measures itself only; returns rank 0's answer."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        place = dict(WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]))
    place["OMP_NUM_THREADS"] = str(max(1, os.cpu_count() // count))
    command = [sys.executable, __file__, "--call", json.dumps([name, arguments])]
    workers = [
        subprocess.Popen(
            command, env=dict(os.environ, **place, RANK=str(r), LOCAL_RANK=str(r)), stdout=subprocess.PIPE, text=True
        )
        for r in range(count)
    ]
    answers = [w.communicate()[0] for w in workers]
    if any(w.returncode for w in workers):
        raise RuntimeError(f"{name} {arguments}: a process ended with {[w.returncode for w in workers]}")
    print(name, answers[0].strip(), flush=True)
    return json.loads(answers[0])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--large", nargs="+", type=int, default=[], help="only gpt2-large, in so many processes each")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.call:
        name, arguments = json.loads(args.call)
        print(json.dumps(globals()[name](**arguments)))
        return 0
    old = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    if args.large:
        rest = [r for r in old["large"] if r["processes"] not in args.large]
        old["large"] = sorted(rest + [in_processes(n, "large") for n in args.large], key=lambda r: r["processes"])
        RESULTS.write_text(json.dumps(old, indent=1) + "\n", "utf-8")
        return 0
    cases = [("gpt2", 1024, "float32"), ("gpt2", 1024, "bfloat16"), ("gpt2-medium", 512, "float32")]
    cases += [("gpt2-medium", 512, "bfloat16")]
    result = dict(
        date=str(date.today()), torch=torch.__version__, python=sys.version.split()[0], cpu=cpu_name(),
        optimizer=[in_processes(2, "optimizer", preset="gpt2", zero=zero) for zero in (False, True)],
        activations=[
            in_processes(1, "activations", preset=preset, T=T, dtype=dtype, checkpointing=checkpointing)
            for preset, T, dtype in cases
            for checkpointing in (False, True)
        ],
        large=old.get("large", []),
    )  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
