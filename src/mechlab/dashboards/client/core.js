"use strict";
// The shell of a site: blocks of data, elements, numbers, addresses, keys and the theme.
// Views are files beside this one; each is a function of its own that calls mechlab.view(…).
(() => {
  const facts = JSON.parse(document.getElementById("b-site").textContent);
  const mechlab = (window.mechlab = { facts });

  // ---------- blocks ----------
  const loads = new Map(), arrived = new Map(), shards = new Set(facts.shards);
  const inline = (name) => document.getElementById(`b-${name}`);

  mechlab.take = (name, text) => arrived.set(name, text); // called by data/NAME.js
  mechlab.has = (name) => shards.has(name) || inline(name) !== null;
  mechlab.load = (name) => {
    if (!loads.has(name)) {
      const found = fetchText(name).then(JSON.parse);
      found.catch(() => loads.delete(name)); // may be asked for again
      loads.set(name, found);
    }
    return loads.get(name);
  };

  function fetchText(name) {
    const block = inline(name);
    if (block) return Promise.resolve(block.textContent);
    if (!shards.has(name)) return Promise.reject(new Error(`This site has no data named ${name}.`));
    return new Promise((done, fail) => {
      // A script, because a page that was opened from a file may not fetch.
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      const end = () => {
        script.remove();
        const text = arrived.get(name);
        arrived.delete(name);
        if (text === undefined) fail(new Error(`The file data/${name}.js cannot be read; it belongs beside this page.`));
        else done(text);
      };
      script.addEventListener("load", end);
      script.addEventListener("error", end);
      document.head.append(script);
    });
  }

  // ---------- elements and numbers ----------
  const SVG = new Set("svg g rect line circle path text tspan title polyline polygon defs clipPath marker".split(" "));

  // Every string from data enters the document here, as text.
  mechlab.make = (tag, attributes = {}, ...children) => {
    const node = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") node.addEventListener(name.replace(/^on/, ""), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
    }
    for (const child of children.flat()) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : String(child));
    }
    return node;
  };
  const { make } = mechlab;

  mechlab.show = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e6) return String(value).replace(/\B(?=(\d{3})+$)/g, size < 1e4 ? "" : "\u202f");
    if (size < 1e-4 || size >= 1e6) return value.toExponential(2);
    return size >= 1000 ? value.toFixed(0) : value.toPrecision(3);
  };
  mechlab.percent = (share) => {
    if (share === null || share === undefined) return "–";
    const value = 100 * share;
    return (value === 0 || value >= 10 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value >= 0.01 ? value.toFixed(2) : mechlab.show(value)) + " %";
  };
  mechlab.scoreText = ({ value, low, high }) => {
    const { show } = mechlab;
    return low === null || low === undefined || high === null || high === undefined ? show(value) : `${show(value)} (${show(low)} to ${show(high)})`;
  };

  // ---------- addresses: #/NAME/argument?key=value ----------
  const views = new Map();
  const root = document.getElementById("view"), status = document.getElementById("status");
  let keys = {}, help = [], close = null, place = null;

  mechlab.view = (name, { title, open, nav = name }) => views.set(name, { title, open, nav });
  mechlab.say = (text) => { if (status.textContent !== text) status.textContent = text; };
  // Half of a pair of surrogates can be in no address.
  const encode = (word) => encodeURIComponent(String(word).replace(/[\ud800-\udfff]/gu, "\ufffd"));
  mechlab.link = (path, query = {}) => {
    const words = (Array.isArray(path) ? path : String(path).split("/")).map((word) => encode(word));
    const pairs = [...(query instanceof Map || query instanceof URLSearchParams ? query.entries() : Object.entries(query))]
      .filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
      .map(([name, value]) => `${encode(name)}=${encode(value === true ? 1 : value)}`);
    return `#/${words.join("/")}${pairs.length ? `?${pairs.join("&")}` : ""}`;
  };
  // path: the view's name and its arguments; query: a Map of strings.
  mechlab.state = () => {
    const decode = (word) => { try { return decodeURIComponent(word); } catch { return word; } };
    const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
    return {
      path: path.split("/").filter(Boolean).map(decode),
      query: new Map(query.split("&").filter(Boolean).map((pair) => pair.split(/=(.*)/s).slice(0, 2).map(decode)).map(([name, value = ""]) => [name, value])),
    };
  };
  // With replace the address is rewritten and nothing is opened: for a view that has shown the change already.
  mechlab.go = (path, query = {}, { replace = false } = {}) => {
    const address = mechlab.link(path, query);
    if (replace) {
      history.replaceState(null, "", address);
      place = mechlab.state().path.join("/");
    } else if (address === location.hash) open();
    else location.hash = address;
  };

  const offered = () => [...facts.views, ...(facts.live ? ["live"] : [])].filter((name) => views.has(name));

  async function open() {
    if (location.hash && !location.hash.startsWith("#/")) return; // an anchor, not an address
    const state = mechlab.state();
    if (!state.path.length) state.path = offered().slice(0, 1);
    const view = views.get(state.path[0]);
    const moved = place !== null && place !== state.path.join("/");
    place = state.path.join("/");
    if (close) close();
    keys = {}; help = []; close = null;
    const box = make("div", { class: `view view-${view ? state.path[0] : "none"}` });
    root.replaceChildren(box);
    for (const link of document.querySelectorAll("#nav a")) {
      if (view && link.dataset.view === view.nav) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const title = !view ? "Not here" : typeof view.title === "function" ? view.title(state) : view.title;
    document.title = `${title} – ${facts.title}`;
    if (moved) {
      scrollTo(0, 0);
      root.focus({ preventScroll: true });
      mechlab.say(title);
    }
    if (!view) {
      box.append(make("p", { class: "notice", role: "alert" }, state.path.length ? `This site has no page named ${state.path[0]}.` : "This site is empty."));
      return;
    }
    try {
      const ended = await view.open(state, box);
      if (typeof ended !== "function") return;
      if (box.isConnected) close = ended; // else another view has been opened meanwhile
      else ended();
    } catch (error) {
      box.replaceChildren(make("p", { class: "notice", role: "alert" }, error.message));
    }
  }

  // ---------- keys ----------
  // about: what they do, for the list that "?" shows: "j, k: next and previous; p: plot".
  mechlab.keys = (actions, about = "") => {
    Object.assign(keys, actions);
    help.push(...about.split(";").filter(Boolean).map((line) => line.split(/:(.*)/s).map((part) => part.trim())));
  };
  const dialog = document.getElementById("help");

  function showHelp() {
    const lines = [...help, ...(document.querySelector("[data-search]") ? [["/", "search"]] : []), ["?", "this list"], ["Esc", "close"]];
    dialog.querySelector("dl").replaceChildren(...lines.map(([names, text]) =>
      make("div", {}, make("dt", {}, names.split(/,\s*/).map((name) => make("kbd", {}, name))), make("dd", {}, text))));
    dialog.showModal();
  }
  const typing = (node) => node.isContentEditable || node.matches("textarea, select, input:not([type=checkbox], [type=button])");

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    const { target, key } = event;
    if (target instanceof Element && typing(target)) {
      if (key === "Escape") target.blur();
      return;
    }
    const search = document.querySelector("[data-search]");
    if (Object.hasOwn(keys, key)) keys[key](event);
    else if (key === "/" && search) { search.focus(); search.select?.(); }
    else if (key === "?") showHelp();
    else return;
    event.preventDefault();
  });
  document.getElementById("help-open").addEventListener("click", showHelp);
  document.getElementById("help-close").addEventListener("click", () => dialog.close());
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is the state of the page
    root.focus();
  });

  // ---------- theme ----------
  const remembered = () => { try { return localStorage.getItem("mechlab-theme"); } catch { return null; } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  function dress(theme) {
    document.documentElement.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", theme === "dark" ? "Light colours" : "Dark colours");
    document.dispatchEvent(new Event("mechlab-theme")); // drawings on a canvas are made again
  }
  const preferred = () => remembered() || (system.matches ? "dark" : "light");
  system.addEventListener("change", () => dress(preferred()));
  button.addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("mechlab-theme", theme); } catch { /* kept until the page is closed */ }
    dress(theme);
  });

  // ---------- header ----------
  function head() {
    const { model, site, tokens, features } = facts.facts;
    const count = (n, what) => n !== undefined && n !== null && `${mechlab.show(n)} ${what}`;
    const shown = [model && make("b", {}, model), site, count(tokens, "tokens"), count(features, "features")];
    document.getElementById("facts").append(...shown.filter(Boolean).map((each) => make("span", {}, each)));
    document.getElementById("nav").append(...offered().map((name) => {
      const { title } = views.get(name);
      return make("a", { href: mechlab.link([name]), "data-view": name }, typeof title === "function" ? name : title);
    }));
  }

  dress(preferred());
  addEventListener("hashchange", open);
  document.addEventListener("DOMContentLoaded", () => { head(); open(); }); // all views are known by then
})();
