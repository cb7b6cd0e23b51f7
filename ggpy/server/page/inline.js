// What stands inside a line of markdown, to a tree: text, break, code, math, strong, em, del, link.

const DEPTH = 16; // emphasis and links inside each other; deeper ones are text
const PLAIN = /(?:(?!https?:\/\/)[^\\`*_~[\]!<&$\n])+/y;
const RUN = /([*_~])\1*/y;
const TICKS = /`+/y;
const ADDRESS = /https?:\/\/[^\s<>"`|\u3000-\u303f\uff00-\uffef\u4e00-\u9fff“”‘’…—]+/iy;
const BRACKETED = /<(https?:\/\/[^\s<>]+)>/iy;
const BREAK = /<br *\/?>/iy;
const ENTITY = /&(?:(amp|lt|gt|quot|apos|nbsp|times|rarr|larr|le|ge|hellip|mdash|ndash)|#(\d{1,7})|#x([0-9a-f]{1,6}));/iy;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", times: "×", rarr: "→", larr: "←",
  le: "≤", ge: "≥", hellip: "…", mdash: "—", ndash: "–" };
const WORD = /[\p{L}\p{N}]/u;

/** The nodes of a text. */
export function parseInline(text) {
  return new Inline(text).parse();
}

/** An address that a link may lead to: absolute, http or https; otherwise null. */
export function safeAddress(address) {
  try {
    const url = new URL(address);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
  } catch {
    return null;
  }
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.nodes = [];
    this.brackets = []; // where "[" stands in `nodes`, and whether it is an image's
    this.imageAround = 0; // how many of the brackets, from the first, stand around an image
    this.absent = new Set(); // closing marks that are known not to follow any more
    this.ticks = null;
  }

  parse() {
    while (this.at < this.text.length) this.step();
    return emphasized(this.nodes);
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  put(text, length = text.length) {
    const last = this.nodes.at(-1);
    if (last?.kind === "text" && !last.run && !last.bracket) last.text += text;
    else this.nodes.push({ kind: "text", text });
    this.at += length;
  }

  push(node, length) {
    this.nodes.push(node);
    this.at += length;
  }

  step() {
    const plain = this.match(PLAIN);
    if (plain) return this.put(plain[0]);
    const { text, at } = this;
    switch (text[at]) {
      case "\n": return this.push({ kind: "break" }, 1);
      case "\\": return this.backslash();
      case "`": return this.code();
      case "$": return this.dollars();
      case "[": return this.open("[");
      case "!": return text[at + 1] === "[" ? this.open("![") : this.put("!");
      case "]": return this.close();
      case "*": case "_": case "~": return this.run();
      case "<": return this.angle();
      case "&": return this.entity();
      default: return this.address();
    }
  }

  backslash() {
    const { text, at } = this;
    const next = text[at + 1];
    if (next === "(" || next === "[") {
      const end = this.find(next === "(" ? "\\)" : "\\]", at + 2);
      if (end >= 0) return this.push({ kind: "math", text: text.slice(at, end + 2) }, end + 2 - at);
    }
    if (next === "\n") return this.push({ kind: "break" }, 2);
    if (next && /[!-/:-@[-`{-~]/.test(next)) return this.put(next, 2);
    return this.put("\\");
  }

  /** Where a closing mark stands next, or -1; what is not found once is never looked for again. */
  find(mark, from) {
    if (this.absent.has(mark)) return -1;
    const end = this.text.indexOf(mark, from);
    if (end < 0) this.absent.add(mark);
    return end;
  }

  code() {
    const ticks = this.match(TICKS)[0];
    const start = this.at + ticks.length;
    const end = this.ticksAfter(ticks.length, start);
    if (end === undefined) return this.put(ticks);
    let inside = this.text.slice(start, end).replaceAll("\n", " ");
    if (inside.trim() && inside.startsWith(" ") && inside.endsWith(" ")) inside = inside.slice(1, -1);
    return this.push({ kind: "code", text: inside }, end + ticks.length - this.at);
  }

  /** Where the next run of exactly so many backticks begins. */
  ticksAfter(length, from) {
    if (!this.ticks) {
      this.ticks = new Map();
      for (const found of this.text.matchAll(/`+/g)) {
        if (!this.ticks.has(found[0].length)) this.ticks.set(found[0].length, []);
        this.ticks.get(found[0].length).push(found.index);
      }
      for (const list of this.ticks.values()) list.reverse(); // the next one last
    }
    const list = this.ticks.get(length) ?? [];
    while (list.length && list.at(-1) < from) list.pop();
    return list.at(-1);
  }

  /** $…$ and $$…$$; "$5 to $10" are prices: a formula neither begins nor ends with a space, and no digit follows it. */
  dollars() {
    const { text, at } = this;
    const mark = text[at + 1] === "$" ? "$$" : "$";
    const start = at + mark.length;
    if (start >= text.length || (mark === "$" && /\s/.test(text[start]))) return this.put(mark);
    const end = this.find(mark, start);
    if (end < 0 || end - start > 1000 || end === start) return this.put(mark);
    const after = text[end + mark.length] ?? "";
    if (mark === "$" && (/\s/.test(text[end - 1]) || /\d/.test(after))) return this.put(mark);
    return this.push({ kind: "math", text: text.slice(at, end + mark.length) }, end + mark.length - at);
  }

  open(mark) {
    this.brackets.push({ index: this.nodes.length, image: mark === "![" });
    this.push({ kind: "text", text: mark, bracket: true }, mark.length);
  }

  close() {
    const bracket = this.brackets.pop();
    const within = bracket?.image && this.brackets.length < this.imageAround;
    this.imageAround = Math.min(this.imageAround, this.brackets.length);
    const target = bracket && !within && this.text[this.at + 1] === "(" ? this.target(this.at + 2) : null;
    const href = target && safeAddress(target.address);
    if (!href) return this.put("]");
    const inside = emphasized(this.nodes.splice(bracket.index).slice(1));
    // An image is not fetched, as that would tell its server who reads: it is a link to where it is, or a part of the
    // link around it. Links in links are text, and images in images.
    const children = unlinked(inside.length ? inside : [{ kind: "text", text: href }]);
    if (bracket.image) this.imageAround = this.brackets.length;
    else [this.brackets, this.imageAround] = [[], 0];
    return this.push({ kind: "link", href, image: bracket.image, children }, target.end - this.at);
  }

  /** What follows "](": an address, perhaps a title, and ")". */
  target(from) {
    const { text } = this;
    const limit = Math.min(text.length, from + 2000);
    let at = from;
    let depth = 0;
    if (text[at] === "<") {
      const end = text.slice(at, limit).search(/[>\n]/);
      if (end < 0 || text[at + end] !== ">") return null;
      const rest = /^ *\)/.exec(text.slice(at + end + 1, at + end + 20));
      return rest && { address: text.slice(at + 1, at + end), end: at + end + 1 + rest[0].length };
    }
    for (; at < limit; at += 1) {
      const character = text[at];
      if (character === "(" && (depth += 1) > 8) return null;
      if (character === ")" && (depth -= 1) < 0) return { address: text.slice(from, at), end: at + 1 };
      if (/\s/.test(character)) break;
    }
    const title = /^ +(?:"[^"\n]*"|'[^'\n]*'|\([^)\n]*\))? *\)/.exec(text.slice(at, at + 500));
    return title && depth === 0 ? { address: text.slice(from, at), end: at + title[0].length } : null;
  }

  run() {
    const [marks, mark] = this.match(RUN);
    const { text, at } = this;
    const before = text[at - 1] ?? " ";
    const after = text[at + marks.length] ?? " ";
    let opens = !/\s/.test(after);
    let closes = !/\s/.test(before);
    if (mark === "_") [opens, closes] = [opens && !WORD.test(before), closes && !WORD.test(after)];
    if (mark === "*" && /\d/.test(before) && /\d/.test(after)) opens = closes = false; // 3*4
    if (mark === "~" && marks.length !== 2) opens = closes = false;
    if (!opens && !closes) return this.put(marks);
    return this.push({ kind: "text", text: marks, run: { mark, count: marks.length, length: marks.length, opens, closes } },
      marks.length);
  }

  angle() {
    const found = this.match(BRACKETED);
    const href = found && safeAddress(found[1]);
    if (href) return this.push({ kind: "link", href, children: [{ kind: "text", text: found[1] }] }, found[0].length);
    const line = this.match(BREAK);
    return line ? this.push({ kind: "break" }, line[0].length) : this.put("<");
  }

  entity() {
    const found = this.match(ENTITY);
    if (!found) return this.put("&");
    const [whole, name, decimal, hex] = found;
    const number = decimal ? parseInt(decimal, 10) : parseInt(hex ?? "0", 16);
    const known = name ? ENTITIES[name.toLowerCase()] : number > 0 && number < 0x110000 && String.fromCodePoint(number);
    return this.put(known || "\ufffd", whole.length);
  }

  /** An address by itself, without the punctuation of the sentence that it ends. */
  address() {
    const found = this.match(ADDRESS);
    if (!found) return this.put(this.text[this.at]);
    let address = found[0];
    const opened = address.split("(").length;
    let closed = address.split(")").length;
    while (/[.,;:!?*_~'\])]$/.test(address)) {
      if (address.endsWith(")")) {
        if (closed <= opened) break;
        closed -= 1;
      }
      address = address.slice(0, -1);
    }
    const href = safeAddress(address);
    if (!href || WORD.test(this.text[this.at - 1] ?? " ")) return this.put(found[0]);
    return this.push({ kind: "link", href, children: [{ kind: "text", text: address }] }, address.length);
  }
}

/** Nodes without links, whose texts stay. */
function unlinked(nodes) {
  return nodes.flatMap((node) => {
    if (node.kind === "link") return unlinked(node.children);
    return node.children ? [{ ...node, children: unlinked(node.children) }] : [node];
  });
}

/** Nodes with runs of `*`, `_` and `~` made emphasis where they match. One pass: closers look back for openers. */
function emphasized(nodes) {
  const out = [];
  const openers = []; // runs that may open: where in `out`, and how deep what already stands inside goes
  const bottom = {}; // below which no opener fits that kind of closer: what failed once is not searched again
  const deepen = (depth) => {
    if (openers.length) openers.at(-1).depth = Math.max(openers.at(-1).depth, depth);
  };
  for (const node of nodes) {
    const { run } = node;
    if (!run) {
      out.push(node);
      continue;
    }
    while (run.closes && run.count) {
      const key = `${run.mark}${run.length % 3}${run.opens}`;
      const found = openerOf(run, out, openers, bottom[key] ?? 0);
      if (found < 0) {
        bottom[key] = openers.length;
        break;
      }
      const { at } = openers[found];
      const depth = 1 + openers.splice(found).reduce((deepest, opener) => Math.max(deepest, opener.depth), 0);
      for (const name of Object.keys(bottom)) bottom[name] = Math.min(bottom[name], found);
      if (depth > DEPTH) {
        deepen(depth);
        break;
      }
      const opener = out[at].run;
      const used = Math.min(opener.count, run.count, 2);
      const children = settled(out.splice(at + 1));
      opener.count -= used;
      run.count -= used;
      if (opener.count) openers.push({ at, depth });
      else out.pop();
      deepen(depth);
      out.push({ kind: run.mark === "~" ? "del" : used === 2 ? "strong" : "em", children });
    }
    if (!run.count) continue;
    if (run.opens) openers.push({ at: out.length, depth: 0 });
    out.push(node);
  }
  return settled(out);
}

function openerOf(run, out, openers, bottom) {
  for (let i = openers.length - 1; i >= bottom; i -= 1) {
    const opener = out[openers[i].at].run;
    if (opener.mark !== run.mark) continue;
    // CommonMark's rule of three: in *a**b* the middle is text.
    const mixed = (run.opens || opener.closes) && (run.length + opener.length) % 3 === 0;
    if (!mixed || (run.length % 3 === 0 && opener.length % 3 === 0)) return i;
  }
  return -1;
}

/** Runs that matched nothing are text, and texts beside each other are one. */
function settled(nodes) {
  const found = [];
  for (const node of nodes) {
    const plain = node.run ? { kind: "text", text: node.run.mark.repeat(node.run.count) } : node;
    const last = found.at(-1);
    if (plain.kind === "text" && last?.kind === "text") last.text += plain.text;
    else if (plain.kind === "text") found.push({ kind: "text", text: plain.text });
    else found.push(plain);
  }
  return found;
}
