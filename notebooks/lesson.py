"""
What the eleven lessons share: the way in, real source to read, guesses, exercises, pictures; and their press.

    python notebooks/lesson.py --execute          run all lessons, store their outputs in the files, make thumbnails
    python notebooks/lesson.py --execute 03 04    only these
    python notebooks/lesson.py --solve 03         run with the solutions put in; nothing is written
    python notebooks/lesson.py --thumbnails       take the small pictures for README.md from the stored outputs
    python notebooks/lesson.py --machine          draw notebooks/machine.png, for the README of the repository

In a lesson (the first code cell is always the same three lines; they work from the repository and from notebooks/):

    import sys
    sys.path.append("notebooks")
    import lesson

    lesson.show_source(train_gpt2.MLP)            the real source, as a block of code; start="..." begins at a line,
                                                  until="..." stops before one; a whole module can be given, too
    lesson.predict("loss at step 0", None, loss)  compares the reader's guess with the truth; None: the answer is closed
    lesson.steps(300, 20)                         the first number; in fast mode the second
    lesson.workspace()                            an empty temporary folder, removed when Python ends
    lesson.gpt2_tokenizer()                       GPT-2's own if it is on this machine, else None
    fig, ax = lesson.figure(1, 2, height=3)       an empty picture in our style; BLUE, ORANGE .. are Okabe and Ito's
    lesson.show(fig, "What the picture shows.")   shows it with that description; refuses axes without labels
    lesson.heatmap(ax, matrix, rows=, cols=)      a matrix with its entries' names
    lesson.spans(ax, pieces)                      pieces of text as coloured boxes, wrapped into lines
    lesson.box(x, y, width, height, color)        one box, for ax.add_patch
    lesson.draw("block")                          shows a drawing of drawings.py with its description
    lesson.check("01_merge", merge, test)         verifies an exercise, see below

An exercise is one cell with the tag `exercise`, whose first line is `# exercise: 01_merge`. In it a function is left
open with `return ...` (or a value with `answer = ...`). The cell after it calls check(name, answer, test): while the
answer is open it says "not yet"; then test(answer) must pass, and where it does not, one sentence says why. A function
that returns `...` counts as open; for the rest (a class, a table) test calls filled(value). The file
notebooks/solutions/01_merge.py is put in place of the cell by --solve and by the tests, and must import what it needs.

Environment: LESSON_FAST=1 for fewer steps in the same cells; LESSON_STRICT=1 makes "not yet" and "not right" errors.
"""

import argparse
import base64
import functools
import hashlib
import html
import inspect
import io
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
import traceback
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
if str(ROOT) not in sys.path:  # the one thing done on import: the scripts of the repository can be imported after it
    sys.path.insert(0, str(ROOT))

FAST = os.environ.get("LESSON_FAST") == "1"
STRICT = os.environ.get("LESSON_STRICT") == "1"

# Okabe and Ito's colours, which people of all kinds of colour vision can tell apart (jfly.uni-koeln.de/color)
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)  # in the order of use; yellow is too pale for lines
LIGHT = ("#CFE5F2", "#FBE3B5", "#BFE8DC", "#F7D3BD", "#F3DDE8")  # the same, mixed with white, to write on

WIDTH, DPI = 6.4, 110  # inches and dots per inch: 704 pixels, with letters that can be read at 600


# --- Reading and guessing ---------------------------------------------------------------------------------------------
def steps(full, fast):
    """`full`, or `fast` in the fast mode of the tests."""
    return fast if FAST else full


def workspace():
    """A new empty folder (pathlib.Path) for runs and shards; it is removed when Python ends."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="lesson-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def gpt2_tokenizer():
    """GPT-2's own tokenizer (tiktoken.Encoding) if its files are on this machine, else None. Never uses the network."""
    import tokenizer

    return None if tokenizer._gpt2_missing() else tokenizer.load_tokenizer("gpt2")


def show_source(obj, until=None, start=None):
    """Displays the real source of a function, a class or a module, highlighted, with its file and line.

    start: a piece of text; the display begins at the first line that holds it. until: it stops before the next line
    that holds this one. Raises ValueError if no line does, so that a change of the source is noticed here.
    """
    from IPython.display import display

    obj = inspect.unwrap(obj)  # behind decorators such as torch.no_grad
    lines, number = inspect.getsourcelines(obj)
    first, end = 0, len(lines)
    if start is not None:
        first = _line_with(start, lines, 0, obj)
    if until is not None:
        end = _line_with(until, lines, first if start is None else first + 1, obj)
    number = max(number, 1) + first  # of a module it is 0
    source = textwrap.dedent("".join(lines[first:end])).rstrip()
    where = f"{Path(inspect.getsourcefile(obj)).name}, line {number}"
    display({"text/html": _code_block(source, where), "text/plain": f"{where}:\n\n{source}"}, raw=True)


def _line_with(text, lines, first, obj):
    """Index of the first of the lines, from `first` on, that holds the text."""
    for i in range(first, len(lines)):
        if text in lines[i]:
            return i
    raise ValueError(f"no line of {getattr(obj, '__qualname__', obj.__name__)} holds {text!r}")


def _code_block(source, where):
    """Python source as HTML that keeps its indentation, scrolls sideways and brings its own colours: style sheets of
    JupyterLab break long lines, and those of an exported page have no monospaced font for it."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    code = highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True, noclasses=True)).rstrip()
    font = "font-family: Menlo, Consolas, 'DejaVu Sans Mono', monospace; font-size: 13px"
    title = f"{font}; color: #555555; background-color: #ffffff; margin: 0; padding: 2px 8px"
    block = (
        f"{font}; line-height: 1.4; color: #000000; background-color: #f6f6f6; margin: 0; padding: 8px; "
        "border-left: 3px solid #0072B2; white-space: pre; word-break: normal; overflow-wrap: normal; overflow-x: auto"
    )
    return f'<div style="{title}">{html.escape(where)}</div>\n<pre style="{block}">{code}</pre>'


def predict(name, guess, truth, close=0.1):
    """Compares the reader's guess, a number or a word, with the truth. With None it says how to guess and keeps the
    answer in a closed <details> block.

    truth: the value, or a function without arguments that finds it. A number counts as right within the share `close`.
    """
    from IPython.display import display

    truth = truth() if callable(truth) else truth
    truth = truth.item() if hasattr(truth, "item") else truth  # of a tensor or of numpy
    if guess is None or guess is ...:
        ask = f"{name}: no guess yet. Put yours in place of None and run this cell again."
        answer = f"<details><summary>Show the answer</summary>It is {html.escape(_plain(truth))}.</details>"
        display({"text/html": f"<p>{html.escape(ask)}</p>\n{answer}", "text/plain": ask}, raw=True)
        return
    guess, kind = _as_kind_of(truth, guess)
    if kind is None:
        wanted = "word" if isinstance(truth, bool | str) else "number"
        print(f"{name}: you say {_plain(guess)}, but a {wanted} is asked for.")
    elif kind is str:
        print(f"{name}: it is {_plain(truth)}. " + ("You said so." if guess == _plain(truth) else f"You said {guess}."))
    else:
        off = abs(guess - truth) / max(abs(truth), 1e-12)
        verdict = "Well guessed." if off <= close else f"Off by {off:.0%}."
        print(f"{name}: it is {_plain(truth)}, you said {_plain(guess)}. {verdict}")


def _as_kind_of(truth, guess):
    """-> the guess as what the truth is, and str or float; or the guess and None if it cannot be that."""
    if isinstance(truth, bool | str):
        guess = _plain(guess) if isinstance(guess, bool) else guess
        return (Word(guess), str) if isinstance(guess, str) else (guess, None)
    if isinstance(guess, str):
        try:
            guess = float(guess.replace(",", "").rstrip("% "))
        except ValueError:
            return guess, None
    return (guess, float) if isinstance(guess, int | float) else (guess, None)


def _plain(value):
    """A guess or a truth as text: four digits of a float, commas in a large whole number."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


# --- Exercises --------------------------------------------------------------------------------------------------------
class NotYet(Exception):
    """The exercise has not been filled in."""


class Word(str):
    """An answer in words. Capitals and spaces do not matter when it is compared."""

    def __eq__(self, other):
        if isinstance(other, int | float) and not isinstance(other, bool):
            return str.strip(self) == str(other)
        return isinstance(other, str) and _bare(self) == _bare(other)

    def __ne__(self, other):
        return not self == other

    __hash__ = str.__hash__


def _bare(word):
    return " ".join(str.split(word)).casefold()


def filled(value):
    """The value itself; raises NotYet if it is still the `...` of the open exercise."""
    if value is ...:
        raise NotYet
    return value


def check(name, answer, test, returns=True):
    """Verifies an exercise: test(answer) raises an exception where it is wrong. Prints the result, returns nothing.

    Whatever goes wrong is told in one sentence, without a traceback. Words (an answer that is a str, or a dict, list or
    tuple of them) are compared without regard to capitals and spaces. returns=False: the function is right to return
    nothing. With LESSON_STRICT=1 an open or wrong answer raises instead.
    """
    returned = []  # what the function has returned, in order
    try:
        test(_watched(filled(answer), returned))
    except NotYet:
        if STRICT:
            raise
        print(f"{name}: not yet. Fill in the cell above, run it, and run this one again.")
        print(f"A solution is in notebooks/solutions/{name}.py.")
    except Exception as wrong:
        if STRICT:
            raise
        print(f"{name}: not right yet. {_diagnosis(wrong, answer, returned, returns)}")
    else:
        print(f"{name}: right.")


def _watched(answer, returned):
    """An answer as the test gets it: a function raises NotYet when it returns `...` and notes what it returns; words
    become Words; anything else stays as it is."""
    if isinstance(answer, str):
        return Word(answer)
    if type(answer) in (list, tuple):
        return type(answer)(_watched(item, returned) if isinstance(item, str) else item for item in answer)
    if type(answer) is dict:
        return {key: _watched(item, returned) if isinstance(item, str) else item for key, item in answer.items()}
    if not inspect.isfunction(answer):
        return answer

    @functools.wraps(answer)
    def watched(*args, **kwargs):
        returned.append(filled(answer(*args, **kwargs)))
        return returned[-1]

    return watched


def _diagnosis(wrong, answer, returned, returns):
    """One sentence about what is wrong with an answer whose test raised `wrong`."""
    what = getattr(answer, "__name__", "the answer")
    if answer is None:
        return "The answer is None: put yours in its place."
    items = list(answer.items()) if type(answer) is dict else list(enumerate(answer)) if type(answer) is list else []
    for key, item in items:
        if item is None:
            return f"The answer for {key!r} is None: put yours in its place."
    if returns and returned and returned[-1] is None:
        return f"{what} returns None: is the return missing?"
    frames = traceback.extract_tb(wrong.__traceback__)
    if isinstance(wrong, AssertionError):
        return _about_assertion(str(wrong).strip(), frames[-1].line)
    own = [frame for frame in frames if frame.filename in _files(answer)]  # each cell of a notebook has its own name
    if inspect.isfunction(answer) and not any(frame.name == "watched" for frame in frames):
        own = []  # it had returned: the test stumbled over what it got
    said = _about_exception(wrong)
    if not own and inspect.isfunction(answer) and not returned:
        return f"{what} cannot be called as the check calls it: {said}."
    if not own:
        got = f"{what} returns {_described(returned[-1])}" if returned else f"the answer is {_described(answer)}"
        return f"The check cannot use what it got: {got}; {said}."
    return f"In `{own[-1].line}`: {said}." if own[-1].line else f"In line {own[-1].lineno} of the cell: {said}."


def _files(answer):
    """The names of the files (in a notebook, of the cells) in which the code of an answer stands."""
    if inspect.isfunction(answer):
        return {answer.__code__.co_filename}
    kind = answer if inspect.isclass(answer) else type(answer)
    return {value.__code__.co_filename for value in vars(kind).values() if inspect.isfunction(value)}


def _about_assertion(text, line):
    """One sentence about an assertion that failed: its own message; torch's, in short; or the line of the test."""
    number = r"([\d.e+-]+|nan|inf)"
    if found := re.search(r"The values for attribute '(\w+)' do not match: (.*) != (.*?)\.?$", text, re.MULTILINE):
        kind = {"shape": "shapes"}.get(found[1], f"values of {found[1]}")
        one, other = (re.sub(r"torch\.Size\(\[(.*)\]\)", r"(\1)", found[i]) for i in (2, 3))
        said = f"the {kind} differ: {one} and {other} should be the same"
    elif found := re.search(rf"Mismatched elements: (\d+ / \d+).*?absolute difference: {number}", text, re.DOTALL):
        said = f"the shape is right, but {found[1].replace('/', 'of')} numbers differ, by up to {found[2]}"
    elif found := re.search(rf"Expected {number} but got {number}", text):
        said = f"{found[2].rstrip('.')} and {found[1]} should be the same"
    elif text:  # the author's own words
        said = re.sub(r"^[a-z-]+[ ,]", lambda start: start[0].capitalize(), " ".join(text.split()).rstrip(": "))
        return said + ("" if said.endswith((".", "!", "?")) else ".")
    else:
        return f"This should hold and does not: `{(line or '').removeprefix('assert ')}`."
    before = re.split("Tensor-likes|Scalars|The values", text[: found.start()])[0].strip().rstrip(":")
    return f"{before}: {said}." if before else f"{said[0].upper()}{said[1:]}."


def _about_exception(wrong):
    """What a learner needs to hear about an exception: no full stop, no capital."""
    text, kind = " ".join(str(wrong).split())[:200].rstrip("."), type(wrong).__name__
    about_sizes = re.search(r"shape|size|dimension|expand|broadcast|too many indices", text, re.IGNORECASE)
    if isinstance(wrong, RuntimeError | ValueError | IndexError) and about_sizes:
        return f"the shapes do not fit ({text})"
    if isinstance(wrong, NameError) and wrong.name:
        return f"the name {wrong.name} is not known here; is it misspelt, or does another cell define it"
    if isinstance(wrong, TypeError) and "argument" in text:
        return f"the arguments do not fit ({text})"
    if "No comparison pair" in text:  # torch.testing
        return "the check expects something of another type"
    if isinstance(wrong, RecursionError):
        return "it calls itself without end"
    if isinstance(wrong, KeyError):
        return f"there is no entry {text}"
    return f"{kind}, {text}" if text else kind


def _described(value):
    """A value in a few words: its shape, or its kind and its text."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    if isinstance(value, list | tuple) and len(value) < 5:
        return f"a {type(value).__name__} of {len(value)}: " + ", ".join(_described(item) for item in value)
    text = " ".join(repr(value).split())
    return f"{text[:60]}{'...' if len(text) > 60 else ''}, of type {type(value).__name__}"


# --- Pictures ---------------------------------------------------------------------------------------------------------
def draw(name):
    """Shows the drawing of that name (see drawings.py) with its description."""
    import drawings

    show(*drawings.make(name))


def figure(rows=1, cols=1, height=3.2, **options):
    """A new picture of fixed width and `height` inches: (figure, axes), as plt.subplots gives them."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update({  # from here on, since a legend, for example, asks for the style when it is made
        "font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=COLORS), "legend.frameon": False, "lines.linewidth": 1.8,
    })  # fmt: skip
    return plt.subplots(rows, cols, figsize=(WIDTH, height), layout="constrained", **options)


def show(fig, description):
    """Displays the picture as a PNG with a description for those who cannot see it, and closes it.

    Raises ValueError if axes that are drawn have no label (switch off the axis where there is nothing to measure).
    """
    from IPython.display import display

    for ax in fig.axes:
        if ax.axison and ax.get_visible() and not (_label(ax, "x") and _label(ax, "y")):
            raise ValueError(f"axes {ax.get_title()!r} need an x and a y label, with units")
    picture = {"image/png": base64.b64encode(_png(fig)).decode("ascii"), "text/plain": description}
    display(picture, metadata={"image/png": {"alt": description}}, raw=True)


def _png(fig):
    """The picture as the bytes of a file; it is closed."""
    import matplotlib.pyplot as plt

    png = io.BytesIO()
    with warnings.catch_warnings():  # on a busy machine matplotlib remarks that it is slow
        warnings.filterwarnings("ignore", "Creating legend with loc")
        fig.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    plt.close(fig)
    return png.getvalue()


def _label(ax, which):
    """Whether an axis ("x" or "y") is labelled: by itself, by panels that share it, for the figure as a whole; the
    other axis of a colour bar needs none."""
    fig, shared = ax.get_figure(), getattr(ax, f"get_shared_{which}_axes")()
    if hasattr(ax, "_colorbar"):
        return ax.get_xlabel() or ax.get_ylabel()
    if getattr(fig, f"get_sup{which}label")():
        return True
    return any(getattr(panel, f"get_{which}label")() for panel in shared.get_siblings(ax))


def heatmap(ax, matrix, rows=None, cols=None, cmap="cividis", **options):
    """Draws a matrix (2-D tensor or array) on ax, with names for its rows and columns. Returns the image, for a colour
    bar. The map is one that is read alike with every kind of colour vision."""
    matrix = matrix.detach().cpu().numpy() if hasattr(matrix, "detach") else matrix
    image = ax.imshow(matrix, cmap=cmap, **{"interpolation": "nearest", "aspect": "auto", **options})
    for axis, names in ((ax.yaxis, rows), (ax.xaxis, cols)):
        if names is not None:
            axis.set_ticks(range(len(names)), labels=[str(name) for name in names], fontsize=8)
    if cols is not None:
        ax.tick_params(axis="x", rotation=90)
    return image


def spans(ax, pieces, columns=60, notes=None, size=10):
    """Draws pieces of text (list of str) on ax as coloured boxes one after the other, at most `columns` characters a
    line; notes (list of the same length) are written small below each."""
    x = y = 0.0
    for i, piece in enumerate(pieces):
        note = "" if notes is None else str(notes[i])
        width = max(len(piece), 0.75 * len(note)) + 0.6
        if x and x + width > columns:
            x, y = 0.0, y + 1
        height = 0.85 if notes is None else 0.5
        ax.add_patch(box(x, y, width - 0.15, height, LIGHT[i % len(LIGHT)]))
        ax.text(x + width / 2, y + height / 2, piece, ha="center", va="center", family="monospace", fontsize=size)
        if note:
            ax.text(x + width / 2, y + 0.72, note, ha="center", va="center", family="monospace", fontsize=0.75 * size)
        x += width
    ax.set(xlim=(0, columns), ylim=(y + 1, 0))
    ax.axis("off")


def box(x, y, width, height, color):
    """A rectangle to add to axes: ax.add_patch(box(...)). x, y is the corner with the smallest values."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=color, edgecolor="#888888", linewidth=0.5)


# --- The press: run the notebooks, store what they show ---------------------------------------------------------------
def notebooks(numbers=()):
    """The files of the lessons, all of them or those whose numbers ("03" or "3") are given."""
    files = sorted(HERE.glob("[0-9][0-9]_*.ipynb"))
    wanted = {number.zfill(2) for number in numbers}
    if unknown := wanted - {file.name[:2] for file in files}:
        raise SystemExit(f"error: no lesson has the number {', '.join(sorted(unknown))}")
    return [file for file in files if not wanted or file.name[:2] in wanted]


def read(path):
    import nbformat

    return nbformat.read(path, as_version=4)


def is_exercise(cell):
    return cell.cell_type == "code" and "exercise" in cell.metadata.get("tags", ())


def solve(nb):
    """Puts the solutions in place of the exercises, in memory. Returns the notebook."""
    for cell in filter(is_exercise, nb.cells):
        name = re.match(r"# exercise: (\w+)", cell.source).group(1)
        cell.source = (HERE / "solutions" / f"{name}.py").read_text(encoding="utf-8")
    return nb


def fingerprint(nb):
    """sha256 of the code of a notebook: stored with its outputs, it tells whether they are those of this code."""
    code = "\0".join(cell.source for cell in nb.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode("utf-8")).hexdigest()


def faults(nb):
    """What must not be in stored outputs, as a list of lines: errors, noise on stderr, absolute paths."""
    found = []
    for i, cell in enumerate(nb.cells):
        for output in cell.get("outputs", ()):
            text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
            if output.output_type == "error":
                found.append(f"cell {i}: {output.ename}: {output.evalue}")
            elif output.get("name") == "stderr":
                found.append(f"cell {i}: on stderr: {text.strip()}")
            elif path := re.search(r"(?<![\w.:/~<)\]])/(?:[\w.@-]+/)+[\w.@-]*|\b[A-Z]:\\\w+", text):
                found.append(f"cell {i}: absolute path {path.group()}")
    return found


def execute(nb, cwd=HERE, timeout_s=600):
    """Runs a notebook in a fresh kernel, its outputs in memory. Returns the notebook."""
    from nbclient import NotebookClient

    options = dict(timeout=timeout_s, kernel_name="python3", coalesce_streams=True)
    NotebookClient(nb, resources={"metadata": {"path": str(cwd)}}, **options).execute()
    for cell in nb.cells:
        cell.metadata.pop("execution", None)  # times of the clock
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "lesson": {"fingerprint": fingerprint(nb)},
    }
    return nb


def press(path, with_solutions):
    """Executes one lesson; stores its outputs unless solutions were put in. Returns its faults."""
    import nbformat
    from nbclient.exceptions import CellExecutionError

    nb = solve(read(path)) if with_solutions else read(path)
    started = time.perf_counter()
    try:
        execute(nb)
    except CellExecutionError as error:  # its text is the traceback of the cell
        print(error, file=sys.stderr)
    found = faults(nb)
    print(f"{path.name:<32} {time.perf_counter() - started:6.1f} s   {'; '.join(found) or 'clean'}", flush=True)
    if not with_solutions and not found:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(nbformat.writes(nb) + "\n", encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    return found


def thumbnail(path, width=240):
    """The stored picture of the cell tagged `thumbnail` (else the first one), `width` pixels wide, as a file."""
    from PIL import Image  # matplotlib brings it

    cells = sorted(read(path).cells, key=lambda cell: "thumbnail" not in cell.metadata.get("tags", ()))
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    if not pictures:
        return f"{path.name}: no picture in its outputs; run --execute first"
    image = Image.open(io.BytesIO(base64.b64decode(pictures[0]))).convert("RGB")
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    target = HERE / "thumbnails" / f"{path.name[:2]}.png"
    target.parent.mkdir(exist_ok=True)
    image.save(target, optimize=True)
    return None


def main(argv=None):
    parser = argparse.ArgumentParser(prog="lesson.py", description="Run the lessons and store what they show.")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--execute", action="store_true", help="run, store the outputs in the files, make thumbnails")
    work.add_argument("--solve", action="store_true", help="run with the solutions put in; nothing is written")
    work.add_argument("--thumbnails", action="store_true", help="only make the thumbnails, from the stored outputs")
    work.add_argument("--machine", action="store_true", help="only draw machine.png, for the README of the repository")
    parser.add_argument("numbers", nargs="*", metavar="NN", help="numbers of lessons (default: all)")
    options = parser.parse_args(argv)
    if options.solve:
        os.environ["LESSON_STRICT"] = "1"
    elif options.execute and FAST:
        parser.error("LESSON_FAST=1 makes small pictures; unset it before --execute")
    if options.machine:
        import drawings

        (HERE / "machine.png").write_bytes(_png(drawings.make("machine")[0]))
        return 0
    found = []
    for path in notebooks(options.numbers):
        if not options.thumbnails:
            found += press(path, with_solutions=options.solve)
        if not options.solve:
            found += filter(None, [thumbnail(path)])
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
