"use strict";
// The circuit view: the graph at any size, and what a node does.
(() => {
  const { make, show } = mechlab;
  const signed = (value) => (value > 0 ? `+${show(value)}` : show(value).replace("-", "−"));

  // Where there are several, the address says which: #/circuit/1.
  async function open({ path: [, which], query }, root) {
    const several = mechlab.has("circuits") ? await mechlab.load("circuits") : [], number = which ?? "0";
    const block = await mechlab.load(number === "0" ? "circuit" : `circuit-${number}`);
    const { nodes, edges, size } = block;
    const byName = new Map(nodes.map((node, i) => [node.name, i]));
    const path = number === "0" ? ["circuit"] : ["circuit", number];
    const asked = Number.parseInt(query.get("edges"), 10);
    // null is the circuit that was found; a number, the circuit of that many edges.
    let taken = Number.isFinite(asked) && size.most > 0 ? Math.min(Math.max(asked, 1), size.most) : null;
    let chosen = byName.get(query.get("node")) ?? null, prompt = Math.max(0, (Number.parseInt(query.get("prompt"), 10) || 1) - 1);

    const inside = (i) => (taken === null ? edges.found[i] === 1 : edges.joins[i] !== null && edges.joins[i] <= taken);
    const words = (i) => `${edges.source[i]} → ${edges.reader[i]}: ${signed(edges.score[i])}`;
    const shown = () => edges.from.map((_, i) => i).filter(inside);

    // ---------- parts that change ----------
    const slider = make("input", { type: "range", id: "circuit-size", min: 1, max: Math.max(size.most, 1), disabled: size.most < 2, step: 1, oninput: () => resize(Number(slider.value)) });
    const whole = make("button", { type: "button", onclick: () => resize(null) }, block.curves.length ? `The circuit found (${size.found})` : `All edges (${size.found})`);
    const amount = make("b"), measured = make("p", { class: "quiet measured" });
    const curve = make("div"), panel = make("section", { class: "card panel", "aria-label": "Node" });
    const graph = mechlab.graph({
      drawing: block, label: `Graph of ${block.title}, layers upwards`, kind: (i) => (inside(i) ? "" : null), text: words, onselect: select,
    });
    const list = mechlab.table({
      caption: "Edges", limit: 15, rows: [], sort: { name: "score", down: true }, empty: "No edge is on a path at this size.",
      columns: [
        { name: "source", title: "From", cell: (i) => nodeLink(edges.from[i], edges.source[i]), value: (i) => edges.source[i] },
        { name: "reader", title: "Into", cell: (i) => nodeLink(edges.to[i], edges.reader[i]), value: (i) => edges.reader[i] },
        { name: "score", title: "Score", number: true, cell: (i) => signed(edges.score[i]), value: (i) => Math.abs(edges.score[i]), help: "sorted by size" },
      ],
      attributes: (i) => ({ onmouseenter: () => graph.light([i]), onmouseleave: () => graph.light([]), onfocusin: () => graph.light([i]), onfocusout: () => graph.light([]) }),
    });

    function nodeLink(i, text) {
      return make("a", { href: mechlab.link(path, state(i)), dir: "auto", onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        select(i);
        panel.focus();
      } }, mechlab.visible(text));
    }
    const state = (node = chosen) => ({ edges: taken, node: node === null ? null : nodes[node].name, prompt: node === chosen && prompt ? prompt + 1 : null });
    const remember = () => mechlab.go(path, state(), { replace: true });

    function resize(value) {
      taken = value;
      refresh();
      remember();
      mechlab.say(amount.textContent);
    }
    function select(i) {
      chosen = i;
      prompt = 0;
      graph.update({ selected: chosen });
      fillPanel();
      remember();
    }
    function refresh() {
      const own = shown();
      slider.value = taken ?? Math.min(size.top, size.most);
      whole.setAttribute("aria-pressed", taken === null);
      amount.textContent = taken === null ? `${size.found} edges${block.curves.length ? " of the circuit found" : ""}`
        : block.curves.length ? `${taken} edges taken, ${own.length} on a path` : `${taken} strongest edges`;
      slider.setAttribute("aria-valuetext", amount.textContent);
      measured.textContent = faithfulness();
      curve.replaceChildren(...chart());
      graph.update({ selected: chosen });
      list.update({ rows: own });
      fillPanel();
    }

    function faithfulness() {
      const whole = block.scores.find(({ name }) => name === "faithfulness");
      if (taken === null) return whole ? `Faithfulness ${mechlab.scoreText(whole)} on ${whole.n} held-out prompts${whole.null ? `; random circuits of this size ${mechlab.scoreText(whole.null)}` : ""}.` : "";
      return block.curves.map(({ name, points }) => {
        const at = points.find(([n]) => n === taken), below = points.findLast(([n]) => n < taken), above = points.find(([n]) => n > taken);
        const near = at ? [at] : [below, above].filter(Boolean);
        return `On ${name}: ${near.map(([n, , value]) => `${show(value)} at ${n} edges`).join(", ")}.`;
      }).join(" ");
    }
    function chart() {
      if (!block.curves.length) return [];
      const marks = size.top > 0 ? [{ x: size.top, label: "found" }] : [];
      if (taken !== null && taken !== size.top) marks.push({ x: taken, label: String(taken) });
      return [make("h3", {}, "Faithfulness by size"), mechlab.chart.lines({
        series: block.curves.map(({ name, points }) => ({ name, x: points.map(([n]) => n), y: points.map(([, , value]) => value) })),
        x: "log", xlabel: "edges taken by |score|", ylabel: "faithfulness", marks,
      })];
    }

    // ---------- the panel of a node ----------
    function fillPanel() {
      if (chosen === null) panel.replaceChildren(...overview());
      else panel.replaceChildren(...about(nodes[chosen], chosen));
    }
    function overview() {
      const rows = nodes.filter((node) => node.attribution !== undefined);
      const cell = (name) => (node) => (node[name] === undefined ? "–" : signed(node[name]));
      const column = (name, title, help) => ({ name, title, help, number: true, cell: cell(name), value: (node) => Math.abs(node[name] ?? NaN) });
      return [
        block.scores.length > 0 && mechlab.scoreTable(block.scores, "On held-out prompts"),
        rows.length > 0 && mechlab.table({
          caption: block.patching ? "Nodes: estimate beside measurement" : "Nodes", rows, limit: 12, sort: { name: "attribution", down: true },
          columns: [
            { name: "name", title: "Node", cell: (node) => [nodeLink(byName.get(node.name), node.name), (node.class ?? node.kind) && make("small", { class: "quiet" }, ` ${node.class ?? node.kind}`)], value: (node) => node.name },
            column("attribution", block.patching ? "Attribution" : "Score", "what the edges' scores add up to"),
            ...(block.patching ? [column("noising", "Exact patch", "fall of the metric when the node carries the corrupt run's value")] : [column("activation", "Activation")]),
          ],
        }),
      ].filter(Boolean);
    }
    function about(node, i) {
      const own = shown(), into = own.filter((e) => edges.to[e] === i), out = own.filter((e) => edges.from[e] === i);
      const figures = [
        [block.patching ? "attribution" : "score", node.attribution, block.patching], ["exact patch, noising", node.noising, "fall of the metric"],
        ["exact patch, denoising", node.denoising, "rise of the metric"], ["activation", node.activation],
      ].filter(([, value]) => value !== undefined && value !== null);
      return [
        make("header", {}, make("h3", { class: "node-name", dir: "auto" }, mechlab.visible(node.name), (node.class ?? node.kind) && make("small", {}, ` ${node.class ?? node.kind}`)),
          make("button", { type: "button", "aria-label": "Close the node", onclick: () => { select(null); graph.focusNode(i); } }, "×")),
        feature(node),
        make("dl", { class: "figures" },
          figures.map(([name, value, note]) => make("div", {}, make("dt", {}, name), make("dd", {}, signed(value), note && make("small", { class: "quiet" }, ` ${note}`)))),
          node.direct && make("div", {}, make("dt", {}, "direct contribution to the logits"), make("dd", {}, mechlab.scoreText(node.direct)))),
        edgeList("Reads from", into, (e) => edges.from[e], (e) => edges.source[e], (e) => (edges.reader[e] === node.name ? "" : `into ${edges.reader[e].slice(node.name.length + 1)}`)),
        edgeList("Read by", out, (e) => edges.to[e], (e) => edges.reader[e]),
        ...attention(node),
      ].filter(Boolean);
    }
    function feature(node) {
      if (node.feature === undefined) return null;
      const { site, writes } = mechlab.facts.facts; // graphs name transcoders' features by where they write
      const here = [site, writes].includes(node.site) && mechlab.facts.views.includes("features");
      return make("p", {}, here ? make("a", { href: mechlab.link(["feature", node.feature]) }, `Feature ${node.feature}`) : `Feature ${node.feature} of ${node.site}`);
    }
    function edgeList(title, numbers, other, text, part = () => "") {
      const top = Math.max(...numbers.map((e) => Math.abs(edges.score[e])), 1e-12);
      const bar = (e) => { const fill = make("i"); fill.style.setProperty("--a", (Math.abs(edges.score[e]) / top).toFixed(3)); return make("span", { class: `bar-cell${edges.score[e] < 0 ? " negative" : ""}`, "aria-hidden": "true" }, fill); };
      return make("section", { class: "edge-list" }, make("h3", {}, `${title} (${numbers.length})`), numbers.length
        ? make("ul", {}, numbers.map((e) => make("li", { onmouseenter: () => graph.light([e]), onmouseleave: () => graph.light([]), onfocusin: () => graph.light([e]), onfocusout: () => graph.light([]) },
          make("span", {}, nodeLink(other(e), text(e)), part(e) && make("small", { class: "quiet" }, ` ${part(e)}`)), bar(e), make("span", { class: "number" }, signed(edges.score[e])))))
        : make("p", { class: "quiet" }, "Nothing at this size."));
    }

    function attention(node) {
      if (!node.patterns) return [];
      const { strings, prompts } = block;
      prompt = Math.min(prompt, prompts.length - 1);
      const map = make("div");
      const draw = () => {
        const names = prompts[prompt].map((number) => strings[number]);
        map.replaceChildren(mechlab.heatMap({ rows: node.patterns[prompt], names, label: `Attention of ${node.name} on prompt ${prompt + 1}` }));
      };
      const select = make("select", { id: "circuit-prompt", onchange: () => { prompt = Number(select.value); draw(); remember(); } },
        prompts.map((tokens, n) => make("option", { value: n, selected: n === prompt }, `${n + 1}: ${tokens.map((number) => strings[number]).join("").trim()}`)));
      draw();
      return [
        make("section", {}, make("h3", {}, "Attention, from rows to columns, in percent"), make("label", { for: "circuit-prompt", class: "quiet" }, "Prompt "), select, map),
        node.places?.length > 0 && make("section", {}, make("h3", {}, `From where the answer is read, mean over ${block.of}`),
          make("dl", { class: "figures" }, node.places.map(([name, share]) => make("div", {}, make("dt", {}, `to ${name}`), make("dd", {}, mechlab.percent(share)))))),
        node.tokens?.length > 0 && make("section", {}, make("h3", {}, "Tokens attended most from there"),
          make("ul", { class: "attended" }, node.tokens.map(([number, share, n]) => make("li", {}, make("span", { class: "text" }, mechlab.visible(strings[number])),
            ` ${mechlab.percent(share)}`, make("small", { class: "quiet" }, ` in ${n} prompts`))))),
        node.contexts?.length > 0 && make("section", {}, make("h3", {}, "Strongest attention"), make("p", { class: "quiet" }, "From the framed token; shade and underline grow with the attention paid to a token."),
          make("ol", { class: "attention-contexts" }, node.contexts.map((context) => {
            const text = mechlab.tokens(context, strings, { max: 1, what: "attention" });
            text.querySelector(`[data-place="${context.c}"]`)?.classList.add("asks");
            return make("li", {}, text);
          }))),
      ].filter(Boolean);
    }

    // ---------- the page ----------
    const missing = size.missing > 0 && ` The weakest ${size.missing} edges${block.curves.length ? " of the circuit" : ""} are not drawn.`;
    if (several.length) {
      root.append(make("nav", { class: "circuits", "aria-label": "Circuits" }, several.map((title, i) =>
        make("a", { href: mechlab.link(i ? ["circuit", i] : ["circuit"]), dir: "auto", "aria-current": String(i) === number && "page" }, title))));
    }
    root.append(
      make("h2", { dir: "auto" }, block.title),
      make("dl", { class: "circuit-facts" }, block.facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, value)))),
      make("div", { class: "circuit-grid" },
        make("div", {},
          make("figure", { class: "card" },
            make("div", { class: "sizes" }, make("label", { for: "circuit-size" }, block.curves.length ? "Edges taken, by |score|" : "Edges shown, by |score|"), slider, whole),
            make("p", { class: "size-now" }, amount), measured, graph,
            make("figcaption", { class: "quiet" }, `Width shows |score|; dashed edges are negative.${byName.has("logits") ? " An edge into a query, key or value ends at the head of that number." : ""}${missing || ""}`)),
          make("section", { class: "card" }, curve), make("section", { class: "card" }, list)),
        make("div", {}, panel)));
    panel.tabIndex = -1;
    if (!block.curves.length) curve.parentElement.remove();
    const step = (by) => size.most > 0 && resize(Math.min(Math.max((taken ?? size.top) + by, 1), size.most));
    const walk = (by) => {
      const used = [...new Set(shown().flatMap((e) => [edges.from[e], edges.to[e]]))].sort((a, b) => nodes[b].y - nodes[a].y || nodes[a].x - nodes[b].x);
      if (used.length) select(used[(used.indexOf(chosen) + by + used.length + (chosen === null && by < 0)) % used.length]);
    };
    mechlab.keys({ "]": () => step(1), "[": () => step(-1), j: () => walk(1), k: () => walk(-1), Escape: () => select(null) },
      "[, ]: fewer and more edges; j, k: next and previous node");
    refresh();
  }

  mechlab.view("circuit", { title: "Circuit", open });
})();
