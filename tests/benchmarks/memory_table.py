"""What each size of GPT-2 needs in memory, by arithmetic on its shapes; checked against what bench_memory.py measured.

    python tests/benchmarks/memory_table.py      # prints the check and the tables; report.py puts them into README.md

For training as train_gpt2.py does it on a GPU: weights, gradients and AdamW's two averages in float32, matrix products
in bfloat16, fused attention, not compiled (compiling keeps less). 1 GB is 10**9 bytes.
"""

import json
import math
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from train_gpt2 import PEAK_TFLOPS, PRESETS, GPTConfig  # noqa: E402

RESULTS = HERE / "results"
SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
CARDS = {"NVIDIA GeForce RTX 4090": "RTX 4090", "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA H100 80GB HBM3": "H100"}
MFU = 0.40  # share of the card's peak that training reaches: assumed, and stated
TOKENS = 10e9


def shapes(c):
    """The parameters as train_gpt2.GPT makes them: a list of shapes, the tied matrix once."""
    C = c.n_embd
    block = [(C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,), (C,), (C,), (4 * C, C), (4 * C,), (C, 4 * C), (C,)]
    return [(c.vocab_size, C), (c.block_size, C), *(block * c.n_layer), (C,), (C,)]


def padded(c):
    """The rows of the head while it trains: the vocabulary filled up to a multiple of 64."""
    return math.ceil(c.vocab_size / 64) * 64


def parameters(c):
    return sum(math.prod(s) for s in shapes(c))


def state_parameters(c, processes=1):
    """Parameters whose optimizer state the fullest process holds: torch's ZeroRedundancyOptimizer hands them out whole,
    largest first, each to the process that has least; matrices, then vectors, as they are two groups."""
    held = [0] * processes
    for group in (2, 1):
        for size in sorted((math.prod(s) for s in shapes(c) if len(s) == group), reverse=True):
            held[held.index(min(held))] += size
    return max(held)


def block_bytes(c, T, number):
    """What one block keeps of a sequence of T tokens; `number` is the bytes of a number in matrix products."""
    C = c.n_embd
    kept = 2 * 4 * C  # the residual stream as both norms read it, float32
    kept += number * (C + 3 * C + C)  # attention: its input, q k v, the mean of values
    kept += number * (C + 4 * C + 4 * C)  # MLP: its input, before GELU, after it
    kept += 4 * (2 * 2 + c.n_head)  # both norms' mean and deviation, and the logarithm of each head's sum
    return kept * T


def head_bytes(c, T, number):
    """What is kept outside the blocks: the last norm, the head's input, and the logarithms of probabilities."""
    return T * (4 * c.n_embd + 8 + number * c.n_embd + 4 * padded(c))


def kept_bytes(c, T, number, checkpointing=False):
    """What the forward pass keeps of one sequence for the backward pass."""
    blocks = c.n_layer * (4 * c.n_embd * T if checkpointing else block_bytes(c, T, number))
    return blocks + head_bytes(c, T, number)


def cast_bytes(c, checkpointing=False):
    """The bfloat16 copies of matrices that are kept with them: of the head, and of blocks that are not recomputed."""
    return 2 * c.n_embd * (padded(c) + (0 if checkpointing else 12 * c.n_embd * c.n_layer))


def activation_bytes(c, T, number=2, checkpointing=False):
    """At the worst moment: what is kept, and beside the head's logarithms their gradient, the logits' and its cast;
    with checkpointing, or else a block computed again, if that is more."""
    at_the_head = T * padded(c) * (4 + 4 + number)
    in_a_block = block_bytes(c, T, number) if checkpointing else 0
    return kept_bytes(c, T, number, checkpointing) + max(at_the_head, in_a_block)


def total_bytes(c, B, processes=1, zero=False, checkpointing=False):
    """All of it on one GPU, for B sequences of c.block_size."""
    P = parameters(c)
    weights = 4 * P + cast_bytes(c, checkpointing)  # float32, and bfloat16 copies while a step runs
    state = 8 * (state_parameters(c, processes) if zero else P)
    return weights + 4 * P + state + B * activation_bytes(c, c.block_size, checkpointing=checkpointing)


def flops_per_token(c):
    """See GPT.flops_per_token."""
    return 6 * (parameters(c) - c.block_size * c.n_embd) + 12 * c.n_layer * c.n_embd * c.block_size


def hours(c, card, gpus):
    return TOKENS * flops_per_token(c) / (PEAK_TFLOPS[card] * 1e12 * MFU * gpus) / 3600


def check(measured):
    """-> lines that compare the arithmetic with the measured points. Raises ValueError where one is off by over 5 %."""
    pairs = []
    for m in measured["optimizer"]:
        c = GPTConfig.from_name(m["preset"])
        computed = 8 * state_parameters(c, m["processes"] if m["zero"] else 1)
        name = f"AdamW of {m['preset']}, {m['processes']} processes{', --zero' * m['zero']}"
        pairs.append((name, computed, max(m["bytes"])))
    for m in measured["activations"]:
        c = GPTConfig.from_name(m["preset"], block_size=m["T"])
        number = {"float32": 4, "bfloat16": 2}[m["dtype"]]
        name = f"kept of {m['T']} tokens of {m['preset']}, {m['dtype']}"
        name += ", --activation_checkpointing" * m["checkpointing"]
        computed = kept_bytes(c, m["T"], number, m["checkpointing"])
        computed += cast_bytes(c, m["checkpointing"]) if number == 2 else 0
        pairs.append((name, computed, m["kept_bytes"]))
    lines = []
    for name, computed, found in pairs:
        lines.append(f"{name}: computed {computed / 1e6:,.0f} MB, measured {found / 1e6:,.0f} MB")
        if abs(computed - found) > 0.05 * found:
            raise ValueError(f"the arithmetic is wrong: {lines[-1]}")
    return lines


def gb(number):
    return f"{number / 1e9:.1f}"


def row(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def markdown():
    """The tables and where they come from, as Markdown."""
    head = ["GB", "weights", "their casts", "gradients", "AdamW", "its share of 8, `--zero`"]
    head += ["1 sequence of 1,024", "`--activation_checkpointing`"]
    parts = [row(head), row(["---"] * len(head))]
    for name in SIZES:
        c = GPTConfig(**PRESETS[name])
        P = parameters(c)
        each = [activation_bytes(c, 1024, checkpointing=on) for on in (False, True)]
        held = [4 * P, cast_bytes(c), 4 * P, 8 * P, 8 * state_parameters(c, 8)]
        parts.append(row([f"`{name}`", *map(gb, [*held, *each])]))
    head = ["GB on each GPU", "B = 1", "4", "16", "64", "both options, 8 GPUs: 1", "4", "16", "64"]
    parts += ["", row(head), row(["---"] * len(head))]
    for name in SIZES:
        c = GPTConfig(**PRESETS[name])
        plain = [total_bytes(c, B) for B in (1, 4, 16, 64)]
        least = [total_bytes(c, B, 8, zero=True, checkpointing=True) for B in (1, 4, 16, 64)]
        parts.append(row([f"`{name}`", *(f"{b / 1e9:,.0f}" for b in plain + least)]))
    head = ["hours for 10B tokens", *(f"{n} x {card}" for card in CARDS.values() for n in (1, 8))]
    parts += ["", row(head), row(["---"] * len(head))]
    for name in SIZES:
        c = GPTConfig(**PRESETS[name])
        parts.append(row([f"`{name}`", *(f"{hours(c, card, n):,.1f}" for card in CARDS for n in (1, 8))]))
    measured = json.loads((RESULTS / "memory.json").read_text("utf-8"))
    points = len(check(measured))
    parts += ["", *measured_rows(measured)]
    parts += [
        "",
        "The first table is what one GPU holds, the second its sum for B sequences of 1,024 tokens at once",
        "(`--micro_batch`), without and with `--zero --activation_checkpointing`. Not compiled, so upper estimates.",
        f"Hours are 6 operations a weight and token at {MFU:.0%} of the card's bfloat16 peak, an assumption;",
        "validation and saving not counted. Computed from the shapes by `tests/benchmarks/memory_table.py`, which",
        f"checks itself against {points} points that `bench_memory.py` measured, to within 5 %. Last table: measured,",
        f"{measured['cpu']}, torch {measured['torch']}, {measured['date']}.",
    ]
    return "\n".join(parts)


def measured_rows(measured):
    """What the two options save, and the step of the large model, as lines of a table."""
    lines = [row(["measured", "without", "with", "share"]), row(["---"] * 4)]
    plain, zero = (next(m for m in measured["optimizer"] if m["zero"] == on) for on in (False, True))
    name = f"AdamW of `{plain['preset']}`, each of {plain['processes']} processes, `--zero`"
    lines.append(compared(name, max(plain["bytes"]), max(zero["bytes"])))
    for m in measured["activations"]:
        if m["checkpointing"]:
            plain = dict(preset=m["preset"], T=m["T"], dtype=m["dtype"], checkpointing=False)
            without = next(o for o in measured["activations"] if plain.items() <= o.items())
            name = f"activations of {m['T']:,} tokens of `{m['preset']}`, {m['dtype']}, `--activation_checkpointing`"
            lines.append(compared(name, without["kept_bytes"], m["kept_bytes"]))
    for m in measured["large"]:
        name = f"a step of `{m['preset']}` in {m['seconds']:,.0f} s, {m['micro_batch']} x {m['T']:,} tokens in each of "
        name += f"{m['processes']} process{'es' if m['processes'] > 1 else ''}, {m['dtype']}, both options"
        lines.append(row([name, "", f"{gb(sum(m['peak_bytes']))} GB in all", ""]))
    return lines


def compared(name, without, with_option):
    cells = [f"{number / 1e6:,.0f} MB" for number in (without, with_option)]
    return row([name, *cells, f"{with_option / without:.2f}"])


def main(argv=None):
    print("\n".join(check(json.loads((RESULTS / "memory.json").read_text("utf-8")))), markdown(), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
