"use strict";
// One feature: what is said of it and how well that does, where it fires, what it does and what is near it.
(() => {
  const { make, show, percent, features } = mechlab;
  const SHORT = 6; // tokens on either side of the peak while a context is short
  const LONG = 400; // letters beyond which an explanation is folded
  const TABS = { top: "Top", quantiles: "Quantiles", near: "Near misses", random: "Random", judged: "Judged" };
  const JUDGED = [["fp", "Said to fire, is silent", true, false], ["fn", "Fires, missed", false, true], ["tp", "Fires, found", true, true], ["tn", "Silent, and said to be", false, false]];
  const panel = (title, ...children) => make("section", { class: "card" }, make("h3", {}, title), ...children);
  const quiet = (...text) => make("p", { class: "quiet" }, ...text);
  const sees = (view) => mechlab.facts.views.includes(view);

  async function open({ path, query }, root) {
    const all = await features.read(), number = Number(path[1]), row = all.row.get(number);
    if (row === undefined) {
      root.append(make("h2", {}, `There is no feature ${path[1] ?? "without a number"} here`), make("a", { href: mechlab.link(["features"]) }, "All features"));
      return;
    }
    const chunk = await mechlab.load(`features-${Math.floor(number / all.chunk)}`);
    const read = sees("tokens") ? (await mechlab.load("tokens")).documents : []; // only some can be read token by token
    if (!root.isConnected) return; // another one has been opened meanwhile
    // The search that led here stays in the address: previous and next are in its order.
    const list = new Map([...query].filter(([name]) => ["q", "sort", "down", "plot"].includes(name)));
    const set = (name, value) => {
      if (value) query.set(name, value);
      else query.delete(name);
      mechlab.go(["feature", number], query, { replace: true });
    };
    const one = { all, number, row, query, list, set, record: chunk.features[number] ?? {}, strings: chunk.strings, max: all.max[row], stored: new Set(read.map(({ d }) => d)) };
    const [shape, mark] = histogram(one), [contexts, nextTab] = contextPanel(one, mark), [head, step, star] = header(one);
    root.append(head, make("div", { class: "columns" },
      make("div", {}, explanations(one)), make("div", { class: "wide" }, contexts, steering(one), neighbours(one)),
      make("div", {}, shape, logits(one), concepts(one), notes(one))));
    mechlab.keys({ j: () => step(1), k: () => step(-1), t: nextTab, s: star }, "j, k: next and previous feature; t: next kind of contexts; s: favourite");
  }

  // ---------- head ----------
  function header({ all, number, row, query, list, max }) {
    let order = all.rows;
    try { order = features.found(all, query); } catch { /* a wrong search: the order of all */ }
    const at = order.indexOf(row), address = (by) => {
      const other = order[at < 0 ? 0 : at + by];
      return other === undefined ? null : mechlab.link(["feature", all.n[other]], query);
    };
    const arrow = (by, sign, name) => make(address(by) ? "a" : "span", { class: "arrow", href: address(by), role: "link", "aria-label": name, "aria-disabled": address(by) ? null : "true" }, sign);
    const step = (by) => { if (address(by)) location.replace(address(by)); }; // many steps are one entry in the history
    const starred = make("button", { type: "button", "aria-label": "Favourite", onclick: () => {
      features.star(number);
      showStar();
    } });
    const showStar = () => {
      starred.setAttribute("aria-pressed", features.stars.has(number));
      starred.textContent = features.stars.has(number) ? "★" : "☆";
    };
    showStar();
    const stats = { density: percent(all.density[row]), max: show(max), "mean when active": show(all.mean[row]), label: all.label[row], flag: all.flags[row] };
    return [make("header", {},
      make("nav", { "aria-label": "Features" }, arrow(-1, "←", "Previous feature"), arrow(1, "→", "Next feature"),
        make("a", { href: mechlab.link(["features"], list) }, at < 0 ? "All features" : `${at + 1} of ${order.length}`), list.has("q") && make("span", { class: "quiet", dir: "auto" }, `for ${list.get("q")}`)),
      make("h2", {}, `Feature ${number}`), starred, mechlab.facts.live && make("a", { href: mechlab.link(["live"], { feature: number }) }, "Try a text"),
      make("dl", {}, Object.entries(stats).filter(([, value]) => value).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, value))))),
    step, () => starred.click()];
  }

  // ---------- explanations and their scores ----------
  const PREDICTS = /^fires \([\d.e+-]+\) /;
  function explanations({ record: { said = [], why }, all, row }) {
    if (!said.length) return panel("Explanation", quiet(why ? `None: ${why}.` : all.flags[row] === "dead" ? "It never fires on this text." : "None."));
    return said.map(({ text, by, author, scores = [], why }) => panel("Explanation", ...sentence(text),
      quiet(`by ${by}${author && author !== by ? `, ${author}` : ""}${PREDICTS.test(text) ? "; in brackets, the activation that each clause predicts" : ""}`),
      scores.length ? [scores.map(scoreLine), quiet(`${features.LEGEND} n counts what is independent: documents, mostly.`)].flat() : quiet(`Not scored${why ? `: ${why}` : ""}.`)));
  }

  // Rules can be very long: then the page shows how they begin.
  function sentence(text) {
    const words = make("p", { class: "explanation", dir: "auto" }, text);
    if (text.length <= LONG) return [words];
    const more = make("button", { type: "button", onclick: () => fold(words.classList.contains("whole")) });
    const fold = (short) => {
      words.classList.toggle("whole", !short);
      more.textContent = short ? "Show all of it" : "Show less";
      more.setAttribute("aria-expanded", !short);
    };
    words.classList.add("long");
    fold(true);
    return [words, more];
  }

  function scoreLine(score) {
    const { name, value, n, chance, null: control, positive, negative, base_rate: base, failed } = score;
    if (value == null) return quiet(`${name}: undefined`);
    const facts = [n != null && `n = ${n}`, positive != null && `${positive} with it, ${negative} without`, base != null && `base rate ${percent(base)}`,
      chance != null && `┊ chance ${show(chance)}`, control?.value != null && `◇ control ${mechlab.scoreText(control)}`, failed > 0 && `${failed} without an answer`];
    return make("div", { class: "scored" }, make("b", {}, name), make("span", {}, mechlab.scoreText(score)), features.scoreBar(score, 320), quiet(facts.filter(Boolean).join(" · ")));
  }

  // ---------- activations ----------
  function histogram({ record: { hist, quantiles: q }, all, row }) {
    const total = hist?.counts.reduce((sum, count) => sum + count, 0);
    if (!total) return [panel("Activations", quiet("Never active.")), () => {}];
    const edges = Array.from({ length: hist.counts.length + 1 }, (_, i) => (i * hist.max) / hist.counts.length);
    const chart = mechlab.chart.bars({ values: hist.counts, edges, log: true, xlabel: "activation", ylabel: "tokens (log)", label: `Histogram of ${total} activations up to ${show(hist.max)}` });
    return [panel("Activations when active", chart,
      quiet(`${show(total)} active tokens, mean ${show(all.mean[row])}${q?.length ? `, half below ${show(q[(q.length - 1) / 2])}` : ""}`)), chart.mark];
  }

  // ---------- contexts ----------
  function contextPanel(one, mark) {
    const { record, query, set } = one, groups = { ...record.contexts, judged: record.judged };
    const names = Object.keys(TABS).filter((name) => groups[name]?.length);
    if (!names.length) return [panel("Contexts", quiet("None.")), () => {}];
    const rows = (list) => make("ol", {}, list.map((context) => contextRow(one, context, mark)));
    const contents = { quantiles: () => groups.quantiles.map((band) => [make("h4", {}, `${show(band.low)} to ${show(band.high)}`, make("small", {}, ` ${percent(band.share)} of the passages where it fires, ranked by their peak`)), rows(band.rows)]), near: () => [quiet("The feature is silent here, and one of its neighbours is not: at the framed token."), rows(groups.near)], judged: () => judged(groups.judged, record.confusion, rows) };
    const size = (name) => (name === "quantiles" ? groups[name].flatMap((band) => band.rows) : groups[name]).length;
    const toggle = (name, text) => make("button", { type: "button", "aria-pressed": String(query.has(name)), onclick: ({ currentTarget }) => {
      set(name, query.has(name) ? "" : "1");
      currentTarget.setAttribute("aria-pressed", query.has(name));
      fill();
    } }, text);
    const body = make("div", { role: "tabpanel", id: "contexts" });
    const tabs = names.map((name) => make("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "contexts",
      onclick: () => select(name), onkeydown: ({ key }) => {
        if (key === "ArrowRight" || key === "ArrowLeft") move(key === "ArrowRight" ? 1 : names.length - 1).focus();
      } }, `${TABS[name]} `, make("small", {}, size(name))));
    const current = () => Math.max(0, names.indexOf(query.get("tab")));
    function move(by) {
      const next = (current() + by) % names.length;
      select(names[next]);
      return tabs[next];
    }
    function select(name) {
      set("tab", name);
      fill();
    }
    function fill() {
      const name = names[current()];
      tabs.forEach((tab, i) => {
        tab.setAttribute("aria-selected", i === current());
        tab.tabIndex = i === current() ? 0 : -1;
      });
      body.setAttribute("aria-labelledby", `tab-${name}`);
      body.replaceChildren(...(contents[name]?.() ?? [rows(groups[name])]).flat());
    }
    fill();
    return [make("section", { class: "card contexts" }, make("h3", {}, "Contexts"),
      make("div", { class: "tabs" }, make("div", { role: "tablist", "aria-label": "Kind of contexts" }, tabs), toggle("full", "Long"), toggle("lines", "Line breaks")),
      body, quiet("Shade and underline grow with activation; · is a space, ↵ a line break. Arrow keys move between active tokens.")), () => move(1)];
  }

  // Counts are of all windows of the score; the page holds some of each kind.
  function judged(items, confusion, rows) {
    const lists = JUDGED.map(([, , yes, label]) => items.filter((item) => Number(item.yes) > 0.5 === yes && item.label === label));
    const size = JUDGED.map(([cell], i) => confusion?.[cell] ?? lists[i].length), [fp, fn, tp, tn] = size, head = (scope, text) => make("th", { scope }, text);
    const line = (name, ...cells) => make("tr", {}, head("row", name), cells.map((text) => make("td", {}, text)));
    return [
      make("table", {}, make("caption", {}, `What the explanation${confusion?.by ? ` by ${confusion.by}` : ""} says of windows, against the feature`),
        make("thead", {}, make("tr", {}, make("td"), head("col", "said to fire"), head("col", "said to be silent"))),
        make("tbody", {}, line("fires", `${tp} found`, `${fn} missed`), line("silent", `${fp} false alarms`, `${tn} right`))),
      tp + fn > 0 && tn + fp > 0 ? quiet(`Balanced accuracy: mean of ${tp}/${tp + fn} and ${tn}/${tn + fp} = ${show((tp / (tp + fn) + tn / (tn + fp)) / 2)}`) : "",
      ...lists.map((list, i) => list.length ? make("details", { open: i < 2 }, make("summary", {}, `${JUDGED[i][1]}: ${size[i]}${list.length < size[i] ? ` (${list.length} shown)` : ""}`), rows(list)) : ""),
    ];
  }

  function contextRow({ strings, max, query, number, list, stored }, { d, c, t, a, of, at }, mark) {
    let full = query.has("full");
    const peak = new Map(a).get(c) ?? 0, text = make("div");
    const source = stored.has(d) && at !== undefined ? make("a", { href: mechlab.link(["tokens", d], { at, feature: number }) }, `doc ${d}`) : `doc ${d}`;
    const more = make("button", { type: "button", onclick: () => {
      full = !full;
      draw();
    } });
    function draw() {
      const from = full ? 0 : Math.max(0, c - SHORT), to = full ? t.length : Math.min(t.length, c + SHORT + 1);
      const chips = mechlab.tokens({ t: t.slice(from, to), a: a.filter(([at]) => at >= from && at < to).map(([at, value]) => [at - from, value]), c: c - from }, strings, { max });
      if (of !== undefined) chips.children[c - from].classList.add("asks");
      // One stop of the tab key per context: the peak; arrows go on from there.
      const on = [...chips.querySelectorAll(".on")];
      on.forEach((chip) => { chip.tabIndex = chip.classList.contains("peak") ? 0 : -1; });
      chips.addEventListener("keydown", ({ key, target }) => on[on.indexOf(target) + ({ ArrowRight: 1, ArrowLeft: -1 }[key] ?? NaN)]?.focus());
      for (const over of ["pointerover", "focusin"]) chips.addEventListener(over, ({ target }) => mark(new Map(a).get(from + Number(target.closest("[data-place]")?.dataset.place)) ?? peak));
      if (query.has("lines")) [...chips.children].forEach((chip, i) => { if (strings[t[from + i]].includes("\n")) chip.after(make("br")); });
      if (from > 0) chips.prepend("…\u00a0");
      if (to < t.length) chips.append("\u00a0…");
      text.replaceChildren(chips);
      more.textContent = full ? "shorter" : "longer";
      more.setAttribute("aria-expanded", full);
    }
    draw();
    return make("li", { onpointerenter: () => mark(peak), onpointerleave: () => mark(null), onfocusout: () => mark(null) },
      make("span", { class: "value", title: "activation at the peak" }, show(peak)), text,
      make("span", { class: "quiet tools" }, source, of != null && make("a", { href: mechlab.link(["feature", of], list), title: "a neighbour that fires here" }, `feature ${of} fires`), t.length > 2 * SHORT + 1 && more,
        make("button", { type: "button", onclick: ({ currentTarget }) => copy(t.map((place) => strings[place]).join(""), currentTarget, text) }, "copy")));
  }

  async function copy(words, button, text) {
    try {
      await navigator.clipboard.writeText(words);
      button.textContent = "copied";
    } catch { // a page from a file may have no clipboard: its text is selected instead
      getSelection().selectAllChildren(text);
      button.textContent = "selected";
    }
  }

  // ---------- what it does, and what is near ----------
  function ranked(title, list, cell) {
    if (!list?.length) return null;
    const most = Math.max(...list.map(([, value]) => Math.abs(value))) || 1;
    return make("table", { class: "ranked" }, make("caption", {}, title), make("tbody", {}, list.map(([what, value]) => make("tr", {}, make("td", {}, cell(what)), make("td", { class: "number" }, show(value)),
      make("td", { "aria-hidden": "true" }, make("svg", { class: "score", width: 56, height: 8 }, make("rect", { class: value < 0 ? "loss" : "gain", y: 1, width: (56 * Math.abs(value)) / most, height: 6 })))))));
  }

  function logits({ record: { logits: effects }, strings }) {
    const token = (place) => mechlab.tokens({ t: [place], a: [] }, strings);
    return effects && panel("Effect on the next token", make("div", { class: "pair" }, ranked("Up", effects.up, token), ranked("Down", effects.down, token)),
      quiet("Logits above their mean per unit of activation, before the final norm’s scale; what later layers make of the feature is not in it."));
  }

  function neighbours({ record: { near = {} }, all, list }) {
    const link = (other) => {
      const said = all.said[all.row.get(other)] ?? "";
      return [make("a", { href: mechlab.link(["feature", other], list) }, other), " ", make("small", { class: "quiet", dir: "auto", title: said }, said)];
    };
    const head = (name) => (sees("circuit") ? make("a", { href: mechlab.link(["circuit"], { node: name }) }, name) : name);
    const tables = [ranked("Similar direction (cosine)", near.cosine, link), ranked("Fires together (Jaccard index)", near.together, link), ranked("Heads that write it", near.heads, head)].filter(Boolean);
    return tables.length > 0 && panel("Neighbours", make("div", { class: "pair" }, tables), near.heads ? quiet("Of heads: what their output adds to the feature before its nonlinearity, mean over tokens where it is active.") : "");
  }

  function concepts({ record: { concepts: rows } }) {
    const columns = ["name", "f1", "precision", "recall"].map((name) => ({ name, title: name === "name" ? "concept" : name, number: name !== "name", value: (each) => each[name], cell: (each) => (name === "name" ? each[name] : show(each[name])) }));
    return rows?.length > 0 && panel("Concepts", mechlab.table({ columns, rows, caption: "Known concepts it agrees with" }));
  }

  const notes = ({ record: { notes: list } }) => list?.length > 0 && panel("Notes", ...list.map(({ text, author, label }) =>
    make("p", { dir: "auto" }, label && make("b", {}, `${label} `), text, author && make("span", { class: "quiet" }, ` (${author})`))));

  // ---------- steering, computed when the page was made ----------
  function steering({ record: { steer }, query, set }) {
    if (!steer?.length) return null;
    steer = [...steer].sort((a, b) => a.strength - b.strength);
    const plain = steer.find(({ strength }) => strength === 0), asked = steer.findIndex(({ strength }) => String(strength) === query.get("steer"));
    const first = steer.findIndex(({ strength }) => strength >= 1); // more of it often says nothing but one word
    const slider = make("input", { type: "range", min: 0, max: steer.length - 1, value: asked >= 0 ? asked : first >= 0 ? first : steer.length - 1, "aria-label": "Strength, in multiples of its maximum",
      oninput: () => draw(), onchange: () => set("steer", String(steer[slider.value].strength)) });
    const reading = make("output"), body = make("div");
    function draw() {
      const { strength, kl, rows } = steer[slider.value];
      reading.textContent = `${show(strength)} × its maximum${kl == null ? "" : `, KL ${show(kl)} nats per token`}`;
      slider.setAttribute("aria-valuetext", reading.textContent);
      body.replaceChildren(...rows.map(({ prompt, text }, i) => make("div", { class: "steered" }, make("p", { class: "quiet", dir: "auto" }, prompt),
        plain && make("p", { dir: "auto" }, make("small", {}, "unchanged"), plain.rows[i]?.text), make("p", { dir: "auto" }, make("small", {}, `${show(strength)} ×`), text))));
    }
    draw();
    return panel("Steering", make("div", { class: "slide" }, slider, reading), body);
  }

  mechlab.view("feature", { title: ({ path }) => `Feature ${path[1] ?? ""}`, nav: "features", open });
})();
