// Conversations as a JSON file, out and in. What comes in is a stranger's: only known fields of the right types are
// taken, and ids are made anew so that nothing here is overwritten.

import { newId } from "./dom.js";

const FORMAT = "ggpy.chats";

/** The text of a file. given: [{conversation, messages}] */
export function exported(given) {
  const chats = given.map(({ conversation, messages }) => ({ ...conversation, messages }));
  return JSON.stringify({ format: FORMAT, version: 1, exported: new Date().toISOString(), chats }, null, 1);
}

/** The conversations of a file's text, [{conversation, messages}]; null if it is none of ours. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    return null;
  }
  if (file?.format !== FORMAT || !Array.isArray(file.chats)) return null;
  return file.chats.filter((chat) => isObject(chat) && Array.isArray(chat.messages)).map(chatOf);
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

const text = (value) => (typeof value === "string" ? value : "");
const finite = (value) => (Number.isFinite(value) ? value : null);

function chatOf(chat) {
  const id = newId();
  const ids = new Map();
  const given = chat.messages.filter((message) => isObject(message) && ["user", "assistant", "tool"].includes(message.role));
  const messages = given.sort((a, b) => (finite(a.order) ?? 0) - (finite(b.order) ?? 0)).map((message, i) => {
    const made = {
      id: newId(),
      conversation: id,
      parent: ids.get(message.parent) ?? null, // an older one: a circle cannot be
      order: i,
      role: message.role,
      content: text(message.content),
      created: finite(message.created) ?? Date.now(),
      ...optional(message),
    };
    ids.set(message.id, made.id);
    return made;
  });
  const now = Date.now();
  const conversation = {
    id,
    title: text(chat.title).slice(0, 200),
    created: finite(chat.created) ?? now,
    updated: finite(chat.updated) ?? now,
    leaf: ids.get(chat.leaf) ?? null,
    settings: settingsOf(chat.settings),
  };
  return { conversation, messages };
}

/** The fields that only some messages have. */
function optional(message) {
  const found = {};
  for (const name of ["reasoning", "model", "error", "finish", "toolCallId"]) {
    if (typeof message[name] === "string") found[name] = message[name];
  }
  if (finite(message.thoughtSeconds) !== null) found.thoughtSeconds = message.thoughtSeconds;
  if (Array.isArray(message.attachments)) {
    found.attachments = message.attachments.filter(isObject).map((file) => ({ name: text(file.name), text: text(file.text) }));
  }
  if (Array.isArray(message.toolCalls)) {
    found.toolCalls = message.toolCalls.filter(isObject)
      .map((call) => ({ id: text(call.id), name: text(call.name), arguments: text(call.arguments) }));
  }
  if (isObject(message.stats)) {
    found.stats = Object.fromEntries(Object.entries(message.stats).filter(([, value]) => Number.isFinite(value)));
  }
  return found;
}

export function settingsOf(given) {
  const settings = isObject(given) ? given : {};
  const params = Object.entries(isObject(settings.params) ? settings.params : {}).filter(([, value]) => Number.isFinite(value));
  return {
    model: text(settings.model),
    system: text(settings.system),
    params: Object.fromEntries(params),
    stop: text(settings.stop),
    thinking: text(settings.thinking),
    tools: text(settings.tools),
  };
}
