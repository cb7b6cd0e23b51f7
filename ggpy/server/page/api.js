// The server, spoken to as any of its clients would: OpenAI's API.

import { preferences } from "./preferences.js";

/** An answer of the server that is an error; the message is the server's own sentence. status 0: no server. */
export class ApiError extends Error {
  constructor(message, status, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** Relative to the page, which a proxy may have put under a path of its own. */
function address(path) {
  return new URL(path, document.baseURI);
}

function headers() {
  const key = preferences.get("apiKey");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(address(path), { ...options, headers: headers(), credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("", 0);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let text = "";
  try {
    text = await response.text();
    return errorOf(JSON.parse(text), response.status);
  } catch {
    return new ApiError(text.slice(0, 500).trim() || `${response.status} ${response.statusText}`.trim(), response.status);
  }
}

/** An error in OpenAI's shape, {error: {message, param}}, or with less of it. */
function errorOf(body, status) {
  const error = body?.error ?? body?.detail ?? body;
  const message = typeof error === "string" ? error : error?.message;
  return new ApiError(typeof message === "string" && message ? message : JSON.stringify(error), status, error?.param ?? null);
}

/** The models of the server: {id, state, context, sampling} each. Once the model is loaded: its context in tokens, and
 * what it samples with by default, {temperature, …}. */
export async function listModels() {
  const body = await (await ask("v1/models")).json();
  const known = (Array.isArray(body?.data) ? body.data : []).filter((model) => typeof model?.id === "string");
  return known.map(({ id, status, meta }) => ({ id, state: status?.value ?? "loaded", context: meta?.n_ctx ?? null,
    sampling: meta?.sampling ?? {} }));
}

/** The chunks of a streamed chat completion. Raises ApiError for an error before or within it. */
export async function* chat(body, signal) {
  const response = await ask("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  let done = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      done = true;
      break;
    }
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      continue; // a keep-alive of some proxy
    }
    if (chunk?.error) throw errorOf(chunk, response.status);
    yield chunk;
  }
  if (!done) throw new ApiError("", 0); // the connection ended before the answer did
}

/** The data of server-sent events, each event's lines joined. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError("", 0);
      });
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line !== "" || !data.length) continue;
        yield data.join("\n");
        data = [];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
