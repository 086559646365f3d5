"""Puts the tables of the result files into README.md and tests/benchmarks/README.md, between their markers.

    python tests/benchmarks/report.py            # rewrite both
    python tests/benchmarks/report.py --check    # say which table is out of date, exit 1 (a test calls this)

A marker is `<!-- table NAME -->`, and `<!-- end -->` closes it. No number in those tables is typed by hand.
"""

import argparse
import itertools
import json
import re
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXTS = {"tales": "`input.txt`, First Tales of Little Harbour", "shakespeare": "Tiny Shakespeare"}
PAGES = [HERE.parents[1] / "README.md", HERE / "README.md"]


def load(name):
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def table(head, rows):
    line = lambda cells: "| " + " | ".join(str(c) for c in cells) + " |"  # noqa: E731
    return "\n".join([line(head), line("---" for _ in head), *map(line, rows)])


def quality():
    """Bits per byte and seconds of the default run, by text and optimizer: the median over seeds, and their range."""
    entries, rows = load("quality"), []
    if not entries:
        return ""
    for data, optimizer in sorted({(e["data"], e["optimizer"]) for e in entries}, reverse=True):
        same = [e for e in entries if (e["data"], e["optimizer"]) == (data, optimizer)]
        bpb = [e["final_bpb"] for e in same]
        spread = f" ({min(bpb):.2f} to {max(bpb):.2f}, {len(same)} seeds)" if len(same) > 1 else ""
        seconds = statistics.median(e["train_seconds"] for e in same)
        rows.append([TEXTS.get(data, data), optimizer, f"{statistics.median(bpb):.2f}{spread}", f"{seconds:.0f}"])
    e = entries[-1]
    where = f"{e['threads']} cores of {e['cpu']}, torch {e['torch']}, Python {e['python']}, {e['date']}."
    return table(["text", "optimizer", "held-out bits per byte", "seconds of training"], rows) + "\n\n" + where


def quality_line():
    """The default run in one sentence: bits per byte and seconds of both optimizers."""
    entries, parts = load("quality") or [], []
    for optimizer in ("adamw", "muon"):
        same = [e for e in entries if (e["data"], e["optimizer"]) == ("tales", optimizer)]
        if not same:
            return ""
        bpb, seconds = (statistics.median(e[k] for e in same) for k in ("final_bpb", "train_seconds"))
        seeds = f"median of {len(same)} seeds" if len(same) > 1 else "one seed"
        parts.append(f"{bpb:.2f} bits per byte in {seconds:.0f} s with `--optimizer {optimizer}` ({seeds})")
    where = f"on {same[0]['threads']} cores of {same[0]['cpu']}"
    return f"On held-out text the default run reaches {parts[0]}, and {parts[1]}, {where}."


def sample():
    """The end of the README's default run, unpolished: the first of its three last samples, a line a paragraph."""
    entries = [e for e in load("quality") or [] if (e["data"], e["optimizer"]) == ("tales", "adamw")]
    if not entries:
        return ""
    text = min(entries, key=lambda e: e["seed"] != 1337)["samples"][0].strip()
    return "> " + re.sub(r"\n+", r"\\\n> ", text)


def stories():
    """What the default run learns to write, and its samples at other temperatures."""
    result = load("stories")
    if not result:
        return ""

    def shares(figures):
        words = [f"{figures['share_known_words']:.1%}", figures["longest_copied_words"]]
        return [*words, f"{figures['share_in_runs_of_10']:.1%}"]

    rows = [
        [r["name"], f"{r['parameters']:,}", f"{r['minutes']:.1f}", f"{r['val_bpb']:.3f}", *shares(r)]
        for r in result["runs"]
    ]
    rows.append(["held-out stories", "", "", "", *shares(result["held_out_stories"])])
    copied = ["words that exist", "longest run of copied words", "words in copied runs of 10 and more"]
    first = table(["run", "parameters", "minutes", "held-out bits per byte", *copied], rows)
    rows = [
        [r["temperature"], r["top_k"] or "all", *shares(r), r["different_words"], f"{r['share_ended']:.0%}"]
        for r in result["sampling"]
    ]
    second = table(["temperature", "top_k", *copied, "different words", "samples that came to an end"], rows)
    where = f"{result['hardware']['threads']} cores of {result['hardware']['cpu']}, "
    where += f"torch {result['versions']['torch']}, {result['date']}. Figures of 100 samples each."
    return f"{first}\n\nWith adamw, at other temperatures:\n\n{second}\n\n{where}"


def neighbour():
    """Milliseconds of a step, alone and beside a busy program, by how threads wait."""
    result = load("neighbour")
    if not result:
        return ""
    rows = [
        [f"`{r['way']}`" if "=" in r["way"] else r["way"], f"{r['quiet_ms']:.0f}", f"{r['beside_ms']:.0f}"]
        for r in result["rows"]
    ]
    where = f"{result['cores']} cores of {result['cpu']}, {result['dtype']}, torch {result['torch']}, {result['date']}."
    return table(["threads wait", "ms a step, alone", "beside a busy program"], rows) + "\n\n" + where


def tokenizer():
    """Seconds to train a tokenizer beside the Rust trainer."""
    result = load("tokenizer")
    if not result:
        return ""
    rows = [
        [r["case"], f"{r['vocab_size']:,}", r["train_bpe"]["median_s"], r["hugging_face"]["median_s"]]
        for r in result["rows"]
    ]
    return table(["text", "vocabulary", "tokenizer.py, s", "Hugging Face tokenizers (Rust), s"], rows)


def fineweb():
    """Tokens a second of fineweb.py beside tiktoken alone, and memory, by format."""
    result = load("fineweb")
    if not result:
        return ""
    cores = max(row["cores"] for row in result["speed"])
    rows = [
        [r["what"], f"{r['mtok_per_s']:.1f} ({r['min']:.1f} to {r['max']:.1f})", f"{r['of_tiktoken']:.2f}"]
        for r in result["speed"]
        if r["cores"] == cores
    ]
    peak = max(row["peak_mb"] + row["other_processes_mb"] for row in result["memory"])
    where = f"{cores} cores of {result['hardware']['cpu']}, {result['date']}."
    memory = f"Peak memory of all processes, whatever the size of the source: {peak:,} MB. {where}"
    return table(["source", "million tokens a second", "beside tiktoken alone"], rows) + "\n\n" + memory


def time_to_quality():
    """Tokens and seconds until a held-out figure is reached, by text and optimizer: medians over seeds."""
    entries, rows = load("quality"), []
    for data, levels in (("tales", (1.4, 1.2, 1.1, 1.05)), ("shakespeare", (2.5, 2.3, 2.2, 2.12))):
        for optimizer in ("adamw", "muon"):
            same = [e for e in entries or [] if (e["data"], e["optimizer"]) == (data, optimizer)]
            if not same:
                continue
            cells = []
            for level in levels:
                met = [reached(e["curve"], level) for e in same]
                if None in met:
                    cells.append(f"{level}: not reached" if not any(met) else f"{level}: not by all seeds")
                else:
                    tokens, seconds = (statistics.median(m[k] for m in met) for k in (0, 1))
                    cells.append(f"{level}: {tokens / 1e6:.1f}M, {seconds:.0f} s")
            rows.append([TEXTS.get(data, data), optimizer, len(same), *cells])
    if not rows:
        return ""
    return table(["text", "optimizer", "seeds", *["bits per byte: tokens, seconds"] * 4], rows)


def reached(curve, level):
    """(tokens, seconds) at which the straight line between two validations crosses `level`; None if none does."""
    for before, after in itertools.pairwise(curve):
        if after["bpb"] <= level < before["bpb"]:
            share = (before["bpb"] - level) / (before["bpb"] - after["bpb"])
            return tuple(before[k] + share * (after[k] - before[k]) for k in ("tokens", "seconds"))
    return None


def ladder():
    """Tokens a second of the 124M shape, rung by rung, a table for each device and shape."""
    result, parts = load("ladder"), []
    if not result:
        return ""
    for device, B, T in sorted({(r["device"], r["B"], r["T"]) for r in result["rows"]}):
        rows = [
            [
                ("" if r["gain"] is None else "+ ") + r["rung"], r["what"], f"{r['tokens_per_s']['median']:,.0f}",
                f"{r['ms']:,.0f}", f"{r['gain']:.2f}" if r["gain"] else "", f"{r['mfu']:.0%}",
                f"{r['peak_memory_gb']:.1f}",
            ]
            for r in result["rows"]
            if (r["device"], r["B"], r["T"]) == (device, B, T)
        ]  # fmt: skip
        machine = result["machines"][device]
        name = machine.get("gpu") or f"{machine['threads']} cores of {machine['cpu']}"
        peak = next(r["peak_gflops"] for r in result["rows"] if (r["device"], r["B"], r["T"]) == (device, B, T))
        head = ["rung", "what it adds", "tokens/s", "ms a step", "times the rung before", "MFU", "memory, GiB"]
        parts.append(f"{name}, {B} x {T:,} tokens, MFU of {peak:,.0f} GFLOP/s:\n\n{table(head, rows)}")
    where = f"torch {machine['torch']}, Python {machine['python']}, {machine['date']}."
    parts.append(f"MFU is a share of what a large bfloat16 product reached there, measured with it. {where}")
    return "\n\n".join(parts)


def recipes():
    """Tokens a second beside two other recipes on a CPU, and where a step's time goes."""
    result = load("recipes")
    if not result:
        return ""
    names = {
        "lecture": "124M, 4 x 256: the lecture's recipe (bfloat16 autocast, AdamW not fused)",
        "nanogpt": "a million parameters (the former default), 16 x 128: nanoGPT's loop on a CPU (float32)",
    }
    rows, shares = [], []
    for key, name in names.items():
        r = result[key]
        rows.append([name, f"{r['ratio']['median']:.2f} ({r['ratio']['low']:.2f} to {r['ratio']['high']:.2f})"])
        for way in ("theirs", "ours"):
            parts = r[f"{way}_parts"]
            total = sum(parts.values())
            shares.append([f"{name.split(':')[0]}, {way}", *(f"{ms / total:.0%}" for ms in parts.values())])
    where = f"{result['threads']} cores of {result['cpu']}, torch {result['torch']}, {result['date']}."
    first = table(["shape and other recipe", "times as fast as the other"], rows)
    second = table(["share of a step's time", *result["lecture"]["ours_parts"]], shares)
    return f"{first}\n\n{second}\n\n{where}"


def speed():
    """One sentence: how many times as fast as what people use today, on the machines of the result files."""
    lines = [load(name) for name in ("recipes", "generate", "hellaswag")]
    if None in lines:
        return ""
    recipes, generate, hellaswag = lines
    rows = {r["dtype"]: r for r in generate["rows"] if (r["batch"], r["how"]) == (1, "greedy")}
    one_text = {dtype: r["ratio"]["median"] for dtype, r in rows.items()}
    limit = {dtype: r["packed"]["median"] / r["limit"] for dtype, r in rows.items()}
    items = {r["dtype"]: r["times_plain"] for r in hellaswag["rows"]}
    return (
        f"On two cores of {recipes['cpu']}, beside what people use today: training 124M "
        f"{recipes['lecture']['ratio']['median']:.1f} times the lecture's recipe; training a million parameters "
        f"{recipes['nanogpt']['ratio']['median']:.1f} times nanoGPT's loop; generating one text "
        f"{one_text['bfloat16']:.1f} times `transformers` in bfloat16 and {one_text['float32']:.1f} in float32, "
        f"{limit['bfloat16']:.0%} and {limit['float32']:.0%} of what the memory's speed allows; "
        f"HellaSwag {items['bfloat16']:.1f} and {items['float32']:.1f} times four padded rows an item."
    )


def generation():
    """Tokens a second of generating, beside transformers."""
    result = load("generate")
    if not result:
        return ""
    rows = []
    for r in result["rows"]:
        ours = r.get("packed", r["plain"])["median"]
        rows.append([
            f"{r['dtype']}, batch {r['batch']}, {r['how']}", f"{ours:.0f}", f"{r['transformers']['median']:.0f}",
            f"{r['ratio']['median']:.2f}", f"{r['limit']:,.0f}" if "limit" in r else "",
        ])  # fmt: skip
    hardware, versions = result["hardware"], result["versions"]
    where = (
        f"GPT-2's 124M shape, 128 new tokens. {hardware['threads']} cores of {hardware['cpu']}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, {result['date']}. "
        "The limit is that of reading all weights once a token."
    )
    head = ["124M", "generate.py, tokens/s", "transformers, tokens/s", "times", "limit of the memory, tokens/s"]
    return table(head, rows) + "\n\n" + where


def positions():
    """Milliseconds of a token by its position, and what attention over so many keys costs alone."""
    result = load("generate")
    if not result:
        return ""
    rows = [[r["dtype"], r["position"], f"{r['ms']:.1f}", f"{r['attention_ms']:.1f}"] for r in result["positions"]]
    return table(["dtype", "position", "ms a token", "ms of attention alone"], rows)


def hellaswag():
    """HellaSwag items a second beside the plain loop, and memory by the number of items."""
    result, rows = load("hellaswag"), []
    if not result:
        return ""
    for r in result["rows"]:
        outer = [f"{r['outer']['median']:.1f}", f"{r['times_outer']:.1f}"] if "outer" in r else ["", ""]
        rows.append([
            r["dtype"], f"{r['fast']['median']:.1f}", f"{r['plain']['median']:.1f}", f"{r['times_plain']:.1f}", *outer,
        ])  # fmt: skip
    peaks = ", ".join(f"{mb:,} MB after {items} items" for items, mb in result["peak_memory_mb"].items())
    where = f"{result['threads']} cores of {result['machine']}, torch {result['torch']}, {result['date']}."
    head = ["124M", "hellaswag.py, items/s", "plain loop", "times", "plain loop, one autocast for all", "times"]
    return table(head, rows) + f"\n\nPeak memory of the process, float32: {peaks}. {where}"


def memory():
    """What each size takes in memory and time, by arithmetic that is checked against measured points."""
    sys.path.insert(0, str(HERE))
    try:
        from memory_table import markdown  # brings torch, which the other tables do without
    finally:
        sys.path.remove(str(HERE))
    return markdown()


def scaling():
    """Held-out loss by size and length: a row a size, a column a number of tokens; means over seeds."""
    result = load("scaling")
    if not result:
        return ""
    runs = [r for r in result["runs"] if r["kind"] == "size and length"]
    lengths, rows = sorted({r["tokens"] for r in runs}), []
    for size in sorted({r["non_embedding"] for r in runs}):
        same = [r for r in runs if r["non_embedding"] == size]
        cells = [[r["val_loss"] for r in same if r["tokens"] == tokens] for tokens in lengths]
        shape = "{n_layer} x {n_embd}".format(**same[0]["settings"])
        rows.append([shape, f"{size:,}", *(f"{statistics.mean(c):.3f}" if c else "" for c in cells)])
    head = ["layers x width", "parameters without embeddings", *(f"{tokens:,} tokens" for tokens in lengths)]
    where = f"Loss in nats per token. torch {result['versions']['torch']}, {result['date']}."
    return table(head, rows) + "\n\n" + where


TABLES = {
    "quality": quality, "sample": sample, "time_to_quality": time_to_quality, "tokenizer": tokenizer,
    "fineweb": fineweb, "ladder": ladder, "recipes": recipes, "generation": generation, "positions": positions,
    "hellaswag": hellaswag, "speed": speed, "scaling": scaling, "memory": memory, "stories": stories,
    "neighbour": neighbour, "quality_line": quality_line,
}  # fmt: skip


def fill(text):
    """The page with every marked table made anew."""

    def replace(match):
        body = TABLES[match["name"]]()
        return f"<!-- table {match['name']} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- table (?P<name>\w+) -->\n.*?<!-- end -->", replace, text, flags=re.S)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is out of date")
    args = parser.parse_args(argv)
    stale = 0
    for page in PAGES:
        old = page.read_text("utf-8")
        new = fill(old)
        if new != old:
            stale += 1
            print(f"{page.name} of {page.parent.name}: tables out of date")
            if not args.check:
                page.write_text(new, "utf-8")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
