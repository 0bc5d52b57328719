"use strict";
// All features: a table, a search with operators, and a plot of density against score.
(() => {
  const { make, show, percent } = mechlab;
  const SIGNS = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };
  const FLAGS = { dead: "never active on this text", dense: "active on a large share of all tokens", star: "a favourite" };
  const HELP = {
    "word": "in explanation, label or concept; a number also finds that feature",
    '"two words"': "exactly this text",
    "-word": "all but; goes before operators too",
    "token:the": 'peaks at this token, in any case; token:" the" is exact',
    "score>0.8": "the first score, or any by its name; < > <= >= =",
    "density<1e-3": "share of active tokens; also max, mean and n",
    "flag:dead": "dead, dense or star",
    "concept:name": "also label: and by: (who explained); empty for any",
  };
  const LEGEND = "● score, with its 95 % interval as a bar; ◇ control, such as the score of another feature’s explanation.";
  const QUOTE = "To find it as text, put it in quotes.";

  // ---------- what is known of all features, read once ----------
  const field = (name) => name.toLowerCase().replace(/[^\w]+/g, "-");
  let reading = null;
  const read = () => (reading ??= mechlab.load("overview").then(({ chunk, scorers, columns }) => {
    const { n, density, max, mean, said = [], label = [], concept = [], by = [], tokens = [], flags = [], scores } = columns;
    const numbers = { n, density, max, mean };
    for (const name of scorers) numbers[field(name)] = scores[name].value;
    if (scorers.length) numbers.score ??= scores[scorers[0]].value;
    const rows = n.map((_, row) => row);
    return {
      chunk, scorers, rows, numbers, n, density, max, mean, said, label, concept, by, tokens, flags, scores, sorted: new Map(),
      row: new Map(n.map((number, row) => [number, row])),
      words: rows.map((row) => `${said[row] ?? ""}\n${label[row] ?? ""}\n${concept[row] ?? ""}`.toLowerCase()),
    };
  }));

  // ---------- search ----------
  // A query as a test of rows. Throws an Error that says in a line what is wrong with it.
  function compile(all, query) {
    const tests = (query.match(/(?:[^\s"]|"[^"]*"?)+/g) ?? []).filter((word) => word !== "-").map((word) => {
      const [, not, name, sign, rest] = /^(-?)(?:([a-z_][\w-]*)(:|<=|>=|[<>=]))?(.*)$/is.exec(word);
      const quoted = rest.startsWith('"'), value = quoted ? rest.replace(/^"|"$/g, "") : rest;
      const test = name ? operator(all, name.toLowerCase(), sign, value, quoted) : text(all, value, quoted);
      return not ? (row) => !test(row) : test;
    });
    return (row) => tests.every((holds) => holds(row));
  }

  function text({ words, n }, value, quoted) {
    const small = value.toLowerCase(), number = quoted ? null : /^#?(\d+)$/.exec(value)?.[1];
    return (row) => (number && n[row] === Number(number)) || (!(number && value[0] === "#") && words[row].includes(small));
  }

  function operator(all, name, sign, value, quoted) {
    const { numbers, flags, n } = all, small = value.toLowerCase();
    if (sign !== ":") {
      if (!Object.hasOwn(numbers, name)) throw new Error(`There is no number “${name}”; there are ${Object.keys(numbers).join(", ")}. ${QUOTE}`);
      if (!value.trim() || Number.isNaN(Number(value))) throw new Error(`“${name}${sign}” wants a number, such as ${name}${sign}0.8.`);
      return (row) => numbers[name][row] != null && SIGNS[sign](numbers[name][row], Number(value));
    }
    if (["label", "concept", "by"].includes(name)) return (row) => Boolean(all[name][row]) && all[name][row].toLowerCase().includes(small);
    if (name === "token") {
      if (quoted) return (row) => all.tokens[row]?.includes(value);
      all.trimmed ??= all.tokens.map((list) => list.map((token) => token.trim().toLowerCase()));
      return (row) => all.trimmed[row]?.includes(small);
    }
    if (name === "flag") {
      if (!Object.hasOwn(FLAGS, small)) throw new Error(`“flag:” is dead, dense or star, not “${value}”.`);
      return small === "star" ? (row) => stars.has(n[row]) : (row) => flags[row] === small;
    }
    if (Object.hasOwn(numbers, name)) throw new Error(`“${name}” is a number: write ${name}>${value || 0.8} or ${name}<${value || 0.8}.`);
    throw new Error(`There is no operator “${name}:”; there are token:, flag:, label:, concept: and by:. ${QUOTE}`);
  }

  // All rows by a column; those without a value come last either way.
  function sorted(all, by, down) {
    const key = `${by} ${down}`;
    if (!all.sorted.has(key)) {
      const values = all.numbers[by] ?? all[by] ?? all.n;
      const [full, missing] = [[], []];
      for (const row of all.rows) (values[row] == null || values[row] === "" ? missing : full).push(row);
      full.sort((a, b) => (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : 0) * (down ? -1 : 1) || a - b);
      all.sorted.set(key, [...full, ...missing]);
    }
    return all.sorted.get(key);
  }

  const wanted = (all, query) => {
    const by = query.get("sort"), first = all.scorers[0];
    return { name: by === "score" && first ? field(first) : by ?? "n", down: query.get("down") === "1" };
  };

  // The rows of a search in order; `query` is that of the address.
  function found(all, query) {
    const { name, down } = wanted(all, query);
    return sorted(all, name, down).filter(compile(all, query.get("q") ?? ""));
  }

  // ---------- favourites, which the browser keeps ----------
  const { model, site } = mechlab.facts.facts, PLACE = `mechlab-stars ${JSON.stringify([mechlab.facts.title, model, site])}`;
  const stars = new Set();
  try {
    JSON.parse(localStorage.getItem(PLACE) ?? "[]").filter(Number.isInteger).forEach((number) => stars.add(number));
  } catch { /* nothing kept, or no place to keep it */ }

  function star(number) {
    if (!stars.delete(number)) stars.add(number);
    try { localStorage.setItem(PLACE, JSON.stringify([...stars])); } catch { /* lasts until the page is closed */ }
  }

  function starred({ row, said, label }) {
    const list = [...stars].filter((number) => row.has(number)).sort((a, b) => a - b);
    const file = { title: mechlab.facts.title, model, site, favourites: list.map((n) => ({ feature: n, explanation: said[row.get(n)] ?? "", label: label[row.get(n)] ?? "" })) };
    const bytes = new TextEncoder().encode(JSON.stringify(file, null, 1)); // half a character becomes �, where encodeURIComponent would throw
    return list.length > 0 && make("a", { download: "favourites.json", href: `data:application/json,${[...bytes].map((byte) => `%${byte.toString(16).padStart(2, "0")}`).join("")}` }, `★ ${list.length}: save as a file`);
  }

  // ---------- a score as a bar: value ●, interval, control ◇, chance ┊ ----------
  function scoreBar({ name, value, low, high, chance, null: control }, width) {
    const given = [value, low, high, control?.value, control?.low, control?.high].filter((each) => each != null);
    const least = Math.min(0, ...given), most = Math.max(1, ...given), x = (each) => 6 + ((width - 12) * (each - least)) / (most - least);
    const label = `${name} ${show(value)}${low == null ? "" : `, interval ${show(low)} to ${show(high)}`}${control?.value == null ? "" : `, control ${show(control.value)}`}`;
    return make("svg", { class: "score", viewBox: `0 0 ${width} 16`, width, height: 16, role: "img", "aria-label": label },
      make("rect", { class: "track", x: 6, y: 5, width: width - 12, height: 6 }),
      low != null && make("rect", { class: "within", x: x(low), y: 5, width: Math.max(1, x(high) - x(low)), height: 6 }),
      chance != null && make("path", { class: "chance", d: `M${x(chance)} 0v16` }),
      control?.low != null && make("path", { class: "null", d: `M${x(control.low)} 8H${x(control.high)}` }),
      control?.value != null && make("path", { class: "null", d: `M${x(control.value)} 3l5 5l-5 5l-5-5z` }),
      make("circle", { class: "dot", cx: x(value), cy: 8, r: 4 }));
  }

  // ---------- the view ----------
  async function open(state, root) {
    const all = await read(), { n, said, density, max, flags, scorers, scores } = all, { query } = state;
    const link = (row) => mechlab.link(["feature", n[row]], query);
    let rows = [], drawing = 0;

    const texts = (name, title) => all[name].some(Boolean) && { name, title, cell: (row) => make("span", { dir: "auto" }, all[name][row]), value: (row) => all[name][row] };
    const columns = [
      { name: "n", title: "#", value: (row) => n[row], number: true, cell: (row) => make("a", { href: link(row), "aria-label": `Feature ${n[row]}` }, `${stars.has(n[row]) ? "★ " : ""}${n[row]}`) },
      { name: "said", title: "Explanation", value: (row) => said[row], cell: (row) => said[row]
        ? make("span", { class: "explanation", dir: "auto", title: said[row] }, said[row]) : make("span", { class: "quiet" }, flags[row] === "dead" ? "never fires" : "no explanation") },
      texts("label", "Label"), texts("concept", "Concept"),
      { name: "density", title: "Density", number: true, value: (row) => density[row], cell: (row) => percent(density[row]) },
      { name: "max", title: "Max", number: true, value: (row) => max[row], cell: (row) => show(max[row]) },
      ...scorers.map((name) => ({ name: field(name), title: name, number: true, value: (row) => scores[name].value[row], cell: (row) => scoreCell(name, row) })),
      flags.some(Boolean) && { name: "flags", title: "Flag", value: (row) => flags[row], cell: (row) => flags[row] && make("span", { class: "flag", title: FLAGS[flags[row]] }, flags[row]) },
    ].filter(Boolean);

    function scoreCell(name, row) {
      const { value, low, high, null: control } = scores[name];
      if (value[row] == null) return make("span", { class: "quiet" }, "–");
      const score = { name, value: value[row], low: low?.[row], high: high?.[row], null: { value: control?.[row] } };
      return make("span", { class: "cell" }, scoreBar(score, 76), show(score.value),
        make("span", { class: "tip", "aria-hidden": "true" }, score.low != null && make("span", {}, `${show(score.low)} to ${show(score.high)}`), score.null.value != null && make("span", {}, `◇ ${show(score.null.value)}`)));
    }

    const table = mechlab.table({ columns, rows, caption: "Features; the headings sort", limit: 100, empty: all.rows.length ? "No feature matches." : "There are no features.",
      onsort: (name, down) => {
        set("sort", name);
        set("down", down ? "1" : "");
        refresh();
      } });
    table.addEventListener("click", ({ target }) => {
      // The whole row leads to its feature, and text in it can still be selected.
      if (!target.closest("a, button") && !String(getSelection())) target.closest("tbody tr")?.querySelector("a")?.click();
    });
    const search = make("input", { type: "search", "data-search": "", "aria-label": "Search features", "aria-describedby": "wrong", autocomplete: "off", spellcheck: "false",
      placeholder: 'words, token:" the", score>0.8, density<1e-3, flag:dead', value: query.get("q"),
      oninput: () => {
        set("q", search.value);
        refresh();
      },
      onkeydown: ({ key }) => { if (key === "Enter" && rows.length) location.hash = link(rows[0]); } });
    const count = make("output"), wrong = make("p", { id: "wrong", role: "alert" }), plot = make("div");
    const plotting = make("button", { type: "button", onclick: () => {
      set("plot", query.has("plot") ? "" : "1");
      refresh();
    } }, "Plot");

    function set(name, value) {
      if (value) query.set(name, value);
      else query.delete(name);
      mechlab.go(["features"], query, { replace: true });
    }
    function refresh() {
      wrong.textContent = "";
      try {
        rows = found(all, query);
      } catch (error) {
        wrong.textContent = error.message; // the rows stay as they are while an operator is being typed
      }
      count.textContent = `${rows.length === all.rows.length ? "" : `${rows.length} of `}${all.rows.length} features`;
      table.update({ rows, sort: wanted(all, query) });
      plotting.setAttribute("aria-pressed", query.has("plot"));
      clearTimeout(drawing);
      drawing = setTimeout(() => plot.replaceChildren(...(query.has("plot") ? [scatter()] : [])), 100); // not at every letter typed
    }
    function scatter() {
      const by = wanted(all, query).name, name = scorers.find((each) => field(each) === by) ?? scorers[0], y = name ? scores[name].value : max;
      return mechlab.chart.scatter({ xlabel: "density (log)", ylabel: name ?? "max", log: true,
        points: rows.map((row) => ({ x: density[row], y: y[row], kind: flags[row] || "all others", href: link(row), title: `Feature ${n[row]}: ${said[row] || "no explanation"}` })) });
    }

    root.append(make("h2", {}, "Features"),
      make("div", { class: "find", role: "search" }, search, count, plotting, starred(all)), wrong,
      make("details", {}, make("summary", {}, "How to search"), make("dl", {}, Object.entries(HELP).map(([form, meaning]) => [make("dt", {}, make("code", {}, form)), make("dd", {}, meaning)]).flat())),
      plot, make("div", { class: "card" }, scorers.length > 0 && make("p", { class: "quiet legend-of-scores" }, LEGEND), table));
    refresh();
    const step = (by) => {
      const links = [...table.querySelectorAll("tbody a")];
      links[Math.max(0, Math.min(links.length - 1, links.indexOf(document.activeElement) + by))]?.focus();
    };
    mechlab.keys({ j: () => step(1), k: () => step(-1), p: () => plotting.click() }, "j, k: next and previous row; p: plot");
  }

  mechlab.features = { read, found, star, stars, scoreBar, LEGEND };
  mechlab.view("features", { title: "Features", open });
})();
