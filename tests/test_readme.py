"""Every command of the README runs, in small form: shorter training, smaller models, stand-ins for what is fetched."""

import importlib
import importlib.util
import json
import re
import shlex
import shutil
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import tokenizer
import weights
from runs import config_from_args
from train_gpt2 import GPT, GPTConfig

ROOT = Path(__file__).resolve().parents[1]
SMALL_RUN = "--max_steps 2 --total_batch 256 --micro_batch 2 --val_tokens 200 --save_every 1 --device cpu"
SMALL_MODEL = "--n_layer 1 --n_head 2 --n_embd 32 --block_size 32 --vocab_size 300"


def commands(page):
    """The lines of the page's bash blocks, in order; a line that ends in a backslash goes on."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), flags=re.S))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The folder of someone who follows the README: a text and documents of their own, and small stand-ins."""
    folder = tmp_path_factory.mktemp("reader")
    stories = (ROOT / "input.txt").read_text("utf-8")[:60_000]
    for name in ("input.txt", "my.txt"):
        (folder / name).write_text(stories, "utf-8")
    (folder / "docs").mkdir()
    rows = [json.dumps({"text": story}) for story in tokenizer.split_documents(stories)]
    (folder / "docs" / "stories.jsonl").write_text("\n".join(rows), "utf-8")
    (folder / "tests" / "data").mkdir(parents=True)
    (folder / "hellaswag").mkdir()
    for copy in ("tests/data/hellaswag_items.jsonl", "hellaswag/hellaswag_val.jsonl"):
        shutil.copy(ROOT / "tests" / "data" / "hellaswag_items.jsonl", folder / copy)
    (folder / "edu_fineweb10B").mkdir()
    for split, dice in (("val_000000", 1), ("train_000001", 2)):
        tokens = np.random.default_rng(dice).integers(50257, size=2000).astype(np.uint16)
        np.save(folder / "edu_fineweb10B" / f"edufineweb_{split}.npy", tokens)
    return folder


def small(script, args):
    """The arguments, made small."""
    extra = []
    if script == "train_gpt2" and "--resume" in args:
        extra = ["--max_steps", "3", "--run", "mine"]  # the run that an earlier command has made
    elif script == "train_gpt2":
        extra = shlex.split(SMALL_RUN) + ([] if "--init" in args else shlex.split(SMALL_MODEL))
        extra += ["--block_size", "32"] if "--init" in args else []
    elif script == "generate":
        extra = ["--max_tokens", "5", "--device", "cpu"]
    return args + extra


def test_requirements_are_installed():
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        if name := re.match(r"[A-Za-z0-9_-]+", line):
            assert version(name[0])


@pytest.mark.parametrize("page", ["README.md", "tests/benchmarks/README.md"])
def test_every_command_names_what_is_there(page):
    lines = commands(ROOT / page)
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        for word in words:
            if word.endswith(".py"):
                assert (ROOT / word).exists(), line
        if words[0] == "torchrun":
            config_from_args(words[words.index("train_gpt2.py") + 1 :])


def test_readme_commands_run(reader, monkeypatch, capsys):
    monkeypatch.chdir(reader)
    monkeypatch.setattr("builtins.input", lambda *a: "")
    ran = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for line in commands(ROOT / "README.md"):
            words = shlex.split(line, comments=True)
            if words[:2] in (["pip", "install"], ["python", "-m"]) or words[0] not in ("python",):
                continue
            if "/" in words[1] or fetches_gpt2(words) or fetches_data(words):
                continue
            script = words[1].removesuffix(".py")
            code = importlib.import_module(script).main(small(script, words[2:]))
            out, err = capsys.readouterr()
            assert code == 0, f"{line}\n{out}\n{err}"
            ran += 1
        assert ran > 10
    finally:
        torch.set_num_threads(threads)


def fetches_data(words):
    return "--download" in words or (words[1] == "fineweb.py" and not {"--files", "--info"} & set(words))


def fetches_gpt2(words):
    return any(flag in ("--init", "--model", "--tokenizer") and name == "gpt2" for flag, name in pairwise(words))


def test_what_the_readme_fetches_works_from_a_stand_in(reader, monkeypatch, capsys):
    """`--init gpt2` and `--model gpt2` with a small random GPT-2 in place of OpenAI's."""
    try:
        tokenizer.load_tokenizer("gpt2")
    except tokenizer.DataError as e:
        pytest.skip(f"GPT-2's tokenizer is not here: {e}")
    stand_in = reader / "stand_in"
    GPT(GPTConfig(block_size=64, vocab_size=50257, n_layer=1, n_head=2, n_embd=16)).save_pretrained(stand_in)
    monkeypatch.setattr(weights, "download", lambda name: stand_in)
    monkeypatch.chdir(reader)
    ran = 0
    for line in commands(ROOT / "README.md"):
        words = shlex.split(line, comments=True)
        if words[0] == "python" and fetches_gpt2(words):
            script = words[1].removesuffix(".py")
            code = importlib.import_module(script).main(small(script, words[2:]))
            out, err = capsys.readouterr()
            assert code == 0, f"{line}\n{out}\n{err}"
            ran += 1
    assert ran >= 2


def test_tables_are_those_of_the_result_files():
    path = ROOT / "tests" / "benchmarks" / "report.py"
    spec = importlib.util.spec_from_file_location("report", path)
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    for page in report.PAGES:
        text = page.read_text("utf-8")
        assert report.fill(text) == text, f"{page.name}: run python tests/benchmarks/report.py"
