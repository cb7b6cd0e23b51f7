// Markdown shown: a tree of `markdown.js` to elements, and an element that follows a text which grows.

import { copyButton, h } from "./dom.js";
import { MarkdownReader } from "./markdown.js";
import { t } from "./words.js";

/** An element's content that shows a markdown text. Blocks that are complete stay as they are while the text grows. */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.reader = new MarkdownReader();
  }

  update(text) {
    if (text === this.reader.text) return;
    const { kept, blocks } = this.reader.update(text);
    while (this.element.childNodes.length > kept) this.element.lastChild.remove();
    this.element.append(...blocks.map(block));
  }
}

function block(node) {
  switch (node.kind) {
    case "heading": return h(`h${Math.min(node.level + 1, 6)}`, {}, inline(node.inline)); // the page's own title is h1
    case "paragraph": return h("p", {}, inline(node.inline));
    case "rule": return h("hr");
    case "math": return h("div", { class: "math block" }, node.text);
    case "quote": return h("blockquote", {}, node.blocks.map(block));
    case "code": return code(node);
    case "list": return list(node);
    case "table": return table(node);
    default: throw new Error(`no block is a ${node.kind}`);
  }
}

function code(node) {
  const bar = h("div", { class: "code-bar" }, h("span", {}, node.language),
    copyButton(t("copyCode"), t("copied"), () => node.text));
  // What is wider than the page scrolls by itself, by keyboard too.
  return h("div", { class: "code" }, bar,
    h("pre", { tabindex: "0", aria: { label: node.language || t("code") }, role: "region" }, h("code", {}, node.text)));
}

function list(node) {
  const items = node.items.map(({ blocks, checked }) => h("li", { class: checked === null ? null : "task" },
    checked === null ? null : h("span", { class: "box", aria: { label: t(checked ? "done" : "notDone") }, role: "img" }, checked ? "☑" : "☐"),
    blocks.map((inner) => (inner.kind === "paragraph" && !node.loose ? inline(inner.inline) : block(inner)))));
  if (node.start === null) return h("ul", {}, items);
  return h("ol", { start: node.start === 1 ? null : node.start }, items);
}

function table(node) {
  const cell = (tag, content, i) => h(tag, { class: node.align[i] ? `align-${node.align[i]}` : null }, inline(content));
  return h("div", { class: "table", tabindex: "0", role: "region", aria: { label: t("table") } }, h("table", {},
    h("thead", {}, h("tr", {}, node.head.map((content, i) => cell("th", content, i)))),
    h("tbody", {}, node.rows.map((row) => h("tr", {}, row.map((content, i) => cell("td", content, i)))))));
}

function inline(nodes) {
  return nodes.map((node) => {
    switch (node.kind) {
      case "text": return node.text;
      case "break": return h("br");
      case "code": return h("code", {}, node.text);
      case "math": return h("span", { class: "math" }, node.text);
      case "strong": case "del": return h(node.kind, {}, inline(node.children));
      case "em": return emphasis(inline(node.children));
      case "link": return h("a", { href: node.href, title: node.href, target: "_blank", rel: "noopener noreferrer nofollow" },
        node.image ? "🖼 " : null, inline(node.children));
      default: throw new Error(`nothing inline is a ${node.kind}`);
    }
  });
}

/** Chinese is emphasised by dots, not by slanting; which is which the text tells, not the page's language. */
function emphasis(children) {
  const element = h("em", {}, children);
  if (/\p{Script=Han}/u.test(element.textContent)) element.className = "han";
  return element;
}
