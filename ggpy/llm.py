"""The Python API: `LLM` loads a model and completes, chats and scores. The names are vLLM's where it has them.

from ggpy import LLM, SamplingParams

llm = LLM("model.gguf")
print(llm.generate("The capital of France is", SamplingParams(max_tokens=16))[0].outputs[0].text)
for delta in llm.chat([{"role": "user", "content": "你好"}], stream=True):
    print(delta, end="", flush=True)
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ggpy import arguments
from ggpy.answers import Answers, answers_of
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.host import forks
from ggpy.hub.find_model import find_model
from ggpy.llm_options import context_shift_of, load_options, open_engine, speculation_of
from ggpy.outputs import EmbeddingRequestOutput, RankOutput, RequestOutput, TextDelta
from ggpy.prompts import Message, Prompt, conversations, encoded, several
from ggpy.runtime.load import Model, load_model
from ggpy.sampling.sampling_params import SamplingParams, file_sampling_defaults, params_or_default
from ggpy.text.chat_messages import merged_values
from ggpy.text.chat_template import no_template

if TYPE_CHECKING:
    from ggpy.choose import ChoiceOutput
    from ggpy.engine.beam_requests import BeamSearchRequest
    from ggpy.engine.beam_search import BeamSearchOutput, BeamSearchParams
    from ggpy.notes import Notify


class LLM:
    """A model, ready to answer.

    path: a GGUF file, or whatever else `ggpy.hub.find_model` finds: a checkpoint folder, which is converted into the
    cache on first use, a model known by name, hf:user/repo or modelscope:user/repo; the attribute `path` is then the
    file. file_type: the type that a folder is converted to, such as "q4_0"; None takes q8_0.
    n_ctx: tokens of context that a request may have; None takes the context that the model was trained with, as far as
    memory holds it. n_parallel: requests evaluated together. On the CPU they share the cache where memory does not hold
    so many whole contexts, each with as much as its prompt and `max_tokens` take. n_threads: None takes the physical
    cores that the process may use. notify: called with one-line notes (the context chosen, a first compilation); None
    logs them.
    cache_type_k, cache_type_v: how keys and values are cached, "f16", "bf16", "f32" (these two on the CPU alone) or
    "q8_0", which takes half the memory of f16; None takes f16, or f32 for a float32 model on the CPU. A number
    beyond a type's range is clipped to its largest one, and that is reported once. device: "cpu", "cuda" for NVIDIA
    GPUs (the first one, or all of them where the model needs more memory), "cuda:1" or "cuda:0,1" for those of these
    numbers; "auto" for a GPU where one can be used. n_gpu_layers: how many of the last layers run on the GPU, the CPU
    running the others; None or "auto" is as many as fit its free memory, "all" or -1 is all. split_mode: what several
    GPUs share, "layer" or "row": see `ggpy.graph.tensor_parallel`. batch_invariant: on a GPU too, what a request gets
    does not depend on the requests evaluated with it, at the price of speed with many; on the CPU that always holds.
    cache_ram: bytes of host memory for conversations whose place another one takes, so that they go on without being
    evaluated again, as in 1 << 30 or "1G"; None: on the CPU a tenth of what the weights and the working memory leave of
    95 % of the free memory, at most 2 GiB, on a GPU none.
    kv_memory: the most memory that keys, values and other state of all requests take, from which the context is chosen
    where `n_ctx` is None: bytes, as in 2 << 30 or "2G", or a share, as in 0.5 or "50%", of what weights, working memory
    and host memory for earlier conversations leave of 95 % of the free memory; None is all of that.
    speculative: "ngram" evaluates, together with each token, those that followed it earlier in the text: the same
    answers, sooner where they repeat what was said; "mtp" has the model's own head predict further tokens, where the
    file has one (Qwen3.5, Qwen3-Next, GLM-4.5), with the same answers again. speculative_config: the same with
    settings, {"method": "ngram", "num_speculative_tokens": 24, …}, as vLLM's. draft_model: a second, smaller model of
    the same vocabulary, which drafts tokens that this one then evaluates together: again the same answers.
    context_shift: an answer that has filled its context goes on, without the oldest half of what follows the first
    message, or the first `n_keep` tokens of the prompt (half the context at most); else it ends, as "length".
    chat_template: in place of the file's own template another of those that it holds by name, "chatml", or a file.

    Raises GGPYError where the file or a value is of no use. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_parallel: int = 4,
        notify: Notify | None = None,
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
        device: str = "cpu",
        n_gpu_layers: int | str | None = None,
        split_mode: str = "layer",
        batch_invariant: bool = False,
        file_type: str | None = None,
        kv_memory: int | float | str | None = None,
        cache_ram: int | str | None = None,
        speculative: str | None = None,
        speculative_config: Mapping[str, Any] | None = None,
        draft_model: str | os.PathLike[str] | None = None,
        context_shift: bool = False,
        n_keep: int | None = None,
        chat_template: str | os.PathLike[str] | None = None,
    ) -> None:
        arguments.path("path", path)
        if file_type is not None:
            arguments.text("file_type", file_type)
        if chat_template is not None:
            arguments.path("chat_template", chat_template)
        speculation = speculation_of(speculative, draft_model, speculative_config)
        notify = logging.getLogger("ggpy").info if notify is None else arguments.function("notify", notify)
        shift = context_shift_of(context_shift, n_keep, notify)
        options = load_options(
            n_ctx=n_ctx,
            n_threads=n_threads,
            n_parallel=n_parallel,
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            device=device,
            n_gpu_layers=n_gpu_layers,
            split_mode=split_mode,
            batch_invariant=batch_invariant,
            kv_memory=kv_memory,
            cache_ram=cache_ram,
            notify=notify,
        )
        self.path = find_model(path, file_type, notify)
        draft_path = find_model(speculation.model, file_type, notify) if speculation and speculation.model else None
        head = speculation is not None and speculation.method == "mtp"
        model = load_model(self.path, chat_template=chat_template, draft=draft_path, head=head, **options)
        self.file, self.runtime = model.file, model.runtime
        self.tokenizer, self.template = model.tokenizer, model.template
        self.engine, models = open_engine(model, draft_path, speculation, shift, notify)
        self.lock = threading.RLock()  # one thread at a time in the engine; each step serves everyone's requests
        # Also where nobody closes it: threads that wait for work would keep the weights in memory for ever.
        self._release = weakref.finalize(self, _release, models)
        self.sampling_defaults = file_sampling_defaults(self.file.metadata, str(self.path))
        self._answers = Answers(self.engine, self.lock, self.check_open, self.sampling_defaults)
        forks.watch(self)

    @property
    def n_ctx(self) -> int:
        return self.runtime.n_ctx

    @property
    def n_vocab(self) -> int:
        return self.runtime.n_vocab

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: Literal[False] = False,
        progress: bool = False,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: Literal[True],
    ) -> Iterator[TextDelta]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: bool = False,
        progress: bool = False,
    ) -> list[RequestOutput] | Iterator[TextDelta]:
        """Complete prompts as they stand; no chat template is applied.

        prompts: a text, a list of token ids, {"prompt": text}, {"prompt_token_ids": ids}, or a list of these;
        or `prompt_token_ids` alone. sampling_params: one for all, or one for each prompt.
        stream: yield pieces of text as they come, instead of returning everything at the end. progress: show a bar on a
        terminal. Thousands of prompts may be given; a prompt that could not run is an error before the first does.
        """
        if (prompts is None) == (prompt_token_ids is None):
            raise GGPYError("generate needs prompts or prompt_token_ids, and not both.")
        if prompt_token_ids is None:
            texts_and_ids = [self.encode(prompt) for prompt in several("prompts", prompts)]
        else:
            each = several("prompt_token_ids", prompt_token_ids)
            texts_and_ids = [(None, arguments.token_ids("prompt_token_ids", ids)) for ids in each]
        self.check_writes()
        return self._answers.answer(texts_and_ids, sampling_params, stream, progress)

    @overload
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[False] = False,
        progress: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        **template_values: Any,
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[True],
        template_kwargs: Mapping[str, Any] | None = None,
        **template_values: Any,
    ) -> Iterator[TextDelta]: ...

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: bool = False,
        progress: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        **template_values: Any,
    ) -> list[RequestOutput] | Iterator[TextDelta]:
        """Answer a conversation, or each of several, by the file's own chat template.

        messages: [{"role": "system" | "user" | "assistant", "content": text}, …]. template_values, and those that
        template_kwargs holds by name, go to the template, which has to read them: `tools` and `documents`, lists of
        dicts, `enable_thinking` and so on; but for continue_final_message, which has the model go on with the last
        message, and add_generation_prompt, which is True. progress: as of `generate`.
        """
        values = merged_values(template_kwargs, template_values)
        rendered = [self.render_chat(one, template_kwargs=values) for one in conversations(messages)]
        self.check_writes()
        texts_and_ids = [(text, self.tokenize_chat(text)) for text in rendered]
        return self._answers.answer(texts_and_ids, sampling_params, stream, progress)

    def beam_search(self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """The likeliest continuations of prompts, by a search that follows `params.beam_width` at a time: for each
        prompt, in their order, that many, the best first. Prompts as `generate` takes them; several are searched
        together as far as `n_parallel` reaches, beside other threads' requests.
        """
        from ggpy.engine.beam_requests import run_searches

        searches = [self.beam_search_request(prompt, params) for prompt in several("prompts", prompts)]
        run_searches(self.engine, self.lock, searches, self.check_open)
        return [search.output() for search in searches]

    def beam_search_request(self, prompt: Prompt, params: BeamSearchParams, priority: int = 0) -> BeamSearchRequest:
        """The search for one prompt's continuations, for callers who watch it instead of waiting for its result."""
        from ggpy.engine.beam_requests import BeamSearchRequest

        self.check_writes()
        return BeamSearchRequest(self.engine, self.encode(prompt)[1], params, priority)

    def choose(
        self,
        prompt: Prompt | Sequence[Message],
        options: Sequence[str],
        *,
        score_end: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        **template_values: Any,
    ) -> ChoiceOutput:
        """The probability of each of some texts as what follows a prompt: exact, by the model's own logits, with
        nothing drawn. The prompt is evaluated once, the options beside each other.

        prompt: as of `generate`, or the messages of one conversation with values for the template, as of `chat`.
        score_end: the probability that the answer is that text and ends; without it, that the answer begins with it,
        which an option that others begin with shares with them.
        """
        from ggpy.choose import choose

        return choose(self, prompt, options, score_end, merged_values(template_kwargs, template_values))

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: str | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        progress: bool = False,
    ) -> list[EmbeddingRequestOutput]:
        """Texts as vectors, by a model made for that: one for each prompt, in their order; prompts as `generate` takes
        them, any number of them, as many evaluated together as a step holds.

        pooling: how the rows of a text's tokens become one: "mean", "cls" (the first) or "last", or "none" for all of
        them, [n_tokens, n_cols]; None is as the model was trained. normalize: scale each to length 1, so that a product
        of two is their cosine. dimensions: keep only so many of the first, as models trained for it (Matryoshka)
        allow. progress: show a bar on a terminal."""
        from ggpy.embeddings import embed

        return embed(self, prompts, pooling, normalize, dimensions, progress)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        normalize: bool = True,
        instruction: str | None = None,
        progress: bool = False,
    ) -> list[RankOutput]:
        """Documents in the order in which they answer a query, the best first, by a model made for that: one with a
        classifier (bge-reranker, ms-marco-MiniLM …) or Qwen3-Reranker.

        top_n: only so many. normalize: scores from 0 to 1 (a sigmoid; of Qwen3's yes and no their softmax), else the
        classifier's own numbers. instruction: what the task is, for models that are told it. progress: show a bar on a
        terminal."""
        from ggpy.ranking import rank

        return rank(self, query, documents, top_n, normalize, instruction, progress)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after each token, float32 [n_tokens, n_vocab]; answers being generated go on undisturbed."""
        ids = arguments.token_ids("token_ids", token_ids)
        with self.lock:
            self.check_writes()
            return self.engine.logits(ids)

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text. add_special: with the tokens that the model wants at its ends. parse_special: control
        tokens written out in the text become themselves."""
        return self.tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of token ids; invalid UTF-8 shows as U+FFFD."""
        return self.tokenizer.detokenize(ids, skip_special=skip_special)

    def render_chat(
        self, messages: Sequence[Message], *, template_kwargs: Mapping[str, Any] | None = None, **template_values: Any
    ) -> str:
        """The text of a conversation by the file's template, up to where the answer begins. template_kwargs,
        template_values: as of `chat`."""
        if self.template is None:
            raise no_template(self.file)
        values = merged_values(template_kwargs, template_values)
        self.template.check_values(values)
        return self.template.render(messages, **values)

    def tokenize_chat(self, rendered: str) -> list[int]:
        """Token ids of a rendered conversation, special tokens parsed; BOS is first, once, where the model wants it."""
        return self.tokenizer.tokenize_chat(rendered)

    def request(
        self, prompt_token_ids: Sequence[int], params: SamplingParams | None = None, priority: int = 0
    ) -> Request:
        """One prompt as a request for `follow`, for callers who watch a request instead of waiting for its result. Of
        requests that wait, the one of the lowest number of `priority` is first."""
        self.check_writes()
        ids = arguments.token_ids("prompt_token_ids", prompt_token_ids)
        return self.engine.request(*self._answers.resolved(ids, params_or_default("params", params)), priority)

    def requests(
        self, prompt_token_ids: Sequence[int], params: SamplingParams | None = None, priority: int = 0
    ) -> list[Request]:
        """As `request`, one for each of the `n` answers that the parameters ask for."""
        self.check_writes()
        ids = arguments.token_ids("prompt_token_ids", prompt_token_ids)
        ids, resolved = self._answers.resolved(ids, params_or_default("params", params))
        return [self.engine.request(ids, one, priority) for one in answers_of(resolved)]

    def follow(self, requests: Sequence[Request]) -> Generator[tuple[int, str], None, None]:
        """Run requests until all are finished; yields (index in `requests`, new text). Closing it early ends them."""
        words = "a list of what `request` returned"
        for request in (found := arguments.several("requests", requests, words)):
            if not isinstance(request, Request):
                raise arguments.wrong("requests", requests, words)
        return self._answers.follow(found)

    def save_state(self, path: str | os.PathLike[str], token_ids: Sequence[int] | None = None) -> int:
        """Save the evaluated state of the conversation that was last answered, or of the one that begins most like
        `token_ids`, in a file; returns its number of tokens. `load_state` goes on from it, in another process too."""
        from ggpy.engine import saved_state

        arguments.path("path", path)
        ids = None if token_ids is None else arguments.token_ids("token_ids", token_ids)
        with self.lock:
            self.check_open()
            parked = self.engine.saved(ids)
        key = saved_state.model_key(self.file, self.n_ctx)
        runtime = self.runtime
        saved_state.write(path, parked, key, runtime.cache_type, runtime.devices, list(self.file.paths))
        return len(parked.tokens)

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """Put the state that `save_state` wrote into a slot; returns its number of tokens. A prompt that begins like it
        is then evaluated from there. Raises GGPYError for another model's, or a damaged file."""
        from ggpy.engine import saved_state

        arguments.path("path", path)
        self.check_open()
        key = saved_state.model_key(self.file, self.n_ctx)
        runtime = self.runtime
        parked = saved_state.read(path, key, runtime.cache_type, runtime.devices, self.n_ctx, self.n_vocab)
        with self.lock:
            self.check_open()
            try:
                self.engine.load(parked)
            except ValueError:
                raise GGPYError(
                    f"{os.fspath(path)} was saved with another context or step size, which this model's windows depend"
                    " on; open the model as then, or delete the file."
                ) from None
        return len(parked.tokens)

    def close(self) -> None:
        """Free the memory and close the file. Harmless twice."""
        with self.lock:
            self._release()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def before_fork(self) -> None:
        self.lock.acquire()  # no other thread is within a step when memory is copied

    def after_fork(self, in_child: bool) -> None:
        self.lock.release()

    def check_open(self) -> None:
        """Raise GGPYError where the model was closed."""
        if not self._release.alive:
            raise GGPYError(f"{self.path.name} was closed; open it again with LLM(path).")

    def check_writes(self) -> None:
        """Raise GGPYError where the model was closed, or writes no text."""
        self.check_open()
        if not self.runtime.hparams.writes_text:
            raise GGPYError(
                f"{self.path.name} is a {self.runtime.hparams.arch} model: it embeds texts and writes none."
            )

    def encode(self, prompt: Any) -> tuple[str | None, list[int]]:
        """The text of a prompt, None where it came as token ids, and its token ids; raises GGPYError for what is no
        prompt."""
        return encoded(prompt, self.tokenizer)


def _release(models: Sequence[Model]) -> None:
    for model in models:
        model.close()
