"use strict";
// Charts as SVG: bars, lines and scatters. Series differ by dash and marker, never by colour alone.
(() => {
  const { make, show } = mechlab;
  const W = 560, H = 260, LEFT = 64, RIGHT = 14, TOP = 12, BOTTOM = 42;
  const DASHES = ["", "7 4", "2 3", "10 3 2 3", "5 2 1 2 1 2"];
  const MANY = 3000; // points beyond which a scatter is a canvas

  // ---------- scales ----------
  const fine = (v, log) => Number.isFinite(v) && (!log || v > 0);
  function scale(values, from, to, log) {
    const usable = values.filter((v) => fine(v, log));
    let low = usable.reduce((a, b) => Math.min(a, b), Infinity), high = usable.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!usable.length) [low, high] = log ? [0.1, 1] : [0, 1];
    if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) / 2 || 1), high + (Math.abs(high) / 2 || 1)];
    const f = log ? Math.log10 : (v) => v;
    const at = (v) => from + ((f(v) - f(low)) / (f(high) - f(low))) * (to - from);
    at.ticks = log ? logTicks(low, high) : linearTicks(low, high);
    return at;
  }
  function linearTicks(low, high) {
    const rough = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 5, 10].find((m) => m * unit >= rough);
    const ticks = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) ticks.push(Number((n * step).toPrecision(12)));
    return ticks;
  }
  function logTicks(low, high) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    if (last - first < 1) return [low, high];
    const step = Math.ceil((last - first) / 5), ticks = [];
    for (let n = first; n <= last; n += step) ticks.push(10 ** n);
    return ticks;
  }
  const tick = (v) => (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(0).replace("e+", "e") : String(Number(v.toPrecision(3))));

  function axes(x, y, xlabel, ylabel) {
    const bottom = H - BOTTOM;
    return [
      ...y.ticks.map((v) => [make("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v) }), make("text", { x: LEFT - 7, y: y(v) + 4, "text-anchor": "end" }, tick(v))]).flat(),
      ...x.ticks.map((v) => make("text", { x: x(v), y: bottom + 16, "text-anchor": "middle" }, tick(v))),
      make("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: bottom, y2: bottom }),
      make("text", { class: "axis-label", x: (LEFT + W - RIGHT) / 2, y: H - 6, "text-anchor": "middle" }, xlabel ?? ""),
      make("text", { class: "axis-label", x: 0, y: 0, "text-anchor": "middle", transform: `translate(12 ${(TOP + bottom) / 2}) rotate(-90)` }, ylabel ?? ""),
    ];
  }
  const svg = (label, ...children) => make("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label }, ...children);

  // ---------- markers ----------
  const around = (n, r, turn, inner = r) => (x, y) => Array.from({ length: n }, (_, i) => {
    const size = i % 2 ? inner : r, angle = turn + (2 * Math.PI * i) / n;
    return [x + size * Math.cos(angle), y + size * Math.sin(angle)];
  });
  const SHAPES = [around(16, 3.6, 0), around(4, 5, Math.PI / 4), around(3, 5.2, -Math.PI / 2), around(4, 5, 0), around(10, 5.6, -Math.PI / 2, 2.4)];
  const shape = (number, x, y) => SHAPES[number % SHAPES.length](x, y);
  const points = (corners) => corners.map((corner) => corner.map((v) => v.toFixed(1)).join(",")).join(" ");
  const marker = (number, x, y, attributes, ...children) => make("polygon", { points: points(shape(number, x, y)), class: `marker series-${number % 5}`, ...attributes }, ...children);

  function legend(names, line) {
    return make("div", { class: "legend" }, names.map((name, i) => make("span", {},
      make("svg", { width: 34, height: 12, "aria-hidden": "true" },
        line && make("line", { class: `line series-${i % 5}`, x1: 0, x2: 34, y1: 6, y2: 6, "stroke-dasharray": line[i] }), marker(i, 17, 6, {})), name)));
  }

  // ---------- bars ----------
  // values: heights; edges: one more than values; mark: a place on the x axis. The element's mark(x) moves it.
  function bars({ values, edges, log = false, label = "", mark = null, xlabel = "", ylabel = "" }) {
    const ends = edges ?? values.map((_, i) => i).concat(values.length);
    const x = scale([ends[0], ends.at(-1)], LEFT, W - RIGHT), bottom = H - BOTTOM;
    const y = scale(log ? [0.5, ...values] : [0, ...values], bottom, TOP, log);
    const line = make("line", { class: "mark", y1: TOP, y2: bottom, visibility: "hidden" });
    const drawn = values.map((value, i) => {
      const top = value > 0 ? y(value) : bottom, left = x(ends[i]);
      return make("rect", { class: "bin", x: left + 0.5, y: top, width: Math.max(0.5, x(ends[i + 1]) - left - 1), height: Math.max(0, bottom - top) },
        make("title", {}, `${show(ends[i])} to ${show(ends[i + 1])}: ${show(value)}`));
    });
    const chart = svg(label, axes(x, y, xlabel, ylabel), drawn, line);
    chart.mark = (value) => {
      const shown = value !== null && value !== undefined;
      line.setAttribute("visibility", shown ? "visible" : "hidden");
      if (shown) for (const side of ["x1", "x2"]) line.setAttribute(side, x(value));
    };
    chart.mark(mark);
    return chart;
  }

  // ---------- lines ----------
  // series: [{name, x, y}]; marks: [{x, label}], upright lines.
  function lines({ series, xlabel = "", ylabel = "", x: kind = "linear", marks = [], label = "" }) {
    const log = kind === "log", bottom = H - BOTTOM;
    const x = scale([...series.flatMap((s) => s.x), ...marks.map((m) => m.x)], LEFT, W - RIGHT, log);
    const y = scale(series.flatMap((s) => s.y), bottom, TOP);
    const dashes = series.map((_, i) => DASHES[i % DASHES.length]);
    const drawn = series.map((s, i) => {
      const places = s.x.map((_, n) => n).filter((n) => fine(s.x[n], log) && fine(s.y[n]));
      const path = make("polyline", { class: `line series-${i % 5}`, "stroke-dasharray": dashes[i], points: points(places.map((n) => [x(s.x[n]), y(s.y[n])])) });
      const every = Math.ceil(places.length / 40); // markers of long series would run into one another
      const shapes = places.filter((_, n) => n % every === 0).map((n) => marker(i, x(s.x[n]), y(s.y[n]), {},
        make("title", {}, `${s.name ?? ""} at ${show(s.x[n])}: ${show(s.y[n])}`)));
      return make("g", {}, path, shapes);
    });
    const upright = marks.map((m) => make("g", {}, make("line", { class: "mark", x1: x(m.x), x2: x(m.x), y1: TOP, y2: bottom }), make("text", { class: "mark-label", x: x(m.x) + 4, y: bottom - 7 }, m.label ?? "")));
    const chart = svg(label || `${ylabel} against ${xlabel}: ${series.map((s) => s.name).join(", ")}`, axes(x, y, xlabel, ylabel), drawn, upright);
    return series.length > 1 ? make("div", { class: "chart-box" }, chart, legend(series.map((s) => s.name), dashes)) : chart;
  }

  // ---------- scatter ----------
  // points: [{x, y, title, href, kind}]; log: of the x axis.
  function scatter({ points: given, xlabel = "", ylabel = "", log = false, label = "" }) {
    const all = given.filter((p) => fine(p.x, log) && fine(p.y));
    const x = scale(all.map((p) => p.x), LEFT + 6, W - RIGHT - 6, log), y = scale(all.map((p) => p.y), H - BOTTOM - 6, TOP + 6);
    const kinds = [...new Set(all.map((p) => p.kind ?? ""))].sort();
    const number = (p) => kinds.indexOf(p.kind ?? "");
    const chart = svg(label || `${ylabel} against ${xlabel}, ${all.length} points`, axes(x, y, xlabel, ylabel));
    const box = make("div", { class: "chart-box" }, chart, kinds.length > 1 && legend(kinds));
    if (all.length <= MANY) {
      chart.append(...all.map((p) => {
        const dot = marker(number(p), x(p.x), y(p.y), { class: `marker open series-${number(p) % 5}` }, p.title && make("title", {}, p.title));
        if (p.href) dot.addEventListener("click", () => { location.hash = p.href; });
        if (p.href) dot.classList.add("linked");
        return dot;
      }));
    } else paint(box, chart, all.map((p) => ({ ...p, at: [x(p.x), y(p.y)], number: number(p) })));
    return box;
  }

  function paint(box, chart, all) {
    const canvas = make("canvas", { width: 2 * W, height: 2 * H, "aria-hidden": "true" }), brush = canvas.getContext("2d");
    const stack = make("div", { class: "stack" });
    chart.before(stack);
    stack.append(chart, canvas);
    const draw = () => {
      if (!box.isConnected && canvas.dataset.drawn) return document.removeEventListener("mechlab-theme", draw);
      canvas.dataset.drawn = 1;
      brush.setTransform(2, 0, 0, 2, 0, 0);
      brush.clearRect(0, 0, W, H);
      brush.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
      brush.globalAlpha = 0.5;
      for (const { at, number } of all) {
        brush.beginPath();
        for (const [px, py] of shape(number, ...at)) brush.lineTo(px, py);
        brush.closePath();
        brush.stroke();
      }
    };
    draw();
    document.addEventListener("mechlab-theme", draw);
    const nearest = (event) => {
      const frame = canvas.getBoundingClientRect(), unit = W / frame.width;
      const px = (event.clientX - frame.left) * unit, py = (event.clientY - frame.top) * unit;
      let best = null, least = 64;
      for (const p of all) {
        const far = (p.at[0] - px) ** 2 + (p.at[1] - py) ** 2;
        if (far < least) [best, least] = [p, far];
      }
      return best;
    };
    canvas.addEventListener("pointermove", (event) => {
      const p = nearest(event);
      canvas.title = p?.title ?? "";
      canvas.style.cursor = p?.href ? "pointer" : "";
    });
    canvas.addEventListener("click", (event) => {
      const p = nearest(event);
      if (p?.href) location.hash = p.href;
    });
  }

  mechlab.chart = { bars, lines, scatter };
})();
