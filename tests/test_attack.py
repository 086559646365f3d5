"""What an attack on the trainer found: each fault of a class by one test that failed before it was mended."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import losses, options, tiny, write_shards

import train_gpt2
from train_gpt2 import (
    GPT,
    GPTConfig,
    TrainConfig,
    UserError,
    checkpoints,
    load_checkpoint,
    read_log,
    train,
    write_whole,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIG = GPTConfig(block_size=32, vocab_size=300, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture
def run(shards, tmp_path):
    """The folder of a run of 12 steps with checkpoints at 6 and 12."""
    train(tiny(shards, tmp_path / "log"))
    return tmp_path / "log/tales"


def start(shards, log_dir, *more, **settings):
    """The trainer as a process of its own, on an endless run."""
    cfg = tiny(shards, log_dir, max_steps=10**6, save_every=0, val_every=0, **settings)
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *options(cfg), *more]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_a_step(process):
    for line in process.stdout:
        if " | loss " in line:
            return


# ---- Nothing is lost ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_regular_file_is_never_replaced(tmp_path, kind):
    """hellaswag.py --details /dev/null, as root, had turned the device into a file."""
    path = tmp_path / "target"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        write_whole(path, lambda file: file.write(b"x"))
    assert path.is_dir() if kind == "directory" else path.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no flock")
def test_a_second_process_does_not_go_on_with_a_run_that_lives(shards, tmp_path):
    process = start(shards, tmp_path, name="mine")
    try:
        wait_for_a_step(process)
        before = read_log(tmp_path / "mine")[0]
        done = subprocess.run(
            [*process.args, "--resume"], capture_output=True, text=True, timeout=120, check=False,
            env=dict(os.environ, OMP_NUM_THREADS="1"),
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert f"process [{process.pid}] is writing to" in done.stderr and done.stderr.count("\n") == 2
        assert process.poll() is None and read_log(tmp_path / "mine")[0] == before
    finally:
        process.kill()
        process.communicate()
    # The lock has died with its process.
    assert train_gpt2.main([*process.args[2:], "--resume", "--max_steps", "3"]) == 0


def test_a_run_can_be_continued_by_the_process_that_began_it(shards, tmp_path):
    """As in a notebook, also after an error."""
    with pytest.raises(UserError, match="past step"):
        train(tiny(shards, tmp_path))
        train(tiny(shards, tmp_path, resume="auto", max_steps=3))
    assert len(losses(train(tiny(shards, tmp_path, resume="auto", max_steps=14)))) == 2


def test_an_older_checkpoint_is_not_resumed_over_later_ones(run, capsys):
    """It cut the log and deleted them."""
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir()}
    assert train_gpt2.main(["--resume", str(run / "ckpt_000006.pt"), "--max_steps", "8"]) == 2
    assert "ckpt_000012.pt" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in run.iterdir()} == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_a_closed_terminal_saves(shards, tmp_path):
    process = start(shards, tmp_path)
    wait_for_a_step(process)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped as asked; continue with --resume" in out
    ((step, path),) = checkpoints(tmp_path / "tales")
    assert out.rstrip().endswith(str(path)) and load_checkpoint(path)["step"] == step


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_that_is_not_utf_8_does_not_end_the_run(shards, tmp_path, encoding):
    """Samples of random weights hold bytes of all kinds."""
    cfg = tiny(shards, tmp_path, sample_every=6)
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *options(cfg)]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONIOENCODING=encoding)
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert b"sample: " in done.stdout and len(checkpoints(tmp_path / "tales")) == 2
    texts = [e["text"] for e in read_log(tmp_path / "tales") if e["event"] == "sample"]
    assert any(not text.isascii() for text in texts)  # the log keeps them as they are


def test_a_picture_that_fails_does_not_end_the_run(shards, tmp_path, monkeypatch, capsys):
    def fails(run_dir):
        raise ValueError("no ink")

    monkeypatch.setattr(train_gpt2, "plot", fails)
    assert train_gpt2.main(options(tiny(shards, tmp_path))) == 0
    assert "no loss.png: ValueError: no ink" in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["deleted", "garbage"])
def test_a_run_goes_on_where_its_log_is_lost(shards, tmp_path, monkeypatch, loss):
    step_of_train, steps = train_gpt2.train_step, []

    def step(*args):
        steps.append(1)
        if len(steps) == 4:
            log = tmp_path / "tales/log.jsonl"
            log.unlink() if loss == "deleted" else log.write_bytes(b'\xff\xfe\x00[1]\n"a"\n{}\n')
        return step_of_train(*args)

    monkeypatch.setattr(train_gpt2, "train_step", step)
    assert train_gpt2.main(options(tiny(shards, tmp_path))) == 0
    assert checkpoints(tmp_path / "tales")[0][0] == 12
    assert list(losses(read_log(tmp_path / "tales")))[-1] == 11


def test_a_run_without_validations_has_its_picture(shards, tmp_path):
    """An IndexError at the first checkpoint."""
    assert train_gpt2.main(options(tiny(shards, tmp_path, val_every=0))) == 0
    assert (tmp_path / "tales/loss.png").stat().st_size > 1000


# ---- Nothing is silently wrong --------------------------------------------------------------------------------------
def weights_offset(path):
    """Where the largest record of a checkpoint lies in the file, and its length."""
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda i: i.file_size)
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra, info.file_size


@pytest.mark.parametrize("damage", ["page", "bit"])
def test_damage_inside_a_tensor_is_seen_and_the_checkpoint_before_is_taken(run, capsys, damage):
    path = run / "ckpt_000012.pt"
    content = bytearray(path.read_bytes())
    begin, length = weights_offset(path)
    if damage == "page":
        content[begin + 512 : begin + min(length, 4096)] = bytes(min(length, 4096) - 512)
    else:
        content[begin + length // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        load_checkpoint(path)
    assert train_gpt2.newest_checkpoint([run]) == run / "ckpt_000006.pt"
    assert "passing over ckpt_000012.pt" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused_by_name(run):
    path = run / "ckpt_000012.pt"
    ckpt = torch.load(path, weights_only=True)
    ckpt["model"]["transformer.h.1.mlp.c_fc.weight"][3, 4] = float("nan")
    torch.save(ckpt, path)
    with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.weight.*not finite"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize("key, value", [
    ("activation_function", "relu"), ("layer_norm_epsilon", 1e-6), ("scale_attn_weights", False),
    ("add_cross_attention", True), ("scale_attn_by_inverse_layer_idx", True), ("reorder_and_upcast_attn", True),
])  # fmt: skip
def test_a_configuration_that_computes_something_else_is_refused(tmp_path, key, value):
    GPT(CONFIG).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=key):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["data", "name", "log_dir", "init", "resume", "tokenizer", "device"])
def test_an_empty_word_is_a_mistake_and_not_a_default(capsys, name):
    assert train_gpt2.main([f"--{name}", ""]) == 2
    assert name in capsys.readouterr().err
    with pytest.raises(UserError, match=name):
        TrainConfig(**{name: ""})


def test_a_pickled_model_is_told_from_a_damaged_file(tmp_path, shards, capsys):
    """As build-nanogpt and nanoGPT write it: sound, but it holds Python objects, which are never run here."""
    torch.save(dict(model={}, config=replace(CONFIG)), tmp_path / "other.pt")
    assert train_gpt2.main([*options(tiny(shards, tmp_path / "log")), "--init", str(tmp_path / "other.pt")]) == 2
    error = capsys.readouterr().err
    assert "Python objects" in error and "never run" in error


def test_out_of_memory_while_reading_is_not_told_as_damage(run, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("stand-in")

    monkeypatch.setattr(torch, "load", full)
    assert train_gpt2.main(["--resume", str(run / "ckpt_000012.pt")]) == 2
    error = capsys.readouterr().err
    assert "out of memory" in error and "damaged" not in error


def test_a_disk_without_locks_does_not_stop_a_run(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    os.close(train_gpt2.lock(tmp_path / "run"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_overflows_in_float16_changes_no_weight(shards, tmp_path, optimizer):
    """The scaler alone judges each optimizer by itself, but clipping has spread the nan of one to the other."""
    rt = train_gpt2.setup_runtime("cpu", "float32")
    rt.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizers = train_gpt2.configure_optimizers(model, tiny(shards, tmp_path, optimizer=optimizer), "cpu")
    x = torch.randint(CONFIG.vocab_size, (2, CONFIG.block_size))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    hook = model.transformer.h[0].mlp.c_fc.weight.register_hook(lambda grad: grad * math.inf)
    norm = train_gpt2.train_step(model, [(x, x)], optimizers, rt, 1.0)[1]
    hook.remove()
    assert not norm.isfinite() and rt.scaler.get_scale() == 2.0
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    norm = train_gpt2.train_step(model, [(x, x)], optimizers, rt, 1.0)[1]
    assert norm.isfinite() and not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_processes_that_would_resume_at_different_steps_are_stopped(run, monkeypatch, capsys):
    """Hosts without a common disk: they hung."""
    monkeypatch.setattr(train_gpt2.Runtime, "sum", lambda self, values: [v + 6 for v in values])
    assert train_gpt2.main(["--resume", str(run / "ckpt_000012.pt"), "--max_steps", "14"]) == 2
    assert "would resume at step 12" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", [1e-45, 1e-300, 1e-6])
def test_a_tiny_temperature_is_nearly_zero(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.0], [9e8, -9e8, 0.0]])
    assert GPT.sample_next(logits, temperature).flatten().tolist() == [1, 0]
    assert GPT.sample_next(logits, temperature, top_p=1e-300).flatten().tolist() == [1, 0]


def test_names_that_look_like_checkpoints_are_left_alone(run):
    """A raised 3 is a digit to Python's \\d, and no number."""
    odd = run / "ckpt_\N{SUPERSCRIPT THREE}.pt"
    shutil.copy(run / "ckpt_000006.pt", odd)
    assert [step for step, _ in checkpoints(run)] == [12, 6]
    assert train_gpt2.main(["--resume", str(run / "ckpt_000012.pt"), "--max_steps", "14"]) == 0
    assert odd.exists()
