// An answer's Markdown as nodes: headings, lists, code, bold, italic. Text is only ever set as text, never as markup, and
// links stay words: an answer cannot bring a script, a picture or an address into the page.

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^*\s](?:[\s\S]*?[^*\s])?)\*\*|(?<![\w*])\*([^*\s](?:[^*]*?[^*\s])?)\*(?![\w*])/g;
const ITEM = /^\s{0,3}([-*+]|\d{1,9}[.)])\s+(.*)$/;

export function render(text) {
  const page = document.createDocumentFragment();
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; ) {
    const fence = lines[at].match(/^\s{0,3}(```+|~~~+)/);
    if (fence) {
      const end = lines.findIndex((line, place) => place > at && line.trim().startsWith(fence[1]));
      const last = end < 0 ? lines.length : end;
      const code = element("pre", element("code"));
      code.firstChild.textContent = lines.slice(at + 1, last).join("\n");
      page.append(code);
      at = last + 1;
      continue;
    }
    const heading = lines[at].match(/^\s{0,3}(#{1,6})\s+(.*?)\s*#*$/);
    if (heading) {
      page.append(inline(element(`h${Math.min(heading[1].length + 2, 6)}`), heading[2]));
      at += 1;
      continue;
    }
    if (ITEM.test(lines[at])) {
      const [, mark] = lines[at].match(ITEM);
      const ordered = /\d/.test(mark);
      const list = element(ordered ? "ol" : "ul");
      if (ordered && parseInt(mark) !== 1) list.start = parseInt(mark);
      for (; at < lines.length; at += 1) {
        const item = lines[at].match(ITEM);
        if (!item || /\d/.test(item[1]) !== ordered) break;
        list.append(inline(element("li"), item[2]));
      }
      page.append(list);
      continue;
    }
    const from = at;
    const plain = (line) => line.trim() && !ITEM.test(line) && !/^\s{0,3}(#{1,6}\s|```|~~~)/.test(line);
    while (at < lines.length && plain(lines[at])) at += 1;
    if (at > from) page.append(inline(element("p"), lines.slice(from, at).join("\n")));
    else at += 1;
  }
  return page;
}

function inline(node, text) {
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    node.append(text.slice(from, match.index));
    const [whole, , code, bold, italic] = match;
    if (code !== undefined) node.append(element("code", code.trim()));
    else if (bold !== undefined) node.append(inline(element("strong"), bold));
    else node.append(inline(element("em"), italic));
    from = match.index + whole.length;
  }
  node.append(text.slice(from));
  return node;
}

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}
