"""core/served: three formats of log-probabilities say the same, and what is none of them is named."""

import math

import pytest

from shiftscope.core.scorers.served import OffFormat, Place, next_place, prompt_places, text_of

VLLM = {
    "choices": [
        {
            "text": "a b c",
            "prompt_token_ids": [5, 6],
            "prompt_logprobs": [
                None,
                {"6": {"logprob": -2.0, "rank": 3, "decoded_token": "b"}, "9": {"logprob": -0.5, "decoded_token": "z"}},
            ],
            "logprobs": None,
        }
    ]
}
IDS = {
    "choices": [
        {
            "logprobs": {
                "tokens": ["token_id:5", "token_id:6", "token_id:7"],
                "token_logprobs": [None, -2.0, -1.0],
                "top_logprobs": [None, {"token_id:9": -0.5}, {"token_id:7": -1.0}],
            }
        }
    ]
}
PIECES = {
    "choices": [
        {
            "logprobs": {
                "tokens": ["a", "b", "c"],
                "token_logprobs": [None, -2.0, -1.0],
                "top_logprobs": [None, {"z": -0.5, "b": -2.0}, {"c": -1.0}],
            }
        }
    ]
}


def test_the_formats_say_the_same():
    vllm, ids, pieces = (prompt_places(body, 2) for body in (VLLM, IDS, PIECES))
    assert vllm[1] == Place(6, "b", -2.0, ((6, -2.0), (9, -0.5)))
    assert ids[1] == Place(6, None, -2.0, ((9, -0.5), (6, -2.0)))
    assert pieces[1] == Place(None, "b", -2.0, (("z", -0.5), ("b", -2.0)))
    assert [place[0].logp for place in (vllm, ids, pieces)] == [None] * 3


def test_a_generated_token_lists_the_law_in_both_formats():
    content = {"choices": [{"logprobs": {"content": [{"id": 7, "token": "c", "logprob": -1.0, "top_logprobs": [
        {"id": 7, "token": "c", "logprob": -1.0}, {"id": 6, "token": "b", "logprob": -2.5}]}]}}]}  # fmt: skip
    assert next_place(content, 6, "b").logp == -2.5
    assert next_place(content, 8, "d").logp is None
    assert next_place(PIECES, 7, "c").logp == -1.0
    assert next_place(IDS, 7, "c").logp == -1.0


def test_what_json_cannot_say_is_minus_infinity_and_rounding_above_zero_is_zero():
    body = {"choices": [{"logprobs": {"tokens": ["a", "b", "c"], "token_logprobs": [None, -9999.0, 1e-6]}}]}
    assert prompt_places(body, 2)[1].logp == -math.inf
    assert prompt_places(body, 3)[2].logp == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("hello", "no choices"),
        ({"choices": []}, "no choices"),
        ({"error": "busy"}, "no choices"),
        ({"choices": [{"logprobs": None, "text": "x"}]}, "token by token"),
        ({"choices": [{"logprobs": {"tokens": ["c"], "token_logprobs": [-1.0]}}]}, "token by token"),
        (
            {"choices": [{"logprobs": {"tokens": ["a", "b", "c"], "token_logprobs": [None, "x", -1.0]}}]},
            "no log-probability",
        ),
        (
            {"choices": [{"logprobs": {"tokens": ["a", "b", "c"], "token_logprobs": [None, 0.5, -1.0]}}]},
            "no log-probability",
        ),
        ({"choices": [{"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None]}}]}, "as many"),
        ({"choices": [{"logprobs": {"tokens": ["a", "b", "c"], "token_logprobs": [None, None, -1]}}]}, "without"),
        ({"choices": [{"prompt_token_ids": [1, 2], "prompt_logprobs": [None]}]}, "1 entries for 2"),
        (
            {"choices": [{"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"3": {"logprob": -1}}]}]},
            "does not list",
        ),
    ],
)
def test_what_is_off_format_is_said(body, said):
    with pytest.raises(OffFormat, match=said):
        prompt_places(body, 2)


def test_texts_of_completions_and_messages():
    assert text_of({"choices": [{"text": "yes", "finish_reason": "stop"}]}) == ("yes", "stop")
    assert text_of({"choices": [{"message": {"content": "no"}, "finish_reason": "length"}]}) == ("no", "length")
    with pytest.raises(OffFormat, match="no text"):
        text_of({"choices": [{"message": {"content": None}}]})
