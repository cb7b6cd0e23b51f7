// Reads {folder, cases: [text], slow: [[piece, times]], seed} from stdin; writes {html: [text], grown: [[text, text]]}:
// each case as HTML, and texts that parsed differently piece by piece than at once. In Node, without a browser.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { folder, cases, slow, seed } = JSON.parse(readFileSync(0, "utf8"));
const { MarkdownReader, parseMarkdown } = await import(pathToFileURL(`${folder}/markdown.js`));

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
const blocks = (nodes) => nodes.map(block).join("\n");
const inline = (nodes) => nodes.map(span).join("");

function block(node) {
  switch (node.kind) {
    case "heading": return `<h${node.level}>${inline(node.inline)}</h${node.level}>`;
    case "paragraph": return `<p>${inline(node.inline)}</p>`;
    case "rule": return "<hr />";
    case "math": return `<math>${escaped(node.text)}</math>`;
    case "quote": return `<blockquote>${blocks(node.blocks)}</blockquote>`;
    case "code": return `<pre><code${node.language ? ` class="language-${escaped(node.language)}"` : ""}>${escaped(node.text)}\n</code></pre>`;
    case "list": {
      const tag = node.start === null ? "ul" : "ol";
      const items = node.items.map(({ blocks: inner, checked }) => `<li>${checked === null ? "" : checked ? "[x] " : "[ ] "}${
        inner.map((one) => (one.kind === "paragraph" && !node.loose ? inline(one.inline) : block(one))).join("\n")}</li>`);
      return `<${tag}${node.start > 1 || node.start === 0 ? ` start="${node.start}"` : ""}>${items.join("\n")}</${tag}>`;
    }
    case "table": {
      const cell = (tag, content, i) => `<${tag}${node.align[i] ? ` style="text-align:${node.align[i]}"` : ""}>${inline(content)}</${tag}>`;
      const row = (tag, cells) => `<tr>${cells.map((content, i) => cell(tag, content, i)).join("")}</tr>`;
      const body = node.rows.length ? `<tbody>${node.rows.map((cells) => row("td", cells)).join("")}</tbody>` : "";
      return `<table><thead>${row("th", node.head)}</thead>${body}</table>`;
    }
    default: throw new Error(node.kind);
  }
}

function span(node) {
  switch (node.kind) {
    case "text": return escaped(node.text);
    case "break": return "<br />\n";
    case "code": return `<code>${escaped(node.text)}</code>`;
    case "math": return `<math>${escaped(node.text)}</math>`;
    case "link": return `<a href="${escaped(node.href)}">${inline(node.children)}</a>`;
    case "del": return `<s>${inline(node.children)}</s>`;
    default: return `<${node.kind}>${inline(node.children)}</${node.kind}>`;
  }
}

/** Pseudo-random numbers below n: a linear congruential generator. */
function* numbers(state) {
  for (;;) {
    state = (state * 1103515245 + 12345) % 2147483648;
    yield (n) => Math.floor((state / 2147483648) * n);
  }
}

const PARTS = ["a", "b ", "\n", "\n\n", "# ", "#", "- ", "  - ", "1. ", "2) ", "> ", "```", "~~~\n", "`", "*", "**", "_", "~~",
  "|", "a|b\n", "-|-\n", "---", "--", "$$", "$", "\\[", "\\]", "[", "](https://a.b)", "<br>", "    ", "\t", "\\", "&lt;", "。", "https://a.b"];
const random = numbers(seed);
const below = (n) => random.next().value(n);
const grown = [];
for (let i = 0; i < 1500; i += 1) {
  const parts = Array.from({ length: 1 + below(24) }, () => PARTS[below(PARTS.length)]);
  const reader = new MarkdownReader();
  let shown = [];
  let text = "";
  for (const part of parts) {
    text += part;
    const { kept, blocks: found } = reader.update(text);
    shown = [...shown.slice(0, kept), ...found.map(block)];
  }
  if (shown.join("\n") !== blocks(parseMarkdown(text)) && grown.length < 5) grown.push([text, shown.join("\n"), blocks(parseMarkdown(text))]);
}
for (const [piece, times, end] of slow) blocks(parseMarkdown(piece.repeat(times) + end));
process.stdout.write(JSON.stringify({ html: cases.map((text) => blocks(parseMarkdown(text))), grown }));
