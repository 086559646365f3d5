"""
The lessons: every notebook runs as committed and again with the solutions put in, and keeps the common shape.

A kernel for each run would start Python and torch twenty-two times. Cells are plain Python, so they run here, in this
process, each notebook in a namespace of its own; one notebook also goes through a real kernel.
"""

import ast
import base64
import contextlib
import html
import importlib
import io
import linecache
import re
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "notebooks"
FILES = sorted(HERE.glob("[0-9][0-9]_*.ipynb"))
SCRIPTS = ("train_gpt2", "tokenizer", "fineweb", "hellaswag", "generate")
FIRST_CODE = re.compile(r'import sys\n\nsys\.path\.append\("notebooks"\)[^\n]*\nimport lesson')
HEADINGS = ("Where we are", "Predict", "Rebuild", "Check", "Picture", "Break it", "Exercise", "Recap", "Read more")

each_notebook = pytest.mark.parametrize("path", FILES, ids=[file.name[:2] for file in FILES])


@pytest.fixture
def lesson(monkeypatch):
    """The module as a fresh kernel would import it in fast mode, and the process as it was afterwards."""
    monkeypatch.setenv("LESSON_FAST", "1")
    monkeypatch.delenv("LESSON_STRICT", raising=False)
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    yield fresh_lesson()
    forget_lesson()


def forget_lesson():
    for name in ("lesson", "drawings"):
        sys.modules.pop(name, None)


def fresh_lesson():
    forget_lesson()
    return importlib.import_module("lesson")


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def run_cells(nb, cwd, monkeypatch):
    """Runs the code of a notebook as a kernel would, without one. Returns what it printed. Noise is an error."""
    import matplotlib
    import matplotlib.pyplot as plt
    import torch

    matplotlib.use("Agg")
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "path", ["", *(entry for entry in sys.path if entry != str(HERE))])
    forget_lesson()
    sys.path_importer_cache.pop("notebooks", None)  # Python remembers what that was from another working directory
    module = type(sys)("lesson_cells")
    monkeypatch.setitem(sys.modules, "lesson_cells", module)  # so that classes made in cells know their module
    out, err = io.StringIO(), io.StringIO()
    torch_state = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(matplotlib.rc_context())
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            heard = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("default")
            for i, cell in enumerate(code_cells(nb)):
                name = f"<code cell {i}>"
                linecache.cache[name] = (len(cell.source), None, cell.source.splitlines(True), name)  # for inspect
                exec(compile(cell.source, name, "exec"), module.__dict__)
    finally:
        plt.close("all")
        torch.set_rng_state(torch_state[0])
        torch.set_num_threads(torch_state[1])
        torch.set_grad_enabled(torch_state[2])
        torch.set_default_dtype(torch_state[3])
    quiet = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # a kernel hides them
    noise = [str(entry.message) for entry in heard if not issubclass(entry.category, quiet)]
    assert not noise, f"warnings: {noise}"
    assert not err.getvalue(), f"on stderr: {err.getvalue()}"
    return out.getvalue()


def exercises(nb, lesson):
    return [re.match(r"# exercise: (\w+)\n", c.source).group(1) for c in nb.cells if lesson.is_exercise(c)]


# --- They run ---------------------------------------------------------------------------------------------------------
@each_notebook
def test_runs_as_committed(path, lesson, monkeypatch):
    """Open exercises say "not yet" and everything else holds. The working directory is notebooks/, as in JupyterLab."""
    nb = lesson.read(path)
    printed = run_cells(nb, HERE, monkeypatch)
    for name in exercises(nb, lesson):
        assert f"{name}: not yet." in printed


@each_notebook
def test_runs_with_the_solutions(path, lesson, monkeypatch):
    """Every exercise is right, and an open one would be an error. The working directory is the repository."""
    monkeypatch.setenv("LESSON_STRICT", "1")
    nb = lesson.read(path)
    names = exercises(nb, lesson)
    printed = run_cells(lesson.solve(nb), ROOT, monkeypatch)
    for name in names:
        assert f"{name}: right." in printed


def test_runs_in_a_real_kernel(lesson, monkeypatch):
    """What the light runner above leaves out: the kernel, its display and its name."""
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    path = next(file for file in FILES if file.name.startswith("01"))
    nb = lesson.execute(lesson.solve(lesson.read(path)), cwd=HERE)
    assert not lesson.faults(nb)
    assert sum("image/png" in output.get("data", {}) for cell in nb.cells for output in cell.get("outputs", ())) >= 2


def test_strict_mode_refuses_an_open_exercise(lesson, monkeypatch):
    """Otherwise the runs above would prove nothing."""
    nb = lesson.read(next(file for file in FILES if file.name.startswith("01")))
    monkeypatch.setenv("LESSON_STRICT", "1")
    with pytest.raises(Exception) as caught:
        run_cells(nb, ROOT, monkeypatch)
    assert type(caught.value).__name__ == "NotYet"


# --- They keep the shape ----------------------------------------------------------------------------------------------
def test_the_readme_lists_the_lessons():
    assert [file.name[:2] for file in FILES] == [f"{number:02d}" for number in range(11)]
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# Eleven lessons\n")
    for file in FILES:
        assert f"]({file.name})" in readme
        assert f"thumbnails/{file.name[:2]}.png" in readme
        assert (HERE / "thumbnails" / f"{file.name[:2]}.png").is_file()


def test_the_minutes_add_up(lesson):
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    minutes = [int(number) for number in re.findall(r"^\| <img .* (\d+) \|$", readme, re.M)]
    assert len(minutes) == len(FILES)
    assert 4.75 <= sum(minutes) / 60 <= 5.25 and "about five hours" in readme
    for path, number in zip(FILES, minutes, strict=True):
        assert f"About {number} minutes" in lesson.read(path).cells[0].source, path.name


def sections(source):
    """-> [(line, number)] of the headings of a script, and {number: names that the section defines}, a
    method with a dot in front."""
    found = [(i, re.match(r"\s*# === (\d+)\. ", line)) for i, line in enumerate(source.splitlines(), 1)]
    headings = [(i, int(match[1])) for i, match in found if match]

    def section(node):
        return max(((line, number) for line, number in headings if line < node.lineno), default=(0, 0))[1]

    names = {number: set() for _, number in [(0, 0), *headings]}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[section(node)].add(node.name)
        if isinstance(node, ast.ClassDef):  # a heading may stand inside a class
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and section(method) != section(node):
                    names[section(method)].add(f".{method.name}")
        if isinstance(node, ast.Assign):
            targets = [name for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            names[section(node)] |= {name.id for name in targets}
    return headings, names


def shown_names(nb):
    """What the code of a lesson takes from train_gpt2: names; and all attributes, with a dot in front."""
    names = set()
    for cell in code_cells(nb):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module == "train_gpt2":
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute):
                from_module = isinstance(node.value, ast.Name) and node.value.id == "train_gpt2"
                names.add(node.attr if from_module else f".{node.attr}")
    return names


def test_the_map_names_a_lesson_for_every_section(lesson):
    """And the lesson really takes something of that section into its cells."""
    source = (ROOT / "train_gpt2.py").read_text(encoding="utf-8")
    headings, names = sections(source)
    part_3 = source[: source.index("# === PART III")].count("\n") + 1
    assert [number for _, number in headings] == list(range(1, len(headings) + 1)) and len(headings) >= 15
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", (HERE / "README.md").read_text(encoding="utf-8"), re.M)
    assert [int(number) for number, _ in rows] == [number for _, number in headings]
    shown = {file.name: shown_names(lesson.read(file)) for file in FILES}
    for (line, number), (_, cell) in zip(headings, rows, strict=True):
        lessons = re.findall(r"\[\d\d\]\((\S+)\)", cell)
        assert lessons or line > part_3, f"section {number} of Parts I and II has no lesson"
        for name in lessons:
            assert shown[name] & names[number], f"{name} shows nothing of section {number}: {sorted(names[number])}"


@each_notebook
def test_has_the_common_shape(path, lesson):
    nb = lesson.read(path)
    first = nb.cells[0]
    assert first.cell_type == "markdown"
    assert "`jupyter lab notebooks/`" in first.source.splitlines()[0]
    assert path.name in first.source.splitlines()[0]
    assert FIRST_CODE.match(code_cells(nb)[0].source)
    headings = re.findall(r"^## (.*)", "\n".join(c.source for c in nb.cells if c.cell_type == "markdown"), re.M)
    for wanted in HEADINGS:
        assert any(heading.startswith(wanted) for heading in headings), f"no heading begins with {wanted!r}"
    code = "\n".join(cell.source for cell in code_cells(nb))
    for call in ("show_source", "predict", "check"):
        assert f"lesson.{call}(" in code, f"lesson.{call} is not used"
    assert code.count("lesson.show(") >= 2
    assert re.search(r"assert_close\(|assert_equal\(|\bassert .* == ", code)


@each_notebook
def test_cells_are_short_and_text_and_code_are_balanced(path, lesson):
    nb = lesson.read(path)
    for cell in code_cells(nb):
        assert len(cell.source.splitlines()) <= 25, cell.source.splitlines()[0]
        assert not re.search(r"^\s*[%!]", cell.source, re.M), "plain Python only, no magic"
        too_long = [line for line in cell.source.splitlines() if len(line) > 110]
        assert not too_long
    text = sum(len(cell.source) for cell in nb.cells if cell.cell_type == "markdown")
    code = sum(len(cell.source) for cell in code_cells(nb))
    assert 0.5 <= text / code <= 2, f"text/code {text / code:.2f}"


def top_level_names(source):
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name for node in ast.parse(source).body if isinstance(node, kinds)}


@each_notebook
def test_imports_and_never_pastes(path, lesson):
    """No cell defines what the scripts define, but for exercises, which rebuild it."""
    theirs = {"main"}
    for script in SCRIPTS:
        file = ROOT / f"{script}.py"
        if file.exists():
            theirs |= top_level_names(file.read_text(encoding="utf-8"))
    for cell in lesson.read(path).cells:
        if cell.cell_type == "code" and not lesson.is_exercise(cell):
            pasted = {node.name for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.ClassDef)}
            pasted = theirs & (top_level_names(cell.source) | pasted)
            assert not pasted, f"defined in the scripts already, import it or choose another name: {sorted(pasted)}"


@each_notebook
def test_solutions_are_one_file_an_exercise(path, lesson):
    nb = lesson.read(path)
    names = exercises(nb, lesson)
    assert names and all(name.startswith(path.name[:3]) for name in names)
    assert sorted(names) == sorted(file.stem for file in (HERE / "solutions").glob(f"{path.name[:3]}*.py"))
    for name, cell in zip(names, filter(lesson.is_exercise, nb.cells), strict=True):
        solution = (HERE / "solutions" / f"{name}.py").read_text(encoding="utf-8")
        assert "..." in cell.source
        assert top_level_names(cell.source) <= top_level_names(solution)


@each_notebook
def test_is_committed_with_clean_outputs(path, lesson):
    """Pictures and text of this very code, without noise, traces of a machine, or the times of its clock."""
    nb = lesson.read(path)
    assert nb.metadata.get("lesson", {}).get("fingerprint") == lesson.fingerprint(nb), (
        f"the outputs are not of this code: python notebooks/lesson.py --execute {path.name[:2]}"
    )
    assert nb.metadata.kernelspec.name == "python3"
    assert not lesson.faults(nb)
    pictures = [o for c in nb.cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    for picture in pictures:
        assert picture.metadata["image/png"]["alt"].strip(), "a picture without a description"
        assert base64.b64decode(picture.data["image/png"]).startswith(b"\x89PNG")
    assert path.stat().st_size < 2_000_000
    sources = "\n".join(cell.source for cell in nb.cells)
    assert not re.search(r"(?<![\w:/.])/(?:home|root|tmp|usr|var|opt|mnt)/|[A-Z]:\\\\", sources), "an absolute path"


@each_notebook
def test_no_guess_is_made_for_the_reader_and_no_answer_is_shown(path, lesson):
    """A question stands in its cell with None, and what is stored below it keeps the answer closed."""
    asked = 0
    for cell in code_cells(lesson.read(path)):
        calls = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
        calls = [call for call in calls if ast.unparse(call.func) == "lesson.predict"]
        assert all(len(call.args) >= 3 and ast.unparse(call.args[1]) == "None" for call in calls)
        stored = [output.get("data", {}).get("text/html", "") for output in cell.get("outputs", ())]
        assert sum("<details><summary>" in page for page in stored) == len(calls)
        asked += len(calls)
    assert asked


# --- lesson.py itself -------------------------------------------------------------------------------------------------
def test_faults_finds_what_must_not_be_committed(lesson):
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    bad = {
        "on stderr": new_output("stream", name="stderr", text="careful"),
        "ZeroDivisionError": new_output("error", ename="ZeroDivisionError", evalue="x", traceback=[]),
        "absolute path": new_output("stream", name="stdout", text="wrote /home/me/log/run.json"),
    }
    for kind, output in bad.items():
        (fault,) = lesson.faults(new_notebook(cells=[new_code_cell("x", outputs=[output])]))
        assert kind in fault
    fine = "1/2 and/or https://arxiv.org/abs/1706.03762 log/tales/loss.png"
    fine = new_output("stream", name="stdout", text=fine)
    assert lesson.faults(new_notebook(cells=[new_code_cell("x", outputs=[fine])])) == []


def test_check_tells_open_wrong_and_right(lesson, monkeypatch, capsys):
    def test(f):
        assert f(2) == 4, "f(2) is not 4"

    lesson.check("00_double", lambda x: ..., test)
    lesson.check("00_double", ..., test)
    lesson.check("00_double", lambda x: x, test)
    lesson.check("00_double", lambda x: 2 * x, test)
    printed = capsys.readouterr().out
    assert printed.count("not yet") == 2 and "f(2) is not 4" in printed and "00_double: right." in printed
    monkeypatch.setattr(lesson, "STRICT", True)
    with pytest.raises(lesson.NotYet):
        lesson.check("00_double", lambda x: ..., test)
    with pytest.raises(AssertionError):
        lesson.check("00_double", lambda x: x, test)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("def double(x):\n    2 * x", "double returns None: is the return missing?"),
        ("def double(x):\n    return (2 * x).T", "The shapes differ: (3, 2) and (2, 3) should be the same."),
        ("def double(x):\n    return 3 * x", "The shape is right, but 6 of 6 numbers differ, by up to 1.0."),
        ("def double(x):\n    return x @ x", "In `return x @ x`: the shapes do not fit ("),
        ("def double(x):\n    return 2 * y", "In `return 2 * y`: the name y is not known here"),
        ("def double(x):\n    return 2", "double returns 2, of type int; the check expects something of another type."),
        ("def double():\n    return 2", "cannot be called as the check calls it: the arguments do not fit (double()"),
        ("def double(x):\n    return double(x)", "In `return double(x)`: it calls itself without end."),
        ("def double(x):\n    return x[7]", "In `return x[7]`: the shapes do not fit (index 7 is out of bounds"),
        ("double = None", "The answer is None: put yours in its place."),
        ("double = {'a': 1, 'b': None}", "The answer for 'b' is None: put yours in its place."),
        ("double = 3", "the answer is 3, of type int; TypeError, 'int' object is not callable."),
    ],
)
def test_check_says_in_one_sentence_what_is_wrong(lesson, capsys, wrong, hint):
    """No traceback, whatever the exception. A cell of a notebook is a file of its own, as here."""
    import torch

    def test(double):
        x = torch.ones(2, 3)
        torch.testing.assert_close(double(x), 2 * x)

    linecache.cache["<cell>"] = (len(wrong), None, wrong.splitlines(True), "<cell>")
    exec(compile(wrong, "<cell>", "exec"), cell := {})
    lesson.check("00_double", cell["double"], test)
    printed = capsys.readouterr().out
    assert printed.startswith("00_double: not right yet. ") and printed.count("\n") == 1
    assert hint in printed


def test_check_forgives_capitals_and_spaces_in_words(lesson, capsys):
    truth = {"first": "AdamW", "second": "no sync", "third": 4}

    def test(answer):
        for key, value in truth.items():
            assert answer[key] == value, f"{key}: {answer[key]} is not it"

    lesson.check("00_words", {"first": " adamw", "second": "No  sync ", "third": "4"}, test)
    lesson.check("00_words", {"first": "Adam", "second": "no sync", "third": 4}, test)
    lesson.check("00_words", {"first": "AdamW"}, test)
    lesson.check("00_word", "B ", lambda word: None if word == "b" and word in ("a", "b") else 1 / 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "00_words: right."
    assert lines[1].startswith("00_words: not right yet. first: Adam is not it")
    assert "there is no entry 'second'" in lines[2]
    assert lines[3] == "00_word: right."


def test_check_lets_a_function_return_nothing_where_that_is_right(lesson, capsys):
    def test(fill):
        fill(rows := [])
        assert rows, "nothing was put in"

    lesson.check("00_fill", lambda rows: rows.append(1), test)
    lesson.check("00_fill", lambda rows: None, test, returns=False)
    printed = capsys.readouterr().out
    assert printed.startswith("00_fill: right.\n00_fill: not right yet. Nothing was put in")


@pytest.fixture
def displayed(monkeypatch):
    """The bundles of data that a lesson gives to IPython."""
    import IPython.display

    bundles = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **options: bundles.append(data))
    return bundles


def test_predict_gives_the_verdict_at_once_and_closes_the_answer_until_then(lesson, capsys, displayed):
    for name, guess, truth in (
        ("a", 5, 5.2), ("a", 5, lambda: 10), ("a", "left", "Left"), ("a", "right", "left"), ("a", True, True),
        ("a", "twelve", 12), ("a", 3, "left"), ("a", "30 %", 30),
    ):  # fmt: skip
        lesson.predict(name, guess, truth)
    assert capsys.readouterr().out.splitlines() == [
        "a: it is 5.2, you said 5. Well guessed.",
        "a: it is 10, you said 5. Off by 50%.",
        "a: it is Left. You said so.",
        "a: it is left. You said right.",
        "a: it is yes. You said so.",
        "a: you say twelve, but a number is asked for.",
        "a: you say 3, but a word is asked for.",
        "a: it is 30, you said 30. Well guessed.",
    ]
    lesson.predict("tokens & more", None, lambda: 1234)
    assert not capsys.readouterr().out
    (bundle,) = displayed
    before, details = bundle["text/html"].split("<details>")
    assert "tokens &amp; more: no guess yet." in before and "1,234" in details and details.endswith("</details>")
    for text in (before, bundle["text/plain"]):
        assert "None" in text and "1,234" not in text


DRAWINGS = ("machine", "block", "heads", "mask", "shift", "windows", "micro_batches", "cache", "loop")


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_text_of_a_drawing_is_small_cut_covered_or_crossed(lesson, name):
    """By the extents on the canvas, at the size at which lessons show it."""
    import drawings
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Outline

    matplotlib.use("Agg")
    figure, description = drawings.make(name)
    assert 100 < len(description) < 600
    figure.set_dpi(lesson.DPI)
    figure.canvas.draw()
    assert figure.bbox.width == 704
    (ax,) = figure.axes
    texts = {text: text.get_window_extent() for text in ax.texts}
    for i, (text, extent) in enumerate(texts.items()):
        said = text.get_text()
        assert text.get_fontsize() >= 10, said
        inside = figure.bbox.padded(-2)
        assert inside.containsx(extent.x0) and inside.containsx(extent.x1), f"{said!r} is cut"
        assert inside.containsy(extent.y0) and inside.containsy(extent.y1), f"{said!r} is cut"
        for other, second in list(texts.items())[:i]:
            assert not extent.overlaps(second), f"{said!r} overlaps {other.get_text()!r}"
        for patch in ax.patches:
            if isinstance(patch, FancyArrowPatch):
                path = patch.get_path().transformed(ax.transData)
                lines = path.codes != Outline.CLOSEPOLY  # whose point means nothing
                path = Outline(path.vertices[lines], path.codes[lines])
                assert not path.intersects_bbox(extent, filled=False), f"a line crosses {said!r}"
            else:
                shape = patch.get_window_extent()
                corners = [(x, y) for x in (extent.x0, extent.x1) for y in (extent.y0, extent.y1)]
                held = sum(shape.contains(*corner) for corner in corners)
                assert held == 4 or not shape.overlaps(extent), f"{said!r} reaches out of its box"
    plt.close(figure)


def test_the_drawing_of_the_machine_is_a_file(lesson, tmp_path, monkeypatch):
    import drawings

    size = (704).to_bytes(4, "big") + round(lesson.DPI * drawings.HEIGHTS["machine"] / 100).to_bytes(4, "big")
    assert (HERE / "machine.png").read_bytes()[16:24] == size, "python notebooks/lesson.py --machine"
    monkeypatch.setattr(lesson, "HERE", tmp_path)
    assert lesson.main(["--machine"]) == 0
    assert (tmp_path / "machine.png").read_bytes()[16:24] == size


def test_all_drawings_are_tested(lesson):
    import drawings

    assert set(DRAWINGS) == set(drawings.HEIGHTS)
    with pytest.raises(ValueError, match="no drawing is called"):
        drawings.make("castle")


def test_show_refuses_axes_without_labels(lesson):
    import matplotlib

    matplotlib.use("Agg")
    fig, ax = lesson.figure()
    ax.plot([1, 2])
    with pytest.raises(ValueError, match="label"):
        lesson.show(fig, "a line")


def test_show_source_shows_highlighted_code_and_notices_a_renamed_line(lesson, displayed):
    import train_gpt2

    lesson.show_source(train_gpt2.GPT._init_weights)  # behind torch.no_grad, whose file is another
    page, text = displayed[-1]["text/html"], displayed[-1]["text/plain"]
    assert text.startswith("train_gpt2.py, line ") and "def _init_weights" in text
    assert "white-space: pre;" in page and "overflow-x: auto" in page and "monospace" in page
    assert page.count('<span style="color: ') > 10
    code = re.sub(r"<[^>]*>", "", page.split("<pre", 1)[1].split(">", 1)[1])
    assert html.unescape(code) == text.split("\n\n", 1)[1], "every space and every line is kept"
    lesson.show_source(lesson.steps, until="return")
    assert "def steps" in displayed[-1]["text/plain"] and "return fast" not in displayed[-1]["text/plain"]
    lesson.show_source(train_gpt2, start="PRESETS = {", until="# === 2")
    lines = displayed[-1]["text/plain"].splitlines()
    source = (ROOT / "train_gpt2.py").read_text(encoding="utf-8").splitlines()
    number = int(re.fullmatch(r"train_gpt2.py, line (\d+):", lines[0])[1])
    assert source[number - 1] == lines[2] and lines[2].startswith("PRESETS = {") and lines[-1] == "}"
    for where in ({"until": "no such line"}, {"start": "no such line"}, {"start": "return", "until": "def steps"}):
        with pytest.raises(ValueError, match="no line of steps holds"):
            lesson.show_source(lesson.steps, **where)
