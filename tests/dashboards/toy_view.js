// Stands in the place of the run view: shows what mechlab.* makes.
(() => {
  const { make } = mechlab;
  mechlab.view("run", {
    title: "Toy",
    open: async (state, root) => {
      root.append(make("h2", {}, `Toy ${state.path[1] ?? "none"} ${state.query.get("q") ?? ""}`));
      root.append(make("input", { "data-search": "", type: "search", "aria-label": "Search" }));
      const { strings, contexts, rows } = await mechlab.load("features-0");
      root.append(mechlab.tokens(contexts[0], strings));
      root.append(mechlab.table({
        caption: "Rows", rows, limit: 3, sort: { name: "n", down: false },
        columns: [
          { name: "n", title: "#", number: true, cell: (r) => String(r.n), value: (r) => r.n },
          { name: "said", title: "Said", cell: (r) => r.said, value: (r) => r.said },
          { name: "score", title: "Score", number: true, cell: (r) => mechlab.show(r.score), value: (r) => r.score },
        ],
      }));
      root.append(mechlab.chart.bars({ values: [9, 0, 3], edges: [0, 1, 2, 3], log: true, label: "bars", mark: 2 }));
      root.append(mechlab.chart.lines({ series: [{ name: "a", x: [1, 10, 100], y: [0, 1, null] }, { name: "b", x: [1, 100], y: [2, 1] }], x: "log", xlabel: "x", ylabel: "y", marks: [{ x: 10, label: "here" }] }));
      const many = Number(state.query.get("points") ?? 5);
      root.append(mechlab.chart.scatter({ points: Array.from({ length: many }, (_, i) => ({ x: 10 ** -(i % 7), y: i, title: `p${i}`, href: `#/run/${i}`, kind: i % 2 ? "odd" : "even" })), log: true, xlabel: "density", ylabel: "score" }));
      mechlab.keys({ j: () => mechlab.go(["run", Number(state.path[1] ?? 0) + 1]) }, "j: next");
    },
  });
  mechlab.view("compare", { title: "Broken", open: async () => { await mechlab.load("nothing"); } });
})();
