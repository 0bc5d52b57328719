"use strict";
// A text of one's own: which features it activates, and what the model does when some are changed.
// Needs the server of `mechlab dashboard serve`, which puts what can be asked of it into facts.live.
(() => {
  const { make, show, percent } = mechlab;
  const MODES = { add: "add", ablate: "ablate", clamp: "hold at" };
  const LIMITS = mechlab.facts.live?.limits ?? {};

  // The token has become a cookie, and need not stay in the address and the history.
  if (mechlab.facts.live && location.search) history.replaceState(null, "", location.pathname + location.hash);

  async function ask(what, question, signal) {
    let answer, after;
    for (let tries = 0; tries < 8 && (!answer || after); tries++) {
      // Not all at the same moment again, where many ask.
      if (after) await new Promise((done) => setTimeout(done, 1000 * after * (0.5 + Math.random())));
      try {
        answer = await fetch(`api/${what}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question), signal });
      } catch (error) {
        throw error.name === "AbortError" ? error : new Error("The server does not answer. Is it still running?");
      }
      after = answer.status === 503 && Number(answer.headers.get("Retry-After"));
    }
    const value = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(value.error || `The server answers ${answer.status}.`);
    return value;
  }

  // "12:ablate,3:add:2" ⇄ changes; what cannot be read is left out.
  const read = (text = "") => text.split(",").map((part) => part.split(":"))
    .filter(([feature, mode]) => /^\d+$/.test(feature) && Object.hasOwn(MODES, mode))
    .map(([feature, mode, strength]) => ({ feature: Number(feature), mode, strength: mode === "ablate" ? 0 : Number(strength) || 0 }));
  const written = (edits) => edits.map(({ feature, mode, strength }) => [feature, mode, ...(mode === "ablate" ? [] : [strength])].join(":")).join(",");

  // The text on which a feature is most active, to begin with.
  async function example(feature) {
    try {
      const { chunk } = await mechlab.load("overview");
      const { strings, features } = await mechlab.load(`features-${Math.floor(feature / chunk)}`);
      return features[feature].contexts.top[0].t.map((number) => strings[number]).join("").trim();
    } catch {
      return ""; // no feature was asked for, or nothing is known of it
    }
  }

  const labelled = (text, node) => make("label", {}, make("span", {}, text), node);

  async function open(state, root) {
    root.append(make("h2", {}, "Try a text"));
    if (!mechlab.facts.live) {
      root.append(make("p", { class: "notice" }, "There is no model behind this page. ", make("code", {}, "mechlab dashboard serve RUN"), " has one."));
      return null;
    }
    const { query } = state, said = new Map();
    if (mechlab.has("overview")) {
      const { columns } = await mechlab.load("overview");
      columns.n.forEach((number, row) => said.set(number, columns.label?.[row] || columns.said?.[row] || ""));
    }
    const edits = read(query.get("edits")), asked = /^\d+$/.test(query.get("feature") ?? "") ? Number(query.get("feature")) : null;
    let asking = null, found = null, looked = null, place = 0;

    const text = make("textarea", { id: "live-text", rows: 3, maxlength: LIMITS.characters, "data-search": "", required: true, dir: "auto", spellcheck: "false" });
    text.value = query.get("text") ?? (await example(asked));
    const reading = make("section", { class: "card", hidden: true, "aria-label": "Activations" });
    const changes = make("div", { class: "changes" }), outcome = make("section", { class: "card", hidden: true, "aria-label": "Before and after" });
    const number = (name, value, attributes) => make("input", { type: "number", value: query.get(name) ?? value, onchange: ({ target }) => set(name, target.value === String(value) ? "" : target.value), ...attributes });
    const count = number("new", 20, { min: 0, max: LIMITS.new_tokens }), warmth = number("temperature", 0, { min: 0, max: 2, step: 0.1 }), seed = number("seed", 0, { min: 0 });

    function set(name, value) {
      if (value !== "" && value !== null && value !== undefined) query.set(name, value);
      else query.delete(name);
      mechlab.go(["live"], query, { replace: true });
    }
    const link = (feature) => make("a", { href: mechlab.link(["feature", feature]) }, `${feature}`);
    const about = (feature) => make("span", { class: "about quiet", dir: "auto", title: said.get(feature) }, said.get(feature) || "");

    // One question at a time: a new one takes the place of the last.
    async function during(form, what, question, then) {
      asking?.abort();
      const here = (asking = new AbortController());
      for (const each of [reader, changer]) each.toggleAttribute("aria-busy", each === form);
      for (const each of root.querySelectorAll(".wrong")) each.textContent = "";
      mechlab.say("Working");
      try {
        then(await ask(what, question, here.signal));
      } catch (error) {
        if (error.name === "AbortError") return;
        const wrong = form.querySelector(".wrong");
        wrong.textContent = error.message;
        wrong.scrollIntoView({ block: "nearest" });
      } finally {
        if (asking === here) form.removeAttribute("aria-busy");
      }
    }

    // ---------- activations ----------
    function look() {
      const said = text.value;
      set("text", said);
      return during(reader, "activations", { text: said, features: /^\d+$/.test(query.get("feature") ?? "") ? [Number(query.get("feature"))] : [] }, (value) => {
        [found, looked] = [value, said];
        const [values = []] = Object.values(value.features), most = Math.max(0, ...values);
        place = most ? values.indexOf(most) : Math.min(place, value.pieces.length - 1);
        showReading();
        mechlab.say(`${value.pieces.length} tokens`);
      });
    }

    function along(feature) {
      set("feature", feature);
      look();
    }

    function showReading() {
      const chosen = query.get("feature"), values = found.features[chosen] ?? [];
      const max = Math.max(0, ...values);
      const chips = found.pieces.map((piece, i) => make("button", { type: "button", class: "chip", "aria-pressed": String(i === place), tabindex: i === place ? 0 : -1, "data-place": i, onclick: () => at(i) },
        mechlab.token(piece, values[i], max)));
      const line = make("div", { class: "text", dir: "auto", role: "group", "aria-label": "Tokens; left and right move", onkeydown: (event) => {
        const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: chips.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        at(Math.max(0, Math.min(chips.length - 1, to)));
      } }, chips);
      const panel = make("div", { class: "columns" });
      function at(i) {
        chips[place].setAttribute("aria-pressed", "false");
        chips[place].tabIndex = -1;
        place = i;
        chips[i].setAttribute("aria-pressed", "true");
        chips[i].tabIndex = 0;
        chips[i].focus();
        fill();
      }
      const strongest = new Map();
      found.top.forEach((list, i) => list.forEach(([feature, value]) => { if (value > (strongest.get(feature)?.value ?? 0)) strongest.set(feature, { feature, value, i }); }));
      const most = [...strongest.values()].sort((a, b) => b.value - a.value).slice(0, 8);
      function fill() {
        panel.replaceChildren(
          ranked(`At token ${place + 1}`, found.top[place].map(([feature, value]) => ({ feature, value }))),
          ranked("Strongest in this text", most));
      }
      fill();
      reading.hidden = false;
      reading.replaceChildren(make("h3", {}, chosen && values.length ? ["Feature ", link(chosen), " along the text ", about(Number(chosen))] : "Tokens; choose one to see its features"), line,
        chosen && values.length && !max && make("p", { class: "quiet" }, "It is not active in this text.") || "",
        found.unknown > 0 && make("p", { class: "quiet" }, `${found.unknown} ${found.unknown === 1 ? "word is" : "words are"} not in the model's vocabulary.`) || "",
        panel);
    }

    function ranked(caption, rows) {
      return mechlab.table({ caption, rows, empty: "No feature is active here.", columns: [
        { name: "feature", title: "Feature", number: true, cell: ({ feature }) => link(feature), value: ({ feature }) => feature },
        { name: "said", title: "About", cell: ({ feature }) => about(feature) },
        { name: "value", title: "Activation", number: true, cell: ({ value }) => show(value), value: ({ value }) => value },
        { name: "do", title: make("span", { class: "sr" }, "Actions"), cell: ({ feature }) => make("span", { class: "do" },
          make("button", { type: "button", "aria-label": `Feature ${feature} along the text`, onclick: () => along(feature) }, "colour"),
          make("button", { type: "button", "aria-label": `Change feature ${feature}`, onclick: () => change(feature) }, "change")) },
      ] });
    }

    // ---------- changes ----------
    function change(feature) {
      if (edits.length < LIMITS.edits && !edits.some((each) => each.feature === feature)) edits.push({ feature, mode: "add", strength: 2 });
      showChanges();
      changes.querySelector(`[data-feature="${feature}"] select`)?.focus();
    }

    function showChanges() {
      set("edits", written(edits));
      changes.replaceChildren(...edits.map((edit, i) => {
        const keep = (name, value) => {
          edit[name] = value;
          if (edit.mode === "ablate") edit.strength = 0;
          set("edits", written(edits));
          strength.disabled = edit.mode === "ablate";
          strength.value = strength.disabled ? "" : edit.strength;
          note.replaceChildren(about(edit.feature));
        };
        const note = make("span", {}, about(edit.feature));
        const strength = make("input", { type: "number", step: "any", min: -LIMITS.strength, max: LIMITS.strength, value: edit.mode === "ablate" ? "" : edit.strength, disabled: edit.mode === "ablate", onchange: ({ target }) => keep("strength", Number(target.value)) });
        return make("fieldset", { "data-feature": edit.feature }, make("legend", { class: "sr" }, `Change ${i + 1}`),
          labelled("Feature", make("input", { type: "number", min: 0, max: mechlab.facts.live.features - 1, value: edit.feature, onchange: ({ target }) => keep("feature", Number(target.value)) })),
          labelled("Change", make("select", { onchange: ({ target }) => keep("mode", target.value) }, Object.entries(MODES).map(([mode, title]) => make("option", { value: mode, selected: mode === edit.mode }, title)))),
          labelled("Times its maximum", strength),
          make("button", { type: "button", "aria-label": `Take change ${i + 1} back`, onclick: () => { edits.splice(i, 1); showChanges(); more.focus(); } }, "✕"), note);
      }));
      more.disabled = edits.length >= LIMITS.edits;
    }

    const more = make("button", { type: "button", onclick: () => {
      const known = found ? found.top.flat().map(([feature]) => feature) : [Number(query.get("feature")) || 0];
      change(known.find((feature) => !edits.some((each) => each.feature === feature)) ?? Math.max(-1, ...edits.map(({ feature }) => feature)) + 1);
    } }, "Add a change");

    async function compare() {
      if (looked !== text.value) {
        await look();
        if (looked !== text.value) return; // refused, or asked again meanwhile
      }
      const said = text.value, changed = edits.map((edit) => ({ ...edit }));
      return during(changer, "steer", { text: said, edits: changed, new_tokens: Number(count.value), temperature: Number(warmth.value), seed: Number(seed.value) }, (value) => {
        showOutcome(value, said, changed);
        mechlab.say(`Changed by ${show(value.kl)} nats per token`);
      });
    }

    const told = ({ feature, mode, strength }) => [link(feature), { ablate: " ablated", add: ` added at ${show(strength)} times its maximum`, clamp: ` held at ${show(strength)} times its maximum` }[mode]];

    function showOutcome({ pieces, kl, kl_pieces: moved, next, continuation }, begin, changed) {
      const most = Math.max(...next.map(({ before, after }) => Math.max(before, after)));
      const bar = (share) => make("span", { class: "share" }, make("span", { class: "fill", style: `width: ${(100 * share) / most}%`, "aria-hidden": "true" }), make("span", {}, percent(share)));
      const written = (title, said) => make("div", {}, make("h3", {}, title), make("p", { class: "text", dir: "auto" }, make("span", { class: "quiet" }, mechlab.visible(begin.slice(-60))), make("b", {}, mechlab.visible(said))));
      const same = continuation.before === continuation.after;
      outcome.hidden = false;
      outcome.replaceChildren(
        make("p", { class: "told" }, changed.length ? [changed.length > 1 ? "Features " : "Feature ", changed.flatMap((edit, i) => [i ? ", " : "", ...told(edit)]).filter(Boolean)].flat() : "Without any change"),
        make("p", {}, "KL ", make("b", {}, show(kl)), " nats per token between what the model expects before and after", kl === 0 ? ": nothing changed." : "; by token:"),
        make("div", { class: "text", dir: "auto" }, pieces.map((piece, i) => {
          const chip = mechlab.token(piece, moved[i], Math.max(...moved));
          if (moved[i]) {
            chip.title = `KL ${show(moved[i])} nats`;
            chip.setAttribute("aria-label", `${piece}, KL ${show(moved[i])} nats`);
          }
          return chip;
        })),
        mechlab.table({ caption: "Next token", rows: next, sort: { name: "before", down: true }, columns: [
          { name: "text", title: "Token", cell: (row) => make("code", {}, mechlab.visible(row.text)), value: (row) => row.text },
          { name: "before", title: "Before", cell: (row) => bar(row.before), value: (row) => row.before },
          { name: "after", title: "After", cell: (row) => bar(row.after), value: (row) => row.after },
          { name: "ratio", title: "Times", number: true, cell: (row) => (row.before ? show(row.after / row.before) : "–"), value: (row) => row.after / row.before },
        ] }),
        make("div", { class: "columns" }, written("It goes on: before", continuation.before), written(`After${same ? " (the same)" : ""}`, continuation.after)));
    }

    // ---------- the page ----------
    const submit = (then) => (event) => { event.preventDefault(); then(); };
    const enter = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.currentTarget.form.requestSubmit(); };
    text.addEventListener("keydown", enter);
    const wrong = () => make("p", { class: "wrong", role: "alert" });
    const reader = make("form", { class: "ask", onsubmit: submit(look) }, make("label", { for: "live-text" }, "Text"), text,
      make("p", {}, make("button", { type: "submit" }, "Show activations"), make("span", { class: "quiet" }, ` Ctrl+Enter; up to ${LIMITS.characters} characters`)), wrong());
    const changer = make("form", { class: "card steer", onsubmit: submit(compare) }, make("h3", {}, "Change features and compare"), changes,
      make("p", { class: "with" }, more, labelled("New tokens", count), labelled("Temperature", warmth), labelled("Seed", seed), make("button", { type: "submit" }, "Run the model")), wrong());
    root.append(reader, reading, changer, outcome);
    showChanges();
    mechlab.keys({ r: () => compare() }, "/: to the text; r: run the model with the changes");
    if (text.value) look().then(() => edits.length && compare());
    else text.focus({ preventScroll: true });
    return () => asking?.abort();
  }

  mechlab.view("live", { title: "Try a text", open });
})();
