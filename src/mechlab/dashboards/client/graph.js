"use strict";
// A graph whose nodes and edges were laid out beforehand: for circuits, alone and compared.
(() => {
  const { make, show } = mechlab;

  // drawing: width, height, box, labels, nodes, edges in columns (from, to, path, width, score, …).
  // kind(i): classes of edge i, or null to hide it; text(i): what it says; onselect(node number or null).
  // The element has update({selected}), which asks for kinds anew, and light(edge numbers).
  mechlab.graph = ({ drawing, label, kind, text, onselect }) => {
    const { nodes, edges, box: [w, h] } = drawing, count = edges.from.length;
    const readout = make("output", { class: "readout quiet" });
    const idle = "Point at an edge or a node, or move between nodes with the arrow keys.";
    let current = 0, chosen = null, kinds = [];

    const lines = edges.path.map((_, i) => null); // drawn when first shown
    const under = make("g"), over = make("g");
    const rails = drawing.labels.map(([words, y]) => [
      make("line", { class: "rail", x1: 72, x2: drawing.width - 8, y1: y, y2: y }),
      make("text", { class: "rail-label", x: 64, y }, words)]).flat();
    const boxes = nodes.map((node, i) => {
      const about = node.class ?? node.kind ?? "";
      return make("g", {
        class: `node${node.class ? " classed" : ""}`, tabindex: i ? -1 : 0, role: "button", "data-name": node.name,
        onclick: () => choose(i), onkeydown: (event) => press(event, i), onfocus: () => point(i),
        onblur: () => light([]), onmouseenter: () => point(i, false), onmouseleave: () => light([]),
      },
      make("title", {}, about ? `${node.name}, ${about}` : node.name),
      make("rect", { x: node.x - w / 2, y: node.y - h / 2, width: w, height: h, rx: 7 }),
      make("text", { x: node.x, y: node.y }, short(node.text, 7)),
      node.class && make("text", { class: "class", x: node.x, y: node.y + h / 2 + 7 }, short(node.class, 16)));
    });
    over.append(...boxes);
    const svg = make("svg", { role: "group", "aria-label": label, width: drawing.width, height: drawing.height,
      viewBox: `0 0 ${drawing.width} ${drawing.height}` }, rails, under, over);
    svg.style.setProperty("--own", `${drawing.width}px`); // narrow screens see it a little smaller, then scroll
    const element = make("div", { class: "graph" }, make("div", { class: "scroll", tabindex: 0 }, svg), readout);

    function line(i) {
      const d = edges.path[i];
      const made = make("g", { onmouseenter: () => light([i]), onmouseleave: () => light([]) },
        make("path", { class: "reach", d }), make("path", { class: "ink", d, "stroke-width": edges.width[i] }),
        make("title", {}, text(i)));
      // The strongest lie on top: edges come in falling order.
      const next = lines.slice(0, i).findLast((each) => each);
      under.insertBefore(made, next ?? null);
      return made;
    }
    function light(numbers, words = numbers.length === 1 ? text(numbers[0]) : "") {
      const lit = new Set(numbers);
      lines.forEach((each, i) => each?.classList.toggle("lit", lit.has(i)));
      svg.classList.toggle("lighting", lit.size > 0);
      readout.textContent = words || idle;
    }
    const touching = (i) => edges.from.map((_, e) => e).filter((e) => kinds[e] !== null && (edges.from[e] === i || edges.to[e] === i));
    function point(i, focus = true) {
      const own = touching(i), into = own.filter((e) => edges.to[e] === i).length;
      const about = nodes[i].class ?? nodes[i].kind;
      light(own, `${nodes[i].name}${about ? `, ${about}` : ""}: ${into} edges in, ${own.length - into} out`);
      if (focus) rove(i);
    }
    function rove(i) {
      boxes[current]?.setAttribute("tabindex", -1);
      boxes[i]?.setAttribute("tabindex", 0);
      current = i;
    }
    function choose(i) { onselect(chosen === i ? null : i); }
    function press(event, i) {
      const turn = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
      if (event.key === "Enter" || event.key === " ") choose(i);
      else if (turn) {
        // The nearest in that direction; what lies off to the side counts as farther away.
        let best = null, least = Infinity;
        nodes.forEach((node, n) => {
          const dx = node.x - nodes[i].x, dy = node.y - nodes[i].y, along = dx * turn[0] + dy * turn[1];
          const far = along + 3 * Math.abs(dx * turn[1] + dy * turn[0]);
          if (along > 1 && far < least) [best, least] = [n, far];
        });
        if (best !== null) boxes[best].focus();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    }

    element.light = light;
    element.focusNode = (i) => boxes[i]?.focus();
    element.update = ({ selected = chosen } = {}) => {
      chosen = selected;
      if (chosen !== null) rove(chosen);
      kinds = Array.from({ length: count }, (_, i) => kind(i));
      const used = new Set();
      for (let i = 0; i < count; i++) {
        if (kinds[i] === null) { lines[i]?.setAttribute("class", "edge off"); continue; }
        lines[i] ??= line(i);
        lines[i].setAttribute("class", `edge ${edges.score[i] < 0 ? "negative" : "positive"} ${kinds[i]}`);
        used.add(edges.from[i]).add(edges.to[i]);
      }
      boxes.forEach((each, i) => {
        each.classList.toggle("unused", !used.has(i));
        each.classList.toggle("chosen", i === chosen);
        each.setAttribute("aria-pressed", i === chosen);
        const about = nodes[i].class ?? nodes[i].kind;
        each.setAttribute("aria-label", `${nodes[i].name}${about ? `, ${about}` : ""}, ${used.has(i) ? `${touching(i).length} edges` : "not in the circuit"}`);
      });
      light([]);
    };
    return element;
  };

  // Text for SVG, where white space that is spelled out cannot be elements.
  const plain = (text) => mechlab.visible(text).map((node) => (typeof node === "string" ? node : node.textContent)).join("");
  const short = (text, most) => { const found = [...plain(text).replaceAll("·", " ")]; return found.length > most ? `${found.slice(0, most - 1).join("")}…` : found.join(""); };

  // Attention from rows to columns. rows: whole percent, row by row, each as far as it can see.
  mechlab.heatMap = ({ rows, names, label }) => {
    const n = names.length, cell = n > 24 ? 15 : 24, left = 96, top = 78;
    const cells = rows.flatMap((row, i) => row.map((share, j) => share > 0 && make("g", {},
      make("title", {}, `from ${names[i]} to ${names[j]}: ${share} %`),
      make("rect", { class: "heat", x: left + cell * j, y: top + cell * i, width: cell, height: cell, "fill-opacity": (share / 100).toFixed(2) }),
      cell > 20 && share >= 10 && make("text", { class: "share", x: left + cell * (j + 0.5), y: top + cell * (i + 0.5) }, share))));
    const last = (rows.at(-1) ?? []).map((share, j) => [share, names[j]]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const words = `${label}. From the last token, ${names.at(-1)}: ${last.map(([share, name]) => `${name} ${share} %`).join(", ")}.`;
    const width = left + cell * n + 30, height = top + cell * n + 4;
    return make("div", { class: "scroll", tabindex: 0 }, make("svg", { class: "heat-map", role: "img", "aria-label": words, width, height, viewBox: `0 0 ${width} ${height}` },
      make("rect", { class: "frame", x: left, y: top, width: cell * n, height: cell * n }),
      names.map((name, i) => make("text", { x: left - 5, y: top + cell * (i + 0.5), class: "from" }, short(name, 14))),
      names.map((name, j) => make("text", { transform: `translate(${left + cell * (j + 0.5) + 3} ${top - 5}) rotate(-45)` }, short(name, 11))),
      cells));
  };

  // A score with its interval and control, as rows of a table; notes stand below, where there is room.
  mechlab.scoreTable = (scores, caption) => make("div", {}, make("div", { class: "scroll", tabindex: 0 }, make("table", { class: "scores" }, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ["", "value", "95 % interval", "control", "n"].map((name, i) => make(name ? "th" : "td", { scope: name ? "col" : null, class: i > 0 && "number" }, name)))),
    make("tbody", {}, scores.map((each) => make("tr", {},
      make("th", { scope: "row" }, each.name),
      make("td", { class: "number" }, show(each.value)),
      make("td", { class: "number" }, each.low === null ? "–" : `${show(each.low)} to ${show(each.high)}`),
      make("td", { class: "number" }, each.null ? mechlab.show(each.null.value) : "–"),
      make("td", { class: "number" }, show(each.n))))))),
    scores.filter(({ note }) => note).map(({ name, note }) => make("p", { class: "quiet note" }, `${name}: ${note}`)));
})();
