"""Whatever happens to a run, its folder holds a whole checkpoint: killed, no space left, no right to write, a file cut.

Run: pytest tests/test_crash.py
"""

import contextlib
import errno
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from io import BytesIO
from pathlib import Path

import pytest
import torch
from tiny_runs import losses, options, tiny, write_shards

import train_gpt2
from train_gpt2 import UserError, checkpoints, load_checkpoint, read_log, train

ROOT = Path(__file__).resolve().parent.parent
KILLS = 18


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train_gpt2, "plot", lambda run_dir: True)


@pytest.fixture(scope="module")
def finished_run(shards, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("finished") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gpt2, "plot", lambda run_dir: True)
        train(tiny(shards, log_dir, max_steps=6, save_every=2))
    return log_dir


@pytest.fixture
def run(finished_run, tmp_path, quick):
    """A folder of its own with a finished run of 6 steps and checkpoints at 4 and 6 (and perhaps the best)."""
    shutil.copytree(finished_run, tmp_path / "log")
    return tmp_path / "log/tales"


# ---- Killed --------------------------------------------------------------------------------------------------------
def trainer_that_writes_slowly(argv):
    """A process's whole life: the trainer, on a disk that takes 60 ms for a checkpoint, in two halves."""
    save = torch.save

    def slow_save(state, file):
        buffer = BytesIO()
        save(state, buffer)
        half = len(buffer.getvalue()) // 2
        for part in (buffer.getvalue()[:half], buffer.getvalue()[half:]):
            file.write(part)
            file.flush()
            time.sleep(0.03)

    torch.save = slow_save
    train_gpt2.plot = lambda run_dir: True
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)
    os._exit(train_gpt2.main(argv))


def kill_again_and_again(log_dir, argv, seed):
    """Starts the trainer, kills it at a random moment, looks at the folder, starts it again with the same command ...;
    until it has ended by itself. Forks, so that torch is imported once. Returns how often it was killed, and how often
    of it while it saved."""
    generator, folder = random.Random(seed), Path(log_dir) / "tales"
    log = folder / "log.jsonl"
    kills = while_saving = 0
    while True:
        before = log.stat().st_mtime_ns if log.exists() else 0
        child = os.fork()
        if child == 0:
            trainer_that_writes_slowly([*argv, "--resume"])
        # Every third time it dies as it starts; every third, some time after; every third, while it saves.
        signs = [lambda: True, lambda b=before: log.exists() and log.stat().st_mtime_ns > b]
        signs.append(lambda: list(folder.glob("*.pt.tmp")))
        sign = signs[kills % 3] if kills < KILLS else lambda: False
        while (running := os.waitpid(child, os.WNOHANG) == (0, 0)) and not sign():
            time.sleep(0.001)
        if not running:  # it has ended by itself
            return kills, while_saving
        time.sleep(generator.uniform(0, (0.1, 0.3, 0.05)[kills % 3]))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        while_saving += any(folder.glob("*.pt.tmp"))
        for _, path in checkpoints(folder):
            load_checkpoint(path)  # whole, every one of them: UserError if not


def told(event):
    """What an event says of the training, without the times; None for a start or a checkpoint."""
    if event["event"] in ("config", "checkpoint"):
        return None
    return event["event"], event["step"], [event.get(k) for k in ("loss", "lr", "norm", "val_loss", "val_bpb", "text")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that torch need not be imported for every kill")
def test_killed_at_random_moments_also_while_saving(shards, tmp_path, quick):
    settings = dict(max_steps=90, save_every=3, val_every=10, dropout=0.1, log_every=1, sample_every=30)
    straight = train(tiny(shards, tmp_path / "a", **settings))
    argv = options(tiny(shards, tmp_path / "b", **settings))
    command = [sys.executable, __file__, str(tmp_path / "b"), *argv]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    kills, while_saving = map(int, result.stdout.split())
    assert kills == KILLS and while_saving >= 3, (kills, while_saving)
    folder = tmp_path / "b/tales"
    # In the end nothing has happened: the log holds each step once, in order, with the same numbers.
    ours, theirs = ([told(e) for e in events if told(e)] for events in (read_log(folder), straight))
    assert losses(read_log(folder)) == losses(straight)
    assert ours == theirs
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["tales"]
    ends = [load_checkpoint(tmp_path / name / "tales/ckpt_000090.pt")["model"] for name in "ab"]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert not list(folder.glob("*.tmp")) and len(checkpoints(folder)) <= 3


def test_the_log_is_on_the_disk_before_the_checkpoint(shards, tmp_path, quick, monkeypatch):
    """A run killed as soon as a checkpoint has its name goes on from there: no later run writes the steps before it."""
    save, seen = train_gpt2.save_checkpoint, []

    def look_and_save(path, *args, **state):
        seen.append((state["step"], list(losses(read_log(path.parent)))))
        save(path, *args, **state)

    monkeypatch.setattr(train_gpt2, "save_checkpoint", look_and_save)
    train(tiny(shards, tmp_path, max_steps=9, save_every=3, val_every=0, log_every=1))
    assert seen == [(step, list(range(step))) for step in (3, 6, 9)]


# ---- Told to stop --------------------------------------------------------------------------------------------------
def test_sigterm_to_a_real_process(shards, tmp_path):
    """As a job scheduler does it: one SIGTERM in the middle of training."""
    cfg = tiny(shards, tmp_path, max_steps=100_000, save_every=0, log_every=20)
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *options(cfg)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    for line in process.stdout:
        if line.startswith("step    19/100000 "):
            break
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "stopped as asked" in rest
    assert time.monotonic() - start < 10
    ((step, path),) = checkpoints(tmp_path / "tales")
    assert load_checkpoint(path)["step"] == step > 19
    assert list(losses(read_log(tmp_path / "tales"))) == [0, *range(19, step, 20)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_told_to_stop_where_a_validation_is_due_it_validates_first(shards, tmp_path, quick, monkeypatch, number):
    """So that its log, and how it goes on, are those of a run that was not disturbed."""
    settings = dict(max_steps=10, val_every=5, save_every=0)
    straight = train(tiny(shards, tmp_path / "a", **settings))
    step_of_train, steps = train_gpt2.train_step, []

    def step(*args):
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), number)
        return step_of_train(*args)

    monkeypatch.setattr(train_gpt2, "train_step", step)
    argv = options(tiny(shards, tmp_path / "b", **settings))
    assert train_gpt2.main(argv) == 0
    folder = tmp_path / "b/tales"
    assert [(e["event"], e["step"]) for e in read_log(folder)][-2:] == [("val", 5), ("checkpoint", 5)]
    assert train_gpt2.main([*argv, "--resume"]) == 0
    ours, theirs = ([told(e) for e in events if told(e)] for events in (read_log(folder), straight))
    assert ours == theirs


def test_when_the_reader_of_its_output_goes_it_leaves(shards, tmp_path):
    """python train_gpt2.py | head: exit code 1, without a traceback, and with a whole checkpoint to go on from."""
    cfg = tiny(shards, tmp_path, max_steps=100_000, save_every=2, log_every=1)
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *options(cfg)]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, env=environment, **pipes)
    for line in process.stdout:
        if line.startswith("step     3/"):
            break
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
    step, path = checkpoints(tmp_path / "tales")[0]
    assert load_checkpoint(path)["step"] == step >= 2
    assert train_gpt2.main([*options(tiny(shards, tmp_path, max_steps=step + 2, save_every=2)), "--resume"]) == 0
    assert list(losses(read_log(tmp_path / "tales"))) == list(range(step + 2))


# ---- No space, no right -----------------------------------------------------------------------------------------
def disk_full(part, after=0):
    """An open() whose files with `part` in their name take `after` bytes in all and then have no space left."""
    left = [after]

    class Full:
        def __init__(self, f):
            self.f = f

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.f.close()

        def __getattr__(self, name):
            return getattr(self.f, name)

        def write(self, data):
            size = memoryview(data).nbytes if not isinstance(data, str) else len(data)
            if size > left[0]:
                self.f.write(data[: left[0]])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= size
            return self.f.write(data)

        def writelines(self, lines):
            for line in lines:
                self.write(line)

    def opened(path, mode="r", **kwargs):
        f = open(path, mode, **kwargs)  # noqa: SIM115
        return Full(f) if set(mode) & set("wa") and part in str(path) else f

    return opened


@pytest.mark.parametrize("after", [0, 1, 1000, 100_000])
def test_a_full_disk_while_saving(run, shards, monkeypatch, capsys, after):
    before = {p.name: p.read_bytes() for p in run.glob("*.pt")}
    monkeypatch.setattr(train_gpt2, "open", disk_full(".pt", after), raising=False)
    code = train_gpt2.main([*options(tiny(shards, run.parent, max_steps=8)), "--resume"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 2, error
    assert "ckpt_000008.pt" in error and "No space left on device" in error and "room" in error
    assert before == {p.name: p.read_bytes() for p in run.glob("*.pt")}  # nothing lost
    assert not list(run.glob("*.tmp"))


@pytest.mark.parametrize("room", [0, 1000, 4000], ids=["as it starts", "at its first line", "later"])
def test_a_full_disk_while_logging(run, shards, monkeypatch, capsys, room):
    """room: bytes beyond the log so far, which is written anew as a run is resumed."""
    log = run / "log.jsonl"
    before, steps = log.read_bytes(), list(losses(read_log(run)))
    after = room + (len(before) if room else 0)
    monkeypatch.setattr(train_gpt2, "open", disk_full("log.jsonl", after), raising=False)
    code = train_gpt2.main([*options(tiny(shards, run.parent, max_steps=60)), "--resume"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 2 and "No space left on device" in error and "room" in error
    assert "log.jsonl" in error
    assert log.read_bytes().startswith(before) and steps == list(range(6))  # nothing lost
    assert checkpoints(run) and all(load_checkpoint(path) for _, path in checkpoints(run))
    monkeypatch.undo()
    monkeypatch.setattr(train_gpt2, "plot", lambda run_dir: True)
    train(tiny(shards, run.parent, max_steps=60, resume="auto"))  # with space again it goes on, in one log
    assert list(losses(read_log(run))) == list(range(60))


@pytest.fixture
def small_disk(tmp_path):
    """mount(options) puts a disk of that kind at a place; skipped where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(how):
        if not sys.platform.startswith("linux") or not shutil.which("mount"):
            pytest.skip("mounts a small disk, which needs Linux")
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "none", place], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"mounting is not allowed here: {made.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", place], capture_output=True, check=False)


def test_a_real_disk_that_fills_up(shards, small_disk, quick, capsys):
    """As above without stand-ins: room for the log and one checkpoint, not for two."""
    place = small_disk("size=700k")
    code = train_gpt2.main([*options(tiny(shards, place, save_every=2)), "--name", "tales"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 2 and "No space left on device" in error, error
    paths = [path for _, path in checkpoints(place / "tales")]
    assert paths and [load_checkpoint(p) for p in paths] and not list((place / "tales").glob("*.tmp"))


def test_a_disk_that_becomes_read_only(shards, small_disk, quick, capsys, monkeypatch):
    place = small_disk("size=20m")
    step_of_train, steps = train_gpt2.train_step, []

    def step(*args):
        steps.append(1)
        if len(steps) == 7:
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        return step_of_train(*args)

    monkeypatch.setattr(train_gpt2, "train_step", step)
    cfg = tiny(shards, place, save_every=5, log_every=100)
    code = train_gpt2.main(options(cfg))
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 2 and "Read-only file system" in error, error
    assert load_checkpoint(place / "tales/ckpt_000005.pt")["step"] == 5
    assert train_gpt2.main([*options(cfg), "--resume"]) == 2  # and to begin with one
    assert "error: cannot write" in capsys.readouterr().err
    assert train_gpt2.main([*options(cfg), "--name", "other"]) == 2
    assert "Read-only file system" in capsys.readouterr().err


# ---- Damaged ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999], ids=["empty", "half", "almost"])
def test_a_truncated_checkpoint_is_passed_over(run, shards, keep, capsys):
    path = run / "ckpt_000006.pt"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    cfg = tiny(shards, run.parent, max_steps=8, save_every=0)
    assert train_gpt2.main([*options(cfg), "--resume"]) == 0
    out = capsys.readouterr()
    assert out.err.startswith("passing over ckpt_000006.pt") and out.err.count("\n") == 1
    assert "going on from step 4" in out.out
    assert load_checkpoint(run / "ckpt_000008.pt")["step"] == 8
    assert [p.name for _, p in checkpoints(run)] == ["ckpt_000008.pt", "ckpt_000004.pt"]  # the damaged one is gone


def test_a_truncated_checkpoint_that_is_asked_for_is_refused(run, shards, capsys):
    path = run / "ckpt_000006.pt"
    path.write_bytes(path.read_bytes()[:1000])
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    assert train_gpt2.main(["--resume", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} is damaged") and error.count("\n") == 2
    assert before == {p.name: p.read_bytes() for p in run.iterdir()}


def test_no_damage_goes_further_than_one_clear_error(run):
    """Cut or changed at random places, a checkpoint opens or is refused; nothing else."""
    whole = (run / "ckpt_000006.pt").read_bytes()
    generator, opened = random.Random(0), 0
    for i in range(60):
        damaged = bytearray(whole if i % 2 else whole[: generator.randrange(len(whole))])
        for _ in range(i // 2):
            if damaged:
                # mostly in the last part, which holds the names and the table of contents
                place = generator.randrange(max(0, len(damaged) - 30_000), len(damaged))
                damaged[place] = generator.randrange(256)
        path = run / "damaged.pt"
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
            opened += 1
        except UserError as e:
            assert "\n" not in str(e) and e.hint
    assert opened < 30


def test_nothing_to_resume_from(tmp_path, shards, quick, capsys):
    """Then the run begins, so that a job scheduler may start it again and again with one command."""
    argv = [*options(tiny(shards, tmp_path / "log", max_steps=2)), "--resume", "auto"]
    assert train_gpt2.main(argv) == 0
    out = capsys.readouterr().out
    assert f"folder {tmp_path / 'log/tales'}\n" in out and "going on" not in out
    before = {p.name: p.read_bytes() for p in (tmp_path / "log/tales").glob("*.pt")}
    assert list(before) == ["ckpt_000002.pt"]
    assert train_gpt2.main(argv) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "log/tales").glob("*.pt")}


def test_a_run_with_nothing_but_damaged_checkpoints_is_left_alone(run, shards, capsys):
    """Its log and what may be saved of its checkpoints are worth more than a fresh start in the same folder."""
    for path in run.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:5000])
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    assert train_gpt2.main([*options(tiny(shards, run.parent, max_steps=8)), "--resume"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("passing over ckpt_")]
    assert [line.split(":")[0] for line in told] == ["error", "hint"]
    assert before == {p.name: p.read_bytes() for p in run.iterdir()}


def test_what_a_killed_process_left_is_swept_out(run, shards):
    (run / "ckpt_000008.pt.tmp").write_bytes(b"half a checkp")
    train(tiny(shards, run.parent, max_steps=8, resume="auto"))
    assert not list(run.glob("*.tmp"))


def test_a_diverged_run_stops_before_it_saves(run, shards, capsys, monkeypatch):
    step_of_train, steps = train_gpt2.train_step, []

    def step(*args):
        loss, norm = step_of_train(*args)
        steps.append(1)
        if len(steps) == 2:  # a loss that is no number makes gradients and weights of that kind
            with torch.no_grad():
                args[0].lm_head.weight[3, 3] = float("nan")
        return loss, norm

    monkeypatch.setattr(train_gpt2, "train_step", step)
    settings = dict(max_steps=20, save_every=5, log_every=100, val_every=0)
    assert train_gpt2.main([*options(tiny(shards, run.parent, **settings)), "--resume"]) == 2
    error = capsys.readouterr().err
    assert "at step 10" in error and "diverged" in error and "--lr" in error
    assert checkpoints(run)[0][0] == 6 and load_checkpoint(checkpoints(run)[0][1])["step"] == 6


# ---- Out of memory: what needs a GPU, with a stand-in that raises -------------------------------------------------
class Card:
    """A model on a GPU that has room for micro-batches up to `limit`. Notes in `tried` which were tried."""

    config = types.SimpleNamespace(block_size=1024)

    def __init__(self, limit):
        self.limit, self.tried = limit, []

    def parameters(self):
        return iter([])

    def zero_grad(self, **how):
        pass

    def __call__(self, x, targets):
        assert x.shape == targets.shape
        B, T = x.shape
        assert self.config.block_size == T
        self.tried.append(B)
        if self.limit < B:
            raise torch.OutOfMemoryError("stand-in")
        return None, torch.zeros((), requires_grad=True)


@pytest.fixture
def alone(monkeypatch):
    """The part of Runtime that the search asks: a GPU, whose tensors are on the CPU, and no other process."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **how: zeros(*shape, **how))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return types.SimpleNamespace(device=torch.device("cuda"), world_size=1, any=bool, autocast=contextlib.nullcontext)


@pytest.mark.parametrize(
    ("sequences", "limit", "found"),
    [(64, 20, 16), (64, 64, 64), (64, 1000, 64), (48, 20, 16), (7, 5, 1), (512, 1000, 64), (64, 1, 1)],
)
def test_the_search_finds_the_largest_micro_batch_that_fits(alone, sequences, limit, found):
    card = Card(limit)
    assert train_gpt2.largest_micro_batch(card, sequences, alone) == found
    assert all(sequences % B == 0 for B in card.tried) and max(card.tried) <= 64
    assert [B for B in card.tried if limit >= B] == [found]  # the first that fits is the last
    assert card.tried == sorted(card.tried, reverse=True)


def test_the_search_asks_all_cards(alone):
    """Another card is full until the micro-batch is 4: this one takes 4 too."""
    card = Card(20)
    alone.any = lambda full: full or card.tried[-1] > 4
    assert train_gpt2.largest_micro_batch(card, 64, alone) == 4


def test_the_search_says_so_when_nothing_fits(alone):
    with pytest.raises(UserError, match="not even one sequence") as caught:
        train_gpt2.largest_micro_batch(Card(0), 64, alone)
    assert "--activation_checkpointing" in caught.value.hint


@pytest.mark.parametrize("given", [["--micro_batch", "8"], ["--micro_batch", "0"], []], ids=["8", "auto", "left out"])
def test_out_of_memory_is_answered_with_what_needs_less(shards, tmp_path, monkeypatch, capsys, given):
    def step(*args):
        raise torch.OutOfMemoryError("stand-in")

    monkeypatch.setattr(train_gpt2, "train_step", step)
    rest = options(tiny(shards, tmp_path, total_batch=16 * 32))
    i = rest.index("--micro_batch")
    del rest[i : i + 2]
    assert train_gpt2.main([*rest, *given]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: out of memory")
    assert hint.startswith("hint: ") and "--micro_batch" in hint and "--activation_checkpointing" in hint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_card_runs_out_of_memory(shards, tmp_path, capsys):
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        cfg = tiny(shards, tmp_path, device="cuda", compile="false", total_batch=2**19, micro_batch=2**14)
        assert train_gpt2.main(options(cfg)) == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert error.startswith("error: out of memory") and "--micro_batch" in hint
        assert train_gpt2.main(options(tiny(shards, tmp_path, device="cuda", micro_batch=0))) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    importlib.import_module("torch._dynamo")  # the first step of an optimizer does; once here, not in every fork
    torch.set_num_threads(1)
    print(*kill_again_and_again(sys.argv[1], sys.argv[2:], seed=5))
