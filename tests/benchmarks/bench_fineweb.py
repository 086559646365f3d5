"""How fast fineweb.py makes shards, beside tiktoken alone on the same cores and documents, and in how much memory.

    python tests/benchmarks/bench_fineweb.py            # prints two tables, writes results/fineweb.json; some minutes

Speed: "tiktoken alone" is `encode_ordinary_batch`, 1,024 documents a call, already in memory, the tokens thrown away;
"loop" is `encode_ordinary`, one document after the other, which on one core saves the cost of handing out the work;
fineweb.py's time is all of its work: reading the file, encoding, counting, writing shards, sums and manifest to the
disk. Each run is a fresh process, bound to so many cores; the runs take turns. Imports and loading the tokenizer are
not counted, in either.
Memory: the peak of the one process there is (no other is started), for sources that differ in size; for a document of
30 MB that is a single word, the worst there is; and what the trainer's loader adds to its process when it reads 2,000
shuffled batches of 16 x 1,024 from a folder of 2 GB.
The documents are the stories of input.txt, over and over; GPT-2's tokenizer.
"""

import argparse
import datetime
import gzip
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from hardware import cpu_name

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import fineweb  # noqa: E402  the line above makes it importable from anywhere
import tokenizer  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "fineweb.json"
BATCH = 1024  # documents in a call of encode_ordinary_batch
FORMATS = ("parquet", "jsonl", "jsonl.gz", "txt")
MEMORY_SOURCES = (("parquet", 400), ("parquet", 1600), ("one group.parquet", 1000), ("jsonl", 1000), ("txt", 1000))


def cores_here():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def documents(copies):
    return tokenizer.split_documents((ROOT / "input.txt").read_text(encoding="utf-8")) * copies


def write_source(folder, kind, copies):
    """One file of stories; parquet in row groups of 1,000, as FineWeb's. Written piece by piece: it may be large."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stories, path = documents(1), folder / f"{copies}.{kind}"
    if kind == "one group.parquet":  # as pandas writes it
        pq.write_table(pa.concat_tables([pa.table({"text": stories})] * copies), path, row_group_size=10**9)
    elif kind == "one word.jsonl":
        letters = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=copies * 10**6))
        path.write_text(json.dumps({"text": letters}) + "\n" + json.dumps({"text": stories[0]}), encoding="utf-8")
    elif kind == "parquet":
        with pq.ParquetWriter(path, pa.schema({"text": pa.string()})) as writer:
            for _ in range(copies):
                writer.write_table(pa.table({"text": stories}))
    else:
        text = (f"{tokenizer.EOT}\n".join(stories) + tokenizer.EOT + "\n" if kind == "txt"
                else "".join(json.dumps({"text": story}) + "\n" for story in stories)).encode()
        with (gzip.open if kind.endswith("gz") else open)(path, "wb") as file:
            for _ in range(copies):
                file.write(text)
    return path


def bind_to(cores):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def child(what, path, cores, copies):
    """One measurement in this process: prints tokens and seconds."""
    bind_to(cores)
    enc = tokenizer.load_tokenizer("gpt2")
    if what == "loop":
        texts = documents(copies)
        begun = time.perf_counter()
        tokens = sum(len(enc.encode_ordinary(text)) + 1 for text in texts)
        seconds = time.perf_counter() - begun
    elif what == "tiktoken":
        texts = documents(copies)
        begun, tokens = time.perf_counter(), 0
        for i in range(0, len(texts), BATCH):  # all at once would be slower: ten million Python integers to keep
            tokens += sum(map(len, enc.encode_ordinary_batch(texts[i:i + BATCH], num_threads=cores)))
        seconds = time.perf_counter() - begun
        tokens += len(texts)  # <|endoftext|>, to count the same
    else:
        import pyarrow.parquet  # noqa: F401  imports are not counted
        import tqdm  # noqa: F401

        with tempfile.TemporaryDirectory(dir=Path(path).parent) as out:
            begun = time.perf_counter()
            source = fineweb.FileSource([path])
            manifest = fineweb.build(source, enc, out, 10**7, threads=cores)
            seconds = time.perf_counter() - begun
        tokens = sum(shard["tokens"] for shard in manifest["shards"])
    print(json.dumps({"tokens": tokens, "seconds": seconds}))


def measure(*arguments):
    """Runs `child` in a fresh process -> what it prints."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def speed(folder, copies, repeats):
    paths = {kind: write_source(folder, kind, copies) for kind in FORMATS}
    rows = []
    for cores in (n for n in (1, 2, 4, 8) if n <= cores_here()):
        rates = {what: [] for what in ("tiktoken", *(["loop"] if cores == 1 else []), *FORMATS)}
        for _ in range(repeats):
            for what in rates:
                result = measure(what, paths.get(what, "-"), cores, copies)
                rates[what].append(result["tokens"] / result["seconds"] / 1e6)
        base = statistics.median(rates["tiktoken"])
        for what, values in rates.items():
            rows.append({"cores": cores, "what": what, "repeats": repeats, "tokens": result["tokens"],
                         "mtok_per_s": round(statistics.median(values), 3),
                         "min": round(min(values), 3), "max": round(max(values), 3),
                         "of_tiktoken": round(statistics.median(values) / base, 3)})
            print("{cores} cores  {what:9} {mtok_per_s:7.2f} M tokens/s ({min:.2f} to {max:.2f})  "
                  "{of_tiktoken:.2f} of tiktoken alone".format(**rows[-1]), flush=True)
    return rows


PEAK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import fineweb
if fineweb.main(sys.argv[2:]): sys.exit(1)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak, children)
"""


def memory(folder, sizes):
    """Peak resident memory of the whole command, with shards of the default size, for sources of growing size."""
    rows = []
    for kind, copies in sizes:
        path = write_source(folder, kind, copies)
        with tempfile.TemporaryDirectory(dir=folder) as out:
            shards = 1 if kind == "one word.jsonl" else 3
            command = [sys.executable, "-c", PEAK, str(ROOT), "--files", str(path), "--out", out]
            command += ["--num_shards", str(shards)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, children = map(int, done.stdout.split()[-2:])
        rows.append({"format": kind, "source_mb": round(path.stat().st_size / 1e6),
                     "text_mb": copies if kind == "one word.jsonl" else round(
                         copies * (ROOT / "input.txt").stat().st_size / 1e6),
                     "peak_mb": round(peak / 1e6), "other_processes_mb": round(children / 1e3)})
        path.unlink()
        print("{format:8} {text_mb:5} MB of text: peak {peak_mb} MB, other processes {other_processes_mb} MB".format(
            **rows[-1]), flush=True)
    return rows


LOADER = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from train_gpt2 import DataLoaderLite, TokenStream, load_shard
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
stream = TokenStream([load_shard(path) for path in sorted(Path(sys.argv[2]).glob("*.npy"))], 50257)
loader = DataLoaderLite(stream, 16, 1024)
for step in range(2000):
    loader.batch(step)
print(peak() - before)
"""


def loader_memory(folder):
    """What the loader adds to the resident memory of a training process, MB."""
    generator = np.random.default_rng(0)
    for i in range(10):
        np.save(folder / f"docs_train_{i:06d}.npy", generator.integers(0, 50257, 10**8, dtype=np.uint16))
    command = [sys.executable, "-c", LOADER, str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    added = round(int(done.stdout) / 1e6)
    print(f"the loader adds {added} MB for 2 GB of shards")
    return added


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--copies", type=int, default=40, help="of input.txt, 0.3 million tokens each, for the speed")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.child:
        what, path, cores, copies = options.child
        return child(what, path, int(cores), int(copies))
    with tempfile.TemporaryDirectory() as folder:
        rows = speed(Path(folder), options.copies, options.repeats)
        peaks = memory(Path(folder), MEMORY_SOURCES)
        one_word = memory(Path(folder), [("one word.jsonl", 30)])[0]
        loader_mb = loader_memory(Path(folder))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({
        "date": datetime.date.today().isoformat(),
        "hardware": {"cpu": cpu_name(), "cores": cores_here()},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("tiktoken", "numpy", "pyarrow")},
        "documents": "the stories of input.txt, repeated; GPT-2's tokenizer",
        "load_average_at_the_end": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "speed": rows, "memory": peaks, "one_word": one_word, "loader_mb": loader_mb,
    }, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
