"use strict";
// Stored documents token by token: the strongest features, what they do to the next token, the model's guesses.
// Address: #/tokens/DOCUMENT?at=PLACE&feature=NUMBER&q=SEARCH
(() => {
  const { make, show, percent, link } = mechlab;
  const FORMULA = "A contribution is activation × (what the feature writes · the token’s unembedding), through the final norm with its scale "
    + "held, in logits above the mean logit. What later layers make of the feature is not in it.";

  // A bar from the left, or from the middle where values may be negative; the number stands beside it.
  function bar(value, max, signed = false) {
    const share = max && value !== null ? Math.min(1, Math.abs(value) / max) : 0;
    const fill = make("i", { class: signed && value < 0 ? "minus" : "" });
    fill.style.setProperty("--share", share.toFixed(3));
    return make("span", { class: `meter${signed ? " signed" : ""}`, "aria-hidden": "true" }, fill);
  }

  function documents(all, chosen, query) {
    const found = make("ol", { class: "documents" });
    const search = make("input", { type: "search", "data-search": true, placeholder: "Search the beginnings", "aria-label": "Search documents", value: query.get("q") ?? "",
      oninput: () => { query.set("q", search.value); fill(); mechlab.go(["tokens", ...chosen], query, { replace: true }); } });
    function fill() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const some = all.filter(({ d, words: text }) => words.every((word) => String(d) === word || text.toLowerCase().includes(word)));
      const kept = { q: search.value, feature: query.get("feature") };
      found.replaceChildren(...some.map(({ d, n, words: text }) => make("li", {},
        make("a", { href: link(["tokens", d], kept), "aria-current": String(d) === String(chosen[0]) && "true" }, make("b", {}, d), make("span", { dir: "auto" }, text), make("small", {}, `${show(n)} tokens`)))));
      if (!some.length) found.append(make("li", { class: "quiet" }, "No document begins like that."));
      mechlab.say(`${some.length} of ${all.length} documents`);
    }
    fill();
    return make("section", { class: "card", "aria-label": "Documents" }, make("h2", {}, "Documents ", make("small", {}, show(all.length))), search, found);
  }

  async function texts() {
    if (!mechlab.has("overview")) return () => "";
    const { columns } = await mechlab.load("overview");
    const rows = new Map(columns.n.map((number, row) => [number, row]));
    return (number) => columns.label?.[rows.get(number)] || columns.said?.[rows.get(number)] || "";
  }

  mechlab.view("tokens", { title: "Tokens", async open({ path, query }, root) {
    const all = await mechlab.load("tokens");
    if (!all.documents.length) return root.append(make("p", { class: "notice" }, "No document is stored with this page."));
    const number = path[1] ?? String(all.documents[0].d);
    const place = all.documents.findIndex(({ d }) => String(d) === number);
    const main = make("div", { class: "reading" });
    root.append(make("div", { class: "tokens" }, documents(all.documents, [number], query), main));
    if (place < 0) return main.append(make("p", { class: "notice", role: "alert" }, `Document ${number} is not stored with this page.`));
    const [block, said] = await Promise.all([mechlab.load(`tokens-${place}`), texts()]);
    const linked = mechlab.facts.views.includes("features");

    const here = block.t.map(() => []); // [feature, activation, its maximum] of each token, strongest first
    for (const [feature, max, places, values] of block.features) places.forEach((at, i) => here[at].push([feature, values[i], max]));
    for (const each of here) each.sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const whole = (text) => (/^\d{1,9}$/.test(text ?? "") ? Number(text) : null);
    let at = Math.min(whole(query.get("at")) ?? 0, block.t.length - 1), feature = whole(query.get("feature"));

    const text = make("div", { class: "text chips", role: "listbox", "aria-label": `Tokens of document ${number}`, dir: "auto" });
    const panel = make("section", { class: "card token-panel", "aria-label": "The chosen token" });
    const colours = make("p", { class: "quiet colours" });
    const word = (n) => block.strings[block.t[n]];

    function colour() {
      const found = block.features.find(([each]) => each === feature);
      const values = found ? new Map(found[2].map((n, i) => [n, found[3][i]])) : new Map();
      text.replaceChildren(...block.t.map((string, n) => {
        const chip = mechlab.token(block.strings[string], values.get(n), found?.[1]);
        for (const [name, value] of Object.entries({ role: "option", tabindex: n === at ? 0 : -1, "aria-selected": n === at, "data-place": n })) chip.setAttribute(name, value);
        return chip;
      }));
      const name = (each) => (linked ? make("a", { href: link(["feature", each]) }, `feature ${each}`) : `feature ${each}`);
      colours.replaceChildren(...(feature === null ? ["Choose a token; one of its features colours the whole text. · is a space, ↵ a line break."]
        : [found ? "Coloured by " : "Among the strongest of no token here: ", name(feature), said(feature) && make("span", { class: "said", dir: "auto", title: said(feature) }, said(feature)), " ", make("button", { type: "button", onclick: () => paint(null) }, "No colour")].filter(Boolean)));
    }

    function showToken() {
      const after = block.effects?.[at] && new Map(block.effects[at].map(([each, next, guess]) => [each, { next, guess }]));
      const rows = here[at].slice(0, all.top).map(([each, value, max]) => ({ each, value, max, ...after?.get(each) }));
      const most = Math.max(0, ...rows.flatMap(({ next, guess }) => [next, guess]).map((v) => Math.abs(v ?? 0)));
      const next = at + 1 < block.t.length ? word(at + 1) : null, guesses = block.guesses?.[at];
      const quote = (string) => make("q", { class: "quoted" }, mechlab.visible(string));
      const effect = (name, title, help) => ({ name, title, number: true, help, value: (row) => row[name], cell: (row) => [bar(row[name] ?? null, most, true), row[name] > 0 ? "+" : "", show(row[name])] });
      const columns = [
        { name: "each", title: "Feature", value: (row) => row.each, cell: ({ each }) => (linked ? make("a", { href: link(["feature", each]) }, each) : String(each)) },
        { name: "value", title: "Activation", number: true, value: (row) => row.value, cell: ({ value, max }) => [bar(value, max), show(value)], help: "The bar is full at the feature’s maximum." },
        ...(all.effects ? [effect("next", "To the next token", FORMULA), effect("guess", "To the first guess", FORMULA)] : []),
        { name: "said", title: "Explanation", cell: ({ each }) => make("span", { class: "said", dir: "auto", title: said(each) }, said(each) || "–") },
        { name: "colour", title: "Colour", cell: ({ each }) => make("button", { type: "button", "aria-pressed": String(each === feature), "aria-label": `Colour the text by feature ${each}`, onclick: () => paint(each === feature ? null : each) }, each === feature ? "●" : "○") },
      ];
      panel.replaceChildren(...[
        make("h2", {}, "Token ", quote(word(at)), make("small", {}, `place ${at}`, next === null ? "" : ", followed by "), next !== null && quote(next)),
        mechlab.table({ columns, rows, caption: "Strongest features", empty: "No feature is active here." }),
        all.effects ? make("details", {}, make("summary", {}, "What is a contribution?"), make("p", { class: "quiet" }, FORMULA))
          : make("p", { class: "quiet" }, `Contributions to the next token are not known: ${all.why}.`),
        guesses && make("h3", {}, "What the model expects next"),
        guesses && make("ol", { class: "guesses" }, guesses.map(([string, share]) => make("li", {}, bar(share, 1), make("span", { class: "number" }, percent(share)), quote(block.strings[string]),
          next !== null && block.strings[string] === next && make("small", {}, "✓ came next")))),
        all.guesses && !guesses && make("p", { class: "quiet" }, "What the model expects here is not known: parts of the context were not stored."),
      ].filter(Boolean));
    }

    // Into the address when the keys rest: browsers refuse a page that rewrites it dozens of times a second.
    let waiting = 0;
    function keep() {
      clearTimeout(waiting);
      query.set("at", at).set("feature", feature ?? "");
      waiting = setTimeout(() => {
        if ((mechlab.state().path[1] ?? number) === number) mechlab.go(["tokens", number], query, { replace: true });
      }, 100);
    }
    function paint(next) {
      feature = next;
      const pressed = panel.contains(document.activeElement) && next;
      colour(); showToken(); keep();
      if (pressed !== false && pressed !== null) panel.querySelector(`[aria-label="Colour the text by feature ${next}"]`)?.focus();
    }
    function move(to, focus) {
      if (to < 0 || to >= block.t.length) return;
      for (const [n, chosen] of [[at, false], [to, true]]) {
        text.children[n].tabIndex = chosen ? 0 : -1;
        text.children[n].setAttribute("aria-selected", chosen);
      }
      at = to;
      if (focus) text.children[at].focus();
      showToken(); keep();
    }
    // The token on the line above or below that is nearest across.
    function across(down) {
      const own = text.children[at].getBoundingClientRect();
      let best = at, least = Infinity;
      for (const chip of text.children) {
        const box = chip.getBoundingClientRect(), lines = Math.round((box.top - own.top) / own.height) * down;
        const far = Math.abs(box.left - own.left) + 10000 * lines;
        if (lines > 0 && far < least) [best, least] = [Number(chip.dataset.place), far];
      }
      move(best, true);
    }
    text.addEventListener("focusin", ({ target }) => { const n = whole(target.dataset.place); if (n !== null && n !== at) move(n, false); });
    text.addEventListener("click", ({ target }) => { const chip = target.closest("[data-place]"); if (chip) move(Number(chip.dataset.place), true); });
    text.addEventListener("keydown", (event) => {
      const step = { ArrowUp: () => across(-1), ArrowDown: () => across(1), Home: () => move(0, true), End: () => move(block.t.length - 1, true) }[event.key];
      if (step && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); step(); }
    });
    const turn = (by) => { const other = all.documents[place + by]; if (other) mechlab.go(["tokens", other.d], { q: query.get("q"), feature }); };
    mechlab.keys({ ArrowLeft: () => move(at - 1, true), ArrowRight: () => move(at + 1, true), j: () => turn(1), k: () => turn(-1) },
      "←, →: previous and next token; ↑, ↓: token above and below (in the text); j, k: next and previous document");
    const cut = block.n > block.t.length && make("small", {}, `the first ${show(block.t.length)} of ${show(block.n)} tokens`);
    main.append(make("section", { class: "card", "aria-label": "Text" },
      make("h2", {}, `Document ${number} `, cut || make("small", {}, `${show(block.n)} tokens`)), colours, text), panel);
    colour(); showToken();
    return () => clearTimeout(waiting);
  } });
})();
