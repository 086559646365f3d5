"""Tests of fineweb.py: tokens against a plain reference, every format, every way to be interrupted, and the commands.

Run: python -m pytest tests/test_fineweb.py
The Hub is played by a local folder laid out like FineWeb, read with the same call, and by a server on this machine
that gives out such a folder, with commits and connections that break. GPT-2's tokenizer is tested only where tiktoken
finds its two files (TIKTOKEN_CACHE_DIR).
"""

import contextlib
import copy
import errno
import gzip
import hashlib
import http.server
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fineweb
import tokenizer
from fineweb import UserError
from tokenizer import EOT

ROOT = Path(__file__).resolve().parent.parent
STORIES = tokenizer.split_documents((ROOT / "input.txt").read_text(encoding="utf-8"))
ODD = ["", "one", "naïve café 日本語 😀👩‍🚀", f"quoted {EOT} in text", "x" * 3000, " \n\t " * 50, "it's\r\n'll",
       "\x00 \x7f"]


@pytest.fixture(scope="session")
def enc():
    return tokenizer.make_encoding(tokenizer.train_bpe(STORIES[:60], 400), "tiny")


@pytest.fixture(scope="session")
def tokenizer_file(enc, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.json"
    tokenizer.save_tokenizer(enc, path)
    return str(path)


@pytest.fixture(scope="session")
def gpt2():
    try:
        return tokenizer.load_tokenizer("gpt2")
    except tokenizer.UserError as error:
        pytest.skip(f"GPT-2's tokenizer is not here: {error}")


def reference(enc, documents):
    """The stream of tokens, the plain way."""
    return [i for text in documents for i in [enc.n_vocab - 1, *enc.encode_ordinary(text)]]


def write_jsonl(path, documents, column="text"):
    lines = "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(documents))
    Path(path).write_text(lines, encoding="utf-8", newline="\n")
    return str(path)


def write_parquet(path, documents, **options):
    pq.write_table(pa.table({"id": list(range(len(documents))), "text": documents}), path, **options)
    return str(path)


def run(*argv):
    return fineweb.main([str(arg) for arg in argv])


def read_manifest(out):
    return json.loads((Path(out) / "manifest.json").read_text(encoding="utf-8"))


def tokens_of(out):
    return np.concatenate([np.load(Path(out) / s["file"], allow_pickle=False) for s in read_manifest(out)["shards"]])


def contents(folder):
    """{name: bytes} of a folder."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def refused(capsys, *argv):
    """Runs a command that must be refused; returns what it said."""
    assert run(*argv) == 2
    said = capsys.readouterr().err
    assert "error: " in said and "Traceback" not in said
    return said


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_all_formats_give_the_tokens_of_the_reference(tmp_path, enc, tokenizer_file):
    documents = STORIES[:25] + ODD + STORIES[25:40]
    text = (f"{EOT}\n".join(STORIES[40:50]) + EOT).encode()
    jsonl = Path(write_jsonl(tmp_path / "b.jsonl", documents)).read_bytes()
    write_parquet(tmp_path / "a.parquet", documents, row_group_size=7)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(jsonl))
    (tmp_path / "d.jsonl.zst").write_bytes(pa.Codec("zstd").compress(jsonl, asbytes=True))
    (tmp_path / "e.txt").write_bytes(text)
    (tmp_path / "f.txt.gz").write_bytes(gzip.compress(text.replace(b"\n", b"\r\n")))
    out = tmp_path / "out"
    assert run("--files", tmp_path / "*.*", "--tokenizer", tokenizer_file, "--out", out, "--shard_size", 4000) == 0

    expected = np.array(reference(enc, documents * 4 + STORIES[40:50] * 2), dtype=np.uint16)
    tokens = tokens_of(out)
    assert tokens.dtype == np.uint16 and np.array_equal(tokens, expected)
    assert tokens.max() == enc.n_vocab - 1  # the tokenizer's own marker, not 50256

    manifest = read_manifest(out)
    assert manifest["next"] is None and manifest["tokenizer"]["sha256"] == tokenizer.fingerprint(enc)
    assert [file["file"] for file in manifest["source"]["files"]] == sorted(p.name for p in tmp_path.glob("*.*"))
    assert tokenizer.fingerprint(tokenizer.load_tokenizer(out)) == tokenizer.fingerprint(enc)
    for number, shard in enumerate(manifest["shards"]):
        part = expected[number * 4000:(number + 1) * 4000]
        assert shard["file"] == f"docs_{'train' if number else 'val'}_{number:06d}.npy"
        assert shard["tokens"] == len(part) and shard["documents"] == (part == enc.n_vocab - 1).sum()
        assert shard["bytes"] == sum(len(enc.decode_single_token_bytes(i)) for i in part if i < enc.n_vocab - 1)
        assert shard["sha256"] == hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest()


def test_gpt2s_tokens_exactly(tmp_path, gpt2):
    documents = STORIES[:20] + ODD
    out = tmp_path / "out"
    files = write_parquet(tmp_path / "a.parquet", documents)
    assert run("--files", files, "--out", out, "--shard_size", 3000) == 0
    assert tokens_of(out).tolist() == reference(gpt2, documents)
    assert read_manifest(out)["tokenizer"]["vocab_size"] == 50257


PIECES = ["word", "it's", " ", "  ", "\n", "\n\n", "\t", "!", "?!", "12", "é", "日", "नमस्ते", "สวัสดี", "😀", "'ll",
          "\u00a0", "\u3000", "\x1c", EOT, f"{EOT}\n", "<|endof", "text|>", "long " * 12, "x" * 70]


@pytest.mark.parametrize("pattern", {*tokenizer.KNOWN_PATTERNS.values()})
def test_a_text_file_gives_the_documents_of_split_documents(pattern, tmp_path, monkeypatch):
    """Wherever a chunk ends, in pieces that are encoded to the tokens of the whole, by every pattern that a tokenizer
    file may name; the tokenizer has merges of white space too."""
    rng, longest = random.Random(0), 0
    ranks = tokenizer.train_bpe("".join(rng.choices(PIECES, k=5000)), 400, pattern=pattern)
    assert b"  " in ranks and b"\n\n" in ranks
    enc = tokenizer.make_encoding(ranks, "spaces", pattern)
    for _ in range(400):
        monkeypatch.setattr(tokenizer, "PIECE_CHARS", rng.choice([1, 5, 13, 40, 1000]))
        text = "".join(rng.choices(PIECES, k=rng.randrange(40)))
        (tmp_path / "a.txt").write_bytes(text.encode())
        documents = []
        for piece in tokenizer.read_documents(tmp_path / "a.txt"):
            documents += [[]] * piece.starts
            documents[-1] = [*documents[-1], piece.text]
        joined = ["".join(pieces) for pieces in documents]
        assert joined == tokenizer.split_documents(text)
        for document, pieces in zip(joined, documents, strict=True):
            assert [i for piece in pieces for i in enc.encode_ordinary(piece)] == enc.encode_ordinary(document)
            longest = max(longest, len(pieces))
    assert longest > 5


def test_a_line_of_megabytes_neither_stalls_nor_changes(tmp_path, enc, tokenizer_file):
    text = " ".join(STORIES[:200]).replace("\n", " ")
    long = text * (2 * tokenizer.PIECE_CHARS // len(text) + 1)
    documents = ["before", long, "a" * 300_000, "after"]
    write_jsonl(tmp_path / "a.jsonl", documents)
    (tmp_path / "b.txt").write_text(EOT.join(documents), encoding="utf-8")
    out = tmp_path / "out"
    files = tmp_path / "a.jsonl", tmp_path / "b.txt"
    assert run("--files", *files, "--tokenizer", tokenizer_file, "--out", out, "--shard_size", 200_000) == 0
    assert np.array_equal(tokens_of(out), np.array(reference(enc, documents) * 2, dtype=np.uint16))
    assert sum(shard["documents"] for shard in read_manifest(out)["shards"]) == 8


def test_bad_rows_are_counted_and_left_out(tmp_path, enc, tokenizer_file, capsys):
    good = STORIES[:9]
    rows = [json.dumps({"text": text}).encode() for text in good]
    bad = [b'{"text": null}', b'{"other": 1}', b'{"text": 5}', b"[1]", b'{"text": "open', b'{"text": "\xff"}',
           b"[" * 9999]
    mixed = [x for pair in itertools.zip_longest(rows, bad) for x in pair if x is not None]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(mixed))
    column = pa.array([b"fine", b"not \xfe fine", b"also fine", None], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 4, column.buffers())  # as a careless writer does it: unchecked
    pq.write_table(pa.table({"text": column}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_bytes(b"first" + EOT.encode() + b"\xe9 second" + EOT.encode() + b"third")
    out = tmp_path / "out"
    argv = "--files", tmp_path / "*.*", "--tokenizer", tokenizer_file, "--out", out
    assert run(*argv, "--shard_size", 2000) == 0
    assert tokens_of(out).tolist() == reference(enc, [*good, "fine", "also fine", "first", "third"])
    counts = {"no text": 2, "no column 'text'": 1, "not text": 1, "no JSON object": 1, "invalid JSON": 2,
              "invalid UTF-8": 3}
    assert read_manifest(out)["bad_rows"] == counts
    assert "3 invalid UTF-8" in capsys.readouterr().out


def test_half_a_surrogate_pair_is_replaced_as_tiktoken_does(tmp_path, enc, tokenizer_file):
    out = tmp_path / "out"
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d b"}\n' * 20, encoding="utf-8")
    assert run("--files", tmp_path / "a.jsonl", "--tokenizer", tokenizer_file, "--out", out, "--shard_size", 20) == 0
    assert tokens_of(out).tolist() == reference(enc, ["a \ud83d b"] * 20)


def test_a_document_that_the_tokenizer_fails_on_is_counted(enc):
    class PanicException(BaseException):  # as pyo3 raises it
        pass

    for failure in (PanicException(), ValueError("stack")):
        class Broken:
            n_vocab = enc.n_vocab

            def encode_to_numpy(self, text, **options):
                raise self.failure

            def encode_ordinary(self, text):
                if text == "bad":
                    raise self.failure
                return enc.encode_ordinary(text)

        Broken.failure = failure
        encoded = fineweb.encode_batch(Broken(), [tokenizer.Piece(text) for text in ("good", "bad", "fine")])
        assert np.concatenate([tokens for tokens, _ in encoded]).tolist() == reference(enc, ["good", "", "fine"])
        problem = f"tokenizer failed ({type(failure).__name__})"
        assert [problem for _, problem in encoded] == [None, problem, None]


# --- threads, processes, memory ---------------------------------------------------------------------------------------


def test_the_result_does_not_depend_on_threads_or_batches(tmp_path, tokenizer_file, monkeypatch):
    write_parquet(tmp_path / "a.parquet", STORIES[:150] + ODD)
    (tmp_path / "b.txt").write_text(EOT.join(STORIES[150:250]), encoding="utf-8")
    results = []
    for threads, batch_chars in ((1, 2**19), (4, 3000), (3, 1)):
        monkeypatch.setattr(fineweb, "BATCH_CHARS", batch_chars)
        out = tmp_path / f"out_{threads}"
        assert run("--files", tmp_path / "*.*", "--tokenizer", tokenizer_file, "--out", out, "--shard_size", 7000,
                   "--nprocs", threads) == 0
        results.append(contents(out))
    assert results[0] == results[1] == results[2] and len(results[0]) > 8


def test_works_in_a_spawned_process(tmp_path, tokenizer_file):
    files, out = write_jsonl(tmp_path / "a.jsonl", STORIES[:20]), tmp_path / "out"
    argv = ["--files", files, "--tokenizer", tokenizer_file, "--out", str(out), "--shard_size", "2000", "--nprocs", "2"]
    process = multiprocessing.get_context("spawn").Process(target=fineweb.main, args=(argv,))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and read_manifest(out)["next"] is None


def test_import_is_light_and_works_without_a_guard(tmp_path, tokenizer_file):
    """As in a notebook: no guard, from standard input. One's own files do not even load `datasets`."""
    files, out = write_jsonl(tmp_path / "a.jsonl", STORIES[:20]), tmp_path / "out"
    argv = ["--files", files, "--tokenizer", tokenizer_file, "--out", str(out), "--shard_size", "2000", "--nprocs", "2"]
    script = ("import sys, fineweb\nheavy = {'torch', 'datasets', 'pyarrow', 'tqdm', 'matplotlib', 'tiktoken'}\n"
              "print(sorted(heavy & set(sys.modules)))\n"
              f"code = fineweb.main({argv!r})\nprint(sorted({{'torch', 'datasets'}} & set(sys.modules)), code)\n")
    done = subprocess.run([sys.executable, "-"], input=script, cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "[]" and lines[-1] == "[] 0", done.stderr


class Endless:
    """A source without end that counts what is taken from it."""

    prefix, expected_tokens = "docs", None

    def __init__(self):
        self.taken = 0

    def describe(self):
        return {"kind": "endless"}

    def open(self):
        return 1

    def documents(self, k):
        for number in itertools.count():
            self.taken += 1
            assert self.taken < 10_000, "nobody stops it"
            yield tokenizer.Piece(f"document number {number} " * 50)


def test_one_shard_takes_only_what_it_needs(tmp_path, enc, monkeypatch):
    monkeypatch.setattr(fineweb, "BATCH_CHARS", 2000)
    monkeypatch.setattr(fineweb, "AHEAD_CHARS", 20_000)
    source = Endless()
    manifest = fineweb.build(source, enc, tmp_path, 5000, num_shards=1, threads=2)
    used = manifest["next"][1]
    assert len(manifest["shards"]) == 1
    assert source.taken <= used + 25_000 / 900  # what may be read ahead, in documents of 900 characters and more


# --- interrupted ------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """What no `except Exception` catches: the process is gone."""


@pytest.fixture
def corpus(tmp_path, tokenizer_file):
    """The options of a run that makes six shards, and its undisturbed result."""
    write_parquet(tmp_path / "a.parquet", STORIES[:30] + ODD, row_group_size=8)
    write_jsonl(tmp_path / "b.jsonl", [*STORIES[30:50], None, *STORIES[50:55]])
    options = ["--files", tmp_path / "a.parquet", tmp_path / "b.jsonl", "--tokenizer", tokenizer_file,
               "--shard_size", 5000]
    out = tmp_path / "whole" / "shards"
    assert run(*options, "--out", out) == 0
    assert len(read_manifest(out)["shards"]) >= 5
    return options, contents(out)


def test_a_crash_at_any_moment_leaves_whole_shards_and_the_same_result(tmp_path, corpus, monkeypatch):
    """The process disappears at each step that touches the disk, one after the other; then the command runs again."""
    options = [*corpus[0][:-1], 9000]  # fewer shards: each has the same steps
    assert run(*options, "--out", tmp_path / "undisturbed" / "shards") == 0
    whole = contents(tmp_path / "undisturbed" / "shards")
    real = {"fsync": os.fsync, "replace": os.replace}
    for crash_at in itertools.count(1):
        out, steps = tmp_path / f"run{crash_at}" / "shards", itertools.count(1)

        def step(name, *args, crash_at=crash_at, steps=steps):
            moment = next(steps)
            if moment == 2 * crash_at:  # before the step ...
                raise Crash
            real[name](*args)
            if moment == 2 * crash_at + 1:  # ... or after it
                raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda *a, step=step: step("fsync", *a))
            patch.setattr(os, "replace", lambda *a, step=step: step("replace", *a))
            try:
                run(*options, "--out", out, "--nprocs", 1 + crash_at % 2)
            except Crash:
                for name, data in contents(out).items():
                    assert name.endswith(".tmp") or name == "manifest.json" or data == whole[name]
            else:
                break
        assert run(*options, "--out", out) == 0
        assert contents(out) == whole
    assert crash_at > 8  # 16 steps and more


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on Windows")
def test_kill_9_in_the_middle_of_a_shard(tmp_path, corpus):
    options, whole = corpus
    out = tmp_path / "killed" / "shards"
    script = ("import os, signal, sys, fineweb\n"
              "save, calls = fineweb.np.save, []\n"
              "def killer(file, tokens, **options):\n"
              "    calls.append(1)\n"
              "    if len(calls) == 3:\n"
              "        file.write(tokens[:1000].tobytes()); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
              "    save(file, tokens, **options)\n"
              "fineweb.np.save = killer\n"
              "fineweb.main(sys.argv[1:])\n")
    argv = [str(arg) for arg in [*options, "--out", out]]
    done = subprocess.run([sys.executable, "-c", script, *argv], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = contents(out)
    assert [name for name in left if name.endswith(".npy")] == ["docs_train_000001.npy", "docs_val_000000.npy"]
    assert any(name.endswith(".tmp") for name in left) and read_manifest(out)["next"]
    assert run(*options, "--out", out) == 0
    assert contents(out) == whole


def test_what_a_killed_run_left_is_cleared_away(tmp_path, corpus):
    """Killed before the manifest noted its first shard, then run with another name for the shards."""
    options, whole = corpus
    out = tmp_path / "left" / "shards"
    out.mkdir(parents=True)
    manifest = json.loads(whole["manifest.json"]) | {"shards": [], "shard_size": 77}
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for name in ("edu_val_000000.npy", "edu_train_000001.npy.tmp", "manifest.json.tmp", "my_notes.npy"):
        (out / name).write_bytes(b"half")
    assert run(*options, "--out", out) == 0
    assert contents(out) == whole | {"my_notes.npy": b"half"}


def test_going_on_does_not_encode_again_what_is_done(tmp_path, corpus, enc, monkeypatch):
    options, whole = corpus
    out = tmp_path / "more" / "shards"
    assert run(*options, "--out", out, "--num_shards", 4) == 0
    encoded, real = [], fineweb.encode_batch
    monkeypatch.setattr(fineweb, "encode_batch", lambda enc, parts: encoded.append(parts) or real(enc, parts))
    assert run(*options, "--out", out) == 0
    assert contents(out) == whole
    left = sum(shard["tokens"] for shard in read_manifest(out)["shards"][4:])
    longest = max(len(enc.encode_ordinary(text)) for text in STORIES[:55] + ODD)
    assert sum(len(tokens) for parts in encoded for tokens, _ in real(enc, parts)) <= left + longest


def test_a_full_disk_keeps_the_shards_before_it(tmp_path, corpus, monkeypatch, capsys):
    options, whole = corpus
    out = tmp_path / "full" / "shards"
    save, calls = np.save, []

    def full(file, tokens, **more):
        calls.append(1)
        if len(calls) == 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, tokens, **more)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        said = refused(capsys, *options, "--out", out)
        assert "cannot write" in said and "docs_train_000002.npy" in said and "No space left on device" in said
    left = contents(out)
    assert not any(name.endswith(".tmp") for name in left) and len(read_manifest(out)["shards"]) == 2
    assert all(data == whole[name] for name, data in left.items() if name.endswith(".npy"))
    assert run(*options, "--out", out) == 0
    assert contents(out) == whole


def test_the_free_disk_is_checked_before_the_start(tmp_path, corpus, monkeypatch, capsys):
    options, _ = corpus
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(5000))
    said = refused(capsys, *options, "--out", tmp_path / "small")
    assert "MB free" in said and not list((tmp_path / "small").glob("*"))


def test_a_missing_shard_alone_is_made_again(tmp_path, corpus, capsys):
    options, whole = corpus
    out = tmp_path / "whole" / "shards"
    for name in ("docs_train_000002.npy", max(name for name in whole if name.endswith(".npy"))):
        (out / name).unlink()
        assert run(*options, "--out", out) == 0
        assert contents(out) == whole and f"{name} is missing" in capsys.readouterr().out
    shard = read_manifest(out)["shards"][2]
    (out / shard["file"]).unlink()
    changed = (out / "manifest.json").read_text(encoding="utf-8").replace(shard["sha256"], "0" * 64)
    (out / "manifest.json").write_text(changed, encoding="utf-8")  # as if the source had changed in its middle
    assert "differs from the one in the manifest" in refused(capsys, *options, "--out", out)
    assert not (out / shard["file"]).exists()


def test_a_truncated_shard_is_named_and_left_alone(tmp_path, corpus, capsys):
    options, _ = corpus
    out = tmp_path / "whole" / "shards"
    victim = out / "docs_train_000003.npy"
    victim.write_bytes(victim.read_bytes()[:-100])
    before = contents(out)
    for argv in ([*options, "--out", out], ["--info", out]):
        said = refused(capsys, *argv)
        assert victim.name in said and "bytes instead of" in said and "hint: delete" in said
    assert contents(out) == before


# --- the Hub and the network ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    """A folder laid out like FineWeb: two configurations, several parquet files."""
    folder = tmp_path / "hub"
    layout = {"data/x": STORIES[:2], "sample/10BT/000": STORIES[:30], "sample/10BT/001": STORIES[30:60]}
    for name, documents in layout.items():
        (path := folder / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, documents, row_group_size=10)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*\n"
        "- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n", encoding="utf-8")
    return folder


def test_the_hub_is_streamed_with_a_pinned_revision(tmp_path, hub, enc, tokenizer_file, monkeypatch, capsys):
    import datasets

    assert fineweb.SIZES.keys() == tokenizer.VERSIONS.keys()
    _, config, pinned = tokenizer.VERSIONS["10Bedu"]
    monkeypatch.setitem(tokenizer.VERSIONS, "10Bedu", (str(hub), config, pinned))
    monkeypatch.setitem(fineweb.SIZES, "10Bedu", ("unused", 1e4))
    calls, load = [], datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: calls.append((a, k)) or load(*a, **k))
    argv = ["--tokenizer", tokenizer_file, "--out", tmp_path / "out", "--shard_size", 6000]
    assert run(*argv, "--num_shards", 2) == 0 and run(*argv) == 0
    assert tokens_of(tmp_path / "out").tolist() == reference(enc, STORIES[:60])
    assert calls == [((str(hub), "sample-10BT"), {"revision": pinned})] * 2
    source = read_manifest(tmp_path / "out")["source"]
    assert source["kind"] == "hub" and source["revision"] == pinned and source["split"] == "train"
    assert read_manifest(tmp_path / "out")["shards"][0]["file"] == "hub_val_000000.npy"
    said = refused(capsys, "--tokenizer", tokenizer_file, "--out", tmp_path / "o2", "--text_column", "body")
    assert "no column 'body', only 'id', 'text'" in said


def test_any_data_set_by_its_name(tmp_path, hub, enc, tokenizer_file, monkeypatch, capsys):
    """A local folder, as `datasets` takes one for a data set of the Hub; parquet, and JSON lines without a card."""
    monkeypatch.chdir(tmp_path)
    options = "--tokenizer", tokenizer_file, "--shard_size", "1000"
    assert run("--dataset", hub, "--config", "sample-10BT", *options, "--out", "a") == 0
    assert tokens_of("a").tolist() == reference(enc, STORIES[:60])
    other = tmp_path / "my_stories-2"
    for split, documents in (("train", STORIES[:3]), ("test", STORIES[5:9])):
        other.mkdir(exist_ok=True)
        write_jsonl(other / f"{split}-0.jsonl", documents[:2], column="body")
        write_jsonl(other / f"{split}-1.jsonl", documents[2:], column="body")
    assert run("--dataset", other, "--split", "test", "--text_column", "body", *options, "--out", "b") == 0
    assert tokens_of("b").tolist() == reference(enc, STORIES[5:9])
    manifest = read_manifest("b")
    assert manifest["source"] == {"kind": "hub", "dataset": str(other), "config": None, "split": "test",
                                  "revision": None, "text_column": "body"}
    assert manifest["shards"][0]["file"] == "mystories2_val_000000.npy"
    assert run("--dataset", other, "--text_column", "body", *options, "--num_shards", 1) == 0  # the default folder
    assert tokens_of("mystories2_shards").tolist() == reference(enc, STORIES[:3])[:1000]
    capsys.readouterr()
    for argv, message in ((["--dataset", other], "no column 'text', only 'id', 'body'"),
                          (["--dataset", other, "--split", "validation"], "validation"),
                          (["--dataset", hub, "--config", "2030"], "sample-10BT"),
                          (["--dataset", hub, "--text_column", "id"], "holds int64, not text"),
                          (["--dataset", "nobody/nothing"], "cannot read the data set nobody/nothing")):
        assert message in refused(capsys, *argv, *options, "--out", "c") and not list(Path("c").glob("*"))


def test_the_hub_may_break_off(tmp_path, hub, enc, tokenizer_file, monkeypatch, capsys):
    """For longer than the libraries wait: what was finished is kept, and the same command goes on."""
    import datasets

    real, failures = datasets.IterableDataset.iter, iter([4, 1, 3])  # tables of 7 rows that come before it

    def breaking(self, *args, **kwargs):
        left = next(failures, None)
        for table in real(self, *args, **kwargs):
            if left == 0:
                raise ConnectionError("the Hub is gone")
            left = left and left - 1
            yield table

    monkeypatch.setattr(datasets.IterableDataset, "iter", breaking)
    monkeypatch.setattr(tokenizer, "READ_ROWS", 7)
    monkeypatch.setattr(fineweb, "BATCH_CHARS", 500)
    monkeypatch.setattr(fineweb, "AHEAD_CHARS", 500)  # read no more than is used at once
    argv = ("--dataset", hub, "--config", "sample-10BT", "--tokenizer", tokenizer_file, "--shard_size", 2000,
            "--nprocs", 1, "--out", tmp_path / "out")
    for _ in range(3):
        said = refused(capsys, *argv)
        assert "ConnectionError: the Hub is gone" in said and "network" in said and "goes on" in said
    assert read_manifest(tmp_path / "out")["shards"] and run(*argv) == 0
    assert tokens_of(tmp_path / "out").tolist() == reference(enc, STORIES[:60])


class Hub(http.server.BaseHTTPRequestHandler):
    """What of the Hub's protocol `datasets` needs to stream the data set me/web: the commit, lists of files, and their
    bytes; the first and the third request for a range of them break off."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, data, code=200, **headers):
        self.send_response(code)
        for name, value in {"Content-Length": len(data), "X-Repo-Commit": self.server.commit, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        url = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        root, commit = self.server.folder, self.server.commit
        files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
        if found := re.fullmatch(r"/api/datasets/me/web(?:/revision/(main|v1|[0-9a-f]{40}))?", url):
            commit = {"main": commit, "v1": "c" * 40, None: commit}.get(found[1], found[1])
            siblings = [{"rfilename": name} for name in files]
            info = {"_id": "1", "id": "me/web", "sha": commit, "private": False, "tags": [], "siblings": siblings}
            return self.answer(json.dumps(info).encode(), Content_Type="application/json")
        if found := re.fullmatch(r"/api/datasets/me/web/tree/[0-9a-f]{40}/?(.*)", url):
            inside = [path for path in sorted((root / found[1]).glob("*"))]
            entries = [{"type": "directory" if path.is_dir() else "file", "oid": "0" * 40,
                        "size": path.stat().st_size, "path": path.relative_to(root).as_posix()} for path in inside]
            return self.answer(json.dumps(entries).encode(), Content_Type="application/json")
        found = re.fullmatch(r"/datasets/me/web/resolve/([0-9a-f]{40})/(.*)", url)
        if not found or found[2] not in files:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        data = files[found[2]].read_bytes()
        if not self.headers.get("Range"):
            return self.answer(data, ETag='"it"')
        self.server.ranges.append(found[1])
        if len(self.server.ranges) in (1, 3):
            self.close_connection = True
            return self.connection.shutdown(2)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()
        part = data[int(first):int(last or len(data)) + 1]
        where = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return self.answer(part, 206, ETag='"it"', Content_Range=where)

    do_HEAD = do_GET


def test_a_data_set_of_a_hub_by_its_commit(tmp_path, hub, enc, tokenizer_file):
    """Over HTTP: connections that break are tried again by the libraries; the commit that main means is resolved and
    kept in the manifest; when main has moved on, the same command goes on with the old commit."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.commit, server.ranges = hub, "a" * 40, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0",
                   "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_TOKEN", None)

    def command(*more):
        argv = ["--dataset", "me/web", "--config", "sample-10BT", "--tokenizer", tokenizer_file,
                "--shard_size", "6000", "--out", str(tmp_path / "out"), *more]
        return subprocess.run([sys.executable, str(ROOT / "fineweb.py"), *argv], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=120)

    try:
        done = command("--num_shards", "2")
        assert done.returncode == 0, done.stderr
        assert read_manifest(tmp_path / "out")["source"]["revision"] == "a" * 40
        assert len(server.ranges) >= 4 and {*server.ranges} == {"a" * 40}
        server.commit = "b" * 40
        done = command("--revision", "v1")
        assert done.returncode == 2 and f"revision (there {'a' * 40}, now {'c' * 40})" in done.stderr
        assert "error: " in done.stderr and "Traceback" not in done.stderr
        done = command()
        assert done.returncode == 0, done.stderr
    finally:
        server.shutdown()
        server.server_close()
    assert tokens_of(tmp_path / "out").tolist() == reference(enc, STORIES[:60])
    assert {*server.ranges} == {"a" * 40} and read_manifest(tmp_path / "out")["source"]["revision"] == "a" * 40


def test_no_network_at_the_start_is_said_soon(tmp_path, tokenizer_file, monkeypatch, capsys):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    said = refused(capsys, "--tokenizer", tokenizer_file, "--out", tmp_path / "out")
    assert "cannot read the data set HuggingFaceFW/fineweb-edu: ConnectionError" in said and "network" in said


def test_a_fault_of_the_program_is_not_dressed_up(tmp_path, tokenizer_file, monkeypatch):
    monkeypatch.setattr(tokenizer, "_row_piece", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("--files", write_jsonl(tmp_path / "a.jsonl", STORIES[:3]), "--tokenizer", tokenizer_file,
            "--out", tmp_path / "out")


# --- a source that changes --------------------------------------------------------------------------------------------


def edit_in_the_middle(path):
    """Swaps two letters far from both ends: size and ends stay."""
    data = bytearray(Path(path).read_bytes())
    at = len(data) // 2
    while not (data[at:at + 2].isalpha() and data[at] != data[at + 1]):
        at += 1
    data[at:at + 2] = data[at:at + 2][::-1]
    Path(path).write_bytes(data)


def test_a_source_edited_in_its_middle_is_refused(tmp_path, enc, tokenizer_file, capsys):
    path, out = write_jsonl(tmp_path / "a.jsonl", STORIES[:300]), tmp_path / "out"
    argv = "--files", path, "--tokenizer", tokenizer_file, "--out", out, "--shard_size", 20_000
    assert run(*argv, "--num_shards", 2) == 0
    before, ends = contents(out), fineweb.describe_file(path)
    edit_in_the_middle(path)
    assert fineweb.describe_file(path) == ends | {"mtime_ns": os.stat(path).st_mtime_ns}
    assert "file 1 (there a.jsonl" in refused(capsys, *argv) and contents(out) == before


def test_a_source_that_changes_while_it_is_read_is_told(tmp_path, enc, tokenizer_file, monkeypatch, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES[:300])
    real = fineweb.write_shard
    monkeypatch.setattr(fineweb, "write_shard", lambda *args: edit_in_the_middle(path) or real(*args))
    argv = "--files", path, "--tokenizer", tokenizer_file, "--out", tmp_path / "out", "--shard_size", 20_000
    assert "has changed while it was read" in refused(capsys, *argv)


def test_the_same_file_given_twice_is_read_once(tmp_path, enc, tokenizer_file, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl("a.jsonl", STORIES[:10])
    with contextlib.suppress(OSError):  # Windows lets not everybody make one
        Path("b.jsonl").symlink_to("a.jsonl")
    names = ["a.jsonl", "./a.jsonl", tmp_path / "a.jsonl", "*.jsonl"]
    assert run("--files", *names, "--tokenizer", tokenizer_file, "--out", "out", "--shard_size", 1000) == 0
    assert "is read once" in capsys.readouterr().out
    assert tokens_of("out").tolist() == reference(enc, STORIES[:10])
    assert len(read_manifest("out")["source"]["files"]) == 1


@pytest.mark.parametrize("place", [[2, 0, 0], [1, 900, 0], [1, 26, 5], [1, 25, 10**6]])
def test_a_manifest_that_ends_beyond_the_source_is_refused(tmp_path, corpus, capsys, place):
    """The source has two files, the second 26 rows."""
    options, _ = corpus
    out = tmp_path / "whole" / "shards"
    manifest = read_manifest(out)
    (out / manifest["shards"].pop()["file"]).unlink()
    (out / "manifest.json").write_text(json.dumps(manifest | {"next": place}), encoding="utf-8")
    before = contents(out)
    assert "does not reach to the place" in refused(capsys, *options, "--out", out)
    assert contents(out) == before


# --- settings, --info, wrong input ------------------------------------------------------------------------------------


def test_more_shards_later_are_those_of_one_run(tmp_path, corpus, capsys):
    options, whole = corpus
    out = tmp_path / "grown" / "shards"
    assert run(*options, "--out", out, "--num_shards", 1) == 0
    assert "nothing to train on yet" in capsys.readouterr().out
    assert len(list(out.glob("*.npy"))) == 1
    assert run(*options, "--out", out, "--num_shards", 3) == 0 and len(list(out.glob("*.npy"))) == 3
    assert run(*options, "--out", out) == 0 and contents(out) == whole
    assert run(*options, "--out", out, "--num_shards", 2) == 0 and contents(out) == whole
    assert "nothing to do" in capsys.readouterr().out


def test_other_settings_are_refused_by_name(tmp_path, corpus, enc, capsys):
    options, whole = corpus
    out = tmp_path / "whole" / "shards"
    other = tmp_path / "other.json"
    tokenizer.save_tokenizer(tokenizer.make_encoding(tokenizer.train_bpe(STORIES[:60], 390), "tiny"), other)
    assert "shard_size (there 5000, now 6000)" in refused(capsys, *options, "--out", out, "--shard_size", 6000)
    assert "tokenizer (there 400 tokens" in refused(capsys, *options, "--out", out, "--tokenizer", other)
    assert "text_column (there text, now body)" in refused(capsys, *options, "--out", out, "--text_column", "body")
    write_jsonl(tmp_path / "b.jsonl", STORIES[:3])
    assert "settings: file 2 (there b.jsonl" in refused(capsys, *options, "--out", out)
    said = refused(capsys, "--files", tmp_path / "b.jsonl", *options[3:], "--out", out)
    assert "file 1 (there a.parquet" in said and "file 2 (there b.jsonl" in said
    assert contents(out) == whole


def test_the_files_may_move_together(tmp_path, corpus):
    options, whole = corpus
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in options[1:3]:
        shutil.move(path, moved)
    options[1:3] = [moved / "a.parquet", moved / "b.jsonl"]
    assert run(*options, "--out", tmp_path / "whole" / "shards") == 0
    assert contents(tmp_path / "whole" / "shards") == whole


def test_info_shows_the_manifest_and_the_text(tmp_path, corpus, enc, capsys):
    _, whole = corpus
    out = tmp_path / "whole" / "shards"
    capsys.readouterr()
    assert run("--info", out) == 0
    said = capsys.readouterr().out
    manifest = read_manifest(out)
    assert all(shard["file"] in said and f"{shard['tokens']:,}" in said for shard in manifest["shards"])
    assert "400 tokens" in said and "rows left out: 1 no text" in said and "complete     yes" in said
    second = np.load(out / "docs_train_000001.npy")[:100].tolist()
    assert enc.decode(second).split("\n")[0] in said
    assert contents(out) == whole


PACKED = gzip.compress(json.dumps({"text": random.Random(0).randbytes(9999).hex()}).encode())


@pytest.mark.parametrize("name, data, message", [
    ("a.txt", "text".encode("utf-16-le") * 500, "nothing that can be used: 1 zero bytes"),
    ("a.parquet", b"plain text", "cannot read"),
    ("a.parquet", b"", "cannot read"),
    ("a.jsonl", b"plain text\n" * 500, "nothing that can be used: 500 invalid JSON"),
    ("a.jsonl", b'{"body": "x"}\n' * 500, "nothing that can be used: 500 no column 'text'"),
    ("a.jsonl.gz", b'{"text": "not packed"}\n', "cannot read"),
    ("a.jsonl.gz", PACKED[:-2000], "cannot read"),
    ("a.jsonl.zst", b'{"text": "not packed"}\n', "cannot read"),
    ("a.txt", "caf\xe9 ".encode("latin-1") * 500, "nothing that can be used: 1 invalid UTF-8"),
    ("a.txt", "text".encode("utf-16") * 500, "nothing that can be used: 1 invalid UTF-8"),
    ("a.txt", b"", "holds no documents"),
    ("a.jsonl", b"", "holds no documents"),
    ("a.jsonl", b'{"text": "few tokens only"}\n', "--shard_size 1"),
    ("a.docx", b"x", "is of no kind that can be read"),
])
def test_wrong_files_are_refused_and_leave_nothing(tmp_path, tokenizer_file, capsys, name, data, message):
    (tmp_path / name).write_bytes(data)
    out = tmp_path / "out"
    said = refused(capsys, "--files", tmp_path / name, "--tokenizer", tokenizer_file, "--out", out)
    assert message in said and "hint: " in said
    assert not out.exists() or not list(out.iterdir())


def test_wrong_columns_of_parquet(tmp_path, tokenizer_file, capsys):
    files = write_parquet(tmp_path / "a.parquet", STORIES[:3])
    for column, message in (("body", "no column 'body', only 'id', 'text'"), ("id", "holds int64, not text")):
        said = refused(capsys, "--files", files, "--text_column", column, "--tokenizer", tokenizer_file,
                       "--out", tmp_path / "out")
        assert message in said and "--text_column" in said


@pytest.mark.parametrize("argv, message", [
    (["--shard_size", "0"], "--shard_size: invalid positive value: '0'"),
    (["--num_shards", "-1"], "--num_shards: invalid positive value: '-1'"),
    (["--nprocs", "two"], "--nprocs: invalid positive value: 'two'"),
    (["--shard_sise", "5"], "did you mean --shard_size?"),
    (["--shard", "5"], "--shard 5"),  # no abbreviations: they change their meaning when an option is added
    (["--version", "10B"], "not allowed with argument"),
    (["--dataset", "me/web"], "not allowed with argument"),
    (["--split", "train"], "--split goes with --dataset only"),
    (["--out", ""], "--out is empty"),
    (["--info", ""], "--info is empty"),
    (["--files", ""], "--files is empty"),
    (["--tokenizer", "nowhere.json"], "nowhere.json"),
    (["--files", "nothing/*.jsonl"], "no file matches 'nothing/*.jsonl'"),
    (["--info", "nowhere"], "holds no manifest.json"),
])
def test_wrong_options(tmp_path, tokenizer_file, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl("a.jsonl", STORIES[:3])
    said = refused(capsys, "--files", "a.jsonl", "--tokenizer", tokenizer_file, "--out", "out", *argv)
    assert message in said and "hint: " in said and not Path("out").exists()


def test_the_exit_codes(tmp_path, corpus, monkeypatch, capsys):
    """130 for Ctrl-C, 1 where nobody reads the output any more, without a word of Python's; 2 for a missing package."""
    options, whole = corpus
    out = tmp_path / "whole" / "shards"
    script = ("import sys, fineweb\n"
              "def gone(*args): raise KeyboardInterrupt\n"
              "if sys.argv.pop(1) == 'stop': fineweb.open_folder = gone\n"
              "sys.exit(fineweb.main(sys.argv[1:]))\n")

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

    def command(how, *argv, **streams):
        return subprocess.run([sys.executable, "-c", script, how, *map(str, argv)], cwd=ROOT, env=environment,
                              timeout=60, stderr=subprocess.PIPE, text=True, **streams)

    done = command("stop", *options, "--out", out, stdout=subprocess.DEVNULL)
    assert done.returncode == 130 and "the same command goes on" in done.stderr and "Traceback" not in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = command("go", "--info", out, stdout=writer)
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""
    monkeypatch.setitem(sys.modules, "tqdm", None)  # as if it were not installed
    said = refused(capsys, *options, "--out", tmp_path / "other")
    assert "tqdm" in said and "pip install" in said and contents(out) == whole


def test_a_validation_set_of_next_to_nothing_is_said(tmp_path, tokenizer_file, capsys):
    files = write_jsonl(tmp_path / "a.jsonl", STORIES[:20])
    for size, said in ((1, True), (1024, True), (1025, False)):
        argv = "--files", files, "--tokenizer", tokenizer_file, "--shard_size", size, "--num_shards", 2
        assert run(*argv, "--out", tmp_path / f"out{size}") == 0
        assert (f"validation has {size:,} tokens" in capsys.readouterr().out) is said


def test_folders_that_cannot_be_used(tmp_path, corpus, capsys):
    options, whole = corpus
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "File exists" in refused(capsys, *options, "--out", tmp_path / "file")
    strange = tmp_path / "strange"
    strange.mkdir()
    np.save(strange / "edufineweb_val_000000.npy", np.zeros(5, np.uint16))
    assert "no manifest.json" in refused(capsys, *options, "--out", strange)
    assert (strange / "edufineweb_val_000000.npy").exists()
    out = tmp_path / "whole" / "shards"
    good = (out / "manifest.json").read_bytes()
    for bad in (good[:100], b"[]", b"null", b"[" * 100_000, b"\xff", good.replace(b'"docs_', b'"../docs_')):
        (out / "manifest.json").write_bytes(bad)
        assert "manifest.json" in refused(capsys, *options, "--out", out)
        assert "manifest.json" in refused(capsys, "--info", out)
    (out / "manifest.json").write_bytes(good)
    assert contents(out) == whole


WRONG = {  # key: values that it cannot have
    "format": [1, 9, 2.0, "2"],
    "source": [None, [], {}, {"kind": 1}, {"kind": "files", "files": 3}, {"kind": "hub", "revision": 5}],
    "tokenizer": [None, {"sha256": "x"}],
    "tokenizer.vocab_size": [-1, 4e2],
    "shard_size": [0, 4999, 5000.0, "5000", True],
    "shards": [None, {}, [3]],
    "shards.0.tokens": [None, 5000.0, "5000", -5000, 2**70, True, 4999],
    "shards.1.file": ["docs_train_000002.npy", "docs_val_000001.npy", "x.npy", 7],
    "shards.1.split": ["val", None],
    "shards.1.start": [None, 3, [0, 1], [0, 1, -1], [0, 1, 0.5], ["0", 1, 2], [9, 0, 0], {"file": 0}],
    "shards.0.start": [[0, 1, 0]],
    "shards.2.bytes": [1.5],
    "shards.2.documents": [float("nan")],
    "next": [7, [0, 0, 0]],
    "bad_rows": [None, {"no text": 1.5}, {"no text": -1}, {"no text": "1"}],
    "versions": [None],
}


@pytest.mark.parametrize("key", WRONG)
def test_manifests_with_values_of_the_wrong_kind_are_refused_before_anything_changes(tmp_path, corpus, capsys, key):
    options, _ = corpus
    out = tmp_path / "whole" / "shards"
    manifest = read_manifest(out)
    *path, last = (int(name) if name.isdigit() else name for name in key.split("."))
    for value in [..., *WRONG[key]]:
        bad = copy.deepcopy(manifest)
        inner = bad
        for name in path:
            inner = inner[name]
        if value is ...:  # the key is missing
            del inner[last]
        else:
            inner[last] = value
        (out / "manifest.json").write_text(json.dumps(bad), encoding="utf-8")
        (out / "docs_train_000009.npy.tmp").write_bytes(b"left by a killed run")
        before = contents(out)
        for argv in ([*options, "--out", out], ["--info", out]):
            assert "manifest.json is damaged" in refused(capsys, *argv), value
        assert contents(out) == before, value


def test_the_tokenizer_of_something_else_is_not_overwritten(tmp_path, corpus, capsys):
    """As in a run's folder; a tokenizer that is the same may be there."""
    options, _ = corpus
    (out := tmp_path / "log").mkdir()
    other = tokenizer.make_encoding(tokenizer.train_bpe(STORIES[:60], 390), "run's")
    tokenizer.save_tokenizer(other, out / "tokenizer.json")
    before = contents(out)
    assert "another tokenizer.json" in refused(capsys, *options, "--out", out) and contents(out) == before
    shutil.copy(tmp_path / "whole" / "shards" / "tokenizer.json", out / "tokenizer.json")
    assert run(*options, "--out", out, "--num_shards", 1) == 0


def test_no_write_permission_is_found_before_the_work(tmp_path, corpus, monkeypatch, capsys):
    """root may write anywhere, and the tests may run as root: the refusal is played."""
    options, whole = corpus

    def locked(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", locked)
    monkeypatch.setattr(fineweb, "make_shards", None)  # it must not come to that
    assert "Permission denied" in refused(capsys, *options, "--out", tmp_path / "locked")
    assert "Permission denied" in refused(capsys, *options, "--out", tmp_path / "whole" / "shards")
    assert contents(tmp_path / "whole" / "shards") == whole


def test_a_vocabulary_too_large_for_uint16_is_refused(tmp_path):
    big = namedtuple("Big", "n_vocab name")(100_277, "cl100k")
    with pytest.raises(UserError, match="100,277 tokens") as info:
        fineweb.build(Endless(), big, tmp_path / "out", 100)
    assert "at most 65,536" in info.value.hint


def test_a_name_with_brackets_is_a_name(tmp_path, tokenizer_file):
    files = write_parquet(tmp_path / "notes [1].parquet", STORIES[:10])
    assert run("--files", files, "--tokenizer", tokenizer_file, "--out", tmp_path / "out", "--shard_size", 1000) == 0


# --- what the trainer does with it ------------------------------------------------------------------------------------

TINY_RUN = dict(n_layer=1, n_head=2, n_embd=32, block_size=32, total_batch=256, micro_batch=2, max_steps=4, val_every=4,
                val_tokens=2000, sample_every=0, save_every=4, device="cpu", dtype="float32")


def train(data, log, *more):
    import train_gpt2

    options = [word for name, value in TINY_RUN.items() for word in (f"--{name}", str(value))]
    return train_gpt2.main(["--data", str(data), "--log_dir", str(log), "--name", "it", *options, *map(str, more)])


def last_val(log):
    events = [json.loads(line) for line in (log / "it" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if event["event"] == "val"][-1]


def test_the_closed_loop(tmp_path, capsys):
    """The README's: a tokenizer from documents, shards with it, a model from the shards, text from the model. Bits per
    byte make two tokenizers comparable: those of an untrained model are near log2(vocabulary) / bytes per token."""
    import generate

    documents = tmp_path / "docs.txt"
    documents.write_text(EOT.join(STORIES[:60]), encoding="utf-8")
    for vocabulary in (300, 600):
        mine, shards, log = (tmp_path / f"{name}{vocabulary}" for name in ("tokenizer", "shards", "log"))
        assert tokenizer.main(["train", "--files", str(documents), "--vocab_size", str(vocabulary), "--name", "mine",
                               "--out", f"{mine}.json"]) == 0
        assert run("--files", documents, "--tokenizer", f"{mine}.json", "--shard_size", 5000, "--out", shards) == 0
        assert train(shards, log) == 0
        assert tokenizer.load_tokenizer(log / "it" / "tokenizer.json").name == "mine"
        validation = read_manifest(shards)["shards"][0]
        event = last_val(log)
        per_byte = event["val_loss"] / np.log(2) * validation["tokens"] / validation["bytes"]
        assert event["val_bpb"] == pytest.approx(per_byte, rel=1e-3)
        untrained = np.log2(vocabulary) * validation["tokens"] / validation["bytes"]
        assert event["val_bpb"] == pytest.approx(untrained, rel=0.1)
    checkpoint = next((log / "it").glob("ckpt_*.pt"))
    capsys.readouterr()
    argv = ["--checkpoint", str(checkpoint), "--prompt", "The boat", "--max_tokens", "8", "--device", "cpu"]
    assert generate.main(argv) == 0
    assert "The boat" in capsys.readouterr().out


def test_the_trainer_checks_the_shards(tmp_path, corpus, tokenizer_file, capsys):
    """Against the manifest: the tokenizer that made them, and the length of each."""
    out = tmp_path / "whole" / "shards"
    assert train(out, tmp_path / "log") == 0
    other = tmp_path / "other.json"
    tokenizer.save_tokenizer(tokenizer.make_encoding(tokenizer.train_bpe(STORIES[:60], 390), "other"), other)
    capsys.readouterr()
    assert train(out, tmp_path / "log2", "--tokenizer", other) == 2
    assert "were made with another tokenizer" in capsys.readouterr().err
    assert train(out, tmp_path / "log2", "--tokenizer", tokenizer_file) == 0
    victim = out / "docs_train_000002.npy"
    np.save(victim, np.load(victim)[:-1])
    capsys.readouterr()
    assert train(out, tmp_path / "log3") == 2
    err = capsys.readouterr().err
    assert victim.name in err and "manifest" in err
    victim.unlink()
    assert train(out, tmp_path / "log3") == 2
    assert victim.name in capsys.readouterr().err and not (tmp_path / "log3").exists()


def test_info_notices_a_single_changed_bit(tmp_path, corpus, capsys):
    """The trainer compares lengths only: a look at every byte of 20 GB, by its sha256, is what --info is for."""
    out = tmp_path / "whole" / "shards"
    victim = out / "docs_train_000002.npy"
    data = bytearray(victim.read_bytes())
    data[2000] ^= 1
    victim.write_bytes(data)
    assert victim.name in refused(capsys, "--info", out)
