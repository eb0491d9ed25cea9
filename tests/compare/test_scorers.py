"""compare scorers: identities, a server and a file that hold a model's own log-probabilities, and what goes wrong."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from shiftscope.compare.scorers import Clipping, parse_against, scorers, summarise
from shiftscope.core import checkpoints, divergence
from shiftscope.core.answers import Compiling
from shiftscope.core.decode import Sampling
from shiftscope.core.endpoint import Asking
from shiftscope.core.parts import Parts
from shiftscope.core.scorers.rescoring import Serving

PROMPTS = [
    {"prompt": prompt}
    for prompt in (
        "Return the",
        "The file is",
        "If the object",
        "def open(",
        "A list of",
        "Create a new",
        "Raise when",
        "Set it to",
    )
]
SAMPLED = Sampling(temperature=1.0, max_new_tokens=24)
QUICK = Asking(pause_s=0.0, timeout_s=20.0, tries=2, concurrency=2)


class Server:
    """A loopback server that scores with a checkpoint in one of the formats in use.

    style: 'vllm' (ids), 'pieces' (text only), 'written' (only what it writes, with ids, as llama.cpp). spoil: what is
    done to an answer on its way out.
    """

    def __init__(self, checkpoint, style, spoil=lambda number, body: body):
        self.checkpoint, self.style, self.seen = checkpoint, style, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    body = spoil(outer.seen, outer.answer(request))
                    outer.seen += 1
                self.reply(json.dumps(body).encode())

            def do_GET(self):
                self.reply(b'{"data": [{"id": "served"}]}')

            def reply(self, raw):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"endpoint:http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        tokenizer, prompt, k = self.checkpoint.tokenizer, request["prompt"], request["logprobs"]
        ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        with torch.no_grad():
            logp = self.checkpoint.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        following = int(logp[-1].argmax())
        tops = [
            dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)) for top in (row.topk(k) for row in logp)
        ]
        own = [None, *logp[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist(), float(logp[-1, following])]
        if self.style == "written":
            entries = [
                {"id": token, "token": tokenizer.decode([token]), "logprob": value} for token, value in tops[-1].items()
            ]
            return {"choices": [{"text": "", "logprobs": {"content": [{**entries[0], "top_logprobs": entries}]}}]}
        if self.style == "vllm":
            listed = [None]
            for token, value, top in zip(ids[1:], own[1:], tops, strict=False):
                listed.append(
                    {
                        str(i): {"logprob": v, "decoded_token": tokenizer.decode([i])}
                        for i, v in {**top, token: value}.items()
                    }
                )
            return {"choices": [{"text": "", "prompt_token_ids": ids, "prompt_logprobs": listed}]}
        written = [tokenizer.decode([token]) for token in (*ids, following)]
        named = [None, *({tokenizer.decode([i]): v for i, v in top.items()} for top in tops)]
        return {"choices": [{"logprobs": {"tokens": written, "token_logprobs": own, "top_logprobs": named}}]}

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    started = []

    def start(*arguments, **more):
        started.append(Server(*arguments, **more))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def narrow(docs):
    """docs-base held against itself in bfloat16."""
    return scorers(docs[0], against="dtype:bfloat16", texts=PROMPTS, sampling=SAMPLED)


def endpoint_run(docs, server, **more):
    return scorers(docs[0], against=server.address, texts=PROMPTS, sampling=SAMPLED, asking=QUICK, **more)


@pytest.mark.parametrize("against", ["dtype:float32", "attention:sdpa", "batch:32"])
def test_the_same_scorer_twice_is_exactly_the_same(docs, against):
    result = scorers(docs[0], against=against, texts=PROMPTS, sampling=SAMPLED)
    assert result["gap_nats_max"] == result["js_nats_max"] == result["k3_against_model_nats"] == 0
    assert result["effective_sample_share_token"] == result["effective_sample_share_sequence"] == 1
    assert result["ratio_token_p0_1"] == result["ratio_token_max"] == 1
    assert "exactly the same" in result.verdict[0]


def test_every_figure_of_a_ratio_equals_its_definition(narrow):
    table = narrow.table
    logs = table["logp_model_nats"].to_numpy().astype(float) - table["logp_against_nats"].to_numpy()
    weights, texts = np.exp(logs), table["text"].to_numpy()
    assert narrow["gap_mean_nats"] == pytest.approx(np.abs(logs).mean())
    assert narrow["effective_sample_share_token"] == pytest.approx(
        weights.sum() ** 2 / (weights**2).sum() / len(weights)
    )
    whole = np.array([math.exp(sum(logs[texts == text])) for text in np.unique(texts)])
    assert narrow["effective_sample_share_sequence"] == pytest.approx(whole.sum() ** 2 / (whole**2).sum() / len(whole))
    assert narrow["k3_against_model_nats"] == pytest.approx((weights - 1 - logs).mean(), rel=1e-6)
    assert narrow["ratio_token_max"] == pytest.approx(weights.max())
    tight = summarise(table, "bfloat16", clipping=Clipping(0.999, 1.001))
    assert tight["clipped_share"] == pytest.approx(((weights < 0.999) | (weights > 1.001)).mean())


def test_bfloat16_moves_log_probabilities_by_its_rounding_and_most_where_the_model_is_unsure(narrow, docs):
    """bfloat16 keeps 8 bits: logits of size 10 are off by some 1e-2; float32 rounding is 1e-6."""
    assert 1e-3 < narrow["gap_mean_nats"] < 0.1
    assert 0.9 < narrow["effective_sample_share_sequence"] < 1
    layout = scorers(docs[0], against="batch:1", texts=PROMPTS, sampling=SAMPLED)
    assert layout["gap_mean_nats"] < 1e-3 * narrow["gap_mean_nats"]
    gap = np.abs(narrow.table["logp_model_nats"].to_numpy() - narrow.table["logp_against_nats"].to_numpy())
    rare = narrow.table["logp_model_nats"].to_numpy() < math.log(0.5)
    assert gap[rare].mean() > gap[~rare].mean()
    assert narrow.verdict[0].startswith("bfloat16 moves the log-probability")


def test_the_attention_back_end_changes_roundings_only(docs):
    result = scorers(docs[0], against="attention:eager", texts=PROMPTS, sampling=SAMPLED)
    assert 0 < result["gap_nats_max"] < 1e-4
    assert docs[0].model.config._attn_implementation == "sdpa"
    assert "training would not notice" in result.verdict[1]


def test_a_model_in_memory_is_copied_and_stays_as_it_was(docs, narrow):
    own = checkpoints.wrap(docs[0].model, docs[0].tokenizer)
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    result = scorers(own, against="dtype:bfloat16", texts=PROMPTS, sampling=SAMPLED)
    assert all(torch.equal(value, before[name]) for name, value in own.model.state_dict().items())
    assert result.table["logp_against_nats"].equals(narrow.table["logp_against_nats"])


@pytest.mark.parametrize(("style", "ids_named"), [("vllm", 1), ("pieces", 0)])
def test_a_server_of_the_same_weights_gives_the_numbers_of_local_scoring(docs, serve, style, ids_named):
    result = endpoint_run(docs, serve(docs[0], style))
    local = scorers(docs[0], against="batch:1", texts=PROMPTS, sampling=SAMPLED)
    ours, theirs = (r.table["logp_against_nats"].to_numpy() for r in (result, local))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # float32 forwards in another batch layout
    assert result["gap_nats_max"] < 1e-4
    assert result["unscored_tokens"] == 0
    assert result["ids_named_share"] == ids_named
    assert result["js_low_mean_nats"] < 1e-6  # nothing speaks against equal laws
    assert result["js_high_mean_nats"] > result["js_low_mean_nats"]


def test_the_bounds_of_a_server_of_other_weights_bracket_the_true_divergence(docs, serve):
    """The server holds docs-code; answers are drawn from docs-base, and both whole laws are known here."""
    result = endpoint_run(docs, serve(docs[1], "vllm"), serving=Serving(top_k=10))
    table, laws = result.table, []
    about = json.loads(table.schema.metadata[b"texts"])
    answers = {}
    for text, token in zip(table["text"].to_pylist(), table["token_id"].to_pylist(), strict=True):
        answers.setdefault(text, []).append(token)
    for checkpoint in docs:
        rows = []
        for entry in about:
            context = checkpoint.tokenizer(entry["prompt"])["input_ids"]
            with torch.no_grad():
                logits = checkpoint.model(torch.tensor([[*context, *answers[entry["text"]]]])).logits[0]
            rows.append(logits[len(context) - 1 : -1].double().log_softmax(-1))
        laws.append(torch.cat(rows))
    for name, true in (
        ("js_{}_nats", divergence.js_nats(*laws)),
        ("tv_{}", divergence.tv(*laws)),
        ("kl_against_model_{}_nats", divergence.kl_nats(*laws[::-1])),
    ):
        low, high = (table[name.format(end)].to_numpy() for end in ("low", "high"))
        assert (low <= true.numpy() + 1e-5).all()  # the table is float32
        assert (high >= true.numpy() - 1e-5).all()
    assert (table["kl_model_against_low_nats"].to_numpy() <= divergence.kl_nats(*laws).numpy() + 1e-5).all()
    assert 0.3 < result["js_low_mean_nats"] / float(divergence.js_nats(*laws).mean()) <= 1  # and says something


def test_a_server_that_scores_only_what_it_writes_is_found_out_and_can_be_walked(docs, serve):
    server, few = serve(docs[0], "written"), PROMPTS[:2]
    run = {"against": server.address, "texts": few, "sampling": SAMPLED, "asking": QUICK}
    lost = scorers(docs[0], **run)
    assert lost["unscored_tokens"] == lost["tokens"] > 0
    assert "--stepwise" in lost.verdict[0]
    walked = scorers(docs[0], **run, serving=Serving(top_k=50, stepwise=True))
    scored = walked.table.filter(np.isfinite(walked.table["logp_against_nats"].to_numpy()))
    assert len(scored) + walked["unscored_tokens"] == walked["tokens"]
    assert len(scored) > 0.5 * walked["tokens"]  # a sampled token is mostly among the 50 most probable ones
    assert walked["gap_nats_max"] < 1e-4
    assert any("not among the 50 tokens" in note for note in walked.notes)


def test_a_text_that_comes_back_off_format_is_unscored_and_the_others_are_not_lost(docs, serve):
    def spoil(number, body):
        return {"choices": [{"text": "I cannot"}]} if number in (1, 2) else body

    result = endpoint_run(docs, serve(docs[0], "vllm", spoil=spoil), loading=Compiling(batch_size=1), serving=Serving())
    lost = set(result.table.filter(~np.isfinite(result.table["logp_against_nats"].to_numpy()))["text"].to_pylist())
    assert len(lost) == 1  # one text, tried twice
    assert len(set(result.table["text"].to_pylist())) == len(PROMPTS)
    assert result["gap_nats_max"] < 1e-4
    assert any("are not scored: off-format answer" in note for note in result.notes)


def test_a_server_that_is_down_leaves_every_token_with_its_reason(docs, serve):
    server = serve(docs[0], "vllm")
    server.stop()
    result = endpoint_run(docs, server)
    assert result["unscored_tokens"] == result["tokens"] == len(result.table)
    assert "scored none of" in result.verdict[0]
    assert any("cannot be reached" in reason for reason in result.panels[0].table["reason"].to_pylist())
    assert result.table["logp_model_nats"].null_count == 0


def test_what_was_answered_is_not_asked_again(docs, serve, tmp_path):
    server = serve(docs[0], "vllm")
    asking = Asking(pause_s=0.0, tries=1, replay=tmp_path / "replay.jsonl")
    first = scorers(docs[0], against=server.address, texts=PROMPTS, sampling=SAMPLED, asking=asking)
    server.stop()
    again = scorers(docs[0], against=server.address, texts=PROMPTS, sampling=SAMPLED, asking=asking)
    assert again.table.equals(first.table)
    assert server.seen == len(PROMPTS)


def test_text_that_the_server_tokenises_otherwise_is_unscored_from_there_on(docs, serve):
    longer = Sampling(temperature=1.0, max_new_tokens=64)
    server = serve(docs[0], "vllm")
    result = scorers(
        docs[0], against=server.address, texts=4 * PROMPTS, sampling=longer, asking=QUICK, serving=Serving(send="text")
    )
    table = result.table
    assert result["retokenised_texts_share"] > 0
    scored = np.isfinite(table["logp_against_nats"].to_numpy())
    lost = {text for text, good in zip(table["text"].to_pylist(), scored, strict=True) if not good}
    drifted = {entry["text"] for entry in json.loads(table.schema.metadata[b"texts"]) if entry["retokenised"]}
    assert lost <= drifted
    assert result["gap_nats_max"] < 1e-4  # where it reads the same tokens it says the same
    assert any("the server read other tokens" in note for note in result.notes)


def test_a_server_with_another_tokenizer_is_refused(docs, serve):
    def swap(_, body):
        for entry in body["choices"][0]["prompt_logprobs"][1:]:
            for value in entry.values():
                value["decoded_token"] = value["decoded_token"][::-1] + "~"
        return body

    with pytest.raises(ValueError, match="the tokenizers differ"):
        endpoint_run(docs, serve(docs[0], "vllm", spoil=swap))


def test_a_file_of_the_models_own_log_probabilities_has_no_mismatch(docs, narrow, tmp_path):
    table, records = narrow.table, []
    for entry in json.loads(table.schema.metadata[b"texts"]):
        rows = table.filter(np.asarray(table["text"].to_numpy() == entry["text"]))
        records.append(
            {
                "prompt": entry["prompt"],
                "ids": rows["token_id"].to_pylist(),
                "logprobs": rows["logp_model_nats"].to_pylist(),
            }
        )
    path = tmp_path / "engine.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    same = scorers(docs[0], against=f"file:{path}")
    assert same["gap_nats_max"] < 1e-4
    assert same["tokens"] == len(table)
    for record in records:
        record["logprobs"] = [value - 0.5 for value in record["logprobs"]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    off = scorers(docs[0], against=f"file:{path}")
    assert off["log_ratio_mean_nats"] == pytest.approx(0.5, abs=1e-4)
    assert off["clipped_above_share"] == 1  # exp(0.5) is 1.65
    assert off["effective_sample_share_token"] == pytest.approx(1, abs=1e-6)  # a constant factor cancels
    with pytest.raises(ValueError, match="leave --texts out"):
        scorers(docs[0], against=f"file:{path}", texts=PROMPTS)


def test_an_interrupted_run_resumes_and_merged_shards_give_the_same_table(docs, narrow, tmp_path):
    settings = {"against": "dtype:bfloat16", "texts": PROMPTS, "sampling": SAMPLED, "loading": Compiling(batch_size=3)}
    fresh = scorers(docs[0], **settings)

    def stop(stage, done, total):
        if stage == "scoring" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorers(docs[0], **settings, parts=Parts(tmp_path), advance=stop)
    resumed = scorers(docs[0], **settings, parts=Parts(tmp_path, resume=True))
    assert resumed.table.equals(fresh.table)
    assert resumed.figures == fresh.figures
    assert fresh["gap_mean_nats"] == pytest.approx(narrow["gap_mean_nats"], rel=0.05)


def test_given_answers_and_server_answers_are_not_taken_for_samples(docs, serve, narrow):
    assert not any("answers are" in note for note in narrow.notes)
    texts = [{"prompt": "Return the", "answer": " string."}]
    assert any("answers are given" in note for note in scorers(docs[0], against="batch:1", texts=texts).notes)
    assert any("drawn from the model" in note for note in endpoint_run(docs, serve(docs[0], "vllm")).notes)


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ("bfloat16", "no scorer"),
        ("dtype:int8", "the dtypes are float32, bfloat16, float16"),
        ("batch:0", "batch size of at least 1"),
        ("file:", "no scorer"),
        ("endpoint:localhost", "no endpoint"),
    ],
)
def test_a_scorer_of_no_known_kind_is_said(against, said):
    with pytest.raises(ValueError, match=said):
        parse_against(against)


def test_other_bad_input_is_one_sentence(docs, tmp_path):
    with pytest.raises(ValueError, match="cannot run with 'nonsense' attention"):
        scorers(docs[0], against="attention:nonsense", texts=PROMPTS[:1], sampling=SAMPLED)
    with pytest.raises(ValueError, match="is not a file"):
        scorers(docs[0], against=f"file:{tmp_path / 'none.jsonl'}")
    with pytest.raises(ValueError, match="must hold 1"):
        Clipping(1.1, 1.2)
