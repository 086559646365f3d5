"""generate.py --export page.html: the page is the same model and the same tokenizer, and shows what it says it shows.

The numbers are checked with node, which runs the first script of the page (the model) as it stands; clicks and keys
with headless Chromium. Where one of these is missing, its tests are skipped.

    python -m pytest tests/test_viewer.py
"""

import base64
import contextlib
import hashlib
import html.parser
import json
import os
import random
import re
import shutil
import subprocess
import time
import unicodedata
from pathlib import Path

import pytest
import torch

import generate
import tokenizer
from train_gpt2 import GPT, GPTConfig, UserError, causal_attention, read_log, train

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = (ROOT / "viewer.html").read_text(encoding="utf-8")
TEXT = "Once upon a time a small boat sailed, été 你好 🐚 नमस्ते สวัสดี. " * 40 + "\nThe boat's captain had 12 cats!\n" * 20
CONFIG = GPTConfig(block_size=48, vocab_size=320, n_layer=3, n_head=2, n_embd=36)
PATTERNS = sorted(set(tokenizer.KNOWN_PATTERNS.values()))
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>{{weights}}<!--<script>"


def make_encoding(pattern=tokenizer.SPLIT_PATTERN, size=320, text=TEXT):
    return tokenizer.make_encoding(tokenizer.train_bpe(text, size, pattern=pattern), "small", pattern)


def make_model(config=CONFIG):
    """A model of random weights that says clear things, as float16 holds them."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.05).mul_(4.0).copy_(p.half().float())
    return model


class Page(html.parser.HTMLParser):
    """A page as a browser takes it apart: the scripts that would run, the data by their ids, and all tags."""

    def __init__(self, path):
        super().__init__()
        self.scripts, self.data, self.tags, self.script = [], {}, [], None
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.script = dict(attrs) if tag == "script" else None

    def handle_endtag(self, tag):
        self.script = None

    def handle_data(self, data):
        if self.script is not None:
            if "id" in self.script:
                self.data[self.script["id"]] = data
            else:
                self.scripts.append(data)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="session")
def model():
    return make_model()


@pytest.fixture(scope="session")
def page(folder, model):
    """The path of a page with `model`."""
    path = folder / "small.html"
    generate.export_html(model, make_encoding(), path, {"name": "a-run", "bits per byte": "1.234"})
    return path


def in_node(path, code, given=None):
    """What JavaScript `code` leaves in `answer`; it sees the page's `tokenizer` and `model`, and `given`."""
    if shutil.which("node") is None:
        pytest.skip("node, in which the page's model runs, is not installed")
    page = Page(path)
    program = f"""{page.scripts[0]}
        const data = {page.data["model"]}, given = {json.dumps(given)}, tokenizer = new Tokenizer(data.tokenizer);
        const model = new GPT(data.config, readWeights(data.tensors, "{page.data["weights"]}"));
        function readAll(ids) {{
          model.keep(ids);
          while (model.ids.length < ids.length) model.read(ids[model.ids.length]);
        }}
        let answer;
        {code}
        console.log(JSON.stringify(answer));"""
    run = subprocess.run(["node", "-"], input=program, capture_output=True, encoding="utf-8", timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def some_ids(count, config=CONFIG, seed=0):
    return [config.vocab_size - 1, *random.Random(seed).choices(range(config.vocab_size - 1), k=count - 1)]


# ----------------------------------------------------------------------------------------------------------------------
# 1. The same model
# ----------------------------------------------------------------------------------------------------------------------
def test_logits_and_surprise_are_those_of_torch(page, model):
    ids = some_ids(CONFIG.block_size)
    code = "readAll(given); answer = [given.map((_, t) => Array.from(model.logits(t))), Array.from(model.surprise)];"
    logits, surprise = in_node(page, code, ids)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0][0]
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-3)
    losses = -expected[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(surprise)[1:], losses, rtol=0, atol=1e-3)
    assert losses.std() > 0.5, "the model says nothing clear enough to compare"


def test_greedy_text_is_that_of_torch_over_the_end_of_the_block(page, model):
    prompt = some_ids(9, seed=1)
    code = """const ids = [...given];
        for (let i = 0; i < 100; i++) {
          readAll(ids.slice(-model.block_size));
          ids.push(sample(model.logits(model.ids.length - 1), 0, 50));
        }
        answer = ids;"""
    expected = model.generate(torch.tensor([prompt]), 100, temperature=0)[0].tolist()
    assert len(set(expected[9:])) > 10, "a text that only repeats itself shows little"
    assert in_node(page, code, prompt) == expected


def test_the_cache_changes_nothing(page):
    """A text that is changed in its middle and shortened, against the same text read afresh."""
    first, second = some_ids(40), some_ids(40)[:17] + some_ids(20, seed=5)
    code = """readAll(given[0]); readAll(given[0].slice(0, 30)); readAll(given[1]);
        const state = () => [model.ids, model.surprise.slice(0, 37), model.logits(36), model.attention(2, 1, 36)];
        const changed = JSON.stringify(state());
        model.ids = [];
        model.cache.forEach(({ q, k, v }) => [q, k, v].forEach((part) => part.fill(NaN)));
        readAll(given[1]);
        answer = [model.ids, changed === JSON.stringify(state())];"""
    assert in_node(page, code, [first, second]) == [second, True]


def test_attention_and_the_stream_after_each_layer(page, model):
    ids = some_ids(20, seed=2)
    code = """readAll(given);
        const heads = [...Array(model.n_head).keys()], layers = [...Array(model.n_layer).keys()];
        const attention = layers.map((layer) => heads.map((head) => Array.from(model.attention(layer, head, 12))));
        answer = [attention, model.stream.map((_, layer) => Array.from(model.logits(12, layer)))];"""
    attention, lens = in_node(page, code, ids)
    with torch.no_grad():
        x = model.transformer.wte(torch.tensor([ids])) + model.transformer.wpe(torch.arange(20))  # (1, T, C)
        for layer in range(CONFIG.n_layer + 1):
            expected = model.head(model.transformer.ln_f(x))[0, 12]
            torch.testing.assert_close(torch.tensor(lens[layer]), expected, rtol=0, atol=1e-3)
            if layer < CONFIG.n_layer:
                block = model.transformer.h[layer]
                qkv = block.attn.c_attn(block.ln_1(x)).view(1, 20, 3, CONFIG.n_head, -1)
                weights = causal_attention(*qkv.permute(2, 0, 3, 1, 4), return_weights=True)[1]  # (1, nh, T, T)
                torch.testing.assert_close(torch.tensor(attention[layer]), weights[0, :, 12, :13], rtol=0, atol=1e-4)
                x = block(x)


def test_sampling(page):
    """Each draw from 0 to 1 gives the token in whose share of the probability it falls."""
    logits, temperature, k = [0.5, 3.0, -1.0, 2.0, 2.5, -4.0], 0.7, 4
    code = """const { logits, temperature, k, draws } = given;
        answer = draws.map((draw) => sample(Float32Array.from(logits), temperature, k, draw));"""
    draws = [i / 1000 for i in range(1000)]
    found = in_node(page, code, dict(logits=logits, temperature=temperature, k=k, draws=draws))
    best, ids = (torch.tensor(logits) / temperature).topk(k)
    shares = torch.tensor([found.count(i) for i in ids.tolist()]) / 1000
    torch.testing.assert_close(shares, best.softmax(-1), rtol=0, atol=2e-3)
    nearly = in_node(page, code, dict(logits=logits, temperature=temperature, k=99, draws=[0.999999, 1.0]))
    assert nearly[0] == 5 and nearly[1] in range(6)


# ----------------------------------------------------------------------------------------------------------------------
# 2. The same tokenizer
# ----------------------------------------------------------------------------------------------------------------------
HARD = [
    "", " ", "  ", "\n\n", " \n a", "a  b", "it's 'll 'LL ''s'd", "x1y22 ４２ Ⅷ ½", "<|endoftext|>", "a" * 3000,
    "ab" * 1000 + " " * 500 + "x", "\ud800", "a\udc00\ud800b", "\udc00\ud83d\udc1a", "a\x85b", "\x85\x85x", " \x85 x",
    "\ufeffx", "x\ufeff y", " \ufeff", "\xa0a\xa0\xa0b", "\u3000x\u2028\u2029y", "\u180ea \u180e", "\0\x07",
    "a\u200bb\u200d \u200d", "\x1c\x1d\x1e\x1f a", "e\u0301 \u0301x", "नमस्ते दुनिया", "สวัสดีชาวโลก", "مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🐚🐚", "𝔘𝔫𝔦 𐍈", "\U0010ffff\uffff\u0378", "constructor __proto__ undefined",
]  # fmt: skip


def random_texts(count):
    """Texts of all scripts, digits, marks and white space. Unicode 3.2 bounds the draw, since Python, node and tiktoken
    each know another version of Unicode, and a letter newer than one of them is no letter to it."""
    rng = random.Random(1)
    known = [chr(i) for i in range(0x110000) if unicodedata.ucd_3_2_0.category(chr(i)) not in ("Cn", "Co", "Cs")]
    space = [*" \t\n\r\f\v\x1c\x1f\x85\xa0\u1680\u2000\u2028\u202f\u205f\u3000\ufeff\u200b", "  ", " \n", "    "]
    pools = [known, space, "abcdefghij ABC'''", "0123456789٣४½²", "🐚🦀👍🏽\u200d\ufe0f", [" once", "'s", "'ll"]]
    weights = [4, 3, 3, 1, 1, 2]
    for _ in range(count):
        pool = rng.choices(pools, weights, k=rng.randrange(1, 60))
        yield "".join(rng.choice(p) for p in pool)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_are_those_of_tiktoken(folder, pattern):
    texts = HARD + list(random_texts(500))
    encoding = make_encoding(pattern, 700, TEXT + "\n".join(random_texts(300)))
    path = folder / f"pattern-{PATTERNS.index(pattern)}.html"
    generate.export_html(make_model(GPTConfig(4, 700, 1, 1, 4)), encoding, path, {})
    found = in_node(path, "answer = given.map((text) => tokenizer.encode(text));", texts)
    for text, ids in zip(texts, found, strict=True):
        assert ids == encoding.encode_ordinary(text), repr(text)


def test_ids_of_gpt2s_own_tokenizer(folder):
    try:
        encoding = tokenizer.load_tokenizer("gpt2")
    except tokenizer.UserError as error:
        pytest.skip(f"GPT-2's tokenizer is not here: {error}")
    generate.export_html(make_model(GPTConfig(4, 50257, 1, 1, 4)), encoding, folder / "gpt2.html", {})
    texts = HARD + list(random_texts(500)) + (ROOT / "input.txt").read_text(encoding="utf-8")[:50_000].split("\n")
    found = in_node(folder / "gpt2.html", "answer = given.map((text) => tokenizer.encode(text));", texts)
    assert found == encoding.encode_ordinary_batch(texts)


def test_pieces_make_the_text(page):
    """Tokens that end inside a character give no text until it is whole, and a text cut there ends in U+FFFD."""
    encoding = make_encoding()
    ids = [encoding.encode_ordinary(text) for text in ("a 🦀, ébé\ufeff", "\ufefftime", "<|endoftext|>", "")]
    ids += [ids[0][:4], [240, 159, 320 - 1, 166, 128, 97]]
    found = in_node(page, "answer = given.map((ids) => tokenizer.pieces(ids));", ids)
    assert [len(pieces) for pieces in found] == [len(i) for i in ids]
    assert ["".join(pieces) for pieces in found] == [encoding.decode(i) for i in ids]
    assert "" in found[0]


# ----------------------------------------------------------------------------------------------------------------------
# 3. The file
# ----------------------------------------------------------------------------------------------------------------------
def test_nothing_in_the_data_becomes_part_of_the_page(folder, model):
    """Names, facts and tokens that try to end the script they stand in, or to be filled in once more."""
    token = HOSTILE.encode()
    ranks = {bytes([i]): i for i in range(256)} | {token[: n + 2]: 256 + n for n in range(63)}
    encoding = tokenizer.make_encoding(ranks, HOSTILE)
    path = folder / "hostile.html"
    generate.export_html(model, encoding, path, {"name": HOSTILE, HOSTILE: HOSTILE})
    page, plain = Page(path), Page(ROOT / "viewer.html")
    assert page.scripts == plain.scripts
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    content = json.loads(page.data["model"])
    assert content["name"] == content["facts"][HOSTILE] == HOSTILE
    assert [base64.b64decode(t) for t in content["tokenizer"]["tokens"]] == list(ranks)


def test_the_browser_is_told_to_run_two_scripts_and_to_fetch_nothing(page):
    tags, scripts = Page(page).tags, Page(page).scripts
    (policy,) = [attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2
    assert "default-src 'none'" in policy and "'unsafe-eval'" not in policy
    (allowed,) = re.findall(r"script-src ([^;]*);", policy)
    assert allowed.split() == [f"'sha256-{h}'" for h in hashes]
    for tag, attrs in tags:
        assert not {"src", "href", "srcset", "action"} & attrs.keys(), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)


def test_the_page_says_the_sizes_and_what_the_run_says(page, model):
    content = json.loads(Page(page).data["model"])
    assert content["name"] == "a-run" and content["facts"]["bits per byte"] == "1.234"
    assert content["facts"]["parameters"] == f"{model.num_params():,}"
    assert content["facts"]["tokens of context"] == "48" and content["facts"]["tokens in the vocabulary"] == "320"


def test_export_of_a_run(tiny_config, tmp_path, monkeypatch, capsys):
    """The page names the run, and its bits per byte at the checkpoint that it shows, not at the run's end."""
    monkeypatch.chdir(tmp_path)
    train(tiny_config(max_steps=4))
    bits = {e["step"]: f"{e['val_bpb']:.3f}" for e in read_log("log/tales") if e["event"] == "val"}
    assert len(set(bits.values())) == len(bits) == 3
    for source, name, step in (("log/tales", "last.html", 4), ("log/tales/ckpt_000002.pt", "first.html", 2)):
        assert generate.main(["--checkpoint", source, "--export", name]) == 0
        assert f"written to {name}; open it in a browser" in capsys.readouterr().err
        content = json.loads(Page(name).data["model"])
        assert content["name"] == "tales" and content["facts"]["bits per byte"] == bits[step]
    weights = GPT.from_pretrained("log/tales").transformer.wte.weight
    found = torch.tensor(in_node("last.html", "answer = Array.from(model.weights['wte.weight']);"))
    assert torch.equal(found.view_as(weights), weights.half().float())
    before = Path("last.html").read_bytes()
    assert generate.main(["--checkpoint", "log/tales", "--export", "last.html"]) == 2
    assert "hint: " in capsys.readouterr().err and Path("last.html").read_bytes() == before


def test_refusals_write_nothing(tmp_path, model):
    path, encoding = tmp_path / "a.html", make_encoding()
    big = GPT(GPTConfig(block_size=8, vocab_size=60_000, n_layer=1, n_head=1, n_embd=350))
    with pytest.raises(UserError, match=r"with 22,4\d\d,\d\d\d parameters would have 60 MB") as error:
        generate.export_html(big, encoding, path, {})
    assert error.value.hint
    too_large = make_model()
    with torch.no_grad():
        too_large.transformer.wpe.weight[3, 3] = 1e5
    with pytest.raises(UserError, match="float16"):
        generate.export_html(too_large, encoding, path, {})
    with pytest.raises(tokenizer.UserError, match="pattern"):
        generate.export_html(model, make_encoding(r"\w+|\W"), path, {})
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        generate.export(model, encoding, path, "a model")
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_the_template_is_short_enough_to_read():
    lines = TEMPLATE.splitlines()
    assert len([line for line in lines if line.strip()]) <= 450
    assert max(map(len, lines)) <= 120


def test_contrast():
    """Text on each of the page's colours, light and dark: at least 4.5 to 1, as WCAG 2.2 asks for (1.4.3)."""
    pairs = dict(re.findall(r"--(\w+): light-dark\((#\w+, #\w+)\)", TEMPLATE))
    assert {"page", "panel", "ink", "soft", "line", "chosen", "surprise", "attention"} <= pairs.keys()

    def luminance(colour):
        colour = colour[1:] if len(colour) == 7 else "".join(c + c for c in colour[1:])
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for theme in (0, 1):
        shade = {name: luminance(pair.split(", ")[theme]) for name, pair in pairs.items()}
        pairs_of_text = [("ink", ground) for ground in ("page", "panel", "surprise", "attention")]
        pairs_of_text += [("soft", "page"), ("soft", "panel")]
        edges = [("line", "page"), ("line", "panel"), ("chosen", "page"), ("chosen", "panel")]  # 1.4.11: 3 to 1
        for text, ground in pairs_of_text + edges:
            least = 3 if (text, ground) in edges else 4.5
            dark, light = sorted((shade[text], shade[ground]))
            assert (light + 0.05) / (dark + 0.05) >= least, (theme, text, ground)


# ----------------------------------------------------------------------------------------------------------------------
# 4. The page, driven as a person does
# ----------------------------------------------------------------------------------------------------------------------
KEYS = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "End": 35}


class Browser:
    """Headless Chromium on its debugging pipe: messages are JSON, each ended by a zero byte."""

    def __init__(self, program, profile):
        read_in, write_in, read_out, write_out = *os.pipe(), *os.pipe()

        def hand_over():  # Chromium reads from descriptor 3 and writes to 4; the copies outlive this program's exec
            high = os.dup2(read_in, 50), os.dup2(write_out, 51)
            os.dup2(high[0], 3), os.dup2(high[1], 4)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "about:blank"]
        silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        command = [program, f"--user-data-dir={profile}", *options]
        self.process = subprocess.Popen(command, preexec_fn=hand_over, close_fds=False, **silent)
        os.close(read_in), os.close(write_out)
        self.to, self.of = os.fdopen(write_in, "wb", 0), os.fdopen(read_out, "rb")
        self.number, self.session, self.events = 0, {}, []
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def receive(self):
        message = b""
        while not message.endswith(b"\0"):
            byte = self.of.read(1)
            assert byte, "the browser has ended"
            message += byte
        return json.loads(message[:-1])

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        self.to.write(json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "result" in answer, answer
        return answer["result"]

    def open(self, path, width=1280):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete' && $('layers').children.length > 0")

    def js(self, code):
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True, replMode=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition):
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(AssertionError):  # the page may not be there yet
                if self.js(condition):
                    return
            assert time.monotonic() < end, f"never came true: {condition}; {self.problems()}"
            time.sleep(0.02)

    def click(self, element):
        """A click in the middle of what a JavaScript expression names."""
        box = f"(({element}).scrollIntoView({{block: 'center'}}), ({element}).getBoundingClientRect())"
        at = self.js(f"(({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))({box})")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at, button="left", clickCount=1)

    def press(self, key, modifiers=0):
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
            self.call("Input.dispatchKeyEvent", type=kind, **code, **(text if kind == "keyDown" else {}))

    def type(self, text):
        self.call("Input.insertText", text=text)

    def problems(self):
        """What went wrong on the page, what asked for the user, and what the page wanted from elsewhere."""
        bad = {"Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening"}
        asked = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        asked = [p["request"]["url"] for p in asked if p["documentURL"].startswith("file:")]
        elsewhere = [url for url in asked if not url.startswith("file:")]
        return [e for e in self.events if e.get("method") in bad] + elsewhere


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    programs = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, programs)), None)
    if program is None or os.name == "nt":
        pytest.skip("Chromium, which opens the page, is not installed")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    with contextlib.suppress(AssertionError, OSError):
        browser.call("Browser.close")
    browser.process.wait(30)
    browser.to.close(), browser.of.close()


def text_of(browser):
    return browser.js("$('field').value")


def write(browser, text):
    """Puts a text into the field as pasting does, and waits until the model has read it."""
    browser.js(f"$('field').value = {json.dumps(text)}; $('field').dispatchEvent(new Event('input'))")
    browser.wait("model.ids.length === Math.min(ids.length + 1, model.block_size)")


def test_a_person_types_clicks_moves_and_generates(browser, page, model):
    browser.open(page)
    assert browser.js("document.title") == "See through a-run"
    browser.click("$('field')")
    browser.press("End", modifiers=2)  # Ctrl + End
    browser.type(" a small bo")
    browser.wait("$('field').value.endsWith('small bo') && chosen === ids.length && model.ids.length === chosen + 1")
    ids = make_encoding().encode_ordinary(text_of(browser))
    assert browser.js("ids") == ids
    assert browser.js("[...$('copy').children].map((span) => span.textContent).join('')") == text_of(browser)

    # The colour of a token is its loss, full from 8 nats on.
    with torch.no_grad():
        logits = model(torch.tensor([[CONFIG.vocab_size - 1, *ids]]))[0][0]
    losses = -logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    shades = browser.js("[...$('copy').children].map((span) => Number(span.style.getPropertyValue('--w')))")
    torch.testing.assert_close(torch.tensor(shades), (losses / 8).clamp(max=1), rtol=0, atol=1e-3)

    # The alternatives are the model's ten likeliest, and a click makes the text go on from there.
    expected = logits[-1].topk(10).indices.tolist()
    shown = browser.js("[...$('alternatives').children].map((item) => [...item.querySelectorAll('span')])"
                       ".map(([token, share]) => [token.textContent, share.textContent])")
    probs = logits[-1].softmax(-1)[expected].tolist()
    assert [float(share.strip("< \xa0%")) for _, share in shown] == pytest.approx([100 * p for p in probs], abs=0.06)
    assert [token for token, _ in shown] == browser.js(f"{expected}.map(visible)")
    last_row = browser.js("$('layers').lastElementChild.children[1].textContent")
    assert last_row == " | ".join(f"{token} {share}" for token, share in shown[:3])
    browser.click("$('alternatives').children[1].firstElementChild")
    browser.wait(f"ids.length === {len(ids) + 1} && model.ids.length === ids.length + 1")
    assert browser.js("ids") == [*ids, expected[1]]
    browser.click("$('tokens').children[3]")
    assert browser.js("[chosen, $('from').textContent === visible(ids[2])]") == [2, True]
    assert "number" in browser.js("$('verdict').textContent")
    third = logits[2].topk(3).indices.tolist()
    browser.click("$('alternatives').children[2].firstElementChild")
    browser.wait("ids.length === 3 && model.ids.length === 4")
    assert browser.js("ids") == [*ids[:2], third[2]]

    # Moving the layer changes the attention and its numbers.
    before = browser.js("[...$('tokens').children].map((button) => button.ariaLabel)")
    browser.js("$('layer').focus()")
    browser.press("ArrowRight")
    assert browser.js("$('layer-now').value") == "1"
    after = browser.js("[...$('tokens').children].map((button) => button.ariaLabel)")
    assert len(after) == len(before) and after != before
    shown = browser.js("[...$('tokens').children].map((button) => button.style.getPropertyValue('--w') ** 2)")
    assert sum(shown) == pytest.approx(1, abs=1e-3)

    # Generating goes on over the end of the block, as torch does.
    browser.js("$('temperature').value = 0; $('count').value = 60")
    start = browser.js("ids")
    browser.click("$('generate')")
    browser.wait("$('generate').textContent === 'Generate' && $('status').textContent.includes('a second')")
    expected = model.generate(torch.tensor([[319, *start]]), 60, temperature=0, stop_token=319)[0, 1:].tolist()
    assert browser.js("ids") == [i for i in expected if i != 319]
    assert browser.problems() == []


def test_stop_typing_while_it_writes_and_wrong_numbers(browser, page):
    browser.open(page)
    browser.js("$('count').value = 10000; $('generate').click()")
    browser.wait("ids.length > 10")
    growing = browser.js("[$('generate').textContent, $('field').value === tokenizer.pieces(ids).join(''), ids.length]")
    assert growing[:2] == ["Stop", True] and growing[2] < 10000
    browser.click("$('generate')")
    browser.wait("$('generate').textContent === 'Generate'")
    length = browser.js("ids.length")
    time.sleep(0.1)
    assert browser.js("ids.length") == length < 10000
    browser.js("$('generate').click()")
    browser.wait(f"ids.length > {length}")
    write(browser, "A boat")
    browser.wait("$('generate').textContent === 'Generate'")
    assert text_of(browser) == "A boat"
    for bad in ("-1", ""):
        browser.js(f"$('temperature').value = '{bad}'; $('generate').click()")
        assert browser.js("$('generate').textContent") == "Generate"
    assert text_of(browser) == "A boat" and browser.problems() == []


def test_keyboard_alone(browser, page):
    """The order of the Tab key is that of the page; the tokens are one stop, and arrow keys move among them."""
    browser.open(page)
    stops = []
    for _ in range(20):
        browser.press("Tab")
        stops.append(browser.js("(({id, parentElement, localName}) => id || parentElement.id || localName)"
                                "(document.activeElement)"))
    assert stops[:9] == ["field", "generate", "temperature", "top-k", "count", "layer", "head", "tokens", "button"]
    browser.js("$('field').focus()")
    browser.press("End", modifiers=2)
    browser.type(" a xyz")
    browser.wait("chosen === ids.length && model.ids.length === ids.length + 1 && ids.length > 4")
    browser.js("[...$('tokens').children].find((button) => button.tabIndex === 0).focus()")
    at = browser.js("[...$('tokens').children].indexOf(document.activeElement)")
    browser.press("ArrowLeft")
    assert browser.js("[...$('tokens').children].indexOf(document.activeElement)") == at - 1
    assert browser.js("$('numbers').textContent === document.activeElement.ariaLabel")
    browser.press("Enter")
    assert browser.js(f"chosen === {at - 2} && document.activeElement === $('tokens').children[{at - 1}]")


def test_a_screen_reader_gets_a_name_for_everything(browser, page):
    browser.open(page)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("textbox", "button", "slider", "spinbutton", "region", "table")
    controls = [n for n in nodes if not n["ignored"] and n["role"]["value"] in roles]
    named = [(n["role"]["value"], n.get("name", {}).get("value", "").strip()) for n in controls]
    assert len(named) > 20
    assert [role for role, name in named if not name] == []
    assert {"Text", "Generate", "temperature", "top-k", "tokens", "layer", "head"} <= {name for _, name in named}, named


@pytest.mark.parametrize("width", [1280, 375])
def test_no_width_needs_scrolling_to_the_side(browser, page, width):
    browser.open(page, width)
    write(browser, "x" * 300 + "\n" + "字" * 100)
    assert browser.js("document.documentElement.scrollWidth") <= width


def test_a_text_longer_than_the_context(browser, page):
    """Of tokens that the window leaves out nothing is known: they are grey, and the caret chooses the first after."""
    browser.open(page)
    write(browser, "a small boat " * 20)
    left_out = browser.js("ids.length + 1 - model.block_size")
    assert left_out > 10
    grey = browser.js("[...$('copy').children].map((span) => span.className.includes('unseen'))")
    assert grey == [i < left_out - 1 for i in range(len(grey))]  # the first token of the window is not predicted
    browser.js("$('field').setSelectionRange(0, 0)")
    browser.js("$('field').dispatchEvent(new Event('keyup'))")
    assert browser.js("chosen") == left_out
    assert browser.js("[...$('copy').children].findIndex((span) => span.className.includes('chosen'))") == left_out
    assert browser.problems() == []


def test_the_field_lies_exactly_on_its_coloured_copy(browser, page):
    """Both break the same lines: with and without an empty last line they are of one height, and so are their lines."""
    browser.open(page, 375)
    for text in ("a", "word " * 80, "a\n\nb\n", "été 你好 🐚 नमस्ते " * 10, "x" * 200 + "\n" * 9):
        write(browser, text)
        field = browser.js("[$('field').clientWidth, $('field').clientHeight, $('field').scrollHeight]")
        copy = browser.js("[$('copy').clientWidth, $('copy').clientHeight, $('copy').scrollHeight]")
        assert field == copy and field[1] == field[2], text


def test_hostile_text_and_tokenizer_run_nothing(browser, folder, model):
    token = b"<img src=x onerror=alert(1)>"
    ranks = {bytes([i]): i for i in range(256)} | {token[: n + 2]: 256 + n for n in range(len(token) - 1)}
    ranks |= {b"</script>" + b"x" * n: len(ranks) + n for n in range(319 - len(ranks))}
    path = folder / "hostile-driven.html"
    encoding = tokenizer.make_encoding(ranks, "hostile")
    generate.export_html(model, encoding, path, {"name": HOSTILE, HOSTILE: HOSTILE})
    browser.open(path)
    text = HOSTILE + token.decode() + "javascript:alert(1)"
    tags = browser.js("document.querySelectorAll('img, script').length")
    write(browser, text)
    browser.js(f"branch({ranks[token]})")
    browser.wait("model.ids.length === model.block_size")
    assert token.decode().replace(" ", "·") in browser.js("$('tokens').textContent")
    assert HOSTILE in browser.js("$('facts').textContent") and browser.js("document.title") == f"See through {HOSTILE}"
    assert browser.js("document.querySelectorAll('img, script').length") == tags == 3
    assert browser.js("typeof window.hacked") == "undefined"
    assert browser.problems() == []
    # Even code that made HTML of it, or fetched something, would be stopped by the policy.
    browser.js(
        "window.stopped = []; addEventListener('securitypolicyviolation', (e) => stopped.push(e.effectiveDirective));"
        "try { document.body.innerHTML = '<img src=x onerror=\"window.hacked = 1\">' } catch {}"
        "new Image().src = 'https://localhost/'; fetch('https://localhost/').catch(() => 0); 0"
    )
    browser.wait("['require-trusted-types-for', 'img-src', 'connect-src'].every((name) => stopped.includes(name))")
    assert browser.js("typeof window.hacked") == "undefined"
