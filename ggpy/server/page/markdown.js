// Markdown, as language models write it, to a tree of plain objects. No page and no HTML: `markdown_view.js` makes
// elements of the tree. Any text parses, in time proportional to its length; what is not markdown is text.
//
// Differences from CommonMark, each for what models write: a line's end is a line break; `---` under a line is a rule,
// not a heading; four spaces are no code; emphasis may end between punctuation and a letter, as in **注意：**内容;
// HTML is text, but for <br>; formulas stay as they are written.

import { parseInline } from "./inline.js";

const DEPTH = 12; // quotes and lists inside each other; deeper ones are text

// None of these may look at a line's character more than a few times: a line can be a megabyte of spaces.
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+•]|\d{1,9}[.)])([ \t]+|$)/;
const DELIMITERS = /^\|?[ \t]*:?-+:?(?:[ \t]*\|[ \t]*:?-+:?)*[ \t]*\|?$/;
const MATH = /^ {0,3}(\$\$|\\\[)/;

/** The blocks of a text, each with `line`, the number of its first line. */
export function parseMarkdown(text) {
  return parseBlocks(text.replaceAll("\r\n", "\n").split("\n"), 0);
}

/** Reads a text that grows, from where it may still change. */
export class MarkdownReader {
  text = "";
  #from = 0; // where in the text that is
  #kept = 0; // blocks before it

  /** The blocks after the first `kept`, which are those of the last time. */
  update(text) {
    if (!text.startsWith(this.text)) this.#from = this.#kept = 0;
    this.text = text;
    const rest = text.slice(this.#from);
    const blocks = parseMarkdown(rest);
    const found = { kept: this.#kept, blocks };
    // The last line may still become something else, and the one before it a table's head: what is added can change the
    // last block that begins before those, and nothing that stands before it.
    const last = rest.split("\n").length - 1;
    let tail = blocks.length - 1;
    while (tail > 0 && blocks[tail].line > last - 2) tail -= 1;
    if (tail > 0) {
      this.#from += lineOffset(rest, blocks[tail].line);
      this.#kept += tail;
    }
    return found;
  }
}

function lineOffset(text, line) {
  let at = 0;
  for (let i = 0; i < line; i += 1) at = text.indexOf("\n", at) + 1;
  return at;
}

function parseBlocks(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [block, next] = parseBlock(lines, at, depth);
    blocks.push({ ...block, line: at });
    at = next;
  }
  return blocks;
}

/** The block that begins at a line that is not blank, and the line after it. */
function parseBlock(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, inline: parseInline(headingText(line)) }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (MATH.test(line)) {
    const found = math(lines, at);
    if (found) return found;
  }
  if (depth < DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

/** A heading's text, without the marks before it and those that may stand after it. */
function headingText(line) {
  const text = line.trim().replace(/^#+/, "").trim();
  let end = text.length;
  while (text[end - 1] === "#") end -= 1;
  return end === 0 || /\s/.test(text[end - 1]) ? text.slice(0, end).trim() : text;
}

/** Whether a line begins a block in the middle of a paragraph. */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || MATH.test(line)) return true;
  if (depth < DEPTH && QUOTE.test(line)) return true;
  const item = depth < DEPTH && ITEM.exec(line);
  // "…in\n1986. It was" goes on; a list that interrupts begins with a bullet or with 1, and has a text.
  if (item && item[3] && item[0].length < line.length && (/\D/.test(item[2][0]) || parseInt(item[2], 10) === 1)) return true;
  return isTable(lines, at);
}

function code(lines, at, fence) {
  const indent = columnsOf(lines[at]);
  const close = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},} *$`);
  const found = [];
  let next = at + 1;
  for (; next < lines.length && !close.test(lines[next]); next += 1) found.push(dedent(lines[next], indent));
  const closed = next < lines.length;
  return [{ kind: "code", language: fence[2].trim().split(/\s/)[0].slice(0, 40), text: found.join("\n"), closed },
    closed ? next + 1 : next];
}

/** How many columns of white space a line begins with; a tab is four. */
function columnsOf(line) {
  let columns = 0;
  for (let at = 0; line[at] === " " || line[at] === "\t"; at += 1) columns += line[at] === "\t" ? 4 : 1;
  return columns;
}

/** A line without so many columns of the white space that it begins with. */
function dedent(line, columns) {
  let cut = 0;
  let at = 0;
  for (; cut < columns && (line[at] === " " || line[at] === "\t"); at += 1) cut += line[at] === "\t" ? 4 : 1;
  return " ".repeat(Math.max(0, cut - columns)) + line.slice(at);
}

/** A formula on lines of its own, up to its end or a blank line; null where text follows on the line that ends it. */
function math(lines, at) {
  const open = MATH.exec(lines[at])[1];
  const close = open === "$$" ? "$$" : "\\]";
  const found = [];
  for (let next = at; next < lines.length && lines[next].trim(); next += 1) {
    const line = lines[next].trim();
    found.push(line);
    const end = line.indexOf(close, next === at ? open.length : 0);
    if (end < 0) continue;
    return end + close.length === line.length ? [{ kind: "math", text: found.join("\n") }, next + 1] : null;
  }
  return [{ kind: "math", text: found.join("\n") }, at + found.length];
}

function quote(lines, at, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    if (QUOTE.test(line)) inner.push(line.replace(QUOTE, ""));
    else if (line.trim() && inner.at(-1).trim() && !interrupts(lines, next, depth)) inner.push(line); // a lazy line
    else break;
  }
  return [{ kind: "quote", blocks: parseBlocks(inner, depth + 1) }, next];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const kind = kindOf(first[2]);
  const items = [];
  let next = at;
  let loose = false;
  while (next < lines.length) {
    const marker = ITEM.exec(lines[next]);
    if (!marker || kindOf(marker[2]) !== kind || RULE.test(lines[next])) break;
    if (items.length && columnsOf(marker[1]) > columnsOf(first[1]) + 3) break;
    const [inner, after] = itemLines(lines, next, marker, depth);
    let end = inner.length;
    while (end > 0 && !inner[end - 1].trim()) end -= 1;
    const blankAfter = end < inner.length;
    items.push(item(inner.slice(0, end), depth));
    next = after;
    const another = next < lines.length && ITEM.exec(lines[next]);
    if ((blankAfter && another && kindOf(another[2]) === kind) || items.at(-1).loose) loose = true;
  }
  const start = /\d/.test(first[2]) ? parseInt(first[2], 10) : null;
  return [{ kind: "list", start, loose, items }, next];
}

function kindOf(marker) {
  return marker.at(-1); // another mark begins another list
}

/** The lines of a list's item, without its indentation, and the line after it. */
function itemLines(lines, at, marker, depth) {
  const outer = columnsOf(marker[1]);
  const spaces = marker[3].length > 4 ? 1 : Math.max(marker[3].length, 1);
  const indent = outer + marker[2].length + spaces;
  const inner = [lines[at].slice(marker[1].length + marker[2].length + Math.min(spaces, marker[3].length))];
  let fence = fenceAfter(null, inner[0]);
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    const columns = columnsOf(line);
    if (!line.trim()) {
      // A blank line belongs to the item if what follows does.
      inner.push("");
      continue;
    }
    // Models indent what is inside "1. " by two spaces as often as by three.
    const inside = columns >= indent || (columns >= outer + 2 && (ITEM.test(line) || FENCE.test(line.trim())));
    const lazy = !fence && inner.at(-1).trim() && !ITEM.test(line) && !interrupts(lines, next, depth);
    if (!inside && !lazy) break;
    inner.push(dedent(line, indent));
    fence = fenceAfter(fence, inner.at(-1));
  }
  return [inner, next];
}

/** The fence that is open after a line. */
function fenceAfter(fence, line) {
  const found = FENCE.exec(line);
  if (!found) return fence;
  if (!fence) return found[1];
  return found[1][0] === fence[0] && found[1].length >= fence.length && !found[2].trim() ? null : fence;
}

function item(lines, depth) {
  const task = /^\[([ xX])\] +/.exec(lines[0] ?? "");
  if (task) lines = [lines[0].slice(task[0].length), ...lines.slice(1)];
  const blocks = parseBlocks(lines, depth + 1);
  const loose = blocks.some((block, i) => i > 0 && !lines[block.line - 1].trim());
  return { blocks, checked: task ? task[1] !== " " : null, loose };
}

function isTable(lines, at) {
  return at + 1 < lines.length && lines[at].includes("|") && /[|:]/.test(lines[at + 1]) && DELIMITERS.test(lines[at + 1].trim())
    && cells(lines[at]).length === cells(lines[at + 1]).length;
}

/** The cells of a table's row: split at bars that no backslash precedes. */
function cells(line) {
  const found = line.trim().replace(/^\|/, "").split(/(?<!\\)\|/);
  if (found.length > 1 && !found.at(-1).trim()) found.pop();
  return found.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => {
    if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "right";
    return cell.startsWith(":") ? "left" : null;
  });
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && lines[next].trim() && lines[next].includes("|"); next += 1) {
    const row = cells(lines[next]);
    rows.push(align.map((_, i) => parseInline(row[i] ?? "")));
  }
  return [{ kind: "table", align, head: cells(lines[at]).map((cell) => parseInline(cell)), rows }, next];
}

function paragraph(lines, at, depth) {
  const found = [lines[at].trim()];
  let next = at + 1;
  for (; next < lines.length && lines[next].trim() && !interrupts(lines, next, depth); next += 1) found.push(lines[next].trim());
  return [{ kind: "paragraph", inline: parseInline(found.join("\n")) }, next];
}
