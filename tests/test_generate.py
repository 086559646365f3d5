"""generate.py: what is written, when it ends, what is refused, and what transformers makes of an export.

    python -m pytest tests/test_generate.py
"""

import contextlib
import copy
import io
import json
import os
import random
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import generate
import tokenizer
from generate import export, main, make_parser, merges_of, pack_weights, spelled, write_texts
from tokenizer import find_tokenizer
from train_gpt2 import GPT, GPTConfig, Runtime, TrainConfig, UserError, configure_optimizers, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TEXT = "Once upon a time a small boat sailed, été 你好 🐚. " * 40 + "\nThe boat's captain had 12 cats!\n" * 20
CONFIG = GPTConfig(block_size=32, vocab_size=300, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="session")
def encoding():
    return tokenizer.make_encoding(tokenizer.train_bpe(TEXT, 300), "small")


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8.0)  # so that what it has read matters
    return model


def write_checkpoint(path, model, step):
    """A checkpoint as a run writes it."""
    rt = Runtime(0, 1, torch.device("cpu"), torch.float32, False, [], torch.amp.GradScaler("cpu", enabled=False))
    cfg = TrainConfig.from_recipe("tales")
    state = dict(step=step, best=[1.5, step], config=asdict(cfg), data="a hash")
    save_checkpoint(path, model, configure_optimizers(model, cfg, "cpu"), rt, **state)


@pytest.fixture
def run_folder(tmp_path, monkeypatch, model, encoding):
    """The working directory holds log/a-run/ with a checkpoint and its tokenizer."""
    folder = tmp_path / "log" / "a-run"
    folder.mkdir(parents=True)
    write_checkpoint(folder / "ckpt_000010.pt", model, 10)
    tokenizer.save_tokenizer(encoding, folder / "tokenizer.json")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def say(capsys):
    """say(*argv) -> (exit code, standard output, standard error)."""

    def call(*argv):
        code = main([*argv, "--device", "cpu", "--dtype", "float32"])
        return code, *capsys.readouterr()

    return call


class Script:
    """A model that says what it is told: one list of ids for each row."""

    config = CONFIG
    lm_head = torch.nn.Linear(1, 1)

    def __init__(self, *rows):
        self.rows, self.said = rows, 0

    def stream(self, idx, max_new_tokens, *_):
        self.prompt = idx.tolist()
        for tokens in list(zip(*self.rows, strict=True))[:max_new_tokens]:
            self.said += 1
            yield torch.tensor(tokens)[:, None]


def options(*argv):
    return make_parser().parse_args(argv)


# ----------------------------------------------------------------------------------------------------------------------
# Texts that grow
# ----------------------------------------------------------------------------------------------------------------------
class Parts(io.StringIO):
    """Standard output that remembers what was written between two flushes."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def flush(self):
        self.parts.append(self.getvalue()[sum(map(len, self.parts)) :])


def test_characters_of_several_tokens_are_written_when_they_are_whole(encoding):
    """The first 256 ids are the bytes. The text ends inside a character; what a finished row is given falls away."""
    eot, out = tokenizer.eot_id(encoding), Parts()
    said = [*"é🐚é".encode()[:-1], eot, 65]
    count = write_texts(Script(said), encoding, [], options("--max_tokens", "9"), None, out)
    assert out.parts[:6] == ["", "é", "", "", "", "🐚"]
    assert out.getvalue() == "é🐚\N{REPLACEMENT CHARACTER}\n" and count == 8


def test_rows_are_written_one_after_the_other(encoding):
    out, eot = io.StringIO(), tokenizer.eot_id(encoding)
    args = options("--num_samples", "3", "--max_tokens", "4")
    script = Script([*b"abcd"], [ord("e"), eot, *b"XY"], [*b"f\n", eot, ord("Z")])
    count = write_texts(script, encoding, [*b"> "], args, None, out)
    assert out.getvalue() == "> abcd\n<|endoftext|>\n> e\n<|endoftext|>\n> f\n"
    assert count == 4 + 2 + 3 and script.said == 4
    assert script.prompt == [[eot, *b"> "]] * 3  # a document begins after its marker, as in training


def test_a_row_is_written_while_it_grows(encoding):
    """The second one from the moment on at which the first has ended."""
    out, eot = Parts(), tokenizer.eot_id(encoding)
    script = Script([*b"ab", eot, *b"..."], [*b"uvwxyz"])
    write_texts(script, encoding, [*b"> "], options("--num_samples", "2", "--max_tokens", "6"), None, out)
    assert [part for part in out.parts if part] == ["> a", "b", "\n<|endoftext|>\n> uvwx", "y", "z", "\n"]


def test_generation_stops_when_all_rows_have_ended(encoding):
    eot, out = tokenizer.eot_id(encoding), io.StringIO()
    script = Script([65, eot, 66, 66], [67, 67, eot, 66])
    assert write_texts(script, encoding, [], options("--num_samples", "2", "--max_tokens", "4"), None, out) == 5
    assert script.said == 3 and out.getvalue() == "A\n<|endoftext|>\nCC\n"


def test_more_samples_than_fit_side_by_side(encoding, monkeypatch):
    monkeypatch.setattr(generate, "ROWS", 2)
    out = io.StringIO()
    args = options("--num_samples", "4", "--max_tokens", "1")
    assert write_texts(Script([65], [66]), encoding, [], args, None, out) == 4
    assert out.getvalue() == "<|endoftext|>\n".join(["A\n", "B\n", "A\n", "B\n"])


def test_a_terminal_is_not_given_commands(encoding):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for out, expected in ((Terminal(), "a\N{REPLACEMENT CHARACTER}[2J\tb\n"), (io.StringIO(), "a\x1b[2J\tb\n")):
        write_texts(Script([*b"a\x1b[2J\tb"]), encoding, [], options(), None, out)
        assert out.getvalue() == expected


# ----------------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------------
def test_text_to_standard_output_and_notes_to_standard_error(run_folder, say, model, encoding):
    code, out, err = say("--prompt", "Once upon", "--max_tokens", "20", "--temperature", "0")
    ids = [299, *encoding.encode_ordinary("Once upon")]
    expected = model.generate(torch.tensor([ids]), 20, temperature=0, stop_token=299)[0, 1:].tolist()
    if 299 in expected:
        expected = expected[: expected.index(299)]
    assert code == 0 and out.rstrip("\n") == encoding.decode(expected).rstrip("\n") and out.startswith("Once upon")
    assert "ckpt_000010.pt" in err and "tokens/s" in err and "tokenizer small" in err


def test_the_same_seed_gives_the_same_text_and_the_notes_tell_the_seed(run_folder, say, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(generate.secrets, "randbelow", lambda n: 5)  # a drawn seed could give the text of the next one
        _, first, err = say("--max_tokens", "20")
    assert err.split("seed ")[1].split()[0] == "5"
    assert say("--max_tokens", "20", "--seed", "5")[1] == first
    assert say("--max_tokens", "20", "--seed", "6")[1] != first
    seeds = {say("--max_tokens", "1")[2].split("seed ")[1].split()[0] for _ in range(3)}
    assert len(seeds) > 1  # by chance in one of 2**64 runs


def test_the_newest_checkpoint_or_the_one_asked_for(run_folder, say, encoding, tmp_path):
    other = tmp_path / "log" / "b-run"
    other.mkdir()
    config = GPTConfig(16, 300, 1, 1, 16)
    write_checkpoint(other / "ckpt_000001.pt", GPT(config), 1)
    tokenizer.save_tokenizer(encoding, other / "tokenizer.json")
    os.utime(run_folder / "ckpt_000010.pt", (1, 1))
    assert "b-run" in say("--max_tokens", "1")[2]
    assert "a-run" in say("--max_tokens", "1", "--checkpoint", str(run_folder / "ckpt_000010.pt"))[2]
    assert "a-run" in say("--max_tokens", "1", "--checkpoint", str(run_folder))[2]


def test_a_newer_checkpoint_that_does_not_load_is_passed_over(run_folder, say, encoding, tmp_path):
    """In the same run and in a newer one: a text comes from the newest checkpoint that loads, and nothing else is in
    standard output."""
    whole = (run_folder / "ckpt_000010.pt").read_bytes()
    expected = say("--max_tokens", "20", "--seed", "1")[1]
    (run_folder / "ckpt_000020.pt").write_bytes(whole[: len(whole) // 2])
    other = tmp_path / "log" / "b-run"
    other.mkdir()
    (other / "ckpt_000001.pt").write_bytes(whole[:-50])
    tokenizer.save_tokenizer(encoding, other / "tokenizer.json")
    from_new_to_old = (other / "ckpt_000001.pt", run_folder / "ckpt_000020.pt", run_folder / "ckpt_000010.pt")
    for age, path in enumerate(from_new_to_old):
        os.utime(path, (10**9 - age, 10**9 - age))
    code, out, err = say("--max_tokens", "20", "--seed", "1")
    assert code == 0 and "ckpt_000010.pt: " in err
    assert out.endswith(expected)
    assert out == expected, "what is passed over must be told in standard error"
    code, out, err = say("--checkpoint", str(run_folder / "ckpt_000020.pt"))  # but what is asked for is not replaced
    assert code == 2 and out == "" and "ckpt_000020.pt is damaged" in err
    for path in (run_folder / "ckpt_000010.pt", run_folder / "ckpt_000020.pt"):
        path.write_bytes(b"")
    code, _, err = say()
    assert code == 2 and "no checkpoint" in err


def test_prompt_from_standard_input(run_folder, say, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Zwei\r\nZeilen, été\n".encode())))
    code, out, _ = say("--prompt", "-", "--max_tokens", "1")
    assert code == 0 and out.startswith("Zwei\nZeilen, été") and not out.startswith("Zwei\nZeilen, été\n\n")
    for raw, message in ((b"\xff\xfe", "standard input"), (b"", "empty"), (b"\n", "empty")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code, out, err = say("--prompt", "-")
        assert code == 2 and out == "" and message in err


def test_a_prompt_longer_than_the_block_is_said_once(run_folder, say):
    code, out, err = say("--prompt", "word " * 60, "--max_tokens", "5", "--num_samples", "2")
    assert code == 0 and err.count("the model sees 32") == 1 and out.count("word " * 60) == 2
    assert "the model sees" not in say("--prompt", "word", "--max_tokens", "60")[2]
    assert "has 31 tokens" not in say("--prompt", "~" * 31, "--max_tokens", "1")[2]  # with <|endoftext|> they just fit
    assert "has 32 tokens" in say("--prompt", "~" * 32, "--max_tokens", "1")[2]


def test_interactive(run_folder, say, monkeypatch):
    lines = iter(["Once upon", "The boat", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    code, out, err = say("--interactive", "--max_tokens", "3")
    assert code == 0 and "Once upon" in out and "The boat" in out and "Enter" in err


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_interactive_ends_with_the_input_and_goes_on_after_a_stopped_text(run_folder, say, monkeypatch, end):
    lines, texts = iter(["first", "second", end]), []

    def read(_):
        if (line := next(lines)) is end:
            raise end
        return line

    def stopped(model, encoding, prompt, *_):
        texts.append(encoding.decode(prompt))
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(generate, "write_texts", stopped)
    assert say("--interactive")[0] == (0 if end is EOFError else 130) and texts == ["first", "second"]


def test_ctrl_c_ends_a_text_without_a_traceback(run_folder, say, monkeypatch):
    monkeypatch.setattr(generate, "write_texts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, err = say()
    assert code == 130 and "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal for a reader that has gone")
def test_a_reader_that_leaves_early(run_folder):
    options = ["--max_tokens", "3000", "--num_samples", "9", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "generate.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 1 and "Error" not in err and "Traceback" not in err and "Exception" not in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--temperature", "-0.5"], "temperature is -0.5"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "inf"], "temperature is inf"),
        (["--temperature", "warm"], "warm"),
        (["--top_k", "0"], "top_k is 0"),
        (["--top_k", "1.5"], "1.5"),
        (["--top_p", "1.5"], "top_p is 1.5"),
        (["--num_samples", "0"], "num_samples is 0"),
        (["--max_tokens", "-1"], "max_tokens is -1"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", str(2**64)], "seed is"),
        (["--prompt", ""], "the prompt is empty"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["--model", "gpt5"], "gpt5"),
        (["--model", ""], "no model"),
        (["--model", "gpt2", "--checkpoint", "x.pt"], "not allowed with"),
        (["--prompt", "x", "--interactive"], "not allowed with"),
        (["--temprature", "1"], "temprature"),
    ],
)
def test_mistakes(run_folder, say, argv, message):
    code, out, err = say(*argv)
    lines = err.strip().split("\n")
    assert code == 2 and out == "" and message in lines[0]
    assert lines[0].startswith("error: ") and lines[1].startswith("hint: ") and len(lines) == 2


def test_no_checkpoint_and_the_wrong_tokenizer(run_folder, say, tmp_path, monkeypatch):
    other = tokenizer.make_encoding(tokenizer.train_bpe(TEXT, 290), "other")
    tokenizer.save_tokenizer(other, run_folder / "tokenizer.json")
    code, _, err = say()
    assert code == 2 and "300 tokens" in err and "290" in err
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.chdir(empty)
    code, _, err = say()
    assert code == 2 and "no checkpoint" in err and "python train_gpt2.py" in err


def test_a_small_vocabulary_without_its_tokenizer_does_not_get_gpt2s(run_folder, say, monkeypatch):
    """It could not fit, and would have to be fetched."""
    monkeypatch.setattr(tokenizer, "_load_gpt2", lambda: pytest.fail("it looks for GPT-2's"))
    (run_folder / "tokenizer.json").unlink()
    code, _, err = say()
    assert code == 2 and "has 300 tokens, but the tokenizer gpt2 has 50257" in err


def test_a_filled_up_vocabulary_is_not_for_writing(run_folder, say, encoding):
    """Other trainers fill up GPT-2's 50,257 tokens. hellaswag.py scores such a model; here an id might have no text."""
    small = tokenizer.make_encoding(tokenizer.train_bpe(TEXT, 290), "smaller")
    folder = run_folder.parent / "filled"
    write_checkpoint(folder / "ckpt_000001.pt", GPT(GPTConfig(8, 50304, 1, 1, 2)), 1)
    tokenizer.save_tokenizer(small, folder / "tokenizer.json")
    code, out, err = say("--checkpoint", str(folder))
    assert code == 2 and out == "" and "50,304 tokens, but the tokenizer smaller 290" in err
    assert generate.load(str(folder))[1].name == "smaller"


def test_a_prompt_of_a_million_spaces(encoding, model):
    ids = generate.prompt_ids("a" + " " * 1_200_000 + "b", encoding, model)
    assert len(encoding.decode_bytes(ids)) == 1_200_002


def test_weights_that_are_not_finite_are_refused_by_name(run_folder, say, model):
    broken = copy.deepcopy(model)
    broken.transformer.h[1].mlp.c_fc.bias.data[3] = float("nan")
    write_checkpoint(run_folder / "ckpt_000020.pt", broken, 20)
    code, out, err = say("--checkpoint", str(run_folder / "ckpt_000020.pt"))
    assert code == 2 and out == "" and "transformer.h.1.mlp.c_fc.bias" in err


def test_cudnns_attention_is_off_while_texts_grow_and_then_as_before(run_folder, say, monkeypatch):
    """Also if a text ends before the model would."""
    assert torch.backends.cuda.cudnn_sdp_enabled()
    seen, hidden = [], GPT.hidden

    def note(self, *args):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return hidden(self, *args)

    monkeypatch.setattr(GPT, "hidden", note)
    for max_tokens in ("3", "2000"):
        assert say("--max_tokens", max_tokens, "--seed", "1")[0] == 0
        assert seen and not any(seen) and torch.backends.cuda.cudnn_sdp_enabled()
    assert len(seen) < 2000


def script(*argv, closed="", **environment):
    """generate.py in a process and a shell of its own, in the working directory."""
    words = [sys.executable, str(ROOT / "generate.py"), *argv, "--device", "cpu", "--max_tokens", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = f"{shlex.join(words)} {closed}"
    return subprocess.run(command, shell=True, capture_output=True, env=environment, timeout=120, check=False)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such shell")
def test_closed_standard_input_and_output(run_folder):
    cases = {"<&-": (["--prompt", "-"], ["--interactive"]), ">&-": ([],)}
    for closed, argvs in cases.items():
        for argv in argvs:
            done, name = script(*argv, closed=closed), b"input" if closed == "<&-" else b"output"
            assert done.returncode == 2 and done.stdout == b""
            assert done.stderr.startswith(b"error: standard " + name + b" is closed")
    assert script("--seed", "1", closed="2>&-").stdout == script("--seed", "1").stdout  # no notes among the text
    assert script("--export", "exported", closed="<&- >&-").returncode == 0


@pytest.mark.parametrize("system", ["ascii", "cp1252"])
def test_a_text_in_a_file_is_utf8_whatever_the_system_writes(run_folder, system):
    done = script("--prompt", "你好 🐚 été", PYTHONIOENCODING=system)
    assert done.returncode == 0 and done.stdout.decode("utf-8").startswith("你好 🐚 été")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
def test_interactive_in_a_terminal_that_knows_ascii_only(run_folder):
    import pty

    ours, theirs = pty.openpty()
    words = [sys.executable, str(ROOT / "generate.py"), "--interactive", "--device", "cpu", "--max_tokens", "3"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal ends with an error once no process has it open
            while piece := os.read(ours, 1000):
                if b"> " not in shown and b"> " in shown + piece:
                    os.write(ours, "été\n\n".encode())
                shown += piece
        err = process.stderr.read().decode()
    os.close(ours)
    assert process.returncode == 0 and "Traceback" not in err and b"??t??" in shown


# ----------------------------------------------------------------------------------------------------------------------
# Fast products on a CPU
# ----------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_change_nothing_but_rounding(dtype, monkeypatch):
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no packed weights in both types")
    monkeypatch.setattr(generate, "packing_pays", lambda model: True)  # for so small a model it hardly does

    def make():
        torch.manual_seed(0)
        model = GPT(CONFIG).eval()
        for p in model.parameters():  # biases too
            p += 0.05 * torch.randn(p.shape)
        return model.to(dtype)

    plain, packed = make(), pack_weights(make())
    idx = torch.randint(0, 300, (3, 9), generator=torch.Generator().manual_seed(1))
    close = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else dict(atol=0.02, rtol=0.02)
    torch.testing.assert_close(packed(idx)[0], plain(idx)[0], **close)
    if dtype == torch.float32:
        assert torch.equal(packed.generate(idx, 40, temperature=0), plain.generate(idx, 40, temperature=0))
    left = [name for name, module in packed.named_modules() if type(module) is torch.nn.Linear]
    assert left == ["lm_head"]  # whose weight is the table of embeddings as well


@pytest.mark.parametrize(("packed_ms", "packs"), [(2.0, False), (0.97, False), (0.9, True), (0.5, True)])
def test_weights_are_packed_where_a_trial_says_that_it_pays(monkeypatch, packed_ms, packs):
    """A clock that gives each product its time: the plain one a millisecond."""
    clock = SimpleNamespace(now=0.0)

    def takes(ms, product):
        def timed(self, x):
            clock.now += ms / 1000
            return product(self, x)

        return timed

    monkeypatch.setattr(generate.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(generate.PackedLinear, "forward", takes(packed_ms, generate.PackedLinear.forward))
    monkeypatch.setattr(GPT, "head", takes(1.0, GPT.head))
    if not torch.backends.mkldnn.is_available():
        packs = False
    linear = type(pack_weights(GPT(CONFIG)).transformer.h[0].attn.c_attn) is torch.nn.Linear
    assert linear != packs


# ----------------------------------------------------------------------------------------------------------------------
# Export
# ----------------------------------------------------------------------------------------------------------------------
def texts():
    """Texts that tokenizers trip over, and random ones."""
    generator = random.Random(0)
    alphabet = [*"abc ABC123 \n\t'.,!éü你🐚’", "  ", "'s", " the", "\u00a0", "\u0300", "\ud7ff", "\r\n", "boat"]
    every_byte = "".join(map(chr, range(0x180)))  # but for most of those that begin a character
    fixed = ["", " ", "Once upon a time", "it's  we'll I'M", TEXT[:200], "<|endoftext|", every_byte]
    return fixed + ["".join(generator.choices(alphabet, k=generator.randrange(1, 60))) for _ in range(100)]


def test_export_opens_in_transformers_with_the_same_ids_and_logits(run_folder, say, model, encoding, tmp_path):
    transformers = pytest.importorskip("transformers")
    code, out, err = say("--export", "exported")
    assert code == 0 and out == "" and "exported" in err
    theirs = transformers.AutoModelForCausalLM.from_pretrained("exported").eval()
    idx = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx).logits, model(idx)[0], atol=1e-4, rtol=0)
    for kind in (transformers.AutoTokenizer, transformers.GPT2Tokenizer):
        peer = kind.from_pretrained("exported")
        for text in texts():
            ids = encoding.encode_ordinary(text)
            assert peer.encode(text) == ids, text
            assert peer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert peer.eos_token_id == peer.bos_token_id == 299 and len(peer) == 300
        assert peer.encode("a<|endoftext|>b") == [97, 299, 98]


def test_export_is_read_by_our_own_tools(run_folder, say, encoding):
    say("--export", "exported")
    assert tokenizer.fingerprint(tokenizer.load_tokenizer("exported/bpe.json")) == tokenizer.fingerprint(encoding)
    expected = say("--prompt", "Once", "--temperature", "0", "--max_tokens", "9")[1]
    code, out, err = say("--model", "exported", "--prompt", "Once", "--temperature", "0", "--max_tokens", "9")
    assert code == 0 and out == expected and "tokenizer small" in err


def test_export_overwrites_nothing(run_folder, say, tmp_path):
    before = {path: path.read_bytes() for path in run_folder.iterdir()}
    code, _, err = say("--export", str(run_folder))
    assert code == 2 and "is there already" in err
    assert {path: path.read_bytes() for path in run_folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert say("--export", "empty")[0] == 0
    (tmp_path / "there.gguf").write_text("mine")
    code, _, err = say("--export", "there.gguf")
    assert code == 2 and "is there already" in err and (tmp_path / "there.gguf").read_text() == "mine"


def test_the_model_card_tells_what_the_log_knows(run_folder, say):
    """Of the step that the weights are from, although the run went on; and how to load them, in code that runs."""
    pytest.importorskip("transformers")
    cfg = asdict(TrainConfig.from_recipe("tales", data="/home/me/stories.txt", total_batch=512))
    events = [dict(event="config", step=0, config=cfg)]
    events += [dict(event="val", step=step, val_loss=step / 7, val_bpb=step / 9) for step in (0, 9, 20)]
    (run_folder / "log.jsonl").write_text("\n".join(map(json.dumps, events)), "utf-8")
    say("--export", "exported")
    card = Path("exported/README.md").read_text("utf-8")
    assert "# exported\n" in card and f"{GPT(CONFIG).num_params():,} parameters: 2 layers, 2 heads, width 32" in card
    assert "context of 32 tokens, vocabulary of 300 tokens" in card
    assert "Trained on `stories.txt` for 10 steps of 512 tokens (recipe `tales`)." in card and "/home" not in card
    assert "after step 9: 1.0000 bits per byte, 1.2857 nats per token." in card
    code = card.split("```python\n")[1].split("```")[0]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "Once upon a time" in run.stdout, run.stderr


def test_the_model_card_without_a_log_and_with_one_that_is_damaged(run_folder, say):
    assert say("--export", "first")[0] == 0
    assert "The weights are those of `ckpt_000010.pt`." in Path("first/README.md").read_text("utf-8")
    assert say("--model", "first", "--export", "second")[0] == 0
    assert "The weights are those of `first`." in Path("second/README.md").read_text("utf-8")
    cfg = dict(asdict(TrainConfig.from_recipe("tales")), init="path/to/gpt2")
    (run_folder / "log.jsonl").write_text(json.dumps(dict(event="config", step=0, config=cfg)) + "\n", "utf-8")
    assert say("--export", "third")[0] == 0
    card = Path("third/README.md").read_text("utf-8")
    assert "(recipe `tales`, from the weights of `gpt2`)." in card and "held-out" not in card
    (run_folder / "log.jsonl").write_text('{"step": 3, "event": "config"}\n', "utf-8")
    code, _, err = say("--export", "fourth")
    assert code == 2 and "log.jsonl is damaged" in err and not Path("fourth").exists()


def test_gguf_holds_the_weights_and_the_tokenizer(run_folder, say, model, encoding):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    code, out, err = say("--export", "new/small.gguf")
    assert code == 0 and out == "" and "n_positions=32" in err
    assert [path.name for path in Path("new").iterdir()] == ["small.gguf"]
    reader = gguf.GGUFReader("new/small.gguf")
    found = {t.name: torch.tensor(t.data) for t in reader.tensors}
    names = dict(token_embd="wte", position_embd="wpe", output_norm="ln_f")
    for i in range(2):
        names |= {f"blk.{i}.attn_norm": f"h.{i}.ln_1", f"blk.{i}.ffn_norm": f"h.{i}.ln_2"}
        names |= {f"blk.{i}.attn_qkv": f"h.{i}.attn.c_attn", f"blk.{i}.attn_output": f"h.{i}.attn.c_proj"}
        names |= {f"blk.{i}.ffn_up": f"h.{i}.mlp.c_fc", f"blk.{i}.ffn_down": f"h.{i}.mlp.c_proj"}
    weights = dict(model.transformer.named_parameters())
    assert len(found) == len(weights)
    for name, tensor in found.items():
        stem, end = name.rsplit(".", 1)
        torch.testing.assert_close(tensor, weights[f"{names[stem]}.{end}"], rtol=0, atol=0)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gpt2" and fields["gpt2.context_length"] == 32
    assert (fields["gpt2.block_count"], fields["gpt2.attention.head_count"]) == (2, 2)
    assert (fields["gpt2.embedding_length"], fields["gpt2.feed_forward_length"]) == (32, 128)
    assert (fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]) == spelled(encoding)
    assert fields["tokenizer.ggml.eos_token_id"] == 299
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def test_gguf_opens_in_transformers_with_the_same_ids_and_logits(run_folder, say, model, encoding):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    pytest.importorskip("accelerate", reason="transformers reads gguf files with the package accelerate only")
    transformers = pytest.importorskip("transformers")
    say("--export", "small.gguf")
    how = dict(gguf_file="small.gguf", n_positions=32, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(".", **how).eval()
    idx = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx).logits, model(idx)[0], atol=1e-4, rtol=0)
    peer = transformers.AutoTokenizer.from_pretrained(".", gguf_file="small.gguf")
    for text in texts():
        assert peer.encode(text) == encoding.encode_ordinary(text), text


def test_gguf_without_its_package(run_folder, say, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    code, _, err = say("--export", "small.gguf")
    assert code == 2 and "pip install gguf" in err and not Path("small.gguf").exists()


def test_merges_are_those_that_were_learned():
    seen = []
    ranks = tokenizer.train_bpe(TEXT, 300, on_merge=lambda merge: seen.append((merge.left, merge.right)))
    assert merges_of(ranks) == seen
    odd = {bytes([i]): i for i in range(256)} | {b"abc": 256, b"ab": 257}
    with pytest.raises(UserError, match="abc"):
        merges_of(odd)


def test_gpt2s_own_merges_come_back(tmp_path):
    try:
        gpt2 = tokenizer.load_tokenizer("gpt2")
    except tokenizer.UserError as e:
        pytest.skip(f"GPT-2's tokenizer is not here: {e}")
    transformers = pytest.importorskip("transformers")
    export(GPT(GPTConfig(8, 50257, 1, 1, 2)), gpt2, tmp_path / "out", "gpt2")
    assert (tmp_path / "out" / "merges.txt").read_text("utf-8").split("\n")[1:4] == ["Ġ t", "Ġ a", "h e"]
    assert json.loads((tmp_path / "out" / "vocab.json").read_text("utf-8"))["<|endoftext|>"] == 50256
    peer = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "out")
    for text in texts():
        assert peer.encode(text) == gpt2.encode_ordinary(text)


def test_export_with_a_tokenizer_that_has_no_merges_writes_nothing(model, tmp_path, encoding):
    ranks = {bytes([i]): i for i in range(256)} | {b"abc": 256}
    with pytest.raises(UserError, match="abc"):
        export(model, tokenizer.make_encoding(ranks, "odd"), tmp_path / "out", "a model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["exported", "exported.gguf"])
def test_a_split_pattern_that_transformers_cannot_express(run_folder, say, name):
    pattern = tokenizer.KNOWN_PATTERNS["unicode"]
    other = tokenizer.make_encoding(tokenizer.train_bpe([TEXT], 300, pattern=pattern), "unicode", pattern)
    tokenizer.save_tokenizer(other, run_folder / "tokenizer.json")
    code, _, err = say("--export", name)
    assert code == 2 and "cannot cut words as this tokenizer does" in err and not Path(name).exists()


def test_find_tokenizer_prefers_ours_in_an_export(model, encoding, tmp_path):
    export(model, encoding, tmp_path / "out", "a model")
    (tmp_path / "out" / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')  # as transformers' own would be
    assert find_tokenizer(tmp_path / "out").name == "small"
