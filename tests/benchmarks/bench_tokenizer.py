"""How long training a tokenizer takes, beside the trainer in Rust of Hugging Face's tokenizers.

    python tests/benchmarks/bench_tokenizer.py                  # prints a table, writes results/tokenizer.json
    python tests/benchmarks/bench_tokenizer.py --text my.txt    # a text of your own as the third case

Cases: input.txt with 1,024 tokens; 12 MB with 16,384 tokens. The repository holds no 12 MB of text, so they are made,
the same on every machine: the stories' words in the stories' order, but every third word is an invented one. Invented
words come from a model of the letters of the corpus's words (next letter given the last two), and as in real text a
few of them are frequent and most are rare (the r-th is drawn with weight 1 / (r + 3)). The corpus alone would be too
easy: it has 5,000 distinct words, and the cost of merging grows with the distinct words, not with the text. The result
file says how many there are; it takes a text of this length on the order of 100,000 to be like a real one.

Each case runs `--repeats` times; the table gives the median of the seconds, and of these the best and the worst.
"""
import argparse
import itertools
import json
import os
import platform
import random
import statistics
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from hardware import cpu_name

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tokenizer as T  # noqa: E402  the line above makes it importable from anywhere

RESULTS = Path(__file__).parent / "results" / "tokenizer.json"


def invented_words(words, n_words, rng):
    """`n_words` distinct words in the spelling of `words`: each letter is drawn given the two before it."""
    following = defaultdict(list)
    for word in words:
        for a, b, c in zip("^^" + word, "^" + word, word + "$", strict=False):
            following[a + b].append(c)
    made = set(words)
    new = []
    while len(new) < n_words:
        word, last = "", "^^"
        while (letter := rng.choice(following[last])) != "$" and len(word) < 20:
            word, last = word + letter, last[1] + letter
        if word and word not in made:
            made.add(word)
            new.append(word)
    return new


def synthetic_documents(n_bytes, n_invented=200_000, seed=0):
    """About `n_bytes` of text as a list of documents, the same on every machine. See the top of this file."""
    rng = random.Random(seed)
    stories = T.split_documents((ROOT / "input.txt").read_text(encoding="utf-8"))
    real = sorted({word for story in stories for word in story.split() if word.isalpha()})
    invented = invented_words(real, n_invented, rng)
    cumulative = list(itertools.accumulate(1 / (rank + 3) for rank in range(n_invented)))
    documents, size = [], 0
    while size < n_bytes:
        words = rng.choice(stories).split(" ")
        words[::3] = rng.choices(invented, cum_weights=cumulative, k=len(words[::3]))
        documents.append(" ".join(words))
        size += len(documents[-1].encode("utf-8"))
    return documents


def hugging_face(documents, vocab_size):
    """Train with the tokenizers package: byte-level BPE with the same split. Returns its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    peer.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=vocab_size - 1, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return peer.get_vocab()


def as_bytes(tokens):
    """GPT-2's way to write bytes as characters, undone: those that print stand for themselves, the rest from U+0100."""
    printing = [value for value in range(256) if chr(value).isprintable() and chr(value) != " "]
    others = [value for value in range(256) if value not in printing]
    byte_of = {chr(value): value for value in printing} | {chr(256 + n): value for n, value in enumerate(others)}
    return {bytes(byte_of[char] for char in token) for token in tokens}


def seconds(function, repeats):
    """(result of function(), its times in seconds)."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - started)
    return result, times


def summary(times):
    return {"median_s": round(statistics.median(times), 3), "best_s": round(min(times), 3),
            "worst_s": round(max(times), 3)}


def measure(name, documents, vocab_size, repeats):
    """One case -> a row of the result file."""
    n_bytes = sum(len(document.encode("utf-8")) for document in documents)
    row = {"case": name, "bytes": n_bytes, "documents": len(documents), "vocab_size": vocab_size}
    counts, times = seconds(lambda: T.count_words(documents), repeats)
    row.update(words=counts.total(), distinct_words=len(counts), count=summary(times))
    _, times = seconds(lambda: T.learn_merges(counts, vocab_size - T.MIN_VOCAB), repeats)
    row["merge"] = summary(times)
    ranks, times = seconds(lambda: T.train_bpe(documents, vocab_size), repeats)
    row["train_bpe"] = summary(times)
    try:
        theirs, times = seconds(lambda: hugging_face(documents, vocab_size), repeats)
    except ImportError:
        return row
    row["hugging_face"] = summary(times)
    row["tokens_in_common"] = len(ranks.keys() & as_bytes(theirs))      # ties may be broken differently
    return row


def peak_memory_mb():
    """Largest resident memory of this process so far, or None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10     # bytes there, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=12, help="size of the made text (default: 12)")
    parser.add_argument("--vocab_size", type=int, default=16_384, help="for the made text and --text (default: 16384)")
    parser.add_argument("--text", help="a text file of your own")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"result file (default: {RESULTS.name})")
    args = parser.parse_args(argv)

    cases = [("input.txt", T.split_documents(T.read_text(ROOT / "input.txt")), 1024),
             (f"made, {args.megabytes:g} MB", synthetic_documents(args.megabytes * 10**6), args.vocab_size)]
    if args.text:
        cases.append((Path(args.text).name, T.split_documents(T.read_text(args.text)), args.vocab_size))
    rows = [measure(*case, args.repeats) for case in cases]
    result = {"what": "seconds to train a byte-level BPE tokenizer", "repeats": args.repeats,
              "python": platform.python_version(), "cpu": cpu_name(), "date": time.strftime("%Y-%m-%d"),
              "tokenizers": version("tokenizers"), "peak_memory_mb": peak_memory_mb(),
              "rows": rows}

    print(f"{'case':<14} {'bytes':>12} {'distinct':>9} {'vocabulary':>10} | {'count':>7} {'merge':>7} "
          f"{'train_bpe':>10} {'(best, worst)':>15} | {'Hugging Face':>12} {'in common':>10}")
    for row in rows:
        ours, theirs = row["train_bpe"], row.get("hugging_face", {})
        print(f"{row['case']:<14} {row['bytes']:>12,} {row['distinct_words']:>9,} {row['vocab_size']:>10,} | "
              f"{row['count']['median_s']:>7} {row['merge']['median_s']:>7} {ours['median_s']:>10} "
              f"{'({best_s}, {worst_s})'.format(**ours):>15} | {theirs.get('median_s', '-'):>12} "
              f"{row.get('tokens_in_common', '-'):>10}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.exit(main())
