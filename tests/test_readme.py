"""Every command of the README runs, in small form: shorter training, smaller models, stand-ins for what is fetched."""

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import tokenizer
import train_gpt2
from train_gpt2 import GPT, GPTConfig, config_from_args

ROOT = Path(__file__).resolve().parents[1]
SMALL_RUN = "--total_batch 256 --micro_batch 2 --val_tokens 200 --save_every 1 --device cpu"
SMALL_MODEL = "--n_layer 1 --n_head 2 --n_embd 32 --block_size 32"


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
    for split, seed in (("val_000000", 1), ("train_000001", 2)):
        tokens = np.random.default_rng(seed).integers(50257, size=2000).astype(np.uint16)
        np.save(folder / "edu_fineweb10B" / f"edufineweb_{split}.npy", tokens)
    return folder


def small(script, args):
    """The arguments, made small."""
    extra = []
    if script == "train_gpt2" and "--resume" in args:
        extra = ["--max_steps", "3", "--name", "mine"]  # the run that an earlier command has made
    elif script == "train_gpt2":
        extra = shlex.split(f"{SMALL_RUN} --block_size 32" if "--init" in args else f"{SMALL_RUN} {SMALL_MODEL}")
        extra += [] if "--max_steps" in args else ["--max_steps", "2"]
    elif script == "generate":
        extra = ["--max_tokens", "5", "--device", "cpu"]
    return args + extra


def run_here(line, capsys):
    """Runs a line `python script.py ...` of a page in this process, small -> what it has printed."""
    words = shlex.split(line, comments=True)
    script = words[1].removesuffix(".py")
    before = sorted(Path("log").rglob("*"))
    code = importlib.import_module(script).main(small(script, words[2:]))
    out, err = capsys.readouterr()
    assert code == 0, f"{line}\n{out}\n{err}"
    if "--max_steps" in words:  # of 0
        assert sorted(Path("log").rglob("*")) == before, f"it wrote something: {line}"
        assert "val loss" in out and out.count("sample:") == 3, f"{line}\n{out}"
    if "--resume" in words:
        assert "going on from step 2" in out, f"{line}\n{out}"
    return out


def test_requirements_are_installed():
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        if name := re.match(r"[A-Za-z0-9_-]+", line):
            assert version(name[0])


@pytest.mark.parametrize("page", ["README.md", "tests/benchmarks/README.md"])
def test_every_command_names_what_is_there(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder without runs
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
            run_here(line, capsys)
            ran += 1
        assert ran > 10
        run_here("python train_gpt2.py", capsys)
        assert {"tales", "tales-2", "mine", "gpt2"} <= {path.name for path in Path("log").iterdir()}
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
    except tokenizer.UserError as e:
        pytest.skip(f"GPT-2's tokenizer is not here: {e}")
    stand_in = reader / "stand_in"
    GPT(GPTConfig(block_size=64, vocab_size=50257, n_layer=1, n_head=2, n_embd=16)).save_pretrained(stand_in)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: fetched.append(name) or str(stand_in))
    monkeypatch.chdir(reader)
    fetched = []
    for line in commands(ROOT / "README.md"):
        words = shlex.split(line, comments=True)
        if words[0] == "python" and fetches_gpt2(words):
            run_here(line, capsys)
    assert len(fetched) >= 3 and set(fetched) == {"openai-community/gpt2"}


@pytest.mark.slow
def test_torchrun_commands_run(reader):
    """With two processes of one machine; the second line and the third continue what the first has made."""
    lines, env = commands(ROOT / "README.md"), {k: v for k, v in os.environ.items() if k != "RANK"}
    env |= dict(line.removeprefix("export ").split("=") for line in lines if line.startswith("export "))
    steps = 2
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] != "torchrun":
            continue
        script = words.index("train_gpt2.py")
        how = [re.sub("(?<=--nproc_per_node=).*", "2", word) for word in words[1:script]]
        how = [word.replace("--nnodes=2", "--nnodes=1").replace("first-host:29500", "localhost:0") for word in how]
        args = [*words[script + 1 :], *shlex.split(f"{SMALL_RUN} {SMALL_MODEL} --max_steps {steps}")]
        command = [sys.executable, "-m", "torch.distributed.run", *how, ROOT / "train_gpt2.py", *args]
        done = subprocess.run(command, cwd=reader, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert (f"going on from step {steps - 1}" in done.stdout) == ("--resume" in words), f"{line}\n{done.stdout}"
        assert "x 2 processes" in done.stdout and f"ckpt_{steps:06d}.pt" in done.stdout
        steps += 1
    assert steps > 3


def test_the_map_is_that_of_the_lesson():
    row = re.search(r"^\| `train_gpt2.py` .*$", (ROOT / "README.md").read_text("utf-8"), flags=re.M)[0]
    drawn = re.search(r"\nMap\n(.*?)\n\n", train_gpt2.__doc__, flags=re.S)[1]
    sections = [" ".join(name.split()) for name in re.findall(r"\d+ \w+(?: \w+)*", drawn)]
    assert len(sections) == 20 and re.findall(r"\d+ \w+(?: \w+)*", row) == sections
    for part, name in re.findall(r"Part (I+) +(the \w+)", drawn):
        assert f"Part {part} is {name}" in row


def test_tables_are_those_of_the_result_files():
    path = ROOT / "tests" / "benchmarks" / "report.py"
    spec = importlib.util.spec_from_file_location("report", path)
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    for page in report.PAGES:
        text = page.read_text("utf-8")
        assert report.fill(text) == text, f"{page.name}: run python tests/benchmarks/report.py"
