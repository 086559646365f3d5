"""
Text into shards of tokens: FineWeb, FineWeb-Edu, or documents of your own.

Training reads tokens much faster than anything can make them, so they are made once and kept in files of equal size,
the shards. This script streams the documents (nothing is downloaded first), encodes them on all cores and writes

    DIR/<prefix>_val_000000.npy     the first shard is for validation
    DIR/<prefix>_train_000001.npy   uint16, one dimension; for each document: <|endoftext|>, then its tokens
    DIR/manifest.json               where every token came from, and the sha256 of every shard
    DIR/tokenizer.json              the tokenizer; DIR is all that training and sampling need
    DIR/lengths.png                 how long the documents are

    python fineweb.py                                         # FineWeb-Edu, 10 billion tokens, 20 GB
    python fineweb.py --num_shards 2                          # a first taste: 200 million tokens, 400 MB
    python fineweb.py --files "docs/*.jsonl" --tokenizer mine.json --shard_size 1000000 --out mine
    python fineweb.py --info mine                             # what is in a folder of shards

Stopped at any moment, the same command goes on where it was: a shard appears under its name only when it is whole, and
the manifest holds the place in the source where the next one starts. The result does not depend on how often it was
stopped, or on the number of threads, in a single byte.

Map:  1 sources   2 reading with patience   3 encoding   4 shards   5 the manifest   6 building   7 --info   8 commands

FineWeb and FineWeb-Edu: Penedo et al. 2024, arXiv 2406.17557.
"""

import argparse
import contextlib
import errno
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import NamedTuple

import numpy as np

import tokenizer
from tokenizer import EOT, DataError

# datasets, pyarrow, tqdm and matplotlib are imported where they are used.

# ----------------------------------------------------------------------------------------------------------------------
# 1. Sources: documents in a fixed order, in numbered files
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """A published data set. `tokens` are GPT-2's, rounded: for the disk check and the time left, nothing else."""

    dataset: str
    config: str
    revision: str  # a commit, not a branch: both data sets have changed since they were first published
    out: str
    tokens: float


EDU_REVISION = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"  # sample-10BT: 9,672,101 documents, 28.5 GB of parquet
FINEWEB_REVISION = "9bb295ddab0e05d785b879661af7260fed5140fc"  # tagged v1.4.0
VERSIONS = {
    "10Bedu": Version("HuggingFaceFW/fineweb-edu", "sample-10BT", EDU_REVISION, "edu_fineweb10B", 9.98e9),
    "100Bedu": Version("HuggingFaceFW/fineweb-edu", "sample-100BT", EDU_REVISION, "edu_fineweb100B", 100e9),
    "10B": Version("HuggingFaceFW/fineweb", "sample-10BT", FINEWEB_REVISION, "fineweb10B", 10.3e9),
    "100B": Version("HuggingFaceFW/fineweb", "sample-100BT", FINEWEB_REVISION, "fineweb100B", 103e9),
}

PART_CHARS = 2**20  # a longer document is encoded in parts, so that no document can stall or fill the memory
CHECK_ROWS = 100  # rows after which a file that gave nothing usable is refused
READ_CHARS, READ_ROWS = 2**20, 32  # read at a time
TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PACKED_SUFFIXES = (".gz", ".zst")


class Part(NamedTuple):
    """A document, or a stretch of a long one, or a row that cannot be used (then text is None)."""

    text: str | None
    starts: bool  # True at the start of a document: <|endoftext|> goes before it
    problem: str | None = None


# GPT-2's pattern ends a word wherever white space follows something else, and never looks back: encoding the two sides
# of such a place apart gives the tokens of the whole. (Letters and digits only: more places than we need.)
SAFE_CUT = re.compile(r"[A-Za-z0-9](?=[ \n])")
MARKER = re.compile(re.escape(EOT) + r"\n?")  # as tokenizer.split_documents: the line break belongs to the marker


class HubSource:
    """A data set of parquet files on the Hugging Face Hub, streamed; a local folder laid out like one works too."""

    remote = True

    def __init__(self, dataset, config, revision, text_column="text", tokens=None):
        self.dataset, self.config, self.revision, self.text_column = dataset, config, revision, text_column
        self.expected_tokens = tokens
        self.stream = None

    def describe(self):
        return {"kind": "hub", "dataset": self.dataset, "config": self.config, "split": "train",
                "revision": self.revision, "text_column": self.text_column}

    def open(self, columns):
        """IterableDataset; nothing is fetched yet but the list of files and a schema."""
        import datasets

        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs each error that it also raises
        datasets.disable_progress_bars()
        return datasets.load_dataset(self.dataset, self.config, split="train", streaming=True,
                                     revision=self.revision, columns=columns)

    def files(self):
        """Names of the files, in order. Needs the network."""
        self.stream = self.open([self.text_column])
        if self.text_column not in self.stream.features:
            raise missing_column(self.dataset, self.text_column, self.open(None).features)
        return [f"{self.dataset} {self.config}, file {k}" for k in range(self.stream.num_shards)]

    def parts(self, k, cut):
        file = self.stream.shard(num_shards=self.stream.num_shards, index=k)  # `datasets` calls a file a shard
        tables = file.with_format("arrow").iter(batch_size=READ_ROWS)
        columns = (table.column(self.text_column) for table in tables)
        return row_parts(column_rows(columns, self.dataset), cut)


class FileSource:
    """Files of one's own: parquet and JSON lines (one document a row), text (documents between <|endoftext|>)."""

    def __init__(self, patterns, text_column="text"):
        self.paths = sorted({path for pattern in patterns for path in expand(pattern)})
        self.text_column = text_column
        self.remote = any("://" in path for path in self.paths)
        for path in self.paths:
            if file_kind(path) is None:
                raise DataError(f"{path} is of no kind that can be read",
                                "names end in .parquet, .jsonl or .txt; .jsonl and .txt may be followed by .gz or .zst")
        sizes = [file_size(path) for path in self.paths]
        # Typical: packed text is a third of its size, and four bytes make a token. Only for the time left and the disk.
        self.expected_tokens = sum(size * (1 if path.endswith((*TEXT_SUFFIXES, *JSON_SUFFIXES)) else 3) / 4
                                   for path, size in zip(self.paths, sizes, strict=True))
        names = names_below_common_folder(self.paths)
        self.described = [{"file": name, "bytes": size, "ends_sha256": ends_sha256(path)}
                          for name, size, path in zip(names, sizes, self.paths, strict=True)]

    def describe(self):
        return {"kind": "files", "files": self.described, "text_column": self.text_column}

    def files(self):
        return self.paths

    def parts(self, k, cut):
        path = self.paths[k]
        kind = file_kind(path)
        if kind == "parquet":
            return row_parts(column_rows(parquet_columns(path, self.text_column), path), cut)
        if kind == "json":
            return row_parts(json_rows(path, self.text_column), cut)
        return text_parts(path, cut)


def parquet_columns(path, text_column):
    """Parquet file -> the text column, some rows at a time. Not with `datasets`, which reads whole row groups, and
    one's own files may well be a single group: this takes 0.1 GB for any file."""
    import pyarrow.parquet

    with open_file(path) as file:
        parquet = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
        if text_column not in (names := parquet.schema_arrow.names):
            raise missing_column(path, text_column, names)
        for batch in parquet.iter_batches(batch_size=READ_ROWS, columns=[text_column], use_threads=False):
            yield batch.column(0)


def column_rows(columns, name):
    """Arrow columns -> (text, None) or (None, problem), a row each. Raises DataError if they hold no text."""
    for column in columns:
        kind = str(column.type)
        if not kind.removeprefix("large_").startswith(("string", "binary", "dictionary<values=string", "null")):
            raise DataError(f"the column of {name} holds {kind}, not text", "choose another with --text_column")
        try:
            values = column.to_pylist()
        except UnicodeDecodeError:  # arrow does not check its strings: find out which one it is
            values = column.cast("binary").to_pylist()
        yield from map(checked_text, values)


def json_rows(path, text_column):
    """File of JSON lines -> (text, None) or (None, problem), a row each. Read line by line, not with `datasets`,
    which gives up a whole file for one broken line."""
    rows, first = 0, None  # how many rows; the columns of the first that was an object
    useful = False  # has any row had the column?
    with open_unpacked(path) as lines:
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8"))
                problem = None if isinstance(row, dict) else "no JSON object"
            except UnicodeDecodeError:
                problem = "invalid UTF-8"
            except (ValueError, RecursionError):
                problem = "invalid JSON"
            rows += 1
            if problem is None:
                first = first or list(row)
                useful = useful or text_column in row
            if rows == CHECK_ROWS and not useful:
                break
            yield (None, problem) if problem else checked_text(row.get(text_column))
    if rows and first is None:
        raise DataError(f"{path} does not hold JSON lines", "one JSON object a line, such as {\"text\": \"...\"}")
    if rows and not useful:
        raise missing_column(path, text_column, first)


def checked_text(value):
    """A value of the text column -> (text, None) or (None, problem)."""
    if isinstance(value, str):
        return value, None
    if not isinstance(value, bytes):
        return None, "no text" if value is None else "not text"
    try:
        return value.decode("utf-8"), None
    except UnicodeDecodeError:
        return None, "invalid UTF-8"


def row_parts(rows, cut):
    """(text, None) or (None, problem) -> Parts."""
    for text, problem in rows:
        if problem:
            yield Part(None, False, problem)
        else:
            for number, piece in enumerate(split_long(text) if cut else [text]):
                yield Part(piece, number == 0)


def split_long(text):
    """A text as pieces of about PART_CHARS that are encoded to the same tokens apart as together."""
    start = 0
    while match := SAFE_CUT.search(text, start + PART_CHARS):
        yield text[start:match.end()]
        start = match.end()
    yield text[start:]


def text_parts(path, cut):
    """Text file -> Parts; the documents are those of tokenizer.split_documents, but read in bounded memory."""
    good = bad = 0
    starts = True
    with io.TextIOWrapper(open_unpacked(path), encoding="utf-8-sig", errors="surrogateescape") as file:
        for text, ends in text_pieces(iter(lambda: file.read(READ_CHARS), ""), cut):
            if not starts or text.strip():
                if is_valid(text):
                    yield Part(text, starts)
                    good, starts = good + 1, False
                else:
                    yield Part(None, False, "invalid UTF-8")
                    bad += 1
                    if bad == CHECK_ROWS and not good:
                        break
            starts = starts or ends
    if bad and not good:
        raise DataError(f"{path} is not text in UTF-8", "convert it first; Windows-1252 and UTF-16 are common culprits")


def text_pieces(chunks, cut):
    """Chunks of a text file -> (piece, True if a document ends here), the same pieces however it was chunked."""
    buffer, marker_from, cut_from = "", 0, PART_CHARS  # where to go on looking: nothing is searched twice
    for chunk in itertools.chain(chunks, [None]):
        last = chunk is None
        buffer += chunk or ""
        at = 0
        # A marker at the very end has to wait: its line break may come with the next chunk.
        while (found := MARKER.search(buffer, marker_from)) and (last or found.end() < len(buffer)):
            document = buffer[at:found.start()]
            pieces = list(split_long(document)) if cut else [document]
            yield from ((piece, False) for piece in pieces[:-1])
            yield pieces[-1], True
            at = marker_from = found.end()
            cut_from = at + PART_CHARS
        while cut and not last and (found_cut := SAFE_CUT.search(buffer, cut_from, len(buffer))):
            yield buffer[at:found_cut.end()], False
            at = found_cut.end()
            cut_from = at + PART_CHARS
        buffer = buffer[at:]
        marker_from = max(0, len(buffer) - len(EOT) - 1)  # a part of a marker, or one that waits, may end the buffer
        cut_from = max(PART_CHARS, len(buffer) - 1)
    if buffer:
        pieces = list(split_long(buffer)) if cut else [buffer]
        yield from ((piece, False) for piece in pieces[:-1])
        yield pieces[-1], True


def is_valid(text):
    """False if the text holds bytes that were no UTF-8 (surrogateescape has kept them as lone surrogates)."""
    try:
        text.encode("utf-8")
        return True
    except UnicodeEncodeError:
        return False


def missing_column(path, text_column, columns):
    return DataError(f"{path} has no column {text_column!r}, only {', '.join(map(repr, columns))}",
                     "choose the column that holds the documents with --text_column")


def expand(pattern):
    """Glob pattern, or URL of a kind that fsspec knows -> paths. Raises DataError if nothing matches."""
    pattern = os.path.expanduser(pattern)
    if "://" in pattern:
        import fsspec

        filesystem, inner = fsspec.core.url_to_fs(pattern)
        paths = [filesystem.unstrip_protocol(path) for path in filesystem.glob(inner)]
    else:
        literal = Path(pattern).is_file()  # "notes [1].txt" is a name first and a pattern second
        paths = [pattern] if literal else [p for p in glob.glob(pattern, recursive=True) if Path(p).is_file()]
    if not paths:
        raise DataError(f"no file matches {pattern!r}", "give names, or a pattern in quotes such as 'docs/*.jsonl'")
    return paths


def file_kind(path):
    """"parquet", "json", "text" or None, by the name."""
    name = path.lower()
    if name.endswith(".parquet"):
        return "parquet"
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return "json" if name.endswith(JSON_SUFFIXES) else "text" if name.endswith(TEXT_SUFFIXES) else None


def open_file(path):
    """Binary file, local or remote."""
    if "://" in path:
        import fsspec

        return fsspec.open(path, "rb").open()
    return open(path, "rb")


def open_unpacked(path):
    """Binary file whose content is unpacked while it is read, if its name ends in .gz or .zst."""
    file = open_file(path)
    if path.lower().endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if path.lower().endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"))
    return file


def file_size(path):
    with open_file(path) as file:
        return file.seek(0, os.SEEK_END)


def ends_sha256(path, length=2**16):
    """sha256 of the first and the last 64 KiB: notices a changed file without reading all of a large one."""
    with open_file(path) as file:
        digest = hashlib.sha256(file.read(length))
        file.seek(max(0, file.seek(0, os.SEEK_END) - length))
        digest.update(file.read(length))
    return digest.hexdigest()


def names_below_common_folder(paths):
    """Paths -> names with / that are the same wherever the folder lies, on any system."""
    try:
        folder = os.path.commonpath([Path(path).absolute().parent for path in paths])
        return [Path(path).absolute().relative_to(folder).as_posix() for path in paths]
    except ValueError:  # on several drives
        return [path.replace("\\", "/").rpartition("/")[2] for path in paths]


# ----------------------------------------------------------------------------------------------------------------------
# 2. Reading with patience: a network that fails for a minute must not cost hours
# ----------------------------------------------------------------------------------------------------------------------

WAITS_S = (1, 2, 4, 8, 16, 32, 60, 60)  # between attempts; every part that arrives starts the count anew
NETWORK_LIBRARIES = {"httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp", "huggingface_hub", "fsspec"}


def read_parts(source, file, part, cut, sleep=time.sleep):
    """(file number, part number, Part) in order, from the given place on."""
    # Whoever starts a run looks on, and the Hub's library makes several attempts of its own: soon an error, no waiting.
    names = next(patiently(lambda: iter([source.files()]), 0, source.remote, "the source", sleep, waits=WAITS_S[:1]))
    for k in range(file, len(names)):
        first = part if k == file else 0
        parts = patiently(lambda k=k: source.parts(k, cut), first, source.remote, names[k], sleep)
        for number, item in enumerate(parts, first):
            yield k, number, item


def patiently(open_items, done, remote, name, sleep=time.sleep, waits=WAITS_S):
    """The items of open_items() from number `done` on; after a passing error, waits, opens again and goes on behind
    the last one that was read. Raises DataError for an error that waiting does not cure."""
    attempt = 0
    while True:
        try:
            for item in itertools.islice(open_items(), done, None):
                yield item
                done, attempt = done + 1, 0
            return
        except DataError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if not is_passing(error, remote):
                if not is_reading_error(error):
                    raise  # a fault of this program, not of the file
                raise DataError(f"cannot read {name}: {reason}", "is it complete, and what its name says?") from error
            if attempt == len(waits):
                raise DataError(f"cannot read {name}: {reason} (tried {attempt + 1} times)",
                                "check the network, then run the same command: it goes on where this one stopped; "
                                "--files needs no network") from error
            print(f"\n{name} broke off ({reason}); trying again in {waits[attempt]} s", file=sys.stderr)
            sleep(waits[attempt])
            attempt += 1


def is_passing(error, remote):
    """Might this error go away by itself?"""
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if "OfflineModeIsEnabled" in repr(error):  # HF_HUB_OFFLINE is set
        return False
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in NETWORK_LIBRARIES:
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno != errno.ENOSPC
    return remote and is_reading_error(error)  # half an answer can look like a broken file


def is_reading_error(error):
    """OSError also from gzip and pyarrow; ValueError from pyarrow, json, `datasets`."""
    return isinstance(error, (OSError, EOFError, ValueError, zlib.error))


# ----------------------------------------------------------------------------------------------------------------------
# 3. Encoding
# ----------------------------------------------------------------------------------------------------------------------

# Threads, not processes: tiktoken works outside Python's lock, and one tokenizer serves them all. Nothing to start, to
# copy or to guard against, in a notebook and on Windows too.
BATCH_CHARS = 2**19  # text handed to a thread at a time
AHEAD_CHARS = 2**25  # text that is read ahead of the shard: seconds of work while the network is slow
BATCH_PARTS = 2**12


def encode_batch(enc, batch):
    """List of (file, number, Part) -> (uint16 tokens of all, where each part ends in them, problem of each or None).

    Whole documents are encoded together, with the marker between them that the stream has anyway: one long call
    outside Python's lock instead of many short ones that wait for it.
    """
    tokens, lengths, problems = [], [], []
    for whole, group in itertools.groupby((part for _, _, part in batch), lambda part: part.starts):
        group = list(group)
        together = encode_documents(enc, [part.text for part in group]) if whole else None
        if together is None:
            pairs = [encode_part(enc, part) for part in group]
            tokens += [ids for ids, _ in pairs]
            lengths += [len(ids) for ids, _ in pairs]
            problems += [problem for _, problem in pairs]
        else:
            tokens.append(together)
            lengths += np.diff(np.flatnonzero(together == tokenizer.eot_id(enc)), append=len(together)).tolist()
            problems += [None] * len(group)
    return np.concatenate(tokens), np.cumsum(lengths), problems


def encode_documents(enc, texts):
    """Documents -> uint16 tokens, <|endoftext|> before each. None if they have to be encoded one by one."""
    text = EOT + EOT.join(texts)
    if text.count(EOT) != len(texts):  # a document that quotes the marker: there it is ordinary text
        return None
    try:
        return enc.encode_to_numpy(text, allowed_special={EOT}, disallowed_special=()).astype(np.uint16)
    except BaseException as error:
        if not is_tokenizer_failure(error):
            raise
        return None


def encode_part(enc, part):
    """Part -> (uint16 array of its tokens, problem or None)."""
    if part.text is None:
        return np.array([], dtype=np.uint16), part.problem
    head = [tokenizer.eot_id(enc)] if part.starts else []
    try:
        return np.array(head + enc.encode_ordinary(part.text), dtype=np.uint16), None
    except BaseException as error:
        if not is_tokenizer_failure(error):
            raise
        return np.array(head, dtype=np.uint16), f"tokenizer failed ({type(error).__name__})"


def is_tokenizer_failure(error):
    """True for an error of the text (half a surrogate pair, a stack too deep), not of the machine or the user."""
    # a panic in Rust arrives as a PanicException, which is no Exception
    return type(error).__name__ == "PanicException" or isinstance(error, (ValueError, RuntimeError, RecursionError))


def batches(parts):
    """Parts -> (lists of about BATCH_CHARS, their characters): batches even in text, not in documents."""
    batch, chars = [], 0
    for item in parts:
        batch.append(item)
        chars += len(item[2].text or "")
        if chars >= BATCH_CHARS or len(batch) == BATCH_PARTS:
            yield batch, chars
            batch, chars = [], 0
    if batch:
        yield batch, chars


def encode_in_order(enc, parts, threads):
    """Parts -> (batch, tokens, ends, problems), encoded in threads, in the order of the source, in bounded memory."""
    pool = ThreadPoolExecutor(threads)
    waiting, ahead = deque(), 0  # (batch, its characters, future), oldest first
    try:
        for batch, chars in batches(parts):
            waiting.append((batch, chars, pool.submit(encode_batch, enc, batch)))
            ahead += chars
            while waiting and (ahead > AHEAD_CHARS or len(waiting) > 64 + 2 * threads or waiting[0][2].done()):
                batch, chars, future = waiting.popleft()
                ahead -= chars
                yield batch, *future.result()
        for batch, _, future in waiting:
            yield batch, *future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# ----------------------------------------------------------------------------------------------------------------------
# 4. Shards
# ----------------------------------------------------------------------------------------------------------------------


class Shard(NamedTuple):
    tokens: np.ndarray  # uint16; a view that is valid until the next shard is asked for
    next: dict | None  # the place in the source where the next shard starts; None when the source has ended
    problems: Counter  # rows that could not be used


def make_shards(source, enc, place, shard_size, threads, progress=lambda n: None, sleep=time.sleep):
    """Shards of `shard_size` tokens from a place in the source on. The last has what is left, which may be nothing.

    A place is {"file", "part", "token"}: so many files, parts of the next file and tokens of the next part are used up.
    It depends on the source and the tokenizer only, never on batches or threads.
    """
    cut = enc._pat_str in tokenizer.KNOWN_PATTERNS  # of other patterns we do not know where they never join
    parts = read_parts(source, place["file"], place["part"], cut, sleep)
    buffer, filled = np.empty(shard_size, dtype=np.uint16), 0
    used = place["token"]  # tokens of this batch that are already in a shard
    problems = Counter()
    for batch, tokens, ends, flaws in encode_in_order(enc, parts, threads):
        counted = 0
        if used > len(tokens):
            raise DataError("the source has changed since the last shard was made", "choose another --out")
        while True:
            n = min(len(tokens) - used, shard_size - filled)
            buffer[filled:filled + n] = tokens[used:used + n]
            filled, used = filled + n, used + n
            progress(n)
            if filled < shard_size:
                break
            last = int(np.searchsorted(ends, used))  # the part that holds the shard's last token
            whole = int(ends[last]) == used
            problems.update(filter(None, flaws[counted:last + whole]))
            counted = last + whole
            file, part, _ = batch[last]
            begin = int(ends[last - 1]) if last else 0
            place = {"file": file, "part": part + whole, "token": 0 if whole else used - begin}
            yield Shard(buffer, place, problems)
            filled, problems = 0, Counter()
        problems.update(filter(None, flaws[counted:]))
        used = 0
    yield Shard(buffer[:filled], None, problems)


def token_bytes(enc):
    """Array (vocabulary,): how many bytes of text each token stands for; none for <|endoftext|>."""
    lengths = np.zeros(enc.n_vocab, dtype=np.uint32)
    for token, rank in enc._mergeable_ranks.items():
        lengths[rank] = len(token)
    return lengths


def shard_stats(tokens, eot, byte_lengths, open_tokens):
    """What the manifest says of a shard.

    open_tokens  tokens that the document which runs on into this shard has had before

    Returns (documents that start here, bytes of text, lengths of the documents that end here, new open_tokens).
    """
    starts = np.flatnonzero(tokens == eot)
    text_bytes = sum(int(byte_lengths[tokens[i:i + 2**20]].sum(dtype=np.int64)) for i in range(0, len(tokens), 2**20))
    if not len(starts):
        return 0, text_bytes, np.array([], dtype=np.int64), open_tokens + len(tokens)
    lengths = np.diff(starts, prepend=-open_tokens)  # the first is what ran on: open_tokens + starts[0]
    return len(starts), text_bytes, lengths[lengths > 0], len(tokens) - int(starts[-1])


def count_lengths(counts, lengths):
    """Adds document lengths to counts, in which number b is of lengths from 2**b to 2**(b+1) - 1."""
    if len(lengths):
        more = np.bincount(np.log2(lengths).astype(int))
        counts = [a + int(b) for a, b in itertools.zip_longest(counts, more, fillvalue=0)]
    return counts


def write_whole(path, write):
    """write(file), then the name: whoever looks sees the old file or the whole new one. Returns the sha256.

    Raises DataError if the disk is full or may not be written.
    """
    temporary = path.with_name(path.name + ".tmp")  # matches no pattern that looks for *.npy
    try:
        with open(temporary, "wb+") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(temporary, path)
        sync_folder(path.parent)
        return digest
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        hint = "the shards before it are whole; the same command goes on from there"
        if error.errno == errno.ENOSPC:
            raise DataError(f"the disk is full: no room for {path}", f"make room; {hint}") from error
        raise DataError(f"cannot write {path}: {error.strerror or error}", hint) from error


def sync_folder(folder):
    """Makes a rename last through a power failure. Windows has no such call and needs none."""
    with contextlib.suppress(OSError):  # some network file systems have none either
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ----------------------------------------------------------------------------------------------------------------------
# 5. The manifest
# ----------------------------------------------------------------------------------------------------------------------

FORMAT = 1
SHARD_NAME = re.compile(r"[A-Za-z0-9.-]+_(val|train)_\d{6}\.npy")
START = {"file": 0, "part": 0, "token": 0}


def new_manifest(source, enc, name, shard_size):
    return {
        "format": FORMAT,
        "source": source.describe(),
        "tokenizer": {"name": name, "sha256": tokenizer.fingerprint(enc), "vocab_size": enc.n_vocab},
        "shard_size": shard_size,
        "complete": False,
        "shards": [],
        "next": START,  # None when the source has been read to its end
        "open_tokens": 0,  # tokens so far of the document that the next shard starts in
        "lengths": [],  # documents by length: number b counts those of 2**b to 2**(b+1) - 1 tokens
        "bad_rows": {},
        "versions": {"python": sys.version.split()[0]} | {
            package: installed_version(package) for package in ("numpy", "tiktoken", "pyarrow", "datasets")},
    }


def save_manifest(folder, manifest):
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / "manifest.json", lambda file: file.write(text.encode("utf-8")))


def load_manifest(folder):
    """The manifest of a folder of shards, checked for form. Raises DataError; None if there is no such file."""
    path = Path(folder) / "manifest.json"
    hint = "restore it, or choose another --out"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}", hint) from error
    try:
        if manifest["format"] != FORMAT:
            raise DataError(f"{path} is of format {manifest['format']}; this program knows format {FORMAT}", hint)
        well_formed = (
            isinstance(manifest["source"], dict) and isinstance(manifest["tokenizer"]["sha256"], str)
            and isinstance(manifest["shard_size"], int) and isinstance(manifest["bad_rows"], dict)
            and (manifest["next"] is None or is_place(manifest["next"]))
            and all(isinstance(n, int) for n in [*manifest["lengths"], manifest["open_tokens"]])
            and all(is_shard(shard) for shard in manifest["shards"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__} {error}", hint) from error
    if not well_formed:
        raise DataError(f"{path} is damaged", hint)
    return manifest


def is_shard(shard):
    return (SHARD_NAME.fullmatch(shard["file"]) and is_place(shard["start"]) and isinstance(shard["sha256"], str)
            and all(isinstance(shard[key], int) for key in ("tokens", "documents", "bytes")))


def is_place(place):
    return set(START) <= set(place) and all(isinstance(place[key], int) and place[key] >= 0 for key in START)


def differences(old, new):
    """What of a folder's settings a new command does not share: list of strings."""
    found = []
    if old["tokenizer"]["sha256"] != new["tokenizer"]["sha256"]:
        found.append(f"tokenizer (there {describe_tokenizer(old)}, now {describe_tokenizer(new)})")
    if old["shard_size"] != new["shard_size"]:
        found.append(f"shard_size (there {old['shard_size']:,}, now {new['shard_size']:,})")
    for key in sorted((set(old["source"]) | set(new["source"])) - {"files"}):
        there, now = old["source"].get(key), new["source"].get(key)
        if there != now:
            found.append(f"{key} (there {there}, now {now})")
    there, now = ([json.dumps(file, sort_keys=True) for file in m["source"].get("files", [])] for m in (old, new))
    if there != now:
        changed = sorted(set(there) ^ set(now))
        names = sorted({json.loads(file)["file"] for file in changed}) if changed else ["their order"]
        found.append(f"files ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})")
    return found


def describe_tokenizer(manifest):
    kind = manifest["tokenizer"]
    return f"{kind.get('name')} with {kind.get('vocab_size')} tokens, sha256 {kind['sha256'][:8]}"


def shard_fault(folder, shard):
    """None, or what is wrong with a shard's file as far as its size tells (`--info` reads all of it)."""
    path = Path(folder) / shard["file"]
    if not path.is_file():
        return "missing"
    expected = npy_size(shard["tokens"])
    size = path.stat().st_size
    return None if size == expected else f"{size:,} bytes instead of {expected:,}"


def content_fault(folder, shard):
    """None, or what is wrong with the content of a shard whose size is right. Reads the whole file."""
    with open(Path(folder) / shard["file"], "rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
    return None if same else "its sha256 has changed"


def npy_size(tokens):
    """Bytes of a .npy file of so many uint16."""
    file = io.BytesIO()
    header = {"descr": "<u2", "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(file, header)
    return len(file.getvalue()) + 2 * tokens


# ----------------------------------------------------------------------------------------------------------------------
# 6. Building
# ----------------------------------------------------------------------------------------------------------------------


def build(source, enc, name, out, prefix, shard_size, num_shards=None, threads=1, sleep=time.sleep):
    """Writes the shards that are still missing in `out` and returns the manifest.

    source      HubSource or FileSource
    enc, name   tiktoken.Encoding and the name that the manifest gives it
    num_shards  how many in all, validation included; None: until the source ends

    Raises DataError, with everything that was finished kept.
    """
    out = Path(out)
    if enc.n_vocab > tokenizer.MAX_VOCAB:
        raise DataError(f"tokenizer {name} has {enc.n_vocab:,} tokens; shards hold uint16, at most 65,536",
                        "use a smaller vocabulary")
    manifest = open_folder(out, new_manifest(source, enc, name, shard_size))
    check_disk(out, source, manifest, shard_size, num_shards)
    worker = Worker(source, enc, out, prefix, shard_size, threads, sleep)
    for index, shard in enumerate(manifest["shards"]):
        if shard_fault(out, shard) == "missing":
            worker.rebuild(index, shard)
    if is_finished(manifest, num_shards):
        print(f"{out}: nothing to do, {len(manifest['shards'])} shards are there")
    else:
        worker.extend(manifest, num_shards)
    if manifest["complete"] is False:
        manifest["complete"] = True
        save_manifest(out, manifest)
    plot_lengths(out, manifest)
    return manifest


def is_finished(manifest, num_shards):
    return manifest["next"] is None or (num_shards is not None and len(manifest["shards"]) >= num_shards)


def open_folder(out, wanted):
    """Makes the folder, or takes up the one that is there: returns its manifest, or `wanted` for an empty one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {out}: {error.strerror or error}", "choose another --out") from error
    manifest = load_manifest(out)
    if manifest is None:
        if strangers := sorted(path.name for path in out.glob("*.npy")):
            raise DataError(f"{out} holds shards but no manifest.json ({strangers[0]} ...)",
                            "they are not of this program, or their manifest is lost: choose another --out")
        manifest = wanted
    if not manifest["shards"]:
        manifest = wanted  # killed before the first shard was whole: nothing to be true to
    if found := differences(manifest, wanted):
        raise DataError(f"{out} was made with other settings: {'; '.join(found)}",
                        "choose another --out, or give the settings it was made with (fineweb.py --info shows them)")
    for shard in manifest["shards"]:
        if (fault := shard_fault(out, shard)) not in (None, "missing"):
            raise DataError(f"{out / shard['file']} is damaged: {fault}",
                            "delete that file and run the same command again: it alone is made anew")
    # What a killed run can leave: a temporary file, and a shard that the manifest had no time to note.
    unnoted = [path for path in out.glob(f"*_{len(manifest['shards']):06d}.npy") if SHARD_NAME.fullmatch(path.name)]
    try:
        (out / "manifest.json.tmp").touch()  # hours of work must not end in a folder that cannot be written to
        for leftover in [*out.glob("*.npy.tmp"), *out.glob("*.json.tmp"), *unnoted]:
            leftover.unlink()
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror or error}", "choose another --out") from error
    return manifest


def check_disk(out, source, manifest, shard_size, num_shards):
    """Raises DataError if what is still to be written does not fit on the disk."""
    tokens = min(num_shards * shard_size if num_shards else float("inf"), source.expected_tokens or float("inf"))
    if tokens == float("inf"):
        return
    need = int(2 * (tokens - sum(shard["tokens"] for shard in manifest["shards"])))
    free = shutil.disk_usage(out).free
    if need > free:
        raise DataError(f"{out} needs about {need / 1e9:.1f} GB more, the disk has {free / 1e9:.1f} GB free",
                        "make room, choose another --out, or ask for less with --num_shards")


class Worker:
    """What making one shard and making the next have in common."""

    def __init__(self, source, enc, out, prefix, shard_size, threads, sleep=time.sleep):
        self.source, self.enc, self.out, self.prefix = source, enc, out, prefix
        self.shard_size, self.threads, self.sleep = shard_size, threads, sleep
        self.byte_lengths = token_bytes(enc)

    def shards(self, place, progress=lambda n: None):
        return make_shards(self.source, self.enc, place, self.shard_size, self.threads, progress, self.sleep)

    def write(self, index, tokens, start, open_tokens):
        """Writes one shard: returns (its entry in the manifest, lengths of documents, open tokens)."""
        split = "train" if index else "val"
        path = self.out / f"{self.prefix}_{split}_{index:06d}.npy"
        documents, text_bytes, lengths, open_tokens = shard_stats(
            tokens, tokenizer.eot_id(self.enc), self.byte_lengths, open_tokens)
        digest = write_whole(path, lambda file: np.save(file, tokens, allow_pickle=False))
        entry = {"file": path.name, "split": split, "tokens": len(tokens), "documents": documents,
                 "bytes": text_bytes, "sha256": digest, "start": start}
        return entry, lengths, open_tokens

    def rebuild(self, index, shard):
        """Makes a shard again whose file is gone."""
        print(f"{shard['file']} is missing: making it again")
        made = next(self.shards(shard["start"]))
        entry, _, _ = self.write(index, made.tokens, shard["start"], 0)
        if entry["sha256"] != shard["sha256"]:
            (self.out / entry["file"]).unlink()
            raise DataError(f"{shard['file']} was made again, but differs from the one in the manifest",
                            "the source or the tokenizer has changed: choose another --out")

    def extend(self, manifest, num_shards):
        """Makes shard after shard from where the manifest ends; the manifest is saved with each."""
        out, shards = self.out, manifest["shards"]
        manifest["complete"] = False
        begun = time.perf_counter(), sum(shard["tokens"] for shard in shards)
        with progress_bar(self.source, manifest, self.shard_size, num_shards) as bar:
            for made in self.shards(manifest["next"], bar.update):
                if made.next is None:
                    check_enough(shards, made, self.shard_size, num_shards, manifest["bad_rows"])
                if not shards:
                    tokenizer.save_tokenizer(self.enc, out / "tokenizer.json")
                    save_manifest(out, manifest)  # so that a shard is never without one
                if len(made.tokens):
                    entry, lengths, manifest["open_tokens"] = self.write(
                        len(shards), made.tokens, manifest["next"], manifest["open_tokens"])
                    shards.append(entry)
                    manifest["lengths"] = count_lengths(manifest["lengths"], lengths)
                if made.next is None:  # so does the last document
                    manifest["lengths"] = count_lengths(manifest["lengths"], np.array([manifest["open_tokens"]]))
                    manifest["open_tokens"] = 0
                manifest["next"] = made.next
                for problem, count in made.problems.items():
                    manifest["bad_rows"][problem] = manifest["bad_rows"].get(problem, 0) + count
                manifest["complete"] = is_finished(manifest, num_shards)
                save_manifest(out, manifest)
                if len(made.tokens):
                    bar.write(shard_line(entry, begun, shards))
                if manifest["complete"]:
                    break


def check_enough(shards, made, shard_size, num_shards, bad_rows):
    """Raises DataError if the source has ended before there was anything to train on."""
    total = sum(shard["tokens"] for shard in shards) + len(made.tokens)
    if not total:
        bad = sum(bad_rows.values()) + sum(made.problems.values())
        raise DataError(f"the source holds no documents ({bad} rows could not be used)",
                        "is it the right file, and the right --text_column?")
    if len(shards) + bool(len(made.tokens)) < 2 and num_shards != 1:
        raise DataError(f"the source has only {total:,} tokens: with --shard_size {shard_size} all of them go to "
                        "validation and none are left to train on",
                        f"--shard_size {max(1, total // 10)} would keep a tenth for validation"
                        + ("; delete the folder first" if shards else ""))


def shard_line(entry, begun, shards):
    """One line that says how it goes."""
    seconds = time.perf_counter() - begun[0]
    tokens = sum(shard["tokens"] for shard in shards) - begun[1]
    return (f"{entry['file']}  {entry['tokens']:,} tokens  {entry['documents']:,} documents  "
            f"{entry['bytes'] / entry['tokens']:.2f} bytes/token  {tokens / seconds / 1e6:.2f} M tokens/s")


def progress_bar(source, manifest, shard_size, num_shards):
    from tqdm import tqdm

    done = sum(shard["tokens"] for shard in manifest["shards"])
    totals = [source.expected_tokens, num_shards and num_shards * shard_size]
    total = min((total for total in totals if total), default=None)
    return tqdm(total=total and max(int(total), done), initial=done, unit=" tokens", unit_scale=True, smoothing=0.1,
                mininterval=0.5 if sys.stderr.isatty() else 30)


# ----------------------------------------------------------------------------------------------------------------------
# 7. Looking at a folder of shards
# ----------------------------------------------------------------------------------------------------------------------


def print_info(folder):
    """The manifest as a table, and how a shard begins. Raises DataError if a shard is not as the manifest says."""
    manifest = load_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} holds no manifest.json", "give a folder that fineweb.py has made")
    source, shards = manifest["source"], manifest["shards"]
    print(f"source     {describe_source(source)}")
    print(f"tokenizer  {describe_tokenizer(manifest)}")
    print(f"versions   {', '.join(f'{name} {number}' for name, number in manifest.get('versions', {}).items())}")
    print(f"complete   {'yes' if manifest['complete'] else 'no: the same command goes on'}\n")
    faults = [shard_fault(folder, shard) or content_fault(folder, shard) for shard in shards]
    rows = [[shard["file"], f"{shard['tokens']:,}", f"{shard['documents']:,}", f"{shard['bytes']:,}",
             f"{shard['bytes'] / max(1, shard['tokens']):.3f}", shard["sha256"][:12], fault or ""]
            for shard, fault in zip(shards, faults, strict=True)]
    totals = [sum(shard[key] for shard in shards) for key in ("tokens", "documents", "bytes")]
    rows.append(["total", *(f"{n:,}" for n in totals), f"{totals[2] / max(1, totals[0]):.3f}", "", ""])
    print_table(["shard", "tokens", "documents", "bytes", "bytes/token", "sha256", ""], rows)
    for problem, count in manifest["bad_rows"].items():
        print(f"rows left out: {count:,} ({problem})")
    with contextlib.suppress(DataError):  # one may look at a folder that one may not write to
        plot_lengths(Path(folder), manifest)
    bad = [f"{shard['file']} ({fault})" for shard, fault in zip(shards, faults, strict=True) if fault]
    if bad:
        raise DataError(f"not as the manifest says: {', '.join(bad)}",
                        "delete what is damaged and run the command that made the folder: it makes those shards anew")
    if shards:
        print_beginning(Path(folder), shards[-1 if len(shards) == 1 else 1]["file"])


def describe_source(source):
    if source.get("kind") == "hub":
        return f"{source.get('dataset')} {source.get('config')}, revision {source.get('revision')}"
    files = source.get("files", [])
    return f"{len(files)} files, {sum(file['bytes'] for file in files):,} bytes: " + ", ".join(
        file["file"] for file in files[:3]) + (" ..." if len(files) > 3 else "")


def print_table(head, rows):
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())


def print_beginning(folder, name, tokens=400, lines=12):
    """Decodes the first lines of a shard."""
    enc = tokenizer.load_tokenizer(folder)
    ids = np.load(folder / name, mmap_mode="r", allow_pickle=False)[:tokens].tolist()
    text = enc.decode([i for i in ids if i < enc.n_vocab]).replace(EOT, f"\n{EOT}\n").strip("\n")
    print(f"\n{name} begins:\n")
    print("\n".join(f"  | {line[:110]}" for line in text.split("\n")[:lines]))


def plot_lengths(folder, manifest):
    """DIR/lengths.png: how many documents there are of each length."""
    counts = manifest["lengths"]
    if not any(counts):
        return
    from matplotlib.figure import Figure  # not pyplot: no window system, no state

    axes = (figure := Figure(figsize=(6, 3.2), layout="constrained")).subplots()
    axes.bar(range(len(counts)), counts, width=0.9)
    axes.set_xticks(range(len(counts)), [f"{2**b:,}" for b in range(len(counts))], rotation=45, ha="right", fontsize=8)
    axes.set_xlabel("tokens in a document, at least")
    axes.set_ylabel("documents")
    axes.set_title(f"{sum(counts):,} documents of {folder.name}")
    write_whole(folder / "lengths.png", lambda file: figure.savefig(file, format="png", dpi=120))


# ----------------------------------------------------------------------------------------------------------------------
# 8. Commands
# ----------------------------------------------------------------------------------------------------------------------


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arguments():
    parser = argparse.ArgumentParser(description="FineWeb, FineWeb-Edu or your own documents, as shards of tokens.")
    parser.add_argument("--version", choices=VERSIONS, default="10Bedu",
                        help="10 or 100 billion tokens (20 or 200 GB) of FineWeb-Edu or FineWeb; default %(default)s")
    parser.add_argument("--files", nargs="+", metavar="GLOB",
                        help="your own documents instead: .parquet, .jsonl, .txt, the last two also .gz or .zst; "
                             "text files hold documents separated by <|endoftext|>")
    parser.add_argument("--text_column", default="text", help="the column with the documents; default %(default)s")
    parser.add_argument("--tokenizer", default="gpt2", help="gpt2, or a tokenizer.json; default %(default)s")
    parser.add_argument("--out", help="folder for the shards; default edu_fineweb10B and so on, or shards for --files")
    parser.add_argument("--num_shards", type=int, help="stop after so many, validation included; default all")
    parser.add_argument("--shard_size", type=int, default=100_000_000, help="tokens in a shard; default %(default)s")
    parser.add_argument("--nprocs", type=int, default=cores(), help="encoding threads; default the cores, %(default)s")
    parser.add_argument("--info", metavar="DIR", help="show what is in a folder of shards, and make nothing")
    return parser


def run(options):
    if options.info:
        print_info(options.info)
        return
    for name in ("shard_size", "num_shards", "nprocs"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise DataError(f"--{name} must be at least 1, not {value}")
    enc = tokenizer.load_tokenizer(options.tokenizer)
    if options.files:
        source = FileSource(options.files, options.text_column)
        out, prefix = options.out or "shards", "docs"
    else:
        v = VERSIONS[options.version]
        source = HubSource(v.dataset, v.config, v.revision, options.text_column, v.tokens)
        out, prefix = options.out or v.out, v.dataset.rpartition("/")[2].replace("-", "")
    name = enc.name if options.tokenizer != "gpt2" else "gpt2"
    manifest = build(source, enc, name, out, prefix, options.shard_size, options.num_shards, options.nprocs)
    print_summary(out, manifest)


def print_summary(out, manifest):
    shards = manifest["shards"]
    tokens, documents = (sum(shard[key] for shard in shards) for key in ("tokens", "documents"))
    print(f"{out}: {tokens:,} tokens of {documents:,} documents in {len(shards)} shards")
    if manifest["bad_rows"]:
        bad = ", ".join(f"{count:,} {problem}" for problem, count in manifest["bad_rows"].items())
        print(f"rows left out: {bad}")
    if shards[-1]["tokens"] < manifest["shard_size"]:
        print(f"the last shard is shorter ({shards[-1]['tokens']:,} tokens): the source ended, that is normal")
    if len(shards) == 1:
        print("this is the validation shard only; there is nothing to train on yet: ask for --num_shards 2 or more")
    else:
        print(f"next: python train_gpt2.py --data {out}")


def main(argv=None):
    options = arguments().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character must not stop us
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        run(options)
    except KeyboardInterrupt:
        print("\nstopped; finished shards are kept, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (| head): what is still to come goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not hasattr(error, "hint"):
            raise
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
