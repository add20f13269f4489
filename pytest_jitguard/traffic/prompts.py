"""Prompts that no prefix cache knows, reproducible from a seed, and the bodies that carry them."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import Any, TypeVar

from pytest_jitguard.traffic.requests import Request, RequestError, dump

VOCABULARY = range(1000, 30_000)
"""Token ids that are ordinary text in common vocabularies: above the special ones, below the end of the small ones."""

# Common words, which the usual tokenizers keep whole.
_WORDS = """
able about above account across action after again air all also always among animal another answer any area arm
army around art ask away baby back bad ball bank base bed before begin behind believe best better big bird bit
black blue board boat body book both box boy bring brother brown build business buy call came camp can car
care carry case cat catch cause cell center century chance change chart check child choose church circle city
class clean clear climb close clothes cold color come common company complete contain control cook cool copy
corn cost could count country course cover create cross crowd cry cut dance dark day deal dear decide
deep design did direct distance divide doctor does dog dollar done door double down draw dream dress drink
drive drop dry during each early earth east easy eat edge effect egg eight either else end energy engine enough
enter equal even evening event ever every exact example except expect eye face fact fair fall family famous far
farm fast father favor fear feed feel feet fell felt few field figure fill final find fine finger finish
fire first fish fit five flat floor flow flower fly follow food foot force foreign forest form forward found
four free fresh friend from front fruit full fun game garden gas gave general gentle get girl give glad glass
gold gone good got govern grand grass gray great green grew ground group grow guess guide had hair half hand
happen happy hard has hat have head hear heart heat heavy held help her here high hill him his history hit hold
hole home hope horse hot hour house how huge human hundred ice idea imagine inch include industry insect
instant interest iron island job join joy jump just keep kept key kind king knew know lady lake land
language large last late laugh law lay lead learn least leave led left leg length less let letter level lie life
lift light like line list listen little live local lone long look lost lot loud love low machine made
"""
WORDS = tuple(_WORDS.split())

_Token = TypeVar("_Token")


class PromptMaker:
    """Makes the prompt of each request of a run: the same for the same arguments, on every machine.

    Prompts of one run differ from their first token on, until there are more of them than the vocabulary has entries;
    then from the second on. So do prompts with the same index and another seed. `salt` tells runs with the same seed
    apart (`salt_of`): without it the first prompt of 500 tokens would be the beginning of the first of 501 in the next
    run, and a prefix cache would hide what the second one compiles. A `shared_prefix` depends on the seed alone, so
    that one run can warm the cache for another. RequestError for a vocabulary of less than two entries.
    """

    def __init__(
        self, seed: int = 0, *, vocabulary: Sequence[int] = VOCABULARY, words: Sequence[str] = WORDS, salt: int = 0
    ) -> None:
        self.seed, self.salt, self.vocabulary, self.words = seed, salt, vocabulary, words
        for name, entries in (("vocabulary", vocabulary), ("words", words)):
            if len(entries) < 2:
                raise RequestError(f"{name} must have at least 2 entries to tell prompts apart, not {entries!r}")

    def token_ids(self, index: int, length: int, shared_prefix: int = 0) -> list[int]:
        """Return the prompt of request `index` (from 0), `length` tokens long."""
        return self._tokens(self.vocabulary, index, length, shared_prefix)

    def text(self, index: int, length: int, shared_prefix: int = 0) -> str:
        """Return the same as words, about one token each."""
        return " ".join(self._tokens(self.words, index, length, shared_prefix))

    def _tokens(self, entries: Sequence[_Token], index: int, length: int, shared_prefix: int) -> list[_Token]:
        prefix = _choose(entries, shared_prefix, f"prefix/{self.seed}")
        own = length - shared_prefix
        head = self._head(entries, index)[:own]
        return [*prefix, *head, *_choose(entries, own - len(head), f"{self.seed}/{self.salt}/{index}/{length}")]

    def _head(self, entries: Sequence[_Token], index: int) -> list[_Token]:
        """Return the number of the prompt, written in tokens: the first one counts prompts, the next one overflows."""
        size = len(entries)
        rounds, place = divmod(index, size)
        first = (place + self.seed * _stride(size) + self.salt) % size
        return [entries[first], entries[(rounds + first) % size]]


def _stride(size: int) -> int:
    """Return by how much seeds are apart: no common factor with the size, and far from any small fraction of it."""
    return next(n for n in range(max(1, round(size * 0.618)), 2 * size) if math.gcd(n, size) == 1)


def _choose(entries: Sequence[_Token], number: int, seed: str) -> list[_Token]:
    return random.Random(seed).choices(entries, k=number) if number > 0 else []


def salt_of(requests: Sequence[Request]) -> int:
    """Return a number that tells this list of requests from others."""
    return int.from_bytes(hashlib.sha256(dump(requests).encode()).digest()[:6], "big")


def body_of(request: Request, index: int, model: str, prompts: PromptMaker) -> dict[str, Any]:
    """Return the body of one request; the model is the body's own if it names one."""
    if request.body is not None:
        return {"model": model, **({"stream": True} if request.stream else {}), **request.body}
    body: dict[str, Any] = {"model": model, **_prompt(request, index, prompts)}
    body |= {"max_tokens": request.max_tokens, "temperature": 0, "stream": request.stream}
    if request.stream:
        body["stream_options"] = {"include_usage": True}
    return {**body, **request.extra}


def _prompt(request: Request, index: int, prompts: PromptMaker) -> dict[str, Any]:
    shape = (index, request.prompt_tokens, request.shared_prefix)
    if not request.as_text:
        return {"prompt": prompts.token_ids(*shape)}
    text = prompts.text(*shape)
    return {"messages": [{"role": "user", "content": text}]} if request.endpoint == "chat" else {"prompt": text}


def encode(body: dict[str, Any]) -> bytes:
    """Return the bytes that are sent; UTF-8, with what UTF-8 cannot say escaped."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(body, separators=(",", ":")).encode()
