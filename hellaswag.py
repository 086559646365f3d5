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

Map:  1 items   2 the two styles   3 scoring   4 fetching   5 results   6 command line
"""

import contextlib
import itertools
import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

# Threads that wait go to sleep (see train_gpt2.py). torch reads this while it is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import torch
from torch.nn import functional as F

# train_gpt2 is imported in the commands only, because evaluate() is called by it and handed the model.

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
    "lm-eval": {"gpt2": (28.92, 31.14), "gpt2-xl": (40.04, 50.89)},
}  # fmt: skip
DATASET = "Rowan/hellaswag"
REVISION = "218ec52e09a7e7462a5400043bb9a69a41d06b76"  # pinned: a change of the data set cannot change a score
SPLITS = {"val": ("validation", 10_042), "train": ("train", 39_905)}  # our name: (the Hub's name, items)


class UserError(Exception):
    """A mistake that the user can mend: main() prints it as `error:` and `hint:` and exits with code 2."""

    def __init__(self, message, hint):
        super().__init__(message)
        self.hint = hint


def require(condition, message, hint):
    """Raises UserError unless the condition holds."""
    if not condition:
        raise UserError(message, hint)


# === 1. Items. ======================================================================================================
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
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        hint = "python hellaswag.py --download fetches the items; --file takes a .jsonl file in their form"
        raise UserError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}", hint) from e
    lines = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    require(lines, f"{path} holds no items", "each line is one JSON object with ctx, endings and label")
    return [parse_example(line, f"{path}, line {number}", number - 1) for number, line in lines]


def parse_example(line, where, number):
    """A line of JSON -> Example. Raises UserError with the place `where` and the field that is wrong."""
    hint = 'an item is {"ctx": text, "endings": [four texts], "label": which is right, 0 to 3}'
    require(len(line) < 100_000, f"{where}: {len(line):,} characters", "an item is a few sentences")
    try:
        item = json.loads(line)
        json.dumps(item, ensure_ascii=False).encode("utf-8")  # fails for half a character, such as "\\ud83d"
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON in UTF-8 ({e})", hint) from e
    require(isinstance(item, dict), f"{where}: not a JSON object", hint)
    item = dict(ind=number, activity_label="", ctx_a="", ctx_b="", ctx="", endings=None, label=None) | item
    if item["label"] in ("0", "1", "2", "3"):
        item["label"] = int(item["label"])  # the Hub's files have it in quotes
    label, endings = item["label"], item["endings"] if isinstance(item["endings"], list) else []
    sound = {key: isinstance(item[key], str) for key in ("activity_label", "ctx_a", "ctx_b", "ctx")}
    sound["endings"] = [isinstance(ending, str) and ending.strip() != "" for ending in endings] == [True] * 4
    sound["label"] = type(label) is int and 0 <= label <= 3
    for key, is_sound in sound.items():
        require(is_sound, f"{where}: {key} is {item[key]!r:.200}", hint)
    context = item["ctx"] or f"{item['ctx_a']} {item['ctx_b']}"
    require(context.strip(), f"{where}: the context is empty", hint)
    ctx_a = item["ctx_a"] or (context if not item["ctx_b"] else "")  # files made by hand often have ctx alone
    return Example(item["ind"], item["activity_label"], ctx_a, item["ctx_b"], context, tuple(endings), label)


# === 2. The two styles: what exactly a model is asked. ==============================================================
@dataclass(frozen=True)
class Request:
    """An item in tokens: the context is read once, and each of the four endings continues it."""

    context: list[int]  # at least one token, or none if the item is cut
    endings: list[list[int]]
    scored: list[int]  # how many tokens at the end of each ending count
    characters: list[int]  # of each ending, as lm-eval divides by

    @property
    def cut(self):
        """Whether the block was too short for all of the item."""
        return not self.context

    @property
    def longest(self):
        """Tokens that the model reads of the longest ending: not its last, which is only predicted."""
        return max(map(len, self.endings)) - 1


def make_request(example, encoding, style, block_size):
    """Example -> Request in one of the two STYLES. What is too long for the block loses tokens on the left."""
    encode = encoding.encode_ordinary  # "<|endoftext|>" in an item is plain text
    if style == "completion":
        context, room, texts = encode(example.context), max(2, block_size), example.endings
        endings = [encode(" " + ending) for ending in texts]  # GPT-2's words begin with their space
    else:
        query, texts = harness_texts(example)
        context = encode(query.rstrip())  # spaces at its end go to the ending, whose first token begins with them
        endings = [encode(f"{query} {ending}")[len(context) :] for ending in texts]
        context = context or [encoding.n_vocab - 1]  # something must stand before the ending: <|endoftext|>
        room = block_size + 1  # the harness does not read the last token, so that one more fits
    scored, characters = [len(ending) for ending in endings], [len(ending) for ending in texts]
    if len(context) + max(scored) <= room:
        return Request(context, endings, scored, characters)
    # Each row loses as much as it must, so the rows begin at different places and share no context.
    rows = [(context + ending)[-room:] for ending in endings]
    scored = [min(n, len(row) - 1) for n, row in zip(scored, rows, strict=True)]
    return Request([], rows, scored, characters)


def harness_texts(example):
    """The query and the four endings of lm-evaluation-harness's task `hellaswag` (version 1). capitalize() also makes
    the rest of ctx_b lower case; that is part of the convention."""

    def clean(text):  # without the marks in brackets that the items from WikiHow hold
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    label = f"{example.activity_label}: " if example.activity_label else ""
    query = clean(f"{label}{example.ctx_a} {example.ctx_b.capitalize()}")
    return query, [clean(ending) for ending in example.endings]


# === 3. Scoring. ====================================================================================================
def evaluate(
    model, examples, encoding, *, style="completion", autocast=contextlib.nullcontext, tokens_per_batch=None,
    progress=None,
):  # fmt: skip
    """Scores a raw GPT (not compiled, not in DDP) on a list of Example.

    Returns a dict: n, correct, correct_norm (counts, to be added up over processes that share the examples), acc and
    acc_norm (shares; nan for no examples), cut (items that did not fit the block), and items, one dict an example in
    the order given: ind, label, losses (mean nats per token of each ending), sums (nats), characters, prediction and
    prediction_norm. tokens_per_batch bounds the memory; progress(n) is called with the examples of each batch. Raises
    UserError for an unknown style, a tokenizer with more tokens than the model, and losses that are not finite.
    """
    require(style in STYLES, f"no style is called {style!r}", "choose one of: " + ", ".join(STYLES))
    sizes = f"the tokenizer {encoding.name} has {encoding.n_vocab:,} tokens, the model {model.config.vocab_size:,}"
    require(encoding.n_vocab <= model.config.vocab_size, sizes, "use the tokenizer that the model was trained with")
    device = next(model.parameters()).device
    # On a CPU an eighth of this in rows of 50,304 logits is just small enough for memory that is there to be used
    # again; larger ones come from the system each time, page by page, and the softmax takes twice as long.
    budget = tokens_per_batch or (1024 if device.type == "cpu" else 16384)
    requests = [make_request(e, encoding, style, model.config.block_size) for e in examples]
    losses, training, cudnn = [None] * len(requests), model.training, torch.backends.cuda.cudnn_sdp_enabled()
    model.eval()
    # cuDNN's attention makes a plan for each new shape, about 30 ms on an H100, and most batches have a new one.
    torch.backends.cuda.enable_cudnn_sdp(False)
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
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
    finite = all(map(math.isfinite, itertools.chain(*losses)))
    require(finite, "the model's losses are not finite numbers", "take an earlier checkpoint, or try --dtype float32")
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
    result = evaluate(model, load_examples(path)[rt.rank :: rt.world_size], encoding, autocast=rt.autocast)
    n, correct, correct_norm = rt.sum([result["n"], result["correct"], result["correct_norm"]])
    return dict(acc=correct / n, acc_norm=correct_norm / n)


def make_batches(requests, budget):
    """Lists of indices of requests with contexts of equal length, which read at most `budget` tokens (or are one item).
    The longest come first, so that what does not fit into memory shows at once."""

    def size(i):
        return len(requests[i].context), requests[i].longest

    batch = []
    for i in sorted(range(len(requests)), key=size, reverse=True):
        context, longest = size(batch[0] if batch else i)  # of its batch the first has the longest ending
        if size(i)[0] != context or (context + 4 * longest) * (len(batch) + 1) > budget:
            yield from [batch] if batch else []
            batch = []
        batch.append(i)
    yield from [batch] if batch else []


def score(requests, model, device, rows):
    """The summed loss in nats of each request's four endings: a list of four floats for each. `rows` logits at a time.

    The contexts, of one length S, are read together, and the cache of each is repeated for its four endings. Endings
    are filled up on the right to E tokens, which no token before sees.
    """
    B, S, E = len(requests), len(requests[0].context), max(request.longest for request in requests)
    ids, targets = torch.zeros(4 * B, E + 1, dtype=torch.long), torch.full((4 * B, E + 1), -1)  # -1: not scored
    rows_of = [(ending, n) for r in requests for ending, n in zip(r.endings, r.scored, strict=True)]
    for row, (ending, n) in enumerate(rows_of):
        ids[row, : len(ending)] = torch.tensor(ending)
        targets[row, len(ending) - n : len(ending)] = torch.tensor(ending[len(ending) - n :])
    scored, ids = targets >= 0, ids.to(device)
    states, cache = torch.zeros(4 * B, 1, model.config.n_embd, device=device), None
    if S:
        contexts, cache = model.new_cache(S), model.new_cache(S + E)
        x = model.hidden(torch.tensor([request.context for request in requests], device=device), contexts)  # (B, S, C)
        states = x[:, -1:].repeat_interleave(4, dim=0)  # (4B, 1, C)
        for one, four in zip(contexts, cache, strict=True):
            four.append(one.k.repeat_interleave(4, dim=0), one.v.repeat_interleave(4, dim=0))
    if E:
        x = model.hidden(ids[:, :E], cache)  # (4B, E, C)
        states = torch.cat((states.to(x.dtype), x), dim=1)  # (4B, E + 1, C): state t predicts token t of the ending
    states, targets = states[scored.to(device)], targets[scored].to(device)  # only these need logits
    losses = [
        F.cross_entropy(model.head(states[j : j + rows]).float(), targets[j : j + rows], reduction="none")
        for j in range(0, len(states), rows)
    ]
    sums = torch.zeros(4 * B, E + 1, dtype=torch.float64).masked_scatter(scored, torch.cat(losses).cpu().double())
    return sums.sum(dim=1).view(B, 4).tolist()


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


# === 4. Fetching: the only part that uses the network, and only when asked. =========================================
def download(split, path):
    """Fetches a split from the Hub and writes it to `path`, whole or not at all; returns the number of items."""
    import pyarrow.parquet
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    from train_gpt2 import write_whole

    name, expected = SPLITS[split]
    hint = "nothing was written; try again, or copy the file from a machine that has it"
    logging.set_verbosity_error()  # if no retry helps, one error says it all
    try:
        file = f"data/{name}-00000-of-00001.parquet"
        file = hf_hub_download(DATASET, file, repo_type="dataset", revision=REVISION)
        lines = [json.dumps(row, ensure_ascii=False) for row in pyarrow.parquet.read_table(file).to_pylist()]
    except Exception as e:  # the Hub's client raises dozens of kinds, all of which mean: it did not come
        reason = re.split(r"(?<=\.)\s|\n", str(e).strip())[0][:160]  # the first sentence
        raise UserError(f"cannot fetch {DATASET} ({name}): {type(e).__name__}: {reason}", hint) from e
    require(len(lines) == expected, f"{DATASET} ({name}) came with {len(lines):,} items, not {expected:,}", hint)
    for number, line in enumerate(lines):
        parse_example(line, f"{DATASET} ({name}), item {number + 1}", number)
    write_whole(path, lambda file: file.writelines(f"{line}\n".encode() for line in lines))
    return len(lines)


# === 5. Results. ====================================================================================================
def table(name, results):
    """The scores of each style with their intervals, and below them what is published for OpenAI's models."""
    lines = []
    for style, result in results.items():
        lines.append(f"\n{style + ' style':26}     acc  95 % interval         acc_norm  95 % interval")
        cells = []
        for correct in (result["correct"], result["correct_norm"]):
            low, high = wilson(correct, result["n"])
            cells.append(f"{100 * correct / result['n']:6.2f} %  {100 * low:5.2f} to {100 * high:5.2f}")
        lines.append(f"{name[-26:]:26}" + "       ".join(cells))
        for model, figures in PUBLISHED[style].items():
            cells = ["     -  " if figure is None else f"{figure:6.2f} %" for figure in figures]
            lines.append(f"{model + ', published':26}{cells[0]:31}{cells[1]}".rstrip())
    if result["n"] != SPLITS["val"][1]:
        lines.append(f"\npublished means on all {SPLITS['val'][1]:,} validation items; these are others, or fewer")
    return "\n".join(lines)


def show(examples, results, count):
    """Prints a few items in full: what acc_norm compares in each style, what is right and what the model says."""
    for i, example in enumerate(examples[:count]):
        print(f"\n[{example.activity_label}] {example.context}")
        for k, ending in enumerate(example.endings):
            items = {style: result["items"][i] for style, result in results.items()}
            losses = "  ".join(f"{style} {normed(item, style)[k]:6.3f}" for style, item in items.items())
            says = ", ".join(style for style, item in items.items() if item["prediction_norm"] == k)
            marks = " <- right" * (k == example.label) + f" <- the model ({says})" * bool(says)
            print(f"  {k}  {losses}  {ending}{marks}")
    print("\nlosses in nats per token (completion) and per character (lm-eval)")


def write_details(path, results):
    """One JSON line for each item and style: style, ind, label, losses, sums, characters, and the two predictions."""
    from train_gpt2 import write_whole

    lines = [json.dumps({"style": style} | item) for style, result in results.items() for item in result["items"]]
    write_whole(path, lambda file: file.writelines(f"{line}\n".encode() for line in lines))


def plot(path, name, results):
    """Bars of acc_norm for each style: this model with its interval and chance, and OpenAI's models beside them if all
    the items that their figures are about were scored: on a few easy items a tiny model would seem to be above them."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    from train_gpt2 import write_whole

    figure = Figure(figsize=(4.6 * len(results) + 0.4, 4.2), dpi=110, layout="constrained")
    for axes, (style, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        known = {model: norm for model, (_, norm) in PUBLISHED[style].items() if norm is not None}
        known = known if result["n"] == SPLITS["val"][1] else {}
        own, (low, high) = 100 * result["acc_norm"], (100 * x for x in wilson(result["correct_norm"], result["n"]))
        axes.bar([name[-16:]], [own], yerr=[[own - low], [high - own]], capsize=6, color="#D55E00", label="this model")
        if known:
            axes.bar(list(known), list(known.values()), color="#56B4E9", label="OpenAI's, published (10,042 items)")
        for x, height in enumerate([own, *known.values()]):
            axes.text(x, 1, f"{height:.1f}", ha="center")
        axes.axhline(25, color="black", linestyle="--", linewidth=1, label="chance, 25 %")
        axes.set(ylim=(0, max(60, high + 5)), ylabel="acc_norm (% of items right)")
        axes.set_title(f"{style} style, {result['n']:,} items, 95 % interval")
        axes.tick_params(axis="x", labelrotation=20)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write_whole(path, lambda file: figure.savefig(file, format=path.suffix[1:]))


# === 6. Command line. ===============================================================================================
def make_parser():
    from train_gpt2 import Parser

    parser = Parser("hellaswag.py", description=__doc__.strip().split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--download", action="store_true", help="fetch the items of --split from the Hub, and stop")
    parser.add_argument("--split", choices=SPLITS, default="val", help="which items (default: val)")
    parser.add_argument("--file", type=Path, help="items in the data set's form (default: what --download wrote)")
    parser.add_argument("--model", help="gpt2 .. gpt2-xl, a checkpoint, a directory (default: newest under log/)")
    parser.add_argument("--style", choices=["both", *STYLES], default="both", help="which convention (default: both)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--limit", type=int, metavar="N", help="score only the first N items")
    parser.add_argument("--details", type=Path, metavar="FILE", help="write the losses of each item, a JSON line each")
    parser.add_argument("--show", type=int, metavar="N", help="print the first N items with their losses")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the scores as bars: .png, .svg or .pdf")
    return parser


def check(args, path):
    """Raises UserError for mistakes that would show only after all the work. path: the items."""
    for name in ("limit", "show"):
        positive = getattr(args, name) is None or getattr(args, name) >= 1
        require(positive, f"--{name} is {getattr(args, name)}", "it is a whole number of at least 1")
    drawable = args.plot is None or args.plot.suffix in (".png", ".svg", ".pdf")
    require(drawable, f"cannot draw {args.plot}", "give --plot a name that ends in .png, .svg or .pdf")
    taken = [path.resolve(), Path(args.model or "log").resolve()]
    for out in filter(None, (args.details, args.plot)):
        require(out.parent.is_dir(), f"there is no directory {out.parent}", "make it, or choose another place")
        regular = not out.is_symlink() and (out.is_file() or not out.exists())
        require(regular, f"{out} is not a regular file", "give the name of a file")
        require(out.resolve() not in taken, f"{out} is read or written already", "give it a name of its own")
        taken.append(out.resolve())


def run(argv):
    from tqdm import tqdm

    from generate import load, pack_weights
    from train_gpt2 import setup_runtime

    args = make_parser().parse_args(argv)
    path = args.file or default_path(args.split)
    if args.download:
        print(f"wrote {path}: {download(args.split, path):,} items")
        return
    check(args, path)
    examples = load_examples(path)[: args.limit]
    rt = setup_runtime(args.device, args.dtype)
    model, encoding, source = load(args.model)
    model.to(rt.device)
    if rt.device.type == "cpu" and rt.dtype == torch.float32:
        pack_weights(model)  # faster there
    print(f"model {source}", *rt.reasons[:2], sep="\n", flush=True)
    results = {}
    for style in STYLES if args.style == "both" else [args.style]:
        with tqdm(total=len(examples), desc=style, unit=" items", disable=None) as bar:  # None: silent without terminal
            how = dict(style=style, autocast=rt.autocast, progress=bar.update)
            results[style] = evaluate(model, examples, encoding, **how)
    if cut := max(result["cut"] for result in results.values()):
        print(f"{cut:,} items are longer than the block of {model.config.block_size} tokens: cut on the left")
    name = "/".join(Path(source).parts[-2:])
    print(f"{path}: {len(examples):,} items\n{table(name, results)}")
    if args.show:
        show(examples, results, args.show)
    if args.details:
        write_details(args.details, results)
    if args.plot:
        plot(args.plot, name, results)


def main(argv=None):
    from train_gpt2 import run_main

    return run_main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
