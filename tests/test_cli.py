"""
Mistakes on the command line: each gives `error:` and `hint:`, exit code 2, no traceback, and changes nothing on disk.
Everything runs in this process, through main().

    python -m pytest tests/test_cli.py
"""

import argparse
import errno
import io
import json
import os
import pickle
import random
import re
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import tokenizer
import train_gpt2
from train_gpt2 import GPT, RECIPES, GPTConfig, TrainConfig, UserError, load_checkpoint, main


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory of its own, and no pictures, which take longer than a tiny run."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(train_gpt2, "plot", lambda run_dir: True)
    return place


def tiny_options(**overrides):
    from conftest import TINY

    settings = {k: v for k, v in {**TINY, "max_steps": 2, **overrides}.items() if v is not None}
    flags = [f"--{k}" if v else f"--no-{k}" for k, v in settings.items() if isinstance(v, bool)]
    return flags + [f"--{k}={v}" for k, v in settings.items() if not isinstance(v, bool)]


@pytest.fixture
def options(small_text):
    """options(**overrides) -> the command line of a run that would work, with these options changed or left out."""
    return lambda **overrides: tiny_options(**{"data": str(small_text), **overrides})


def snapshot(folder):
    """Everything under a folder: names, contents, and directories."""
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(here, capsys):
    """refused(argv, *words): main(argv) prints error: and hint:, which hold the words, returns 2 and leaves the folder
    as it was. Returns what was printed."""

    def check(argv, *words):
        before = snapshot(here)
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 2
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith("passing over ckpt_")]
        assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), err
        assert len(lines[0]) > len("error: ") + 5 and len(lines[1]) > len("hint: ") + 5 and "Traceback" not in err
        for word in words:
            assert word in err, err
        assert snapshot(here) == before
        return out + err

    return check


def test_the_options_of_these_tests_work(options):
    """Otherwise they would prove nothing."""
    assert main(options()) == 0


# ------------------------------------------------------------------------------------------------------------ options
ABSURD = [
    ("n_layer", "0"), ("n_layer", "-1"), ("n_layer", "1.5"), ("n_layer", "x"), ("n_head", "0"), ("n_embd", "0"),
    ("n_embd", "-32"), ("block_size", "0"), ("block_size", ""), ("lr", "nan"), ("lr", "-1"), ("lr", "inf"),
    ("lr", "fast"), ("min_lr", "nan"), ("min_lr", "-1e-9"), ("min_lr", "1"), ("max_steps", "-5"),
    ("max_steps", "1e3"), ("max_steps", "9" * 30), ("total_batch", "0"), ("total_batch", "-256"), ("seed", "-1"),
    ("seed", "9" * 30), ("seed", "0.5"), ("micro_batch", "1.5"), ("micro_batch", "-2"), ("micro_batch", "many"),
    ("vocab_size", "0"), ("vocab_size", "256"), ("vocab_size", "70000"), ("dropout", "1"), ("dropout", "-0.1"),
    ("dropout", "nan"), ("clip", "0"), ("clip", "-1"), ("clip", "nan"), ("clip", "inf"), ("warmup_steps", "-1"),
    ("weight_decay", "-0.1"), ("weight_decay", "nan"), ("val_every", "-1"), ("val_tokens", "0"), ("log_every", "0"),
    ("sample_every", "-1"), ("save_every", "-1"), ("hellaswag_every", "-1"), ("device", "tpu"), ("device", "cuda:x"),
    ("device", ""), ("device", "meta"), ("dtype", "float64"), ("dtype", "bf16"), ("compile", "maybe"),
    ("shuffle", "maybe"), ("zero", "false"), ("no-shuffle", "true"), ("optimizer", "sgd"), ("recipe", "gpt5"),
    ("recipe", ""), ("name", "a/b"), ("name", ".."), ("name", "a\\b"), ("name", "."), ("name", "/tmp"),
]  # fmt: skip


@pytest.mark.parametrize("name, value", ABSURD, ids=[f"{n}={v[:9]}" for n, v in ABSURD])
def test_absurd_values(options, refused, name, value):
    err = refused(options(**{name: value}))
    assert name in err or value in err


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e300", "two"])
def test_absurd_epochs(options, refused, value):
    refused(options(max_steps=None, epochs=value), "epochs")


def test_epochs_and_steps_contradict(options, refused):
    """Both say how long a run is, so one of the two would be ignored without a word."""
    refused(options(epochs=1, max_steps=2), "epochs", "max_steps")


def test_no_steps_contradict_what_asks_for_some(options, refused, trained):
    """Otherwise a model without training would be looked at, and taken for the run's own."""
    refused([*options(max_steps=0), f"--log_dir={trained.parent}", "--resume"], "max_steps")
    refused(options(max_steps=0, resume=trained / "ckpt_000002.pt"), "max_steps")


def test_no_steps_only_look(options, here, capsys):
    """--max_steps 0 validates and samples, and leaves nothing behind."""
    assert main(options(max_steps=0)) == 0
    out = capsys.readouterr().out
    assert "val loss" in out and out.count("sample: ") == 3 and "tok/s" not in out
    assert snapshot(here) == {}


def test_unknown_options_get_a_suggestion(options, refused):
    refused([*options(), "--max-steps=3"], "--max-steps", "did you mean --max_steps")
    refused([*options(), "--learning_rate", "3"], "unrecognized", "--help")
    refused([*options(), "--n_layers", "3"], "did you mean --n_layer?")
    refused([*options(), "--l", "3"])  # no abbreviations: --l could become --lr today and another option tomorrow
    refused([*options(), "extra"], "unrecognized arguments: extra")
    refused([*options(), "--lr"], "--lr", "expected one argument")
    refused([*options(), "--shuffle", "false"], "false")  # booleans are --shuffle and --no-shuffle
    refused([*options(), "--no-lr"], "--no-lr")
    refused(["--recipe"], "--recipe", "expected one argument")


def test_sizes_that_do_not_divide_name_one_that_does(options, refused):
    refused(options(n_embd=33), "33", "2 heads", "use n_embd 34")
    refused(options(total_batch=7), "total_batch 7", "--total_batch 32")
    refused(options(total_batch=250), "250", "--total_batch 224")
    refused(options(micro_batch=3), "read 3 at once", "--micro_batch 2")
    refused(options(optimizer="muon", zero=True), "zero", "adamw")


def test_memory_that_the_system_refuses(options, refused, monkeypatch):
    """torch's own error on a CPU has no class of its own."""

    def allocate(*args):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(train_gpt2, "configure_optimizers", allocate)
    refused(options(), "error: out of memory", "--micro_batch")


def test_devices_that_are_not_there(options, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused(options(device="cuda"), "cuda", "cpu")
    refused(options(device="cuda:1"), "cuda:1", "cpu")
    refused(options(device="mps"), "mps", "cpu")
    refused(options(dtype="float16"), "float16", "bfloat16")


def test_a_compiler_that_is_missing(options, monkeypatch, capsys):
    """torch.compile reports its troubles, such as a missing C++ compiler, at the first step."""

    def backend(graph, inputs):
        raise RuntimeError("no compiler at hand")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: compile(model, backend=backend, **how))
    monkeypatch.setattr(train_gpt2, "evaluate", lambda *a: 1.0)
    assert main(options(compile="true")) == 2  # the folder is made by then, so refused() would not agree
    err = capsys.readouterr().err
    assert err.startswith("error: torch.compile failed") and err.count("\n") == 2 and "--compile false" in err


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_shows_units_and_the_defaults_of_the_recipe(recipe, capsys):
    for argv in (["--recipe", recipe, "--help"], ["--help", f"--recipe={recipe}"]):
        with pytest.raises(SystemExit) as e:
            main(argv)
        assert e.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, value in vars(TrainConfig.from_recipe(recipe)).items():
        assert f"--{name} " in text or f"--{name}, --no-{name} " in text
        if value is not None and name != "recipe":
            assert f"(default: {value})" in text
    for unit in ("tokens a step, over all processes", "sequences read at once", "steps between", "learning rate"):
        assert unit in text
    assert all(name in text for name in RECIPES)


def test_help_of_every_option_says_something(capsys):
    parser = train_gpt2.make_parser(TrainConfig())
    for action in parser._actions:
        assert len(action.help) > 4, action.dest
        assert action.dest == "help" or action.default is argparse.SUPPRESS


OPTIONS = [f.name for f in fields(TrainConfig)] + [f"no-{f.name}" for f in fields(TrainConfig) if f.type is bool]


@pytest.mark.parametrize("name", OPTIONS)
def test_torchrun_hands_every_option_on(name):
    """torchrun looks at the script's options too, and stops at one that is the beginning of two of its own."""
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(["--nproc_per_node=2", "train_gpt2.py", f"--{name}", "1"])
    assert given.training_script == "train_gpt2.py" and given.training_script_args == [f"--{name}", "1"]


def test_the_run_has_a_name(options, here):
    """The folder of a run is called as --name says; without it, as the recipe."""
    assert train_gpt2.config_from_args(["--name", "mine"]).name == "mine"
    assert main(options(name="mine")) == 0
    assert main(options()) == 0
    assert sorted(p.name for p in (here / "log").iterdir()) == ["mine", "tales"]
    assert (here / "log" / "mine" / "ckpt_000002.pt").exists()


# --------------------------------------------------------------------------------------------------------------- data
def test_data_that_is_no_text(options, refused, tmp_path):
    refused(options(data=tmp_path / "nowhere.txt"), "nowhere.txt", "--data")
    refused(options(data="x" * 5000), "x" * 100)  # longer than a file system's names
    faults = {
        "empty.txt": (b"", "no text"),
        "short.txt": (b"x", "too short"),
        "line.txt": (b"no end of line, and no second document", "more text"),
        "spaces.txt": (b" \n" * 5000, ""),
        "markers.txt": (b"<|endoftext|>\n" * 1000, "no text"),
        "poor.txt": (b"aaaa\n" * 100, ""),  # too few pairs for a vocabulary of 300
        "latin1.txt": ("Zürich liegt am See.\n" * 500).encode("latin-1"),
        "utf16.txt": ("A text from an old Windows.\n" * 500).encode("utf-16"),
        "zeros.txt": (b"\0" * 10_000, "zero bytes"),
        "picture.png": b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(5000),
    }
    for name, fault in faults.items():
        raw, word = fault if isinstance(fault, tuple) else (fault, "not UTF-8 text")
        (tmp_path / name).write_bytes(raw)
        refused(options(data=tmp_path / name), word)


def test_text_of_one_window_less_than_needed(options, refused, tmp_path):
    (tmp_path / "small.txt").write_text("one two three four five six seven\n" * 20)
    refused(options(data=tmp_path / "small.txt", vocab_size=257, block_size=1024, total_batch=2048), "a window 1025")


def test_data_that_may_not_be_read(options, monkeypatch, capsys):
    """As root everything may be read; so the system's answer is put in its mouth."""

    usual = open

    def forbidden(path, *args, **kwargs):
        if str(path).endswith("small.txt"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", forbidden)
    code = main(options())
    monkeypatch.undo()
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 2 and "small.txt" in err and "Permission denied" in err


def write_shards(folder, names=("x_val_000000.npy", "x_train_000001.npy"), tokens=600, manifest=True):
    """A directory as fineweb.py makes it, with tokens below 300 and a tokenizer of 300."""
    folder.mkdir()
    encoding = a_tokenizer()
    tokenizer.save_tokenizer(encoding, folder / "tokenizer.json")
    entries = []
    for name in names:
        np.save(folder / name, np.arange(tokens, dtype=np.uint16) % 300)
        split = "val" if "val" in name else "train"
        entries.append(dict(file=name, split=split, tokens=tokens, documents=1, bytes=4 * tokens, sha256="?"))
    if manifest:
        content = dict(
            format=1, source=dict(kind="files", files=["x.txt"]), shard_size=tokens, complete=True, shards=entries,
            tokenizer=dict(name="x", sha256=tokenizer.fingerprint(encoding), vocab_size=300), versions={},
        )  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def a_tokenizer(seed=0):
    letters = "".join(random.Random(seed).choices("abcdefgh ", k=2000))
    return tokenizer.make_encoding(tokenizer.train_bpe([letters], 300), "x")


def test_directories_without_the_right_shards(options, refused, tmp_path, here):
    (tmp_path / "none").mkdir()
    refused(options(data=tmp_path / "none"), "no training shard", "fineweb.py")
    write_shards(tmp_path / "train", ["x_train_000001.npy"])
    refused(options(data=tmp_path / "train"), "validation shard")
    write_shards(tmp_path / "val", ["x_val_000000.npy"])
    refused(options(data=tmp_path / "val"), "training shard")
    write_shards(tmp_path / "one", tokens=1, manifest=False)
    refused(options(data=tmp_path / "one"), "at least two tokens")
    write_shards(tmp_path / "short", tokens=20)
    refused(options(data=tmp_path / "short"), "20 tokens, a window 33")
    refused(options(data=here), "no training shard")


def test_shards_that_work(options, tmp_path):
    """The directory that the next tests damage is sound, with manifest and without."""
    assert main(options(data=write_shards(tmp_path / "with"), name="a")) == 0
    assert main(options(data=write_shards(tmp_path / "without", manifest=False), name="b")) == 0


def test_damaged_shards(options, refused, tmp_path):
    folder = write_shards(tmp_path / "data", manifest=False)
    shard = folder / "x_train_000001.npy"
    good = shard.read_bytes()
    shard.write_bytes(good[:-2])
    refused(options(data=folder), "x_train_000001.npy", "damaged")
    np.save(shard, np.arange(600))
    refused(options(data=folder), "int64", "uint16")
    np.save(shard, np.full(600, 301, dtype=np.uint16))
    assert main(options(data=folder)) == 2  # noticed at the first step only: reading all shards first takes too long


MANIFESTS = {
    "empty": lambda m: "",
    "no JSON": lambda m: "{",
    "a list": lambda m: "[]",
    "null": lambda m: "null",
    "deep": lambda m: "[" * 200_000,
    "no shards": lambda m: {**m, "shards": []},
    "shards no list": lambda m: {**m, "shards": 7},
    "shards of text": lambda m: {**m, "shards": ["x_val_000000.npy"]},
    "no tokenizer": lambda m: {k: v for k, v in m.items() if k != "tokenizer"},
    "vocabulary a word": lambda m: {**m, "tokenizer": {**m["tokenizer"], "vocab_size": "many"}},
    "source null": lambda m: {**m, "source": None},
    "other tokens": lambda m: {**m, "shards": [{**s, "tokens": 601} for s in m["shards"]]},
    "tokens a word": lambda m: {**m, "shards": [{**s, "tokens": "many"} for s in m["shards"]]},
    "no bytes": lambda m: {**m, "shards": [{k: v for k, v in s.items() if k != "bytes"} for s in m["shards"]]},
    "bytes a word": lambda m: {**m, "shards": [{**s, "bytes": "many"} for s in m["shards"]]},
    "missing shard": lambda m: {**m, "shards": [*m["shards"], {**m["shards"][1], "file": "x_train_000002.npy"}]},
    "other tokenizer": lambda m: {**m, "tokenizer": {**m["tokenizer"], "sha256": "0" * 64}},
}


@pytest.mark.parametrize("fault", MANIFESTS)
def test_a_manifest_that_does_not_fit(options, refused, tmp_path, fault):
    folder = write_shards(tmp_path / "data")
    path = folder / "manifest.json"
    content = MANIFESTS[fault](json.loads(path.read_text()))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    refused(options(data=folder))


def test_bytes_that_cannot_be_are_unknown(options, tmp_path, capsys):
    """Without a true count of bytes there are no bits per byte, and none are invented."""
    folder = write_shards(tmp_path / "data")
    manifest = json.loads((folder / "manifest.json").read_text())
    for i, count in enumerate((4, 0, -1)):
        content = {**manifest, "shards": [{**s, "bytes": count} for s in manifest["shards"]]}
        (folder / "manifest.json").write_text(json.dumps(content))
        assert main(options(data=folder, name=f"run{i}")) == 0
        assert ("bits per byte" in capsys.readouterr().out) == (count > 0)
        events = train_gpt2.read_log(f"log/run{i}")
        assert all((e["val_bpb"] is not None) == (count > 0) for e in events if e["event"] == "val")


def test_tokenizers_that_do_not_fit(options, refused, tmp_path, small_text):
    (tmp_path / "wrong.json").write_text('{"model": {"vocab": {}}}')
    (tmp_path / "damaged.json").write_bytes(b"\x80\x04")
    tokenizer.save_tokenizer(a_tokenizer(seed=1), tmp_path / "other.json")
    folder = write_shards(tmp_path / "data")
    for data in (small_text, folder):
        refused(options(data=data, tokenizer=tmp_path / "nowhere.json"), "nowhere.json")
        refused(options(data=data, tokenizer=tmp_path / "wrong.json"), "wrong.json")
        refused(options(data=data, tokenizer=tmp_path / "damaged.json"), "damaged.json")
    refused(options(data=folder, tokenizer=tmp_path / "other.json"), "were made with another tokenizer", "--tokenizer")
    (folder / "manifest.json").unlink()
    refused(options(data=folder, tokenizer=tmp_path / "nowhere.json"), "nowhere.json")


# ------------------------------------------------------------------------------------------------------ run folders
def test_log_dir_that_cannot_be(options, refused, here, monkeypatch):
    (here / "file").write_text("mine")
    refused(options(log_dir="file"), "file/tales")
    refused(options(log_dir="file/below"), "file/below/tales")

    def forbidden(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    refused(options(), "Permission denied")


def test_log_that_cannot_be_written(options, refused, here, monkeypatch):
    """The folder is there, but its disk is full, or it may not be written in."""
    (here / "log" / "mine").mkdir(parents=True)
    real = open

    for number, reason in ((errno.EACCES, "Permission denied"), (errno.ENOSPC, "No space left on device")):

        def no_room(file, mode="r", *args, **kwargs):
            if set(mode) & set("wax+") and "log" in str(file):
                raise OSError(number, reason, str(file))  # noqa: B023
            return real(file, mode, *args, **kwargs)

        monkeypatch.setattr("builtins.open", no_room)
        assert main(options(name="mine")) == 2
        monkeypatch.setattr("builtins.open", real)
        assert list((here / "log" / "mine").iterdir()) == []


def test_nothing_to_resume(options, refused, here, tmp_path, capsys):
    """auto begins the run where there is no checkpoint, and says in which folder; a checkpoint that is asked for by its
    path must be there."""
    assert main(options(resume="auto")) == 0
    out = capsys.readouterr().out
    assert f"folder {Path('log/tales')}\n" in out and "going on" not in out
    assert re.search(r"^step     0/\d+ \| val loss", out, re.M)
    assert main([*options(name="mine"), "--resume"]) == 0  # without a value: auto
    assert f"folder {Path('log/mine')}\n" in capsys.readouterr().out
    for name in ("tales", "mine"):
        assert load_checkpoint(here / "log" / name / "ckpt_000002.pt")["step"] == 2
    assert main([*options(name="mine"), "--resume"]) == 0  # the same command again begins nothing
    assert "going on from step 2" in capsys.readouterr().out
    refused(["--resume", here / "ckpt_000001.pt"], "ckpt_000001.pt")
    refused(["--resume", tmp_path])
    refused([*options(name="a/b"), "--resume"], "a/b")


def test_a_folder_that_holds_a_run_is_not_written_over(options, refused):
    assert main(options(name="mine")) == 0
    refused(options(name="mine"), "holds a run already", "--resume")


# ------------------------------------------------------------------------------------------------------- checkpoints
@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_text):
    """The folder of a finished run of two steps: ckpt_000002.pt and what is beside it."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(tiny_options(data=small_text, log_dir=folder)) == 0
    return folder / "tales"


@pytest.fixture
def ckpt(trained):
    return load_checkpoint(trained / "ckpt_000002.pt")


class Bomb:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def finetune(init, small_text, **more):
    sizes = dict(n_layer=None, n_head=None, n_embd=None, block_size=None, vocab_size=None)
    return tiny_options(data=small_text, recipe="finetune", init=init, **sizes, **more)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_do_not_run(refused, small_text, here, trained, ckpt):
    """In torch's own format, as a bare pickle, as a .bin in a model's directory, and hidden in a true checkpoint."""
    bomb = Bomb(here / "hit")
    torch.save({**ckpt, "bomb": bomb}, here / "ckpt_000001.pt")
    (here / "bare.pt").write_bytes(pickle.dumps(bomb))
    torch.save(bomb, here / "old.pt", _use_new_zipfile_serialization=False)
    (here / "model").mkdir()
    torch.save({"wte.weight": bomb}, here / "model" / "pytorch_model.bin")
    (here / "model" / "config.json").write_text(
        json.dumps(dict(n_positions=8, vocab_size=9, n_layer=1, n_head=1, n_embd=4))
    )
    (here / "pickled.json").write_bytes(pickle.dumps(bomb))
    for file in ("ckpt_000001.pt", "bare.pt", "old.pt"):
        refused(["--resume", here / file], file)
        refused(finetune(here / file, small_text), file)
    refused(finetune(here / "model", small_text), "model")
    refused(finetune(here / "model" / "pytorch_model.bin", small_text), "pytorch_model.bin")
    refused(finetune(trained / "ckpt_000002.pt", small_text, tokenizer=here / "pickled.json"), "pickled.json")
    assert not (here / "hit").exists()


NO_CHECKPOINTS = {
    "list": lambda c: [1, 2, 3],
    "tensor": lambda c: torch.zeros(3),
    "dict": lambda c: {"a": 1},
    "weights": lambda c: c["model"],
    "text": lambda c: "hello",
    "nothing": lambda c: None,
    "types": lambda c: {**c, "step": "2"},
    "negative": lambda c: {**c, "step": -2},
    "config": lambda c: {**c, "config": [1]},
    "optimizer": lambda c: {**c, "optimizers": 7},
    "scaler": lambda c: {**c, "scaler": None},
    "best": lambda c: {**c, "best": 3},
    "model": lambda c: {**c, "model": [1]},
    "sizes": lambda c: {**c, "model_config": {**c["model_config"], "n_embd": 10**7, "n_head": 1}},
    "layers": lambda c: {**c, "model_config": {**c["model_config"], "n_layer": 10**9}},
    "block": lambda c: {**c, "model_config": {**c["model_config"], "block_size": 10**10}},
    "words": lambda c: {**c, "model_config": {**c["model_config"], "n_layer": "1"}},
    "extra": lambda c: {**c, "model_config": {**c["model_config"], "n_wheels": 4}},
    "bare": lambda c: {"model": {}, "model_config": c["model_config"]},
}


@pytest.mark.parametrize("fault", NO_CHECKPOINTS)
def test_files_that_are_no_checkpoints(refused, small_text, here, ckpt, fault):
    path = here / f"no_{fault}.pt"
    torch.save(NO_CHECKPOINTS[fault](ckpt), path)
    refused(["--resume", path], path.name)
    refused(finetune(path, small_text), path.name)


def test_files_that_are_no_models(refused, small_text, here):
    (here / "text.bin").write_text("hello")
    torch.save([1, 2], here / "list.bin")
    for name in ("text.bin", "list.bin"):
        refused(finetune(here / name, small_text), name)
    refused(finetune(here / "nowhere.pt", small_text), "nowhere.pt")
    refused(finetune("gpt6", small_text), "gpt6", "gpt2")
    refused(tiny_options(data=small_text, recipe="finetune", n_layer=None, n_head=None, n_embd=None), "--init")


def with_adamw(ckpt, **changes):
    return {**ckpt, "optimizers": [{**ckpt["optimizers"][0], **changes}]}


DEEPER = {
    "no optimizer": lambda c: {**c, "optimizers": []},
    "empty optimizer": lambda c: with_adamw(c, state={}, param_groups=[]),
    "another optimizer": lambda c: {**c, "optimizers": [{"a": 1}]},
    "two optimizers": lambda c: {**c, "optimizers": c["optimizers"] * 2},
    "an optimizer's name": lambda c: {**c, "optimizers": ["adamw"]},
    "moments of other shapes": lambda c: with_adamw(
        c, state={k: {**v, "exp_avg": torch.zeros(3)} for k, v in c["optimizers"][0]["state"].items()}
    ),
    "best empty": lambda c: {**c, "best": []},
    "best words": lambda c: {**c, "best": ["low", "early"]},
    "step beyond": lambda c: {**c, "step": 10**9},
    "config empty": lambda c: {**c, "config": {}},
    "a setting less": lambda c: {**c, "config": {k: v for k, v in c["config"].items() if k != "seed"}},
    "lr a word": lambda c: {**c, "config": {**c["config"], "lr": "fast"}},
    "data a number": lambda c: {**c, "config": {**c["config"], "data": 7}},
    "no batch": lambda c: {**c, "config": {**c["config"], "total_batch": None}},
    "no recipe": lambda c: {**c, "config": {**c["config"], "recipe": None}},
    "no last norm": lambda c: {**c, "model": {k: v for k, v in c["model"].items() if "ln_f" not in k}},
    "another head": lambda c: {**c, "model": {**c["model"], "lm_head.weight": torch.zeros(2, 2)}},
}


@pytest.mark.parametrize("fault", DEEPER)
def test_checkpoints_that_lie_deeper_inside(refused, here, ckpt, fault):
    """Sound at first sight; what is wrong shows only where it is used, and still ends in one clear line."""
    torch.save(DEEPER[fault](ckpt), here / "lie.pt")
    refused(["--resume", here / "lie.pt", "--max_steps", "4"])


def test_truncated_and_damaged_checkpoints(refused, small_text, here, trained):
    """Cut anywhere, or with a byte changed in the parts that describe the rest. (A changed byte of a weight is a
    weight; the archive's checksums are not read.)"""
    good = (trained / "ckpt_000002.pt").read_bytes()
    rng = random.Random(0)
    for n in [0, 1, 4, 100, len(good) // 2, len(good) - 1, *(rng.randrange(len(good)) for _ in range(5))]:
        (here / "cut.pt").write_bytes(good[:n])
        with pytest.raises(UserError):
            load_checkpoint(here / "cut.pt")
    refused(["--resume", here / "cut.pt"], "cut.pt", "damaged")
    refused(finetune(here / "cut.pt", small_text), "cut.pt", "damaged")
    with zipfile.ZipFile(trained / "ckpt_000002.pt") as archive:
        inside = [name for name in archive.namelist() if name.endswith("data.pkl")]
        start = good.index(archive.read(inside[0]))
        length = len(archive.read(inside[0]))
    for _ in range(60):
        at = start + rng.randrange(length)
        (here / "changed.pt").write_bytes(good[:at] + rng.randbytes(1) + good[at + 1 :])
        try:
            load_checkpoint(here / "changed.pt")
        except UserError as e:
            assert "changed.pt" in str(e) and "\n" not in str(e)


@pytest.fixture
def old_version(ckpt):
    """A checkpoint as the version before wrote it: one optimizer, states of random generators, its own bookkeeping."""
    config = {k: v for k, v in ckpt["config"].items() if k != "name"} | dict(run=None, verify=False)
    shared = {k: ckpt[k] for k in ("model", "model_config", "data", "step")}
    return shared | dict(
        config=config, optimizer=ckpt["optimizers"][0], rng=[torch.get_rng_state()], position=16, looked_up=True,
        best_loss=5.5, best_step=2,
    )  # fmt: skip


def test_a_checkpoint_of_an_earlier_version_is_refused(options, refused, small_text, here, trained, old_version):
    """In one clear line, wherever it is given; and a folder full of them is not written over as if it were empty."""
    run = here / "log" / "tales"
    run.mkdir(parents=True)
    torch.save(old_version, run / "ckpt_000002.pt")
    (run / "log.jsonl").write_text('{"event": "train", "step": 0, "loss": 5.7}\n')
    refused(["--resume", run / "ckpt_000002.pt"], "ckpt_000002.pt", "earlier version")
    refused(finetune(run / "ckpt_000002.pt", small_text), "ckpt_000002.pt", "earlier version")
    told = refused(options(resume="auto", max_steps=4), "tales", "--name")
    assert "ckpt_000002.pt" in told and "earlier version" in told


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again(options, refused, here, trained):
    """Beginning in its folder would empty its log and remove what may still be saved of it."""
    run = here / "log" / "tales"
    run.mkdir(parents=True)
    good = (trained / "ckpt_000002.pt").read_bytes()
    (run / "log.jsonl").write_bytes((trained / "log.jsonl").read_bytes())
    for step in (2, 4):
        (run / f"ckpt_{step:06d}.pt").write_bytes(good[: 1000 * step])
    told = refused(options(resume="auto", max_steps=6), "tales", "--name")
    assert told.count("is damaged") == 2


def test_a_newer_damaged_checkpoint_is_passed_over(options, here, trained, capsys):
    good = (trained / "ckpt_000002.pt").read_bytes()
    run = here / "log" / "tales"
    run.mkdir(parents=True)
    (run / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    (run / "ckpt_000002.pt").write_bytes(good)
    (run / "ckpt_000004.pt").write_bytes(good[:5000])
    assert main(options(resume="auto", max_steps=3)) == 0
    said = capsys.readouterr()
    assert "passing over ckpt_000004.pt" in said.err and "going on from step 2" in said.out


def test_a_checkpoint_of_another_shape(options, refused, trained, small_text):
    path = trained / "ckpt_000002.pt"
    refused(options(resume=path, n_layer=2), "n_layer is 2", "has 1")
    refused(options(resume=path, n_embd=64), "n_embd")
    refused(options(resume=path, max_steps=1), "step 1", "--max_steps")
    refused(options(init=path, n_layer=2), "n_layer is 2")
    refused([*finetune(path, small_text), "--block_size=64"], "32 positions, not 64")


def test_a_model_directory_that_lies(refused, small_text, here, trained):
    """config.json and weights that do not belong together; JSON that is none; an index that names nothing."""
    sound = GPT(GPTConfig(block_size=32, vocab_size=300, n_layer=1, n_head=2, n_embd=32))
    config = dict(n_positions=32, vocab_size=300, n_layer=1, n_head=2, n_embd=32)
    lies = [
        dict(n_embd=10**7), dict(n_layer=10**9), dict(n_positions=10**12), dict(vocab_size=10**12), dict(n_head="2"),
        dict(n_head=0),
    ]  # fmt: skip
    faults = ["", "{", "[]", "null", {"n_layer": 1}, *({**config, **lie} for lie in lies)]
    for i, fault in enumerate(faults):
        folder = here / f"model{i}"
        sound.save_pretrained(folder)
        (folder / "config.json").write_text(fault if isinstance(fault, str) else json.dumps(fault))
        refused(finetune(folder, small_text, tokenizer=trained / "tokenizer.json"), f"model{i}")
    sound.save_pretrained(here / "cut")
    file = here / "cut" / "model.safetensors"
    for n in (0, 5, 100, 5000):
        file.write_bytes(file.read_bytes()[:n])
        refused(finetune(here / "cut", small_text), str(here / "cut"), "damaged")
    file.unlink()
    refused(finetune(here / "cut", small_text), "no model")
    for index in (
        "",
        "{}",
        "[]",
        '{"weight_map": 7}',
        '{"weight_map": {"a": 7}}',
        '{"weight_map": {"a": "../../etc/x"}}',
    ):
        (here / "cut" / "model.safetensors.index.json").write_text(index)
        refused(finetune(here / "cut", small_text))


# --------------------------------------------------------------------------------------------------------- full disks
class FullDisk(io.FileIO):
    """A file on a disk with room for a few thousand bytes more."""

    def write(self, data):
        if self.tell() + len(data) > 5000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(options, refused, here, monkeypatch):
    """The disk fills up between the checkpoint of step 2 and the end: exit code 2, step 2 is whole, no rest is left."""
    real = open

    def open_on_full_disk(file, mode="r", *args, **kwargs):
        if mode == "wb" and "ckpt_000004" in str(file):
            return FullDisk(file, "w")
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", open_on_full_disk)
    code = main(options(max_steps=4, save_every=2))
    monkeypatch.setattr("builtins.open", real)
    assert code == 2
    folder = here / "log" / "tales"
    assert [p.name for p in folder.glob("*ckpt*")] == ["ckpt_000002.pt"]
    assert load_checkpoint(folder / "ckpt_000002.pt")["step"] == 2
    assert main(["--resume"]) == 0  # with room again it goes on, and ends
    assert load_checkpoint(folder / "ckpt_000004.pt")["step"] == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_truly_full_device(here):
    """The real thing: torch hides the system's error in one of its own, safetensors in another."""
    target = here / "ckpt.pt"
    target.write_text("the last good one")
    os.symlink("/dev/full", here / "ckpt.pt.tmp")
    with pytest.raises(UserError, match="No space left on device") as e:
        train_gpt2.write_whole(target, lambda f: torch.save({"a": torch.zeros(10**5)}, f))
    assert "room" in e.value.hint
    assert [p.name for p in here.iterdir()] == ["ckpt.pt"] and target.read_text() == "the last good one"


def test_writing_replaces_whole_files_or_nothing(here):
    """Whatever fails while writing, an interrupt too, the old file stays and no half-written one is left."""
    path = here / "file"
    train_gpt2.write_whole(path, lambda f: f.write(b"old"))
    for error in (OSError(errno.ENOSPC, "No space left on device"), ValueError("bug"), KeyboardInterrupt()):

        def half(file):
            file.write(b"new, but only ha")
            raise error  # noqa: B023

        with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
            train_gpt2.write_whole(path, half)
        assert [p.name for p in here.iterdir()] == ["file"] and path.read_text() == "old"
    train_gpt2.write_whole(path, lambda f: f.write(b"new"))
    assert path.read_text() == "new"


# ------------------------------------------------------------------------------------------------------ our own bugs
def test_a_bug_of_ours_shows_its_traceback(monkeypatch, options):
    """Only what the user can mend is put in two lines."""

    def bug(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(train_gpt2, "evaluate", bug)
    with pytest.raises(ZeroDivisionError):
        main(options())


def test_interrupt_has_the_code_that_shells_expect(monkeypatch, options, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_gpt2, "evaluate", interrupted)
    assert main(options()) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_advice_when_memory_runs_out(options, monkeypatch, capsys):
    """Of a GPU, of a CPU, of Python itself: what it was, and what needs less."""
    faults = [
        torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("you tried to allocate 9 bytes"),
    ]  # fmt: skip
    for i, fault in enumerate(faults):

        def too_much(*args):
            raise fault  # noqa: B023

        monkeypatch.setattr(train_gpt2, "train_step", too_much)
        assert main(options(micro_batch=8, name=f"run{i}")) == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert error.startswith("error: out of memory")
        assert "--micro_batch" in hint and "--activation_checkpointing" in hint
