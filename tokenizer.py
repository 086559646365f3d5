"""
Byte-level BPE, the tokenizer of GPT-2: train one, look at its work, load OpenAI's own.

A model sees numbers, not letters. Byte-pair encoding makes the numbers: start with the 256 bytes, so that any text at
all can be written; find the pair of neighbours that stands most often in the text; give it the next free id; replace
it everywhere; repeat. Frequent words end up as one token, rare ones as a few pieces, and nothing is ever unknown.
GPT-2's 50,257 tokens are 256 bytes + 50,000 such merges + one special token that marks the start of a document.

    python tokenizer.py train --files input.txt --vocab_size 2048 --name tales --demo   # 2 s, writes tales.json
    python tokenizer.py train --files "docs/*.jsonl.gz" --pattern unicode               # for Hindi, Thai, Persian ...
    python tokenizer.py train --version 10Bedu --vocab_size 16384                       # FineWeb-Edu; needs the network
    python tokenizer.py show "Once upon a time" --tokenizer tales.json --steps
    python tokenizer.py eval input.txt --tokenizer tales.json                           # bytes per token

Part I  1 names   2 training   3 encoding    Part II  4 files   5 GPT-2's own, a model's   6 documents   7 commands
Part I is all there is to BPE; Part II is what it takes to use it. Training is plain Python; encoding is tiktoken's, in
Rust, so our tokenizers and GPT-2's are the same kind of object.

References: Sennrich et al. 2016 (BPE for words), Radford et al. 2019 (GPT-2: bytes, and the split before the merges).
"""

import argparse
import base64
import contextlib
import difflib
import glob
import hashlib
import heapq
import io
import itertools
import json
import os
import re
import sys
import tempfile
import time
from array import array
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

# tiktoken, regex, requests, datasets and pyarrow are imported where they are used: no command needs all of them.

# === Part I. 1. Names =================================================================================================
EOT = "<|endoftext|>"  # the special token between documents; always the last id
MIN_VOCAB, MAX_VOCAB = 256 + 1, 2**16  # the bytes and EOT without merges; what fits in uint16

# GPT-2 first cuts text into words, and no merge crosses a cut: otherwise "dog." "dog!" "dog?" would all become tokens.
# From left to right: contractions; letters, digits or other marks, each with the one space before them; white space,
# of which the last character is left for the word that follows. `++` never gives back what it took, so that no text
# makes the match slow.
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# Many scripts write vowels and tones as combining marks (\p{M}), which are no letters: GPT-2's pattern cuts a word of
# Hindi or Thai at each mark. This one keeps marks, and the joiners of Hindi and Persian, with the letters before them.
UNICODE_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?(?=\p{L})[\p{L}\p{M}\p{Join_Control}]++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
)
# A pattern is a program, and a hostile one can run for years: a tokenizer file may name only these. Add yours here; it
# must begin a new word where white space follows another character.
KNOWN_PATTERNS = {"gpt2": SPLIT_PATTERN, "unicode": UNICODE_PATTERN}

# FineWeb on the Hub: (data set, configuration, revision). The revision is a commit, since both data sets have changed.
VERSIONS = {
    "10Bedu": ("HuggingFaceFW/fineweb-edu", "sample-10BT", "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"),
    "100Bedu": ("HuggingFaceFW/fineweb-edu", "sample-100BT", "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"),
    "10B": ("HuggingFaceFW/fineweb", "sample-10BT", "9bb295ddab0e05d785b879661af7260fed5140fc"),
    "100B": ("HuggingFaceFW/fineweb", "sample-100BT", "9bb295ddab0e05d785b879661af7260fed5140fc"),
}


class UserError(Exception):
    """A mistake that the user can mend: main() prints it as `error:` and `hint:` and exits with code 2."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.hint = hint


def require(condition, message, hint):
    """Raises UserError unless the condition holds."""
    if not condition:
        raise UserError(message, hint)


@contextlib.contextmanager
def explaining(what, errors, hint):
    """Turns an error of the classes `errors` into a UserError that says what failed."""
    try:
        yield
    except UserError:
        raise
    except errors as e:
        reason = getattr(e, "strerror", None) or f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        raise UserError(f"{what}: {reason}", hint) from e


# === 2. Training: count the words once, then merge, touching only the words that hold the pair. =======================
PIECE_CHARS = 2**20  # characters of a text that are read, or cut into words, at a time
PARTS_AT_ONCE = 100_000  # different parts that are kept: a bound on the memory where few come twice
# Where white space follows another character, a word ends, and no pattern looks back: the two sides can be handled
# apart. Something visible must still come, so that no piece is white space alone; "<" may be the end, half a marker.
SAFE_CUT = re.compile(r"\S(?=[ \n]\s*+[^\s<])")
# A coarser cut than those of the patterns, and faster. Their white space is Python's without U+001C to U+001F.
COARSE = re.compile(r" ?[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+(?![\S\x1c-\x1f])|[^\S\x1c-\x1f]")


class Merge(NamedTuple):
    """One step of training, as `on_merge` receives it."""

    rank: int  # the id of the new token
    left: bytes
    right: bytes  # the new token is left + right
    count: int  # how often the pair stood in the text ("aaa" holds "aa" twice)
    tokens: int  # length of the whole text in tokens, after this merge
    n_bytes: int  # length of the whole text in bytes, so n_bytes / tokens is the compression so far


def split_documents(text):
    """Text -> list of its documents, the pieces between `<|endoftext|>` markers.

    The line break right after a marker belongs to the marker. Pieces of nothing but white space are dropped.
    """
    return [piece for piece in re.split(re.escape(EOT) + r"(?:\r?\n)?", text) if piece.strip()]


def pieces(text):
    """A long text -> pieces of about a million characters, which hold the same words and give the same tokens."""
    start = 0
    while cut := SAFE_CUT.search(text, start + PIECE_CHARS):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]


def train_bpe(texts, vocab_size, *, pattern=SPLIT_PATTERN, on_merge=None):
    """Learns a byte-level BPE vocabulary.

    texts       iterable of str, or one str; read once, so a stream will do; `<|endoftext|>` separates documents
    vocab_size  ids in all, 257 to 65,536: 256 bytes + merges + 1 for `<|endoftext|>`
    pattern     regular expression that cuts text into words
    on_merge    called with a `Merge` after each merge

    Returns dict bytes -> rank with vocab_size - 1 entries: the bytes 0 to 255 by value, then the merges in the order
    they were learned. Of equal counts the pair whose left part has the smaller rank wins, then the smaller right rank,
    so that the result depends on how often each word stands in the text and on nothing else. Raises UserError if
    vocab_size is out of range, if there is no text, or if the text runs out of pairs first.
    """
    fits = isinstance(vocab_size, int) and MIN_VOCAB <= vocab_size <= MAX_VOCAB
    what = f"the vocabulary size must be between {MIN_VOCAB} and {MAX_VOCAB:,}, not {vocab_size}"
    require(fits, what, f"256 bytes and {EOT} are always in it; ids must fit in 16 bits")
    word_counts = count_words([texts] if isinstance(texts, str) else texts, pattern)
    require(word_counts, "there is no text to train on", "give text that is more than white space and markers")
    tokens = [bytes([value]) for value in range(256)] + learn_merges(word_counts, vocab_size - MIN_VOCAB, on_merge)
    return {token: rank for rank, token in enumerate(tokens)}


def count_words(texts, pattern=SPLIT_PATTERN):
    """Iterable of str -> Counter {word: how often}.

    The pattern takes longer than counting does, and a text says most things many times. So the text is cut coarsely
    and counted first, and the pattern then cuts each different part once.
    """
    import regex  # unlike the standard library's re it knows \p{L}

    find, known = regex.compile(pattern).findall, pattern in KNOWN_PATTERNS.values()
    words, parts = Counter(), Counter()

    def cut_parts():
        for part, count in parts.items():
            for word in find(part):
                words[word] += count
        parts.clear()

    for document in itertools.chain.from_iterable(map(split_documents, texts)):
        for piece in pieces(_well_formed(document)) if known else [_well_formed(document)]:
            parts.update(COARSE.findall(piece) if known else [piece])
            if len(parts) > PARTS_AT_ONCE:
                cut_parts()
    cut_parts()
    words.pop("", None)  # a pattern that can match nothing does
    return words


def _well_formed(text):
    """Lone halves of surrogate pairs cannot be written as UTF-8: replaces them, as tiktoken does."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def learn_merges(word_counts, n_merges, on_merge=None):
    """{word: how often} -> list of the n_merges new tokens (bytes), in the order learned.

    A word is kept as a str in which character number r stands for the token of rank r. Then "replace this pair by
    its new token, from left to right, without overlap" is `str.replace`, which runs in C, and a pair is a str of
    length two. After a merge only the counts right beside the new token change.

    Raises UserError when fewer merges are possible.
    """
    words = [word.encode("utf-8").decode("latin-1") for word in word_counts]  # latin-1: byte b <-> character b
    counts = list(word_counts.values())
    tokens = [bytes([value]) for value in range(256)]  # rank -> bytes
    n_bytes = n_tokens = sum(len(word) * count for word, count in zip(words, counts, strict=True))  # of the whole text

    pair_counts = defaultdict(int)  # pair -> how often in the text
    holders = defaultdict(list)  # pair -> indices of the words that held it when it was last added to
    for index, word in enumerate(words):
        for pair in map("".join, itertools.pairwise(word)):
            _add_pair(pair, counts[index], index, pair_counts, holders)

    # The heap gives the most frequent pair, and of equals the one of smaller ranks (str compare by character number).
    # It is lazy: a pair's count falls when a neighbour is merged away, and the entry is set right only when it comes
    # up. That is enough, because a count never rises: all of a pair's occurrences appear when its newer half does.
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    for rank in range(256, 256 + n_merges):
        pair = _most_frequent(heap, pair_counts)
        if pair is None:
            what = f"{rank + 1:,} is the largest vocabulary it supports, not {256 + n_merges + 1:,}"
            hint = f"use --vocab_size {rank + 1} or less, or more text"
            raise UserError(f"the text has no more pairs to merge: {what}", hint)
        left, right, new = pair[0], pair[1], chr(rank)
        merge_count = pair_counts[pair]
        tokens.append(tokens[ord(left)] + tokens[ord(right)])
        born = set()  # pairs that this merge brings into being
        for index in holders.pop(pair):
            word, count = words[index], counts[index]
            words[index] = merged = word.replace(pair, new)
            n_tokens -= (len(word) - len(merged)) * count
            at = merged.find(new)
            while at >= 0:
                if at > 0:
                    before = merged[at - 1]
                    # the pair that was here; if the neighbour is a new token too, what stood here was its right half
                    pair_counts[(right if before == new else before) + left] -= count
                    born.add(_add_pair(before + new, count, index, pair_counts, holders))
                after = merged[at + 1 : at + 2]
                if after and after != new:  # a new token after this one sees to the pair between them
                    pair_counts[right + after] -= count
                    born.add(_add_pair(new + after, count, index, pair_counts, holders))
                at = merged.find(new, at + 1)
        if on_merge:
            on_merge(Merge(rank, tokens[ord(left)], tokens[ord(right)], merge_count, n_tokens, n_bytes))
        del pair_counts[pair]
        for pair in born:
            heapq.heappush(heap, (-pair_counts[pair], pair))
    return tokens[256:]


def _add_pair(pair, count, index, pair_counts, holders):
    pair_counts[pair] += count
    if not holders[pair] or holders[pair][-1] != index:  # a word is noted once, however often it holds the pair
        holders[pair].append(index)
    return pair


def _most_frequent(heap, pair_counts):
    """The pair with the highest true count, or None. Entries whose count has fallen go back with the true one."""
    while heap:
        count, pair = heapq.heappop(heap)
        true_count = pair_counts[pair]
        if true_count == -count:
            return pair
        if true_count > 0:
            heapq.heappush(heap, (-true_count, pair))
    return None


# === 3. Encoding ======================================================================================================
class WordSteps(NamedTuple):
    """How one word is encoded."""

    word: str
    stages: list  # of lists of bytes: single bytes first, one merge more in each, the tokens last
    ids: list  # of int: the ids of stages[-1]


def make_encoding(ranks, name, pattern=SPLIT_PATTERN):
    """Ranks (dict bytes -> int, as `train_bpe` returns) -> tiktoken.Encoding, with `<|endoftext|>` as the last id.

    Raises UserError for ranks that are not 0, 1, 2 ... each once, that lack a byte, or that are too many.
    """
    import tiktoken

    eot, hint = len(ranks), "python tokenizer.py train makes a whole one"
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    require(sorted(ranks.values()) == list(range(eot)), f"the ranks of tokenizer {name!r} are not 0, 1, 2 ...", hint)
    require(not missing, f"tokenizer {name!r} lacks {len(missing)} of the 256 bytes, such as {missing[:3]}", hint)
    require(eot < MAX_VOCAB, f"tokenizer {name!r} has {eot + 1:,} tokens; {MAX_VOCAB:,} fit in 16 bits", hint)
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens={EOT: eot})


def eot_id(enc):
    """The id of `<|endoftext|>`: the last one."""
    return enc.n_vocab - 1


def has_gpt2_pattern(enc):
    """Whether `enc` cuts words as GPT-2 does. transformers' GPT2Tokenizer can express no other pattern."""
    return enc._pat_str == SPLIT_PATTERN


# tiktoken overflows its stack when it looks for the end of a million characters of white space.
LONG_TEXT = 400_000
LONG_SPACE = re.compile(rf"[^\S\x1c-\x1f]{{{LONG_TEXT},}}")


def encode(enc, text):
    """Text -> list of ids, for any text of any length: the one function that encodes text in this project.

    A `<|endoftext|>` in the text is ordinary text. `enc.decode_bytes` gives the bytes of the text back.
    """
    cuts = [0, len(text)]
    if len(text) > LONG_TEXT and enc._pat_str in KNOWN_PATTERNS.values():
        # All but the last character of white space before a word is a word by itself: there the text can be cut.
        cuts[1:1] = [run.end() - 1 for run in LONG_SPACE.finditer(text) if run.end() < len(text)]
    parts = [enc.encode_ordinary(text[start:end]) for start, end in itertools.pairwise(cuts)]
    return parts[0] if len(parts) == 1 else list(itertools.chain.from_iterable(parts))


def encode_documents(enc, documents):
    """Documents -> array of ids (uint16), each document after `<|endoftext|>`."""
    ids = array("H")
    for document in documents:
        ids.append(eot_id(enc))
        ids.extend(encode(enc, document))
    return ids


def merge_pair(tokens, left, right):
    """One merge on one word: [.., left, right, ..] -> [.., left + right, ..], from the left, wherever it stands."""
    merged = []
    for token in tokens:
        if merged and merged[-1] == left and token == right:
            merged[-1] = left + right
        else:
            merged.append(token)
    return merged


def encode_with_steps(enc, text):
    """The encoder in plain Python, with its work shown: text -> list of `WordSteps`.

    Each word starts as single bytes; the neighbours whose merge was learned first are merged, again and again, until
    no two neighbours make a token. The ids of all words in a row equal `encode(enc, text)`.
    """
    import regex

    ranks, steps = enc._mergeable_ranks, []
    for word in regex.findall(enc._pat_str, _well_formed(text)):
        tokens = [bytes([value]) for value in word.encode("utf-8")]
        stages = [tokens]
        while pairs := [pair for pair in itertools.pairwise(tokens) if pair[0] + pair[1] in ranks]:
            left, right = min(pairs, key=lambda pair: ranks[pair[0] + pair[1]])
            tokens = merge_pair(tokens, left, right)
            stages.append(tokens)
        steps.append(WordSteps(word, stages, [ranks[token] for token in tokens]))
    return steps


# === Part II. 4. Files: JSON with the pattern, the tokens in base64 in the order of their ids, the special token. =====
FILE_FORMAT = 1
MAX_FILE_BYTES = 64 * 2**20  # 65,536 tokens of sane length take 2 MB; more is no tokenizer


def fingerprint(enc):
    """sha256 (hex) of all that decides how text is encoded: pattern, ranks, special token. The name does not count."""
    return hashlib.sha256(json.dumps(_content(enc), sort_keys=True).encode("ascii")).hexdigest()


def _content(enc):
    tokens = [base64.b64encode(t).decode("ascii") for t in sorted(enc._mergeable_ranks, key=enc._mergeable_ranks.get)]
    return {"pattern": enc._pat_str, "special": enc._special_tokens, "tokens": tokens}


def to_json(enc):
    """An encoding -> the content (bytes) of its file. Raises UserError if `load_tokenizer` would not take it."""
    content = {"format": FILE_FORMAT, "name": enc.name, "sha256": fingerprint(enc)} | _content(enc)
    _check(content)
    return json.dumps(content, indent=0).encode("ascii") + b"\n"


def _check(content):
    """Raises UserError for what is wrong with the content of a tokenizer file, but for the tokens themselves."""
    hint = "python tokenizer.py train makes a whole one"
    keys = {"format", "name", "sha256", "pattern", "special", "tokens"}
    require(isinstance(content, dict), f"it is a {type(content).__name__}, not an object", hint)
    require(keys <= content.keys(), f"it has no {', '.join(sorted(keys - content.keys()))}", hint)
    version, name, tokens = content["format"], content["name"], content["tokens"]
    require(version == FILE_FORMAT, f"it has format {version!r:.20}, and this program reads {FILE_FORMAT}", hint)
    require(isinstance(name, str) and name.isprintable(), "the tokenizer's name is not plain text", hint)
    require(content["pattern"] in KNOWN_PATTERNS.values(), "its split pattern is not one of KNOWN_PATTERNS", hint)
    require(isinstance(tokens, list), "its tokens are not a list", hint)
    require(content["special"] == {EOT: len(tokens)}, f"{EOT} is not its last and only special token", hint)


def save_tokenizer(enc, path):
    """Writes `enc` to `path` (or `path`/tokenizer.json if that is a directory), whole or not at all; returns the path.

    Raises UserError if it cannot be written, or as `to_json` does.
    """
    path, content = _file_of(path), to_json(enc)
    write_whole(path, lambda file: file.write(content))
    return path


def _file_of(path):
    return Path(path) / "tokenizer.json" if os.path.isdir(path) else Path(path)


def write_whole(path, write, hint="choose a folder you may write to, with space left on its disk"):
    """Calls write(file), then renames: a reader sees the old file or the new one, never half of one.

    Raises UserError, with the old file untouched, if that fails or the path is a device or another thing but a file.
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing to the file
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    require(path.is_file() or not path.exists(), f"cannot write {path}: it is no ordinary file", "give another name")
    with explaining(f"cannot write {path}", OSError, hint):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())  # the content is on the disk before the name points to it
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def load_tokenizer(name_or_path):
    """"gpt2", or the path of a file that `save_tokenizer` wrote, or of a directory with a tokenizer.json in it.

    Returns a tiktoken.Encoding (n_vocab 50,257 for gpt2). A file is data and nothing in it is run.
    Raises UserError if there is no such file, or it is damaged, or not a tokenizer.
    """
    if name_or_path == "gpt2":
        return _load_gpt2()
    path = _file_of(name_or_path)
    hint = "give gpt2, a file written by `python tokenizer.py train`, or a run's folder such as log/tales"
    hint = f"did you mean {path}.json?" if os.path.isfile(f"{path}.json") else hint
    require(os.path.isfile(path), f"there is no tokenizer at {path}", hint)
    hint = "if it was damaged or edited, copy it again, or train it again with `python tokenizer.py train`"
    try:
        require(os.path.getsize(path) <= MAX_FILE_BYTES, f"it is larger than {MAX_FILE_BYTES // 2**20} MB", hint)
        _check(content := json.loads(path.read_bytes()))
        ranks = {base64.b64decode(token, validate=True): rank for rank, token in enumerate(content["tokens"])}
        require(len(ranks) == len(content["tokens"]) and b"" not in ranks, "a token is empty or listed twice", hint)
        enc = make_encoding(ranks, content["name"], content["pattern"])
        require(content["sha256"] == fingerprint(enc), "its content does not match its sha256", hint)
    except (UserError, OSError, RecursionError, TypeError, ValueError) as e:  # also JSON and base64 made to do harm
        raise UserError(f"{path} is not a whole tokenizer file: {e}", hint) from e
    return enc


# === 5. GPT-2's own, and a model's. ===================================================================================
GPT2_FILES = {  # the name in tiktoken's cache, which is the sha1 of the address -> sha256 of the content
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
TIMEOUT_S = 10  # of silence, before a connection counts as lost


def _tiktoken_cache():
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    return Path(os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default)))


def _gpt2_missing():
    """Names of GPT-2's files that are not in tiktoken's cache, or damaged there."""
    files = {name: _tiktoken_cache() / name for name in GPT2_FILES}
    content = {name: file.read_bytes() if os.path.isfile(file) else b"" for name, file in files.items()}
    return [name for name in GPT2_FILES if hashlib.sha256(content[name]).hexdigest() != GPT2_FILES[name]]


def _load_gpt2():
    """tiktoken's "gpt2". tiktoken checks its two files, and fetches what is missing."""
    import requests  # tiktoken needs it too
    import tiktoken.load

    def read_file(url):
        response = requests.get(url, timeout=TIMEOUT_S)
        response.raise_for_status()
        return response.content

    tiktoken.load.read_file = read_file  # its own has no time limit: behind a firewall it would hang
    hint = (
        f"to work offline, copy the two files {' and '.join(GPT2_FILES)} to {_tiktoken_cache()} (or to a folder "
        "that TIKTOKEN_CACHE_DIR names) from a machine where `python tokenizer.py show hello --tokenizer gpt2` "
        "has worked; a tokenizer of your own needs no network: `python tokenizer.py train`"
    )
    with explaining("GPT-2's tokenizer is not on this machine, and cannot be fetched", Exception, hint):
        return tiktoken.get_encoding("gpt2")


def find_tokenizer(model_path, vocab_size=None):
    """The tokenizer that belongs to a model: in its folder, or beside its file, bpe.json (of an export), that of
    transformers if there is a config.json, or tokenizer.json (of a run); else GPT-2's.

    Raises UserError if vocab_size, the model's, is given and is not the tokenizer's; GPT-2's is not fetched for that.
    """
    path, enc, name, size = Path(model_path), None, "gpt2", 50_257
    for folder in (path, path.parent) if path.exists() else ():
        theirs = (folder / "config.json").exists()  # transformers has another format called tokenizer.json
        files = [folder / "bpe.json"] if theirs else [folder / "bpe.json", folder / "tokenizer.json"]
        own = next(filter(Path.is_file, files), None)
        if enc := load_tokenizer(own) if own else _load_transformers(folder) if theirs else None:
            name, size = own or folder, enc.n_vocab
            break
    other = f"{model_path} has {vocab_size} tokens, but the tokenizer {name} has {size}"
    hint = "put the tokenizer.json that it was trained with beside it, as bpe.json if there is a config.json"
    require(vocab_size in (None, size), other, hint)
    return enc or load_tokenizer("gpt2")


def byte_names():
    """{byte: how GPT-2's files write it}: as the character that Latin-1 shows for it, or else one from U+0100 on."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def _load_transformers(folder):
    """The tokenizer in a directory of transformers, if it works as GPT-2's does; None if none is there.

    Raises UserError for any other: the ids of GPT-2's would mean other words to the model.
    """
    whole, vocab_file, config = (folder / f"{name}.json" for name in ("tokenizer", "vocab", "tokenizer_config"))
    if not (whole.exists() or vocab_file.exists() or config.exists()):
        return None
    what = f"the tokenizer in {folder} does not work as GPT-2's"
    hint = "put it there as bpe.json, in the format of tokenizer.save_tokenizer, if it cuts words as GPT-2's does"
    with explaining(what, (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError), hint):
        if whole.exists():
            content = json.loads(whole.read_bytes())
            before, model = content["pre_tokenizer"], content["model"]
            same = before["type"] == "ByteLevel" and before.get("use_regex", True) and not before["add_prefix_space"]
            require(same and model["type"] == "BPE" and not content["normalizer"], f"{what}: {whole} says so", hint)
            vocab, merges = model["vocab"], model["merges"]
        else:
            lines = (folder / "merges.txt").read_text("utf-8").splitlines()
            vocab, merges = json.loads(vocab_file.read_bytes()), [line for line in lines[1:] if line]
        bytes_of = {name: byte for byte, name in byte_names().items()}
        tokens = sorted(vocab, key=vocab.get)
        joined = ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
        in_order = sorted(vocab.values()) == list(range(len(vocab))) and tokens[256:] == [*joined, EOT]
        require(in_order, f"{what}: its ids are not 256 bytes, the merges in their order, and {EOT}", hint)
        ranks = {bytes(bytes_of[char] for char in token): rank for rank, token in enumerate(tokens[:-1])}
        return make_encoding(ranks, folder.resolve().name)


def for_shards(folder, asked, sha256, vocab_size=None):
    """The tokenizer that made the shards in a folder, or None where it is not at hand: training on them needs none.

    asked       a name or path, or "auto": the folder's own, or else GPT-2's if it is in the cache (it is not fetched)
    sha256      fingerprint of the tokenizer that made the shards; vocab_size: its size; None where that is not known

    Raises UserError if the one asked for cannot be loaded, or is not the one that made them.
    """
    own = Path(folder) / "tokenizer.json"
    if asked == "auto" and not own.exists():
        enc = None if _gpt2_missing() else load_tokenizer("gpt2")
        return enc if enc and sha256 in (None, fingerprint(enc)) and vocab_size in (None, enc.n_vocab) else None
    enc = load_tokenizer(file := own if asked == "auto" else asked)
    other = f"the shards in {folder} were made with another tokenizer than {file}"
    hint = "restore the one that made them, or make them again: python fineweb.py --tokenizer"
    require(sha256 in (None, fingerprint(enc)), other, hint)
    return enc


# === 6. Documents: of files, of the Hub, and of the one text that the trainer takes. ==================================
READ_ROWS = 32  # rows of a table that are read at a time


class Piece(NamedTuple):
    """A document, or a piece of a long one, or one that cannot be used (then the text is empty)."""

    text: str
    starts: bool = True  # False for a piece that continues a document
    problem: str | None = None


def expand(patterns):
    """Names and patterns of files (on Windows the shell leaves patterns) -> sorted paths. UserError if one has none."""
    paths = []
    for pattern in map(os.path.expanduser, patterns):
        literal = os.path.isfile(pattern)  # "notes [1].txt" is a name first and a pattern second
        found = [pattern] if literal else [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
        require(found, f"no file matches {pattern!r}", "give names, or a pattern in quotes such as 'docs/*.jsonl'")
        paths += found
    unique = {os.path.realpath(path): path for path in sorted(paths, reverse=True)}  # of two names the first stays
    if again := len(paths) - len(unique):
        print(f"{again} of {len(paths)} files are given again, by the same or another name: each is read once")
    return sorted(unique.values())


def kind_of(path):
    """The end of a file's name, without .gz or .zst: ".jsonl" of "a.jsonl.gz"."""
    return Path(str(path).removesuffix(".gz").removesuffix(".zst")).suffix.lower()


def read_documents(path, text_column="text"):
    """The one reader of files: a path -> its documents as `Piece`s, in order and in bounded memory.

    A .parquet file has a document in each row, a .jsonl file (or .ndjson, .json) an object with a document on each
    line; all others are UTF-8 text with `<|endoftext|>` between documents. .gz or .zst may follow. A document that
    cannot be used is a Piece with a problem. Raises UserError if the file cannot be read, or no document be used.
    """
    read = {".parquet": _parquet_pieces} | dict.fromkeys((".jsonl", ".ndjson", ".json"), _json_pieces)
    good, problems, hint = False, Counter(), "is it there, complete, and what its name says?"
    with explaining(f"cannot read {path}", (OSError, ValueError), hint), _open_unpacked(str(path)) as file:
        for piece in read.get(kind_of(path), _text_pieces)(file, text_column):
            good = good or not piece.problem
            problems.update([piece.problem] if piece.problem else [])
            yield piece
    hint = "text is UTF-8; JSON is an object a line, with the text in the column --text_column"
    require(good or not problems, f"{path} holds nothing that can be used: {describe_counts(problems)}", hint)


def describe_counts(problems):
    """{problem: how often} -> "2 no text, 1 invalid UTF-8"."""
    return ", ".join(f"{count:,} {problem}" for problem, count in Counter(problems).most_common())


def _open_unpacked(path):
    if not path.endswith((".gz", ".zst")):
        return open(path, "rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(path), 2**20)


def _text_pieces(file, _):
    """The documents of `split_documents`, read about a million characters at a time."""
    file = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    rest, starts = "\n", True  # as if a marker with its line break stood before the text, and a marker at its end
    for chunk in itertools.chain(iter(lambda: file.read(PIECE_CHARS), ""), [EOT]):
        *ended, rest = (rest + chunk).split(EOT)
        *begun, rest = pieces(rest)
        for document in [*map(pieces, ended), begun]:
            for piece in document:
                piece = piece.removeprefix("\n") if starts else piece
                if piece.strip():
                    sound = _well_formed(piece) == piece
                    wrong = "invalid UTF-8" if not sound else "zero bytes" if "\0" in piece else None
                    yield Piece("" if wrong else piece, starts, wrong)
                    starts = starts and bool(wrong)
            starts = starts or document is not begun


def _json_pieces(file, text_column):
    """Not with `datasets`, which gives up a whole file for one broken line."""
    for line in filter(bytes.strip, file):
        try:
            yield _row_piece(json.loads(line.decode("utf-8-sig"))[text_column])
        except (ValueError, RecursionError) as e:
            yield Piece("", problem="invalid UTF-8" if isinstance(e, UnicodeDecodeError) else "invalid JSON")
        except KeyError:
            yield Piece("", problem=f"no column {text_column!r}")
        except TypeError:
            yield Piece("", problem="no JSON object")


def _parquet_pieces(file, text_column):
    """Not with `datasets`, which reads whole groups of rows: a file of one's own may be a single one."""
    import pyarrow.parquet

    parquet = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
    _require_column(text_column, parquet.schema_arrow.names, file.name)
    for batch in parquet.iter_batches(batch_size=READ_ROWS, columns=[text_column], use_threads=False):
        yield from _column_pieces(batch.column(0), file.name)


def _require_column(text_column, columns, name):
    what = f"{name} has no column {text_column!r}, only {', '.join(map(repr, columns))}"
    require(text_column in columns, what, "choose the column that holds the documents with --text_column")


def _column_pieces(column, name):
    kind = str(column.type).removeprefix("large_")
    is_text = kind.startswith(("string", "binary", "dictionary<values=string", "null"))
    require(is_text, f"the column of {name} holds {kind}, not text", "choose another with --text_column")
    return map(_row_piece, column.cast("large_binary").to_pylist())  # Arrow does not check that its strings are UTF-8


def _row_piece(value):
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return Piece("", problem="invalid UTF-8")
    return Piece(value) if isinstance(value, str) else Piece("", problem="no text" if value is None else "not text")


class HubDocuments:
    """A split of a data set of the Hugging Face Hub, or of a folder laid out like one, read as a stream.

    `huggingface_hub` and `datasets` wait and try again for minutes when the network fails. What they give up on is a
    UserError: a fault halfway must not pass for the end of the stream.
    """

    def __init__(self, dataset, config=None, revision=None, split="train", text_column="text"):
        self.dataset, self.config, self.revision, self.split = dataset, config, revision, split
        self.text_column = text_column

    def reading(self):
        hint = "check the name and the network; then the same command goes on; --files needs no network"
        return explaining(f"cannot read the data set {self.dataset}", Exception, hint)

    def open(self):
        """Fetches the list of files and a schema; returns how many files there are."""
        import datasets
        import requests

        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs each error that it also raises
        datasets.disable_progress_bars()
        with self.reading():
            if not os.path.isdir(self.dataset):  # any answer will do: without a network `datasets` tries long
                requests.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=TIMEOUT_S)
            builder = datasets.load_dataset_builder(self.dataset, self.config, revision=self.revision)
            self.stream = builder.as_streaming_dataset(split=self.split)
            _require_column(self.text_column, self.stream.features or [self.text_column], self.dataset)
            if hasattr(builder.config, "columns"):  # parquet: do not fetch the other columns
                builder.config.columns = [self.text_column]
                self.stream = builder.as_streaming_dataset(split=self.split)
        return self.stream.num_shards

    def documents(self, k):
        """The documents of file k as `Piece`s."""
        file = self.stream.shard(num_shards=self.stream.num_shards, index=k)  # `datasets` calls a file a shard
        with self.reading():
            for table in file.with_format("arrow").iter(batch_size=READ_ROWS):
                yield from _column_pieces(table.column(self.text_column), self.dataset)


def read_text(path):
    """A file -> its documents as one str, with markers between them. Raises UserError unless all of it is text."""
    text = []
    for piece in read_documents(path):
        what = f"{path} is not UTF-8 text: {piece.problem}"
        require(not piece.problem, what, "save it as UTF-8, or give another file")
        text += [f"{EOT}\n", piece.text] if piece.starts and text else [piece.text]
    require(text, f"{path} has no text in it", "choose a file with more than white space and markers")
    return "".join(text)


class Corpus(NamedTuple):
    """A text as the trainer takes it."""

    encoding: object  # tiktoken.Encoding
    train: array  # ids (uint16), each document after `<|endoftext|>`
    val: array  # the same for the part held out
    val_bytes: int  # UTF-8 bytes of the documents held out, without markers


def read_corpus(path, asked="auto", own=None, vocab_size=2048):
    """A text file -> Corpus, of which the last tenth is held out.

    asked       the tokenizer: a name or path, or "auto": that of the model at `own`, or else a new one, trained on the
                text that is not held out, with vocab_size ids

    Raises UserError if the file cannot be used, or the tokenizer not be loaded or trained.
    """
    train, val = split_corpus(text := read_text(path))
    what = f"{path} is too short to learn from: {len(text):,} characters"
    require(train and val, what, "give some ten thousand characters of text")
    if asked != "auto":
        enc = load_tokenizer(asked)
    else:
        enc = find_tokenizer(own) if own else make_encoding(train_bpe(train, vocab_size), Path(path).stem)
    val_bytes = sum(len(document.encode("utf-8")) for document in val)
    return Corpus(enc, encode_documents(enc, train), encode_documents(enc, val), val_bytes)


def split_corpus(text):
    """Text -> (documents to learn from, documents held out). The cut is in the last tenth: where a document begins
    there, or else a line, or else at nine tenths."""
    raw = text.encode("utf-8")
    tenth = cut = len(raw[: len(raw) * 9 // 10].decode("utf-8", errors="ignore"))
    for mark in (EOT + "\n", "\n"):
        begin = text.find(mark, tenth) + len(mark)
        if begin > tenth and text[begin:].strip():
            cut = begin
            break
    return split_documents(text[:cut]), split_documents(text[cut:])


# === 7. Commands ======================================================================================================
def command_train(args):
    require(args.samples > 0, f"--samples is {args.samples}", "it is a number of characters, at least 1")
    if on_the_hub := hub_options(args):
        stream, limit = HubDocuments(*on_the_hub), args.samples
        documents = map(stream.documents, range(stream.open()))
        name = args.version or Path(args.dataset).name
    else:
        files, limit = expand(args.files or ["input.txt"]), sys.maxsize
        documents = (read_documents(file, args.text_column) for file in files)
        name = Path(re.sub(r"\.(gz|zst)$", "", files[0])).stem
    name, problems = args.name or re.sub(r"[^\w.-]", "_", name), Counter()
    plain = re.fullmatch(r"[\w.-]+", name)
    require(plain, f"--name {name!r} is not of letters, digits, dots, dashes and underscores", "--out names a folder")
    out = _file_of(args.out or f"{name}.json")
    existed = _replaces_tokenizer(out)

    started, pattern, texts = time.perf_counter(), KNOWN_PATTERNS[args.pattern], _texts(documents, limit, problems)
    ranks = train_bpe(texts, args.vocab_size, pattern=pattern, on_merge=print_merge if args.demo else None)
    save_tokenizer(make_encoding(ranks, name, pattern), out)
    seconds = time.perf_counter() - started
    if problems:
        print(f"{problems.total():,} documents could not be used: {describe_counts(problems)}", file=sys.stderr)
    print(f"{len(ranks) + 1:,} tokens = 256 bytes + {len(ranks) - 256:,} merges + {EOT}, learned in {seconds:.1f} s")
    print(f"{'replaced' if existed else 'wrote'} {out}   (--out PATH writes elsewhere)")
    print(f'next: python tokenizer.py show "Once upon a time" --tokenizer {out}')
    print(f"      python train_gpt2.py --tokenizer {out}")


def _texts(documents, limit, problems):
    """Iterables of Pieces -> their texts, `limit` characters of them. Counts the problems."""
    for piece in itertools.chain.from_iterable(documents):
        problems.update([piece.problem] if piece.problem else [])
        yield piece.text[:limit]
        limit -= len(piece.text)
        if limit <= 0:
            return


def _replaces_tokenizer(out):
    """Whether `out` is an older tokenizer, which may be replaced. Raises UserError if it is another file, or is called
    as the copies are that runs, shards and models keep of theirs."""
    hint = "nothing was changed; choose another name with --name or --out"
    if not out.exists():
        return False
    require(out.name not in ("tokenizer.json", "bpe.json"), f"{out} is there already, maybe that of a run", hint)
    try:
        return bool(load_tokenizer(out))
    except UserError as e:
        raise UserError(f"{out} exists and is not a tokenizer of ours", hint) from e


def print_merge(merge):
    """A line of a table: the first 20 merges, then fewer and fewer (30, 40 ... 100, 200 ... 1,000, 2,000 ...)."""
    number = merge.rank - 255
    if number == 1:
        print(f"{merge.n_bytes:,} bytes of text. The pair that stands most often becomes a token, again and again:\n")
        print(f"{'merge':>6} {'pair':>22} {'new token':>14} {'times':>9} {'tokens left':>12} {'bytes/token':>12}")
    if number <= 20 or number % 10 ** (len(str(number)) - 1) == 0:
        left, right, new = (f"'{visible(token)}'" for token in (merge.left, merge.right, merge.left + merge.right))
        print(f"{number:>6,} {f'{left} + {right}':>22} {new:>14} {merge.count:>9,} {merge.tokens:>12,} "
              f"{merge.n_bytes / merge.tokens:>12.2f}")


def command_show(args):
    enc = load_tokenizer(label := args.tokenizer or newest_tokenizer())
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if args.text == "-" else args.text
    except (AttributeError, UnicodeDecodeError) as e:  # AttributeError: standard input is closed
        raise UserError("standard input is not text", "give UTF-8 text") from e
    require(text, "there is no text to show", 'for example: python tokenizer.py show "Once upon a time"')
    ids = encode(enc, text)
    tokens = [enc.decode_single_token_bytes(token_id) for token_id in ids]
    n_bytes = sum(map(len, tokens))
    print(f"{label}: {enc.n_vocab:,} tokens")
    for step in encode_with_steps(enc, text) if args.steps else []:
        print("   " + "  ->  ".join("|".join(map(visible, stage)) for stage in step.stages))
    print("|".join(map(visible, tokens)))
    print("ids: " + " ".join(map(str, ids)))
    print(f"{len(ids):,} tokens, {n_bytes:,} bytes, {n_bytes / len(ids):.2f} bytes per token")


def command_eval(args):
    label = args.tokenizer or newest_tokenizer()
    encodings = {label: load_tokenizer(label)}
    here = not _gpt2_missing()  # GPT-2's is only to compare: no reason to reach for the network
    encodings |= {"gpt2": load_tokenizer("gpt2")} if here else {}
    documents = split_documents(read_text(args.file))
    n_bytes = sum(len(document.encode("utf-8")) for document in documents)
    print(f"{args.file}: {len(documents):,} documents, {n_bytes:,} bytes without markers\n")
    print(f"{'tokenizer':<32} {'vocabulary':>10} {'in use':>8} {'tokens':>12} {'bytes/token':>12}")
    for name, enc in encodings.items():
        ids = encode_documents(enc, documents)
        n_tokens, used = len(ids) - len(documents), len(set(ids)) - 1  # without the markers
        print(f"{name:<32} {enc.n_vocab:>10,} {used:>8,} {n_tokens:>12,} {n_bytes / n_tokens:>12.2f}")
    if not here:
        print("\ngpt2 is not on this machine; `python tokenizer.py show hello --tokenizer gpt2` fetches it")


def newest_tokenizer():
    """The path of that of the newest run under log/, or gpt2."""
    runs = sorted(Path("log").glob("*/tokenizer.json"), key=os.path.getmtime)
    return str(runs[-1]) if runs else "gpt2"


def visible(token):
    """Token (bytes) -> str that prints: line ends, control characters and parts of characters are escaped."""
    text = token.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes as UserError: every script prints them the same way."""

    def parse_known_args(self, args=None, namespace=None):
        """Unknown options are the mistake of the command that got them, which knows those that it has."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        for name, value in vars(found).items():
            require(value not in ("", [""]), f"--{name} is empty", "give it a value, or leave it out")
        return found, unknown

    def error(self, message):
        unknown = [word.split("=")[0] for word in message.split() if message.startswith("unrecognized")]
        near = [n for word in unknown for n in difflib.get_close_matches(word, self._option_string_actions, n=1)]
        raise UserError(message, f"did you mean {near[0]}?" if near else f"python {self.prog} --help lists all options")


def add_source_options(parser, files, version):
    """The options that say which documents to read. files, version: what --files and --version do."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--files", nargs="+", metavar="FILE", help=files)
    source.add_argument("--version", choices=VERSIONS, help=version)
    source.add_argument("--dataset", metavar="NAME", help="any data set of the Hub that has a column of text")
    parser.add_argument("--config", help="which configuration of --dataset")
    parser.add_argument("--split", help="which split of --dataset (default: train)")
    parser.add_argument("--revision", help="commit, tag or branch of --dataset (default: the newest commit)")
    parser.add_argument("--text_column", default="text", help="the column with the documents (default: text)")


def hub_options(args):
    """What these options choose on the Hub, as HubDocuments takes it; None if they choose files."""
    given = [name for name in ("config", "revision", "split") if getattr(args, name)]
    require(args.dataset or not given, f"--{''.join(given[:1])} goes with --dataset only", "leave it out")
    chosen = VERSIONS.get(args.version, (args.dataset, args.config, args.revision))
    return (*chosen, args.split or "train", args.text_column) if args.version or args.dataset else None


def make_parser():
    parser = Parser("tokenizer.py", description=__doc__.strip().split("\n\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="{train,show,eval}")
    train = commands.add_parser("train", help="learn a vocabulary and write it to NAME.json", allow_abbrev=False)
    kinds = f"text with {EOT} between documents, .jsonl or .parquet"
    add_source_options(train, f"{kinds} (default: input.txt)", "FineWeb-Edu or FineWeb, from the Hub")
    train.add_argument("--samples", type=int, default=10**8, help="characters to take of a stream (default: 100000000)")
    train.add_argument("--vocab_size", type=int, default=2048, help=f"ids, {MIN_VOCAB} to {MAX_VOCAB} (default: 2048)")
    how = "how text is cut into words; unicode keeps combining marks with their letters (default: gpt2)"
    train.add_argument("--pattern", choices=KNOWN_PATTERNS, default="gpt2", help=how)
    train.add_argument("--name", help="name of the tokenizer (default: that of the first file or of the data set)")
    train.add_argument("--out", metavar="PATH", help="file or folder to write to (default: NAME.json)")
    train.add_argument("--demo", action="store_true", help="show merges as they are learned")
    train.set_defaults(run=command_train)
    show = commands.add_parser("show", help="show the tokens of a text, and their ids", allow_abbrev=False)
    show.add_argument("text", metavar="TEXT", help="the text, or - for standard input")
    show.add_argument("--steps", action="store_true", help="also show each word's merges")
    show.set_defaults(run=command_show)
    evaluate = commands.add_parser("eval", help="bytes per token on a file, beside GPT-2's", allow_abbrev=False)
    evaluate.add_argument("file", metavar="FILE", help=kinds)
    evaluate.set_defaults(run=command_eval)
    which = "gpt2, a file or a run's folder (default: newest under log/, else gpt2)"
    for command in (show, evaluate):
        command.add_argument("--tokenizer", metavar="NAME_OR_PATH", help=which)
    return parser


def run(argv):
    args = make_parser().parse_args(argv)
    args.run(args)


def run_main(function, argv=None, interrupted="interrupted"):
    """Calls function(argv) and returns the exit code: 0, or after a user's mistake, told in two lines, 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what the terminal cannot write is escaped
    try:
        function(argv)
        print(end="", flush=True)  # a closed pipe shows here, and not when Python ends
        return 0
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr, flush=True)
        return 130  # what a shell reports for Ctrl-C
    except BrokenPipeError:  # the reader of our output has gone (| head): what Python still writes goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:
        text, hint = " ".join(str(e).split())[:600], getattr(e, "hint", None)
        if isinstance(e, ModuleNotFoundError):
            hint = f"pip install {e.name}"
        elif isinstance(e, OSError):
            hint = "is it there, may you use it, and has the disk room?"
        if not hint:
            raise
        print(f"error: {text}\nhint: {hint}", file=sys.stderr, flush=True)
        return 2


def main(argv=None):
    return run_main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
