"""The page's markdown: what models write, against markdown-it; where it differs on purpose; what is made to be slow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[3]
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="the page's markdown is tested in Node.js, which is not installed")

#: Texts that every reader of markdown shows alike.
COMMON = (
    "Plain text, with *emphasis*, **strong**, ***both*** and `code`.",
    "# One\n\n## Two ##\n\n### 第三\ntext\n#### Four\n#no heading\n####### seven",
    "a\nb\n\nc  \nd\\\ne",
    "- one\n- two\n  - three\n    - four\n- five",
    "* one\n\n* two\n\n  more of two\n* three",
    "1. one\n2. two\n   - inner\n   - inner\n3. three",
    "3. three\n4. four",
    "1) one\n2) two",
    "text\n- a list\n- interrupts",
    "in the year\n1986. no list",
    "+ a\n- b\n* c",
    "> quoted\nlazily\n> > twice\n\n> - list\n>   in it",
    "```python\ndef f(x):\n    return x * 2  # *no* emphasis\n\n```\nafter",
    "````md\n```js\nx\n```\n````",
    "~~~\n```\n~~~",
    "```\nnot closed\n",
    "1. first\n   ```sh\n   ls\n     -l\n   ```\n2. second",
    "| a | b |\n|---|:-:|\n| 1 | `x` |\n| *2* | c\\|d |\n\nafter",
    "a | b | c\n:- | -: | -\n1 | 2\n1 | 2 | 3 | 4",
    "---\n***\n_ _ _\n- - -",
    "[link](https://example.org/a_(b)?c=d&e=f \"title\") and <https://example.org/x>",
    "[**strong** `code`](https://example.org/)",
    "[not a link] (example) and [nor](this one",
    "snake_case_words and _emphasis_ and __strong__ and 2 * 3 * 4",
    "**unclosed and *closed*",
    "*a **b** c* and **a *b* c** and *a*b*c*",
    "***a** b* and ***a* b**",
    "~~gone~~ and ~not~",
    "`` a ` b `` and ` `` ` and `a",
    "\\*no\\* \\`no\\` \\\\ \\a",
    "&amp; &lt;b&gt; &#65; &#x42; &copy",
    "<script>alert(1)</script> <img src=x onerror=alert(1)>",
    "a * b and a*",
    "- a\n\n  > quote\n\n  ```\n  code\n  ```\n- b",
    "# a *b* `c`\n> # d\n\n- # e",
    "Line one\n***\nLine two",
)  # fmt: skip

#: Texts shown otherwise than CommonMark says, for what models write and who reads it.
OURS = {
    # Chinese has no spaces: emphasis may end between punctuation and a letter.
    "**注意：**内容，**“引用”**之后": "<p><strong>注意：</strong>内容，<strong>“引用”</strong>之后</p>",
    "3*4=12, 5*6=30": "<p>3*4=12, 5*6=30</p>",
    "text\n---": "<p>text</p>\n<hr />",
    "    four spaces": "<p>four spaces</p>",
    "1. a\n  - b": "<ol><li>a\n<ul><li>b</li></ul></li></ol>",
    "a<br>b": "<p>a<br />\nb</p>",
    "- [x] done\n- [ ] not": "<ul><li>[x] done</li>\n<li>[ ] not</li></ul>",
    # No address but http's, and nothing is fetched: an image is a link to it.
    "[x](javascript:alert(1)) [y](data:text/html,z) [z](/local) [m](mailto:a@b.c)":
        "<p>[x](javascript:alert(1)) [y](data:text/html,z) [z](/local) [m](mailto:a@b.c)</p>",
    "[x](JaVaScRiPt:alert(1)) [y](\tjavascript:alert(1)) [z](https:javascript)":
        '<p>[x](JaVaScRiPt:alert(1)) [y](\tjavascript:alert(1)) <a href="https://javascript/">z</a></p>',
    "![picture](https://example.org/p.png)": '<p><a href="https://example.org/p.png">picture</a></p>',
    "[![b](https://a.b/i.png)](https://a.b/)": '<p><a href="https://a.b/">b</a></p>',
    "见 https://example.org/a，或 (https://example.org/b_(c)).":
        '<p>见 <a href="https://example.org/a">https://example.org/a</a>，或 '
        '(<a href="https://example.org/b_(c)">https://example.org/b_(c)</a>).</p>',
    "**https://a.b/c**": '<p><strong><a href="https://a.b/c">https://a.b/c</a></strong></p>',
    # Formulas stay as they are written, whatever stands in them.
    "$a_1 * b_1$ and \\(x*y*z\\), $5 to $10": "<p><math>$a_1 * b_1$</math> and <math>\\(x*y*z\\)</math>, $5 to $10</p>",
    "so\n$$\na_1 *b* c\n$$\nand": "<p>so</p>\n<math>$$\na_1 *b* c\n$$</math>\n<p>and</p>",
    "\\[ x \\]": "<math>\\[ x \\]</math>",
    "```go\n\tif x {": '<pre><code class="language-go">\tif x {\n</code></pre>',
    ">" * 40 + " deep": "<blockquote>" * 12 + "<p>" + "&gt;" * 28 + " deep</p>" + "</blockquote>" * 12,
}  # fmt: skip

#: What takes for ever where a reader looks at a character again and again: a piece, how often, and an end.
SLOW = (
    ("*a ", 40_000, "b* " * 40_000),
    ("*a **b ", 15_000, "c** d* " * 15_000),
    ("*a_", 40_000, ""),
    ("[", 60_000, "](https://a)" * 60_000),
    ("![", 60_000, "](https://a)" * 9_000),
    ("[![a](https://a)", 30_000, "](https://a)"),
    ("[a](", 20_000, ""),
    ("`a``", 50_000, ""),
    ("> ", 100_000, ""),
    ("- ", 200_000, "x"),
    ("- a\n", 15_000, ""),
    ("\\(", 100_000, ""),
    ("$a ", 100_000, ""),
    ("a\n|", 20_000, ""),
    (" ", 500_000, "x"),
    ("# ", 1, " " * 500_000 + "x"),
    ("```", 1, " " * 500_000 + "`"),
    ("a|b\n-", 1, " " * 500_000 + "x"),
    ("|-", 300_000, "x"),
    ("x", 1_000_000, ""),
    ("https://a", 50_000, ""),
    ("<https://", 50_000, ""),
    ("$$\n", 20_000, ""),
)


@pytest.fixture(scope="module")
def read() -> dict[str, Any]:
    """All of the above, read by the page's own code in one process of Node."""
    asked = {
        "folder": str(ROOT / "ggpy/server/page"), "cases": [*COMMON, *OURS], "slow": SLOW, "seed": 20_261_128,
    }  # fmt: skip
    script = ROOT / "tests/support/markdown_html.mjs"
    found = subprocess.run(
        [str(NODE), str(script)], input=json.dumps(asked), capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert found.returncode == 0, found.stderr[-2000:]
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def same(html: str) -> str:
    """HTML without what does not show: line ends beside tags."""
    return re.sub(r"\s*\n\s*(?=<)|(?<=>)\s*\n\s*", "", html).strip()


@pytest.mark.parametrize("i", range(len(COMMON)), ids=lambda i: repr(COMMON[i][:30]))
def test_it_is_the_markdown_that_others_read(read: dict[str, Any], i: int) -> None:
    reader = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    expected = re.sub(r' title="[^"]*"', "", reader.render(COMMON[i]))
    assert same(read["html"][i]) == same(expected)


@pytest.mark.parametrize("i", range(len(OURS)), ids=lambda i: repr(list(OURS)[i][:30]))
def test_where_it_differs_on_purpose(read: dict[str, Any], i: int) -> None:
    assert read["html"][len(COMMON) + i] == list(OURS.values())[i]


def test_a_text_that_grows_is_shown_as_one_that_is_there_at_once(read: dict[str, Any]) -> None:
    """1500 texts of random marks, read piece by piece; and all of `SLOW` was read on the way."""
    assert read["grown"] == []
