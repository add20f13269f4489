"""Requests, prompts and sweeps as data: what is written comes back, what does not fit is named."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_jitguard.traffic.prompts import VOCABULARY, WORDS, PromptMaker, body_of, encode, salt_of
from pytest_jitguard.traffic.requests import Request, RequestError, dump, parse
from pytest_jitguard.traffic.sse import EventReader
from pytest_jitguard.traffic.sweeps import arriving, mixed, poisson, powers_of_two_edges, sweep

ANY = st.builds(
    Request,
    st.integers(1, 9000),
    st.integers(1, 9),
    st.sampled_from(["completions", "chat"]),
    st.booleans(),
    st.floats(0, 1e6),
    st.sampled_from(["auto", "text"]),
    extra=st.dictionaries(st.text(max_size=5).filter(lambda key: key != "stream"), st.integers(), max_size=2),
    label=st.text(),
)


@given(st.lists(ANY, max_size=5))
def test_what_is_dumped_is_parsed_again(requests: list[Request]) -> None:
    assert parse(dump(requests)) == requests


def test_one_request_a_line_and_only_what_is_not_default() -> None:
    requests = [Request(500), Request(28, endpoint="chat", stream=True, at=0.5, label="ü\u2028")]
    first, second, rest = dump(requests).split("\n")
    assert first == '{"prompt_tokens": 500}'
    assert json.loads(second) == {
        **{"prompt_tokens": 28, "endpoint": "chat", "stream": True},
        **{"at": 0.5, "label": "ü\u2028"},
    }
    assert rest == ""
    assert parse('\n{"prompt_tokens": 3, "label": "a\u2028b"}\n\n') == [Request(3, label="a\u2028b")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens must be at least 1, not 0; only a request with a body"),
        ({"prompt_tokens": -1}, "prompt_tokens must be a whole number of at least 0, not -1"),
        ({"prompt_tokens": 2.5}, "prompt_tokens must be a whole number of at least 0, not 2.5"),
        ({"prompt_tokens": True}, "prompt_tokens must be a whole number of at least 0, not True"),
        ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1, not 0"),
        ({"endpoint": "embeddings"}, "endpoint must be one of 'completions', 'chat', not 'embeddings'"),
        ({"prompt": ["a"]}, "prompt must be one of 'auto', 'token_ids', 'text', not ['a']"),
        ({"prompt": "token_ids", "endpoint": "chat"}, "prompt='token_ids' cannot be sent to chat"),
        ({"stream": 1}, "stream must be True or False, not 1"),
        ({"at": -0.1}, "at must be seconds after the start of the run, 0 or more, not -0.1"),
        ({"at": float("inf")}, "at must be seconds after the start of the run, 0 or more, not inf"),
        ({"at": True}, "at must be seconds after the start of the run, 0 or more, not True"),
        ({"at": float("nan")}, "at must be seconds after the start of the run, 0 or more, not nan"),
        ({"shared_prefix": 4}, "shared_prefix must not be longer than the prompt: 4 of 3 tokens"),
        ({"extra": []}, "extra must be a mapping from field names to values, not []"),
        ({"extra": {"x": {1}}}, "extra must hold what JSON can say (Object of type set"),
        ({"body": {"x": float("inf")}}, "body must hold what JSON can say"),
        ({"body": {"prompt": "a"}, "extra": {"n": 2}}, "a request has either body or extra"),
        ({"extra": {"stream": True}}, "extra says stream=True: say it to the request, Request(..., stream=...)"),
        ({"label": 3}, "label must be a text, not 3"),
    ],
)
def test_a_request_that_does_not_fit_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        Request(**{"prompt_tokens": 3, **fields})
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON: "),
        ("[500]", 'line 2: a request must be an object like {"prompt_tokens": 500}, not [500]'),
        ('{"prompt_token": 5}', "line 2: a request has no field 'prompt_token' (did you mean 'prompt_tokens'?)"),
        ('{"zzz": 5}', "line 2: a request has no field 'zzz'; its fields are prompt_tokens, max_tokens,"),
        ('{"max_tokens": 5}', "line 2: a request needs prompt_tokens"),
        ('{"prompt_tokens": "5"}', "line 2: prompt_tokens must be a whole number of at least 0, not '5'"),
    ],
)
def test_a_line_that_does_not_fit_is_named(line: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(f'{{"prompt_tokens": 3}}\n{line}\n')
    assert str(caught.value).startswith(said)


def test_prompts_are_reproducible_and_of_the_length_that_is_asked_for() -> None:
    for index, length in ((0, 1), (7, 2), (3, 500)):
        assert PromptMaker(5).token_ids(index, length) == PromptMaker(5).token_ids(index, length)
        assert len(PromptMaker(5).token_ids(index, length)) == length
        assert len(PromptMaker(5).text(index, length).split()) == length
    assert set(PromptMaker(5).token_ids(0, 5000)) <= set(VOCABULARY)
    # Known for good: a release that changes them would change every recorded seed.
    assert PromptMaker(5).token_ids(2, 4) == KNOWN


KNOWN = [3617, 3617, 19585, 26631]


def test_prompts_of_a_run_differ_from_their_first_token_on() -> None:
    prompts = PromptMaker(1, salt=77)
    assert len({prompts.token_ids(index, 3)[0] for index in range(len(VOCABULARY))}) == len(VOCABULARY)
    assert len({prompts.text(index, 3).split()[0] for index in range(len(WORDS))}) == len(WORDS)
    beyond = {tuple(prompts.text(index, 2).split()) for index in range(5 * len(WORDS))}
    assert len(beyond) == 5 * len(WORDS), "then from the second on"


@given(st.integers(0, 10**9), st.integers(1, 300), st.integers(0, 10**6), st.integers(0, 2**48))
def test_prompts_of_two_seeds_differ_from_their_first_token_on(seed: int, further: int, index: int, salt: int) -> None:
    one, other = PromptMaker(seed, salt=salt), PromptMaker(seed + further, salt=salt)
    assert one.token_ids(index, 1) != other.token_ids(index, 1)
    assert one.text(index, 1) != other.text(index, 1)


def test_as_many_seeds_as_tokens_have_first_tokens_of_their_own() -> None:
    seeds = range(len(VOCABULARY))
    assert len({PromptMaker(seed).token_ids(0, 1)[0] for seed in seeds}) == len(VOCABULARY)


def test_the_rest_of_a_prompt_is_its_own_too() -> None:
    prompts = PromptMaker(1)
    shapes = [(0, 40), (1, 40), (0, 41)]
    rests = [tuple(prompts.token_ids(*shape)[2:30]) for shape in shapes]
    rests += [tuple(PromptMaker(*maker).token_ids(0, 40)[2:30]) for maker in ((2,),)]
    rests += [tuple(PromptMaker(1, salt=1).token_ids(0, 40)[2:30])]
    assert len(set(rests)) == 5


def test_a_shared_prefix_is_shared_by_seed_and_nothing_else_is() -> None:
    one, other = PromptMaker(1, salt=1), PromptMaker(1, salt=2)
    first, second, third = one.token_ids(0, 50, 32), one.token_ids(1, 70, 32), other.token_ids(0, 40, 16)
    assert (len(first), len(second), len(third)) == (50, 70, 40)
    assert first[:32] == second[:32]
    assert first[:16] == third[:16]
    assert first[32] != second[32]
    assert one.token_ids(4, 8, 8) == one.token_ids(5, 8, 8), "all of it, if all of it is asked for"
    assert PromptMaker(2).token_ids(0, 50, 32)[:32] != first[:32]


def test_runs_that_differ_in_anything_have_prompts_of_their_own() -> None:
    runs = [sweep([5]), sweep([6]), sweep([5, 5]), sweep([5], label="x"), sweep([5], max_tokens=5)]
    assert len({salt_of(run) for run in runs}) == 5
    assert salt_of(sweep([5])) == salt_of([Request(5)])


def test_bodies() -> None:
    prompts = PromptMaker(1)
    chat = body_of(Request(3, endpoint="chat", stream=True), 0, "m", prompts)
    assert chat["messages"] == [{"role": "user", "content": prompts.text(0, 3)}]
    assert chat["stream_options"] == {"include_usage": True}
    assert body_of(Request(3, prompt="text"), 0, "m", prompts)["prompt"] == prompts.text(0, 3)
    assert body_of(Request(3, extra={"temperature": 1}), 0, "m", prompts)["temperature"] == 1
    assert body_of(Request(0, body={"prompt": "a"}, stream=True), 0, "m", prompts) == {
        **{"model": "m", "stream": True, "prompt": "a"}
    }
    assert encode({"a": "ü"}) == '{"a":"ü"}'.encode()
    assert encode({"a": "\ud800"}) == b'{"a":"\\ud800"}'


def test_sweeps() -> None:
    assert sweep([3, 5], stream=True) == [Request(3, stream=True), Request(5, stream=True)]
    assert powers_of_two_edges(17) == [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17]
    assert powers_of_two_edges(16)[-2:] == [15, 16]
    assert powers_of_two_edges(15)[-2:] == [9, 15]
    assert powers_of_two_edges(1) == [1]
    drawn = mixed(3, 200, [1, 500], max_tokens=range(2, 5))
    assert drawn == mixed(3, 200, [1, 500], max_tokens=range(2, 5))
    assert drawn != mixed(4, 200, [1, 500], max_tokens=range(2, 5))
    assert {request.prompt_tokens for request in drawn} == {1, 500}
    assert {request.max_tokens for request in drawn} == {2, 3, 4}
    assert {request.max_tokens for request in mixed(3, 9, [1])} == {4}


def test_arrivals() -> None:
    offsets = poisson(3, 4000, 20.0)
    assert offsets == poisson(3, 4000, 20.0)
    assert offsets != poisson(4, 4000, 20.0)
    assert offsets == sorted(offsets)
    assert 190 < offsets[-1] < 210, "20 a second"
    gaps = [later - sooner for sooner, later in itertools.pairwise(offsets)]
    assert 0.3 < sum(gap < 0.05 / 2 for gap in gaps) / len(gaps) < 0.5, "1 - exp(-1/2) of them are short"
    assert [request.at for request in arriving(sweep([3, 4]), [0.0, 0.5])] == [0.0, 0.5]


def test_sweeps_that_cannot_be() -> None:
    with pytest.raises(RequestError, match="lengths is empty: give at least one number"):
        mixed(1, 3, [])
    with pytest.raises(RequestError, match="rate must be requests a second, more than 0, not 0"):
        poisson(1, 3, 0)
    with pytest.raises(RequestError, match="2 requests need as many offsets, not 1"):
        arriving(sweep([3, 4]), [0.0])


EVENTS = ["one", "é😀", "two\nlines", "", "a\u2028b\x85c", "[DONE]"]
STREAM = (
    ": a comment\n\ndata: one\n\nevent: x\r\ndata:é😀\r\n\r\ndata: two\ndata: lines\n\ndata:\n\n"
    "data: a\u2028b\x85c\n\n\n\ndata: [DONE]"
).encode()


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_a_stream_is_put_together_from_any_pieces(cuts: list[int]) -> None:
    reader = EventReader()
    edges = [0, *sorted(cuts), len(STREAM)]
    events = [data for begin, end in itertools.pairwise(edges) for data in reader.feed(STREAM[begin:end])]
    assert [*events, *reader.finish()] == EVENTS
