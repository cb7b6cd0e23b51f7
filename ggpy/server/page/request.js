// From a conversation to a request body of /v1/chat/completions, and from its chunks into a message.

/** What samples: name, range, step; in the order shown. */
export const PARAMETERS = [
  { name: "temperature", low: 0, high: 5, step: 0.05 },
  { name: "top_p", low: 0, high: 1, step: 0.01 },
  { name: "top_k", low: 0, high: 1000, step: 1 },
  { name: "min_p", low: 0, high: 1, step: 0.01 },
  { name: "repetition_penalty", low: 0.01, high: 5, step: 0.01 },
  { name: "presence_penalty", low: -2, high: 2, step: 0.1 },
  { name: "frequency_penalty", low: -2, high: 2, step: 0.1 },
  { name: "max_tokens", low: 1, high: 10_000_000, step: 1 },
  { name: "seed", low: 0, high: 4294967295, step: 1 },
];

export const THINKING = ["Default", "Off", "On", "Low", "Medium", "High"];

/** The body for an answer to the last message of a path. Raises SyntaxError where the tools are no JSON list. */
export function requestBody(settings, model, path) {
  const body = { messages: [], stream: true, stream_options: { include_usage: true }, ...settings.params };
  if (model) body.model = model;
  if (settings.system.trim()) body.messages.push({ role: "system", content: settings.system });
  body.messages.push(...path.map(wireMessage).filter((message) => message !== null));
  const stop = settings.stop.split("\n").filter((text) => text !== "");
  if (stop.length) body.stop = stop;
  if (settings.thinking === "Off" || settings.thinking === "On") {
    body.chat_template_kwargs = { enable_thinking: settings.thinking === "On" };
  } else if (THINKING.includes(settings.thinking) && settings.thinking !== "Default") {
    body.reasoning_effort = settings.thinking.toLowerCase();
  }
  const tools = parseTools(settings.tools);
  if (tools.length) body.tools = tools;
  return body;
}

export function parseTools(text) {
  if (!text.trim()) return [];
  const tools = JSON.parse(text);
  if (!Array.isArray(tools)) throw new SyntaxError("[ … ]");
  return tools;
}

function wireMessage(message) {
  if (message.role === "user") return { role: "user", content: withAttachments(message) };
  if (message.role === "tool") return { role: "tool", tool_call_id: message.toolCallId, content: message.content };
  const calls = message.toolCalls ?? [];
  if (!message.content && !calls.length) return null; // an answer that failed, or was stopped at once
  const found = { role: "assistant", content: message.content };
  // The template decides whether thoughts of earlier turns are part of the prompt.
  if (message.reasoning) found.reasoning_content = message.reasoning;
  if (calls.length) {
    found.tool_calls = calls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
  }
  return found;
}

/** A message's text after its files, each in a fence that is longer than any in it. */
function withAttachments({ content, attachments = [] }) {
  const files = attachments.map(({ name, text }) => {
    const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length).filter((length) => length > 2));
    const fence = "`".repeat(longest + 1);
    return `${name}\n${fence}\n${text.replace(/\n$/, "")}\n${fence}\n\n`;
  });
  return files.join("") + content;
}

/** Follows the chunks of an answer into a message, and keeps its time. */
export class AnswerReader {
  constructor(message, now = () => performance.now()) {
    this.message = message;
    this.now = now;
    this.first = this.last = this.thoughtFrom = null;
  }

  read(chunk) {
    const { message } = this;
    if (typeof chunk.model === "string" && chunk.model) message.model = chunk.model;
    const choice = chunk.choices?.[0];
    if (choice?.delta) this.#delta(choice.delta);
    if (choice?.finish_reason) message.finish = choice.finish_reason;
    if (chunk.usage || chunk.timings) this.#count(chunk.usage ?? {}, chunk.timings ?? {});
  }

  #delta(delta) {
    const { message } = this;
    const thought = delta.reasoning_content ?? delta.reasoning;
    const has = delta.content || thought || delta.tool_calls?.length;
    if (!has) return;
    this.last = this.now();
    this.first ??= this.last;
    if (thought) {
      this.thoughtFrom ??= this.last;
      message.reasoning = (message.reasoning ?? "") + thought;
      message.thoughtSeconds = (this.last - this.thoughtFrom) / 1000;
    }
    if (delta.content) message.content += delta.content;
    for (const piece of delta.tool_calls ?? []) {
      const calls = (message.toolCalls ??= []);
      const call = (calls[Math.min(piece.index ?? 0, calls.length)] ??= { id: "", name: "", arguments: "" });
      if (piece.id) call.id = piece.id;
      if (piece.function?.name) call.name += piece.function.name;
      if (piece.function?.arguments) call.arguments += piece.function.arguments;
    }
  }

  #count(usage, timings) {
    const stats = (this.message.stats ??= {});
    const set = (name, ...values) => {
      const value = values.find(Number.isFinite);
      if (value !== undefined) stats[name] = value;
    };
    set("cached", usage.prompt_tokens_details?.cached_tokens, timings.cache_n);
    set("prompt", usage.prompt_tokens, timings.prompt_n + (timings.cache_n ?? 0));
    set("generated", usage.completion_tokens, timings.predicted_n);
    // Without the server's own figures: the tokens after the first over the time that they took to come.
    const seconds = (this.last - this.first) / 1000;
    set("speed", timings.predicted_per_second, seconds > 0 && stats.generated > 1 ? (stats.generated - 1) / seconds : undefined);
  }
}
