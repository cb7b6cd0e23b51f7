"""One setting of thoughts, as each template has it told: by a value that it reads, or by their end being forced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError, quoted
from ggpy.text.reply.formats import ReplyFormat

if TYPE_CHECKING:
    from ggpy.text.chat_template import ChatTemplate

#: Names of values that say whether there are thoughts: Qwen's and most others', DeepSeek's and Granite's, Cohere's.
_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning")
#: Efforts that ask for no thoughts where there are but these two, and the one that asks for nothing.
NO_EFFORT, _USUAL = ("none", "minimal"), "medium"
#: Words of OpenAI's that gpt-oss was not trained on.
_HARMONY = {"minimal": "low", "xhigh": "high", "max": "high"}


@dataclass(frozen=True)
class ReasoningSettings:
    """values: for the template. budget: the tokens after which the end of thoughts is forced; None: never."""

    values: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None


def reasoning_settings(
    template: ChatTemplate, form: ReplyFormat, enabled: bool | None, effort: str | None, budget: int | None
) -> ReasoningSettings:
    """The settings for a model: whether it thinks, how much in a word, for how many tokens at most. None: as the model
    has it. Raises GGPYError where the model cannot do as it is told."""
    reads_effort = "reasoning_effort" in template.values_read
    if enabled is None and effort is not None and (effort == "none" or not reads_effort) and effort != _USUAL:
        enabled = effort not in NO_EFFORT
    if enabled is False:
        budget = 0
    values: dict[str, Any] = {}
    switches = [name for name in _SWITCHES if name in template.values_read]
    if enabled is not None or budget:  # a budget is for thoughts that there are to be
        values |= dict.fromkeys(switches, enabled is not False)
    if effort is not None and effort != "none" and reads_effort:
        values["reasoning_effort"] = _HARMONY.get(effort, effort) if form.name == "harmony" else effort
    elif enabled is False and reads_effort:
        values["reasoning_effort"] = "low" if form.name == "harmony" else "none"
    if budget is not None and "thinking_budget" in template.values_read:
        values["thinking_budget"] = budget
        switches.append("thinking_budget")
    thinks = bool(switches) or reads_effort or form.writes_thoughts
    if enabled and not thinks:
        said = f"an effort of {quoted(effort, 40)}" if effort is not None else "to think"
        raise GGPYError(f"The model cannot be told {said}: its chat template knows of no thoughts.")
    # A switch is followed by what the prompt then holds; nothing has to be forced.
    forced = None if not thinks or (budget == 0 and switches) else budget
    return ReasoningSettings(values, forced)
