"""Prompts of /infill: code before and after a gap, between the tokens by which a model was trained to fill it."""

from __future__ import annotations

from ggpy.protocol.errors import RequestError
from ggpy.protocol.llama_server import InfillBody
from ggpy.server.models import LoadedModel

_SNIPPET = "\n\n--- snippet ---\n\n"  # before each file, where the model has no token for that


def infill_prompt(model: LoadedModel, body: InfillBody) -> tuple[list[int | str], bool]:
    """The token ids of an infill's prompt, in llama-server's order: the repository's other files, the text before the
    gap, the text after it. Of the other files, the first ones are left out that the context has no room for; returns
    whether some are. Raises RequestError where the model was not trained to fill in."""
    from ggpy.prepare import check_length  # which imports the engine

    llm = model.llm
    known = llm.tokenizer.fill_in
    if not {"fim_pre", "fim_suf", "fim_mid"} <= known.keys():
        raise RequestError(f"{llm.path.name} has no tokens for infill; ask /completion.", "model", 501)

    def spelt(text: str) -> list[int]:
        return list(llm.tokenizer.tokenize(text, add_special=False, continues=True)) if text else []

    def named(file: str) -> list[int]:
        return [known["fim_sep"], *spelt(f"{file}\n")] if "fim_sep" in known else spelt(_SNIPPET)

    for name in ("input_prefix", "prompt", "input_suffix"):
        check_length(llm, name, getattr(body, name) or "")
    start = [llm.tokenizer.bos] if llm.tokenizer.add_bos and llm.tokenizer.bos is not None else []
    start += [known["fim_rep"], *spelt("myproject\n")] if "fim_rep" in known else []
    gap = named("filename") if "fim_sep" in known else []
    gap += [known["fim_pre"], *spelt(body.input_prefix), *spelt(body.prompt or "")]
    gap += [known["fim_suf"], *spelt(body.input_suffix), known["fim_mid"]]
    room = llm.n_ctx - max(body.n_predict or 0, 0) - len(start) - len(gap)
    files: list[list[int]] = []
    for file in reversed(body.input_extra):
        if len(file.text) > max(room, 0) * llm.tokenizer.longest_token:
            break  # unread: it cannot fit
        ids = [*named(file.filename or "tmp"), *spelt(file.text)]
        room -= len(ids)
        if room < 0:
            break
        files.insert(0, ids)
    return [*start, *(token for file in files for token in file), *gap], len(files) < len(body.input_extra)
