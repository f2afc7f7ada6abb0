"""Language models at long contexts, under plans that let layers share attention work.

    import baton

    engine = baton.Engine("model.gguf", plan="plan.json")
    print(engine.generate("The capital of France is", max_tokens=16).text)
    for piece in engine.stream(messages=[{"role": "user", "content": "Name three colours."}]):
        print(piece, end="", flush=True)

An engine may be used from several threads: requests that run at the same time are computed together, and each gets the
answer that it has alone. The interpreter's lock is released meanwhile.
"""
from __future__ import annotations

import asyncio
import dataclasses
import json
import operator
import os
import random
from typing import Any, AsyncIterator, Callable, Iterator, Optional, Sequence, Union

import numpy as np

from . import _baton
from ._baton import Error, Plan, Profile, __version__

__all__ = ["Engine", "Error", "Generation", "Plan", "Profile", "Stream", "TokenLogprob", "__version__"]

Error.__module__ = Plan.__module__ = Profile.__module__ = "baton"

Path = Union[str, "os.PathLike[str]"]
Tokens = Union[Sequence[int], np.ndarray]
Progress = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    token: int
    logprob: float  # nats
    top: dict[int, float]  # the likeliest tokens in its place


@dataclasses.dataclass(frozen=True)
class Generation:
    text: str
    tokens: list[int]
    stop: str  # end_of_text, stop_string, length, context or cancelled
    logprobs: list[TokenLogprob]  # of the tokens, where logprobs were asked for
    prompt_logprobs: list[TokenLogprob]  # of the prompt's tokens but the first, likewise
    stats: dict[str, Any]  # speeds, bytes of cache, logits_hash, ...: as `baton run --json`


def _tokens(tokens: Tokens) -> list[int]:
    return [operator.index(t) for t in tokens]


def _logprobs(given: list) -> list[TokenLogprob]:
    return [TokenLogprob(token, logprob, dict(top)) for token, logprob, top in given]


class Stream:
    """Pieces of an answer as they are made; whole characters. Closing it, or leaving its `with`, cancels the request."""

    def __init__(self, answer: _baton.Answer) -> None:
        self._answer = answer
        self._result: Optional[Generation] = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = None if self._result else self._answer.next()
        if piece is not None:
            return piece
        self._finish()
        raise StopIteration

    def _finish(self) -> Generation:
        if self._result is None:
            text, tokens, stop, logprobs, prompt_logprobs, stats = self._answer.result()
            kept = json.loads(stats)
            for key in ("format", "version", "command", "machine", "model", "text", "tokens", "stop", "seed", "memory"):
                kept.pop(key, None)
            self._result = Generation(text.decode("utf-8", errors="replace"), tokens, stop, _logprobs(logprobs),
                                      _logprobs(prompt_logprobs), kept)
        return self._result

    @property
    def result(self) -> Generation:
        """The whole answer. Waits for its end; what was not read yet is not given out by iterating any more."""
        while self._result is None and self._answer.next() is not None:
            pass
        return self._finish()

    def close(self) -> None:
        self._answer.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_answer"):
            self._answer.cancel()


class Engine:
    """A model, loaded.

    path: a GGUF file, or the folder of a Hugging Face checkpoint. plan: for requests that name none (a Plan, or the path
    of one). router: the file of a trained router. context: the longest sequence, 0 for the model's own. kv_tokens: tokens
    of cache for all requests together, 0 for four contexts. threads: 0 for one per processor. Raises Error.
    """

    def __init__(self, path: Path, *, plan: Union[Plan, Path, None] = None, router: Optional[Path] = None,
                 backend: str = "cpu", kv: str = "bf16", threads: int = 0, context: int = 0, kv_tokens: int = 0,
                 chat_template: str = "") -> None:
        self._engine = _baton.Engine.load(os.fspath(path), backend, kv, threads, context, kv_tokens,
                                          os.fspath(router) if router else "", chat_template)
        self._router = router is not None
        self.plan = self._plan(plan)

    @property
    def info(self) -> dict[str, Any]:
        """The model's shape, layers and bytes of cache, as `baton info --json` has them."""
        return json.loads(self._engine.info())

    # ---- text and tokens

    def tokenize(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """bos: put the model's BOS before, if it uses one. special: parse control tokens."""
        return self._engine.tokenize(text, bos, special)

    def detokenize(self, tokens: Tokens, *, special: bool = False) -> str:
        return self._engine.detokenize(_tokens(tokens), special).decode("utf-8", errors="replace")

    # ---- answers

    def stream(self, prompt: Optional[str] = None, *, tokens: Optional[Tokens] = None,
               messages: Optional[Sequence[dict[str, Any]]] = None, tools: Optional[Sequence[dict[str, Any]]] = None,
               template_variables: Optional[dict[str, Any]] = None, max_tokens: int = 256, temperature: float = 0.0,
               top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
               presence_penalty: float = 0.0, frequency_penalty: float = 0.0, seed: Optional[int] = None,
               stop: Union[str, Sequence[str]] = (), logprobs: Optional[int] = None,
               prompt_logprobs: Optional[int] = None, ignore_end: bool = False,
               plan: Union[Plan, Path, None] = None, dense: bool = False, exact: Union[bool, str] = False,
               route: Optional[str] = None, route_mask: str = "", route_margin: float = 0.0) -> Stream:
        """Submits a request and returns its answer piece by piece.

        One of prompt (raw text), tokens and messages (by the model's chat template). seed: None takes one at random.
        plan: in place of the engine's; dense: none at all. exact: dense decoding's own answer, drafted by the plan; or by
        "lookup", "both". route: how a router decides: exact, probe, two_pass, dense. Raises Error.
        """
        if sum(x is not None for x in (prompt, tokens, messages)) != 1:
            raise TypeError("give one of prompt, tokens and messages")
        if plan is not None and dense:
            raise TypeError("give a plan or dense=True, not both")
        r = _baton.Request()
        if prompt is not None:
            r.prompt = prompt
        if tokens is not None:
            r.tokens = _tokens(tokens)
        for message in messages or ():
            more = {k: v for k, v in message.items() if k not in ("role", "content")}
            r.add_turn(message["role"], message.get("content") or "", json.dumps(more) if more else "")
        if tools or template_variables:
            r.set_chat_options(json.dumps(list(tools)) if tools else "",
                               json.dumps(template_variables) if template_variables else "")
        r.max_tokens = max_tokens
        r.set_sampling(temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
                       random.getrandbits(63) if seed is None else seed)
        r.stop = [stop] if isinstance(stop, str) else list(stop)
        r.logprobs = -1 if logprobs is None else logprobs
        r.prompt_logprobs = -1 if prompt_logprobs is None else prompt_logprobs
        r.ignore_end = ignore_end
        if not dense:
            r.plan = self.plan if plan is None else self._plan(plan)
        if exact:
            r.set_exact(exact if isinstance(exact, str) else "plan" if r.plan else "lookup")
        if not dense and (route or route_mask or self._router):
            r.set_route(route or "exact", route_margin, route_mask)
        return Stream(self._engine.submit(r))

    def generate(self, prompt: Union[str, Sequence[str], None] = None, **options: Any) -> Any:
        """A whole answer (Generation), or a list of them for a list of prompts, which run together. Options: stream's."""
        if prompt is None or isinstance(prompt, str):
            return self.stream(prompt, **options).result
        return [s.result for s in [self.stream(p, **options) for p in prompt]]

    async def astream(self, prompt: Optional[str] = None, **options: Any) -> AsyncIterator[str]:
        """stream for asyncio: steps run in other threads."""
        end = object()
        with self.stream(prompt, **options) as pieces:
            while (piece := await asyncio.to_thread(next, pieces, end)) is not end:
                yield piece  # type: ignore[misc]

    # ---- numbers

    def score(self, text: Union[str, Tokens], *, plan: Union[Plan, Path, None] = None) -> np.ndarray:
        """Log-probability (nats, float64) of each token but the first, [tokens - 1]. A text begins with the model's BOS."""
        tokens = self.tokenize(text, bos=True) if isinstance(text, str) else text
        result = self.stream(tokens=tokens, max_tokens=0, prompt_logprobs=0, plan=plan, dense=plan is None).result
        return np.array([t.logprob for t in result.prompt_logprobs], dtype=np.float64)

    def logits(self, tokens: Tokens, *, plan: Union[Plan, Path, None] = None) -> np.ndarray:
        """Logits after each token, [tokens, vocab] float32, each row computed as in decode; dense without a plan."""
        return self._engine.logits(_tokens(tokens), self._plan(plan))

    # ---- plans

    def profile(self, texts: Sequence[Path], *, context: int = 8192, probes: int = 24, seed: int = 1,
                progress: Optional[Progress] = None) -> Profile:
        """Measures what layers lose by attending to less. texts: files or folders of the text that a plan is for, PATH or
        KIND=PATH. Minutes; progress(fraction, what) is called meanwhile."""
        return self._engine.profile([os.fspath(t) for t in texts], context, probes, seed, progress)

    def search(self, profile: Profile, *, max_bytes: float = 0.0, max_kl: float = 0.0, max_held: float = 0.0,
               min_retrieval: float = 0.97, max_evaluations: int = 100, dense_prompts: bool = False,
               for_exact: bool = False, progress: Optional[Progress] = None) -> tuple[Plan, dict[str, Any]]:
        """The best plan within the targets, and the search's results (as `baton plan --search-json`)."""
        if not (max_bytes or max_kl or max_held or for_exact):
            max_bytes = 0.125
        plan, results = self._engine.plan(profile, max_bytes, max_kl, max_held, min_retrieval, max_evaluations,
                                          dense_prompts, for_exact, progress)
        return plan, json.loads(results)

    def evaluate(self, text: str, plans: Union[Plan, Sequence[Plan]], *, context: int = 8192, rows: int = 192,
                 max_windows: int = 0, needles: int = 60, seed: int = 7,
                 progress: Optional[Progress] = None) -> Any:
        """Plans against dense on a text that no plan was made from (as `baton eval --json`): a dict, or one for each."""
        one = isinstance(plans, Plan)
        results = json.loads(self._engine.evaluate(text, [plans] if one else list(plans), context, rows, max_windows,
                                                   needles, seed, progress))
        return results[0] if one else results

    def cache_bytes(self, tokens: int, *, plan: Union[Plan, Path, None] = None) -> dict[str, int]:
        """Bytes of cache at a length under a plan: read by a decode step, held, and what a dense model holds."""
        used = self._plan(plan) or self.plan
        if used is None:
            raise TypeError("give a plan; without one, info['cache_bytes'] has the model's own")
        read, held, dense = self._engine.cache_bytes(used, tokens)
        return {"read": read, "held": held, "dense": dense}

    @property
    def held_bytes(self) -> int:
        """Bytes of cache that requests in progress fill."""
        return self._engine.held_bytes()

    def _plan(self, plan: Union[Plan, Path, None]) -> Optional[Plan]:
        if plan is not None and not isinstance(plan, Plan):
            plan = Plan.load(os.fspath(plan))
        if plan is not None:
            self._engine.check_plan(plan)
        return plan
