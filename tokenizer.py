"""
Byte-level BPE, the tokenizer of GPT-2: train one, look at its work, load OpenAI's own.

A model sees numbers, not letters. Byte-pair encoding makes the numbers: start with the 256 bytes, so that any text at
all can be written; find the pair of neighbours that stands most often in the text; give it the next free id; replace
it everywhere; repeat. Frequent words end up as one token, rare ones as a few pieces, and nothing is ever unknown.
GPT-2's 50,257 tokens are 256 bytes + 50,000 such merges + one special token that marks the start of a document.

    python tokenizer.py train --files input.txt --vocab_size 1024 --name tales --demo   # 1 s, writes tales.json
    python tokenizer.py train --fineweb --samples 100000000 --vocab_size 16384          # needs the network
    python tokenizer.py show "Once upon a time" --tokenizer tales.json --steps
    python tokenizer.py eval input.txt --tokenizer tales.json                           # bytes per token

Map:  1 names   2 training   3 an encoding and its words   4 files   5 GPT-2's own   6 text to learn from   7 commands
Training is plain Python; encoding is tiktoken's, in Rust, so our tokenizers and GPT-2's are the same kind of object.

References: Sennrich et al. 2016 (BPE for words), Radford et al. 2019 (GPT-2: bytes, and the split before the merges).
"""
import argparse
import base64
import errno
import glob
import hashlib
import heapq
import itertools
import json
import multiprocessing
import os
import re
import sys
import time
from collections import Counter, defaultdict, deque
from pathlib import Path
from typing import NamedTuple

# tiktoken and regex are imported where they are used: the worker processes that count words need only one of them.

# ----------------------------------------------------------------------------------------------------------------------
# 1. Names
# ----------------------------------------------------------------------------------------------------------------------

EOT = "<|endoftext|>"   # the special token between documents; always the last id

# GPT-2 first cuts text into words, and no merge crosses a cut: otherwise "dog." "dog!" "dog?" would all become tokens.
# From left to right: contractions; letters, digits or other marks, each with the one space before them; white space,
# of which the last character is left for the word that follows. `++` never gives back what it took, so that no text
# makes the match slow. ORIGINAL_PATTERN is how OpenAI first wrote it; both cut every text at the same places.
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
ORIGINAL_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# A pattern is a program, and a hostile one can run for years: a tokenizer file may name only these (spelling -> the
# one we use). Add yours here to experiment.
KNOWN_PATTERNS = {SPLIT_PATTERN: SPLIT_PATTERN, ORIGINAL_PATTERN: SPLIT_PATTERN}

MIN_VOCAB = 256 + 1     # all bytes and EOT: no merges
MAX_VOCAB = 2**16       # token files hold uint16

FILE_FORMAT = 1
MAX_FILE_BYTES = 64 * 2**20     # 65,536 tokens of sane length take 2 MB; more is no tokenizer

FINEWEB = {
    "path": "HuggingFaceFW/fineweb-edu", "name": "sample-10BT", "split": "train",
    "revision": "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",   # pinned: the data set has changed more than once
}


class DataError(ValueError):
    """A user's mistake: `str(error)` says what is wrong, `error.hint` what to do about it."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.hint = hint


# ----------------------------------------------------------------------------------------------------------------------
# 2. Training: count the words once, then merge, touching only the words that hold the pair
# ----------------------------------------------------------------------------------------------------------------------

CHUNK_CHARS = 2**20     # text handed to one worker at a time
PARALLEL_CHUNKS = 4     # with fewer chunks than this (4 MB), starting processes costs more than it saves


class Merge(NamedTuple):
    """One step of training, as `on_merge` receives it."""
    rank: int       # the id of the new token
    left: bytes
    right: bytes    # the new token is left + right
    count: int      # how often the pair stood in the text ("aaa" holds "aa" twice)
    tokens: int     # length of the whole text in tokens, after this merge
    n_bytes: int    # length of the whole text in bytes, so n_bytes / tokens is the compression so far


def split_documents(text):
    """Text -> list of its documents, the pieces between `<|endoftext|>` markers.

    The line break right after a marker belongs to the marker. Pieces of nothing but white space are dropped.
    """
    return [piece for piece in re.split(re.escape(EOT) + r"(?:\r?\n)?", text) if piece.strip()]


def train_bpe(texts, vocab_size, *, pattern=SPLIT_PATTERN, nprocs=None, on_merge=None):
    """Learn a byte-level BPE vocabulary.

    texts       iterable of str, or one str; read once, so a stream will do; `<|endoftext|>` separates documents
    vocab_size  ids in all, 257 to 65,536: 256 bytes + merges + 1 for `<|endoftext|>`
    pattern     regular expression that cuts text into words
    nprocs      processes that count words; None takes the cores there are if the text is longer than 4 MB
    on_merge    called with a `Merge` after each merge

    Returns dict bytes -> rank with vocab_size - 1 entries: the bytes 0 to 255 by value, then the merges in the order
    they were learned. Equal counts: the pair whose left part has the smaller rank wins, then the smaller right rank.
    So the result depends on how often each word stands in the text, and on nothing else: not on the order of the
    texts, the number of processes or Python's hash seed.

    Raises DataError if vocab_size is out of range, if there is no text, or if the text runs out of pairs first.
    """
    if not isinstance(vocab_size, int) or not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        raise DataError(f"the vocabulary size must be between {MIN_VOCAB} and {MAX_VOCAB:,}, not {vocab_size}",
                        "256 bytes and <|endoftext|> are always in it; ids must fit in 16 bits")
    if isinstance(texts, str):
        texts = [texts]
    word_counts = count_words(texts, pattern, nprocs)
    if not word_counts:
        raise DataError("there is no text to train on", "give text that is more than white space and markers")
    tokens = [bytes([value]) for value in range(256)]
    tokens += learn_merges(word_counts, vocab_size - MIN_VOCAB, on_merge)
    return {token: rank for rank, token in enumerate(tokens)}


def count_words(texts, pattern=SPLIT_PATTERN, nprocs=None):
    """Iterable of str -> Counter {word: how often}. See `train_bpe` for the arguments."""
    chunks = _chunks(texts, pattern)
    head = list(itertools.islice(chunks, PARALLEL_CHUNKS))
    chunks = itertools.chain(head, chunks)
    nprocs = min(_cores(), 8) if nprocs is None else nprocs
    if nprocs > 1 and len(head) == PARALLEL_CHUNKS:
        return _count_in_processes(chunks, pattern, nprocs)
    counts = Counter()
    for chunk in chunks:
        counts.update(_count_chunk(chunk, pattern))
    return counts


def _cores():
    """Cores that this process may use (a container or `taskset` may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(texts, pattern):
    """Documents -> lists of documents of about CHUNK_CHARS characters, so that work comes in even portions."""
    chunk, size = [], 0
    for text in texts:
        for document in split_documents(text):
            for part in _cut(document, pattern):
                chunk.append(part)
                size += len(part)
                if size >= CHUNK_CHARS:
                    yield chunk
                    chunk, size = [], 0
    if chunk:
        yield chunk


def _cut(document, pattern):
    """A very long document in parts, cut only where a word ends anyway: GPT-2's pattern never joins a visible
    character to the white space after it, nor looks back. Of other patterns we do not know that, so no cut."""
    start = 0
    if pattern in KNOWN_PATTERNS:
        word_end = re.compile(r"\S(?=[ \n])")
        while match := word_end.search(document, start + CHUNK_CHARS):
            yield document[start:match.end()]
            start = match.end()
    yield document[start:]


def _count_chunk(chunk, pattern):
    """List of str -> Counter of its words. Runs in a worker process."""
    import regex  # unlike the standard library's re it knows \p{L}
    try:
        words = regex.compile(pattern)
    except regex.error as error:
        raise DataError(f"the split pattern is not a regular expression: {error}") from error
    counts = Counter()
    for document in chunk:
        counts.update(words.findall(_well_formed(document)))
    counts.pop("", None)    # a pattern that can match nothing does
    return counts


def _well_formed(text):
    """Lone halves of surrogate pairs cannot be written as UTF-8: replace them, as tiktoken does."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count_in_processes(chunks, pattern, nprocs):
    """`_count_chunk` over all chunks in `nprocs` processes, few at a time, so that a long stream needs no memory.

    Processes are spawned, not forked: the only way on Windows, and the safe one where threads run (PyTorch's).
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    counts = Counter()
    waiting = deque()   # (chunk, future), oldest first
    try:
        with ProcessPoolExecutor(nprocs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for chunk in chunks:
                waiting.append((chunk, None))   # before submit, which may raise: no chunk is ever forgotten
                waiting[-1] = (chunk, pool.submit(_count_chunk, chunk, pattern))
                if len(waiting) > 2 * nprocs:
                    counts.update(waiting[0][1].result())
                    waiting.popleft()
            while waiting:
                counts.update(waiting[0][1].result())
                waiting.popleft()
    except BrokenProcessPool:
        # Spawned processes read the main script again, which fails if it has no `if __name__ == "__main__"` or comes
        # from standard input. Slower is better than an error here.
        for chunk in itertools.chain([chunk for chunk, _ in waiting], chunks):
            counts.update(_count_chunk(chunk, pattern))
    return counts


def learn_merges(word_counts, n_merges, on_merge=None):
    """{word: how often} -> list of the n_merges new tokens (bytes), in the order learned.

    A word is kept as a str in which character number r stands for the token of rank r. Then "replace this pair by
    its new token, from left to right, without overlap" is `str.replace`, which runs in C, and a pair is a str of
    length two. After a merge only the counts right beside the new token change.

    Raises DataError when fewer merges are possible.
    """
    words = [word.encode("utf-8").decode("latin-1") for word in word_counts]   # latin-1: byte b <-> character b
    counts = list(word_counts.values())
    tokens = [bytes([value]) for value in range(256)]       # rank -> bytes
    n_bytes = n_tokens = sum(len(word) * count for word, count in zip(words, counts, strict=True))  # of the whole text

    pair_counts = defaultdict(int)      # pair -> how often in the text
    holders = defaultdict(list)         # pair -> indices of the words that held it when it was last added to
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
            raise DataError(f"the text has no more pairs to merge: {rank + 1:,} is the largest vocabulary it supports, "
                            f"not {256 + n_merges + 1:,}", f"use --vocab_size {rank + 1} or less, or more text")
        left, right, new = pair[0], pair[1], chr(rank)
        merge_count = pair_counts[pair]
        tokens.append(tokens[ord(left)] + tokens[ord(right)])
        born = set()    # pairs that this merge brings into being
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
                after = merged[at + 1:at + 2]
                if after and after != new:      # a new token after this one sees to the pair between them
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
    if not holders[pair] or holders[pair][-1] != index:     # a word is noted once, however often it holds the pair
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


# ----------------------------------------------------------------------------------------------------------------------
# 3. An encoding and its words
# ----------------------------------------------------------------------------------------------------------------------

class WordSteps(NamedTuple):
    """How one word is encoded."""
    word: str
    stages: list    # of lists of bytes: single bytes first, one merge more in each, the tokens last
    ids: list       # of int: the ids of stages[-1]


def make_encoding(ranks, name, pattern=SPLIT_PATTERN):
    """Ranks (dict bytes -> int, as `train_bpe` returns) -> tiktoken.Encoding, with `<|endoftext|>` as the last id.

    `encode_ordinary(text)` treats a `<|endoftext|>` in the text as ordinary text and never produces its id;
    `decode_bytes(encode_ordinary(text)) == text.encode()` for all text, since all 256 bytes are there.
    Raises DataError for ranks that are not 0, 1, 2 ... each once, or lack a byte, and for a broken pattern.
    """
    import tiktoken
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(f"the ranks of tokenizer {name!r} are not 0, 1, 2 ... each once")
    if missing := [value for value in range(256) if bytes([value]) not in ranks]:
        raise DataError(f"tokenizer {name!r} lacks {len(missing)} of the 256 bytes, the first is {missing[0]}")
    if not MIN_VOCAB <= len(ranks) + 1 <= MAX_VOCAB:
        raise DataError(f"tokenizer {name!r} has {len(ranks) + 1:,} tokens; at most {MAX_VOCAB:,} fit in 16 bits")
    try:
        return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=dict(ranks),
                                 special_tokens={EOT: len(ranks)}, explicit_n_vocab=len(ranks) + 1)
    except ValueError as error:
        raise DataError(f"the split pattern of tokenizer {name!r} is not valid: {error}") from error


def eot_id(enc):
    """The id of `<|endoftext|>`: the last one."""
    return enc.n_vocab - 1


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
    no two neighbours make a token. The ids of all words in a row equal `enc.encode_ordinary(text)`.
    """
    import regex
    ranks = enc._mergeable_ranks
    steps = []
    for word in regex.findall(enc._pat_str, _well_formed(text)):
        tokens = [bytes([value]) for value in word.encode("utf-8")]
        stages = [tokens]
        while pairs := [pair for pair in itertools.pairwise(tokens) if pair[0] + pair[1] in ranks]:
            left, right = min(pairs, key=lambda pair: ranks[pair[0] + pair[1]])
            tokens = merge_pair(tokens, left, right)
            stages.append(tokens)
        steps.append(WordSteps(word, stages, [ranks[token] for token in tokens]))
    return steps


# ----------------------------------------------------------------------------------------------------------------------
# 4. Files: JSON with the pattern, the tokens in base64 in the order of their ids, and the special token
# ----------------------------------------------------------------------------------------------------------------------

def fingerprint(enc):
    """sha256 (hex) of all that decides how text is encoded: pattern, ranks, special token. The name does not count."""
    content = {"pattern": KNOWN_PATTERNS.get(enc._pat_str, enc._pat_str), "tokens": _base64_tokens(enc),
               "special": enc._special_tokens}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def _base64_tokens(enc):
    """The tokens without the special one, in the order of their ranks."""
    by_rank = sorted(enc._mergeable_ranks, key=enc._mergeable_ranks.get)
    return [base64.b64encode(token).decode("ascii") for token in by_rank]


def to_json(enc):
    """An encoding -> the content (bytes) of its file.

    Raises DataError if `enc` is no tokenizer that `load_tokenizer` would take: `<|endoftext|>` as the last and only
    special token, and a pattern it knows.
    """
    content = {"format": FILE_FORMAT, "name": enc.name, "sha256": fingerprint(enc),
               "pattern": KNOWN_PATTERNS.get(enc._pat_str, enc._pat_str), "special": enc._special_tokens,
               "tokens": _base64_tokens(enc)}
    if problem := _problem(content):
        raise DataError(f"tokenizer {enc.name!r} could not be loaded again: {problem}", "change that, and save again")
    return json.dumps(content, indent=0).encode("ascii") + b"\n"


def save_tokenizer(enc, path):
    """Write `enc` to `path` (or `path`/tokenizer.json if that is a directory) and return the path.

    The file appears whole or not at all. Raises DataError if it cannot be written, or as `to_json` does.
    """
    path = Path(path)
    path = path / "tokenizer.json" if os.path.isdir(path) else path
    _write_whole(path, to_json(enc))
    return path


def _write_whole(path, data):
    """Write to a temporary name beside `path`, then rename: a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}",
                        "choose a folder you may write to, with space left on its disk") from error


def load_tokenizer(name_or_path):
    """"gpt2", or the path of a file that `save_tokenizer` wrote, or of a directory with a tokenizer.json in it.

    Returns a tiktoken.Encoding (n_vocab 50,257 for gpt2). A file is data and nothing in it is run.
    Raises DataError if there is no such file, or it is damaged, or not a tokenizer.
    """
    if name_or_path == "gpt2":
        return _load_gpt2()
    path = Path(name_or_path)
    path = path / "tokenizer.json" if os.path.isdir(path) else path
    content = _read_json(path)
    try:
        if problem := _problem(content):
            raise DataError(problem)
        ranks = {base64.b64decode(token, validate=True): rank for rank, token in enumerate(content["tokens"])}
        if len(ranks) != len(content["tokens"]) or b"" in ranks:
            raise DataError("a token is empty or listed twice")
        enc = make_encoding(ranks, content["name"], KNOWN_PATTERNS[content["pattern"]])
        if content["sha256"] != fingerprint(enc):
            raise DataError("its content does not match its sha256")
    except (TypeError, ValueError) as error:      # DataError is a ValueError, and so is bad base64
        raise DataError(f"{path} is not a whole tokenizer file: {error}",
                        "it was damaged or edited; copy it again, or train it again with `python tokenizer.py train`"
                        ) from error
    return enc


def _problem(content):
    """What is wrong with a tokenizer file, in words, or None; all but the tokens themselves."""
    if missing := {"format", "name", "sha256", "pattern", "special", "tokens"} - content.keys():
        return f"it has no {sorted(missing)[0]}"
    if content["format"] != FILE_FORMAT:
        return f"it has format {content['format']!r:.20}, and this program reads {FILE_FORMAT}"
    if not isinstance(content["name"], str) or not content["name"].isprintable():
        return "its name is not plain text"
    if content["pattern"] not in KNOWN_PATTERNS:
        return "its split pattern is not one of KNOWN_PATTERNS in tokenizer.py"
    if not isinstance(content["tokens"], list):
        return "its tokens are not a list"
    if content["special"] != {EOT: len(content["tokens"])}:
        return f"{EOT} is not its last and only special token"
    return None


def _read_json(path):
    """A small JSON file -> dict, or DataError."""
    hint = "give gpt2, a file written by `python tokenizer.py train`, or a run's folder such as log/tales"
    if not os.path.isfile(path):    # unlike Path.is_file, it answers False for a path it may not look at
        beside = path.with_name(path.name + ".json")
        raise DataError(f"there is no tokenizer at {path}",
                        f"did you mean {beside}?" if os.path.isfile(beside) else hint)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES / 2**20:.0f} MB")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", hint) from error
    except (RecursionError, ValueError) as error:   # not JSON, not UTF-8, or written to trouble the parser
        raise DataError(f"{path} is not a tokenizer: not JSON ({error})", hint) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a tokenizer: a JSON {type(content).__name__}, not an object", hint)
    return content


# ----------------------------------------------------------------------------------------------------------------------
# 5. GPT-2's own, through tiktoken
# ----------------------------------------------------------------------------------------------------------------------

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = {  # the name in tiktoken's cache, which is the sha1 of the address -> (file, sha256 of its content)
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee":
        ("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6":
        ("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
}
TIMEOUT_S = 10      # of silence, before a connection counts as lost


def _load_gpt2():
    """tiktoken's "gpt2", after seeing to it that its two files are in the cache.

    tiktoken would fetch them itself, but without any time limit: behind a firewall it would hang.
    """
    import requests  # tiktoken needs it too
    import tiktoken
    cache = _tiktoken_cache()
    for cache_name in _gpt2_missing():
        file, sha256 = GPT2_FILES[cache_name]
        try:
            response = requests.get(GPT2_URL + file, timeout=TIMEOUT_S)
            response.raise_for_status()
        except requests.RequestException as error:
            raise DataError(f"GPT-2's tokenizer is not on this machine, and {file} could not be fetched from "
                            f"{GPT2_URL} ({type(error).__name__})", _offline_hint(cache)) from error
        if hashlib.sha256(response.content).hexdigest() != sha256:
            raise DataError(f"what came from {GPT2_URL + file} is not GPT-2's {file} (a proxy's page, perhaps)",
                            _offline_hint(cache))
        _write_whole(cache / cache_name, response.content)
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:      # whatever tiktoken raises, the user needs to know how to go on
        raise DataError(f"tiktoken could not load gpt2: {error}", _offline_hint(cache)) from error


def _tiktoken_cache():
    """The folder where tiktoken looks for its files."""
    import tempfile
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":
        raise DataError("TIKTOKEN_CACHE_DIR is set to nothing, which makes tiktoken download at every start",
                        "unset it, or set it to a folder")
    return Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"


def _gpt2_missing():
    """Cache names of GPT-2's files that are not in the cache, or damaged there."""
    paths = {cache_name: _tiktoken_cache() / cache_name for cache_name in GPT2_FILES}
    return [cache_name for cache_name, path in paths.items()
            if not os.path.isfile(path) or hashlib.sha256(path.read_bytes()).hexdigest() != GPT2_FILES[cache_name][1]]


def _offline_hint(cache):
    return (f"to work offline, copy the two files {' and '.join(GPT2_FILES)} from a machine where "
            f"`python tokenizer.py show hello --tokenizer gpt2` has worked (there they are in the folder that "
            f"TIKTOKEN_CACHE_DIR names, or else in data-gym-cache in the temporary folder) to {cache}, or anywhere, "
            f"with TIKTOKEN_CACHE_DIR set to that folder; a tokenizer of your own needs no download: "
            f"`python tokenizer.py train --files input.txt`")


def find_tokenizer(model_path):
    """The tokenizer that belongs to a model: in its folder, or beside its file, bpe.json (of an export) or
    tokenizer.json (of a run; transformers has another format of that name, which is passed over); else GPT-2's."""
    path = Path(model_path)
    for place in (path, path.parent):
        for file in (place / "bpe.json", place / "tokenizer.json"):
            theirs = file.name == "tokenizer.json" and (place / "config.json").exists()    # transformers' own format
            if path.exists() and file.is_file() and not theirs:
                return load_tokenizer(file)
    return load_tokenizer("gpt2")


def for_shards(folder, asked, sha256, vocab_size=None):
    """The tokenizer of a folder of shards, or None where none is at hand: to train on them, none is needed.

    asked       a name or path, or "auto": the folder's own, or else GPT-2's if it is in the cache (it is not fetched)
    sha256      fingerprint of the tokenizer that made the shards, or None if that is not known
    vocab_size  its size, or None if that is not known

    Raises DataError if the one asked for cannot be loaded, or is not the one that made them.
    """
    if asked != "auto":
        enc = load_tokenizer(asked)
        if sha256 not in (None, fingerprint(enc)):
            raise DataError(f"the shards in {folder} were made with another tokenizer than {enc.name}",
                            "leave out --tokenizer, or make the shards again with it: python fineweb.py --tokenizer")
        return enc
    if (Path(folder) / "tokenizer.json").exists():
        enc = load_tokenizer(folder)
        if sha256 not in (None, fingerprint(enc)):
            raise DataError(f"the shards in {folder} were not made with the tokenizer.json beside them",
                            "restore the file that was there, or make the shards again: python fineweb.py")
        return enc
    enc = None if _gpt2_missing() else load_tokenizer("gpt2")
    return enc if enc and sha256 in (None, fingerprint(enc)) and vocab_size in (None, enc.n_vocab) else None


# ----------------------------------------------------------------------------------------------------------------------
# 6. Text to learn from
# ----------------------------------------------------------------------------------------------------------------------

class Corpus(NamedTuple):
    """A text as the trainer takes it."""
    encoding: object    # tiktoken.Encoding
    train: list         # ids, each document after `<|endoftext|>`
    val: list           # the same for the part held out
    val_bytes: int      # UTF-8 bytes of the documents held out, without markers


def read_corpus(path, asked="auto", own=None, vocab_size=1024):
    """A text file -> Corpus: its last tenth is held out, from the end of a document (or else of a line) on.

    asked       the tokenizer: a name or path, or "auto": that of the model at `own`, or else a new one, trained on the
                text that is not held out, with vocab_size ids

    Raises DataError if the file cannot be used, or the tokenizer not be loaded or trained.
    """
    train, val = split_corpus(read_text(path))
    if not train or not val:
        raise DataError(f"{path} is too short to learn from", "give some ten thousand bytes of text")
    if asked != "auto":
        enc = load_tokenizer(asked)
    else:
        enc = find_tokenizer(own) if own else make_encoding(train_bpe(train, vocab_size), Path(path).stem)
    val_bytes = sum(len(document.encode("utf-8")) for document in val)
    return Corpus(enc, encode_documents(enc, train), encode_documents(enc, val), val_bytes)


def split_corpus(text):
    """Text -> (documents to learn from, documents held out)."""
    raw = text.encode("utf-8")
    cut = len(raw[:len(raw) * 9 // 10].decode("utf-8", errors="ignore"))
    for mark in (EOT + "\n", "\n"):
        if (found := text.find(mark, cut)) >= 0:
            cut = found + len(mark)
            break
    return split_documents(text[:cut]), split_documents(text[cut:])


def encode_documents(enc, documents):
    """Documents -> ids in one list, each document after `<|endoftext|>`."""
    ids = []
    for document in documents:
        ids += [eot_id(enc), *enc.encode_ordinary(document)]
    return ids


# ----------------------------------------------------------------------------------------------------------------------
# 7. Commands
# ----------------------------------------------------------------------------------------------------------------------

def read_text(path):
    """A UTF-8 text file -> str, with line ends as "\\n"; DataError if it is missing, empty or not text."""
    path = Path(path)
    if not os.path.isfile(path):
        raise DataError(f"there is no file {path}", "give the path of a text file" if not os.path.isdir(path) else
                        f"that is a folder; give the files in it: {path / '*.txt'}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start:,}",
                        "save it as UTF-8 text in an editor, or choose another file") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", "choose a file that you may read") from error
    if "\0" in text:
        raise DataError(f"{path} holds zero bytes: it is not text", "choose a text file")
    if not split_documents(text):
        raise DataError(f"{path} has no text in it", "choose a file with more than white space and markers")
    return text


def fineweb_texts(n_chars):
    """The documents of FineWeb-Edu as a stream, the first `n_chars` characters of it. Needs the network."""
    try:
        import requests
        from datasets import load_dataset
    except ImportError as error:
        raise DataError("--fineweb needs the package datasets", "pip install -r requirements.txt") from error
    hint = "check the connection to huggingface.co, or train on your own text: --files my.txt"
    try:
        # Any answer will do. Without a network this fails at once; datasets would retry for half a minute.
        requests.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=TIMEOUT_S)
        seen = 0
        for row in load_dataset(**FINEWEB, streaming=True):
            yield row["text"][:n_chars - seen]
            seen += len(row["text"])
            if seen >= n_chars:
                return
    except Exception as error:      # datasets raises many kinds; a fault halfway must not pass for a short stream
        raise DataError(f"cannot stream {FINEWEB['path']} ({type(error).__name__}: {str(error)[:99]})", hint) from error


def command_train(args):
    if args.samples < 1 or (args.nprocs is not None and args.nprocs < 1):
        raise DataError("--samples and --nprocs must be at least 1", "leave them out for the defaults")
    if args.name and not re.fullmatch(r"[\w.-]+", args.name):
        raise DataError(f"--name {args.name!r} must be letters, digits, dots, dashes or underscores",
                        "the file goes to another folder with --out PATH")
    files = list(_expand(args.files))
    name = args.name or ("fineweb" if args.fineweb else re.sub(r"[^\w.-]", "_", Path(files[0]).stem))
    out = Path(args.out or f"{name}.json")
    out = out / "tokenizer.json" if os.path.isdir(out) else out
    _refuse_to_overwrite(out)

    texts = fineweb_texts(args.samples) if args.fineweb else map(read_text, files)
    first = next(texts, "")
    texts = itertools.chain([first], texts)
    watch = Demo(args.sentence or first_sentence(first)) if args.demo else Progress()
    started = time.perf_counter()
    ranks = train_bpe(texts, args.vocab_size, nprocs=args.nprocs, on_merge=watch)
    seconds = time.perf_counter() - started
    watch.finish()
    enc = make_encoding(ranks, name)
    existed = out.exists()
    save_tokenizer(enc, out)
    say(f"{enc.n_vocab:,} tokens = 256 bytes + {len(ranks) - 256:,} merges + {EOT}, learned in {seconds:.1f} s")
    say(f"{'replaced' if existed else 'wrote'} {out}   (--out PATH writes elsewhere)")
    say(f"next: python tokenizer.py show \"Once upon a time\" --tokenizer {out}")
    say(f"      python train_gpt2.py --tokenizer {out}")


def _expand(names):
    """File names with * and ? -> the files they match (on Windows the shell does not do it)."""
    for name in names:
        yield from sorted(glob.glob(name)) or [name]


def _refuse_to_overwrite(out):
    """An older tokenizer may be replaced (each run keeps its own copy); any other file may not."""
    if out.exists():
        try:
            load_tokenizer(out)
        except DataError as error:
            raise DataError(f"{out} exists and is not a tokenizer of ours; nothing was changed",
                            "choose another name with --name or --out") from error


def first_sentence(text):
    """Something from the text to watch while it is being merged: the start of its first longer line."""
    lines = [line.strip() for line in text[:10_000].splitlines() if line.strip()]
    line = next((line for line in lines if len(line.split()) >= 6), "".join(lines[:1]))
    return line if len(line) <= 60 else line[:60].rsplit(" ", 1)[0]


class Progress:
    """A line on standard error every few seconds, for trainings that take that long."""

    def __init__(self):
        self.last = time.perf_counter()

    def __call__(self, merge):
        if time.perf_counter() - self.last > 3:
            self.last = time.perf_counter()
            print(f"merge {merge.rank - 255:,}: {visible(merge.left + merge.right)} stood {merge.count:,} times",
                  file=sys.stderr)

    def finish(self):
        pass


class Demo:
    """Shows merges as they are learned: the pair, how often it stood in the text, how long the text is afterwards,
    and what becomes of one sentence. All of the first 20 merges, then fewer and fewer, and the last."""

    def __init__(self, sentence):
        import regex
        self.words = [[bytes([value]) for value in word.encode("utf-8")]
                      for word in regex.findall(SPLIT_PATTERN, _well_formed(sentence))]
        self.shown_words = self.last = None
        self.silent = True      # the line of the last merge was not shown

    def __call__(self, merge):
        if self.last is None:
            self._start(merge)
        self.words = [merge_pair(word, merge.left, merge.right) for word in self.words]
        self.last, number = merge, merge.rank - 255
        # 1 to 20, then 30, 40 ... 100, 200 ... 1,000, 2,000 ...
        self.silent = number > 20 and number % 10 ** (len(str(number)) - 1) != 0
        if not self.silent:
            self._show(merge)

    def _start(self, merge):
        say(f"{merge.n_bytes:,} bytes of text. The pair that stands most often becomes a token, again and again:\n")
        say(f"{'merge':>6} {'pair':>22} {'new token':>14} {'times':>9} {'tokens left':>12} {'bytes/token':>12}")
        self._show_sentence()

    def _show(self, merge):
        pair = f"{quoted(merge.left)} + {quoted(merge.right)}"
        say(f"{merge.rank - 255:>6,} {pair:>22} {quoted(merge.left + merge.right):>14} {merge.count:>9,} "
            f"{merge.tokens:>12,} {merge.n_bytes / merge.tokens:>12.2f}")
        if self.words != self.shown_words:
            self._show_sentence()

    def _show_sentence(self):
        tokens = list(itertools.chain.from_iterable(self.words))
        say(f"{'':>6} {coloured(tokens)}   ({len(tokens)} tokens)")
        self.shown_words = self.words

    def finish(self):
        if self.last and self.silent:
            self._show(self.last)
        say("")


def command_show(args):
    enc, label = load_or_default(args.tokenizer)
    try:
        text = sys.stdin.read() if args.text == "-" else args.text
    except UnicodeDecodeError as error:
        raise DataError("standard input is not text", "give UTF-8 text") from error
    if not text:
        raise DataError("there is no text to show", 'for example: python tokenizer.py show "Once upon a time"')
    ids = enc.encode_ordinary(text)
    tokens = [enc.decode_single_token_bytes(token_id) for token_id in ids]
    n_bytes = sum(map(len, tokens))
    say(f"{label}: {enc.n_vocab:,} tokens")
    if args.steps:
        for step in encode_with_steps(enc, text):
            say("   " + "  ->  ".join(coloured(stage) for stage in step.stages))
    say(coloured(tokens))
    say("ids: " + " ".join(map(str, ids)))
    say(f"{len(ids):,} tokens, {n_bytes:,} bytes, {n_bytes / len(ids):.2f} bytes per token")


def command_eval(args):
    enc, label = load_or_default(args.tokenizer)
    documents = split_documents(read_text(args.file))
    n_bytes = sum(len(document.encode("utf-8")) for document in documents)
    say(f"{args.file}: {len(documents):,} document{'s' * (len(documents) != 1)}, {n_bytes:,} bytes without markers\n")
    say(f"{'tokenizer':<32} {'vocabulary':>10} {'in use':>8} {'tokens':>12} {'bytes/token':>12}")
    rows = [(label, enc)]
    note = ""
    if label != "gpt2":
        if _gpt2_missing():     # only to compare: no reason to reach for the network
            note = "\ngpt2 is not on this machine; `python tokenizer.py show hello --tokenizer gpt2` fetches it"
        else:
            rows.append(("gpt2", load_tokenizer("gpt2")))
    for label, enc in rows:
        used, n_tokens = set(), 0
        for document in documents:
            ids = enc.encode_ordinary(document)
            used.update(ids)
            n_tokens += len(ids)
        say(f"{label:<32} {enc.n_vocab:>10,} {len(used):>8,} {n_tokens:>12,} {n_bytes / n_tokens:>12.2f}")
    if note:
        say(note)


def load_or_default(path):
    """(encoding, what to call it): the one asked for, or that of the newest run under log/, or GPT-2's."""
    if path is None:
        runs = sorted(Path("log").glob("*/tokenizer.json"), key=lambda run: run.stat().st_mtime)
        path = str(runs[-1]) if runs else "gpt2"
    return load_tokenizer(path), str(path)


def visible(token):
    """Token (bytes) -> str that prints: line ends, control characters and parts of characters are escaped."""
    text = token.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def quoted(token):
    return f"'{visible(token)}'"


def coloured(tokens):
    """Tokens (list of bytes) -> one line: each on its own background on a terminal, elsewhere with | between them."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return "|".join(map(visible, tokens))
    backgrounds = itertools.cycle((153, 223, 157, 225, 229))    # light blue, orange, green, pink, yellow of 256 colours
    return "".join(f"\x1b[30;48;5;{next(backgrounds)}m{visible(token)}\x1b[0m" for token in tokens)


def say(text):
    """Print; what the terminal cannot write (an old Windows code page) is escaped instead of raising."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


class Parser(argparse.ArgumentParser):
    """argparse, with its errors in our form."""

    def error(self, message):
        raise DataError(message, f"see `python {self.prog} --help`")


def build_parser():
    parser = Parser(prog="tokenizer.py", description="Byte-level BPE: train a tokenizer, look at it, measure it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,show,eval}")

    train = commands.add_parser("train", help="learn a vocabulary and write it to NAME.json")
    train.add_argument("--files", nargs="+", default=["input.txt"], metavar="FILE",
                       help="UTF-8 text files; <|endoftext|> separates documents (default: input.txt)")
    train.add_argument("--fineweb", action="store_true", help="train on a stream of FineWeb-Edu instead of files")
    train.add_argument("--samples", type=int, default=100_000_000, metavar="N",
                       help="with --fineweb: characters of text to read (default: 100,000,000)")
    train.add_argument("--vocab_size", type=int, default=1024, metavar="N",
                       help=f"ids in all, {MIN_VOCAB} to {MAX_VOCAB:,} (default: 1024)")
    train.add_argument("--name", help="name of the tokenizer (default: that of the first file)")
    train.add_argument("--out", metavar="PATH", help="file or folder to write to (default: NAME.json)")
    train.add_argument("--demo", action="store_true", help="show merges as they are learned")
    train.add_argument("--sentence", metavar="TEXT", help="with --demo: the sentence to watch (default: from the text)")
    train.add_argument("--nprocs", type=int, metavar="N", help="processes that count words (default: one per core)")
    train.set_defaults(run=command_train)

    show = commands.add_parser("show", help="show the tokens of a text, and their ids")
    show.add_argument("text", metavar="TEXT", help="the text, or - for standard input")
    show.add_argument("--steps", action="store_true", help="also show each word's merges")
    show.set_defaults(run=command_show)

    evaluate = commands.add_parser("eval", help="bytes per token on a text file, beside GPT-2's")
    evaluate.add_argument("file", metavar="FILE", help="UTF-8 text file")
    evaluate.set_defaults(run=command_eval)
    for command in (show, evaluate):
        command.add_argument("--tokenizer", metavar="NAME_OR_PATH",
                             help="gpt2, a file or a run's folder (default: newest under log/, else gpt2)")
    return parser


def main(argv=None):
    """Run one command; returns the exit code: 0, or 2 after a user's mistake, which is printed with a hint."""
    try:
        args = build_parser().parse_args(argv)
        args.run(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:     # the reader of our output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # or Python complains at exit
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
