"""train_gpt2.py alone: one file in an empty folder, beside token shards, where only torch and numpy are installed.

It trains, validates, saves, resumes and runs under torchrun there. Every run is a process of its own, in which Python
finds no module that train_gpt2.py asks for, but torch, numpy and the standard library.

Run: pytest tests/test_alone.py
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from tiny_runs import SHARD_SIZES, losses, options, tiny, write_shards

from train_gpt2 import read_log

ROOT = Path(__file__).resolve().parent.parent

# Python runs a sitecustomize.py that it finds on PYTHONPATH when it starts, before any program.
SITECUSTOMIZE = '''
import os, sys

INSTALLED = {"torch", "numpy", *os.environ["TEST_ALSO_INSTALLED"].split()}
MISSING = set(os.environ["TEST_MISSING"].split())


def asked_by_the_lesson():
    """Whether the import that is being looked up stands in train_gpt2.py itself; torch may import what it likes."""
    frame = sys._getframe(2)
    while "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return os.path.basename(frame.f_code.co_filename) == "train_gpt2.py"


class Finder:
    """One of Python's ways to find a module, which finds nothing where the module is to be missing."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        package = name.split(".")[0]
        if package in sys.stdlib_module_names or package in INSTALLED:
            return self.finder.find_spec(name, path, target)
        if asked_by_the_lesson():
            with open(os.environ["TEST_NOT_FOUND"], "a") as f:
                print(package, file=f)
            return None
        return None if package in MISSING else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Finder(finder) for finder in sys.meta_path]
'''
# These nobody finds, torch neither: it does without them.
MISSING = """matplotlib tiktoken safetensors tokenizer hellaswag fineweb generate transformers datasets tqdm regex
    requests huggingface_hub pandas pyarrow IPython ipykernel jupyter"""


def make_folder(folder, *scripts):
    """A folder with copies of these scripts only, and run(*words) -> the finished process of `python *words` in it."""
    folder.mkdir()
    for script in scripts:
        shutil.copy(ROOT / script, folder)
    site = folder.with_name(f"{folder.name} site")
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")

    def run(*words, installed="", missing=MISSING):
        place = dict(PYTHONPATH=str(site), TEST_MISSING=missing, TEST_ALSO_INSTALLED=installed)
        place |= dict(TEST_NOT_FOUND=str(site / "not found.txt"), OMP_NUM_THREADS="1")
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=folder, env={**os.environ, **place}, capture_output=True, text=True, timeout=300, check=False
        )

    return types.SimpleNamespace(path=folder, run=run, not_found=site / "not found.txt")


def lesson(data="shards", **overrides):
    """The words of a command in such a folder: the lesson with a small model."""
    return ["train_gpt2.py", *options(tiny(data, "log", **overrides))]


def succeeded(done):
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done


def write_manifest(folder):
    """The manifest.json that fineweb.py would write beside the shards, as far as the lesson reads it."""
    sizes = dict(zip(sorted(path.name for path in folder.glob("*.npy")), (*SHARD_SIZES, 500), strict=True))
    shards = [dict(file=f, split="val" if "val" in f else "train", tokens=n, bytes=3 * n) for f, n in sizes.items()]
    manifest = dict(tokenizer=dict(vocab_size=300, sha256="0" * 64), source=dict(dataset="made up"), shards=shards)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder, and in it a first run of 12 steps, which was started as if there could be something to continue."""
    folder = make_folder(tmp_path_factory.mktemp("alone") / "empty", "train_gpt2.py")
    write_shards(folder.path / "shards")
    (folder.path / "shards/tokenizer.json").unlink()
    folder.first = succeeded(folder.run(*lesson(vocab_size=300, resume="auto")))
    return folder


def val_losses(folder):
    return {e["step"]: e["val_loss"] for e in read_log(folder) if e["event"] == "val"}


def test_it_trains_validates_and_saves(alone):
    log = alone.path / "log/tales"
    assert sorted(losses(read_log(log))) == list(range(12))
    val = val_losses(log)
    assert list(val) == [0, 5, 10, 12] and val[12] < val[0] - 0.1
    names = ["ckpt_000006.pt", "ckpt_000012.pt", "log.jsonl", "samples.txt"]
    assert sorted(path.name for path in log.iterdir()) == names
    assert sorted(path.name for path in alone.path.iterdir() if path.name != "__pycache__") == [
        "log", "shards", "train_gpt2.py",
    ]  # fmt: skip
    assert alone.first.stderr == ""


def test_it_says_what_it_does_without(alone):
    """A picture after each of its two checkpoints, and samples."""
    assert len(re.findall(r"^no loss.png: .*matplotlib.*$", alone.first.stdout, re.MULTILINE)) == 2
    assert len(re.findall(r"^.*no samples.*$", alone.first.stdout, re.MULTILINE)) == 1
    assert [e for e in read_log(alone.path / "log/tales") if e["event"] == "sample"] == []


def test_it_asks_for_nothing_else(alone):
    """And it has asked for these two, so they were really out of its reach."""
    assert set(alone.not_found.read_text().split()) == {"tokenizer", "matplotlib"}


def test_it_resumes_to_the_same_losses(alone):
    """The same command again, with the checkpoint of step 6 as the newest."""
    shutil.copytree(alone.path / "log/tales", alone.path / "log/again")
    (alone.path / "log/again/ckpt_000012.pt").unlink()
    done = succeeded(alone.run(*lesson(vocab_size=300, resume="auto", name="again")))
    assert "going on from step 6" in done.stdout
    first, again = (read_log(alone.path / "log" / name) for name in ("tales", "again"))
    assert losses(again) == losses(first)  # each step once, and bit for bit
    assert val_losses(alone.path / "log/again") == val_losses(alone.path / "log/tales")
    assert [e["step"] for e in again if e["event"] == "config"] == [0, 6]


def test_it_runs_under_torchrun(alone):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = succeeded(alone.run(*torchrun, *lesson(vocab_size=300, name="pair")))
    assert val_losses(alone.path / "log/pair") == pytest.approx(val_losses(alone.path / "log/tales"), rel=2e-5)
    assert read_log(alone.path / "log/pair")[0]["world_size"] == 2
    assert len(re.findall(r"^step     0/\d+ \| val loss", done.stdout, re.M)) == 1


def test_it_reads_the_manifest(alone, tmp_path):
    """The vocabulary is that of the manifest, and the bytes give bits per byte."""
    shutil.copytree(alone.path / "shards", tmp_path / "shards")
    write_manifest(tmp_path / "shards")
    succeeded(alone.run(*lesson(tmp_path / "shards", max_steps=1, name="manifest")))
    config, *events = read_log(alone.path / "log/manifest")
    assert config["model"]["vocab_size"] == 300
    last = [e for e in events if e["event"] == "val"][-1]
    assert last["val_bpb"] == pytest.approx(last["val_loss"] * 499 / math.log(2) / 1500)


def test_a_text_needs_the_tokenizer_beside_it(alone, small_text):
    shutil.copy(small_text, alone.path / "input.txt")
    done = alone.run(*lesson("input.txt", name="text"))
    (alone.path / "input.txt").unlink()
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ") and "tokenizer.py" in error and hint.startswith("hint: ")
    assert not (alone.path / "log/text").exists()


def test_with_the_tokenizer_beside_it_a_text_will_do(tmp_path, small_text):
    """tokenizer.py may import tiktoken and regex, which it needs; the lesson still may not."""
    folder = make_folder(tmp_path / "empty", "train_gpt2.py", "tokenizer.py")
    shutil.copy(small_text, folder.path / "input.txt")
    missing = " ".join({*MISSING.split()} - {"tokenizer", "tiktoken", "regex", "requests"})
    words = lesson("input.txt", vocab_size=300, max_steps=2, sample_every=2)
    succeeded(folder.run(*words, installed="tokenizer", missing=missing))
    events = read_log(folder.path / "log/tales")
    assert sorted(losses(events)) == [0, 1]
    assert all(e["val_bpb"] > 0 for e in events if e["event"] == "val")
    assert len([e for e in events if e["event"] == "sample"]) == 1 + 3  # at the beginning, and three at the end
    assert set(folder.not_found.read_text().split()) == {"matplotlib"}
