"use strict";
(() => {
  const parse = (id) => JSON.parse(document.getElementById(id).textContent);
  const { strings, rows } = parse("index");
  const features = rows.map(([index, density, maximum, mean, explanation, score, peaks]) => ({
    index, density, maximum, mean, explanation, score,
    text: [explanation, ...peaks.map((n) => strings[n])].join("\n").toLowerCase(),
  }));
  const byIndex = new Map(features.map((feature) => [feature.index, feature]));
  const PAGE = 300; // rows put into the list at once: a dictionary may have many thousands

  const search = document.getElementById("search");
  const body = document.querySelector("#list tbody");
  const more = document.getElementById("more");
  const view = document.getElementById("feature");
  const sorting = { by: "index", down: false };
  let shown = [], limit = PAGE, current = null;

  // Every string from data enters the document here, as text.
  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "rect", "line", "circle", "path", "text", "title", "g"].includes(tag);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
    return node;
  }

  function show(value) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-4 || size >= 1e6) return value.toExponential(1);
    return size >= 1000 ? value.toFixed(0) : value.toPrecision(3);
  }
  function percent(share) {
    const value = 100 * share;
    return (value === 0 || value >= 10 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value >= 0.01 ? value.toFixed(2) : show(value)) + " %";
  }

  // ---------- list ----------
  const SIGNS = { "<": (a, b) => a < b, ">": (a, b) => a > b, "=": (a, b) => a === b };
  const FIELDS = { score: "score", detection: "score", density: "density", max: "maximum", mean: "mean", index: "index" };

  function condition(word) {
    const bound = /^(score|detection|density|max|mean|index)([<>=])(-?[\d.]+(?:e-?\d+)?)$/.exec(word);
    if (bound) {
      const [, name, sign, number] = bound;
      return (f) => f[FIELDS[name]] !== null && SIGNS[sign](f[FIELDS[name]], Number(number));
    }
    if (/^#?\d+$/.test(word)) {
      const number = Number(word.replace("#", ""));
      return (f) => f.index === number || (!word.startsWith("#") && f.text.includes(word));
    }
    return (f) => f.text.includes(word);
  }

  function compare(a, b) {
    const x = a[sorting.by], y = b[sorting.by];
    // What has no value, or no explanation, comes last either way.
    const missing = (value) => value === null || value === "";
    if (missing(x) || missing(y)) return missing(x) - missing(y) || a.index - b.index;
    const order = typeof x === "string" ? (x < y ? -1 : x > y ? 1 : 0) : x - y;
    return (sorting.down ? -order : order) || a.index - b.index;
  }

  function refresh() {
    const conditions = search.value.toLowerCase().split(/\s+/).filter(Boolean).map(condition);
    shown = features.filter((f) => conditions.every((holds) => holds(f))).sort(compare);
    document.getElementById("count").textContent = shown.length === features.length ? `${features.length}` : `${shown.length} of ${features.length}`;
    for (const button of document.querySelectorAll("[data-sort]")) {
      const heading = button.closest("th");
      if (button.dataset.sort === sorting.by) heading.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    }
    fill();
  }

  function fill() {
    body.replaceChildren(...shown.slice(0, limit).map(line));
    if (!shown.length) body.append(make("tr", {}, make("td", { colspan: 4, class: "quiet" }, features.length ? "Nothing matches." : "This run has no features.")));
    more.hidden = shown.length <= limit;
    more.textContent = `Show ${Math.min(PAGE, shown.length - limit)} more`;
    mark();
  }

  function line(feature) {
    const cell = make("td", { class: "number" });
    if (feature.score !== null) {
      const fillBar = make("i");
      fillBar.style.setProperty("--a", feature.score);
      cell.append(make("span", { class: "mini", "aria-hidden": "true" }, fillBar), feature.score.toFixed(2));
    } else cell.append(make("span", { class: "quiet" }, "–"));
    const row = make("tr", { "data-index": feature.index },
      make("td", { class: "number" }, make("a", { href: `#f=${feature.index}` }, feature.index)),
      make("td", { title: feature.explanation, dir: "auto" }, feature.explanation.replace(/^fires (on |at the end of )?/, "") || make("span", { class: "quiet" }, feature.density ? "no explanation" : "dead")),
      cell,
      make("td", { class: "number" }, percent(feature.density)));
    row.addEventListener("click", () => go(feature.index));
    return row;
  }

  function mark() {
    for (const row of body.children) {
      if (row.dataset.index === String(current)) {
        row.setAttribute("aria-current", "true");
        const box = body.closest(".scroll"), top = row.offsetTop, bottom = top + row.offsetHeight;
        if (top < box.scrollTop + 40) box.scrollTop = top - 40;
        else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight + 8;
      } else row.removeAttribute("aria-current");
    }
  }

  // ---------- one feature ----------
  function go(index) {
    history.replaceState(null, "", `#f=${index}`);
    open(index);
  }

  function step(by) {
    if (!shown.length) return;
    const at = shown.findIndex((f) => f.index === current);
    const next = at < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, at + by));
    while (next >= limit) limit += PAGE;
    if (body.children.length < Math.min(limit, shown.length)) fill();
    go(shown[next].index);
  }

  function open(index) {
    const feature = byIndex.get(index);
    if (!feature) {
      view.replaceChildren(make("p", { class: "quiet" }, `There is no feature ${index} on this page.`));
      return;
    }
    current = index;
    const { histogram, score, unscored, contexts } = parse(`f-${index}`);
    const back = make("button", { "aria-label": "Previous feature" }, "←"), on = make("button", { "aria-label": "Next feature" }, "→");
    back.addEventListener("click", () => step(-1));
    on.addEventListener("click", () => step(1));
    const stats = [["density", percent(feature.density)], ["maximum", show(feature.maximum)], ["mean when active", show(feature.mean)]];
    view.replaceChildren(
      make("header", {}, make("h2", {}, `Feature ${index}`), make("div", {}, back, on)),
      make("p", { class: "explanation", dir: "auto" }, feature.explanation || (feature.density ? "No explanation." : "Dead: it never fires on this text.")),
      make("dl", { class: "stats" }, ...stats.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
      make("div", { class: "panels" }, scorePanel(score, unscored), histogramPanel(histogram, feature.maximum)),
      contextList(contexts, feature.maximum));
    mark();
  }

  function scorePanel(score, unscored) {
    const panel = make("section", {}, make("h3", {}, "Detection on held-out documents"));
    if (!score || score.value === null) {
      panel.append(make("p", { class: "quiet" }, unscored ? `Not scored: ${unscored}.` : "Not scored."));
      return panel;
    }
    const W = 400, x = (v) => 8 + v * (W - 16);
    const words = `Detection ${show(score.value)}, interval ${show(score.low)} to ${show(score.high)}` + (score.null ? `; shuffled explanation ${show(score.null.value)}` : "");
    const svg = make("svg", { viewBox: `0 0 ${W} 52`, role: "img", "aria-label": words },
      make("rect", { class: "track", x: 8, y: 12, width: W - 16, height: 16, rx: 5 }));
    if (score.low !== null && score.high !== null) svg.append(make("rect", { class: "within", x: x(score.low), y: 12, width: Math.max(2, x(score.high) - x(score.low)), height: 16, rx: 3 }));
    if (score.chance !== null) svg.append(make("line", { class: "chance", x1: x(score.chance), x2: x(score.chance), y1: 6, y2: 34 }));
    const control = score.null;
    if (control && control.value !== null) {
      const c = x(control.value);
      if (control.low !== null && control.high !== null) svg.append(make("line", { class: "null-range", x1: x(control.low), x2: x(control.high), y1: 20, y2: 20 }));
      svg.append(make("path", { class: "null", d: `M${c} 13l7 7l-7 7l-7-7z` }, make("title", {}, `shuffled explanation ${show(control.value)}`)));
    }
    svg.append(make("circle", { class: "dot", cx: x(score.value), cy: 20, r: 7 }, make("title", {}, show(score.value))));
    for (const tick of [0, 0.5, 1]) svg.append(make("text", { x: x(tick), y: 48, "text-anchor": tick === 0 ? "start" : tick === 1 ? "end" : "middle" }, tick === 0.5 ? "0.5 chance" : tick));
    panel.append(svg, make("p", {}, make("b", {}, `● ${show(score.value)}`), ` [${show(score.low)}, ${show(score.high)}], n = ${score.n} documents`));
    if (control) panel.append(make("p", { class: "quiet" }, `◇ ${show(control.value)} with another feature’s explanation`));
    return panel;
  }

  function histogramPanel(counts, maximum) {
    const panel = make("section", {}, make("h3", {}, "Activations when active, log scale"));
    const total = counts.reduce((a, b) => a + b, 0);
    if (!total) {
      panel.append(make("p", { class: "quiet" }, "Never active."));
      return panel;
    }
    const W = 400, H = 62, step = W / counts.length, top = Math.log1p(Math.max(...counts));
    const svg = make("svg", { viewBox: `0 0 ${W} ${H + 18}`, role: "img", "aria-label": `Histogram of ${total} activations from 0 to ${show(maximum)}` });
    counts.forEach((count, i) => {
      if (!count) return;
      const h = Math.max(1.5, (H * Math.log1p(count)) / top);
      const range = `${show((i * maximum) / counts.length)} to ${show(((i + 1) * maximum) / counts.length)}: ${count}`;
      svg.append(make("rect", { class: "bin", x: i * step + 0.5, y: H - h, width: step - 1, height: h }, make("title", {}, range)));
    });
    svg.append(make("line", { class: "axis", x1: 0, x2: W, y1: H + 0.5, y2: H + 0.5 }),
      make("text", { x: 0, y: H + 15 }, 0),
      make("text", { x: W / 2, y: H + 15, "text-anchor": "middle" }, `${total} active tokens`),
      make("text", { x: W, y: H + 15, "text-anchor": "end" }, show(maximum)));
    panel.append(svg);
    return panel;
  }

  function contextList(contexts, maximum) {
    const section = make("section", {}, make("h3", {}, "Strongest contexts"));
    if (!contexts.length) {
      section.append(make("p", { class: "quiet" }, "None."));
      return section;
    }
    section.append(make("p", { class: "legend quiet" }, "Shade and underline grow with activation. · is a space, ↵ a line break."));
    const list = make("ol", { class: "contexts" });
    for (const { document: source, centre, tokens, active } of contexts) {
      const strength = new Map(active);
      const text = make("div", { class: "text", dir: "auto" }, ...tokens.map((n, i) => token(strings[n], strength.get(i), maximum, i === centre)));
      list.append(make("li", {}, make("span", { class: "peak", title: "peak activation" }, show(strength.get(centre) ?? 0)), text, make("span", { class: "source" }, `doc ${source}`)));
    }
    section.append(list);
    return section;
  }

  // Characters that would be invisible, or would reorder their neighbours, are spelled out.
  const HIDDEN = /( )|(\n)|(\t)|([\u0000-\u001f\u007f-\u00a0\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff\ud800-\udfff])/gu;

  function token(text, activation, maximum, centre) {
    const span = make("span", {});
    let from = 0;
    for (const match of text.matchAll(HIDDEN)) {
      span.append(text.slice(from, match.index));
      const [all, space, line, tab] = match;
      if (space || line || tab) span.append(make("wbr")); // a line may break here, though no white space is left
      span.append(make("i", {}, space ? "·" : line ? "↵" : tab ? "⇥" : "\\u" + all.charCodeAt(0).toString(16).padStart(4, "0")));
      from = match.index + all.length;
    }
    span.append(text.slice(from) || (text ? "" : "∅"));
    if (activation) {
      span.className = centre ? "on centre" : "on";
      span.style.setProperty("--a", maximum ? Math.min(1, activation / maximum) : 0);
      span.title = `activation ${show(activation)}`;
      span.setAttribute("role", "img"); // a plain span may not carry a label
      span.setAttribute("aria-label", `${text}, activation ${show(activation)}`);
    }
    return span;
  }

  // ---------- events ----------
  search.addEventListener("input", () => { limit = PAGE; refresh(); });
  more.addEventListener("click", () => { limit += PAGE; fill(); });
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const by = button.dataset.sort;
      // Numbers are most wanted from the top, names and indices from the start.
      sorting.down = sorting.by === by ? !sorting.down : by === "score" || by === "density";
      sorting.by = by;
      refresh();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search) {
      if (event.key === "Escape" || event.key === "Enter") {
        search.blur();
        if (event.key === "Enter" && shown.length) go(shown[0].index);
      }
      return;
    }
    if (event.key === "/") { event.preventDefault(); search.focus(); search.select(); }
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
  });
  const linked = () => {
    const match = /^#f=(\d+)$/.exec(location.hash);
    return match ? Number(match[1]) : null;
  };
  addEventListener("hashchange", () => { if (linked() !== null) open(linked()); });

  const copy = document.getElementById("copy");
  copy.addEventListener("click", async () => {
    const code = document.getElementById("command");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch { // A file:// page may not have a clipboard; the text is selected either way.
      copy.textContent = "Selected";
    }
  });

  const graph = document.getElementById("graph");
  if (graph) {
    const light = (name) => {
      graph.classList.toggle("focus", name !== null);
      for (const edge of graph.querySelectorAll(".edge")) edge.classList.toggle("lit", name !== null && (edge.dataset.from === name || edge.dataset.to === name));
    };
    for (const node of graph.querySelectorAll(".node")) {
      for (const event of ["mouseenter", "focus"]) node.addEventListener(event, () => light(node.dataset.name));
      for (const event of ["mouseleave", "blur"]) node.addEventListener(event, () => light(null));
    }
  }

  refresh();
  if (linked() !== null) open(linked());
  else if (features.length) open(shown[0].index);
  else view.hidden = true;
})();
