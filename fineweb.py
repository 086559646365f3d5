"""
Text into shards of tokens: FineWeb, FineWeb-Edu, any data set of the Hub, or documents of your own.

Training reads tokens much faster than anything can make them, so they are made once and kept in files of equal size,
the shards. This script streams the documents (nothing is downloaded first), encodes them on all cores and writes

    DIR/<prefix>_val_000000.npy     the first shard is for validation
    DIR/<prefix>_train_000001.npy   uint16, one dimension; for each document: <|endoftext|>, then its tokens
    DIR/manifest.json               where every token came from, and the sha256 of every shard
    DIR/tokenizer.json              the tokenizer; DIR is all that training and sampling need

    python fineweb.py                                         # FineWeb-Edu, 10 billion tokens, 20 GB
    python fineweb.py --num_shards 2                          # a first taste: 200 million tokens, 400 MB
    python fineweb.py --dataset roneneldan/TinyStories        # any data set of the Hub with a column of text
    python fineweb.py --files "docs/*.jsonl" --tokenizer mine.json --shard_size 1000000 --out mine
    python fineweb.py --info mine                             # what is in a folder of shards

Stopped at any moment, the same command goes on where it was: a shard appears under its name only when it is whole, and
the manifest holds the place in the source where the next one starts. The result does not depend on how often it was
stopped, or on the number of threads, in a single byte. A file that has changed since is refused by its size, its date
and the hash of its ends; an edit in the middle that also puts the old date back is not noticed.

Memory does not grow with the source. But a document of a .jsonl or .parquet file is encoded as a whole, and one of
30 MB takes 1.6 GB while that lasts if it is a single word, without any space (ordinary text takes a tenth of it).

Map:  1 sources   2 encoding   3 shards   4 the manifest   5 building   6 --info   7 commands

FineWeb and FineWeb-Edu: Penedo et al. 2024, arXiv 2406.17557.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

import tokenizer
from tokenizer import EOT, Parser, UserError, describe_counts, explaining, require, run_main, write_whole

# huggingface_hub and tqdm are imported where they are used.


# === 1. Sources: documents in a fixed order, in numbered files. =======================================================
SIZES = {  # of VERSIONS: the folder it goes to; its tokens, GPT-2's, for the disk check and the time left only
    "10Bedu": ("edu_fineweb10B", 9.98e9),
    "100Bedu": ("edu_fineweb100B", 100e9),
    "10B": ("fineweb10B", 10.3e9),
    "100B": ("fineweb100B", 103e9),
}
KINDS = (".parquet", ".jsonl", ".ndjson", ".json", ".txt", ".text", ".md")  # ends of names that FileSource takes


class HubSource(tokenizer.HubDocuments):
    """A split of a data set on the Hugging Face Hub, streamed; a local folder laid out like one works too."""

    expected_tokens = None

    @property
    def prefix(self):
        return re.sub(r"[^A-Za-z0-9.]", "", Path(self.dataset).name) or "data"

    def resolve(self, known):
        """Replaces a branch, a tag or None by the commit it means today; None by that of a folder that is continued
        (known: the source in its manifest). A local folder has no commits."""
        if self.revision is None and known.get("dataset") == self.dataset:
            self.revision = known.get("revision")
        if not os.path.isdir(self.dataset) and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            import huggingface_hub

            with self.reading():
                self.revision = huggingface_hub.HfApi().dataset_info(self.dataset, revision=self.revision).sha

    def describe(self):
        return dict(kind="hub", dataset=self.dataset, config=self.config, split=self.split, revision=self.revision,
                    text_column=self.text_column)


class FileSource:
    """Files of one's own: parquet and JSON lines (one document a row), text (documents between <|endoftext|>)."""

    prefix = "docs"

    def __init__(self, patterns, text_column="text"):
        self.paths, self.text_column = tokenizer.expand(patterns), text_column
        for path in self.paths:
            require(tokenizer.kind_of(path) in KINDS, f"{path} is of no kind that can be read",
                    "names end in .parquet, .jsonl or .txt; .jsonl and .txt may be followed by .gz or .zst")
        # For the disk and the time left: packing typically leaves a third of a text, and four bytes make a token.
        packed = (".parquet", ".gz", ".zst")
        sizes = [os.path.getsize(path) * (3 if path.endswith(packed) else 1) for path in self.paths]
        self.expected_tokens = sum(sizes) / 4

    def describe(self):
        return dict(kind="files", text_column=self.text_column, files=[describe_file(path) for path in self.paths])

    def open(self):
        return len(self.paths)

    def documents(self, k):
        return tokenizer.read_documents(self.paths[k], self.text_column)


def describe_file(path, length=2**16):
    """What tells a changed file without reading all of it: size, date, and the sha256 of the first and last 64 KiB."""
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(length))
        file.seek(max(0, file.seek(0, os.SEEK_END) - length))
        digest.update(file.read(length))
        status = os.fstat(file.fileno())
    return dict(file=Path(path).name, bytes=status.st_size, mtime_ns=status.st_mtime_ns, ends_sha256=digest.hexdigest())


def read_pieces(source, file, piece):
    """(file number, piece number, Piece) in order, from a place on: so many files, and pieces of the next, are used."""
    require_place(file < (files := source.open()))
    for k in range(file, files):
        skip, number = piece if k == file else 0, -1
        for number, item in enumerate(source.documents(k)):
            if number >= skip:
                yield k, number, item
        require_place(number + 1 >= skip)


def require_place(found):
    require(found, "the source does not reach to the place where the manifest ends",
            "restore the source or the manifest, or choose another --out")


# === 2. Encoding. =====================================================================================================
# Threads, not processes: tiktoken works outside Python's lock, and one tokenizer serves them all. Nothing to start, to
# copy or to guard against, in a notebook and on Windows too.
BATCH_CHARS = 2**19  # text handed to a thread at a time
AHEAD_CHARS = 2**24  # text that is read ahead of the shard (more for many threads), so that none waits for the network


def encode_batch(enc, pieces):
    """List of Pieces -> list of (uint16 tokens, problem or None), one a piece.

    Whole documents are encoded together, with the marker between them that the stream has anyway: one long call
    outside Python's lock instead of many short ones that wait for it.
    """
    eot, text = tokenizer.eot_id(enc), "".join(EOT + piece.text for piece in pieces)
    whole = all(piece.starts and not piece.problem for piece in pieces)
    if whole and text.count(EOT) == len(pieces):  # no document quotes the marker
        try:
            ids = enc.encode_to_numpy(text, allowed_special={EOT}, disallowed_special=()).astype(np.uint16)
            starts = np.flatnonzero(ids == eot).tolist()
            return [(ids[a:b], None) for a, b in itertools.pairwise([*starts, len(ids)])]
        except BaseException as error:
            raise_unless_of_text(error)  # go on one by one, to find the document
    encoded = []
    for text, starts, problem in pieces:
        ids = [] if problem or not starts else [eot]
        try:
            ids += tokenizer.encode(enc, text)
        except BaseException as error:
            raise_unless_of_text(error)
            problem = f"tokenizer failed ({type(error).__name__})"
        encoded.append((np.array(ids, dtype=np.uint16), problem))
    return encoded


def raise_unless_of_text(error):
    """Raises an error of the tokenizer again unless the text is its reason: half a surrogate pair, a stack too deep."""
    # A panic in Rust arrives as a PanicException, which is no Exception.
    if type(error).__name__ != "PanicException" and not isinstance(error, ValueError | RuntimeError):
        raise error


def encode_in_order(enc, numbered_pieces, threads):
    """(file, number, Piece) -> (file, number, tokens, problem), encoded in threads, in order, in bounded memory."""
    pool, waiting, ahead = ThreadPoolExecutor(threads), deque(), 0  # (batch, its size, future), oldest first
    most = max(AHEAD_CHARS, 2 * threads * BATCH_CHARS)
    try:
        for batch, size in itertools.chain(batches(numbered_pieces), [(None, 0)]):
            if batch:
                waiting.append((batch, size, pool.submit(encode_batch, enc, [piece for *_, piece in batch])))
                ahead += size
            while waiting and (not batch or ahead > most or waiting[0][2].done()):
                done, size, future = waiting.popleft()
                ahead -= size
                for (file, number, _), (tokens, problem) in zip(done, future.result(), strict=True):
                    yield file, number, tokens, problem
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batches(numbered_pieces):
    """(file, number, Piece) -> lists of them with about BATCH_CHARS of text, and the size of each."""
    batch, size = [], 0
    for item in numbered_pieces:
        batch.append(item)
        size += len(item[2].text) + 100  # an empty document takes memory too
        if size >= BATCH_CHARS:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


# === 3. Shards. =======================================================================================================
def make_shards(source, enc, place, shard_size, threads=1, progress=lambda n: None):
    """Shards of `shard_size` tokens from a place in the source on. The last has what is left, which may be nothing.

    A place is [file, piece, token]: so many files, pieces of the next and tokens of the next piece are used up. It
    depends on the source and the tokenizer only, never on batches or threads.

    Yields (uint16 tokens, a view that is valid until the next shard is asked for; the place where the next shard
    starts, None at the source's end; Counter of the problems of rows that could not be used).
    """
    buffer, filled, problems = np.empty(shard_size, dtype=np.uint16), 0, Counter()
    used = place[2]  # tokens of the piece that are already in a shard
    for file, number, tokens, problem in encode_in_order(enc, read_pieces(source, *place[:2]), threads):
        require_place(used < len(tokens) or not used)
        problems.update([problem] if problem else [])
        while True:
            n = min(len(tokens) - used, shard_size - filled)
            buffer[filled:filled + n] = tokens[used:used + n]
            filled, used = filled + n, used + n
            progress(n)
            if filled < shard_size:
                break
            whole = used == len(tokens)
            yield buffer, [file, number + whole, 0 if whole else used], problems
            filled, problems = 0, Counter()
        used = 0
    require_place(not used)
    yield buffer[:filled], None, problems


def write_shard(path, tokens, start, enc):
    """Writes a shard and returns its entry in the manifest."""
    byte_lengths = np.zeros(enc.n_vocab, dtype=np.uint32)  # bytes of text that a token stands for; the marker has none
    for token, rank in enc._mergeable_ranks.items():
        byte_lengths[rank] = len(token)
    slices = (tokens[i:i + 2**20] for i in range(0, len(tokens), 2**20))  # the numbers of a whole shard take 400 MB
    hint = "make room; finished shards are kept, and the same command goes on"
    write_whole(path, lambda file: np.save(file, tokens, allow_pickle=False), hint)
    documents = int(np.count_nonzero(tokens == tokenizer.eot_id(enc)))
    text_bytes = sum(int(byte_lengths[ids].sum(dtype=np.int64)) for ids in slices)
    return dict(file=path.name, split=path.name.split("_")[1], tokens=len(tokens), documents=documents,
                bytes=text_bytes, sha256=sha256_of(path), start=start)


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# === 4. The manifest. =================================================================================================
FORMAT = 2
START = [0, 0, 0]  # a place, see make_shards; `next` is the one where the next shard starts, None at the source's end
NPY_HEADER = 128  # bytes before the tokens
SHARD_FORM = dict(file=str, split=str, tokens=int, documents=int, bytes=int, sha256=str, start=[int])
MANIFEST_FORM = dict(format=int, source=dict(kind=str), tokenizer=dict(name=str, sha256=str, vocab_size=int),
                     shard_size=int, shards=[SHARD_FORM], bad_rows={}, versions={})


def new_manifest(source, enc, shard_size):
    packages = ("numpy", "tiktoken", "pyarrow", "datasets")
    versions = {"python": sys.version.split()[0]} | {package: version(package) for package in packages}
    kind = dict(name=enc.name, sha256=tokenizer.fingerprint(enc), vocab_size=enc.n_vocab)
    return dict(format=FORMAT, source=source.describe(), tokenizer=kind, shard_size=shard_size, shards=[], next=START,
                bad_rows={}, versions=versions)


def save_manifest(folder, manifest):
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / "manifest.json", lambda file: file.write(text.encode("utf-8")))


def load_manifest(folder):
    """The manifest of a folder of shards; None if there is no such file. Raises UserError if it is damaged."""
    path, hint = Path(folder) / "manifest.json", "restore it, or choose another --out"
    if not path.exists():
        return None
    with explaining(f"cannot read {path}", (OSError, ValueError, RecursionError), hint):
        manifest = json.loads(path.read_bytes())
    require(has_form(manifest, MANIFEST_FORM) and is_consistent(manifest), f"{path} is damaged, or not of this program",
            hint)
    return manifest


def has_form(value, form):
    """Whether a value from JSON is of the kinds that a form names; numbers are whole and not negative."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in value and has_form(value[key], form[key]) for key in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(has_form(item, form[0]) for item in value)
    return type(value) is form and (form is not int or 0 <= value < 2**63)


def is_consistent(manifest):
    """Whether the shards are numbered and full, and each starts behind the one before it."""
    shards, end, source = manifest["shards"], manifest.get("next", "missing"), manifest["source"]
    places = [shard["start"] for shard in shards] + [end] * (end is not None)
    prefix = shards[0]["file"].partition("_")[0] if shards else "docs"
    return (
        manifest["format"] == FORMAT and has_form([*manifest["bad_rows"].values()], [int])
        and all(has_form(value, [{}] if key == "files" else str) for key, value in source.items() if value is not None)
        and re.fullmatch(r"[A-Za-z0-9.-]+", prefix)
        and all(shard["file"] == shard_name(prefix, index) for index, shard in enumerate(shards))
        and all(shard["split"] == shard["file"].split("_")[1] for shard in shards)
        and all(shard["tokens"] == manifest["shard_size"] for shard in shards[:len(shards) - (end is None)])
        and has_form(places, [[int]]) and all(len(place) == 3 for place in places) and places[:1] in ([], [START])
        and all(earlier < later for earlier, later in itertools.pairwise(places))
    )


def shard_name(prefix, index):
    return f"{prefix}_{'train' if index else 'val'}_{index:06d}.npy"


def shard_fault(folder, shard, read=False):
    """None, or what is wrong with a shard's file: its size, and with `read` also its content."""
    path, size = Path(folder) / shard["file"], NPY_HEADER + 2 * shard["tokens"]
    if not path.is_file():
        return "missing"
    if path.stat().st_size != size:
        return f"{path.stat().st_size:,} bytes instead of {size:,}"
    return "its sha256 has changed" if read and sha256_of(path) != shard["sha256"] else None


def settings(manifest):
    """What all shards of a folder have in common: {name: value in words}."""
    source, kind = dict(manifest["source"]), manifest["tokenizer"]
    files = {f"file {k}": " ".join(map(str, file.values())) for k, file in enumerate(source.pop("files", []), 1)}
    words = f"{kind['vocab_size']} tokens, sha256 {kind['sha256'][:16]}"
    return dict(tokenizer=words, shard_size=manifest["shard_size"]) | source | files


# === 5. Building. =====================================================================================================
def build(source, enc, out, shard_size, num_shards=None, threads=1):
    """Writes the shards that are still missing in `out` and returns the manifest.

    source      HubSource or FileSource
    enc         tiktoken.Encoding
    num_shards  how many in all, validation included; None: until the source ends

    Raises UserError, or OSError for a folder or file that may not be used; what was finished is kept.
    """
    require(enc.n_vocab <= tokenizer.MAX_VOCAB, f"tokenizer {enc.name} has {enc.n_vocab:,} tokens",
            "shards hold uint16, at most 65,536: use a smaller vocabulary")
    out = Path(out)
    manifest = open_folder(out, new_manifest(source, enc, shard_size))
    for shard in manifest["shards"]:
        if shard_fault(out, shard) == "missing":
            print(f"{shard['file']} is missing: making it again")
            tokens, _, _ = next(make_shards(source, enc, shard["start"], shard_size, threads))
            if write_shard(out / shard["file"], tokens, shard["start"], enc) != shard:
                (out / shard["file"]).unlink()
                raise UserError(f"{shard['file']} was made again, but differs from the one in the manifest",
                                "the source has changed: choose another --out")
    if is_finished(manifest, num_shards):
        print(f"{out}: nothing to do, {len(manifest['shards'])} shards are there")
    else:
        extend(manifest, source, enc, out, num_shards, threads)
        same = source.describe() == manifest["source"]
        require(same, "the source has changed while it was read", "choose another --out")
    return manifest


def is_finished(manifest, num_shards):
    return manifest["next"] is None or (num_shards is not None and len(manifest["shards"]) >= num_shards)


def open_folder(out, wanted):
    """Makes the folder, or takes up the one that is there: returns its manifest, or `wanted` for an empty one.
    Raises UserError for a folder that does not fit, before anything in it is changed."""
    hint = "choose another --out"
    out.mkdir(parents=True, exist_ok=True)
    manifest = load_manifest(out)
    if manifest is None:
        strangers = sorted(path.name for path in out.glob("*.npy"))
        require(not strangers, f"{out} holds shards but no manifest.json: {strangers[:1]}", f"it is lost: {hint}")
        same = not (out / "tokenizer.json").exists() or (
            tokenizer.fingerprint(tokenizer.load_tokenizer(out)) == wanted["tokenizer"]["sha256"])
        require(same, f"{out} holds another tokenizer.json", hint)
    if manifest is None or not manifest["shards"]:
        manifest = wanted  # killed before the first shard was whole: nothing to be true to
    old, new = settings(manifest), settings(wanted)
    found = [f"{key} (there {old.get(key)}, now {new.get(key)})" for key in old | new if old.get(key) != new.get(key)]
    require(not found, f"{out} was made with other settings: {'; '.join(found[:3])}",
            f"{hint}, or give those it was made with (--info shows them); cp -p keeps the date of a file")
    for shard in manifest["shards"]:
        fault = shard_fault(out, shard)
        require(fault in (None, "missing"), f"{out / shard['file']} is damaged: {fault}",
                "delete that file and run the same command again: it alone is made anew")
    # What a killed run can leave: a temporary file, and a shard that the manifest had no time to note.
    (out / "manifest.json.0.tmp").touch()  # hours of work must not end in a folder that cannot be written to
    unnoted = out.glob(shard_name("*", len(manifest["shards"])))
    for leftover in [*out.glob("*.npy.*tmp"), *out.glob("*.json.*tmp"), *unnoted]:
        leftover.unlink()
    return manifest


def extend(manifest, source, enc, out, num_shards, threads):
    """Makes shard after shard from where the manifest ends; the manifest is saved with each."""
    from tqdm import tqdm

    shards, size, begun = manifest["shards"], manifest["shard_size"], time.perf_counter()
    done = total(shards, "tokens")
    goals = [n for n in (num_shards and num_shards * size, source.expected_tokens) if n]
    goal = int(min(goals, default=done + size))  # where nothing tells how long the source is: a shard has to fit
    need, free = 2 * (goal - done), shutil.disk_usage(out).free
    require(need <= free, f"{out} needs about {need / 1e6:,.0f} MB more, the disk has {free / 1e6:,.0f} MB free",
            "make room, choose another --out, or ask for less with --num_shards")
    with tqdm(total=max(goal, done) if goals else None, initial=done, unit=" tokens", unit_scale=True, smoothing=0.1,
              mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        for tokens, place, problems in make_shards(source, enc, manifest["next"], size, threads, bar.update):
            manifest["bad_rows"] = dict(Counter(manifest["bad_rows"]) + problems)
            if place is None:
                require_training_tokens(manifest, len(tokens), num_shards)
            if not shards:
                save_manifest(out, manifest)  # so that no file is ever without one
                tokenizer.save_tokenizer(enc, out / "tokenizer.json")
            if len(tokens):
                entry = write_shard(out / shard_name(source.prefix, len(shards)), tokens, manifest["next"], enc)
                shards.append(entry)
                rate = (total(shards, "tokens") - done) / (time.perf_counter() - begun)
                bar.write(f"{entry['file']}  {entry['tokens']:,} tokens  {entry['documents']:,} documents  "
                          f"{entry['bytes'] / entry['tokens']:.2f} bytes/token  {rate / 1e6:.2f} M tokens/s")
            manifest["next"] = place
            save_manifest(out, manifest)
            if is_finished(manifest, num_shards):
                break


def require_training_tokens(manifest, last, num_shards):
    """Raises UserError if the source, at its end, has given nothing to train on. last: tokens of the last shard."""
    shards, size = manifest["shards"], manifest["shard_size"]
    tokens = total(shards, "tokens") + last
    require(tokens, f"the source holds no documents ({describe_counts(manifest['bad_rows']) or 'and no rows'})",
            "is it the right file, and the right --text_column?")
    require(tokens > size or num_shards == 1,
            f"the source has only {tokens:,} tokens: with --shard_size {size} all of them go to validation",
            f"--shard_size {max(1, tokens // 10)} would keep a tenth for validation"
            + "; delete the folder first" * bool(shards))


def total(shards, key):
    return sum(shard[key] for shard in shards)


# === 6. Looking at a folder of shards. ================================================================================
def print_info(folder):
    """The manifest as a table, and how a shard begins. Raises UserError if a shard is not as the manifest says."""
    folder, manifest = Path(folder), load_manifest(folder)
    require(manifest, f"{folder} holds no manifest.json", "give a folder that fineweb.py has made")
    shards, faults = manifest["shards"], []
    for key, value in (settings(manifest) | manifest["versions"]).items():
        print(f"{key:12} {value}")
    print("complete     " + ("yes" if manifest["next"] is None else "the source has more: the same command goes on"))
    print(f"\n{'shard':32}{'tokens':>16}{'documents':>14}{'bytes':>18}{'bytes/token':>13}  sha256")
    totals = dict(file="total", sha256="") | {key: total(shards, key) for key in ("tokens", "documents", "bytes")}
    for shard in [*shards, totals]:
        fault = shard_fault(folder, shard, read=True) if shard is not totals else None
        faults += [f"{shard['file']} ({fault})"] if fault else []
        print(f"{shard['file']:32}{shard['tokens']:16,}{shard['documents']:14,}{shard['bytes']:18,}"
              f"{shard['bytes'] / max(1, shard['tokens']):13.3f}  {shard['sha256'][:12]}  {fault or ''}")
    if manifest["bad_rows"]:
        print(f"rows left out: {describe_counts(manifest['bad_rows'])}")
    require(not faults, f"not as the manifest says: {', '.join(faults)}",
            "delete what is damaged and run the command that made the folder: it makes those shards anew")
    if shards:
        enc, first = tokenizer.load_tokenizer(folder), shards[:2][-1]["file"]
        ids = np.load(folder / first, mmap_mode="r", allow_pickle=False)[:400].tolist()
        text = enc.decode([i for i in ids if i < enc.n_vocab]).replace(EOT, f"\n{EOT}\n").strip("\n")
        print("\n".join([f"\n{first} begins:\n", *(f"  | {line[:110]}" for line in text.split("\n")[:12])]))


# === 7. Commands. =====================================================================================================
def positive(text):
    if not text.isdigit() or int(text) < 1:
        raise ValueError(text)
    return int(text)


def make_parser():
    parser = Parser("fineweb.py", description=__doc__.strip().split("\n\n")[0], allow_abbrev=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    files = ("your own documents: .parquet, .jsonl, .txt, the last two also with .gz or .zst; "
             f"a text file holds documents separated by {EOT}")
    versions = "10 or 100 billion tokens of FineWeb-Edu or FineWeb, 20 or 200 GB (default: 10Bedu)"
    tokenizer.add_source_options(parser, files, versions)
    parser.add_argument("--tokenizer", default="gpt2", help="gpt2, or a tokenizer.json (default %(default)s)")
    parser.add_argument("--out", metavar="DIR", help="folder for the shards (default: named after the source)")
    parser.add_argument("--num_shards", type=positive, help="stop after so many, validation included (default all)")
    parser.add_argument("--shard_size", type=positive, default=10**8, help="tokens in a shard (default %(default)s)")
    parser.add_argument("--nprocs", type=positive, default=cores, help="encoding threads (default the cores)")
    parser.add_argument("--info", metavar="DIR", help="show what is in a folder of shards, and make nothing")
    return parser


def make_source(options):
    """What --version, --dataset or --files asks for -> (source, the folder that it goes to without --out)."""
    if not (options.files or options.dataset or options.version):
        options.version = "10Bedu"
    on_the_hub = tokenizer.hub_options(options)
    if not on_the_hub:
        return FileSource(options.files, options.text_column), "shards"
    source = HubSource(*on_the_hub)
    if options.dataset:
        return source, f"{source.prefix}_shards"
    out, source.expected_tokens = SIZES[options.version]
    return source, out


def run(argv):
    options = make_parser().parse_args(argv)
    if options.info:
        return print_info(options.info)
    enc = tokenizer.load_tokenizer(options.tokenizer)
    source, out = make_source(options)
    out = Path(options.out or out)
    if options.dataset:
        source.resolve((load_manifest(out) or {"source": {}})["source"])
    manifest = build(source, enc, out, options.shard_size, options.num_shards, options.nprocs)
    shards = manifest["shards"]
    print(f"{out}: {total(shards, 'tokens'):,} tokens of {total(shards, 'documents'):,} documents")
    if manifest["bad_rows"]:
        print(f"rows left out: {describe_counts(manifest['bad_rows'])}")
    if (held_out := shards[0]["tokens"]) <= 1024:
        print(f"validation has {held_out:,} tokens, less than one context of GPT-2: its loss will say little")
    if len(shards) == 1:
        print("this is the validation shard only; there is nothing to train on yet: ask for --num_shards 2 or more")
    else:
        print(f"next: python train_gpt2.py --data {out}")


def main(argv=None):
    return run_main(run, argv, interrupted="\nstopped; finished shards are kept, and the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
