"use strict";
// How the run went: results with their doubt, how to make it again, training, times, settings, fingerprints.
(() => {
  const { make, show } = mechlab;
  const CURVES = [["loss", "training loss"], ["fve", "fraction of variance explained"], ["l0", "L0, active latents per token"], ["dead", "share of dead latents"], ["lr", "learning rate"]];

  const SMALL = new Set(["Timings", "Configuration", "Fingerprints", "Versions"]); // two side by side

  const interval = ({ low, high }) => (low === null || high === null ? "–" : `${show(low)} to ${show(high)}`);
  const section = (title, ...children) => make("section", { class: `card${SMALL.has(title) ? " small" : ""}`, "aria-label": title }, make("h2", {}, title), children);
  const size = (bytes) => (bytes >= 1e6 ? `${show(bytes / 1e6)} MB` : bytes >= 1e3 ? `${show(bytes / 1e3)} kB` : `${bytes} B`);

  function copied(command) {
    const code = make("pre", { tabindex: "0", "aria-label": "Command" }, make("code", {}, command));
    const button = make("button", { type: "button", onclick: async () => {
      getSelection().selectAllChildren(code);
      try {
        await navigator.clipboard.writeText(command);
        button.textContent = "Copied";
      } catch { // a page opened from a file may have no clipboard; the text is selected either way
        button.textContent = "Selected";
      }
      mechlab.say(button.textContent);
    } }, "Copy");
    return make("div", { class: "command" }, code, button);
  }

  const results = (rows) => mechlab.table({
    caption: "Results, with 95 % intervals", rows,
    columns: [
      { name: "name", title: "Result", cell: ({ name, note }) => [make("span", { class: "result" }, name), note && make("small", {}, note)] },
      { name: "value", title: "Value", number: true, cell: ({ value }) => make("b", {}, show(value)) },
      { name: "interval", title: "Interval", number: true, cell: interval },
      { name: "n", title: "n", number: true, cell: ({ n, unit }) => [show(n), unit && ` ${unit}`] },
      { name: "null", title: "Control", number: true, help: "The same measurement on what carries no information", cell: ({ null: control }) => (control ? `${show(control.value)} (${interval(control)})` : "–") },
      { name: "chance", title: "Chance", number: true, cell: ({ chance }) => show(chance) },
    ],
  });

  const pairs = (caption, rows, mono) => mechlab.table({ caption, rows, limit: 60,
    columns: [{ name: "name", title: "Name", cell: ([name]) => name }, { name: "value", title: "Value", cell: ([, value]) => (mono ? make("code", {}, value) : value) }] });

  function timings(rows) {
    const total = rows.reduce((sum, [, seconds]) => sum + seconds, 0), most = Math.max(...rows.map(([, seconds]) => seconds));
    const bar = (seconds) => {
      const fill = make("i");
      fill.style.setProperty("--share", most ? (seconds / most).toFixed(3) : 0);
      return make("span", { class: "meter wide", "aria-hidden": "true" }, fill);
    };
    return mechlab.table({ caption: `Time, ${show(total)} seconds in all`, rows, columns: [
      { name: "stage", title: "Stage", cell: ([stage]) => stage },
      { name: "seconds", title: "Seconds", number: true, cell: ([, seconds]) => [bar(seconds), seconds.toFixed(1)] },
    ] });
  }

  function training({ name, step, batch, ...curves }) {
    const x = batch ? step.map((each) => each * batch) : step, xlabel = batch ? "rows trained on" : "step";
    const drawn = CURVES.filter(([key]) => curves[key]?.some((value) => value !== null && value !== curves[key][0]));
    const still = CURVES.filter(([key]) => curves[key]?.length && !drawn.some(([each]) => each === key));
    return section(`Training of ${name}`,
      make("div", { class: "curves" }, drawn.map(([key, ylabel]) => make("figure", {}, mechlab.chart.lines({ series: [{ name: ylabel, x, y: curves[key] }], xlabel, ylabel })))),
      still.length ? make("p", { class: "quiet" }, `Constant: ${still.map(([key, label]) => `${label} ${show(curves[key][0])}`).join("; ")}.`) : null);
  }

  mechlab.view("run", { title: "Run", async open(state, root) {
    const run = await mechlab.load("run");
    const made = ({ name, kind, bytes, created, fingerprint, command }) => [name, kind, size(bytes), created, fingerprint, command];
    const titles = ["Part", "Kind", "Size", "Made", "Fingerprint", "Command"];
    root.append(make("div", { class: "run" }, ...[
      run.results.length && section("Results", results(run.results)),
      run.command && section("How to reproduce", make("p", { class: "quiet" }, "This command makes the run again:"), copied(run.command)),
      ...run.training.map(training),
      !run.training.length && section("Training", make("p", { class: "quiet" }, "No training log is stored with this run.")),
      run.artifacts.length && section("Parts", mechlab.table({ caption: "What the run made, and how", rows: run.artifacts.map(made),
        columns: titles.map((title, i) => ({ name: title, title, number: i === 2, cell: (row) => (i === 4 ? make("code", { title: row[i] }, `${row[i].slice(0, 12)}…`) : i === 5 ? make("code", {}, row[i]) : row[i]) })) })),
      run.timings.length && section("Timings", timings(run.timings)),
      run.versions.length && section("Versions", pairs("Libraries", run.versions)),
      run.config.length && section("Configuration", pairs("Settings", run.config)),
      run.fingerprints.length && section("Fingerprints", pairs("SHA-256 of what the run started from", run.fingerprints, true)),
    ].filter(Boolean)));
  } });
})();
