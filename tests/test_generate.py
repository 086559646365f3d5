"""generate.py: what is written, when it ends, what is refused, and what transformers makes of an export.

    python -m pytest tests/test_generate.py
"""

import io
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import generate
import tokenizer
from generate import Row, export, main, make_parser, merges_of, pack_weights, show, write_texts
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
def test_characters_of_several_tokens_are_written_when_they_are_whole(encoding):
    row, parts = Row(encoding, []), []
    for byte in "é🐚".encode():
        row.add(byte)  # the first 256 ids are the bytes
        parts.append(row.take())
    assert parts == ["", "é", "", "", "", "🐚"]
    row.add("é".encode()[0])
    row.add(tokenizer.eot_id(encoding))
    row.add(65)  # after the end: falls away
    assert row.take() == "\N{REPLACEMENT CHARACTER}\n" and row.done and row.tokens == 8
    row.finish()
    assert row.take() == ""


def test_rows_are_written_one_after_the_other(encoding):
    out, eot = io.StringIO(), tokenizer.eot_id(encoding)
    args = options("--num_samples", "3", "--max_tokens", "4")
    script = Script([*b"abcd"], [ord("e"), eot, *b"XY"], [*b"f\n", eot, ord("Z")])
    count = write_texts(script, encoding, [*b"> "], args, None, out)
    assert out.getvalue() == "> abcd\n<|endoftext|>\n> e\n<|endoftext|>\n> f\n"
    assert count == 4 + 2 + 3 and script.said == 4
    assert script.prompt == [[eot, *b"> "]] * 3  # a document begins after its marker, as in training


def test_the_first_row_is_written_while_it_grows(encoding):
    rows, out = [Row(encoding, []), Row(encoding, [])], io.StringIO()
    written = []
    for a, b in zip(b"abc", b"xyz", strict=True):
        rows[0].add(a)
        rows[1].add(b)
        show(rows[:], out)
        written.append(out.getvalue())
    assert written == ["a", "ab", "abc"]


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
        row = Row(encoding, [*b"a\x1b[2J\tb"])
        row.finish()
        show([row], out)
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


def test_the_same_seed_gives_the_same_text_and_the_notes_tell_the_seed(run_folder, say):
    _, first, err = say("--max_tokens", "20")
    seed = err.split("seed ")[1].split()[0]
    assert say("--max_tokens", "20", "--seed", seed)[1] == first
    assert say("--max_tokens", "20", "--seed", str(int(seed) + 1))[1] != first


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
    for raw, message in ((b"\xff\xfe", "not UTF-8"), (b"", "empty"), (b"\n", "empty")):
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
    assert say("--interactive")[0] == 0 and texts == ["first", "second"]


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


# ----------------------------------------------------------------------------------------------------------------------
# Fast products on a CPU
# ----------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_change_nothing_but_rounding(dtype):
    def make():
        torch.manual_seed(0)
        model = GPT(CONFIG).eval()
        for p in model.parameters():  # biases too
            p += 0.05 * torch.randn(p.shape)
        return model.to(dtype)

    plain, packed = make(), pack_weights(make())
    if type(packed.transformer.h[0].mlp.c_fc) is torch.nn.Linear:
        pytest.skip("this processor has no packed weights")
    idx = torch.randint(0, 300, (3, 9), generator=torch.Generator().manual_seed(1))
    close = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else dict(atol=0.02, rtol=0.02)
    torch.testing.assert_close(packed(idx)[0], plain(idx)[0], **close)
    if dtype == torch.float32:
        assert torch.equal(packed.generate(idx, 40, temperature=0), plain.generate(idx, 40, temperature=0))
    left = [name for name, module in packed.named_modules() if type(module) is torch.nn.Linear]
    assert left == ["lm_head"]  # whose weight is the table of embeddings as well


def test_weights_stay_as_they_are_on_other_processors(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert type(pack_weights(GPT(CONFIG)).transformer.h[0].attn.c_attn) is torch.nn.Linear


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
    except tokenizer.DataError as e:
        pytest.skip(f"GPT-2's tokenizer is not here: {e}")
    transformers = pytest.importorskip("transformers")
    files = generate.hf_tokenizer_files(gpt2, 1024)
    assert files["merges.txt"].split("\n")[1:4] == ["Ġ t", "Ġ a", "h e"]
    assert json.loads(files["vocab.json"])["<|endoftext|>"] == 50256
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    peer = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    for text in texts():
        assert peer.encode(text) == gpt2.encode_ordinary(text)


def test_export_with_a_tokenizer_that_has_no_merges_writes_nothing(model, tmp_path, encoding):
    ranks = {bytes([i]): i for i in range(256)} | {b"abc": 256}
    with pytest.raises(UserError, match="abc"):
        export(model, tokenizer.make_encoding(ranks, "odd"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_find_tokenizer_prefers_ours_in_an_export(model, encoding, tmp_path):
    export(model, encoding, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')  # as transformers' own would be
    assert find_tokenizer(tmp_path / "out").name == "small"
