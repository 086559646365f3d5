"""What the project's own text teaches in two minutes: samples, and how much of them is invented and how much copied.

    python tests/benchmarks/bench_stories.py                           # the default run, with both optimizers
    python tests/benchmarks/bench_stories.py --optimizers adamw        # only this one; the other entry stays
    python tests/benchmarks/bench_stories.py --checkpoint log/tales    # looks at a model of yours, writes nothing

From 100 samples of each model it counts the share of words that occur in the text it learned from (no invented words),
the longest run of words that stands there verbatim, and the share of all words in runs of ten and more (no memory that
passes for skill). The same share is counted on 100 held-out stories, for comparison. Writes results/stories.json.
"""

import argparse
import contextlib
import io
import json
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

from hardware import cpu_name

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the line above makes the project importable from anywhere

import tokenizer  # noqa: E402
from train_gpt2 import GPT, TrainConfig, setup_runtime, train  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "stories.json"
SAMPLES, TOKENS, RUN = 100, 400, 10


def words(text):
    """Text -> its words, in lower case."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


class Learned:
    """The words of the text that was learned from, and where each pair of them stands."""

    def __init__(self, documents):
        self.text = [word for document in documents for word in [*words(document), ""]]  # "": no run crosses this
        self.known, self.places = set(self.text), {}
        for i, pair in enumerate(zip(self.text, self.text[1:], strict=False)):
            self.places.setdefault(pair, []).append(i)

    def runs(self, text):
        """Words of a sample -> for each position the length of the longest run from there that was learned verbatim."""
        lengths = []
        for start in range(len(text)):
            best = int(text[start] in self.known)
            for place in self.places.get(tuple(text[start : start + 2]), ()):
                n = 2
                while start + n < len(text) and text[start + n] == self.text[place + n]:
                    n += 1
                best = max(best, n)
            lengths.append(best)
        return lengths

    def judge(self, texts):
        """Texts -> the three figures of the docstring, over all of them."""
        count = known = copied = longest = 0
        for text in map(words, texts):
            lengths, end = self.runs(text), 0
            for i, n in enumerate(lengths):
                end = max(end, i + n) if n >= RUN else end
                copied += i < end
            count, known = count + len(text), known + sum(word in self.known for word in text)
            longest = max([longest, *lengths])
        shares = dict(share_known_words=known / count, share_in_runs_of_10=copied / count)
        return dict(words=count, longest_copied_words=longest, **shares)


def copied_piece(learned, text):
    """The longest run of words of a sample that was learned verbatim, as the sample writes it."""
    found = list(re.finditer(r"[a-z]+(?:'[a-z]+)?", text.lower()))
    lengths = learned.runs([match.group() for match in found])
    if not lengths:
        return 0, ""
    start = max(range(len(lengths)), key=lengths.__getitem__)
    return lengths[start], text[found[start].start() : found[start + max(lengths[start], 1) - 1].end()]


def sample(model, encoding, rt, temperature, top_k, count=SAMPLES):
    """-> texts from the beginning of a document on, and for each whether it came to its end."""
    eot, generator = tokenizer.eot_id(encoding), torch.Generator().manual_seed(1337)
    texts, ended = [], []
    with rt.autocast():
        start = torch.full((count, 1), eot, device=rt.device)
        rows = model.generate(start, TOKENS, temperature, top_k, stop_token=eot, generator=generator)
    for row in rows[:, 1:].tolist():
        ended.append(eot in row)
        texts.append(encoding.decode(row[: row.index(eot)] if eot in row else row).strip())
    return texts, ended


def look(model, encoding, learned, rt):
    """100 samples as the trainer takes them -> figures, and the first three samples as they came."""
    texts, ended = sample(model, encoding, rt, 0.8, 50)
    shown = []
    for text, whole in list(zip(texts, ended, strict=True))[:3]:
        n, piece = copied_piece(learned, text)
        shown.append(dict(text=text, ended=whole, longest_copied_words=n, longest_copied=piece))
    return learned.judge(texts) | dict(share_ended=sum(ended) / len(ended), samples=shown)


def sampling(model, encoding, learned, rt):
    """The figures at other temperatures and numbers of candidates, 100 samples each."""
    rows = []
    for temperature, top_k in ((0.5, 50), (0.7, 50), (0.8, 50), (0.9, 50), (1.0, 50), (0.8, None), (1.0, None)):
        texts, ended = sample(model, encoding, rt, temperature, top_k)
        figures = learned.judge(texts) | dict(share_ended=sum(ended) / len(ended), temperature=temperature, top_k=top_k)
        figures["different_words"] = len({word for text in texts for word in words(text)})
        rows.append(figures)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}, flush=True)
    return rows


def run(optimizer, folder):
    """Trains the default recipe -> the model, its tokenizer, and an entry of the result file."""
    cfg = TrainConfig(optimizer=optimizer, log_dir=folder)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        events = train(cfg)
    minutes = (time.perf_counter() - start) / 60
    run_dir, bpb = Path(folder) / "tales", [e["val_bpb"] for e in events if e["event"] == "val"][-1]
    model, encoding = GPT.from_pretrained(run_dir), tokenizer.load_tokenizer(str(run_dir / "tokenizer.json"))
    entry = dict(name=f"tales, {optimizer}", minutes=minutes, parameters=model.num_params(), val_bpb=bpb)
    return model, encoding, entry


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--checkpoint", help="a run's folder or a checkpoint: only look at it")
    args = parser.parse_args(argv)
    rt = setup_runtime()
    train_documents, held_out = tokenizer.split_corpus(tokenizer.read_text(ROOT / "input.txt"))
    learned = Learned(train_documents)
    if args.checkpoint:
        path = Path(args.checkpoint)
        encoding = tokenizer.find_tokenizer(path if path.is_dir() else path.parent)
        print(json.dumps(look(GPT.from_pretrained(path), encoding, learned, rt), indent=1))
        return 0
    result = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else dict(runs=[])
    result["held_out_stories"] = learned.judge(held_out[:SAMPLES])
    for optimizer in args.optimizers:
        with tempfile.TemporaryDirectory() as folder:
            model, encoding, entry = run(optimizer, folder)
        entry |= look(model, encoding, learned, rt)
        if optimizer == "adamw":
            result["sampling"] = sampling(model, encoding, learned, rt)
        result["runs"] = [r for r in result["runs"] if r["name"] != entry["name"]] + [entry]
        result["hardware"] = dict(cpu=cpu_name(), threads=torch.get_num_threads())
        result["versions"] = dict(torch=torch.__version__, python=platform.python_version())
        result["date"] = time.strftime("%Y-%m-%d")
        RESULTS.write_text(json.dumps(result, indent=1), "utf-8")
        print({k: v for k, v in entry.items() if k != "samples"}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
