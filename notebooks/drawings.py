"""
The schematic drawings of the lessons, made of boxes, arrows and text, in one style.

    lesson.draw("block")                              in a lesson: the drawing with its description
    python notebooks/lesson.py --machine              draws `machine` as notebooks/machine.png, for the main README

A drawing is a function that gets an empty Board and returns its description for those who cannot see it. Lengths are
hundredths of an inch, from the lower left corner; the board is 640 wide. Symbols (B, T, C, nh, hs, V) are those of
train_gpt2.py. No text is smaller than 10 points; tests/test_notebooks.py finds text that is cut, covered or crossed.
"""

import itertools
import math

import lesson
from lesson import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED

PAPER, GREY, LINE = "#FFFFFF", "#EFEFEF", "#555555"
TINT = dict(zip((BLUE, ORANGE, GREEN, RED, PURPLE), lesson.LIGHT, strict=True)) | {LINE: GREY, BLACK: PAPER}
LIGHT_BLUE, LIGHT_ORANGE = TINT[BLUE], TINT[ORANGE]
HEIGHTS = {}  # name of a drawing -> its height
_makers = {}


def drawing(height):
    """Enters a function under its name, without the `draw_` in front."""

    def enter(function):
        name = function.__name__.removeprefix("draw_")
        _makers[name], HEIGHTS[name] = function, height
        return function

    return enter


def make(name):
    """-> the figure of that name, and its description."""
    if name not in _makers:
        raise ValueError(f"no drawing is called {name!r}; there are {', '.join(_makers)}")
    board = Board(HEIGHTS[name])
    description = _makers[name](board)
    return board.figure, " ".join(description.split())


class Board:
    """An empty drawing, `height` hundredths of an inch high."""

    def __init__(self, height):
        import matplotlib.pyplot as plt

        self.figure = plt.figure(figsize=(lesson.WIDTH, height / 100))
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, 100 * lesson.WIDTH), ylim=(0, height))
        self.ax.axis("off")

    def text(self, x, y, text, size=10, ha="center", va=None, **options):
        if va is None and "\n" not in text:
            va, y = "center_baseline", y + 2  # so that "keeper" and "lit" stand on one line
        self.ax.text(x, y, text, fontsize=size, ha=ha, va=va or "center", linespacing=1.25, zorder=4, **options)

    def code(self, x, y, text, **options):
        """Names and shapes, as the file writes them."""
        self.text(x, y, text, family="monospace", **options)

    def box(self, x, y, width, height, text="", color=LINE, fill=None, dashed=False, **options):
        """A rounded box of one of our colours, with its text in the middle."""
        from matplotlib.patches import FancyBboxPatch

        shape = FancyBboxPatch(
            (x + 4, y + 4), width - 8, height - 8, boxstyle="round,pad=4", facecolor=fill or TINT[color], zorder=2,
            edgecolor=color, linewidth=1.2, linestyle="--" if dashed else "-",
        )  # fmt: skip
        self.ax.add_patch(shape)
        if text:
            self.text(x + width / 2, y + height / 2, text, **options)

    def grid(self, x, y, colors, cell=16, texts=None, edge=LINE, size=10):
        """A matrix: a cell for each entry of `colors` (rows of colours, the first on top), the lower left at x, y."""
        from matplotlib.patches import Rectangle

        rows = len(colors)
        for i, row in enumerate(colors):
            for j, color in enumerate(row):
                corner = (x + j * cell, y + (rows - 1 - i) * cell)
                style = dict(facecolor=color, edgecolor=edge, linewidth=0.8, zorder=2)
                self.ax.add_patch(Rectangle(corner, cell, cell, **style))
                if texts and texts[i][j]:
                    self.text(corner[0] + cell / 2, corner[1] + cell / 2, texts[i][j], size=size)

    def arrow(self, *points, color=LINE, width=1.4, dashed=False, head=True):
        """A line through points (x, y), with an arrowhead at the last one."""
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path

        kind = "-|>,head_length=5,head_width=2.5" if head else "-"
        style = dict(arrowstyle=kind, color=color, linewidth=width, linestyle="--" if dashed else "-", zorder=3)
        path = Path(points, [Path.MOVETO] + [Path.LINETO] * (len(points) - 1))
        patch = FancyArrowPatch(path=path, joinstyle="miter", capstyle="butt", **style)
        self.ax.add_patch(patch)

    def plus(self, x, y, color=LINE):
        """The sign of an addition, in a circle."""
        from matplotlib.patches import Circle

        self.ax.add_patch(Circle((x, y), 10, facecolor=PAPER, edgecolor=color, linewidth=1.4, zorder=3.5))
        self.ax.plot((x - 5, x + 5, x, x, x), (y, y, y, y - 5, y + 5), color=BLACK, linewidth=1.4, zorder=4)

    def brace(self, x0, x1, y, text, above=True, color=LINE):
        """A bracket over (or under) the stretch from x0 to x1, with its text."""
        tip = 6 if above else -6
        self.arrow((x0, y), (x0, y + tip), (x1, y + tip), (x1, y), color=color, head=False, width=1)
        self.text((x0 + x1) / 2, y + 2.7 * tip, text)


TOKENS = ("The", " keeper", " lit", " the", " lamp", ".")


# --- The model --------------------------------------------------------------------------------------------------------
@drawing(640)
def draw_machine(b):
    left, width, middle = 116, 360, 296
    columns = [155, 249, 343, 437]
    b.code(8, 610, "idx (B, T)", ha="left")
    for x, token in zip(columns, TOKENS, strict=False):
        b.box(x - 39, 596, 78, 28, token.strip(), fill=PAPER)
        b.arrow((x, 596), (x, 574))
    b.box(503, 596, 78, 28, "lamp", color=RED, dashed=True)
    b.box(left, 544, width, 28, "wte: C numbers for each token", color=BLUE)
    b.arrow((middle, 544), (middle, 524))
    b.plus(middle, 513)
    b.box(342, 499, left + width - 342, 28, "wpe: its position", color=BLUE)
    b.arrow((342, 513), (308, 513))
    b.arrow((middle, 502), (middle, 476))
    b.box(left, 366, width, 108, fill=PAPER)
    b.text(left + 12, 461, "a block", ha="left")
    b.box(left + 20, 420, width - 40, 28, "attention: tokens exchange information", color=ORANGE)
    b.arrow((middle, 420), (middle, 406))
    b.box(left + 20, 376, width - 40, 28, "MLP: each token works by itself", color=GREEN)
    b.box(left, 308, width, 28, "n_layer - 1 more blocks, with weights of their own", fill=PAPER)
    b.box(left, 250, width, 28, "ln_f: LayerNorm")
    b.box(left, 192, width, 28, "head: the matrix wte again scores every token", color=BLUE)
    b.box(left, 134, width, 28, "softmax: scores become probabilities", color=PURPLE)
    for y in (366, 308, 250, 192):
        b.arrow((middle, y), (middle, y - 28))
        b.code(middle + 12, y - 13, "(B, T, V)" if y == 192 else "(B, T, C)", ha="left")
    b.code(middle + 12, 486, "(B, T, C)", ha="left")
    b.arrow((columns[-1], 134), (columns[-1], 110))
    b.text(8, 100, "What may follow\nthe last token?", ha="left")
    for y, token, share in ((90, "lamp", 0.52), (64, "light", 0.21), (38, "way", 0.06), (12, "all others", 0.21)):
        b.text(248, y + 8, token, ha="right")
        b.box(256, y, 8 + 300 * share, 16, color=RED if token == "lamp" else PURPLE)
        b.text(272 + 300 * share, y + 8, f"{share:.2f}", ha="left")
    b.arrow((470, 98), (608, 98), (608, 610), (583, 610), color=RED)
    b.text(600, 320, "draw one,\nappend it,\nrepeat", ha="right")
    return """The whole GPT. Token ids idx (B, T) pick rows of the table wte, which say which token it is; rows of wpe,
    which say where it stands, are added: x (B, T, C). It goes through n_layer blocks, each with attention, where
    tokens exchange information, and an MLP, where each token works by itself. After ln_f the head, the matrix wte
    again, gives scores (B, T, V); softmax makes them probabilities. One token is drawn from those of the last place
    and appended; repeat."""


@drawing(290)
def draw_block(b):
    stream, row = 100, 195
    b.arrow((8, stream), (634, stream), color=BLUE, width=4)
    b.text(8, 60, "the residual stream x, (B, T, C), runs straight through all blocks", ha="left", color=BLUE)
    b.arrow((634, 34), (8, 34), dashed=True, color=RED)
    b.text(634, 16, "backwards, gradients pass every + unchanged", ha="right", color=RED)
    for up, down, plus, parts in (
        (26, 226, 226, (("ln_1", 44, 52, LINE), ("attention", 116, 92, ORANGE))),
        (
            268, 592, 592,
            (("ln_2", 286, 52, LINE), ("c_fc", 362, 56, GREEN), ("GELU", 442, 56, GREEN), ("c_proj", 514, 60, GREEN)),
        ),
    ):  # fmt: skip
        b.arrow((up, stream), (up, row), (parts[0][1], row))
        for (_, x, width, _), (_, following, _, _) in itertools.pairwise(parts):
            b.arrow((x + width, row), (following, row))
        b.arrow((parts[-1][1] + parts[-1][2], row), (down, row), (down, stream + 11))
        for name, x, width, color in parts:
            b.box(x, row - 17, width, 34, name, color=color)
        b.plus(plus, stream)
    b.brace(362, 574, 244, "MLP: each token by itself")
    b.brace(116, 208, 244, "tokens exchange")
    b.code(162, 228, "(B, T, C)")
    b.code(430, 228, "(B, T, 4C)")
    b.code(544, 228, "(B, T, C)")
    b.code(126, 145, "x = x + attn(ln_1(x))")
    b.code(430, 145, "x = x + mlp(ln_2(x))")
    return """One block. The residual stream x (B, T, C) runs straight through. The first branch reads it through the
    LayerNorm ln_1, lets the tokens exchange information in attention, and adds the result to the stream. The second
    branch reads through ln_2; the MLP widens each token to 4C numbers (c_fc), applies GELU, goes back to C (c_proj),
    and adds. Backwards, gradients pass every addition unchanged."""


SHADES = {"q": ("#FBE3B5", "#F0B94D"), "k": ("#CFE5F2", "#7DB6DA"), "v": ("#BFE8DC", "#63C2A5")}  # of two heads


@drawing(600)
def draw_heads(b):
    T, C, nh, cell = 4, 6, 2, 14
    hs = C // nh
    b.grid(20, 510, [[GREY] * C] * T, cell)
    b.code(62, 580, "x (B, T, C)")
    b.arrow((110, 538), (232, 538))
    b.text(168, 552, "c_attn")
    b.text(168, 522, "C to 3C")
    b.grid(240, 510, [[SHADES[name][h] for name in "qkv" for h in range(nh) for _ in range(hs)]] * T, cell)
    for i, name in enumerate("qkv"):
        b.code(240 + cell * C * (i + 0.5), 580, name)
    b.code(504, 538, "(B, T, 3C)", ha="left")
    b.arrow((366, 506), (366, 462))
    b.text(378, 484, "nh heads of hs = C / nh channels", ha="left")
    b.code(354, 484, "view, permute: (B, nh, T, hs)", ha="right")
    for h, left in enumerate((10, 325)):
        b.box(left, 176, 305, 282, fill=PAPER)
        b.text(left + 12, 442, f"head {h}, of nh = 2", ha="left")
        xs = dict(q=left + 34, k=left + 124, v=left + 224)
        for name, x in xs.items():
            b.grid(x, 346, [[SHADES[name][h]] * hs] * T, cell)
            b.code(x + 21, 416, name)
            b.code(x + 21, 330, "(T, hs)")
        weights = [["#E3B5D0" if j <= i else PAPER for j in range(T)] for i in range(T)]
        b.arrow((xs["q"] + 21, 318), (xs["q"] + 21, 276))
        b.arrow((xs["k"] + 21, 318), (xs["k"] + 21, 300), (xs["q"] + 58, 300), (xs["q"] + 58, 276))
        b.grid(xs["q"] + 6, 216, weights, cell)
        b.text(left + 108, 244, "q @ k,\nmask,\nsoftmax", ha="left")
        b.code(xs["q"] + 34, 200, "(T, T)")
        b.arrow((left + 174, 240), (xs["v"] - 4, 240))
        b.text(left + 196, 254, "@ v")
        b.arrow((xs["v"] + 21, 318), (xs["v"] + 21, 276))
        b.grid(xs["v"], 216, [[SHADES["v"][h]] * hs] * T, cell)
        b.code(xs["v"] + 21, 200, "(T, hs)")
        b.arrow((xs["v"] + 21, 188), (xs["v"] + 21, 140), (262 + 42 * h, 140), (262 + 42 * h, 112))
    b.grid(240, 52, [[SHADES["v"][h] for h in range(nh) for _ in range(hs)]] * T, cell)
    b.text(226, 80, "side by side", ha="right")
    b.code(283, 36, "(B, T, C)")
    b.arrow((330, 80), (448, 80))
    b.text(388, 94, "c_proj")
    b.text(388, 64, "C to C")
    b.grid(456, 52, [[GREY] * C] * T, cell)
    b.code(498, 36, "(B, T, C)")
    return """q, k and v are made from x and cut into heads, here with T = 4, C = 6, nh = 2. The matrix c_attn turns x
    (B, T, C) into (B, T, 3C): C numbers for the query, C for the key, C for the value. Each third is cut into nh heads
    of hs = C / nh numbers. Within a head q and k give the weights (T, T), zero for later tokens, and the weights times
    v give (T, hs). The results of the heads stand side by side again, (B, T, C), and c_proj mixes them."""


@drawing(330)
def draw_mask(b):
    words, cell = ("We", "saw", "the", "lamp", "lit"), 46
    scores = ((0.9,), (0.3, 1.1), (0.2, 1.4, 0.1), (-0.4, 1.0, 0.8, 1.2), (1.5, 0.2, -0.6, 1.8, 0.4))
    left, right, bottom = 66, 398, 44
    T = len(words)
    texts = [[f"{s:.1f}" for s in row] + ["-inf"] * (T - len(row)) for row in scores]
    b.grid(left, bottom, [[LIGHT_BLUE if j <= i else "#D9D9D9" for j in range(T)] for i in range(T)], cell, texts)
    totals = [sum(math.exp(s) for s in row) for row in scores]
    texts = [
        [f"{math.exp(s) / total:.2f}" for s in row] + ["0"] * (T - len(row))
        for row, total in zip(scores, totals, strict=True)
    ]
    b.grid(right, bottom, [[LIGHT_ORANGE if j <= i else PAPER for j in range(T)] for i in range(T)], cell, texts)
    for i, word in enumerate(words):
        b.text(left - 8, bottom + cell * (T - 0.5 - i), word, ha="right")
        for x in (left, right):
            b.text(x + cell * (i + 0.5), bottom + cell * T + 12, word)
    b.text(left + cell * T / 2, 314, "scores + mask (B, nh, T, T)")
    b.text(right + cell * T / 2, 314, "weights (B, nh, T, T)")
    b.arrow((left + cell * T + 8, 160), (right - 8, 160))
    b.text((left + cell * T + right) / 2, 174, "softmax")
    b.text(left, 22, "Row: the token that asks. Column: the token that answers.", ha="left")
    b.text(right + cell * T, 22, "Each row sums to 1.", ha="right")
    return """The causal mask, for five tokens. Left the scores, a row for the token that asks, a column for the token
    that answers: above the diagonal, where the answer would come from a later token, the mask makes them minus
    infinity. Right the weights after softmax: 0 above the diagonal, and each row sums to 1. The first token can only
    look at itself."""


@drawing(264)
def draw_shift(b):
    xs = [120 + 86 * i for i in range(6)]
    for x, token in zip(xs, TOKENS, strict=True):
        b.box(x, 186, 78, 28, token.strip(), fill=PAPER)
    b.text(8, 200, "T + 1 tokens", ha="left")
    b.brace(xs[0], xs[4] + 78, 220, "x")
    b.brace(xs[1], xs[5] + 78, 180, "y", above=False)
    for i, x in enumerate(xs[:5]):
        b.box(x, 112, 78, 28, TOKENS[i].strip(), color=BLUE)
        b.arrow((x + 39, 112), (x + 39, 78))
        b.box(x, 50, 78, 28, TOKENS[i + 1].strip(), color=RED)
    b.code(8, 126, "x (B, T)", ha="left")
    b.code(8, 64, "y (B, T)", ha="left")
    b.text(8, 95, "what follows?", ha="left")
    b.text(120, 22, "Place t sees x[0] to x[t] and has to predict y[t]: T predictions from one row.", ha="left")
    return """x and y, one token apart. T + 1 tokens are read; x is all but the last, y all but the first. Under each
    token of x stands the token of y that follows it in the text. Place t sees x[0] to x[t] and has to predict y[t], so
    that one row of T tokens gives T predictions to learn from."""


@drawing(452)
def draw_windows(b):
    left, width = 18, 53
    b.text(left, 436, "shards, read as one long row of tokens (TokenStream)", ha="left")
    for i, (x0, x1) in enumerate(((18, 226), (226, 430), (430, 622))):
        b.box(x0, 396, x1 - x0, 28, f"shard {i}", fill=PAPER)
    b.text(left, 372, "cut into windows of T tokens; what is left over begins the next epoch", ha="left")
    for i in range(11):
        b.box(left + width * i, 332, width, 28, str(i))
    b.box(left + width * 11, 332, 622 - left - width * 11, 28, fill=PAPER, dashed=True)
    b.arrow((300, 330), (300, 284))
    b.text(314, 306, "shuffled by (seed, epoch)", ha="left")
    b.text(left, 306, "sequence s reads window order[s]", ha="left")
    colors = [BLUE, BLUE, ORANGE, ORANGE] * 2 + [LINE] * 3
    for i, (number, color) in enumerate(zip((7, 2, 9, 0, 4, 10, 6, 1, 8, 3, 5), colors, strict=True)):
        b.box(left + width * i, 252, width, 28, str(number), color=color, fill=None if i < 8 else PAPER, dashed=i >= 8)
    for i in range(4):
        b.brace(left + 2 * width * i + 4, left + 2 * width * (i + 1) - 4, 246, f"rank {i % 2}", above=False)
    for i in range(2):
        b.brace(left + 4 * width * i + 4, left + 4 * width * (i + 1) - 4, 210, f"micro-step {i}", above=False)
    b.brace(left + 4, left + 8 * width - 4, 174, "step 0", above=False)
    b.brace(left + 8 * width + 4, 622, 174, "step 1, and so on", above=False)
    b.text(left, 118, "here B = 2: a rank reads two windows at once", ha="left")
    b.text(left, 92, "tokens of a step:", ha="left")
    b.code(left + 130, 92, "total_batch = B x T x micro-steps x ranks", ha="left")
    b.text(left, 58, "The number of a sequence follows from (step, micro-step, rank) alone: no rank keeps", ha="left")
    b.text(left, 38, "a position, none can drift from the others, and a resumed run reads on exactly.", ha="left")
    return """Windows over shards and ranks. Three shards are read as one long row of tokens, which is cut into windows
    of T; a window may reach from one shard into the next, and the tokens left over begin the next epoch. A permutation
    made from (seed, epoch) shuffles the windows. Sequences are dealt out in order: B to rank 0, B to rank 1, then the
    same for the next micro-step, until a step has total_batch tokens."""


@drawing(372)
def draw_micro_batches(b):
    xs, width = (66, 162, 258), 78
    b.brace(xs[0], xs[1] + width, 308, "no_sync: nothing is sent")
    b.brace(xs[2], xs[2] + width, 308, "the last")
    for rank, y in enumerate((214, 84)):
        b.text(8, y + 60, f"rank {rank}", ha="left")
        for i, x in enumerate(xs):
            b.box(x, y + 34, width, 52, "forward,\nbackward", color=(BLUE, ORANGE)[rank])
            if i:
                b.arrow((xs[i - 1] + width, y + 60), (x, y + 60))
            b.code(x + width / 2, y + 16, "+".join(f"g{j}" for j in range(i + 1)))
        b.code(8, y + 16, "p.grad", ha="left")
        b.arrow((xs[2] + width, y + 60), (360, y + 60))
        b.arrow((476, y + 60), (498, y + 60))
        b.box(498, y + 22, 134, 76, "clip the norm,\nstep,\nzero_grad", color=GREEN)
    b.box(360, 88, 116, 222, "DDP: in the\nlast backward\none exchange:\nthe mean of\nthe ranks", color=PURPLE)
    b.arrow((8, 62), (632, 62))
    b.text(632, 46, "time", ha="right")
    b.text(8, 46, "All ranks begin a step with the same weights and end it with the same weights.", ha="left")
    b.text(8, 20, "Each loss is divided by the number of micro-steps, so that the sum is a mean.", ha="left")
    b.text(8, 354, "one step, two ranks, three micro-steps each", ha="left")
    return """One training step with two ranks and three micro-steps each. In every micro-step a rank runs forward and
    backward on its own micro-batch, and the gradients add up in p.grad: g0, then g0+g1, then g0+g1+g2. In all but the
    last, no_sync keeps DDP from sending anything. In the backward pass of the last one DDP exchanges the sums once and
    gives all ranks their mean. Then each rank clips the norm, takes the same optimizer step, and sets the gradients to
    none."""


@drawing(420)
def draw_cache(b):
    cell, strip = 26, 412
    parts = (
        (236, TOKENS[:4], 4, "The first step: all tokens so far go through the model.", "(B, nh, 4, 4)"),
        (34, TOKENS[4:5], 5, "Each later step: only the new token does.", "(B, nh, 1, 5)"),
    )
    for y, tokens, held, title, shape in parts:
        b.text(8, y + 168, title, ha="left")
        first = 264 - 64 * len(tokens)
        for i, token in enumerate(tokens):
            b.box(first + 64 * i, y + 84, 60, 28, token.strip(), color=RED if len(tokens) == 1 else BLUE)
        b.arrow((262, y + 98), (286, y + 98))
        b.box(286, y + 80, 74, 36, "c_attn", color=ORANGE)
        for name, at in (("k", y + 112), ("v", y + 58)):
            colors = [SHADES[name][0] if i < held else PAPER for i in range(7)]
            if len(tokens) == 1:
                colors[held - 1] = SHADES[name][1]
            b.grid(strip, at, [colors], cell)
            b.code(strip + 7 * cell + 14, at + 13, name)
            b.arrow((360, y + 98), (380, y + 98), (380, at + 13), (strip - 2, at + 13))
        b.code(strip, y + 34, f"k, v (B, nh, {held}, hs)", ha="left")
        b.text(8, y + 34, "q asks all keys:", ha="left")
        b.code(126, y + 34, f"scores {shape}", ha="left")
        b.code(strip, y + 150, "KVCache(max_length=7)", ha="left")
        b.code(8, y + 60, "q (B, nh, 4, hs)" if held == 4 else "q (B, nh, 1, hs)", ha="left")
    b.arrow((8, 222), (632, 222), head=False, dashed=True, width=1)
    b.text(8, 16, "The earlier keys and values are read, not computed again.", ha="left")
    return """The key-value cache of one layer, with room for max_length = 7 tokens. In the first step all four tokens
    go through the model; their keys and values fill four places, and the scores have shape (B, nh, 4, 4). In each
    later step only the new token goes through: its key and value fill the next place, its query asks all five keys,
    and the scores have shape (B, nh, 1, 5). The earlier keys and values are read, not computed again."""


@drawing(438)
def draw_loop(b):
    left, width = 20, 262
    b.text(left + width / 2, 382, "Train ...")
    rows = (
        (318, "get_lr", "the learning rate of this step", LINE),
        (258, "loader.batch", "x, y for each micro-step", BLUE),
        (198, "train_step", "loss, backward, clip, step", ORANGE),
        (138, "log.train", "loss and speed, every log_every", LINE),
    )
    for y, name, what, color in rows:
        b.box(left, y, width, 46, color=color)
        b.code(left + width / 2, y + 32, name)
        b.text(left + width / 2, y + 14, what)
        if y > 138:
            b.arrow((left + width / 2, y), (left + width / 2, y - 14))
    x, wide = 350, 278
    b.text(x + wide / 2, 382, "... then look, where it is due")
    looks = (
        (318, "evaluate", "validation loss, every val_every", GREEN),
        (258, "score_on_all_ranks", "HellaSwag, every hellaswag_every", GREEN),
        (198, "sample_texts", "what it writes, every sample_every", GREEN),
        (138, "log.save", "a checkpoint, every save_every", PURPLE),
    )
    for y, name, what, color in looks:
        b.box(x, y, wide, 46, color=color)
        b.code(x + wide / 2, y + 32, name)
        b.text(x + wide / 2, y + 14, what)
        if y > 138:
            b.arrow((x + wide / 2, y), (x + wide / 2, y - 14))
    b.arrow((left + width, 161), (316, 161), (316, 341), (x, 341))
    b.arrow((x + wide, 161), (634, 161), (634, 404), (8, 404), (8, 341), (left, 341), color=RED)
    b.text(316, 421, "the next step")
    b.arrow((left + width / 2, 138), (left + width / 2, 96))
    b.arrow((x + wide / 2, 138), (x + wide / 2, 96))
    b.box(left, 50, width, 46, "log.jsonl", fill=PAPER)
    b.box(x, 50, wide, 46, "ckpt_001000.pt, loss.png", fill=PAPER)
    b.text(left, 34, "It also looks before the first step. After max_steps, or when asked to stop,", ha="left")
    b.text(left, 14, "it saves and ends. Everything is in the run's folder.", ha="left")
    return """The loop of train(). A step: get_lr gives the learning rate, loader.batch the micro-batches, train_step
    computes loss and gradients, clips and updates, log.train notes loss and speed. Then it looks, where it is due:
    evaluate gives the validation loss, HellaSwag is scored, sample_texts writes, log.save keeps a checkpoint. Then the
    next step. What happens goes to log.jsonl, loss.png and the checkpoints. After max_steps, or when asked to stop, it
    saves and ends."""
