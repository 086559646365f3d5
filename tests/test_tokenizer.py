"""Tests of tokenizer.py: merges and encodings against slow references, files, GPT-2's own, and the commands.

Run: python -m pytest tests/test_tokenizer.py
GPT-2's tokenizer is tested only where tiktoken finds its two files (TIKTOKEN_CACHE_DIR).
"""
import base64
import errno
import gzip
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
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


def test_result_depends_on_word_counts_only(monkeypatch):
    """Any order of the texts, read in pieces of any length, counted in parts of any number: the same ranks."""
    texts = (ROOT / "input.txt").read_text(encoding="utf-8")[:60_000].split("\n\n")
    expected = T.train_bpe(texts, 400)
    random.Random(0).shuffle(texts)
    assert T.train_bpe(texts, 400) == expected
    monkeypatch.setattr(T, "PIECE_CHARS", 1000)
    monkeypatch.setattr(T, "PARTS_AT_ONCE", 100)
    assert T.train_bpe(texts, 400) == expected


@pytest.mark.parametrize("pattern", list(T.KNOWN_PATTERNS))
@pytest.mark.parametrize("piece_chars", [7, 2**20])
def test_counting_finds_the_words_of_the_pattern(pattern, piece_chars, monkeypatch):
    """The coarse cut before the pattern, and the pieces of long documents, change no word."""
    monkeypatch.setattr(T, "PIECE_CHARS", piece_chars)
    parts = ["a", "'ll", "1", "!", "<", " ", "  ", "\n", " \n", "\t", "\x1c", "\x85", "\u2003", "é", "\r\n", "ก",
             "\u0e31", "\u200d"]
    for seed in range(500):
        rng = random.Random(seed)
        text = "".join(rng.choices(parts, k=rng.choice([2, 20, 200])))
        expected = Counter(regex.findall(T.KNOWN_PATTERNS[pattern], text)) if text.strip() else Counter()
        assert T.count_words([text], T.KNOWN_PATTERNS[pattern]) == expected, f"seed {seed}"
        assert "".join(T.pieces(text)) == text
    if piece_chars == 7:
        assert len(list(T.pieces("some words of a text"))) > 1


def test_memory_is_bounded_where_no_part_comes_twice(monkeypatch):
    """Counting parts before words must not collect a text of which every part is another one."""
    largest = 0

    class Watched(Counter):
        def update(self, *args):
            nonlocal largest
            super().update(*args)
            largest = max(largest, len(self))

    monkeypatch.setattr(T, "Counter", Watched)
    monkeypatch.setattr(T, "PARTS_AT_ONCE", 50)
    monkeypatch.setattr(T, "PIECE_CHARS", 200)
    text = " ".join(f"{a}{b}" for a in "abcdefgh" for b in range(300))
    words = Counter(regex.findall(T.SPLIT_PATTERN, text))
    assert T.count_words([text]) == words and len(words) == 309
    assert 50 < largest < 150


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
    with pytest.raises(T.UserError, match="between 257 and 65,536"):
        T.train_bpe("some text", vocab_size)


def test_vocabulary_larger_than_the_text_supports():
    text = "the cat and the dog"
    with pytest.raises(T.UserError, match="no more pairs") as caught:
        T.train_bpe(text, 5000)
    largest = int(regex.search(r"--vocab_size (\d+)", caught.value.hint).group(1))
    assert len(T.train_bpe(text, largest)) == largest - 1
    with pytest.raises(T.UserError):
        T.train_bpe(text, largest + 1)


@pytest.mark.parametrize("texts", ["", [], [""], [" \n", T.EOT], T.EOT * 3])
def test_no_text(texts):
    with pytest.raises(T.UserError, match="no text"):
        T.train_bpe(texts, 300)


def test_smallest_vocabulary():
    assert T.train_bpe("abc", 257) == {bytes([value]): value for value in range(256)}


def test_another_pattern_cuts_other_words():
    assert list(T.train_bpe("a b a b", 257 + 2, pattern=r".+"))[256:] == [b" b", b"a b"]
    with pytest.raises(T.UserError, match="no more pairs"):
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


WHITE_SPACE = ["\t", "\n", "\x0b", "\x0c", "\r", " ", "\x85", "\xa0", "\u1680", *map(chr, range(0x2000, 0x200B)),
               "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"]


@pytest.mark.parametrize("pattern", list(T.KNOWN_PATTERNS))
def test_encoding_long_white_space_gives_the_tokens_of_the_pattern(pattern, monkeypatch):
    """Cut at every run of three, not of 400,000: the same ids as tiktoken gives uncut, by a tokenizer that has learned
    pairs of all that is about a cut."""
    monkeypatch.setattr(T, "LONG_SPACE", T.re.compile(T.LONG_SPACE.pattern.replace("400000", "3")))
    monkeypatch.setattr(T, "LONG_TEXT", 3)
    characters = [*WHITE_SPACE, *"      \n\n", *"\x1c\x1c\x1f", "\u200d", "a", "!", "1", "'s"]
    learned = "".join(random.Random(7).choices(characters, k=20_000))
    enc = T.make_encoding(T.train_bpe(learned, 700, pattern=T.KNOWN_PATTERNS[pattern]), "x", T.KNOWN_PATTERNS[pattern])
    cut = 0
    for seed in range(1000):
        rng = random.Random(seed)
        text = "".join(rng.choices(characters, k=30))
        assert T.encode(enc, text) == enc.encode_ordinary(text), f"seed {seed}"
        cut += len(T.LONG_SPACE.findall(text))
    assert cut > 1000


@pytest.mark.parametrize("pattern", list(T.KNOWN_PATTERNS))
@pytest.mark.parametrize("space", [" ", "\n", "\r\n", "\t ", "\u3000"])
def test_a_million_characters_of_white_space(tales, pattern, space):
    """tiktoken alone panics there (PanicException, which is no Exception)."""
    enc = T.make_encoding(tales._mergeable_ranks, "x", T.KNOWN_PATTERNS[pattern])
    run = space * (2_000_000 // len(space))
    for text in (f"the{run}cat{run}sat", run, f"the{run}", f"{run}cat"):
        ids = T.encode(enc, text)
        assert enc.decode_bytes(ids) == text.encode()
    assert T.encode(enc, f"the{run}cat") == [
        *enc.encode_ordinary("the"), *enc.encode_ordinary(run[:-1]), *enc.encode_ordinary(f"{run[-1]}cat")]
    assert T.encode_documents(enc, ["the", f"the{run}cat"]).count(T.eot_id(enc)) == 2
    assert len(T.train_bpe(f"the{run}cat", 260, pattern=T.KNOWN_PATTERNS[pattern])) == 259


@pytest.mark.parametrize("letters", ["a", "!", "1", "नि", "e\u0301", "\u0301", "\u200d"])
def test_a_million_characters_without_white_space(tales, letters):
    for pattern in T.KNOWN_PATTERNS.values():
        enc = T.make_encoding(tales._mergeable_ranks, "x", pattern)
        text = letters * (1_100_000 // len(letters))
        assert enc.decode_bytes(T.encode(enc, text)) == text.encode()


SCRIPTS = {  # text -> its words as a reader of the script sees them
    "नमस्ते दुनिया, क्षत्रिय हिन्दी में लिखते हैं।": ["नमस्ते", " दुनिया", ",", " क्षत्रिय", " हिन्दी", " में", " लिखते", " हैं", "।"],
    "ข้าวผัดปูอร่อยมาก ที่นี่ 12 บาท": ["ข้าวผัดปูอร่อยมาก", " ที่นี่", " 12", " บาท"],
    "نمی\u200cخواهم کتابِ او": ["نمی\u200cخواهم", " کتابِ", " او"],
    "cafe\u0301 isn't 3°": ["cafe\u0301", " isn", "'t", " 3", "°"],
}


@pytest.mark.parametrize("text", SCRIPTS)
def test_the_unicode_pattern_keeps_marks_with_their_letters(text):
    enc = T.make_encoding(T.train_bpe("abc", 257), "x", T.UNICODE_PATTERN)
    assert [step.word for step in T.encode_with_steps(enc, text)] == SCRIPTS[text]
    assert len(regex.findall(T.SPLIT_PATTERN, text)) > len(SCRIPTS[text])
    assert not T.has_gpt2_pattern(enc)


def test_both_patterns_cut_english_alike():
    text = (ROOT / "input.txt").read_text(encoding="utf-8")
    assert regex.findall(T.UNICODE_PATTERN, text) == regex.findall(T.SPLIT_PATTERN, text)


def test_the_unicode_pattern_pays_on_hindi_and_thai(tmp_path):
    """More bytes per token from the same text and vocabulary, and the file keeps the pattern for all that load it."""
    hindi = "नमस्ते दुनिया। मेरा नाम क्षितिज है और मैं हिन्दी में लिखता हूँ। किताबें मेज़ पर हैं। बच्चे स्कूल में पढ़ते हैं।\n"
    thai = "สวัสดีชาวโลก ฉันชื่อสมชาย ฉันกินข้าวผัดที่ร้านใกล้บ้าน วันนี้อากาศดีมาก เด็กๆ เล่นน้ำกันที่ชายหาด\n"
    for text in (hindi, thai):
        lengths = {}
        for name, pattern in T.KNOWN_PATTERNS.items():
            ranks = T.train_bpe(text * 20, 300, pattern=pattern)
            T.save_tokenizer(T.make_encoding(ranks, name, pattern), tmp_path / "tokenizer.json")
            enc = T.load_tokenizer(tmp_path)
            assert enc._pat_str == pattern and T.find_tokenizer(tmp_path)._pat_str == pattern
            assert T.has_gpt2_pattern(enc) == (name == "gpt2")
            ids = T.encode(enc, text * 3)
            assert enc.decode(ids) == text * 3
            assert ids == [i for step in T.encode_with_steps(enc, text * 3) for i in step.ids]
            lengths[name] = len(ids)
        assert lengths["unicode"] < 0.95 * lengths["gpt2"]


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
    (lambda ranks: ranks.update({b"long": ranks.pop(b"a")}), r"lacks 1 of the 256 bytes, such as \[97\]"),
    (lambda ranks: ranks.update({b"%d" % n + b"...": n for n in range(300, 66_000)}), "65,536 fit in 16 bits"),
])
def test_make_encoding_refuses(change, message):
    ranks = {bytes([value]): value for value in range(256)} | {b"%d.." % n: n for n in range(256, 300)}
    T.make_encoding(ranks, "whole")
    change(ranks)
    with pytest.raises(T.UserError, match=message):
        T.make_encoding(ranks, "broken")


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
    with pytest.raises(T.UserError, match="pattern") as caught:
        T.to_json(T.make_encoding(tales._mergeable_ranks, "x", r"\w+|\W+"))
    assert caught.value.hint


def test_fingerprint_is_of_the_content(tales):
    ranks = dict(tales._mergeable_ranks)
    original = T.fingerprint(tales)
    assert T.fingerprint(T.make_encoding(dict(reversed(ranks.items())), "other name")) == original
    assert T.fingerprint(T.make_encoding(ranks, "tales", T.UNICODE_PATTERN)) != original
    assert T.fingerprint(T.make_encoding(ranks, "tales", r"\w+|\W+")) != original
    a, b = list(ranks)[300:302]
    ranks[a], ranks[b] = ranks[b], ranks[a]
    assert T.fingerprint(T.make_encoding(ranks, "tales")) != original


def test_fingerprint_stays_the_same_from_release_to_release():
    """Manifests and checkpoints of older releases carry it."""
    enc = T.make_encoding(T.train_bpe("ab ab", 259), "x")
    assert T.fingerprint(enc) == "eea468179946f11b983307773b8af238dac51101869d67bf7ddb25ed0d7a7cde"


def test_save_refuses_what_could_not_be_loaded(tales, tmp_path):
    with pytest.raises(T.UserError, match="pattern"):
        T.save_tokenizer(T.make_encoding(tales._mergeable_ranks, "x", r"\w+|\W+"), tmp_path / "x.json")
    import tiktoken
    two = tiktoken.Encoding("two", pat_str=T.SPLIT_PATTERN, mergeable_ranks=tales._mergeable_ranks,
                            special_tokens={T.EOT: 511, "<|pad|>": 512})
    with pytest.raises(T.UserError, match="only special token"):
        T.save_tokenizer(two, tmp_path / "x.json")
    with pytest.raises(T.UserError, match="name"):
        T.save_tokenizer(T.make_encoding(tales._mergeable_ranks, "two\nlines"), tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tales, tmp_path, monkeypatch):
    path = T.save_tokenizer(tales, tmp_path / "x.json")
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(T.UserError, match="No space left") as caught:
        T.save_tokenizer(T.make_encoding(T.train_bpe("abc", 257), "y"), path)
    assert caught.value.hint and path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its file system")
def test_what_is_no_file_is_not_replaced(tales, tmp_path):
    """A device would have become a file (as root, /dev/null), a link would have been cut off from what it names."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(T.UserError, match="no ordinary file") as caught:
        T.save_tokenizer(tales, tmp_path / "pipe")
    assert caught.value.hint and (tmp_path / "pipe").is_fifo()
    (tmp_path / "link.json").symlink_to(tmp_path / "file.json")
    for _ in range(2):
        T.save_tokenizer(tales, tmp_path / "link.json")
        assert (tmp_path / "link.json").is_symlink() and T.load_tokenizer(tmp_path / "file.json").n_vocab == 512
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.json", "link.json", "pipe"]


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
    "pattern as list": (resign(pattern=lambda c: [T.SPLIT_PATTERN]), "split pattern"),
    "name of a pattern": (resign(pattern=lambda c: "gpt2"), "split pattern"),
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
    "cut short": (lambda path, enc: path.write_bytes(T.save_tokenizer(enc, path).read_bytes().rpartition(b'"')[0]),
                  "Unterminated"),
    "empty": (lambda path, enc: path.write_bytes(b""), "Expecting value"),
    "binary": (lambda path, enc: path.write_bytes(bytes(range(256)) * 10), "Expecting value"),
    "pickle": (lambda path, enc: path.write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR."), "decode"),
    "nested": (lambda path, enc: path.write_bytes(b"[" * 200_000), "recursion"),
    "nested objects": (lambda path, enc: path.write_bytes(b'{"a":' * 200_000), "recursion"),
    "endless number": (lambda path, enc: path.write_bytes(b'{"format": ' + b"1" * 10_000 + b"}"), "integer string"),
    "huge": (lambda path, enc: os.truncate(T.save_tokenizer(enc, path), T.MAX_FILE_BYTES + 1), "larger than 64 MB"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case, tales, tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    write, message = HOSTILE[case]
    write(path, tales)
    before = path.stat()
    with pytest.raises(T.UserError, match=message):
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
    with pytest.raises(T.UserError, match="no tokenizer") as caught:
        T.load_tokenizer(tmp_path / "none.json")
    assert "gpt2" in caught.value.hint
    with pytest.raises(T.UserError, match=r"no tokenizer at .*tokenizer\.json"):
        T.load_tokenizer(tmp_path)
    T.save_tokenizer(tales, tmp_path / "mine.json")
    with pytest.raises(T.UserError) as caught:
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
    assert T.load_tokenizer("gpt2")._pat_str == T.SPLIT_PATTERN and T.has_gpt2_pattern(T.load_tokenizer("gpt2"))


def unloaded(monkeypatch):
    """tiktoken keeps what it has loaded; here it forgets that, and what it uses to fetch comes back afterwards."""
    import tiktoken.load
    import tiktoken.registry
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(tiktoken.load, "read_file", tiktoken.load.read_file)


def test_gpt2_without_network_says_how_to_work_offline(tmp_path, monkeypatch, capsys):
    asked = []

    def no_network(url, timeout):
        assert 0 < timeout <= 30     # it can never hang
        asked.append(url)
        raise requests.ConnectionError("no route")
    unloaded(monkeypatch)
    monkeypatch.setattr(requests, "get", no_network)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(T.UserError, match="not on this machine") as caught:
        T.load_tokenizer("gpt2")
    for word in ("TIKTOKEN_CACHE_DIR", *T.GPT2_FILES, str(tmp_path / "cache")):
        assert word in caught.value.hint
    assert T.main(["show", "hello", "--tokenizer", "gpt2"]) == 2
    assert "hint: to work offline" in capsys.readouterr().err
    assert len(asked) == 2 and all(url.startswith("https://") for url in asked)
    (tmp_path / "cache").mkdir()
    for name in T.GPT2_FILES:   # a damaged file is asked for again, with the time limit too
        (tmp_path / "cache" / name).write_bytes(b"damaged")
    assert T._gpt2_missing() == list(T.GPT2_FILES)
    with pytest.raises(T.UserError, match="not on this machine"):
        T.load_tokenizer("gpt2")
    assert len(asked) == 3


def fake_get(contents, asked):
    """requests.get for the files in `contents`: address's last part -> bytes. Notes the addresses in `asked`."""
    def get(url, timeout):
        asked.append(url)
        return types.SimpleNamespace(content=contents[url.rsplit("/", 1)[1]], raise_for_status=lambda: None)
    return get


def test_gpt2_refuses_another_file(tmp_path, monkeypatch):
    unloaded(monkeypatch)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(requests, "get", fake_get({"vocab.bpe": b"<html>log in</html>", "encoder.json": b"{}"}, []))
    with pytest.raises(T.UserError, match="Hash mismatch"):
        T.load_tokenizer("gpt2")
    assert list(tmp_path.iterdir()) == []


@needs_gpt2
def test_gpt2_is_fetched_once(tmp_path, monkeypatch):
    """Missing and damaged files are fetched, checked and kept under tiktoken's names; after that nothing is fetched."""
    vocab, encoder = ((T._tiktoken_cache() / name).read_bytes() for name in T.GPT2_FILES)
    asked = []
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(requests, "get", fake_get({"vocab.bpe": vocab, "encoder.json": encoder}, asked))
    first, second = T.GPT2_FILES
    (tmp_path / first).write_bytes(b"damaged")
    for fetched in (2, 2):
        unloaded(monkeypatch)
        assert T.load_tokenizer("gpt2").n_vocab == 50_257
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {first: vocab, second: encoder}
        assert len(asked) == fetched and T._gpt2_missing() == []


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
    unloaded(monkeypatch)
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
    (model / "tokenizer.json").unlink()
    assert T.find_tokenizer(model).name == "one"


def spelled_as_transformers(enc):
    """The vocabulary and the merges of an encoding, as the files of transformers have them."""
    names = T.byte_names()
    spell = {token: "".join(names[byte] for byte in token) for token in enc._mergeable_ranks}
    vocab = {spell[token]: rank for token, rank in enc._mergeable_ranks.items()} | {T.EOT: T.eot_id(enc)}
    merges = []
    for token in sorted(enc._mergeable_ranks, key=enc._mergeable_ranks.get)[256:]:
        before = {other: rank for other, rank in enc._mergeable_ranks.items() if rank < enc._mergeable_ranks[token]}
        before = T.make_encoding(before, "before", r"[\s\S]+")
        merges.append([spell[half] for half in before.decode_tokens_bytes(before.encode_ordinary(token.decode()))])
    return vocab, merges


def write_transformers(folder, vocab, merges, **changes):
    """A directory with tokenizer.json, as transformers 5 writes it; with changes as paths: pre_tokenizer__type="x"."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
               "model": {"type": "BPE", "vocab": vocab, "merges": merges}}
    for path, value in changes.items():
        *names, last = path.split("__")
        inner = content
        for name in names:
            inner = inner[name]
        inner[last] = value
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_a_tokenizer_of_transformers_that_works_as_gpt2s_is_used(two, tmp_path, monkeypatch):
    no_gpt2(monkeypatch, tmp_path)
    vocab, merges = spelled_as_transformers(two[0])
    wanted = T.fingerprint(two[0])
    for number, form in enumerate((merges, [" ".join(merge) for merge in merges])):
        folder = write_transformers(tmp_path / f"whole{number}", vocab, form)
        assert T.fingerprint(T.find_tokenizer(folder)) == wanted
        assert T.find_tokenizer(folder / "config.json", two[0].n_vocab).name == folder.name
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "config.json").write_text("{}")
    (tmp_path / "parts" / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "parts" / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), "utf-8")
    assert T.fingerprint(T.find_tokenizer(tmp_path / "parts")) == wanted


def test_another_tokenizer_of_transformers_is_refused_and_not_replaced_by_gpt2s(two, tmp_path, monkeypatch):
    no_gpt2(monkeypatch, tmp_path)
    vocab, merges = spelled_as_transformers(two[0])
    moved = {token: rank + 1 for token, rank in vocab.items()}
    cases = [dict(pre_tokenizer__type="Whitespace"), dict(pre_tokenizer__add_prefix_space=True),
             dict(normalizer={"type": "NFC"}), dict(pre_tokenizer__use_regex=False),
             dict(model__type="WordPiece"), dict(model__vocab=moved),
             dict(model__merges=merges[::-1]), dict(model__merges=merges[:-1]), dict(pre_tokenizer=None),
             dict(model__vocab=[]), dict(model__merges=[1]), dict(model__vocab=vocab | {"<pad>": len(vocab)}),
             dict(model={})]
    for number, changes in enumerate(cases):
        folder = write_transformers(tmp_path / f"model{number}", vocab, merges, **changes)
        with pytest.raises(T.UserError, match="does not work as GPT-2's") as caught:
            T.find_tokenizer(folder)
        assert "bpe.json" in caught.value.hint
        T.save_tokenizer(two[1], folder / "bpe.json")
        assert T.find_tokenizer(folder).name == "other"
    (tmp_path / "sentencepiece").mkdir()
    for name in ("config.json", "tokenizer_config.json", "tokenizer.model"):
        (tmp_path / "sentencepiece" / name).write_text("{}")
    with pytest.raises(T.UserError, match="does not work as GPT-2's"):
        T.find_tokenizer(tmp_path / "sentencepiece")


@needs_gpt2
def test_find_tokenizer_gives_gpt2s_to_a_model_without_one(two, tmp_path, monkeypatch):
    T.save_tokenizer(two[0], tmp_path / "tokenizer.json")   # of something else: gpt2 is a name, not a place
    monkeypatch.chdir(tmp_path)
    assert T.find_tokenizer("gpt2").n_vocab == T.find_tokenizer("gpt2-xl").n_vocab == 50_257
    (tmp_path / "theirs" / "model").mkdir(parents=True)
    (tmp_path / "theirs" / "model" / "config.json").write_text("{}")
    assert T.find_tokenizer("theirs/model").name == "gpt2"


def test_a_model_of_another_size_gets_no_tokenizer(two, tmp_path, monkeypatch):
    """Said before GPT-2's is fetched, which could not fit."""
    no_gpt2(monkeypatch, tmp_path)
    (tmp_path / "run").mkdir()
    for place in ("run", "run/ckpt_000010.pt"):
        (tmp_path / "run" / "ckpt_000010.pt").write_bytes(b"")
        with pytest.raises(T.UserError, match=r"has 400 tokens, but the tokenizer gpt2 has 50257") as caught:
            T.find_tokenizer(tmp_path / place, 400)
        assert "tokenizer.json" in caught.value.hint
    T.save_tokenizer(two[0], tmp_path / "run")
    assert T.find_tokenizer(tmp_path / "run", two[0].n_vocab).name == "one"
    with pytest.raises(T.UserError, match=r"tokenizer\.json has 260"):
        T.find_tokenizer(tmp_path / "run", 400)


def test_shards_have_their_own_tokenizer_and_no_other(two, tmp_path, monkeypatch):
    no_gpt2(monkeypatch, tmp_path)
    one, other = two
    T.save_tokenizer(one, tmp_path / "tokenizer.json")
    file = T.save_tokenizer(other, tmp_path / "elsewhere" / "other.json")
    for sha256 in (None, T.fingerprint(one)):
        assert T.for_shards(tmp_path, "auto", sha256).name == "one"
        assert T.for_shards(str(tmp_path), str(tmp_path / "tokenizer.json"), sha256).name == "one"
    assert T.for_shards(tmp_path, file, None).name == "other"      # nothing says that it is wrong
    with pytest.raises(T.UserError, match=r"made with another tokenizer than .*other\.json") as caught:
        T.for_shards(tmp_path, file, T.fingerprint(one))
    assert "--tokenizer" in caught.value.hint
    with pytest.raises(T.UserError, match="no tokenizer at"):
        T.for_shards(tmp_path, tmp_path / "none.json", None)
    with pytest.raises(T.UserError, match=r"made with another tokenizer than .*tokenizer\.json") as caught:
        T.for_shards(tmp_path, "auto", T.fingerprint(other))     # the samples would be other words than the model's
    assert caught.value.hint


def test_shards_need_no_tokenizer(two, tmp_path, monkeypatch):
    """Without one there is no text, but training goes on; GPT-2's is not fetched for it."""
    no_gpt2(monkeypatch, tmp_path)
    assert T.for_shards(tmp_path, "auto", None) is None
    assert T.for_shards(tmp_path, "auto", T.fingerprint(two[0])) is None
    (tmp_path / "tokenizer.json").write_text("damaged")     # but where there is one, it must be whole
    with pytest.raises(T.UserError, match=r"tokenizer\.json is not a whole tokenizer file"):
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
    """Reference: byte after byte, the first place in the last tenth where a document (or else a line) begins."""
    raw = text.encode()
    for mark in ((T.EOT + "\n").encode(), b"\n"):
        for at in range(len(raw)):
            begins = at >= len(raw) * 9 // 10 and raw[at:at + len(mark)] == mark
            if begins and raw[at + len(mark):].decode().strip():    # something must be left to hold out
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
    assert list(ids) == [eot, *tales.encode_ordinary("The cat"), eot, eot, *tales.encode_ordinary(documents[2])]
    assert ids.count(eot) == 3      # what is written in a text is no marker
    assert not T.encode_documents(tales, []) and ids.itemsize == 2


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
    (None, "No such file"), (b"", "no text"), (b" \n<|endoftext|>\n", "no text"), (b"a\0b", "zero bytes"),
    (b"caf\xe9", "not UTF-8"), (b"word\n", "too short to learn from: 5 characters"),
])
def test_a_text_that_cannot_be_used(content, message, tmp_path):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(T.UserError, match=message) as caught:
        T.read_corpus(tmp_path / "x.txt")
    assert "x.txt" in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("text", [
    "word " * 5000 + "\n", "A line.\n" * 5000 + T.EOT + "\n", f"{'word' * 9000}{T.EOT}\n \n"])
def test_a_text_of_one_document_is_long_enough(text, tmp_path):
    """A marker or line end behind everything is no place to cut: the line before it is, or else nine tenths."""
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    corpus = T.read_corpus(tmp_path / "x.txt", vocab_size=258)
    size = len(text.split(T.EOT)[0].strip())
    assert 0.09 * size < corpus.val_bytes < 0.11 * size
    assert corpus.encoding.decode(corpus.train[1:]) + corpus.encoding.decode(corpus.val[1:]) == text.split(T.EOT)[0]


def test_a_text_of_json_lines_gives_its_documents(tmp_path):
    """To the trainer too, which would learn JSON's syntax otherwise."""
    path, documents = write_corpus(tmp_path)
    lines = "".join(json.dumps({"id": 5, "text": text}) + "\n" for text in documents)
    (tmp_path / "my.jsonl").write_text(lines, encoding="utf-8")
    assert T.read_text(tmp_path / "my.jsonl") == path.read_text(encoding="utf-8")
    assert T.read_corpus(tmp_path / "my.jsonl", vocab_size=280).train == T.read_corpus(path, vocab_size=280).train


def test_a_text_with_a_tokenizer_that_cannot_be_used(two, tmp_path):
    path, _ = write_corpus(tmp_path)
    with pytest.raises(T.UserError, match="no tokenizer at"):
        T.read_corpus(path, tmp_path / "none.json")
    with pytest.raises(T.UserError, match="between 257"):
        T.read_corpus(path, vocab_size=12)


def test_a_run_whose_tokenizer_is_damaged_gets_no_other(two, tmp_path, monkeypatch):
    """Its ids would mean other words: the damage is the mistake to tell."""
    no_gpt2(monkeypatch, tmp_path)
    path, _ = write_corpus(tmp_path)
    file = T.save_tokenizer(two[0], tmp_path / "log" / "run" / "tokenizer.json")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(T.UserError) as caught:
        T.read_corpus(path, own=file.parent)
    assert str(file) in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ commands

STORY = "Once upon a time the cat sat on the mat and the dog sat on the log.\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory with one text file, and no GPT-2 in reach."""
    monkeypatch.chdir(tmp_path)
    unloaded(monkeypatch)
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
    text = (ROOT / "input.txt").read_text(encoding="utf-8")[:900]
    Path("my.txt").write_text(text, encoding="utf-8")
    code, out, _ = run(capsys, "train", "--files", "my.txt", "--vocab_size", "290", "--demo")
    merges = []
    T.train_bpe(text, 290, on_merge=merges.append)
    n_bytes = merges[0].n_bytes
    assert code == 0 and f"{n_bytes} bytes of text" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for merge in [*merges[:20], merges[29]]:    # the ones between are not shown
        line = lines[f"{merge.rank - 255}"]
        left, right = T.visible(merge.left), T.visible(merge.right)
        assert f"'{left}' + '{right}'" in line and f"'{left}{right}'" in line
        assert line.split()[-3:] == [f"{merge.count}", f"{merge.tokens}", f"{n_bytes / merge.tokens:.2f}"]
    assert not {*map(str, range(21, 30)), "31"} & set(lines)


def test_show_passes_on_no_control_characters(folder, tales, capsys):
    T.save_tokenizer(tales, "t.json")
    code, out, _ = run(capsys, "show", "\x1b[2J é \u202e", "--tokenizer", "t.json")
    assert code == 0 and "\x1b" not in out and "\u202e" not in out and "\\x1b" in out


def test_show_reads_standard_input_and_the_newest_run(folder, tales, capsys, monkeypatch):
    for age, (run_name, size) in enumerate({"newest": 280, "old": 270}.items()):
        path = T.save_tokenizer(T.make_encoding(T.train_bpe(STORY, size), run_name), f"log/{run_name}/tokenizer.json")
        os.utime(path, (10**9 - age, 10**9 - age))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("the dög".encode()), encoding="ascii"))
    code, out, _ = run(capsys, "show", "-")
    assert code == 0 and "newest" in out and "280 tokens" in out and "8 bytes" in out
    for stdin, word in ((io.TextIOWrapper(io.BytesIO(b"\xff")), "not text"), (None, "not text"),
                        (io.TextIOWrapper(io.BytesIO(b"")), "no text to show")):
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = run(capsys, "show", "-")
        assert code == 2 and word in err and "hint: " in err


MISTAKES = {
    "no command": ([], "required"),
    "unknown command": (["traun"], "invalid choice"),
    "two sources": (["train", "--files", "my.txt", "--version", "10B"], "not allowed with"),
    "unknown flag": (["train", "--file_s", "my.txt"], "unrecognized"),
    "vocabulary not a number": (["train", "--files", "my.txt", "--vocab_size", "many"], "invalid int"),
    "vocabulary too small": (["train", "--files", "my.txt", "--vocab_size", "12"], "between 257"),
    "vocabulary too large": (["train", "--files", "my.txt", "--vocab_size", "70000"], "between 257"),
    "text too short": (["train", "--files", "my.txt", "--vocab_size", "5000"], "no more pairs"),
    "missing file": (["train", "--files", "none.txt"], "no file matches 'none.txt'"),
    "missing pattern": (["train", "--files", "*.csv"], "no file matches '*.csv'"),
    "folder": (["train", "--files", "sub"], "no file matches 'sub'"),
    "empty file": (["train", "--files", "empty.txt"], "no text"),
    "no such column": (["train", "--files", "rows.jsonl"], "no column 'text'"),
    "no rows": (["train", "--files", "latin1.jsonl"], "invalid UTF-8"),
    "not packed": (["train", "--files", "plain.txt.gz"], "cannot read plain.txt.gz"),
    "cut short": (["train", "--files", "cut.txt.gz"], "cannot read cut.txt.gz"),
    "only markers": (["train", "--files", "markers.txt"], "no text"),
    "not UTF-8": (["train", "--files", "latin1.txt"], "invalid UTF-8"),
    "binary": (["train", "--files", "zeros.bin"], "zero bytes"),
    "name with a path": (["train", "--files", "my.txt", "--name", "../x"], "--name"),
    "name too long": (["train", "--files", "my.txt", "--name", "n" * 300], "File name too long"),
    "empty name": (["train", "--files", "my.txt", "--name", ""], "name is empty"),
    "empty file name": (["train", "--files", ""], "files is empty"),
    "empty path": (["train", "--files", "my.txt", "--out", ""], "out is empty"),
    "samples": (["train", "--version", "10B", "--samples", "0"], "--samples is 0"),
    "version": (["train", "--version", "9B"], "invalid choice"),
    "config": (["train", "--version", "10B", "--config", "x", "--split", "y"], "--config goes with --dataset only"),
    "pattern": (["train", "--files", "my.txt", "--pattern", "latin"], "invalid choice"),
    "would overwrite": (["train", "--files", "my.txt", "--out", "my.txt"], "not a tokenizer of ours"),
    "no tokenizer": (["show", "hi", "--tokenizer", "none.json"], "no tokenizer"),
    "no text": (["show", "", "--tokenizer", "t.json"], "text is empty"),
    "no gpt2": (["show", "hi"], "not on this machine"),
    "eval without a file": (["eval", "none.txt", "--tokenizer", "t.json"], "cannot read none.txt"),
    "eval of a bad text": (["eval", "latin1.txt", "--tokenizer", "t.json"], "not UTF-8 text"),
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
    (folder / "rows.jsonl").write_text('{"id": 1, "body": "a"}\n' * 9)
    (folder / "latin1.jsonl").write_bytes('{"text": "café au lait"}\n'.encode("latin-1") * 500)
    (folder / "plain.txt.gz").write_text(STORY)
    (folder / "cut.txt.gz").write_bytes(gzip.compress(random.Random(0).randbytes(999).hex().encode())[:-100])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    argv, message = MISTAKES[case]
    code, _, err = run(capsys, *argv)
    lines = err.splitlines()
    assert code == 2 and len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    assert message in lines[0]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_options_are_corrected(folder, capsys):
    """In the command that has them; and no option is taken for another that begins alike."""
    code, _, err = run(capsys, "train", "--file", "my.txt")
    assert code == 2 and "unrecognized arguments: --file" in err and "hint: did you mean --files?" in err
    code, _, err = run(capsys, "show", "x", "--step")
    assert code == 2 and "hint: did you mean --steps?" in err
    code, _, err = run(capsys, "eval", "my.txt", "--xyz")
    assert code == 2 and "tokenizer.py eval --help" in err


@pytest.mark.parametrize("name", ["tokenizer.json", "bpe.json"])
def test_the_tokenizer_of_a_run_is_never_replaced(name, folder, tales, capsys):
    """generate.py would go on with another one, for the sizes may well agree."""
    own = T.save_tokenizer(tales, f"log/run/{name}")
    before = own.read_bytes()
    for out in [f"log/run/{name}"] + ["log/run"] * (name == "tokenizer.json"):
        code, _, err = run(capsys, "train", "--files", "my.txt", "--vocab_size", "270", "--out", out)
        assert code == 2 and f"{own} is there already" in err and "hint: nothing was changed" in err
        assert own.read_bytes() == before
    assert run(capsys, "train", "--files", "my.txt", "--vocab_size", "270", "--out", "log/run/other.json")[0] == 0
    assert run(capsys, "train", "--files", "my.txt", "--vocab_size", "270", "--out", "log")[0] == 0
    assert sorted(str(path) for path in Path("log").rglob("*.json")) == sorted(
        map(str, [own, Path("log/run/other.json"), Path("log/tokenizer.json")]))


def start(*argv, **options):
    """The script in a process of its own, whose output is buffered. Ctrl-C reaches it even where the tests run in the
    background, which ignores that."""
    options.setdefault("env", {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"})
    if os.name != "nt":
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, str(ROOT / "tokenizer.py"), *argv], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals between processes")
def test_ctrl_c_and_a_closed_pipe_end_without_a_traceback(folder, tales):
    T.save_tokenizer(tales, "t.json")
    os.mkfifo("pipe.txt")
    process = start("eval", "pipe.txt", "--tokenizer", "t.json")    # waits for someone to write into the pipe
    writer = os.open("pipe.txt", os.O_WRONLY)    # comes back when the process reads
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")

    process = start("show", "the cat " * 100, "--tokenizer", "t.json")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=60) == 1


def test_a_terminal_that_cannot_show_everything(folder, tales):
    T.save_tokenizer(tales, "日.json")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    out, err = start("show", "日 é", "--tokenizer", "日.json", env=environment).communicate(timeout=60)
    assert err == "" and r"\u65e5.json: 512 tokens" in out and r"\xe6" in out and "6 bytes" in out
    out, err = start("show", "x", "--tokenizer", "月.json", env=environment).communicate(timeout=60)
    assert err.startswith(r"error: there is no tokenizer at \u6708.json") and "\nhint: " in err


# ----------------------------------------------------------------------------------------------------------- documents

DOCUMENTS = ["one\n", "two <b>\n\nlines", " 三 é 😀", "quotes \" and \\ and <|endof|>", "x" * 30, "a  b\n \nc "]


def texts_of(parts):
    """Pieces -> the documents, their pieces put together again."""
    found = []
    for part in parts:
        assert not part.problem and (part.starts or found)
        found[len(found) - (not part.starts):] = [("" if part.starts else found[-1]) + part.text]
    return found


def write_documents(path, documents):
    raw = "".join(json.dumps({"n": 1, "text": document}) + "\n\n" for document in documents)
    if "jsonl" not in path.name:
        raw = f"{T.EOT}\n".join(documents)
    raw = raw.encode()
    if path.suffix == ".zst":
        import pyarrow
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(raw)
    else:
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_one_reader_for_all_kinds_of_files(name, tmp_path):
    path = write_documents(tmp_path / name, DOCUMENTS)
    assert texts_of(T.read_documents(path)) == texts_of(T.read_documents(str(path))) == DOCUMENTS
    if "jsonl" in name:
        assert [part.text for part in T.read_documents(path)] == DOCUMENTS
        with pytest.raises(T.UserError, match="nothing that can be used: 6 no column 'body'") as caught:
            list(T.read_documents(path, "body"))
        assert "--text_column" in caught.value.hint


def test_texts_are_cut_as_split_documents_does_it(tmp_path, monkeypatch):
    """However much is read at a time: with markers and line breaks at every place, read by seven characters."""
    pieces = cut = 0
    for seed in range(400):
        rng = random.Random(seed)
        parts = [T.EOT, T.EOT + "\n", "\n", " ", "word", "a b", "x" * 9, "<|endof", "<", "é", "\n\n"]
        text = "".join(rng.choices(parts, k=20))
        (tmp_path / "a.txt").write_bytes(text.encode())
        found = {}
        for chars in (7, 1000):
            monkeypatch.setattr(T, "PIECE_CHARS", chars)
            try:
                parts = list(T.read_documents(tmp_path / "a.txt"))
            except T.UserError:
                parts = []
            found[chars] = texts_of(parts)
            pieces, cut = pieces + len(parts), cut + sum(not part.starts for part in parts)
            words = T.count_words(part.text for part in parts)
            assert words == T.count_words([text]), f"seed {seed}"
            assert all(part.text.strip() for part in parts)
        assert found[7] == found[1000] == T.split_documents(text), f"seed {seed}"
    assert pieces > 2000 and cut > 500


def test_a_long_text_is_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(T, "PIECE_CHARS", 100)
    text = "some words\n" * 500
    (tmp_path / "a.txt").write_text(text)
    parts = list(T.read_documents(tmp_path / "a.txt"))
    assert "".join(part.text for part in parts) == text and max(len(part.text) for part in parts) < 120
    assert [part.starts for part in parts] == [True] + [False] * (len(parts) - 1)


def test_what_cannot_be_used_is_told_and_passed_over(tmp_path, capsys):
    good = json.dumps({"text": STORY}).encode()
    rows = [good, b'{"text": "caf\xe9"}', b'{"text": "cut', b'["text"]', b'{"text": null}', b'{"text": 5}',
            b'{"body": "x"}', b"[" * 100_000]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows * 2))
    problems = [part.problem for part in T.read_documents(tmp_path / "a.jsonl")]
    assert problems == [None, "invalid UTF-8", "invalid JSON", "no JSON object", "no text", "not text",
                        "no column 'text'", "invalid JSON"] * 2
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + f"{T.EOT}\n".join([STORY, "a\udce9 b", "\0"]).encode(
        "utf-8", "surrogateescape"))
    assert [part.problem for part in T.read_documents(tmp_path / "b.txt")] == [None, "invalid UTF-8", "zero bytes"]
    for name in ("a.jsonl", "b.txt"):
        assert {part.text for part in T.read_documents(tmp_path / name)} == {STORY, ""}
    files = [str(tmp_path / "*.jsonl"), str(tmp_path / "b.txt"), str(tmp_path / "b.txt")]
    code, out, err = run(capsys, "train", "--files", *files, "--vocab_size", "270", "--out", str(tmp_path / "t.json"))
    assert code == 0 and "wrote" in out
    assert err.startswith("16 documents could not be used: 4 invalid JSON, 3 invalid UTF-8, 2 no JSON object")
    assert T.load_tokenizer(tmp_path / "t.json")._mergeable_ranks == T.train_bpe([STORY] * 3, 270)


def test_a_long_document_begins_behind_what_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(T, "PIECE_CHARS", 5)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait with sugar and cinnamon")
    first, second, *others = T.read_documents(tmp_path / "a.txt")
    assert first.problem and second.starts and others and not any(part.starts or part.problem for part in others)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """As root everything may be read, so the system's answer is put in its mouth."""
    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    (tmp_path / "a.txt").write_text(STORY)
    monkeypatch.setattr(T, "_open_unpacked", forbidden)
    with pytest.raises(T.UserError, match=r"cannot read .*a\.txt: Permission denied") as caught:
        T.read_corpus(tmp_path / "a.txt")
    assert caught.value.hint


def test_the_vocabulary_of_json_lines_is_that_of_their_text(folder, capsys):
    """And not of JSON's syntax, nor of its escapes: the same bytes as from the plain text, packed or not."""
    documents = ["Жили-были дед да баба.\n" * 20, "Once upon a time.\n" * 20, "\"quoted\"\t\\ text\n"]
    wanted = None
    for name in ("a.txt", "a.jsonl", "a.jsonl.gz", "a.txt.gz"):
        write_documents(folder / name, documents)
        code, _, err = run(capsys, "train", "--files", name, "--vocab_size", "280")    # the name is that of the file
        assert code == 0, err
        wanted = wanted or Path("a.json").read_bytes()
        assert Path("a.json").read_bytes() == wanted
        Path("a.json").unlink()
    Path("a.jsonl").write_text(Path("a.jsonl").read_text().replace('"text"', '"body"'))
    assert run(capsys, "train", "--files", "a.jsonl", "--vocab_size", "280", "--text_column", "body")[0] == 0
    assert Path("a.json").read_bytes() == wanted
    write_documents(folder / "a.jsonl", documents)
    code, out, _ = run(capsys, "train", "--files", "a.jsonl", "--vocab_size", "280", "--pattern", "unicode")
    assert code == 0 and T.load_tokenizer("a.json")._pat_str == T.UNICODE_PATTERN
    code, out, _ = run(capsys, "eval", "a.jsonl.gz", "--tokenizer", "a.json")
    assert code == 0 and "3 documents" in out


def test_expand(folder):
    (folder / "notes [1].txt").write_text("x")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "a.txt").write_text("x")
    assert T.expand(["notes [1].txt", "my.txt", "*.txt"]) == ["my.txt", "notes [1].txt"]
    assert T.expand(["**/*.txt"]) == sorted(["my.txt", "notes [1].txt", os.path.join("deep", "er", "a.txt")])
    with pytest.raises(T.UserError, match="no file matches 'deep'"):
        T.expand(["my.txt", "deep"])


@pytest.fixture
def hub(folder):
    """A folder laid out like a data set of the Hub: two configurations, a split more, several parquet files."""
    import pyarrow
    import pyarrow.parquet
    layout = {"data/x": ["cat " * 50], "sample/10BT/000": [STORY, STORY], "sample/10BT/001": [STORY * 2, None],
              "test/x": ["dog " * 50]}
    for name, documents in layout.items():
        (path := folder / "hub" / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.table({"id": pyarrow.array(range(len(documents))), "text": documents})
        pyarrow.parquet.write_table(table.append_column("body", table["text"]), path)
    (folder / "hub" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*\n"
        "  - split: test\n    path: test/*\n"
        "- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n", encoding="utf-8")
    return folder / "hub"


def train_on(capsys, *options):
    """The ranks that `train` learns from a data set, its output and what it wrote to standard error."""
    code, out, err = run(capsys, "train", *options, "--vocab_size", "270", "--out", "t.json")
    assert code == 0, err
    return T.load_tokenizer("t.json")._mergeable_ranks, out, err


def test_any_data_set_of_the_hub(hub, capsys):
    ranks, _, err = train_on(capsys, "--dataset", str(hub), "--config", "sample-10BT")
    assert ranks == T.train_bpe(STORY * 4, 270) and "1 documents could not be used: 1 no text" in err
    ranks, _, _ = train_on(capsys, "--dataset", str(hub), "--config", "sample-10BT", "--text_column", "body")
    assert ranks == T.train_bpe(STORY * 4, 270)
    n_chars = 2 * len(STORY) + 30
    ranks, _, err = train_on(capsys, "--dataset", str(hub), "--config", "sample-10BT", "--samples", str(n_chars))
    assert ranks == T.train_bpe([STORY, STORY, STORY[:30]], 270) and err == ""
    for split, text in (("train", "cat "), ("test", "dog ")):
        data = T.HubDocuments(str(hub), split=split)
        assert data.open() == 1 and [piece.text for piece in data.documents(0)] == [text * 50]
    code, _, err = run(capsys, "train", "--dataset", str(hub), "--text_column", "content")
    assert code == 2 and "no column 'content', only 'id', 'text', 'body'" in err and "--text_column" in err
    code, _, err = run(capsys, "train", "--dataset", str(hub), "--text_column", "id")
    assert code == 2 and "not text" in err
    for wrong in (["--config", "none"], ["--split", "none"]):
        code, _, err = run(capsys, "train", "--dataset", str(hub), *wrong)
        assert code == 2 and "cannot read the data set" in err and "none" in err and "hint: " in err


def test_versions_of_fineweb_are_pinned(hub, capsys, monkeypatch):
    import datasets
    for dataset, config, revision in T.VERSIONS.values():
        assert dataset.startswith("HuggingFaceFW/fineweb") and config.startswith("sample-1")
        assert len(revision) == 40 and int(revision, 16)
    assert T.VERSIONS["10Bedu"][0] == T.VERSIONS["100Bedu"][0] != T.VERSIONS["10B"][0] == T.VERSIONS["100B"][0]
    _, config, revision = T.VERSIONS["10Bedu"]
    calls, load = [], datasets.load_dataset_builder

    def local(*args, **options):
        calls.append((args, options))
        return load(str(hub), *args[1:], **options)
    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    code, out, _ = run(capsys, "train", "--version", "10Bedu", "--vocab_size", "270")
    assert code == 0 and "wrote 10Bedu.json" in out
    assert T.load_tokenizer("10Bedu.json")._mergeable_ranks == T.train_bpe(STORY * 4, 270)
    assert calls == [(("HuggingFaceFW/fineweb-edu", config), dict(revision=revision))]
    run(capsys, "train", "--dataset", "a/b.c", "--revision", "v1", "--config", config, "--vocab_size", "260")
    assert calls[1][0] == ("a/b.c", config) and calls[1][1]["revision"] == "v1" and Path("b.c.json").exists()


def test_the_hub_out_of_reach(hub, capsys, monkeypatch):
    import datasets

    def broken(self, *args, **options):
        yield next(whole(self, *args, **options))
        raise ConnectionError("lost")
    whole, load = datasets.IterableDataset.iter, datasets.load_dataset_builder
    monkeypatch.setattr(datasets.IterableDataset, "iter", broken)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **options: load(str(hub), *args[1:], **options))
    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    code, _, err = run(capsys, "train", "--version", "10Bedu", "--vocab_size", "270")
    assert code == 2 and "cannot read the data set" in err and "lost" in err and "hint: " in err

    def no_network(url, timeout):
        assert 0 < timeout <= 30
        raise requests.ConnectionError("no route")
    monkeypatch.setattr(requests, "head", no_network)
    code, _, err = run(capsys, "train", "--version", "10B", "--vocab_size", "270")
    assert code == 2 and "cannot read the data set" in err and "no route" in err and not Path("10B.json").exists()
