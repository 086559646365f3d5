"""
hellaswag.py: the fast scores equal a plain reference, requests equal the harness's rule, bad input is named, and
fetching leaves a whole file or none. Offline; models are tiny and random.

    python -m pytest tests/test_hellaswag.py
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import hellaswag
import tokenizer
from hellaswag import Example, UserError, evaluate, load_examples, make_batches, make_request, score, wilson
from train_gpt2 import GPT, GPTConfig, Runtime, TrainConfig, configure_optimizers, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
ITEMS = ROOT / "tests" / "data" / "hellaswag_items.jsonl"


@pytest.fixture(scope="module")
def encoding():
    """300 tokens: a few merges, so that tokens and letters differ."""
    words = " ".join(e.context + " " + " ".join(e.endings) for e in load_examples(ITEMS))
    return tokenizer.make_encoding(tokenizer.train_bpe([words], 300), "test")


def random_model(block_size, vocab_size=300, **sizes):
    """Random weights, larger than at initialization, so that the losses differ by much more than the tolerance, and
    each token attends to a few others: were they read from another item, it would show."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size, vocab_size, n_layer=2, n_head=2, n_embd=32, **sizes))
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = name.endswith("weight") and p.dim() == 1  # of a LayerNorm
            p.copy_(torch.randn_like(p) * (0.3 if "c_attn" in name else 0.1) + gain)
    return model


def words(n, seed):
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(97, 123, (n, 4), generator=generator).tolist()
    return " ".join("".join(map(chr, word)) for word in letters)


def example(context, endings, label=0, ind=0):
    return Example(ind, "Walking", context, "", context, tuple(endings), label)


def plain_losses(model, encoding, e, style):
    """(sums, means) of the four endings, as simply as can be: one row at a time, everything computed, fp32."""
    sums, means = [], []
    for ending in e.endings:
        if style == "completion":
            context, tokens = encoding.encode_ordinary(e.context), encoding.encode_ordinary(" " + ending)
            row = (context + tokens)[-model.config.block_size :]
        else:
            query, continuation, _ = harness_request(e)[e.endings.index(ending)]
            context = encoding.encode_ordinary(query)
            tokens = encoding.encode_ordinary(query + continuation)[len(context) :]
            row = (context + tokens)[-model.config.block_size - 1 :]
        with torch.no_grad():
            logits, _ = model(torch.tensor([row[: model.config.block_size]]))
        n = min(len(tokens), len(row) - 1)
        loss = F.cross_entropy(logits[0][: len(row) - 1][-n:], torch.tensor(row[-n:]), reduction="none")
        sums.append(loss.sum().item())
        means.append(loss.mean().item())
    return sums, means


def harness_request(e):
    """(context, continuation, characters) for each ending by the harness's published rule, written down anew: clean
    each text, put a space before the choice, hand the spaces at the end of the context over to the continuation."""

    def clean(text):
        return re.sub("\\[.*?\\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    query = clean(e.activity_label + ": " + e.ctx_a + " " + e.ctx_b.capitalize())
    spaces = len(query) - len(query.rstrip())
    choices = [clean(ending) for ending in e.endings]
    return [(query[: len(query) - spaces], " " * spaces + " " + choice, len(choice)) for choice in choices]


LENGTHS = [(1, 1), (1, 9), (2, 3), (5, 1), (9, 12), (17, 4), (30, 2), (12, 20)]  # words of context and of endings


@pytest.mark.parametrize("style", hellaswag.STYLES)
@pytest.mark.parametrize("tokens_per_batch", [1, 300, 100_000])
def test_losses_equal_a_plain_reference(encoding, style, tokens_per_batch):
    model = random_model(512)  # V = 300 is padded to 320 inside
    examples = [
        example(words(c, 10 * c + e), [words(1 + (e + 3 * k) % (e + 1), 100 * c + k) for k in range(4)], k % 4, ind=k)
        for k, (c, e) in enumerate(LENGTHS)
    ]
    examples.append(example("a", ["b", "c", "!", words(40, 7)], 2, ind=99))  # endings of one token
    examples += load_examples(ITEMS)[:12]
    result = evaluate(model, examples, encoding, style=style, tokens_per_batch=tokens_per_batch)
    assert result["n"] == len(examples) and result["cut"] == 0
    for e, item in zip(examples, result["items"], strict=True):
        sums, means = plain_losses(model, encoding, e, style)
        assert item["ind"] == e.ind and item["label"] == e.label
        assert item["losses"] == pytest.approx(means, abs=1e-4)
        assert item["sums"] == pytest.approx(sums, abs=1e-3, rel=1e-5)
        norms = means
        if style == "lm-eval":
            norms = [total / request[2] for total, request in zip(sums, harness_request(e), strict=True)]
        assert item["prediction"] == sums.index(min(sums))
        assert item["prediction_norm"] == norms.index(min(norms))
    assert result["correct"] == sum(i["prediction"] == i["label"] for i in result["items"])
    assert result["acc_norm"] == sum(i["prediction_norm"] == i["label"] for i in result["items"]) / len(examples)


@pytest.mark.parametrize("style", hellaswag.STYLES)
@pytest.mark.parametrize(("block_size", "rows"), [(16, 1), (40, 7), (512, 10_000)])
def test_scores_equal_those_of_each_row_by_itself(encoding, style, block_size, rows):
    """score() against the model's own forward pass on a context and one ending, without cache, padding or batch. In the
    short blocks some items are cut, and all of those are read together; the others by the length of their context."""
    model = random_model(block_size).eval()
    lengths = [(1, 1), (1, 3), (2, 2), (2, 5), (3, 1), (9, 1), (9, 12), (2, 30), (40, 2)] * 2
    examples = [
        example(words(c, 7 * c + k), [words(1 + (e + 2 * k + j) % (e + 2), 50 * c + k + 9 * j) for j in range(4)])
        for k, (c, e) in enumerate(lengths)
    ]
    examples += [example("a", ["b", "c", "!", words(2, 7)]), example("a", ["b", "c", "d", "e"])]
    requests = [make_request(e, encoding, style, block_size) for e in examples]
    assert {not r.context for r in requests} == ({True, False} if block_size < 512 else {False})  # whether it is cut
    groups = {}
    for i, request in enumerate(requests):
        groups.setdefault(len(request.context), []).append(i)
    assert max(map(len, groups.values())) > 1
    checked = 0
    for batch in groups.values():
        with torch.no_grad():
            scores = score([requests[i] for i in batch], model, torch.device("cpu"), rows)
        for i, four in zip(batch, scores, strict=True):
            assert four == pytest.approx(plain_losses(model, encoding, examples[i], style)[0], abs=1e-4, rel=1e-6)
            assert max(four) - min(four) > 0.01
            checked += 1
    assert checked == len(examples)


@pytest.mark.parametrize("style", hellaswag.STYLES)
@pytest.mark.parametrize("block_size", [8, 24, 64])
def test_what_is_longer_than_the_block_is_cut_on_the_left(encoding, style, block_size):
    model = random_model(block_size)
    examples = [
        example(words(60, 1), [words(1, 2), words(3, 3), words(6, 4), words(2, 5)]),  # the context alone is too long
        example(words(4, 1), [words(1, 2), words(50, 3), words(6, 4), words(2, 5)]),  # an ending alone is too long
        example("a", ["b", "c", "d", "e"]),
    ]
    result = evaluate(model, examples, encoding, style=style, tokens_per_batch=64)
    assert result["cut"] == (3 if style == "lm-eval" and block_size == 8 else 2)  # "Walking: A" is long in such a block
    for e, item in zip(examples, result["items"], strict=True):
        assert item["losses"] == pytest.approx(plain_losses(model, encoding, e, style)[1], abs=1e-4)


def test_no_ending_sees_another(encoding):
    """Changing three endings to anything leaves the loss of the fourth alone."""
    model = random_model(256)
    fixed = words(6, 1)
    losses = set()
    for seed in range(3):
        e = example("Mira ran to the sea.", [words(9, seed), words(2, seed + 9), fixed, words(14, seed + 20)])
        losses.add(round(evaluate(model, [e], encoding)["items"][0]["losses"][2], 4))
    assert len(losses) == 1


def test_padded_ids_take_no_probability(encoding):
    """V = 300 is stored as 320 rows. Were the other 20 scored, huge weights in them would change every loss."""
    model, examples = random_model(256), load_examples(ITEMS)[:4]
    before = [item["losses"] for item in evaluate(model, examples, encoding)["items"]]
    with torch.no_grad():
        model.lm_head.weight[300:] = 50.0
    after = [item["losses"] for item in evaluate(model, examples, encoding)["items"]]
    assert before == after


def test_requests_follow_the_harness():
    """Against texts worked out by hand from the published rule."""
    e = Example(
        0, "How to whistle", "[header] How to whistle [title] Wet your lips. [step] Use  water.", "the BOY [substeps]",
        "unused", ("Blow [sic] softly.", " Sing.", "[title]", "Stop  it"), 1,
    )  # fmt: skip
    query, choices = hellaswag.harness_texts(e)
    assert query == "How to whistle: How to whistle. Wet your lips. Use water. The boy "
    assert choices == ["Blow softly.", "Sing.", "", "Stop it"]
    assert harness_request(e)[0] == (query[:-1], "  Blow softly.", 12)
    encoding = tokenizer.make_encoding({bytes([b]): b for b in range(256)}, "bytes")
    request = make_request(e, encoding, "lm-eval", 1024)
    assert bytes(request.context).decode() == query[:-1]
    assert [bytes(ending).decode() for ending in request.endings] == ["  " + choice for choice in choices]
    assert request.characters == [12, 5, 0, 7]
    item = hellaswag.judge(e, request, [1.0, 1.0, 0.1, 1.0], "lm-eval")
    assert item["prediction"] == 2 and item["prediction_norm"] == 0  # the empty one is never chosen by characters


def test_completion_reads_the_context_as_it_stands():
    encoding = tokenizer.make_encoding({bytes([b]): b for b in range(256)}, "bytes")
    e = example("[header] Rain  fell. He", ["ran <|endoftext|>", "b", "c", "d"])
    request = make_request(e, encoding, "completion", 1024)
    assert bytes(request.context).decode() == "[header] Rain  fell. He"
    assert bytes(request.endings[0]).decode() == " ran <|endoftext|>"


def test_an_empty_query_starts_from_end_of_text(encoding):
    model = random_model(128)
    e = Example(0, "", "[header]", "", "[header]", ("one", "two", "three", "four"), 0)
    request = make_request(e, encoding, "lm-eval", 128)
    assert request.context == [encoding.n_vocab - 1]
    assert all(math.isfinite(loss) for loss in evaluate(model, [e], encoding, style="lm-eval")["items"][0]["losses"])


def test_batches_hold_every_item_once_within_the_budget():
    sizes = [(5, 3), (90, 9), (30, 2), (30, 4), (7, 1), (300, 2), (1, 60), (0, 31), (0, 2), (30, 90), (30, 3), (5, 1)]
    requests = [hellaswag.Request([0] * c, [[0] * n, [0], [0], [0]], [1] * 4, [1] * 4) for c, n in sizes]
    batches = list(make_batches(requests, 128))
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    for batch in batches:
        contexts, endings = zip(*(sizes[i] for i in batch), strict=True)
        assert len(set(contexts)) == 1  # they are read together, without padding
        read = len(batch) * (contexts[0] + 4 * (max(endings) - 1))  # the last token is only predicted
        assert len(batch) == 1 or read <= 128
    assert {2, 3, 10} in map(set, batches) and {0, 11} in map(set, batches)  # 3 x (30 + 4 x 3) = 126
    assert list(make_batches([], 128)) == []


def test_evaluate_leaves_the_model_as_it_was(encoding):
    model = random_model(256, dropout=0.5)
    model.train()
    state, graphs = torch.get_rng_state(), []
    hook = model.transformer.ln_f.register_forward_hook(lambda module, x, y: graphs.append(y.requires_grad))
    first = evaluate(model, load_examples(ITEMS)[:3], encoding)
    hook.remove()
    assert model.training and graphs and not any(graphs)
    assert torch.equal(state, torch.get_rng_state())  # no dropout was drawn
    assert evaluate(model.eval(), load_examples(ITEMS)[:3], encoding) == first and not model.training


def test_cudnns_attention_is_off_while_scoring_and_then_as_before(encoding, monkeypatch):
    """Also after an error; and what was off stays off."""
    model, seen = random_model(256), []
    model.transformer.ln_f.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    try:
        for before in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(before)
            evaluate(model, load_examples(ITEMS)[:3], encoding)
            assert torch.backends.cuda.cudnn_sdp_enabled() == before
        torch.backends.cuda.enable_cudnn_sdp(True)
        monkeypatch.setattr(model, "head", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(model, load_examples(ITEMS)[:3], encoding)
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    assert seen and not any(seen)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("style", hellaswag.STYLES)
def test_losses_that_are_not_finite_are_no_score(encoding, style, number):
    """By nan no ending is likelier than another, and the first would count as the answer: 25 %."""
    model = random_model(256)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[3] = number
    with pytest.raises(UserError, match="not finite"):
        evaluate(model, load_examples(ITEMS)[:3], encoding, style=style)


def test_shares_of_the_examples_add_up(encoding):
    """What the trainer does: every process scores examples[rank::world_size], and the counts are added."""
    model, examples = random_model(256), load_examples(ITEMS)
    whole = evaluate(model, examples, encoding)
    parts = [evaluate(model, examples[rank::3], encoding) for rank in range(3)]
    for key in ("n", "correct", "correct_norm"):
        assert sum(part[key] for part in parts) == whole[key]
    nothing = evaluate(model, [], encoding)
    assert nothing["n"] == nothing["correct"] == 0 and math.isnan(nothing["acc"])


class OneOfThree:
    """What score_on_all_ranks needs of the trainer's Runtime, for processes that are played one after the other."""

    world_size, device, autocast = 3, torch.device("cpu"), staticmethod(contextlib.nullcontext)

    def __init__(self, rank, counts, another_lacks_items=False):
        self.rank, self.counts, self.another_lacks_items = rank, counts, another_lacks_items

    def sum(self, values):
        self.counts.append(values)
        return [sum(column) for column in zip(*self.counts, strict=True)]

    def any(self, flag):
        return flag or self.another_lacks_items

    def print(self, *args):
        pass


def test_scores_while_training_are_those_of_all_items(encoding, tmp_path, monkeypatch):
    model, counts = random_model(256).train(), []
    whole = evaluate(model, load_examples(ITEMS), encoding)
    expected = dict(acc=whole["acc"], acc_norm=whole["acc_norm"])
    assert expected["acc"] != expected["acc_norm"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hellaswag, "__file__", str(tmp_path / "hellaswag.py"))
    assert hellaswag.score_on_all_ranks(model, encoding, one_of_one()) == {}  # the items are not there
    hellaswag.default_path().parent.mkdir()
    shutil.copy(ITEMS, hellaswag.default_path())
    assert hellaswag.score_on_all_ranks(model, None, one_of_one()) == {}  # there is no tokenizer
    assert hellaswag.score_on_all_ranks(model, encoding, one_of_one()) == expected and model.training
    scores = [hellaswag.score_on_all_ranks(model, encoding, OneOfThree(rank, counts)) for rank in range(3)]
    assert scores[2] == expected and [n for n, _, _ in counts] == [14, 13, 13]  # the last process has all counts
    assert hellaswag.score_on_all_ranks(model, encoding, OneOfThree(0, [], another_lacks_items=True)) == {}


def test_the_tokenizer_must_fit_the_model(encoding):
    with pytest.raises(UserError, match="300 tokens, the model 257"):
        evaluate(random_model(64, vocab_size=257), load_examples(ITEMS)[:1], encoding)


def test_wilson_interval():
    """Against figures computed with statsmodels' proportion_confint(method="wilson")."""
    assert wilson(2967, 10042) == pytest.approx((0.28661, 0.30446), abs=2e-5)
    assert wilson(10, 40) == pytest.approx((0.14187, 0.40194), abs=2e-5)
    assert wilson(0, 5) == pytest.approx((0.0, 0.43448), abs=2e-5)
    assert wilson(0, 0) == (0.0, 1.0)


# ----------------------------------------------------------------------------------------------------------------------
# Items
# ----------------------------------------------------------------------------------------------------------------------
GOOD = dict(
    ind=3, activity_label="Rowing", ctx_a="A man rows.", ctx_b="he", ctx="A man rows. he", endings=list("abcd"), label=1
)  # fmt: skip


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n", "utf-8")
    return path


def test_items_are_read_in_all_their_forms(tmp_path):
    bare = dict(ctx="Only a context.", endings=list("abcd"), label="2")
    parts = {k: v for k, v in GOOD.items() if k != "ctx"}
    first, second, third = load_examples(write(tmp_path / "x.jsonl", GOOD, "", bare, parts))
    assert first == Example(3, "Rowing", "A man rows.", "he", "A man rows. he", ("a", "b", "c", "d"), 1) == third
    assert second.label == 2 and second.ctx_a == second.context == "Only a context." and second.ind == 2


@pytest.mark.parametrize(
    "bad, message",
    [
        ("<html>404: Not Found</html>", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ({**GOOD, "endings": list("abc")}, "endings is ['a', 'b', 'c']"),
        ({**GOOD, "endings": list("abcde")}, "endings is ['a', 'b', 'c', 'd', 'e']"),
        ({**GOOD, "endings": "abcd"}, "endings is 'abcd'"),
        ({**GOOD, "endings": ["a", "b", " ", "d"]}, "endings is ['a', 'b', ' ', 'd']"),
        ({**GOOD, "endings": ["a", "b", 3, "d"]}, "endings is ['a', 'b', 3, 'd']"),
        ({**GOOD, "endings": {"a": 1, "b": 2, "c": 3, "d": 4}}, "endings is {'a': 1"),
        ({**GOOD, "label": 4}, "label is 4"),
        ({**GOOD, "label": -1}, "label is -1"),
        ({**GOOD, "label": True}, "label is True"),
        ({**GOOD, "label": "x"}, "label is 'x'"),
        ({**GOOD, "label": 1.0}, "label is 1.0"),
        ({k: v for k, v in GOOD.items() if k != "label"}, "label is None"),
        ({**GOOD, "ctx": " ", "ctx_a": "", "ctx_b": ""}, "context is empty"),
        ({**GOOD, "activity_label": 7}, "activity_label is 7"),
        ({**GOOD, "ctx": ["A", "man"]}, "ctx is ['A', 'man']"),
        ({**GOOD, "label": [1]}, "label is [1]"),
        ({**GOOD, "ctx": "half a letter: \ud83d"}, "surrogates"),
        ({**GOOD, "ctx_b": "he \udc80"}, "surrogates"),
        ("[" * 90_000, "not JSON"),
        ({**GOOD, "ctx": "a" + " " * 1_200_000 + "b"}, "1,200,"),  # of these tiktoken's stack would overflow
        ('{"ctx": ' + "[" * 40_000 + "]" * 40_000 + "}", "not JSON"),
    ],
)
def test_a_bad_item_is_named_with_its_line(tmp_path, bad, message):
    with pytest.raises(UserError, match=re.escape("x.jsonl, line 2: ")) as caught:
        load_examples(write(tmp_path / "x.jsonl", GOOD, bad, GOOD))
    assert message in str(caught.value) and caught.value.hint


def test_files_that_are_no_items(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    cases = {"none.jsonl": "No such file", "empty.jsonl": "no items", "binary.jsonl": "utf-8", ".": "cannot read"}
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_examples(tmp_path / name)


def test_the_items_that_are_shipped():
    examples = load_examples(ITEMS)
    assert len(examples) == 40 and len({e.context for e in examples}) == 40
    assert [sum(e.label == k for e in examples) for k in range(4)] == [10, 10, 10, 10]
    ranks = [sorted(map(len, e.endings)).index(len(e.endings[e.label])) for e in examples]
    assert max(ranks.count(r) for r in range(4)) <= 14  # the length gives nothing away
    for line in ITEMS.read_text("utf-8").splitlines():
        item = json.loads(line)
        assert item.keys() >= {*GOOD, "source_id", "split"}
        assert item["ctx"] == f"{item['ctx_a']} {item['ctx_b']}".strip() and len(set(item["endings"])) == 4


# ----------------------------------------------------------------------------------------------------------------------
# Fetching
# ----------------------------------------------------------------------------------------------------------------------
def rows(count, **changes):
    return [{**GOOD, "ind": i, "label": str(i % 4), **changes} for i in range(count)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(rows) puts a parquet file with these rows in the place of the Hub's; only the transfer is replaced. Returns
    the list of what is asked for."""
    import huggingface_hub
    import pyarrow
    import pyarrow.parquet

    asked = []

    def put(content):
        file = tmp_path / "the hub" / "validation.parquet"
        file.parent.mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), file)

        def transfer(repo, name, **options):
            asked.append((repo, name, options["repo_type"], options["revision"]))
            return str(file)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", transfer)
        return asked

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(hellaswag, "__file__", str(tmp_path / "here" / "hellaswag.py"))
    return put


def test_download_writes_the_whole_split(hub, capsys):
    asked = hub(rows(10_042))
    assert hellaswag.main(["--download"]) == 0
    assert "10,042 items" in capsys.readouterr().out
    assert asked == [("Rowan/hellaswag", "data/validation-00000-of-00001.parquet", "dataset", hellaswag.REVISION)]
    assert re.fullmatch("[0-9a-f]{40}", hellaswag.REVISION)
    path = hellaswag.default_path("val")
    assert path == Path("hellaswag/hellaswag_val.jsonl") and path.exists()
    assert json.loads(path.read_text("utf-8").splitlines()[7]) == {**GOOD, "ind": 7, "label": "3"}  # as on the Hub
    assert len(load_examples(path)) == 10_042
    assert [p.name for p in path.parent.iterdir()] == ["hellaswag_val.jsonl"]


@pytest.mark.parametrize(
    "content, message",
    [
        (rows(10_041), "10,041 items, not 10,042"),
        (rows(10_042, endings=["a"]), "item 1: endings is ['a']"),
        (rows(10_042, label=""), "item 1: label is ''"),  # as in the test split, which hides its labels
        ([{"text": "other data"}] * 10_042, "item 1: endings is None"),
    ],
)
@pytest.mark.parametrize("existing", [None, "older file"])
def test_a_failed_download_leaves_nothing(hub, capsys, content, message, existing):
    hub(content)
    path = Path("items.jsonl")
    if existing:
        path.write_text(existing)
    assert hellaswag.main(["--download", "--file", str(path)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and message in err and "\nhint: " in err and err.count("\n") == 2 and not out
    assert [p.read_text() for p in Path(".").iterdir()] == ([existing] if existing else [])


def test_a_lost_connection_is_one_line_whatever_the_client_says_meanwhile(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    def retry_in_vain(*args, **options):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("The line is dead. Please try this and that.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", retry_in_vain)
    logger, seen, handler = logging.getLogger("huggingface_hub"), [], logging.Handler()
    handler.emit = seen.append
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # the client's own default
    try:
        assert hellaswag.main(["--download", "--file", str(tmp_path / "items.jsonl")]) == 2
    finally:
        logger.removeHandler(handler)
    assert not seen and list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.splitlines()[0].endswith("ConnectionError: The line is dead.")


def test_a_page_of_html_in_place_of_the_file(tmp_path, monkeypatch):
    import huggingface_hub

    write(tmp_path / "page", "<html>sign in</html>")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **options: str(tmp_path / "page"))
    with pytest.raises(UserError, match="ArrowInvalid"):
        hellaswag.download("val", tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------
def write_checkpoint(path, model, step):
    """A checkpoint as a run writes it. Returns its path."""
    rt = one_of_one()
    cfg = TrainConfig.from_recipe("tales")
    state = dict(step=step, best=[1.5, step], config=asdict(cfg), data="a hash")
    save_checkpoint(path, model, configure_optimizers(model, cfg, "cpu"), rt, **state)
    return path


def one_of_one():
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Runtime(0, 1, torch.device("cpu"), torch.float32, False, [], scaler)


@pytest.fixture(scope="module")
def checkpoint(encoding, tmp_path_factory):
    """A run's folder with a checkpoint and the tokenizer that belongs to it."""
    folder = tmp_path_factory.mktemp("work") / "log" / "tiny"
    path = write_checkpoint(folder / "ckpt_000100.pt", random_model(96), 100)
    tokenizer.save_tokenizer(encoding, folder / "tokenizer.json")
    return path


def test_command_line_scores_a_checkpoint(checkpoint, tmp_path, capsys, encoding):
    details, picture = tmp_path / "details.jsonl", tmp_path / "bars.png"
    argv = ["--model", checkpoint, "--file", ITEMS, "--limit", 10, "--show", 2, "--details", details, "--plot", picture]
    assert hellaswag.main([str(a) for a in [*argv, "--device", "cpu", "--dtype", "float32"]]) == 0
    out = capsys.readouterr().out
    examples = load_examples(ITEMS)[:10]
    model = GPT.from_pretrained(checkpoint)
    ours = {style: evaluate(model, examples, encoding, style=style) for style in hellaswag.STYLES}
    for result in ours.values():
        low, high = wilson(result["correct_norm"], 10)
        assert f"{100 * result['acc_norm']:.2f} %  {100 * low:5.2f} to {100 * high:5.2f}" in out
    for figure in ("28.59", "29.55", "37.52", "43.20", "38.42", "48.93", "28.92", "31.14", "40.04", "50.89"):
        assert figure in out
    assert out.count("<- right") == 2 and examples[1].endings[3] in out and examples[2].context not in out
    assert out.count("cut on the left") == 1  # 96 tokens are too few for some of them; said once
    written = [json.loads(line) for line in details.read_text("utf-8").splitlines()]
    expected = [(style, item) for style, result in ours.items() for item in result["items"]]
    for line, (style, item) in zip(written, expected, strict=True):
        assert line["style"] == style and line.keys() - {"style"} == item.keys()
        assert line["losses"] == pytest.approx(item["losses"]) and line["sums"] == pytest.approx(item["sums"])
        assert (line["ind"], line["label"], len(line["losses"])) == (item["ind"], item["label"], 4)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_newest_checkpoint_is_the_default(checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(checkpoint.parent.parent.parent)
    assert hellaswag.main(["--file", str(ITEMS), "--limit", "2", "--style", "completion", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "ckpt_000100.pt" in out and "lm-eval style" not in out


def test_a_newer_checkpoint_that_does_not_load_is_passed_over(checkpoint, tmp_path, monkeypatch, capsys):
    """In the same run and in a newer one. By its name a damaged one is refused, not replaced."""
    shutil.copytree(checkpoint.parent, tmp_path / "log" / "a-run")
    shutil.copytree(checkpoint.parent, tmp_path / "log" / "b-run")
    whole, log = checkpoint.read_bytes(), tmp_path / "log"
    (log / "a-run" / "ckpt_000200.pt").write_bytes(whole[: len(whole) // 2])
    (log / "b-run" / "ckpt_000100.pt").write_bytes(whole[:-50])
    for age, name in enumerate(("b-run/ckpt_000100.pt", "a-run/ckpt_000200.pt", "a-run/ckpt_000100.pt")):
        os.utime(log / name, (10**9 - age, 10**9 - age))
    monkeypatch.chdir(tmp_path)
    argv = ["--file", str(ITEMS), "--limit", "2", "--style", "completion", "--device", "cpu"]
    assert hellaswag.main(argv) == 0
    assert f"model {Path('log/a-run/ckpt_000100.pt')}" in capsys.readouterr().out
    assert hellaswag.main([*argv, "--model", "log/a-run/ckpt_000200.pt"]) == 2
    assert "ckpt_000200.pt is damaged" in capsys.readouterr().err


def script(*argv, **environment):
    """hellaswag.py in a process of its own, not waited for."""
    words = [sys.executable, str(ROOT / "hellaswag.py"), "--device", "cpu", *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("system", ["ascii", "cp1252"])
def test_a_terminal_that_is_not_utf8_shows_what_it_can(checkpoint, tmp_path, system):
    items = write(tmp_path / "x.jsonl", dict(ctx="你好 Ann fährt", endings=["été", "a", "b", "c"], label=0))
    with script("--model", checkpoint, "--file", items, "--show", 1, PYTHONIOENCODING=system) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    shown = ("?? Ann fährt", "été") if system == "cp1252" else ("?? Ann f?hrt", "?t?")
    assert all(text in out.decode(system) for text in shown)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal for a reader that has gone")
def test_a_reader_that_leaves_early(checkpoint):
    with script("--model", checkpoint, "--file", ITEMS, "--limit", 2) as process:
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 1 and "Error" not in err and "Traceback" not in err and "Exception" not in err


def test_ctrl_c_ends_without_a_traceback(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(hellaswag, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert hellaswag.main(["--model", str(checkpoint), "--file", str(ITEMS)]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def outputs(checkpoint, tmp_path, monkeypatch):
    """A working directory with what must not be written to: items, model, a pipe, a link, a directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hellaswag, "evaluate", lambda *_, **__: pytest.fail("it begins to score"))
    shutil.copy(ITEMS, "i.jsonl")
    shutil.copy(checkpoint, "ckpt_000100.pt")
    shutil.copy(checkpoint.parent / "tokenizer.json", ".")
    os.mkfifo("pipe")
    Path("link").symlink_to("i.jsonl")
    Path("folder").mkdir()
    return ["--model", "ckpt_000100.pt", "--file", "i.jsonl"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--details", "pipe"], "pipe is not a regular file"),
        (["--details", "link"], "link is not a regular file"),
        (["--details", "folder"], "folder is not a regular file"),
        (["--details", "."], ". is not a regular file"),
        (["--details", ""], ". is not a regular file"),
        (["--details", "i.jsonl"], "i.jsonl is read or written already"),
        (["--details", "folder/../i.jsonl"], "is read or written already"),
        (["--details", "ckpt_000100.pt"], "is read or written already"),
        (["--details", "x.png", "--plot", "x.png"], "x.png is read or written already"),
        (["--show", "0"], "--show is 0"),
        (["--split", "test"], "invalid choice: 'test'"),  # its labels are hidden
    ],
)
def test_what_must_not_be_written_to_is_refused_before_the_work(outputs, capsys, argv, message):
    def everything():
        return {p: p.read_bytes() if p.is_file() else p.stat().st_mode for p in Path(".").iterdir()}

    before = everything()
    assert hellaswag.main([*outputs, *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and "\nhint: " in err and err.count("\n") == 2
    assert everything() == before


@pytest.mark.parametrize("whole", [True, False])
def test_the_plot_has_the_published_bars_if_all_items_were_scored(tmp_path, monkeypatch, whole):
    axes, drawn = pytest.importorskip("matplotlib.axes"), []
    bar = axes.Axes.bar
    monkeypatch.setattr(axes.Axes, "bar", lambda self, names, *a, **k: drawn.append(names) or bar(self, names, *a, **k))
    n = 10_042 if whole else 40
    result = dict(n=n, correct=n // 3, correct_norm=n // 3, acc=1 / 3, acc_norm=1 / 3)
    hellaswag.plot(tmp_path / "bars.svg", "run/ckpt.pt", dict.fromkeys(hellaswag.STYLES, result))
    published = [["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"], ["gpt2", "gpt2-xl"]]
    ours = [["run/ckpt.pt"]] * 2
    assert sorted(drawn) == sorted(ours + published if whole else ours)
    assert (tmp_path / "bars.svg").read_text("utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--model", "no/such.pt"], "no/such.pt"),
        (["--model", ""], "no model"),
        (["--model", "{items}"], ""),  # a file, but no model
        (["--model", "{ckpt}", "--file", "none.jsonl"], "cannot read none.jsonl"),
        (["--model", "{ckpt}", "--limit", "0"], "--limit"),
        (["--model", "{ckpt}", "--dtype", "int8"], "--dtype"),
        (["--model", "{ckpt}", "--device", "toaster"], "toaster"),
        (["--model", "{ckpt}", "--plot", "x.docx"], "x.docx"),
        (["--model", "{ckpt}", "--details", "no/where.jsonl"], "no directory"),
        (["--download", "--split", "dev"], "--split"),
        ([], "no checkpoint"),
    ],
)
def test_mistakes_get_two_lines_and_exit_code_2(checkpoint, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    argv = [a.format(ckpt=checkpoint, items=ITEMS) for a in argv]
    assert hellaswag.main([*argv] if "--file" in argv else [*argv, "--file", str(ITEMS)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and "\nhint: " in err and "Traceback" not in err


def test_gpt2s_own_words_cost_no_more_tokens_than_they_must():
    """With GPT-2's tokenizer: an ending in completion style begins with a token that holds its space."""
    try:
        gpt2 = tokenizer.load_tokenizer("gpt2")
    except tokenizer.UserError as e:
        pytest.skip(f"GPT-2's tokenizer is not on this machine: {e}")
    for e in load_examples(ITEMS):
        request = make_request(e, gpt2, "completion", 1024)
        for tokens, ending in zip(request.endings, e.endings, strict=True):
            assert gpt2.decode(request.context) == e.context and gpt2.decode(tokens) == " " + ending
            assert gpt2.decode([tokens[0]]).startswith(" ")
