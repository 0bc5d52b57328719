"use strict";
// The compare view: two dictionaries, two circuits, or both, side by side.
(() => {
  const { make, show } = mechlab;
  const KINDS = ["both", "left", "right"];

  async function open({ query }, root) {
    const block = await mechlab.load("compare");
    const parts = ["dictionaries", "circuits"].filter((name) => block[name]);
    let part = parts.includes(query.get("part")) ? query.get("part") : parts[0];
    const [left, right] = block.names;
    const state = Object.fromEntries(query);
    // The state is rewritten without opening the view again, so that focus stays.
    const remember = (change) => {
      Object.assign(state, change);
      mechlab.go(["compare"], { ...state, part: parts.length > 1 ? part : null }, { replace: true });
    };
    const body = make("div");
    const tabs = parts.map((name) => make("button", { type: "button", onclick: () => {
      part = name;
      for (const key of Object.keys(state)) state[key] = null;
      remember({});
      fill();
    } }, name));
    function fill() {
      tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", parts[i] === part));
      body.replaceChildren(...(part === "dictionaries" ? dictionaries : circuits)(block[part], left, right, state, remember));
    }
    root.append(make("h2", { dir: "auto" }, left, " ", make("small", {}, "and"), " ", right), ...(parts.length > 1 ? [make("div", { class: "kinds" }, tabs)] : []), body);
    fill();
  }

  // ---------- shared ----------
  const figure = (score) => (score ? mechlab.scoreText(score) : "–");
  // Intervals that lie apart, or texts that differ.
  const apart = (one, other) => (typeof one === "object" ? Boolean(one && other) && (one.low > other.high || one.high < other.low) : one !== other);
  function sideBySide(caption, rows, left, right, cell) {
    return make("div", { class: "scroll", tabindex: 0 }, make("table", {}, make("caption", {}, caption),
      make("thead", {}, make("tr", {}, ["", left, right].map((name) => make(name ? "th" : "td", { scope: name ? "col" : null, dir: "auto" }, name)))),
      make("tbody", {}, rows.map(([name, one, other]) => make("tr", { class: apart(one, other) && "differs" },
        make("th", { scope: "row" }, name), make("td", { dir: "auto" }, cell(one)), make("td", { dir: "auto" }, cell(other)))))));
  }
  // One of several, as buttons: names, the one that is chosen, what to do with another.
  function choice(names, chosen, onchoose) {
    const buttons = names.map((name, i) => make("button", { type: "button", "aria-pressed": String(i === chosen), onclick: () => {
      buttons.forEach((button, n) => button.setAttribute("aria-pressed", n === i));
      onchoose(i);
    } }, name));
    return make("div", { class: "kinds" }, buttons);
  }

  // ---------- dictionaries ----------
  function dictionaries(found, left, right, state, remember) {
    const [one, other] = found.sides, near = found.match;
    const pairs = found.pairs.left.map((n, i) => ({ left: n, right: found.pairs.right[i], cosine: found.pairs.cosine[i], together: found.pairs.together?.[i] ?? null }));
    const alone = (side, key) => side.nearest.map((cosine, n) => ({ [key]: n, cosine, nearest: side.other[n] })).filter((row) => row.cosine < near);
    const rows = [pairs.filter((row) => row.cosine >= near), alone(one, "left"), alone(other, "right"), pairs];
    const names = [`matched (${rows[0].length})`, `only in ${left} (${rows[1].length})`, `only in ${right} (${rows[2].length})`, `all pairs (${rows[3].length})`];
    const values = ["both", "left", "right", "all"];
    let shown = Math.max(0, values.indexOf(state.show));

    const link = (side, n) => (side.page === null ? String(n) : make("a", { href: `${side.page}${mechlab.link(["feature", n])}` }, n));
    const words = (side, n) => make("div", { class: "about" },
      side.said?.[n] && make("div", { class: "said", dir: "auto", title: side.said[n] }, mechlab.visible(side.said[n]).map((node) => (node.textContent === "·" ? " " : node))),
      side.tokens?.[n]?.length > 0 && make("div", { class: "text", dir: "auto" }, side.tokens[n].map((token) => make("span", { class: "peak-token" }, mechlab.visible(token)))));
    // Made once: there may be many thousands.
    const texts = [one, other].map((side) => side.nearest.map((_, n) => [n, side.said?.[n] ?? "", ...(side.tokens?.[n] ?? [])].join("\n").toLowerCase()));
    const holds = ({ left: a, right: b }, q) => (a !== undefined && texts[0][a].includes(q)) || (b !== undefined && texts[1][b].includes(q));
    const columns = (side, key, name) => [
      { name: key, title: name, number: true, cell: (row) => link(side, row[key]), value: (row) => row[key] },
      (side.said || side.tokens) && { name: `${key}-about`, title: side.said ? "explanation, strongest tokens" : "strongest tokens", cell: (row) => words(side, row[key]), value: side.said && ((row) => side.said[row[key]]) },
      side.density && { name: `${key}-density`, title: "density", number: true, cell: (row) => mechlab.percent(side.density[row[key]]), value: (row) => side.density[row[key]] },
    ].filter(Boolean);
    const cosine = { name: "cosine", title: "cosine", number: true, cell: (row) => show(row.cosine), value: (row) => row.cosine, help: "of the decoder directions" };
    const together = found.pairs.together && { name: "together", title: "together", number: true, cell: (row) => mechlab.percent(row.together), value: (row) => row.together, help: "tokens on which both are active, of those on which any is" };
    const nearest = (side) => ({ name: "nearest", title: "nearest", number: true, cell: (row) => link(side, row.nearest), help: "the other's feature of largest cosine" });

    const holder = make("div"), search = make("input", { type: "search", "data-search": true, value: state.q ?? "", placeholder: "number, explanation or token", "aria-label": "Search features", oninput: () => { remember({ q: search.value }); table.update({ rows: ordered(matching()) }); count(); } });
    const counted = make("span", { class: "quiet" });
    let table, ordered;
    const matching = () => { const q = search.value.toLowerCase(); return q ? rows[shown].filter((row) => holds(row, q)) : rows[shown]; };
    const count = () => { counted.textContent = `${table.sorted.length} of ${rows[shown].length}`; mechlab.say(counted.textContent); };
    function list() {
      const sides = shown === 1 ? [...columns(one, "left", left), cosine, nearest(other)] : shown === 2 ? [...columns(other, "right", right), cosine, nearest(one)]
        : [...columns(one, "left", left), cosine, together, ...columns(other, "right", right)].filter(Boolean);
      const [asked, direction] = (state.sort ?? "").split("."), by = sides.find((column) => column.value && column.name === asked) ?? cosine;
      // The most alike pairs first; of the others, those that are least like any.
      let sort = { name: by.name, down: state.sort ? direction === "down" : shown === 0 || shown === 3 };
      ordered = (rows) => [...rows].sort(mechlab.order(sides.find(({ name }) => name === sort.name).value, sort.down));
      table = mechlab.table({ caption: names[shown], columns: sides, rows: ordered(matching()), limit: 50, sort, onsort: (name, down) => {
        sort = { name, down };
        remember({ sort: `${name}.${down ? "down" : "up"}` });
        table.update({ rows: ordered(matching()), sort });
      } });
      holder.replaceChildren(table);
      count();
    }
    list();
    return [make("div", { class: "compare-grid" },
      make("section", { class: "card" }, mechlab.scoreTable(found.agreement, "Agreement; the control is random directions")),
      make("section", { class: "card" }, make("h3", {}, "Cosines of pairs"), mechlab.chart.bars({ values: found.histogram.counts, edges: found.histogram.edges, mark: near, xlabel: "cosine of decoder directions", ylabel: "pairs", label: `Histogram of ${pairs.length} cosines; ${rows[0].length} are at least ${near}` })),
      make("section", { class: "card" }, sideBySide("Dictionaries", found.facts, left, right, String)),
      found.metrics.length > 0 && make("section", { class: "card" }, sideBySide("On held-out documents; bold where the 95 % intervals lie apart", found.metrics, left, right, figure))),
    make("section", { class: "card" },
      make("div", { class: "controls" }, choice(names, shown, (i) => { shown = i; remember({ show: values[i], sort: null }); list(); }), search, counted),
      make("p", { class: "quiet" }, `Features are paired one to one by their decoder directions; below cosine ${near} with every feature of the other they count as there in one only.`), holder)];
  }

  // ---------- circuits ----------
  function circuits(found, left, right, state, remember) {
    const { edges, counts } = found, kinds = [null, ...KINDS];
    let shown = Math.max(0, kinds.indexOf(state.show ?? null)), node = found.nodes.findIndex(({ name }) => name === state.node);
    const names = [`all edges (${counts[0] + counts[1] + counts[2]})`, `shared (${counts[0]})`, `only in ${left} (${counts[1]})`, `only in ${right} (${counts[2]})`];
    const inside = (i) => (shown === 0 || edges.kind[i] === shown - 1) && (node < 0 || edges.from[i] === node || edges.to[i] === node);
    const where = [ "in both", `only in ${left}`, `only in ${right}`];
    const graph = mechlab.graph({
      drawing: found, label: `Edges of ${left} and ${right}, layers upwards`,
      kind: (i) => (inside(i) ? `in-${KINDS[edges.kind[i]]}` : null),
      text: (i) => `${edges.source[i]} → ${edges.reader[i]}, ${where[edges.kind[i]]}: ${show(edges.left[i])}, ${show(edges.right[i])}`,
      onselect: (i) => { node = i ?? -1; remember({ node: i === null ? null : found.nodes[i].name }); fill(); },
    });
    const table = mechlab.table({
      caption: "Edges", limit: 25, rows: [], sort: { name: "left", down: true }, attributes: (i) => ({ onmouseenter: () => graph.light([i]), onmouseleave: () => graph.light([]) }),
      columns: [
        { name: "source", title: "From", cell: (i) => edges.source[i], value: (i) => edges.source[i] },
        { name: "reader", title: "Into", cell: (i) => edges.reader[i], value: (i) => edges.reader[i] },
        { name: "where", title: "Where", cell: (i) => where[edges.kind[i]], value: (i) => edges.kind[i] },
        { name: "left", title: `Score, ${left}`, number: true, cell: (i) => show(edges.left[i]), value: (i) => Math.abs(edges.left[i]) },
        { name: "right", title: `Score, ${right}`, number: true, cell: (i) => show(edges.right[i]), value: (i) => Math.abs(edges.right[i]) },
      ],
    });
    function fill() {
      graph.update({ selected: node < 0 ? null : node });
      const rows = edges.from.map((_, i) => i).filter(inside);
      table.update({ rows });
      mechlab.say(`${rows.length} edges`);
    }
    fill();
    mechlab.keys({ Escape: () => { node = -1; remember({ node: null }); fill(); } });
    const agreement = found.agreement.map(({ name, value, null: control }) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "number" }, show(value)),
      make("td", { class: "number" }, control ? mechlab.scoreText(control) : "–")));
    return [make("div", { class: "compare-grid" },
      make("figure", { class: "card wide" },
        choice(names, shown, (i) => { shown = i; remember({ show: kinds[i] }); fill(); }), graph,
        make("figcaption", { class: "quiet" }, make("span", { class: "key in-both" }, "in both"), make("span", { class: "key in-left" }, `only in ${left}`), make("span", { class: "key in-right" }, `only in ${right}`),
          ` Width shows |score| as a share of the circuit’s largest.${found.missing ? ` The weakest ${found.missing} edges are not drawn.` : ""}`)),
      make("section", { class: "card" },
        found.differences.length > 0 && make("p", {}, `They differ in ${found.differences.join("; ")}.`),
        make("table", {}, make("caption", {}, "Agreement"), make("thead", {}, make("tr", {}, ["", "value", "random circuits"].map((name, i) => make(name ? "th" : "td", { scope: name ? "col" : null, class: i > 0 && "number" }, name)))), make("tbody", {}, agreement)),
        make("table", {}, make("caption", {}, "Edges by the layer of their reader"),
          make("thead", {}, make("tr", {}, ["Layer", "shared", left, right].map((name, i) => make(name ? "th" : "td", { scope: name ? "col" : null, class: i > 0 && "number", dir: "auto" }, name)))),
          make("tbody", {}, found.layers.map(([layer, ...numbers]) => make("tr", {}, make("th", { scope: "row" }, layer), numbers.map((n) => make("td", { class: "number" }, n))))))),
      make("section", { class: "card" }, sideBySide("Circuits", found.facts, left, right, String)),
      make("section", { class: "card" }, sideBySide("On held-out prompts; bold where the 95 % intervals lie apart", found.metrics, left, right, figure))),
    make("section", { class: "card" }, table)];
  }

  mechlab.view("compare", { title: "Compare", open });
})();
