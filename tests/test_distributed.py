"""Many processes do what one does: the same gradients, losses and scores; and a run goes on when one of them dies.

Two workers are started once and answer most questions (`pair_of_workers`); the other tests start torchrun.
Run: pytest tests/test_distributed.py
"""

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import zlib
from pathlib import Path

import pytest
import torch
from tiny_runs import T, losses, options, tiny, write_shards

import hellaswag
import train_gpt2
from train_gpt2 import (
    GPT,
    DataLoaderLite,
    GPTConfig,
    UserError,
    checkpoints,
    compile_and_ddp,
    configure_optimizers,
    evaluate,
    largest_micro_batch,
    load_checkpoint,
    load_data,
    read_log,
    setup_runtime,
    train,
    train_step,
)

ROOT = Path(__file__).resolve().parent.parent
ITEMS = ROOT / "tests/data/hellaswag_items.jsonl"
SMALL = GPTConfig(block_size=T, vocab_size=300, n_layer=2, n_head=2, n_embd=32)
CLOSE = dict(rtol=1e-5, atol=1e-7)  # float32, and another order of sums


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def environment(**more):
    return dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), **more)


def start(command, says, environment):
    """A process whose output goes to the file `says`."""
    with open(says, "w", encoding="utf-8") as f:
        return subprocess.Popen(command, env=environment, stdout=f, stderr=subprocess.STDOUT)


def finish(processes, limit=600):
    """Waits for all of them, and ends those that are left when one has failed."""
    end = time.monotonic() + limit
    while any(p.poll() is None for p in processes):
        if time.monotonic() > end or any(p.poll() for p in processes):
            time.sleep(1.0)  # perhaps the others fail too, and say why
            for p in processes:
                p.kill()
                p.wait()
        time.sleep(0.05)


# ---- What the two workers do, and what a single process does for comparison ----------------------------------------
class Recorder:
    """Stands where train_step expects an optimizer, and keeps the gradients that it is to step with."""

    def __init__(self, model):
        self.model, self.gradients = model, None

    def step(self):
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters()}

    def zero_grad(self, set_to_none=True):
        self.model.zero_grad(set_to_none)


def sync_around_backward_only(model, batches, optimizers, rt, clip):
    """Broken: no_sync does not enclose the forward pass, where DDP decides; so every micro-step exchanges gradients."""
    for i, (x, y) in enumerate(batches):
        _, loss = model(x, y)
        with contextlib.nullcontext() if i == len(batches) - 1 else model.no_sync():
            (loss / len(batches)).backward()
    optimizers[0].step()


def flag_between_forward_and_backward(model, batches, optimizers, rt, clip):
    """Broken: the flag is set after the forward pass, so it counts for the next one, and the last is not synced."""
    for i, (x, y) in enumerate(batches):
        _, loss = model(x, y)
        model.require_backward_grad_sync = i == len(batches) - 1
        (loss / len(batches)).backward()
    optimizers[0].step()


def not_divided(model, batches, optimizers, rt, clip):
    """Broken: the gradients of the micro-batches are added up, not averaged."""
    for i, (x, y) in enumerate(batches):
        with contextlib.nullcontext() if i == len(batches) - 1 else model.no_sync():
            _, loss = model(x, y)
            loss.backward()
    optimizers[0].step()


STEPS = (train_step, sync_around_backward_only, flag_between_forward_and_backward, not_divided)


def gradients(step_function, shards, rt, micro_steps):
    """Of three steps from the same weights, the last: loss summed over processes, gradients, and how often DDP sent
    gradients to the others."""
    torch.manual_seed(0)
    model = GPT(SMALL)
    step_model = compile_and_ddp(model, rt)[1]
    sent = []
    if rt.world_size > 1:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        def counting_hook(group, bucket):
            sent.append(bucket.index())
            return allreduce_hook(group, bucket)

        step_model.register_comm_hook(None, counting_hook)
    tokens = load_data(tiny(shards, "unused"), None).train
    loader = DataLoaderLite(tokens, 2, T, micro_steps, rt.rank, rt.world_size)
    recorder = Recorder(model)
    for step in range(3):
        sent.clear()
        batches = [loader.batch(step, i) for i in range(micro_steps)]
        result = step_function(step_model, batches, [recorder], rt, clip=1e9)
        if step < 2:
            recorder.zero_grad()
    total = rt.sum([float(result[0])])[0] / rt.world_size if result else 0.0
    return dict(loss=total, gradients=recorder.gradients, sent=len(sent))


def validations(shards, rt):
    torch.manual_seed(0)
    model = GPT(SMALL)
    tokens = load_data(tiny(shards, "unused"), None).val
    return [evaluate(model, tokens, B, T, max_tokens, rt) for B in (1, 3, 4) for max_tokens in (33, 450, 10**6)]


def training(shards, log_dir, **overrides):
    """A whole run, as events; losses and scores only."""
    events = train(tiny(shards, log_dir, **overrides))
    return [
        {k: v for k, v in e.items() if k not in ("ms", "tokens_per_s", "path")}
        for e in events
        if e["event"] not in ("config", "sample")  # samples are rank 0's alone
    ]


@contextlib.contextmanager
def muon_in_float32():
    """Muon orthogonalises in bfloat16, whose 8 bits make a difference in the 24th one of 2**16 times its size wherever
    it falls on the edge between two numbers. In this block .bfloat16() only copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
        yield


def optimizer_bytes(zero, rt):
    """What the optimizer's state takes in this process after a step, next to the parameters."""
    torch.manual_seed(0)
    model = GPT(SMALL)
    (optimizer,) = configure_optimizers(model, tiny(".", ".", zero=zero), "cpu")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    states = (optimizer.optim if zero else optimizer).state.values()
    return sum(v.numel() * v.element_size() for state in states for v in state.values() if v.dim())


def caught(function, *args):
    try:
        function(*args)
    except UserError as e:
        return [str(e), e.hint]
    return ["nothing was raised"]


class ModelThatFits(torch.nn.Module):
    """A stand-in for a GPT on a card whose memory holds `most` sequences."""

    def __init__(self, most):
        super().__init__()
        self.config, self.most, self.weight = SMALL, most, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, targets):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("stand-in")
        return None, self.weight * 1.0


def micro_batch_on_cards(most, rt):
    """largest_micro_batch, where this process's card holds `most` sequences. There is no card: tensors stay here."""
    card = types.SimpleNamespace(device=types.SimpleNamespace(type="cuda"), autocast=contextlib.nullcontext, any=rt.any)
    zeros = torch.zeros
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros", lambda *sizes, device=None, **how: zeros(*sizes, **how))
        return largest_micro_batch(ModelThatFits(most), 64, card)


def pair_of_workers(shards, out, ports):
    """Everything that two processes are asked; each leaves its answers in out/rank<r>.pt."""
    ports = iter(ports)
    rank = int(os.environ["RANK"])
    hellaswag.default_path = lambda split: ITEMS
    train_gpt2.plot = lambda run_dir: True

    @contextlib.contextmanager
    def joined():
        os.environ["MASTER_PORT"] = next(ports)
        rt = setup_runtime("cpu", "float32")
        yield rt
        torch.distributed.destroy_process_group()

    def run(name, **overrides):
        os.environ["MASTER_PORT"] = next(ports)
        return training(shards, out / name, **overrides)

    answers = {}
    with joined() as rt:
        answers["gradients"] = {f.__name__: gradients(f, shards, rt, micro_steps=2) for f in STEPS}
        answers["gradients, one micro-step"] = gradients(train_step, shards, rt, micro_steps=1)
        answers["validations"] = validations(shards, rt)
        answers["optimizer bytes"] = [optimizer_bytes(zero, rt) for zero in (False, True)]
        answers["micro-batch"] = micro_batch_on_cards((8, 4)[rank], rt)
        answers["too little memory"] = caught(micro_batch_on_cards, (8, 0)[rank], rt)

    answers["plain"] = run("plain", hellaswag_every=6)
    with recorded_generators() as answers["generators"]:
        answers["dropout"] = run("dropout", dropout=0.1)
    with recorded_generators() as answers["generators, resumed"]:
        answers["dropout, resumed"] = run("dropout2", dropout=0.1, resume=str(out / "dropout/tales/ckpt_000006.pt"))
    answers["zero"] = run("zero", zero=True, dropout=0.1)
    answers["zero, resumed"] = run("zero2", zero=True, dropout=0.1, resume=str(out / "zero/tales/ckpt_000006.pt"))
    answers["zero from one"] = run("one", zero=True, resume=str(out / "one/tales/ckpt_000006.pt"))
    answers["recomputing"] = run("recomputing", activation_checkpointing=True, save_every=0)
    answers["muon"] = run("muon", optimizer="muon", save_every=0)
    answers["muon, saved"] = run("muon1", optimizer="muon", dropout=0.1)
    path = str(out / "muon1/tales/ckpt_000006.pt")
    answers["muon, saved, resumed"] = run("muon2", optimizer="muon", dropout=0.1, resume=path)
    with muon_in_float32():
        answers["muon in float32"] = run("muon32", optimizer="muon", save_every=0)

    step_of_train, steps = train_gpt2.train_step, []

    def step_and_stop(*args):
        steps.append(1)
        if rank == 1 and len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of_train(*args)

    train_gpt2.train_step = step_and_stop
    answers["stopped"] = run("stopped")
    torch.save(answers, out / f"rank{rank}.pt")


@contextlib.contextmanager
def recorded_generators():
    """Yields a list; each training step in this block adds to it a hash of the generator that dropout draws from."""
    hashes, step_of_train = [], train_gpt2.train_step

    def step(*args):
        hashes.append(zlib.crc32(torch.get_rng_state().numpy().tobytes()))
        return step_of_train(*args)

    train_gpt2.train_step = step
    yield hashes
    train_gpt2.train_step = step_of_train


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    """The answers of one process that reads as much in a step as two."""
    log_dir = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hellaswag, "default_path", lambda split: ITEMS)
        patch.setattr(train_gpt2, "plot", lambda run_dir: True)
        rt = setup_runtime("cpu", "float32")
        with muon_in_float32():
            in_float32 = training(shards, log_dir / "muon32", optimizer="muon", save_every=0)
        return {
            "gradients": gradients(train_step, shards, rt, micro_steps=4),
            "validations": validations(shards, rt),
            "plain": training(shards, log_dir, hellaswag_every=6),
            "muon": training(shards, log_dir, optimizer="muon", save_every=0),
            "muon in float32": in_float32,
            "log_dir": log_dir,
        }


@pytest.fixture(scope="module")
def pair(shards, alone, tmp_path_factory):
    """The answers of two workers, and the folder with their runs."""
    out = tmp_path_factory.mktemp("pair")
    shutil.copytree(alone["log_dir"] / "tales", out / "one/tales")
    ports = [str(p) for p in free_ports(13)]
    command = [sys.executable, __file__, "pair", str(shards), str(out), *ports]
    place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    workers = [
        start(command, out / f"said{r}.txt", environment(RANK=str(r), LOCAL_RANK=str(r), **place)) for r in range(2)
    ]
    finish(workers)
    said = [(out / f"said{r}.txt").read_text("utf-8") for r in range(2)]
    if any(w.returncode for w in workers):
        pytest.fail("a worker failed:\n" + "\n".join(s[-1500:] for s in said), pytrace=False)
    answers = [torch.load(out / f"rank{r}.pt", weights_only=True) for r in range(2)]
    return types.SimpleNamespace(rank0=answers[0], rank1=answers[1], out=out, said=said)


# ---- One step ------------------------------------------------------------------------------------------------------
def same_gradients(a, b):
    return all(torch.allclose(a["gradients"][k], b["gradients"][k], **CLOSE) for k in a["gradients"])


def test_two_processes_of_2_micro_steps_have_the_gradients_of_one_of_4(pair, alone):
    for answers in (pair.rank0, pair.rank1):
        ours = answers["gradients"]["train_step"]
        assert same_gradients(ours, alone["gradients"])
        assert ours["loss"] == pytest.approx(alone["gradients"]["loss"], rel=1e-6)
    assert max(g.abs().max() for g in alone["gradients"]["gradients"].values()) > 1e-3


def test_gradients_are_sent_once_a_step(pair):
    once = pair.rank0["gradients, one micro-step"]["sent"]
    assert once >= 1 and pair.rank0["gradients"]["train_step"]["sent"] == once


def test_the_two_tests_above_catch_what_they_are_for(pair, alone):
    """The three ways in which others got it wrong: two give other gradients, one is right and slow."""
    broken = pair.rank0["gradients"]
    assert not same_gradients(broken["flag_between_forward_and_backward"], alone["gradients"])
    assert not same_gradients(broken["not_divided"], alone["gradients"])
    once = pair.rank0["gradients, one micro-step"]["sent"]
    assert broken["sync_around_backward_only"]["sent"] == 2 * once


# ---- Whole runs ----------------------------------------------------------------------------------------------------
def assert_same_events(ours, theirs, tolerance):
    assert [(e["event"], e["step"]) for e in ours] == [(e["event"], e["step"]) for e in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in a.keys() - {"text"}:
            assert a[key] == (pytest.approx(b[key], rel=tolerance) if isinstance(b[key], float) else b[key]), (a, b)


def test_two_processes_train_validate_and_score_as_one(pair, alone):
    assert_same_events(pair.rank0["plain"], alone["plain"], tolerance=2e-5)
    assert {e["event"] for e in alone["plain"]} == {"train", "val", "hellaswag", "checkpoint"}
    assert_same_events(pair.rank1["plain"], pair.rank0["plain"], tolerance=0)


def test_two_processes_train_as_one_with_muon(pair, alone):
    """The losses; the norms of gradients only nearly, and that is the rounding to bfloat16: without it they are as
    near as AdamW's."""
    ours, theirs = pair.rank0["muon"], alone["muon"]
    assert losses(ours) == pytest.approx(losses(theirs), rel=2e-5)
    assert_same_events(ours, theirs, tolerance=2e-3)
    assert_same_events(pair.rank0["muon in float32"], alone["muon in float32"], tolerance=2e-5)


def test_recomputing_activations_changes_no_loss(pair, alone):
    assert losses(pair.rank0["recomputing"]) == pytest.approx(losses(alone["plain"]), rel=2e-5)


def test_the_validation_loss_is_the_same_for_every_micro_batch_and_number_of_processes(pair, alone):
    for ours in (alone["validations"], pair.rank0["validations"], pair.rank1["validations"]):
        for i, value in enumerate(ours):
            assert value == pytest.approx(alone["validations"][i % 3], rel=1e-6)


def test_resumed_under_ddp_it_is_the_same_run_bit_for_bit(pair):
    """With dropout, so the random numbers of both processes must be the same too."""
    for answers in (pair.rank0, pair.rank1):
        for name in ("dropout", "zero", "muon, saved"):
            straight, resumed = losses(answers[name]), losses(answers[f"{name}, resumed"])
            assert resumed == {step: loss for step, loss in straight.items() if step >= 6}
        assert answers["generators, resumed"] == answers["generators"][6:]


def test_dropout_differs_between_processes_and_steps(pair):
    generators = pair.rank0["generators"] + pair.rank1["generators"]
    assert len(generators) == len(set(generators)) == 2 * 12


# ---- Less memory ---------------------------------------------------------------------------------------------------
def test_zero_trains_as_plain_and_halves_the_optimizer(pair):
    """And its gradients are clipped by the norm of all of them, or the logged norms would differ."""
    assert_same_events(pair.rank0["zero"], pair.rank0["dropout"], tolerance=1e-6)
    assert max(e["norm"] for e in pair.rank0["zero"] if e["event"] == "train") > 1  # some were clipped
    for answers in (pair.rank0, pair.rank1):
        plain, zero = answers["optimizer bytes"]
        assert zero <= 0.55 * plain
    assert pair.rank0["optimizer bytes"][1] + pair.rank1["optimizer bytes"][1] == plain


def test_checkpoints_move_between_zero_and_plain_and_numbers_of_processes(pair, alone, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(train_gpt2, "plot", lambda run_dir: True)
    straight = losses(alone["plain"])
    from_one = losses(pair.rank0["zero from one"])  # one process, then two with --zero
    assert sorted(from_one) == list(range(6, 12))
    assert from_one == pytest.approx({s: straight[s] for s in from_one}, rel=2e-5)
    for name in ("zero", "plain"):  # two processes, then one without --zero
        shutil.copytree(pair.out / name, tmp_path / name)
        path = tmp_path / name / "tales/ckpt_000006.pt"
        overrides = dict(dropout=0.1) if name == "zero" else {}
        resumed = losses(training(shards, tmp_path / name, resume=str(path), **overrides))
        assert sorted(resumed) == list(range(6, 12))
        if name == "plain":  # without dropout, whose generators differ, it is also the same run
            assert resumed == pytest.approx({s: straight[s] for s in resumed}, rel=2e-5)
    paths = [pair.out / name / "tales/ckpt_000006.pt" for name in ("zero", "dropout")]
    zero, plain = (load_checkpoint(path)["optimizers"][0] for path in paths)
    assert zero["state"].keys() == plain["state"].keys()
    for i in plain["state"]:
        for key, value in plain["state"][i].items():
            torch.testing.assert_close(zero["state"][i][key], value, rtol=1e-5, atol=1e-9)


# ---- Memory and signals --------------------------------------------------------------------------------------------
def test_the_micro_batch_is_what_fits_in_every_process(pair):
    assert pair.rank0["micro-batch"] == pair.rank1["micro-batch"] == 4
    assert pair.rank0["too little memory"] == pair.rank1["too little memory"]
    assert "not even one" in pair.rank0["too little memory"][0]


def test_a_signal_to_one_process_stops_all_at_the_same_step(pair):
    steps = [sorted(losses(answers["stopped"])) for answers in (pair.rank0, pair.rank1)]
    assert steps[0] == steps[1] == [0, 1, 2, 3]
    assert load_checkpoint(pair.out / "stopped/tales/ckpt_000004.pt")["step"] == 4


def test_all_processes_take_part_in_the_same_exchanges(shards, tmp_path, monkeypatch):
    """Also where samples, which are rank 0's alone, are due between two intervals of the log. An exchange in which one
    process takes no part hangs; so each process runs alone here, and only notes when it would exchange what."""
    rt, exchanges = setup_runtime("cpu", "float32"), ([], [])
    monkeypatch.setattr(hellaswag, "default_path", lambda split: ITEMS)
    monkeypatch.setattr(train_gpt2, "plot", lambda run_dir: True)
    for rank in range(2):
        monkeypatch.setattr(train_gpt2, "setup_runtime", lambda *asked, rank=rank: dataclasses.replace(rt, rank=rank))
        monkeypatch.setattr(
            train_gpt2.Runtime, "sum", lambda self, values: exchanges[self.rank].append(len(values)) or list(values)
        )
        every = dict(sample_every=3, log_every=5, val_every=0, hellaswag_every=7, save_every=4)
        train(tiny(shards, tmp_path / str(rank), **every))
    assert len(exchanges[0]) > 12 and exchanges[0] == exchanges[1]


def test_only_rank_0_speaks_and_nothing_else_does(pair):
    assert re.search(r"^step     0/\d+ \| loss", pair.said[0], re.M)
    assert pair.said[1] == ""
    assert not re.search("warn|deprecat", pair.said[0], re.IGNORECASE)


# ---- torchrun ------------------------------------------------------------------------------------------------------
def torchrun(nproc, *options):
    place = [f"--nproc_per_node={nproc}", *options]
    return [sys.executable, "-m", "torch.distributed.run", *place]


def trainer_that(mode):
    """The trainer for torchrun to start, with a mishap at its ninth step, two steps after a checkpoint:

    dies      rank 1 is killed, unless torchrun has restarted it
    raises    rank 1 raises an error
    full      rank 0, which alone writes, cannot bring a file to the disk
    waits     host b waits, once, to be killed: it makes the file `waiting` and sleeps
    """
    step_of_train, steps = train_gpt2.train_step, []
    rank, host = os.environ["RANK"], os.environ.get("TEST_HOST")

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def step(*args):
        steps.append(1)
        if len(steps) == 9 and mode == "dies" and rank == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(steps) == 9 and mode == "raises" and rank == "1":
            raise RuntimeError("a stand-in for what nobody thought of")
        if len(steps) == 9 and mode == "full" and rank == "0":
            os.fsync = no_space
        waiting = Path(os.environ.get("TEST_WAITING", "/nowhere"))
        if len(steps) == 9 and mode == "waits" and host == "b" and not waiting.exists():
            waiting.touch()
            time.sleep(3600)
        return step_of_train(*args)

    train_gpt2.train_step = step
    train_gpt2.plot = lambda run_dir: True
    return train_gpt2.main(sys.argv[2:])


def run_torchrun(nproc, *words, restarts=0):
    """Runs torchrun on this machine until it ends, and returns the finished process."""
    command = [*torchrun(nproc, "--standalone", f"--max-restarts={restarts}"), *words]
    more = dict(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") if restarts else {}  # as the README says it for restarts
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=600, check=False)


def processes_with(word, where="cmdline"):
    """The processes of this machine whose command line, or environment, holds the word."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{where}"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_torchrun_with_one_process(alone, shards, tmp_path, monkeypatch):
    """As it would be started, but in this process."""
    monkeypatch.setattr(train_gpt2, "plot", lambda run_dir: True)
    place = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_ports(1)[0])
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    assert losses(training(shards, tmp_path, zero=True)) == losses(alone["plain"])
    assert not torch.distributed.is_initialized()


def test_a_killed_process_of_four_is_replaced_and_nothing_is_lost(alone, shards, tmp_path):
    """The command has `--resume auto`: at the first start there is nothing to continue, after the restart there is."""
    cfg = tiny(shards, tmp_path, resume="auto", log_every=4)
    result = run_torchrun(4, __file__, "dies", *options(cfg), restarts=1)
    assert result.returncode == 0, result.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["tales"]
    events = read_log(tmp_path / "tales")
    starts = [e["step"] for e in events if e["event"] == "config"]
    assert starts == [0, 6] and "going on from step 6" in result.stdout
    logged = losses(events)
    assert list(logged) == [0, 3, 6, 7, 11]  # the first after each start, and every fourth
    assert logged == pytest.approx({step: losses(alone["plain"])[step] for step in logged}, rel=2e-5)
    val = [(e["step"], e["val_loss"]) for e in events if e["event"] == "val"]
    assert val == [(e["step"], pytest.approx(e["val_loss"], rel=2e-5)) for e in alone["plain"] if e["event"] == "val"]


LINE = re.compile(  # what rank 0 says, a line each; samples are off
    r"(device|dtype|compile|data|model|folder|step =) .*|step +\d+/\d+ \| (loss|val loss|saved) .*|stopped as asked.*"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc for processes left over")
def test_ctrl_c_to_three_processes_under_torchrun(shards, tmp_path):
    """Until then nothing but rank 0's lines is to be seen, each whole; then all save and leave, none is left."""
    settings = dict(total_batch=3 * 2 * T, max_steps=10**6, save_every=0, log_every=20, sample_every=0)
    train_it = [str(ROOT / "train_gpt2.py"), *options(tiny(shards, tmp_path, **settings))]
    said, noise = tmp_path / "said.txt", tmp_path / "noise.txt"
    with open(said, "w") as out, open(noise, "w") as err:
        process = subprocess.Popen([*torchrun(3, "--standalone"), *train_it], env=environment(), stdout=out, stderr=err)
    wait_for(lambda: "step    39/" in said.read_text("utf-8"), process)
    assert noise.read_text("utf-8") == ""
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    process.wait(timeout=600)
    assert time.monotonic() - begin < 25  # by themselves: torchrun kills after 30 s
    lines = said.read_text("utf-8").splitlines()
    assert [line for line in lines if line and not LINE.fullmatch(line)] == []
    assert lines[-1].startswith("stopped as asked")
    assert not re.search(r"\[rank\d\]|Error:", noise.read_text("utf-8").split("Traceback")[0])
    ((step, path),) = checkpoints(tmp_path / "tales")
    assert load_checkpoint(path)["step"] == step
    events = read_log(tmp_path / "tales")
    assert events[0]["world_size"] == 3 and sorted(losses(events)) == [0, *range(19, step, 20)]
    assert processes_with(str(tmp_path)) == []


def wait_for(condition, *processes, limit=300, says=()):
    """Waits until the condition holds; fails, and shows the ends of the files `says`, if a process has ended before."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end or any(p.poll() is not None for p in processes):
            said = [f"{path.name}: {path.read_text('utf-8', 'replace')[-3000:]}" for path in says]
            pytest.fail("a process has ended, or it takes too long\n" + "\n".join(said), pytrace=False)
        time.sleep(0.05)


def told(result):
    """The lines that begin with error: and hint:, without torchrun's own report, which has no such lines."""
    return re.findall(r"^(?:error|hint): .*", result.stderr, re.MULTILINE)


def test_when_one_process_fails_the_others_end_and_its_error_is_shown(shards, tmp_path):
    result = run_torchrun(2, __file__, "raises", *options(tiny(shards, tmp_path)))
    assert result.returncode == 1
    assert "RuntimeError: a stand-in for what nobody thought of" in result.stderr
    path = tmp_path / "tales/ckpt_000006.pt"  # written two steps before the failure
    assert time.time() - path.stat().st_mtime < 60 and load_checkpoint(path)["step"] == 6


def test_a_full_disk_is_told_once_and_leaves_the_last_checkpoint(shards, tmp_path):
    """Only rank 0 meets it: rank 1 waits for it in vain, and must not tell another story."""
    result = run_torchrun(2, __file__, "full", *options(tiny(shards, tmp_path)))
    assert result.returncode == 1
    error, hint = told(result)
    assert error.startswith("error: ") and "No space left" in error and hint.startswith("hint: ")
    assert "Gloo" not in result.stderr and "connection" not in result.stderr.lower()
    assert [path.name for path in tmp_path.glob("tales/ckpt*")] == ["ckpt_000006.pt"]


@pytest.mark.parametrize("wrong", [["--data", "nowhere"], ["--no_such_option"]], ids=["data", "option"])
def test_a_mistake_that_all_processes_meet_is_told_once(shards, tmp_path, wrong):
    """The missing data are met after the processes have joined each other, the unknown option before."""
    result = run_torchrun(2, str(ROOT / "train_gpt2.py"), *options(tiny(shards, tmp_path / "log")), *wrong)
    assert result.returncode == 1
    error, hint = told(result)
    assert error.startswith("error: ") and wrong[-1] in error and hint.startswith("hint: ")
    assert "train_gpt2.py\", line" not in result.stderr  # no traceback of ours
    assert not (tmp_path / "log").exists()


# ---- Several machines ----------------------------------------------------------------------------------------------
@pytest.fixture
def hosts():
    """Two hosts a and b with a cable between them: network namespaces, each with one end of a veth pair.

    Returns run(host, command, says) -> process, and kill(host), after which nothing runs there."""
    if not shutil.which("ip"):
        pytest.skip("needs iproute2's ip to make two hosts")
    addresses = {"a": f"10.77.{os.getpid() % 250}.1", "b": f"10.77.{os.getpid() % 250}.2"}
    names = {host: f"gpt{os.getpid()}{host}" for host in "ab"}

    def ip(*words, check=True):
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=check)

    made = ip("netns", "add", names["a"], check=False)
    if made.returncode:
        pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")

    def kill(host):
        for pid in ip("netns", "pids", names[host], check=False).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def run(host, command, says, **more):
        more |= dict(GLOO_SOCKET_IFNAME=f"cable{host}", TEST_HOST=host)
        return start(["ip", "netns", "exec", names[host], *command], says, environment(**more))

    try:
        ip("netns", "add", names["b"])
        ip("link", "add", "cablea", "netns", names["a"], "type", "veth", "peer", "cableb", "netns", names["b"])
        for host, address in addresses.items():
            ip("-n", names[host], "addr", "add", f"{address}/24", "dev", f"cable{host}")
            for device in ("lo", f"cable{host}"):
                ip("-n", names[host], "link", "set", device, "up")
        yield types.SimpleNamespace(run=run, kill=kill, address=addresses)
    finally:
        for host in "ab":
            kill(host)
            ip("netns", "del", names[host], check=False)


# A machine that stands still for a minute is to fail no test. How soon a host counts as dead stays as it is: 15 s.
PATIENCE = "timeout=600,read_timeout=600"


def many_hosts(nnodes, host, address, local_address):
    """torchrun as the README gives it for several machines, and what a test must add to it."""
    place = [f"--nnodes={nnodes}", "--rdzv_backend=c10d", "--rdzv_id=7", "--max-restarts=3"]
    place += [f"--rdzv_endpoint={address}", f"--local_addr={local_address}"]
    place += [f"--rdzv_conf=is_host={int(host == 'a')},{PATIENCE}"]  # there is no name service to tell
    return torchrun(1, *place)


def end_of(folder):
    return {path.stem: path.read_text("utf-8", "replace")[-2000:] for path in folder.glob("*.txt")}


def test_two_hosts_of_which_one_dies_and_comes_back(hosts, alone, shards, tmp_path):
    """The command of the README for several machines. The run goes on by itself when its host is started again."""

    def launch(host, attempt):
        command = many_hosts(2, host, f"{hosts.address['a']}:29400", hosts.address[host])
        command += [__file__, "waits", *options(tiny(shards, tmp_path / "log", resume="auto"))]
        more = dict(TEST_WAITING=str(tmp_path / "waiting"), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        return hosts.run(host, command, tmp_path / f"{host}{attempt}.txt", **more)

    a, b = launch("a", 1), launch("b", 1)
    wait_for((tmp_path / "waiting").exists, a, b, says=[tmp_path / "a1.txt", tmp_path / "b1.txt"])
    hosts.kill("b")
    b.wait()
    again = launch("b", 2)
    finish([a, again])
    assert (a.returncode, again.returncode) == (0, 0), end_of(tmp_path)
    events = read_log(tmp_path / "log/tales")
    configs = [e for e in events if e["event"] == "config"]
    assert [(e["step"], e["world_size"]) for e in configs] == [(0, 2), (6, 2)]
    assert losses(events) == pytest.approx(losses(alone["plain"]), rel=2e-5)
    assert not (tmp_path / "log/tales-2").exists()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc for the processes of a host")
def test_the_host_that_is_left_goes_on_alone(alone, shards, tmp_path):
    """--nnodes=1:2, and a host that dies does not come back: the same batches, now all read by one process. (Both
    hosts are this machine, so no network is made for it.)"""
    (port,) = free_ports(1)

    def launch(host):
        command = many_hosts("1:2", host, f"127.0.0.1:{port}", "127.0.0.1")
        command[-1] += ",last_call_timeout=2"  # how long it waits for more than the least number of hosts
        command += [__file__, "waits", *options(tiny(shards, tmp_path / "log", resume="auto"))]
        more = dict(TEST_WAITING=str(tmp_path / "waiting"), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        more |= {"TEST_HOST": host, f"TEST_PLACE_OF_{host}": str(tmp_path)}
        return start(command, tmp_path / f"{host}.txt", environment(**more))

    a, b = launch("a"), launch("b")
    wait_for((tmp_path / "waiting").exists, a, b, says=[tmp_path / "a.txt", tmp_path / "b.txt"])
    for pid in processes_with(f"TEST_PLACE_OF_b={tmp_path}\0", "environ"):  # torchrun and the trainer that it started
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    b.wait()
    finish([a])
    assert a.returncode == 0, end_of(tmp_path)
    events = read_log(tmp_path / "log/tales")
    configs = [e for e in events if e["event"] == "config"]
    assert [(e["step"], e["world_size"]) for e in configs] == [(0, 2), (6, 1)]
    assert losses(events) == pytest.approx(losses(alone["plain"]), rel=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_are_one(alone, shards, tmp_path):
    """The same lines over NCCL: compiled, and with the optimizer shared out."""
    cfg = tiny(shards, tmp_path, device="auto", zero=True, activation_checkpointing=True, compile="true")
    command = [*torchrun(2, "--standalone"), str(ROOT / "train_gpt2.py"), *options(cfg)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0 and "warn" not in result.stderr.lower(), result.stderr[-2000:]
    assert losses(read_log(tmp_path / "tales")) == pytest.approx(losses(alone["plain"]), rel=1e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "pair":
        sys.exit(pair_of_workers(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
    sys.exit(trainer_that(sys.argv[1]))
