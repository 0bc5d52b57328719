"use strict";
// Parts that several views share: tokens coloured by activation, and sortable tables.
(() => {
  const { make, show } = mechlab;

  // Characters that would be invisible, or would reorder their neighbours, are spelled out.
  const HIDDEN = /( )|(\n)|(\t)|([\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff\ud800-\udfff])/gu;

  // A string with its white space visible, as nodes.
  mechlab.visible = (text) => {
    const nodes = [];
    let from = 0;
    for (const match of text.matchAll(HIDDEN)) {
      nodes.push(text.slice(from, match.index));
      const [all, space, line, tab] = match;
      if (space || line || tab) nodes.push(make("wbr")); // a line may break here, though no white space is left
      nodes.push(make("i", {}, space ? "·" : line ? "↵" : tab ? "⇥" : "\\u" + all.charCodeAt(0).toString(16).padStart(4, "0")));
      from = match.index + all.length;
    }
    nodes.push(text.slice(from) || (text ? "" : "∅"));
    return nodes.filter((node) => node !== "");
  };

  // One token as a chip: shade and underline grow with value / max.
  mechlab.token = (text, value, max, { peak = false, what = "activation" } = {}) => {
    const span = make("span", {}, mechlab.visible(text));
    if (value) {
      span.className = `on${peak ? " peak" : ""}`;
      span.style.setProperty("--a", max ? Math.min(1, value / max).toFixed(3) : 0);
      span.title = `${what} ${show(value)}`;
      span.setAttribute("role", "img"); // a plain span may not carry a label
      span.setAttribute("aria-label", `${text}, ${what} ${show(value)}`);
    }
    return span;
  };

  mechlab.tokens = ({ t, a, c }, strings, { max, what } = {}) => {
    const values = new Map(a);
    const top = max || Math.max(0, ...a.map(([, value]) => value));
    return make("div", { class: "text", dir: "auto" }, t.map((number, i) => {
      const span = mechlab.token(strings[number], values.get(i), top, { peak: i === c, what });
      span.dataset.place = i;
      return span;
    }));
  };

  // How two rows compare by a value; rows without one come last either way.
  mechlab.order = compare;
  function compare(value, down) {
    const missing = (x) => x === null || x === undefined || x === "" || Number.isNaN(x);
    return (a, b) => {
      const x = value(a), y = value(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const order = typeof x === "string" ? (x < y ? -1 : x > y ? 1 : 0) : x - y;
      return down ? -order : order;
    };
  }

  // columns: [{name, title, number, cell(row), value(row), help}]; those with a value can be sorted by.
  // sort: {name, down}. With onsort(name, down) the view orders the rows itself and they are shown as given.
  // attributes(row): of the row's element. limit: rows shown at once, more on request.
  // The element has update({rows, sort}), which fills the body again and leaves the heading in place.
  mechlab.table = ({ columns, rows, caption, sort = null, onsort, limit = Infinity, attributes, empty = "Nothing to show." }) => {
    let order = sort, all = rows, length = limit, sorted = [];
    const body = make("tbody");
    const more = make("button", { type: "button", class: "more", onclick: () => { length += limit; fill(); } });
    const headings = columns.map((column) => {
      const content = column.value ? make("button", { type: "button", onclick: () => turn(column) }, column.title) : column.title;
      return make("th", { scope: "col", class: column.number && "number", title: column.help }, content);
    });
    const box = make("div", { class: "table" },
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
        make("table", {}, caption && make("caption", {}, caption), make("thead", {}, make("tr", {}, headings)), body)),
      more);

    function turn({ name, number }) {
      // Numbers are most wanted from the top, names from the start.
      const down = order?.name === name ? !order.down : Boolean(number);
      if (onsort) onsort(name, down);
      else update({ sort: { name, down } });
    }
    function fill() {
      body.replaceChildren(...sorted.slice(0, length).map((row) => make("tr", attributes?.(row), columns.map(({ number, cell }) => make("td", { class: number && "number" }, cell(row))))));
      if (!sorted.length) body.append(make("tr", {}, make("td", { colspan: columns.length, class: "quiet" }, empty)));
      more.hidden = sorted.length <= length;
      more.textContent = `Show ${Math.min(limit, sorted.length - length)} more of ${sorted.length}`;
    }
    function update({ rows: next, sort: by }) {
      if (next) all = next;
      if (by !== undefined) order = by;
      length = limit;
      const column = columns.find(({ name, value }) => value && name === order?.name);
      sorted = column && !onsort ? [...all].sort(compare(column.value, order.down)) : all;
      columns.forEach((each, i) => {
        if (each === column) headings[i].setAttribute("aria-sort", order.down ? "descending" : "ascending");
        else headings[i].removeAttribute("aria-sort");
      });
      fill();
    }
    box.update = update;
    Object.defineProperty(box, "sorted", { get: () => sorted });
    update({});
    return box;
  };
})();
