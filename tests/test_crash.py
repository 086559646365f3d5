"""Whatever happens to a run, its folder holds a whole checkpoint: killed, no space left, no right to write, a file cut.

Run: pytest tests/test_crash.py
"""

import errno
import importlib
import os
import random
import shlex
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

import runs
import train_gpt2
import weights
from train_gpt2 import UserError, load_checkpoint, train

ROOT = Path(__file__).resolve().parent.parent
KILLS = 18


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(runs, "plot", lambda run_dir: None)


@pytest.fixture(scope="module")
def finished_run(shards, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("finished") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "plot", lambda run_dir: None)
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
    runs.plot = lambda run_dir: None
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)
    os._exit(train_gpt2.main(argv))


def kill_again_and_again(log_dir, argv, seed):
    """Starts the trainer, kills it at a random moment, looks at the folder, resumes it ...; until it has ended by
    itself. Forks, so that torch is imported once. Returns how often it was killed, and how often of it while saving."""
    dice, folder = random.Random(seed), Path(log_dir) / "tales"
    log = folder / "log.jsonl"
    kills = while_saving = 0
    while True:
        found = runs.checkpoints(folder)
        if not found:
            shutil.rmtree(folder, ignore_errors=True)  # killed before its first checkpoint: it begins again
        before = log.stat().st_size if found else 0
        child = os.fork()
        if child == 0:
            trainer_that_writes_slowly([*argv, *(["--resume"] if found else ["--run", "tales"])])
        # Every third time it dies as it starts; every third, some time after; every third, while it saves.
        signs = [lambda: True, lambda b=before: log.exists() and log.stat().st_size > b]
        signs.append(lambda: list(folder.glob("*.tmp")))
        sign = signs[kills % 3] if kills < KILLS else lambda: False
        while (running := os.waitpid(child, os.WNOHANG) == (0, 0)) and not sign():
            time.sleep(0.001)
        if not running:  # it has ended by itself
            return kills, while_saving
        time.sleep(dice.uniform(0, (0.1, 0.3, 0.05)[kills % 3]))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        while_saving += any(folder.glob("*.pt.tmp"))
        for path in runs.checkpoints(folder):
            load_checkpoint(path)  # whole, every one of them: UserError if not


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that torch need not be imported for every kill")
def test_killed_at_random_moments_also_while_saving(shards, tmp_path, quick):
    settings = dict(max_steps=90, save_every=3, val_every=30, dropout=0.1, log_every=3)
    straight = train(tiny(shards, tmp_path / "a", **settings))
    argv = options(tiny(shards, tmp_path / "b", **settings))
    command = [sys.executable, __file__, str(tmp_path / "b"), *argv]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    kills, while_saving = map(int, result.stdout.split())
    assert kills == KILLS and while_saving >= 3, (kills, while_saving)
    folder = tmp_path / "b/tales"
    assert losses(runs.read_log(folder)) == losses(straight)  # and in the end nothing has happened
    ends = [load_checkpoint(tmp_path / name / "tales/ckpt_000090.pt")["model"] for name in "ab"]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert not list(folder.glob("*.tmp")) and len(runs.checkpoints(folder)) <= 3


# ---- Told to stop --------------------------------------------------------------------------------------------------
def test_sigterm_to_a_real_process(shards, tmp_path):
    """As a job scheduler does it: one SIGTERM in the middle of training."""
    cfg = tiny(shards, tmp_path, max_steps=100_000, save_every=0, log_every=20)
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *options(cfg)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    for line in process.stdout:
        if line.startswith("step    19"):
            break
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "stopped as asked" in rest
    assert time.monotonic() - start < 10
    (path,) = runs.checkpoints(tmp_path / "tales")
    ckpt = load_checkpoint(path)
    assert ckpt["step"] > 19 and ckpt["looked_up"] is False
    assert sorted(losses(runs.read_log(tmp_path / "tales"))) == list(range(ckpt["step"]))


def test_when_the_reader_of_its_output_goes_it_saves_and_leaves(shards, tmp_path):
    """python train_gpt2.py | head: without a traceback, and with nothing lost."""
    cfg = tiny(shards, tmp_path, max_steps=100_000, save_every=0, log_every=1)
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *options(cfg)]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, env=environment, **pipes)
    for line in process.stdout:
        if line.startswith("step     3"):
            break
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0
    (path,) = runs.checkpoints(tmp_path / "tales")
    assert load_checkpoint(path)["step"] > 3


# ---- No space, no right -----------------------------------------------------------------------------------------
def disk_full(after=0):
    """An open() whose files take `after` bytes in all and then have no space left."""
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

    def opened(path, mode="r", **kwargs):
        f = open(path, mode, **kwargs)  # noqa: SIM115
        return Full(f) if set(mode) & set("wa") else f

    return opened


@pytest.mark.parametrize("after", [0, 1, 1000, 100_000])
def test_a_full_disk_while_saving(run, shards, monkeypatch, capsys, after):
    before = {p.name: p.read_bytes() for p in run.glob("*.pt")}
    monkeypatch.setattr(weights, "open", disk_full(after), raising=False)
    code = train_gpt2.main([*options(tiny(shards, run.parent, max_steps=8)), "--resume"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 2, error
    assert "ckpt_000008.pt: No space left on device" in error and "free some space" in error
    assert before == {p.name: p.read_bytes() for p in run.glob("*.pt")}  # nothing lost
    assert not list(run.glob("*.tmp"))


def test_a_full_disk_while_logging(run, shards, monkeypatch, capsys):
    monkeypatch.setattr(runs, "open", disk_full(2500), raising=False)  # enough for the line of the configuration
    code = train_gpt2.main([*options(tiny(shards, run.parent, max_steps=60)), "--resume"])
    error = capsys.readouterr().err
    assert code == 2 and "log.jsonl: No space left on device\nhint: free some space" in error
    assert all(load_checkpoint(path) for path in runs.checkpoints(run))
    monkeypatch.undo()
    monkeypatch.setattr(runs, "plot", lambda run_dir: None)
    train(tiny(shards, run.parent, max_steps=60, resume="newest"))  # with space again it goes on, in one log
    assert sorted(losses(runs.read_log(run))) == list(range(60))


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
    code = train_gpt2.main([*options(tiny(shards, place, save_every=2)), "--run", "tales"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 2 and "No space left on device" in error, error
    paths = runs.checkpoints(place / "tales")
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
    assert train_gpt2.main([*options(cfg), "--run", "other"]) == 2
    assert "error: cannot make the directory" in capsys.readouterr().err


# ---- Damaged ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999], ids=["empty", "half", "almost"])
def test_a_truncated_checkpoint_is_passed_over(run, shards, keep, capsys):
    path = run / "ckpt_000006.pt"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    cfg = tiny(shards, run.parent, max_steps=8, save_every=0)
    assert train_gpt2.main([*options(cfg), "--resume"]) == 0
    out = capsys.readouterr()
    assert out.out.count("passing over ckpt_000006.pt") == 1 and "going on from step 4" in out.out
    assert out.err == ""
    assert load_checkpoint(run / "ckpt_000008.pt")["step"] == 8
    assert [p.name for p in runs.checkpoints(run)] == ["ckpt_000008.pt", "ckpt_000004.pt"]  # the damaged one is gone


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
    dice, opened = random.Random(0), 0
    for i in range(60):
        damaged = bytearray(whole if i % 2 else whole[: dice.randrange(len(whole))])
        for _ in range(i // 2):
            if damaged:
                # mostly in the last part, which holds the names and the table of contents
                place = dice.randrange(max(0, len(damaged) - 30_000), len(damaged))
                damaged[place] = dice.randrange(256)
        path = run / "damaged.pt"
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
            opened += 1
        except UserError as e:
            assert "\n" not in str(e) and e.hint
    assert opened < 30


def test_nothing_to_resume_from(tmp_path, shards, capsys):
    assert train_gpt2.main([*options(tiny(shards, tmp_path)), "--resume"]) == 2
    assert "there is no checkpoint to go on from" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_swept_out(run, shards):
    (run / "ckpt_000008.pt.tmp").write_bytes(b"half a checkp")
    train(tiny(shards, run.parent, max_steps=8, resume="newest"))
    assert not list(run.glob("*.tmp"))


def test_a_diverged_run_stops_before_it_saves(run, shards, capsys, monkeypatch):
    step_of_train, steps = train_gpt2.train_step, []

    def step(*args):
        loss, norm = step_of_train(*args)
        steps.append(1)
        return (loss * float("nan") if len(steps) == 2 else loss), norm

    monkeypatch.setattr(train_gpt2, "train_step", step)
    settings = dict(max_steps=10, save_every=5, log_every=100, val_every=0)
    assert train_gpt2.main([*options(tiny(shards, run.parent, **settings)), "--resume"]) == 2
    error = capsys.readouterr().err
    assert "at step 7" in error and "diverged" in error and "--lr" in error
    assert load_checkpoint(runs.checkpoints(run)[0])["step"] == 6


# ---- Out of memory: what needs a GPU, with a stand-in that raises -------------------------------------------------
@pytest.fixture
def alone():
    """The part of Runtime that the search asks: a GPU, and no other process."""
    rt = train_gpt2.setup_runtime("cpu")
    rt.device = types.SimpleNamespace(type="cuda")
    return rt


def out_of_memory_above(limit, tried):
    def try_batch(model, B, rt):
        tried.append(B)
        if limit < B:
            raise torch.OutOfMemoryError("stand-in")

    return try_batch


@pytest.mark.parametrize(
    ("sequences", "limit", "found"),
    [(64, 20, 16), (64, 64, 64), (64, 1000, 64), (48, 20, 16), (7, 5, 1), (512, 1000, 64), (64, 1, 1)],
)
def test_the_search_finds_the_largest_micro_batch_that_fits(alone, sequences, limit, found):
    model = types.SimpleNamespace(config=types.SimpleNamespace(block_size=1024))
    tried = []
    assert runs.largest_micro_batch(model, sequences, alone, out_of_memory_above(limit, tried)) == found
    assert all(sequences % B == 0 for B in tried) and max(tried) <= 64
    assert sum(limit < B for B in tried) <= 1  # the first that does not fit is the last


def test_the_search_says_so_when_nothing_fits(alone):
    model = types.SimpleNamespace(config=types.SimpleNamespace(block_size=1024))
    with pytest.raises(UserError, match="not even one sequence") as caught:
        runs.largest_micro_batch(model, 64, alone, out_of_memory_above(0, []))
    assert "--activation_checkpointing" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "then"),
    [
        (["--micro_batch", "8", "--lr", "0.01"], ["--lr", "0.01", "--micro_batch", "4"]),
        (["--micro_batch=6"], ["--micro_batch", "3"]),
        (["--micro_batch", "1"], ["--micro_batch", "1", "--activation_checkpointing"]),
    ],
)
def test_out_of_memory_is_answered_with_the_next_command(shards, tmp_path, monkeypatch, capsys, given, then):
    def step(*args):
        raise torch.OutOfMemoryError("stand-in")

    monkeypatch.setattr(train_gpt2, "train_step", step)
    rest = [*options(tiny(shards, tmp_path, total_batch=48 * 32)), "--run", "a name"]
    i = rest.index("--micro_batch")
    del rest[i : i + 2]
    monkeypatch.setattr(sys, "argv", ["train_gpt2.py", *rest, *given])
    assert train_gpt2.main([*rest, *given]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: out of memory on cpu with micro_batch ")
    command = shlex.split(hint.removeprefix("hint: "))
    assert command == ["python", "train_gpt2.py", *rest, *then]


def test_what_auto_chose_is_halved_too(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_gpt2, "train_step", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("x")))
    argv = [*options(tiny(shards, tmp_path, micro_batch="auto")), "--micro_batch", "auto"]
    monkeypatch.setattr(sys, "argv", ["train_gpt2.py", *argv])
    assert train_gpt2.main(argv) == 2
    assert capsys.readouterr().err.strip().endswith("--micro_batch 4")  # auto had taken 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_card_runs_out_of_memory(shards, tmp_path, capsys):
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        cfg = tiny(shards, tmp_path, device="cuda", compile="false", total_batch=2**19, micro_batch=2**14)
        assert train_gpt2.main(options(cfg)) == 2
        assert "--micro_batch 8192" in capsys.readouterr().err
        assert train_gpt2.main(options(tiny(shards, tmp_path, device="cuda", micro_batch="auto"))) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    importlib.import_module("torch._dynamo")  # the first step of an optimizer does; once here, not in every fork
    torch.set_num_threads(1)
    print(*kill_again_and_again(sys.argv[1], sys.argv[2:], seed=5))
