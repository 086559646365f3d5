"""Tests of tokenizer.py: merges and encodings against slow references, files, GPT-2's own, and the commands.

Run: python -m pytest tests/test_tokenizer.py
GPT-2's tokenizer is tested only where tiktoken finds its two files (TIKTOKEN_CACHE_DIR).
"""
import base64
import errno
import functools
import itertools
import json
import os
import random
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import regex
import requests

import tokenizer as T

ROOT = Path(__file__).resolve().parent.parent

ALPHABETS = ["a", "ab", "ab ", "abc", "abcdef  ", "aé日😀 ", "abcdefghij \n", "it's 12 o'clock, we'll\r\n\t  "]


def random_text(rng, n_chars):
    """Few different characters, so that pairs repeat, overlap and tie."""
    return "".join(rng.choices(rng.choice(ALPHABETS), k=n_chars))


def random_unicode(rng, n_chars):
    """Characters from the whole of Unicode but the surrogates, which no UTF-8 text can hold."""
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(n_chars))


@pytest.fixture(scope="module")
def tales():
    """A tokenizer of 512 tokens, trained on the first part of the corpus."""
    text = (ROOT / "input.txt").read_text(encoding="utf-8")[:100_000]
    return T.make_encoding(T.train_bpe(text, 512), "tales")


needs_gpt2 = pytest.mark.skipif(os.environ.get("TIKTOKEN_CACHE_DIR") == "" or bool(T._gpt2_missing()),
                                reason="GPT-2's tokenizer is not in tiktoken's cache; set TIKTOKEN_CACHE_DIR")


# ---------------------------------------------------------------------------------------------------------- training

def replace(symbols, pair, new):
    """Slow reference of one merge on one word: from left to right, without overlap."""
    result, at = [], 0
    while at < len(symbols):
        if tuple(symbols[at:at + 2]) == pair:
            result.append(new)
            at += 2
        else:
            result.append(symbols[at])
            at += 1
    return result


def slow_merges(text, n_merges):
    """Reference trainer, as slow and as plain as can be: all words of the text, counted afresh before every merge.

    Returns [(bytes of new token, count of its pair, tokens in the text afterwards)], shorter if the pairs run out.
    """
    words = [list(word.encode()) for piece in T.split_documents(text) for word in regex.findall(T.SPLIT_PATTERN, piece)]
    tokens, merges = {value: bytes([value]) for value in range(256)}, []
    for new in range(256, 256 + n_merges):
        counts = Counter(pair for word in words for pair in itertools.pairwise(word))
        if not counts:
            break
        highest = max(counts.values())
        pair = min(pair for pair in counts if counts[pair] == highest)     # of equals, the smaller ranks
        tokens[new] = tokens[pair[0]] + tokens[pair[1]]
        words = [replace(word, pair, new) for word in words]
        merges.append((tokens[new], highest, sum(map(len, words))))
    return merges


def test_merges_equal_the_slow_reference():
    checked = 0
    for seed in range(300):
        rng = random.Random(seed)
        text = random_text(rng, rng.choice([5, 20, 100, 400]))
        expected = slow_merges(text, rng.choice([3, 10, 40]))
        if not expected:
            continue
        log = []
        ranks = T.train_bpe(text, T.MIN_VOCAB + len(expected), on_merge=log.append)
        assert [(merge.left + merge.right, merge.count, merge.tokens) for merge in log] == expected, f"seed {seed}"
        assert list(ranks) == [bytes([value]) for value in range(256)] + [token for token, _, _ in expected]
        assert list(ranks.values()) == list(range(256 + len(expected)))
        assert {merge.n_bytes for merge in log} == {sum(len(p.encode()) for p in T.split_documents(text))}
        checked += len(expected)
    assert checked > 3000   # the texts were not all too short


def test_merges_of_the_corpus_equal_the_slow_reference():
    text = (ROOT / "input.txt").read_text(encoding="utf-8")[:20_000]
    assert list(T.train_bpe(text, T.MIN_VOCAB + 60))[256:] == [token for token, _, _ in slow_merges(text, 60)]


def test_merges_equal_those_of_hugging_face():
    tokenizers = pytest.importorskip("tokenizers")
    text = (ROOT / "input.txt").read_text(encoding="utf-8")[:200_000]
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    peer.train_from_iterator(T.split_documents(text), tokenizers.trainers.BpeTrainer(
        vocab_size=256 + 400, initial_alphabet=alphabet, show_progress=False))
    decoder = tokenizers.decoders.ByteLevel()
    theirs = {decoder.decode([token]) for token, rank in peer.get_vocab().items() if rank >= 256}
    ours = {token.decode() for token in T.train_bpe(text, T.MIN_VOCAB + 400) if len(token) > 1}
    assert len(ours & theirs) >= 398     # they break ties by another numbering of the bytes


def test_ties_go_to_the_smaller_ranks():
    # Words "cd" and " ab": (c, d), (space, a) and (a, b) all stand once. Space is 32, a is 97, c is 99, " a" is 256.
    assert list(T.train_bpe("cd ab", 257 + 3))[256:] == [b" a", b"cd", b" ab"]
    assert list(T.train_bpe(["cd", " ab"], 257 + 3)) == list(T.train_bpe([" ab", "cd"], 257 + 3))


def test_overlapping_pairs():
    log = []
    T.train_bpe("aaaaa", 257 + 3, on_merge=log.append)
    assert [tuple(merge)[1:5] for merge in log] == [
        (b"a", b"a", 4, 3),         # aa aa a, "aa" stood at four places
        (b"aa", b"a", 1, 2),        # of (aa, a) and (aa, aa), each once, (aa, a) has the smaller ranks
        (b"aa", b"aaa", 1, 1),
    ]


@pytest.mark.parametrize("nprocs", [1, 2])
def test_result_depends_on_word_counts_only(nprocs, monkeypatch):
    """Any order of the texts, any number of processes: same ranks. With two processes no chunk is counted here."""
    texts = (ROOT / "input.txt").read_text(encoding="utf-8")[:60_000].split("\n\n")
    expected = T.train_bpe(texts, 400, nprocs=1)
    monkeypatch.setattr(T, "CHUNK_CHARS", 10_000)
    random.Random(0).shuffle(texts)
    if nprocs == 2:
        @functools.wraps(T._count_chunk)    # so that it is pickled by name, and the workers run the real one
        def not_here(chunk, pattern):
            raise AssertionError("counted in the main process")
        monkeypatch.setattr(T, "_count_chunk", not_here)
    assert T.train_bpe(texts, 400, nprocs=nprocs) == expected


def test_counting_survives_broken_workers(monkeypatch):
    """Every chunk is counted once, also when the pool breaks at any moment (an unguarded main script under spawn)."""
    import concurrent.futures
    from concurrent.futures.process import BrokenProcessPool

    class Breaking:
        def __init__(self, broken_from):
            self.left = broken_from

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *args):
            if self.left == 0:
                raise BrokenProcessPool("gone")
            self.left -= 1
            future = concurrent.futures.Future()
            future.set_result(function(*args))
            return future

    monkeypatch.setattr(T, "CHUNK_CHARS", 50)
    text = random_text(random.Random(3), 1) + "one two three four five six seven " * 40
    expected = T.count_words([text], nprocs=1)
    for broken_from in (0, 1, 5, 9, 10**9):
        monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", lambda *_, n=broken_from, **__: Breaking(n))
        assert T.count_words([text], nprocs=2) == expected


def test_cutting_long_documents_changes_no_word(monkeypatch):
    monkeypatch.setattr(T, "CHUNK_CHARS", 7)
    for seed in range(300):
        rng = random.Random(seed)
        parts = ["a", "'ll", "1", "!", " ", "  ", "\n", " \n", "\x1c", "\u2003", "é", "\r\n"]
        text = "".join(rng.choices(parts, k=200))
        expected = Counter(regex.findall(T.SPLIT_PATTERN, text))
        assert T.count_words([text], nprocs=1) == expected, f"seed {seed}"
    assert len(list(T._cut("some words of a text", T.SPLIT_PATTERN))) > 1


def test_hash_seed_and_import_in_a_fresh_process():
    """The ranks do not depend on PYTHONHASHSEED; importing the module prints nothing and loads nothing heavy."""
    program = ("import sys, tokenizer as T\n"
               "heavy = {'torch', 'numpy', 'tiktoken', 'regex', 'requests', 'datasets', 'train_gpt2'}\n"
               "heavy &= set(sys.modules)\n"
               "text = open('input.txt', encoding='utf-8').read(50_000)\n"
               "print(sorted(heavy), T.fingerprint(T.make_encoding(T.train_bpe(text, 600), 'x')))")
    text = (ROOT / "input.txt").read_text(encoding="utf-8")[:50_000]
    expected = T.fingerprint(T.make_encoding(T.train_bpe(text, 600), "here"))
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60,
                              env={**os.environ, "PYTHONHASHSEED": seed})
        assert done.stdout == f"[] {expected}\n", done.stderr


@pytest.mark.parametrize("vocab_size", [256, 0, -5, 65_537, 1024.0, "1024"])
def test_vocabulary_sizes_out_of_range(vocab_size):
    with pytest.raises(T.DataError, match="between 257 and 65,536"):
        T.train_bpe("some text", vocab_size)


def test_vocabulary_larger_than_the_text_supports():
    text = "the cat and the dog"
    with pytest.raises(T.DataError, match="no more pairs") as caught:
        T.train_bpe(text, 5000)
    largest = int(regex.search(r"--vocab_size (\d+)", caught.value.hint).group(1))
    assert len(T.train_bpe(text, largest)) == largest - 1
    with pytest.raises(T.DataError):
        T.train_bpe(text, largest + 1)


@pytest.mark.parametrize("texts", ["", [], [""], [" \n", T.EOT], T.EOT * 3])
def test_no_text(texts):
    with pytest.raises(T.DataError, match="no text"):
        T.train_bpe(texts, 300)


def test_smallest_vocabulary_and_broken_pattern():
    assert T.train_bpe("abc", 257) == {bytes([value]): value for value in range(256)}
    with pytest.raises(T.DataError, match="pattern"):
        T.train_bpe("abc", 258, pattern="(")


def test_another_pattern_cuts_other_words():
    assert list(T.train_bpe("a b a b", 257 + 2, pattern=r".+"))[256:] == [b" b", b"a b"]
    with pytest.raises(T.DataError, match="no more pairs"):
        T.train_bpe("a b a b", 258, pattern=r".")


# ---------------------------------------------------------------------------------------------------------- encoding

def slow_encode(ranks, merges, text):
    """Reference encoder: to each word, apply every merge of the training in the order it was learned."""
    ids = []
    for word in regex.findall(T.SPLIT_PATTERN, text):
        symbols = list(word.encode())
        for merge in merges:
            pair = (ranks[merge.left], ranks[merge.right])
            symbols = replace(symbols, pair, merge.rank)
        ids += symbols
    return ids


def test_encoding_equals_the_slow_reference():
    for seed in range(60):
        rng = random.Random(seed)
        text, merges = random_text(rng, 300), []
        size = T.MIN_VOCAB + len(slow_merges(text, 40))
        ranks = T.train_bpe(text, size, on_merge=merges.append)
        enc = T.make_encoding(ranks, "random")
        for _ in range(5):
            sample = random_text(rng, 60) + rng.choice(["", " ", "xyz", "\n\n"])
            ids = enc.encode_ordinary(sample)
            assert ids == slow_encode(ranks, merges, sample), f"seed {seed}: {sample!r}"
            steps = T.encode_with_steps(enc, sample)
            assert [i for step in steps for i in step.ids] == ids, f"seed {seed}: {sample!r}"
            assert "".join(step.word for step in steps) == sample


def test_steps_go_from_bytes_to_tokens_one_merge_at_a_time(tales):
    (step,) = T.encode_with_steps(tales, "there")
    assert step.stages[0] == [b"t", b"h", b"e", b"r", b"e"]
    assert tales.decode_bytes(step.ids) == b"there" and len(step.stages[-1]) == len(step.ids) < 5
    assert all(b"".join(stage) == b"there" for stage in step.stages)
    assert all(len(after) < len(before) for before, after in itertools.pairwise(step.stages))


def test_round_trip_of_any_text(tales):
    rng = random.Random(0)
    for _ in range(300):
        text = random_unicode(rng, rng.randrange(40)) + random_text(rng, rng.randrange(40))
        ids = tales.encode_ordinary(text)
        assert tales.decode_bytes(ids) == text.encode() and tales.decode(ids) == text


def test_round_trip_of_any_bytes(tales):
    rng = random.Random(1)
    assert all(tales.decode_bytes([tales.encode_single_token(bytes([b]))]) == bytes([b]) for b in range(256))
    for _ in range(300):
        data = rng.randbytes(rng.randrange(60))
        assert tales.decode_bytes(tales._encode_bytes(data)) == data


def test_lone_surrogates_do_not_stop_anything(tales):
    text = "caf\ud800 \udc00!"      # as file names and arguments that are not UTF-8 arrive in Python
    assert [i for step in T.encode_with_steps(tales, text) for i in step.ids] == tales.encode_ordinary(text)
    assert len(T.train_bpe(text, 260)) == 259


def test_eot_is_the_last_id_and_never_comes_from_text(tales):
    assert tales.n_vocab == 512 and T.eot_id(tales) == 511 == tales.eot_token
    assert tales.decode([511]) == T.EOT
    rng = random.Random(2)
    for _ in range(100):
        text = T.EOT.join(random_text(rng, 10) for _ in range(3))
        ids = tales.encode_ordinary(text)
        assert max(ids) < 511 and tales.decode(ids) == text


def test_eot_is_never_learned_as_text():
    ranks = T.train_bpe(f"red fish{T.EOT}\nblue fish{T.EOT}" * 50, 257 + 9)
    assert not any(b"end" in token or b"<|" in token for token in ranks)


@pytest.mark.parametrize("change, message", [
    (lambda ranks: ranks.pop(b"a"), "not 0, 1, 2"),
    (lambda ranks: ranks.update({b"a": 98}), "not 0, 1, 2"),
    (lambda ranks: ranks.update({b"xyz": 999}), "not 0, 1, 2"),
    (lambda ranks: ranks.update({b"long": ranks.pop(b"a")}), "lacks 1 of the 256 bytes, the first is 97"),
    (lambda ranks: ranks.update({b"%d" % n + b"...": n for n in range(300, 66_000)}), "at most 65,536"),
])
def test_make_encoding_refuses(change, message):
    ranks = {bytes([value]): value for value in range(256)} | {b"%d.." % n: n for n in range(256, 300)}
    T.make_encoding(ranks, "whole")
    change(ranks)
    with pytest.raises(T.DataError, match=message):
        T.make_encoding(ranks, "broken")


def test_make_encoding_refuses_a_broken_pattern():
    with pytest.raises(T.DataError, match="pattern"):
        T.make_encoding(T.train_bpe("abc", 257), "broken", pattern="(")


@pytest.mark.parametrize("text, documents", [
    ("", []),
    ("one", ["one"]),
    ("one\n<|endoftext|>\ntwo\n<|endoftext|>\n", ["one\n", "two\n"]),
    ("one<|endoftext|>two", ["one", "two"]),
    ("one\r\n<|endoftext|>\r\ntwo", ["one\r\n", "two"]),
    ("<|endoftext|><|endoftext|>\n\n<|endoftext|>one\n\ntwo", ["one\n\ntwo"]),
    ("one<|endoftext|>\n\ntwo", ["one", "\ntwo"]),
])
def test_split_documents(text, documents):
    assert T.split_documents(text) == documents


def test_both_spellings_of_the_pattern_cut_alike():
    rng = random.Random(4)
    for _ in range(300):
        text = random_text(rng, 60) + random_unicode(rng, 20) + rng.choice(["", " ", "\n", " \n "])
        assert regex.findall(T.SPLIT_PATTERN, text) == regex.findall(T.ORIGINAL_PATTERN, text)


# -------------------------------------------------------------------------------------------------------------- files

def test_save_and_load(tales, tmp_path):
    path = T.save_tokenizer(tales, tmp_path / "new" / "tales.json")
    loaded = T.load_tokenizer(path)
    assert (loaded.name, loaded.n_vocab, loaded._pat_str) == ("tales", 512, T.SPLIT_PATTERN)
    assert loaded._mergeable_ranks == tales._mergeable_ranks
    assert T.fingerprint(loaded) == T.fingerprint(tales)
    assert T.save_tokenizer(tales, tmp_path) == tmp_path / "tokenizer.json"     # a directory, both ways
    assert T.fingerprint(T.load_tokenizer(str(tmp_path))) == T.fingerprint(tales)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "tales.json", "tokenizer.json"]   # nothing left over


def test_to_json_is_the_content_of_the_file(tales, tmp_path):
    content = T.to_json(tales)
    assert content == T.save_tokenizer(tales, tmp_path / "tales.json").read_bytes()
    (tmp_path / "copy.json").write_bytes(content)
    copy = T.load_tokenizer(tmp_path / "copy.json")
    assert T.to_json(copy) == content and T.fingerprint(copy) == T.fingerprint(tales)
    with pytest.raises(T.DataError, match="pattern") as caught:
        T.to_json(T.make_encoding(tales._mergeable_ranks, "x", r"\w+|\W+"))
    assert caught.value.hint


def test_fingerprint_is_of_the_content(tales):
    ranks = dict(tales._mergeable_ranks)
    original = T.fingerprint(tales)
    assert T.fingerprint(T.make_encoding(dict(reversed(ranks.items())), "other name")) == original
    assert T.fingerprint(T.make_encoding(ranks, "tales", T.ORIGINAL_PATTERN)) == original
    assert T.fingerprint(T.make_encoding(ranks, "tales", r"\w+|\W+")) != original
    a, b = list(ranks)[300:302]
    ranks[a], ranks[b] = ranks[b], ranks[a]
    assert T.fingerprint(T.make_encoding(ranks, "tales")) != original


def test_fingerprint_stays_the_same_from_release_to_release():
    """Manifests and checkpoints of older releases carry it."""
    enc = T.make_encoding(T.train_bpe("ab ab", 259), "x")
    assert T.fingerprint(enc) == "eea468179946f11b983307773b8af238dac51101869d67bf7ddb25ed0d7a7cde"


def test_save_refuses_what_could_not_be_loaded(tales, tmp_path):
    with pytest.raises(T.DataError, match="pattern"):
        T.save_tokenizer(T.make_encoding(tales._mergeable_ranks, "x", r"\w+|\W+"), tmp_path / "x.json")
    import tiktoken
    two = tiktoken.Encoding("two", pat_str=T.SPLIT_PATTERN, mergeable_ranks=tales._mergeable_ranks,
                            special_tokens={T.EOT: 511, "<|pad|>": 512})
    with pytest.raises(T.DataError, match="only special token"):
        T.save_tokenizer(two, tmp_path / "x.json")
    with pytest.raises(T.DataError, match="name"):
        T.save_tokenizer(T.make_encoding(tales._mergeable_ranks, "two\nlines"), tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tales, tmp_path, monkeypatch):
    path = T.save_tokenizer(tales, tmp_path / "x.json")
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(T.DataError, match="No space left") as caught:
        T.save_tokenizer(T.make_encoding(T.train_bpe("abc", 257), "y"), path)
    assert caught.value.hint and path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def hostile(change):
    """Change a good file's content; its sha256 is left alone, or made to fit by `resign`."""
    def write(path, enc):
        content = json.loads(T.save_tokenizer(enc, path).read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))
    return write


def resign(**entries):
    """A hostile file with a right checksum: only the checks of the content stand in its way."""
    import hashlib

    def change(content):
        content.update({key: make(content) for key, make in entries.items()})
        signed = {key: content[key] for key in ("pattern", "tokens", "special")}
        content["sha256"] = hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()
    return hostile(change)


HOSTILE = {     # case -> (what writes the file, what the error must say)
    "a flipped letter": (hostile(lambda c: c["tokens"].__setitem__(300, "AAAA")), "sha256"),
    "another order": (hostile(lambda c: c["tokens"].reverse()), "sha256"),
    "token twice": (resign(tokens=lambda c: [*c["tokens"][:-1], c["tokens"][5]]), "listed twice"),
    "byte missing": (resign(tokens=lambda c: ["eHh4eHg=", *c["tokens"][1:]]), "lacks 1 of the 256 bytes"),
    "bad base64": (resign(tokens=lambda c: [*c["tokens"][:-1], "eHh4!!!eHg="]), "base64"),
    "padding missing": (resign(tokens=lambda c: [*c["tokens"][:-1], "eHh4eHg"]), "padding"),
    "not ascii": (resign(tokens=lambda c: [*c["tokens"][:-1], "é"]), "ASCII"),
    "empty token": (resign(tokens=lambda c: [*c["tokens"][:-1], ""]), "is empty"),
    "number as token": (resign(tokens=lambda c: [*c["tokens"][:-1], 7]), "int"),
    "tokens as object": (resign(tokens=lambda c: {token: n for n, token in enumerate(c["tokens"])}), "not a list"),
    "tokens as text": (resign(tokens=lambda c: "AAAA"), "not a list"),
    "no tokens": (resign(tokens=lambda c: [], special=lambda c: {T.EOT: 0}), "lacks 256"),
    "too many tokens": (resign(
        tokens=lambda c: c["tokens"] + [base64.b64encode(b"%07d" % n).decode() for n in range(65_500)],
        special=lambda c: {T.EOT: 65_500 + 511}), "65,536"),
    "catastrophic pattern": (resign(pattern=lambda c: r"(a+)+$"), "split pattern"),
    "invalid pattern": (resign(pattern=lambda c: "("), "split pattern"),
    "pattern as list": (resign(pattern=lambda c: [T.SPLIT_PATTERN]), "list"),
    "special moved": (resign(special=lambda c: {T.EOT: 5}), "only special"),
    "special more": (resign(special=lambda c: {T.EOT: 511, "<|pad|>": 512}), "only special"),
    "special other": (resign(special=lambda c: {"<|end|>": 511}), "only special"),
    "special list": (resign(special=lambda c: [T.EOT]), "only special"),
    "name with escapes": (resign(name=lambda c: "\x1b[2Jtales"), "name"),
    "name as number": (resign(name=lambda c: 5), "name"),
    "other format": (hostile(lambda c: c.update(format=99)), "format 99"),
    "checksum gone": (hostile(lambda c: c.pop("sha256") and None), "sha256"),
    "pattern gone": (hostile(lambda c: c.pop("pattern") and None), "pattern"),
    "list": (hostile(lambda c: ["tokens"]), "not an object"),
    "number": (hostile(lambda c: 5), "not an object"),
    "cut short": (lambda path, enc: path.write_bytes(T.save_tokenizer(enc, path).read_bytes()[:3000]), "not JSON"),
    "empty": (lambda path, enc: path.write_bytes(b""), "not JSON"),
    "binary": (lambda path, enc: path.write_bytes(bytes(range(256)) * 10), "not JSON"),
    "pickle": (lambda path, enc: path.write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR."), "not JSON"),
    "nested": (lambda path, enc: path.write_bytes(b"[" * 200_000), "not JSON"),
    "nested objects": (lambda path, enc: path.write_bytes(b'{"a":' * 200_000), "not JSON"),
    "endless number": (lambda path, enc: path.write_bytes(b'{"format": ' + b"1" * 10_000 + b"}"), "not JSON"),
    "huge": (lambda path, enc: os.truncate(T.save_tokenizer(enc, path), T.MAX_FILE_BYTES + 1), "larger than 64 MB"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case, tales, tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    write, message = HOSTILE[case]
    write(path, tales)
    before = path.stat()
    with pytest.raises(T.DataError, match=message):
        T.load_tokenizer(path)
    assert T.main(["show", "hello", "--tokenizer", str(path)]) == 2     # one clear line, and a hint
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    assert "\x1b" not in err
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)


def test_a_rightly_signed_file_loads(tales, tmp_path):
    """`resign` makes good checksums: the cases above fail for what they are about."""
    resign(name=lambda c: "renamed")(tmp_path / "x.json", tales)
    assert T.load_tokenizer(tmp_path / "x.json").name == "renamed"


def test_missing_files(tmp_path, tales):
    with pytest.raises(T.DataError, match="no tokenizer") as caught:
        T.load_tokenizer(tmp_path / "none.json")
    assert "gpt2" in caught.value.hint
    with pytest.raises(T.DataError, match=r"no tokenizer at .*tokenizer\.json"):
        T.load_tokenizer(tmp_path)
    T.save_tokenizer(tales, tmp_path / "mine.json")
    with pytest.raises(T.DataError) as caught:
        T.load_tokenizer(tmp_path / "mine")
    assert "mine.json" in caught.value.hint


# --------------------------------------------------------------------------------------------------------- GPT-2's own

@needs_gpt2
def test_gpt2(tmp_path):
    enc = T.load_tokenizer("gpt2")
    assert enc.n_vocab == 50_257 and T.eot_id(enc) == 50_256
    assert enc.encode_ordinary("Hello world") == [15496, 995]
    path = T.save_tokenizer(enc, tmp_path)
    copy = T.load_tokenizer(tmp_path)
    assert (copy.name, copy.n_vocab) == ("gpt2", 50_257) and T.fingerprint(copy) == T.fingerprint(enc)
    assert path.stat().st_size < T.MAX_FILE_BYTES
    rng = random.Random(5)
    for _ in range(30):
        text = "The students' 1,024 tokens aren't  the\n\n same. " + random_unicode(rng, 10) + random_text(rng, 20)
        ids = enc.encode_ordinary(text)
        assert copy.encode_ordinary(text) == ids
        assert [i for step in T.encode_with_steps(enc, text) for i in step.ids] == ids
    assert max(enc.encode_ordinary(T.EOT)) < 50_256


@needs_gpt2
def test_gpt2_cuts_words_as_we_do():
    assert T.load_tokenizer("gpt2")._pat_str in T.KNOWN_PATTERNS


def test_gpt2_without_network_says_how_to_work_offline(tmp_path, monkeypatch, capsys):
    def no_network(url, timeout):
        assert 0 < timeout <= 30     # it can never hang
        raise requests.ConnectionError("no route")
    monkeypatch.setattr(requests, "get", no_network)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(T.DataError, match="not on this machine") as caught:
        T.load_tokenizer("gpt2")
    for word in ("TIKTOKEN_CACHE_DIR", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
                 "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", str(tmp_path / "cache")):
        assert word in caught.value.hint
    assert T.main(["show", "hello", "--tokenizer", "gpt2"]) == 2
    assert "hint: to work offline" in capsys.readouterr().err
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(T.DataError, match="set to nothing"):
        T.load_tokenizer("gpt2")


def fake_get(contents):
    """requests.get for the files in `contents`: address's last part -> bytes."""
    def get(url, timeout):
        return types.SimpleNamespace(content=contents[url.rsplit("/", 1)[1]], raise_for_status=lambda: None)
    return get


def test_gpt2_refuses_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(requests, "get", fake_get({"vocab.bpe": b"<html>log in</html>", "encoder.json": b"{}"}))
    with pytest.raises(T.DataError, match="not GPT-2's"):
        T.load_tokenizer("gpt2")
    assert list(tmp_path.iterdir()) == []


@needs_gpt2
def test_gpt2_is_fetched_once(tmp_path, monkeypatch):
    """Missing and damaged files are fetched, checked and kept under tiktoken's names; after that nothing is fetched."""
    have = {file: (T._tiktoken_cache() / name).read_bytes() for name, (file, _) in T.GPT2_FILES.items()}
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    first = next(iter(T.GPT2_FILES))
    (tmp_path / first).write_bytes(b"damaged")
    monkeypatch.setattr(requests, "get", fake_get(have))
    T.load_tokenizer("gpt2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: have[file] for name, (file, _) in T.GPT2_FILES.items()}
    monkeypatch.setattr(requests, "get", fake_get({}))
    assert T.load_tokenizer("gpt2").n_vocab == 50_257


# ------------------------------------------------------------------------------------------- the tokenizer of a model

@pytest.fixture
def two():
    """Two small tokenizers, called `one` and `other`."""
    return tuple(T.make_encoding(T.train_bpe("the cat sat on the mat " * 9, size), name)
                 for name, size in (("one", 260), ("other", 265)))


def no_gpt2(monkeypatch, folder):
    """GPT-2's files are not in the cache, and asking for them over the network fails the test."""
    def fetched(url, timeout):
        pytest.fail(f"{url} was asked for")
    monkeypatch.setattr(requests, "get", fetched)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder / "no cache"))


def test_find_tokenizer_looks_in_the_folder_and_beside_the_file(two, tmp_path):
    run_folder = tmp_path / "log" / "tales"
    T.save_tokenizer(two[0], run_folder / "tokenizer.json")
    (run_folder / "ckpt_000010.pt").write_bytes(b"")
    for place in (run_folder, run_folder / "ckpt_000010.pt", str(run_folder)):
        assert T.find_tokenizer(place).name == "one"
    T.save_tokenizer(two[1], run_folder / "bpe.json")       # an export's, which goes before
    assert T.find_tokenizer(run_folder / "ckpt_000010.pt").name == T.find_tokenizer(run_folder).name == "other"


def test_find_tokenizer_passes_over_the_format_of_transformers(two, tmp_path):
    model = tmp_path / "log" / "run" / "hf"
    T.save_tokenizer(two[0], model / "bpe.json")
    for name, content in (("config.json", "{}"), ("tokenizer.json", '{"model": {}}'), ("model.safetensors", "")):
        (model / name).write_text(content)
    assert T.find_tokenizer(model).name == T.find_tokenizer(model / "model.safetensors").name == "one"
    (model / "bpe.json").rename(model.parent / "tokenizer.json")     # that of the run which the export is of
    assert T.find_tokenizer(model).name == "one"


@needs_gpt2
def test_find_tokenizer_gives_gpt2s_to_a_model_without_one(two, tmp_path, monkeypatch):
    T.save_tokenizer(two[0], tmp_path / "tokenizer.json")   # of something else: gpt2 is a name, not a place
    monkeypatch.chdir(tmp_path)
    assert T.find_tokenizer("gpt2").n_vocab == T.find_tokenizer("gpt2-xl").n_vocab == 50_257
    (tmp_path / "theirs" / "model").mkdir(parents=True)
    (tmp_path / "theirs" / "model" / "config.json").write_text("{}")
    (tmp_path / "theirs" / "model" / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    assert T.find_tokenizer("theirs/model").name == "gpt2"


def test_shards_have_their_own_tokenizer_and_no_other(two, tmp_path, monkeypatch):
    no_gpt2(monkeypatch, tmp_path)
    one, other = two
    T.save_tokenizer(one, tmp_path / "tokenizer.json")
    file = T.save_tokenizer(other, tmp_path / "elsewhere" / "other.json")
    for sha256 in (None, T.fingerprint(one)):
        assert T.for_shards(tmp_path, "auto", sha256).name == "one"
        assert T.for_shards(str(tmp_path), str(tmp_path / "tokenizer.json"), sha256).name == "one"
    assert T.for_shards(tmp_path, file, None).name == "other"      # nothing says that it is wrong
    with pytest.raises(T.DataError, match="made with another tokenizer than other") as caught:
        T.for_shards(tmp_path, file, T.fingerprint(one))
    assert "--tokenizer" in caught.value.hint
    with pytest.raises(T.DataError, match="no tokenizer at"):
        T.for_shards(tmp_path, tmp_path / "none.json", None)
    with pytest.raises(T.DataError, match=r"not made with the tokenizer\.json beside them") as caught:
        T.for_shards(tmp_path, "auto", T.fingerprint(other))     # the samples would be other words than the model's
    assert caught.value.hint


def test_shards_need_no_tokenizer(two, tmp_path, monkeypatch):
    """Without one there is no text, but training goes on; GPT-2's is not fetched for it."""
    no_gpt2(monkeypatch, tmp_path)
    assert T.for_shards(tmp_path, "auto", None) is None
    assert T.for_shards(tmp_path, "auto", T.fingerprint(two[0])) is None
    (tmp_path / "tokenizer.json").write_text("damaged")     # but where there is one, it must be whole
    with pytest.raises(T.DataError, match=r"tokenizer\.json is not a tokenizer"):
        T.for_shards(tmp_path, "auto", None)


@needs_gpt2
def test_shards_without_a_tokenizer_are_gpt2s_if_it_is_here(two, tmp_path):
    gpt2 = T.load_tokenizer("gpt2")
    for sha256 in (None, T.fingerprint(gpt2)):
        assert T.for_shards(tmp_path, "auto", sha256).name == "gpt2"
        assert T.for_shards(tmp_path, "auto", sha256, 50_257).name == "gpt2"
        assert T.for_shards(tmp_path, "auto", sha256, 300) is None
    assert T.for_shards(tmp_path, "auto", T.fingerprint(two[0])) is None


# -------------------------------------------------------------------------------------------------- text to learn from

def plain_split(text):
    """Reference: byte after byte, the first place in the last tenth where a document (or else a line) has ended."""
    raw = text.encode()
    for mark in ((T.EOT + "\n").encode(), b"\n"):
        for at in range(len(raw)):
            if at >= len(raw) * 9 // 10 and raw[at:at + len(mark)] == mark:
                return raw[:at + len(mark)].decode(), raw[at + len(mark):].decode()
    cut = len(raw) * 9 // 10
    while cut and raw[cut] & 0xC0 == 0x80:      # inside a character
        cut -= 1
    return raw[:cut].decode(), raw[cut:].decode()


@pytest.mark.parametrize("separator", [f"\n{T.EOT}\n", "\n", " "])
def test_a_tenth_is_held_out_from_the_end_of_a_document_or_line_on(separator):
    held_out = 0
    for seed in range(200):
        rng = random.Random(seed)
        pieces = [random_text(rng, rng.choice([3, 30])).replace("\n", "") + "x" for _ in range(rng.choice([2, 9, 60]))]
        text = separator.join(pieces)
        train, val = T.split_corpus(text)
        assert (train, val) == tuple(map(T.split_documents, plain_split(text))), f"seed {seed}"
        # Nothing is lost and nothing is there twice, but for documents of white space.
        assert "".join("".join(train + val).split()) == "".join(text.replace(T.EOT, "").split())
        assert sum(len(document.encode()) for document in val) <= len(text.encode()) * 0.1 + 4
        held_out += bool(val)
    assert held_out > 100


def test_what_is_held_out_of_the_corpus():
    """Whole stories, of which no sentence is learned."""
    text = (ROOT / "input.txt").read_text(encoding="utf-8")
    train, val = T.split_corpus(text)
    assert train + val == T.split_documents(text) and len(val) > 5
    assert 0.09 < sum(map(len, val)) / len(text) <= 0.1


def test_documents_stand_after_their_markers(tales):
    documents = ["The cat", "", "sat <|endoftext|> on the mat.\n"]
    ids = T.encode_documents(tales, documents)
    eot = T.eot_id(tales)
    assert ids == [eot, *tales.encode_ordinary("The cat"), eot, eot, *tales.encode_ordinary(documents[2])]
    assert ids.count(eot) == 3      # what is written in a text is no marker
    assert T.encode_documents(tales, []) == []


def write_corpus(folder):
    """A text of 20 documents, of which the last 2 are held out; returns path and documents."""
    documents = [f"Story {i}: the cat sat on the mat, 時 {i * 7} times.\n" for i in range(20)]
    path = folder / "my.corpus.txt"
    path.write_text(f"{T.EOT}\n".join(documents), encoding="utf-8")
    return path, documents


def test_a_new_tokenizer_learns_nothing_of_what_is_held_out(tmp_path):
    path, documents = write_corpus(tmp_path)
    corpus = T.read_corpus(path, vocab_size=280)
    n = len(documents) - 1
    while len(documents[n:]) < len(T.split_corpus(path.read_text(encoding="utf-8"))[1]):
        n -= 1
    assert n in (18, 19)
    assert corpus.encoding._mergeable_ranks == T.train_bpe(documents[:n], 280)
    assert corpus.encoding.n_vocab == 280 and corpus.encoding.name == "my.corpus"
    assert corpus.train == T.encode_documents(corpus.encoding, documents[:n])
    assert corpus.val == T.encode_documents(corpus.encoding, documents[n:])
    assert corpus.val_bytes == sum(len(document.encode()) for document in documents[n:])    # without markers
    text = path.read_text(encoding="utf-8").replace("Story 19: the cat", "Story 19: xyz xyz")
    path.write_text(text, encoding="utf-8")
    assert T.read_corpus(path, vocab_size=280).encoding._mergeable_ranks == corpus.encoding._mergeable_ranks


def test_the_tokenizer_asked_for_goes_before_the_models_own(two, tmp_path):
    path, documents = write_corpus(tmp_path)
    file, own = T.save_tokenizer(two[0], tmp_path / "one.json"), tmp_path / "log" / "run"
    T.save_tokenizer(two[1], own / "tokenizer.json")
    assert T.read_corpus(path, own=own).encoding.name == "other"
    assert T.read_corpus(path, "auto", own).encoding.name == "other"
    corpus = T.read_corpus(path, str(file), own)
    assert corpus.encoding.name == "one"
    assert corpus.train + corpus.val == T.encode_documents(two[0], documents)


@pytest.mark.parametrize(("content", "message"), [
    (None, "no file"), (b"", "no text"), (b" \n<|endoftext|>\n", "no text"), (b"a\0b", "zero bytes"),
    (b"caf\xe9", "not UTF-8"), (b"word\n", "too short"), (b"word" * 5000 + b"\n", "too short"),
])
def test_a_text_that_cannot_be_used(content, message, tmp_path):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(T.DataError, match=message) as caught:
        T.read_corpus(tmp_path / "x.txt")
    assert "x.txt" in str(caught.value) and caught.value.hint


def test_a_text_with_a_tokenizer_that_cannot_be_used(two, tmp_path):
    path, _ = write_corpus(tmp_path)
    with pytest.raises(T.DataError, match="no tokenizer at"):
        T.read_corpus(path, tmp_path / "none.json")
    with pytest.raises(T.DataError, match="between 257"):
        T.read_corpus(path, vocab_size=12)


def test_a_run_whose_tokenizer_is_damaged_gets_no_other(two, tmp_path, monkeypatch):
    """Its ids would mean other words: the damage is the mistake to tell."""
    no_gpt2(monkeypatch, tmp_path)
    path, _ = write_corpus(tmp_path)
    file = T.save_tokenizer(two[0], tmp_path / "log" / "run" / "tokenizer.json")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(T.DataError) as caught:
        T.read_corpus(path, own=file.parent)
    assert str(file) in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ commands

STORY = "Once upon a time the cat sat on the mat and the dog sat on the log.\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory with one text file, and no GPT-2 in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no cache"))
    (tmp_path / "my.txt").write_text(f"{STORY}{T.EOT}\n{STORY * 3}", encoding="utf-8")
    return tmp_path


def run(capsys, *argv):
    """main(argv) -> (exit code, standard output, standard error)."""
    code = T.main(list(argv))
    return code, *capsys.readouterr()


def test_train_show_eval(folder, capsys):
    code, out, err = run(capsys, "train", "--files", "my.txt", "--vocab_size", "280", "--name", "mine")
    assert (code, err) == (0, "") and "wrote mine.json" in out and "280 tokens = 256 bytes + 23 merges" in out
    enc = T.load_tokenizer("mine.json")
    assert enc._mergeable_ranks == T.train_bpe(STORY * 4, 280) and enc.name == "mine"

    code, out, err = run(capsys, "show", "the cat\n", "--tokenizer", "mine.json", "--steps")
    ids = enc.encode_ordinary("the cat\n")
    assert (code, err) == (0, "") and "ids: " + " ".join(map(str, ids)) in out and "\x1b" not in out
    assert "|".join(T.visible(enc.decode_single_token_bytes(i)) for i in ids) in out
    assert "t|h|e  ->  " in out and "8 bytes" in out

    code, out, err = run(capsys, "eval", "my.txt", "--tokenizer", "mine.json")
    n_tokens = sum(len(enc.encode_ordinary(text)) for text in (STORY, STORY * 3))
    assert (code, err) == (0, "") and f"2 documents, {len(STORY) * 4} bytes" in out
    assert f"{n_tokens}" in out and f"{len(STORY) * 4 / n_tokens:.2f}" in out and "gpt2 is not on this machine" in out


@needs_gpt2
def test_eval_beside_gpt2(tmp_path, capsys):
    (tmp_path / "my.txt").write_text(STORY, encoding="utf-8")
    T.save_tokenizer(T.make_encoding(T.train_bpe(STORY, 270), "x"), tmp_path)
    code, out, _ = run(capsys, "eval", str(tmp_path / "my.txt"), "--tokenizer", str(tmp_path))
    n_tokens = len(T.load_tokenizer("gpt2").encode_ordinary(STORY))
    row = next(line for line in out.splitlines() if line.startswith("gpt2")).split()
    assert code == 0 and row[1] == "50,257" and row[3:] == [str(n_tokens), f"{len(STORY) / n_tokens:.2f}"]


def test_train_writes_where_told(folder, capsys):
    assert run(capsys, "train", "--files", "my.txt", "--vocab_size", "260")[0] == 0
    assert run(capsys, "train", "--files", "*.txt", "--vocab_size", "261", "--out", "sub/there.json")[0] == 0
    assert T.load_tokenizer("my.json").n_vocab == 260 and T.load_tokenizer("sub/there.json").n_vocab == 261
    code, out, _ = run(capsys, "train", "--files", "my.txt", "--vocab_size", "262")     # a tokenizer may be replaced
    assert code == 0 and "replaced my.json" in out and T.load_tokenizer("my.json").n_vocab == 262


def test_demo_shows_merges_as_they_happen(folder, capsys):
    code, out, _ = run(capsys, "train", "--files", "my.txt", "--vocab_size", "284", "--demo", "--sentence", "the cat")
    merges = []
    T.train_bpe(STORY * 4, 284, on_merge=merges.append)
    assert code == 0 and f"{len(STORY) * 4} bytes of text" in out
    steps = T.encode_with_steps(T.load_tokenizer("my.json"), "the cat")
    tokens = [token for step in steps for token in step.stages[-1]]
    assert 1 < len(tokens) < 7
    assert "t|h|e| |c|a|t   (7 tokens)" in out and f"{'|'.join(map(T.visible, tokens))}   ({len(tokens)} tokens)" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for merge in [*merges[:20], merges[-1]]:    # the last is shown, the ones between are not
        line = lines[f"{merge.rank - 255}"]
        assert f"{T.quoted(merge.left)} + {T.quoted(merge.right)}" in line
        assert line.split()[-3:] == [f"{merge.count}", f"{merge.tokens}", f"{len(STORY) * 4 / merge.tokens:.2f}"]
    assert "23" not in lines


def test_show_uses_colour_only_on_a_terminal(folder, tales, capsys, monkeypatch):
    T.save_tokenizer(tales, "t.json")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\x1b[" in run(capsys, "show", "the cat", "--tokenizer", "t.json")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run(capsys, "show", "the cat", "--tokenizer", "t.json")[1]


def test_show_passes_on_no_control_characters(folder, tales, capsys):
    T.save_tokenizer(tales, "t.json")
    code, out, _ = run(capsys, "show", "\x1b[2J é \u202e", "--tokenizer", "t.json")
    assert code == 0 and "\x1b" not in out and "\u202e" not in out and "\\x1b" in out


def test_show_reads_standard_input_and_the_newest_run(folder, tales, capsys, monkeypatch):
    import io
    for age, (run_name, size) in enumerate({"newest": 280, "old": 270}.items()):
        path = T.save_tokenizer(T.make_encoding(T.train_bpe(STORY, size), run_name), f"log/{run_name}/tokenizer.json")
        os.utime(path, (10**9 - age, 10**9 - age))
    monkeypatch.setattr(sys, "stdin", io.StringIO("the dog"))
    code, out, _ = run(capsys, "show", "-")
    assert code == 0 and "newest" in out and "280 tokens" in out and "7 bytes" in out


MISTAKES = {
    "no command": ([], "required"),
    "unknown command": (["traun"], "invalid choice"),
    "unknown flag": (["train", "--file_s", "my.txt"], "unrecognized"),
    "vocabulary not a number": (["train", "--files", "my.txt", "--vocab_size", "many"], "invalid int"),
    "vocabulary too small": (["train", "--files", "my.txt", "--vocab_size", "12"], "between 257"),
    "vocabulary too large": (["train", "--files", "my.txt", "--vocab_size", "70000"], "between 257"),
    "text too short": (["train", "--files", "my.txt", "--vocab_size", "5000"], "no more pairs"),
    "missing file": (["train", "--files", "none.txt"], "no file none.txt"),
    "folder": (["train", "--files", "sub"], "no file sub"),
    "empty file": (["train", "--files", "empty.txt"], "no text"),
    "only markers": (["train", "--files", "markers.txt"], "no text"),
    "not UTF-8": (["train", "--files", "latin1.txt"], "not UTF-8 text"),
    "binary": (["train", "--files", "zeros.bin"], "zero bytes"),
    "name with a path": (["train", "--files", "my.txt", "--name", "../x"], "--name"),
    "samples": (["train", "--fineweb", "--samples", "0"], "at least 1"),
    "nprocs": (["train", "--files", "my.txt", "--nprocs", "-1"], "at least 1"),
    "would overwrite": (["train", "--files", "my.txt", "--out", "my.txt"], "nothing was changed"),
    "no tokenizer": (["show", "hi", "--tokenizer", "none.json"], "no tokenizer"),
    "no text": (["show", "", "--tokenizer", "t.json"], "no text to show"),
    "no gpt2": (["show", "hi"], "not on this machine"),
    "eval without a file": (["eval", "none.txt", "--tokenizer", "t.json"], "no file"),
    "eval of markers": (["eval", "markers.txt", "--tokenizer", "t.json"], "no text"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_an_error_and_a_hint(case, folder, tales, capsys, monkeypatch):
    def no_network(*_, **__):
        raise requests.ConnectionError("no route")
    monkeypatch.setattr(requests, "get", no_network)
    T.save_tokenizer(tales, "t.json")
    (folder / "sub").mkdir()
    (folder / "empty.txt").write_text("")
    (folder / "markers.txt").write_text(f"{T.EOT}\n" * 5)
    (folder / "latin1.txt").write_bytes("café au lait".encode("latin-1"))
    (folder / "zeros.bin").write_bytes(bytes(1000))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    argv, message = MISTAKES[case]
    code, _, err = run(capsys, *argv)
    lines = err.splitlines()
    assert code == 2 and len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    assert message in lines[0]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def fake_datasets(monkeypatch, rows):
    """Stand-ins for the packages that reach the Hub: `rows` is what load_dataset returns. Returns its arguments."""
    seen = {}

    def load_dataset(path, **arguments):
        seen.update(path=path, **arguments)
        return rows
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    return seen


def test_fineweb_streams_the_pinned_dataset(folder, capsys, monkeypatch):
    def rows():
        for _ in range(3):
            yield {"text": STORY}
        raise AssertionError("read on after --samples characters")
    seen = fake_datasets(monkeypatch, rows())
    n_chars = 2 * len(STORY) + 10
    code, out, _ = run(capsys, "train", "--fineweb", "--samples", str(n_chars), "--vocab_size", "270")
    assert code == 0 and "wrote fineweb.json" in out
    assert T.load_tokenizer("fineweb.json")._mergeable_ranks == T.train_bpe([STORY, STORY, STORY[:10]], 270)
    assert seen["streaming"] is True and len(seen["revision"]) == 40 and seen["path"] == "HuggingFaceFW/fineweb-edu"


def test_fineweb_without_network(folder, capsys, monkeypatch):
    def broken():
        yield {"text": STORY}
        raise ConnectionError("lost")
    fake_datasets(monkeypatch, broken())
    code, _, err = run(capsys, "train", "--fineweb", "--vocab_size", "270")
    assert code == 2 and "cannot stream" in err and "lost" in err and "hint: " in err

    def no_network(url, timeout):
        raise requests.ConnectionError("no route")
    monkeypatch.setattr(requests, "head", no_network)
    code, _, err = run(capsys, "train", "--fineweb", "--vocab_size", "270")
    assert code == 2 and "cannot stream" in err and not Path("fineweb.json").exists()
