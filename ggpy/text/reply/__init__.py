"""A model's reply to its parts, thoughts, text and tool calls, while it comes; see docs/replies.md."""

from ggpy.text.reply.events import ContentDelta, Event, ReasoningDelta, ToolCallDelta
from ggpy.text.reply.formats import ReplyFormat, reply_format
from ggpy.text.reply.parser import ReplyParser

__all__ = [
    "ContentDelta", "Event", "ReasoningDelta", "ReplyFormat", "ReplyParser", "ToolCallDelta", "reply_format",
]  # fmt: skip
