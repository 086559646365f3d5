"""
HellaSwag: does a model know how an everyday scene goes on? (Zellers et al. 2019, arXiv 1905.07830)

Each item is a context and four endings, of which people wrote one and a machine the other three. The model is never
asked; it only says how likely it finds each ending, and the likeliest counts as its answer. Chance is 25 %.

    python hellaswag.py --download                          once: 10,042 validation items, 12 MB, from the Hub
    python hellaswag.py --model gpt2                        OpenAI's 124M
    python hellaswag.py --model log/gpt2/ckpt_019073.pt --plot hellaswag.png
    python hellaswag.py --file tests/data/hellaswag_items.jsonl --show 5      no network: the newest run, 40 items

There are two published conventions, and their figures must not be mixed (STYLES below): "completion", that of the
lecture, where gpt2 has 28.59 / 29.55 %, and "lm-eval", that of EleutherAI's harness, where it has 28.92 / 31.14 %.

Fast, because nothing is computed twice: items whose contexts have equal length are read together, each context once for
its four endings, which then continue its KV cache; and the 50,257 logits, a third of all the work, are computed only
where an ending is scored.

Map:  1 items   2 the two styles   3 scoring   4 fetching   5 telling   6 command line
"""

import contextlib
import json
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

# train_gpt2 is imported in the commands only: while training, evaluate() is called by it and handed the model.

STYLES = {  # what acc and acc_norm choose by
    "completion": "the sum, and the mean per token, of the ending's losses after the context as it stands",
    "lm-eval": "the sum, and the sum per character, after the activity's label and the cleaned context",
}

PUBLISHED = {  # acc, acc_norm in percent on the 10,042 validation items; None where no source is known to us
    # github.com/karpathy/build-nanogpt, hellaswag.py; medium and large: github.com/karpathy/llm.c, dev/vislog.ipynb
    "completion": {
        "gpt2": (28.59, 29.55), "gpt2-medium": (None, 37.52), "gpt2-large": (None, 43.20), "gpt2-xl": (38.42, 48.93),
    },
    # github.com/karpathy/build-nanogpt, hellaswag.py, as measured with lm-evaluation-harness
    "lm-eval": {
        "gpt2": (28.92, 31.14), "gpt2-medium": (None, None), "gpt2-large": (None, None), "gpt2-xl": (40.04, 50.89),
    },
}  # fmt: skip

DATASET = "Rowan/hellaswag"
REVISION = "218ec52e09a7e7462a5400043bb9a69a41d06b76"  # pinned: a change of the data set cannot change a score
SPLITS = {  # our name: (the Hub's name, items)
    "val": ("validation", 10_042), "train": ("train", 39_905), "test": ("test", 10_003),
}  # fmt: skip


class UserError(Exception):
    """A user's mistake: `str(error)` says what is wrong, `error.hint` what to do about it."""

    def __init__(self, message, hint):
        super().__init__(message)
        self.hint = hint


# ----------------------------------------------------------------------------------------------------------------------
# 1. Items
# ----------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Example:
    """One item. context is ctx_a and ctx_b together; ctx_b is how the last sentence begins, and may be empty."""

    ind: int
    activity_label: str
    ctx_a: str
    ctx_b: str
    context: str
    endings: tuple[str, ...]
    label: int  # the right ending, 0 to 3


def default_path(split="val"):
    """Where the items of a split are: under the working directory, or else beside this file. It may not exist."""
    path = Path("hellaswag") / f"hellaswag_{split}.jsonl"
    beside = Path(__file__).parent / path
    return beside if beside.exists() and not path.exists() else path


def load_examples(path):
    """A .jsonl file in the data set's form -> list of Example. Raises UserError with the number of the bad line."""
    path, examples = Path(path), []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    examples.append(parse_example(line, f"{path}, line {number}", number - 1))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}", "python hellaswag.py --download fetches the items") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not text in UTF-8: {e.reason}", "give a .jsonl file of items") from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}", "give a .jsonl file of items") from e
    if not examples:
        raise UserError(f"{path} holds no items", "each line is one JSON object with ctx, endings and label")
    return examples


def parse_example(line, where, number):
    try:
        item = json.loads(line)
    except ValueError as e:
        raise UserError(f"{where}: not JSON ({e})", "each line is one JSON object with ctx, endings and label") from e
    if not isinstance(item, dict):
        raise UserError(f"{where}: {type(item).__name__}, not a JSON object", "it needs ctx, endings and label")
    texts = {key: item.get(key, "") for key in ("activity_label", "ctx_a", "ctx_b", "ctx")}
    if wrong := [key for key, text in texts.items() if not isinstance(text, str)]:
        raise UserError(f"{where}: {wrong[0]} is {item[wrong[0]]!r}", f"{wrong[0]} is text in quotes")
    context = texts["ctx"] or f"{texts['ctx_a']} {texts['ctx_b']}"
    if not context.strip():
        raise UserError(f"{where}: the context is empty", "ctx holds the text that the endings continue")
    if not texts["ctx_a"] and not texts["ctx_b"]:  # files made by hand often have ctx alone
        texts["ctx_a"] = context
    endings = item.get("endings")
    if not isinstance(endings, list) or len(endings) != 4:
        found = f"{len(endings)} endings" if isinstance(endings, list) else f"endings is {endings!r}"
        raise UserError(f"{where}: {found}, not 4", "endings is a list of four texts, the right one among them")
    for ending in endings:
        if not isinstance(ending, str) or not ending.strip():
            raise UserError(f"{where}: an ending is {ending!r}", "an ending is a text of at least one letter")
    label = item.get("label")
    if isinstance(label, str) and label.strip() in ("0", "1", "2", "3"):
        label = int(label)  # the Hub's files have it in quotes
    if type(label) is not int or not 0 <= label <= 3:
        raise UserError(
            f"{where}: label is {label!r}, not 0, 1, 2 or 3",
            "label counts from 0 which ending is right (in the test split it is hidden: use val or train)",
        )
    parts = (texts[key] for key in ("activity_label", "ctx_a", "ctx_b"))
    return Example(item.get("ind", number), *parts, context, tuple(endings), label)


# ----------------------------------------------------------------------------------------------------------------------
# 2. The two styles: what exactly a model is asked
# ----------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Request:
    """An item in tokens: the context is read once, and each of the four endings continues it."""

    context: list[int]  # at least one token
    endings: list[list[int]]
    scored: list[int]  # how many tokens at the end of each ending count
    characters: list[int]  # of each ending, as lm-eval divides by
    cut: bool  # whether the block was too short for all of the context

    @property
    def longest(self):
        """Tokens that the model reads of the longest ending: not its last, which is only predicted."""
        return max(map(len, self.endings)) - 1


def make_request(example, encoding, style, block_size):
    """Example -> Request in one of the two STYLES. What is too long for the block loses tokens on the left."""
    encode = encoding.encode_ordinary  # "<|endoftext|>" in an item would be plain text
    if style == "completion":
        context, room = encode(example.context), max(2, block_size)
        endings = [encode(" " + ending) for ending in example.endings]  # GPT-2's words begin with their space
        characters = [len(ending) for ending in example.endings]
    else:
        query, choices = harness_texts(example)
        context = encode(query.rstrip())  # spaces at its end go to the ending, whose first token begins with them
        endings = [encode(f"{query} {choice}")[len(context) :] for choice in choices]
        context = context or [encoding.n_vocab - 1]  # something must stand before the ending: <|endoftext|>
        room = block_size + 1  # the harness does not read the last token, so that one more fits
        characters = [len(choice) for choice in choices]
    scored = [len(ending) for ending in endings]
    if len(context) + max(scored) <= room:
        return Request(context, endings, scored, characters, cut=False)
    # Each row loses what it must, so that the rows begin at different places and have no token in common but the first.
    rows = [(context + ending)[-room:] for ending in endings]
    scored = [min(n, len(row) - 1) for n, row in zip(scored, rows, strict=True)]
    return Request([], rows, scored, characters, cut=True)


def harness_texts(example):
    """The query and the four choices of lm-evaluation-harness's task `hellaswag` (version 1). capitalize() also makes
    the rest of ctx_b lower case; that is part of the convention."""
    label = f"{example.activity_label}: " if example.activity_label else ""
    query = harness_clean(f"{label}{example.ctx_a} {example.ctx_b.capitalize()}")
    return query, [harness_clean(ending) for ending in example.endings]


def harness_clean(text):
    """Takes out the marks in brackets that the items from WikiHow hold."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


# ----------------------------------------------------------------------------------------------------------------------
# 3. Scoring
# ----------------------------------------------------------------------------------------------------------------------
def evaluate(
    model, examples, encoding, *, device=None, autocast=contextlib.nullcontext, tokens_per_batch=None,
    style="completion", progress=None,
):  # fmt: skip
    """Scores a raw GPT (not compiled, not in DDP) on a list of Example.

    Returns a dict: n, correct, correct_norm (counts, to be added up over processes that share the examples), acc and
    acc_norm (shares; nan for no examples), cut (items that did not fit the block), and items, one dict an example in
    the order given: ind, label, losses (mean nats per token of each ending), sums (nats), characters, prediction and
    prediction_norm. tokens_per_batch bounds the memory; progress(n) is called with the examples of each batch.
    """
    if style not in STYLES:
        raise UserError(f"no style is called {style!r}", "choose one of: " + ", ".join(STYLES))
    if encoding.n_vocab > model.config.vocab_size:
        raise UserError(
            f"the tokenizer {encoding.name} has {encoding.n_vocab:,} tokens, the model {model.config.vocab_size:,}",
            "use the tokenizer that the model was trained with",
        )
    device = torch.device(device or next(model.parameters()).device)
    # On a CPU an eighth of this in rows of 50,304 logits is just small enough for memory that is there to be used
    # again; larger ones come from the system each time, page by page, and the softmax takes twice as long.
    budget = tokens_per_batch or (1024 if device.type == "cpu" else 16384)
    requests = [make_request(e, encoding, style, model.config.block_size) for e in examples]
    losses = [None] * len(requests)
    training = model.training
    model.eval()
    try:
        # One autocast for all batches: leaving it would throw away the weights that it has cast.
        with torch.no_grad(), autocast():
            for batch in make_batches(requests, budget):
                scores = score([requests[i] for i in batch], model, device, rows=max(1, budget // 8))
                for i, item_losses in zip(batch, scores, strict=True):
                    losses[i] = item_losses
                if progress:
                    progress(len(batch))
    finally:
        model.train(training)
    items = [judge(e, r, four, style) for e, r, four in zip(examples, requests, losses, strict=True)]
    n = len(items)
    correct = sum(item["prediction"] == item["label"] for item in items)
    correct_norm = sum(item["prediction_norm"] == item["label"] for item in items)
    return dict(
        n=n, correct=correct, correct_norm=correct_norm,
        acc=correct / n if n else math.nan, acc_norm=correct_norm / n if n else math.nan,
        cut=sum(r.cut for r in requests), items=items,
    )  # fmt: skip


def score_on_all_ranks(model, encoding, rt):
    """While training: acc and acc_norm, with the items divided among the processes of `rt`, the trainer's Runtime.
    Returns {}, and says so, if in any process the items have not been downloaded, or there is no tokenizer."""
    path = default_path("val")
    if rt.any(not path.exists() or encoding is None):
        rt.print("no HellaSwag without items (python hellaswag.py --download) and a tokenizer: going on without")
        return {}
    examples = load_examples(path)[rt.rank :: rt.world_size]
    result = evaluate(model, examples, encoding, device=rt.device, autocast=rt.autocast)
    n, correct, correct_norm = rt.sum([result["n"], result["correct"], result["correct_norm"]])
    return dict(acc=correct / n, acc_norm=correct_norm / n)


def make_batches(requests, budget):
    """Lists of indices of requests with contexts of equal length, which read at most `budget` tokens (or are one item).
    The longest come first, so that what does not fit into memory shows at once."""

    def size(i):
        return len(requests[i].context), requests[i].longest

    batch = []
    for i in sorted(range(len(requests)), key=size, reverse=True):
        if batch:
            context, longest = size(batch[0])  # of its batch the first has the longest ending
            if len(requests[i].context) != context or (context + 4 * longest) * (len(batch) + 1) > budget:
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch


def score(requests, model, device, rows):
    """The summed loss in nats of each request's four endings: a list of four floats for each. `rows` logits at a time.

    The contexts, of one length S, are read together, and the cache of each is repeated for its four endings. Endings
    are filled up on the right to E tokens, which no token before sees.
    """
    B, S, E = len(requests), len(requests[0].context), max(request.longest for request in requests)
    ids, sources, targets, owners = [], [], [], []  # the state at sources[j] predicts token targets[j] of row owners[j]
    for row, (request, k) in enumerate((request, k) for request in requests for k in range(4)):
        ending, scored = request.endings[k], request.scored[k]
        ids.append(ending[:-1] + [0] * (E - len(ending) + 1))
        # In the states of a row, 0 is that of the context's last token, which predicts the ending's first.
        sources += [row * (E + 1) + t for t in range(len(ending) - scored, len(ending))]
        targets += ending[-scored:] if scored else []
        owners += [row] * scored
    states, cache = torch.zeros(4 * B, 1, model.config.n_embd, device=device), None
    if S:
        contexts, cache = model.new_cache(S), model.new_cache(S + E)
        x = model.hidden(torch.tensor([request.context for request in requests], device=device), contexts)  # (B, S, C)
        states = x[:, -1:].repeat_interleave(4, dim=0)  # (4B, 1, C)
        for one, four in zip(contexts, cache, strict=True):
            four.append(one.k.repeat_interleave(4, dim=0), one.v.repeat_interleave(4, dim=0))
    if E:
        x = model.hidden(torch.tensor(ids, device=device), cache)  # (4B, E, C)
        states = torch.cat((states.to(x.dtype), x), dim=1)  # (4B, E + 1, C)
    states = states.flatten(0, 1)[torch.tensor(sources, device=device)]  # (scored tokens, C): only these need logits
    targets = torch.tensor(targets, device=device)
    losses = [
        F.cross_entropy(model.head(states[j : j + rows]).float(), targets[j : j + rows], reduction="none")
        for j in range(0, len(states), rows)
    ]
    losses = torch.cat(losses).cpu().double()
    return torch.zeros(4 * B, dtype=torch.float64).index_add_(0, torch.tensor(owners), losses).view(B, 4).tolist()


def judge(example, request, sums, style):
    """What is kept of one item: its losses, and what the model would have answered by each measure."""
    means = [total / n for total, n in zip(sums, request.scored, strict=True)]
    item = dict(ind=example.ind, label=example.label, losses=means, sums=sums, characters=request.characters)
    norms = normed(item, style)
    return item | dict(prediction=sums.index(min(sums)), prediction_norm=norms.index(min(norms)))


def normed(item, style):
    """What acc_norm compares of the four endings: nats per token (completion) or nats per character (lm-eval)."""
    if style == "completion":
        return item["losses"]
    # An ending that was all brackets has no characters left; the harness never chooses it either.
    return [total / n if n else math.inf for total, n in zip(item["sums"], item["characters"], strict=True)]


def wilson(correct, n):
    """The 95 % interval (low, high) of a share of which `correct` in n were seen (Wilson 1927): honest for few items
    and near 0 and 1 too, where the usual plus-minus is not."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, correct / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


# ----------------------------------------------------------------------------------------------------------------------
# 4. Fetching: the only part that uses the network, and only when asked
# ----------------------------------------------------------------------------------------------------------------------
def download(split, path, fetch=None):
    """Fetches a split and writes it to `path`, whole or not at all; returns the number of items. Raises UserError."""
    from train_gpt2 import write_whole

    hub_name, expected = SPLITS[split]
    again = "nothing was written; try again, or copy the file from a machine that has it"
    try:
        rows = list((fetch or fetch_rows)(hub_name))
        for row in rows:
            row["label"] = -1 if row["label"] == "" else int(row["label"])  # "": the test split hides its labels
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    except Exception as e:  # the Hub's client raises dozens of kinds, all of which mean: it did not come
        reason = re.split(r"(?<=\.)\s|\n", str(e).strip())[0][:160]  # the first sentence
        raise UserError(f"cannot fetch {DATASET} ({hub_name}): {type(e).__name__}: {reason}", again) from e
    if len(lines) != expected:
        raise UserError(f"{DATASET} ({hub_name}) came with {len(lines):,} items, not {expected:,}", again)
    if split != "test":
        for number, line in enumerate(lines):
            parse_example(line, f"{DATASET} ({hub_name}), item {number + 1}", number)
    write_whole(path, lambda file: file.write(("\n".join(lines) + "\n").encode("utf-8")))
    return len(lines)


def fetch_rows(hub_name):
    """The rows of a split as dicts, from the pinned revision on the Hub."""
    import pyarrow.parquet
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # if no retry helps, one error says it all
    name = f"data/{hub_name}-00000-of-00001.parquet"
    file = hf_hub_download(DATASET, name, repo_type="dataset", revision=REVISION)
    return pyarrow.parquet.read_table(file).to_pylist()


# ----------------------------------------------------------------------------------------------------------------------
# 5. Telling
# ----------------------------------------------------------------------------------------------------------------------
def table(name, results):
    """The scores of each style with their intervals, and below them what is published for OpenAI's models."""
    lines = []
    for style, result in results.items():
        lines += ["", f"{style + ' style':26}     acc  95 % interval         acc_norm  95 % interval"]
        cells = []
        for correct in (result["correct"], result["correct_norm"]):
            low, high = wilson(correct, result["n"])
            cells.append(f"{100 * correct / result['n']:6.2f} %  {100 * low:5.2f} to {100 * high:5.2f}")
        lines.append(f"{name[-26:]:26}" + "       ".join(cells))
        for model, figures in PUBLISHED[style].items():
            cells = ["     -  " if figure is None else f"{figure:6.2f} %" for figure in figures]
            lines.append(f"{model + ', published':26}{cells[0]:31}{cells[1]}".rstrip())
    if result["n"] != SPLITS["val"][1]:
        lines += ["", f"published means on all {SPLITS['val'][1]:,} validation items; these are others, or fewer"]
    return "\n".join(lines[1:])


def show(examples, results, count):
    """A few items in full: what acc_norm compares in each style, what is right and what the model says."""
    units = {"completion": "nats per token", "lm-eval": "nats per character"}
    print("\n" + ", ".join(f"{style}: {units[style]}" for style in results))
    for i, example in enumerate(examples[:count]):
        print(f"\n[{example.activity_label}] {example.context}")
        items = {style: result["items"][i] for style, result in results.items()}
        for k, ending in enumerate(example.endings):
            losses = "  ".join(f"{style} {normed(item, style)[k]:6.3f}" for style, item in items.items())
            says = ", ".join(style for style, item in items.items() if item["prediction_norm"] == k)
            marks = " <- right" * (k == example.label) + f" <- the model ({says})" * bool(says)
            print(f"  {k}  {losses}  {ending}{marks}")


def write_details(path, results):
    """One JSON line an item: losses and sums by the completion style, and by lm-eval's under `lm_eval`."""
    from train_gpt2 import write_whole

    lines = []
    for items in zip(*(result["items"] for result in results.values()), strict=True):
        by_style = dict(zip(results, items, strict=True))
        line = by_style.get("completion") or {key: items[0][key] for key in ("ind", "label")}
        if "lm-eval" in by_style:
            line = line | {"lm_eval": {k: v for k, v in by_style["lm-eval"].items() if k not in ("ind", "label")}}
        lines.append(json.dumps(line))
    write_whole(path, lambda file: file.write(("\n".join(lines) + "\n").encode("utf-8")))


def plot(path, name, results):
    """Bars of acc_norm: this model with its interval, beside OpenAI's models and chance, for each style."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    from train_gpt2 import write_whole

    figure = Figure(figsize=(4.6 * len(results) + 0.4, 4.2), dpi=110, layout="constrained")
    for axes, (style, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        known = {model: norm for model, (_, norm) in PUBLISHED[style].items() if norm is not None}
        own, (low, high) = 100 * result["acc_norm"], (100 * x for x in wilson(result["correct_norm"], result["n"]))
        axes.bar([name[-16:]], [own], yerr=[[own - low], [high - own]], capsize=6, color="#D55E00", label="this model")
        axes.bar(list(known), list(known.values()), color="#56B4E9", label="OpenAI's, published (10,042 items)")
        for x, height in enumerate([own, *known.values()]):
            axes.text(x, 1, f"{height:.1f}", ha="center")
        axes.axhline(25, color="black", linestyle="--", linewidth=1, label="chance, 25 %")
        axes.set(ylim=(0, max(60, high + 5)), ylabel="acc_norm (% of items right)")
        axes.set_title(f"{style} style, {result['n']:,} items, 95 % interval")
        axes.tick_params(axis="x", labelrotation=20)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write_whole(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png"))


# ----------------------------------------------------------------------------------------------------------------------
# 6. Command line
# ----------------------------------------------------------------------------------------------------------------------
def positive(text):
    if not text.isdigit() or int(text) < 1:
        raise ValueError(text)
    return int(text)


def make_parser():
    from train_gpt2 import Parser

    parser = Parser("hellaswag.py", description=__doc__.strip().split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--download", action="store_true", help="fetch the items of --split from the Hub, and stop")
    parser.add_argument("--split", choices=SPLITS, default="val", help="which items (default val; test has no labels)")
    parser.add_argument("--file", type=Path, help="items in the data set's form (default: what --download wrote)")
    parser.add_argument("--model", help="gpt2 .. gpt2-xl, a checkpoint, a directory (default: newest under log/)")
    parser.add_argument("--style", choices=["both", *STYLES], default="both", help="which convention (default both)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--limit", type=positive, help="score only the first so many items")
    parser.add_argument("--details", type=Path, metavar="FILE", help="write the losses of each item, a JSON line each")
    parser.add_argument("--show", type=positive, metavar="N", help="print the first N items with their losses")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the scores as bars, .png or .svg")
    return parser


def main(argv=None):
    from train_gpt2 import run_main

    return run_main(run, argv)


def run(argv):
    args = make_parser().parse_args(argv)
    if args.download:
        path = args.file or Path("hellaswag") / f"hellaswag_{args.split}.jsonl"
        print(f"wrote {path}: {download(args.split, path):,} items")
        return
    if args.plot and args.plot.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw {args.plot}", "give --plot a name that ends in .png, .svg or .pdf")
    for path in filter(None, (args.details, args.plot)):
        if not path.parent.is_dir():
            raise UserError(f"there is no directory {path.parent}", "make it, or choose another place")
    path = args.file or default_path(args.split)
    examples = load_examples(path)[: args.limit]
    model, name, encoding, rt = load_model(args)
    results = {}
    for style in STYLES if args.style == "both" else [args.style]:
        results[style] = timed_evaluation(model, examples, encoding, rt, style)
    if cut := max(result["cut"] for result in results.values()):
        print(f"{cut:,} items are longer than the block of {model.config.block_size} tokens: cut on the left")
    print(f"{path}: {len(examples):,} items\n\n{table(name, results)}")
    if args.show:
        show(examples, results, args.show)
    if args.details:
        write_details(args.details, results)
    if args.plot:
        plot(args.plot, name, results)


def load_model(args):
    """-> model on its device, its name, its tokenizer, and the Runtime, whose choices are printed with the reasons."""
    from generate import pack_weights
    from tokenizer import find_tokenizer
    from train_gpt2 import GPT, PRESETS, newest_checkpoint, setup_runtime

    source = args.model or newest_checkpoint(Path("log").glob("*"))
    if source is None:
        hint = "give --model gpt2, or train one: python train_gpt2.py"
        raise UserError("no --model is given, and there is no checkpoint under log/", hint)
    rt = setup_runtime(args.device, args.dtype)
    model = GPT.from_pretrained(source).to(rt.device)
    if rt.device.type == "cpu" and rt.dtype == torch.float32:
        pack_weights(model)  # faster there
    name = str(source) if str(source) in PRESETS else "/".join(Path(source).parts[-2:])
    print("\n".join([f"model {source}", *rt.reasons[:2]]), flush=True)
    return model, name, find_tokenizer(source), rt


def timed_evaluation(model, examples, encoding, rt, style):
    from tqdm import tqdm

    begin = time.perf_counter()
    with tqdm(total=len(examples), desc=style, unit=" items", disable=None) as bar:  # None: silent where nobody watches
        how = dict(device=rt.device, autocast=rt.autocast, style=style, progress=bar.update)
        result = evaluate(model, examples, encoding, **how)
    seconds = time.perf_counter() - begin
    print(f"{style}: {len(examples):,} items in {seconds:.1f} s, {len(examples) / seconds:.1f} a second", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
