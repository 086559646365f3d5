"""
What holds for the sources as a whole: imports go one way and do nothing, training needs no network, nothing that is
read can run, and no piece of code is there twice.

    python -m pytest tests/test_purity.py
"""

import ast
import graphlib
import json
import os
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

import generate
import train_gpt2
from train_gpt2 import train

LONGEST_LESSON = 1540

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("*.py"))
TREES = {path.name: ast.parse(path.read_text("utf-8")) for path in SCRIPTS}
by_script = pytest.mark.parametrize("name", TREES)


SLEEP = """\
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '5000')"""


def is_guard(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def calls(node):
    """(call, what is called, as written) for every call below a node."""
    return [(c, ast.unparse(c.func)) for c in ast.walk(node) if isinstance(c, ast.Call)]


def test_all_scripts_are_looked_at():
    """There are these five, and no others: runs.py and weights.py are part of the lesson now."""
    assert {*TREES} == {"train_gpt2.py", "tokenizer.py", "fineweb.py", "hellaswag.py", "generate.py"}


# ------------------------------------------------------------------------------------------------------------- shape
@by_script
def test_top_level_holds_only_definitions(name):
    """A docstring, imports, constants, functions, classes, and last of all at most one guard, which only calls main.
    A script that computes also asks OpenMP, before it imports torch, to wait asleep, unless the user has said how."""
    docstring, *body = TREES[name].body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value.value, str)
    if body and is_guard(body[-1]):
        assert list(map(ast.unparse, body.pop().body)) == ["sys.exit(main())"]
    harmless = {"dict", "dict.fromkeys", "frozenset", "ord", "range", "re.compile", "re.escape", "set", "tuple"}
    own = {node.name for node in body if isinstance(node, ast.ClassDef)}  # dataclasses and the like
    asks = [node for node in body if isinstance(node, ast.If)]
    assert list(map(ast.unparse, asks)) == ([SLEEP] if "import torch\n" in (ROOT / name).read_text("utf-8") else [])
    for node in body:
        where = f"{name}:{node.lineno}"
        if node in asks:
            continue
        allowed = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
        assert isinstance(node, allowed), f"{where}: {type(node).__name__}"
        if isinstance(node, ast.Assign | ast.AnnAssign):
            assert {called for _, called in calls(node)} <= harmless | own, where


def test_the_lesson_is_short():
    lines = (ROOT / "train_gpt2.py").read_text("utf-8").splitlines()
    assert len(lines) <= LONGEST_LESSON
    assert max(map(len, lines)) <= 120


# What may be defined in two scripts, because each of them must work without the other.
ALONE = {"train_gpt2.py", "hellaswag.py", "tokenizer.py"}  # each must stand alone
TWICE = {"UserError": ALONE, "Parser": ALONE - {"hellaswag.py"}}


def test_nothing_is_defined_twice():
    """No class name twice, and no function's code, unless it is one statement: what two scripts need, one imports from
    the other."""
    classes, codes = defaultdict(list), defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(name)
            if isinstance(node, ast.FunctionDef) and node.name != "main":
                inner = node.body[1:] if ast.get_docstring(node) else node.body
                if len(inner) > 1:
                    codes[ast.dump(ast.Module(inner, []))].append(f"{name}:{node.name}")
        inside = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        assert max(inside.values()) == 1, name
    twice = {name: scripts for name, scripts in classes.items() if len(scripts) > 1}
    assert [name for name, scripts in twice.items() if not set(scripts) <= TWICE.get(name, set())] == []
    assert [places for places in codes.values() if len(places) > 1] == []


@by_script
def test_functions_have_no_mutable_defaults_and_no_bare_except(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            assert not any(isinstance(d, ast.List | ast.Dict | ast.Set) for d in defaults), node.lineno
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), node.lineno
        assert not isinstance(node, ast.Global), node.lineno


# ------------------------------------------------------------------------------------------------------------- arrows
def imports(tree):
    """Every import of a script, at any depth, as (where, package): `where` names the classes and functions around it,
    such as GPT.save_pretrained, and is "" at the top; of torch.nn the package is torch."""
    found = set()

    def walk(node, where):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            found.add((where, node.module.split(".")[0]))
        elif isinstance(node, ast.Import):
            found.update((where, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}".lstrip(".")
        for child in ast.iter_child_nodes(node):
            walk(child, where)

    walk(tree, "")
    return found


OWN = {name.removesuffix(".py") for name in TREES}
IMPORTS = {name.removesuffix(".py"): imports(tree) for name, tree in TREES.items()}


def foreign(script):
    """The imports of a script that the standard library does not have."""
    return {(where, module) for where, module in IMPORTS[script] if module not in sys.stdlib_module_names}


def test_the_lesson_imports_torch_and_numpy_and_all_else_in_one_place():
    """The rest comes in where it is used, so that the file works and can be read alone."""
    assert {module for where, module in foreign("train_gpt2") if not where} == {"torch", "numpy"}
    inside = defaultdict(set)
    for where, module in foreign("train_gpt2"):
        if module not in ("torch", "numpy"):
            inside[module].add(where)
    assert inside == {
        "tokenizer": {"load_data"},
        "hellaswag": {"train.look"},
        "matplotlib": {"plot"},
        "huggingface_hub": {"read_weights"},
        "safetensors": {"read_weights", "write_weights"},  # to read, and to write
    }


def test_the_other_scripts_import_little_at_the_top():
    tops = {script: {module for where, module in foreign(script) if not where} for script in OWN - {"train_gpt2"}}
    assert tops == {
        "tokenizer": set(),
        "fineweb": {"numpy", "tokenizer"},
        "hellaswag": {"torch"},
        "generate": {"torch", "tokenizer", "train_gpt2"},
    }


def test_imports_of_our_own_go_one_way():
    """The arrows between scripts, inside functions too. There is no circle but for one tie: the lesson calls
    hellaswag.score_on_all_ranks, and hands it the model."""
    arrows = {script: {module for _, module in IMPORTS[script] if module in OWN} for script in OWN}
    assert arrows == {
        "tokenizer": set(),
        "fineweb": {"tokenizer"},
        "train_gpt2": {"tokenizer", "hellaswag"},
        "generate": {"train_gpt2", "tokenizer"},
        "hellaswag": {"train_gpt2", "generate"},
    }
    graphlib.TopologicalSorter(arrows | {"train_gpt2": {"tokenizer"}}).prepare()  # raises CycleError
    at_the_top = {script: {module for where, module in IMPORTS[script] if not where} & OWN for script in OWN}
    graphlib.TopologicalSorter(at_the_top).prepare()


def test_scoring_while_training_imports_none_of_our_scripts():
    """What hellaswag.evaluate and score_on_all_ranks call, and what that calls in turn, gets the model handed in."""
    tree = TREES["hellaswag.py"]
    definitions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    reached, open_names = set(), {"evaluate", "score_on_all_ranks"}
    while open_names:
        name = open_names.pop()
        reached.add(name)
        used = {node.id for node in ast.walk(definitions[name]) if isinstance(node, ast.Name)}
        open_names |= used & definitions.keys() - reached
    assert {"score", "make_request", "load_examples", "UserError"} <= reached  # the search finds what it should
    own = {where.split(".")[0] for where, module in IMPORTS["hellaswag"] if module in OWN}
    assert own and not own & {*reached, ""}


def test_nothing_is_imported_by_a_name_in_a_string():
    """The tests above read import statements only."""
    for name, tree in TREES.items():
        called = {called for _, called in calls(tree)}
        assert not called & {"__import__", "importlib.import_module", "import_module", "runpy.run_path"}, name


# ---------------------------------------------------------------------------------------------------------- security
@pytest.mark.parametrize("path", [*SCRIPTS, *sorted(ROOT.glob("notebooks/*.py"))], ids=lambda path: path.name)
def test_nothing_that_is_read_can_run(path):
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
            assert not banned & {n.split(".")[0] for n in names}, node.lineno
    for call, called in calls(tree):
        where = f"{path.name}:{call.lineno}: {called}"
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert called not in ("eval", "exec", "os.system", "os.popen", "__import__"), where
        assert given.get("shell", "False") == "False", where
        assert given.get("allow_pickle", "False") == "False", where
        assert given.get("trust_remote_code", "False") == "False", where
        if called == "torch.load":
            assert given.get("weights_only") == "True", where
        if called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", where
        assert given.get("weights_only", "True") == "True", where


# ------------------------------------------------------------------------------------------------------------- import
PROBE = """
import json, logging, os, random, signal, socket, sys, threading, warnings

def no_network(*args, **kwargs):
    raise OSError("an import went to the network")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = no_network
random.seed(1)
heavy = ("torch", "datasets", "matplotlib", "transformers", "tiktoken", "safetensors", "IPython", "requests",
         "huggingface_hub", "pandas", "pyarrow")
found = {}

def loaded():
    return [name for name in heavy if name in sys.modules]

import tokenizer, fineweb
found["tokenizer and fineweb"] = loaded()

import numpy, torch
numpy.random.seed(1)

def state():
    return dict(
        python=repr(random.getstate()), numpy=repr(numpy.random.get_state()), torch=torch.get_rng_state().tolist(),
        dtype=str(torch.get_default_dtype()), threads=[torch.get_num_threads(), threading.active_count()],
        precision=torch.get_float32_matmul_precision(), grad=torch.is_grad_enabled(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        signals=[repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)], environment=dict(os.environ),
        path=sys.path, filters=repr(warnings.filters), handlers=repr(logging.getLogger().handlers), cwd=os.getcwd(),
    )

before, with_torch = state(), set(loaded())
del sys.modules["tokenizer"], sys.modules["fineweb"]
import train_gpt2
found["train_gpt2"] = sorted(set(loaded()) - with_torch)
found["companions of train_gpt2"] = [n for n in ("tokenizer", "fineweb", "hellaswag", "generate") if n in sys.modules]
import hellaswag
found["companions of hellaswag"] = [n for n in ("tokenizer", "fineweb", "generate") if n in sys.modules]
import generate
found["all"] = sorted(set(loaded()) - with_torch)
after = state()
found["changed"] = [name for name in before if before[name] != after[name]]
sys.stderr.write(json.dumps(found))
"""


def test_importing_does_nothing(tmp_path):
    """In a process of its own, without a network: no output, no file, no changed generator or setting, no heavy one."""
    before = sorted(ROOT.iterdir())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["OMP_WAIT_POLICY"] = "passive"  # then the lesson leaves the environment as it is
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = json.loads(done.stderr)  # nothing else was written there
    assert found.pop("tokenizer and fineweb") == []
    assert found.pop("train_gpt2") == []
    assert found.pop("companions of train_gpt2") == []
    assert found.pop("companions of hellaswag") == []
    assert found.pop("changed") == []
    assert found.pop("all") == []
    assert list(tmp_path.iterdir()) == []
    assert sorted(ROOT.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing", "count", "policy"],
)
def test_threads_wait_asleep_unless_the_user_says_how(given, spins):
    """It must be said before torch is loaded, by every script that computes."""
    for script in ("train_gpt2", "generate", "hellaswag"):
        ask = "import os, sys; sys.modules['torch'] = None\n"
        ask += f"try:\n    import {script}\nexcept ImportError:\n    print(os.environ.get('GOMP_SPINCOUNT'))"
        environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
        command = [sys.executable, "-c", ask]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.stdout == f"{spins}\n", (script, done.stderr)


# ------------------------------------------------------------------------------------------------------------ network
def test_training_and_sampling_do_not_use_the_network(tiny_config, tmp_path, monkeypatch):
    """Not even to look up a name: on a text; on shards without a tokenizer (GPT-2's is not in the cache); and the text
    that a checkpoint then writes."""
    tried = []

    def note(name):
        def refuse(*args, **kwargs):
            tried.append(name)
            raise OSError("no network")

        return refuse

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, note(name))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no cache"))
    monkeypatch.setattr(train_gpt2, "plot", lambda run_dir: True)
    cfg = tiny_config(name="text", sample_every=2, hellaswag_every=2)
    train(cfg)
    checkpoint = str(Path(cfg.log_dir) / "text" / "ckpt_000004.pt")
    assert generate.main(["--checkpoint", checkpoint, "--max_tokens", "3", "--device", "cpu"]) == 0
    (tmp_path / "shards").mkdir()
    for name in ("x_val_000000.npy", "x_train_000001.npy"):
        np.save(tmp_path / "shards" / name, np.arange(600, dtype=np.uint16))
    train(tiny_config(name="shards", data=str(tmp_path / "shards"), vocab_size=600, max_steps=1, val_tokens=50))
    assert tried == []
