/* The behaviour of a report: two virtual trees, the edges between them, search, filters, keyboard. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = id => document.getElementById(id);
  const HEIGHT = 26, SPARE = 6, MAX_EDGES = 400;
  const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a6761d", "#7570b3"];
  const DASHES = ["", "7 4", "2 4", "10 3 2 3"];
  const STATES = {
    missing: ["✕", "bad", "missing"], unexpected: ["!", "bad", "unexpected"], mismatch: ["≠", "bad", "other shape"],
    undetermined: ["?", "bad", "undetermined"], dropped: ["⌫", "warn", "dropped"], tied: ["∞", "note", "tied"],
    interchangeable: ["⇄", "note", "interchangeable"], values: ["◇", "note", "only values can show it"],
  };
  const color = rule => COLORS[rule % COLORS.length];
  const dash = rule => DASHES[Math.floor(rule / COLORS.length) % DASHES.length];
  const make = (tag, cls, text) => {
    const made = document.createElement(tag);
    if (cls) made.className = cls;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const state = { query: "", status: null, rule: null, active: null };

  class Tree {
    constructor(name) {
      this.name = name; this.side = data[name]; this.pane = find(name); this.size = this.pane.firstElementChild;
      this.keys = this.side.keys; this.lower = this.keys.map(key => key.toLowerCase());
      this.pairs = this.keys.map(() => []); this.marks = {}; this.rows = []; this.at = new Int32Array(this.keys.length);
      for (const [mark, list] of Object.entries(this.side.marks)) this.marks[mark] = new Set(list);
      find(name + "-name").textContent = `${name === "source" ? "Source" : "Target"} · ${this.side.name} · ${this.keys.length} keys`;
      this.root = this.grow(); this.cursor = 0;
      this.pane.addEventListener("scroll", () => schedule());
      this.pane.addEventListener("keydown", event => this.press(event));
      this.pane.addEventListener("focus", () => schedule());
      this.size.addEventListener("click", event => {
        const row = event.target.closest(".row");
        if (!row) return;
        this.cursor = Number(row.dataset.row); this.toggle(this.rows[this.cursor]); this.choose();
      });
    }
    grow() {
      const root = { label: "", kids: new Map(), keys: [], open: true };
      for (const [template, keys] of this.side.families) {
        let node = root;
        for (const part of template.split(/\.(?![^{}]*\})/)) {
          if (!node.kids.has(part)) node.kids.set(part, { label: part, kids: new Map(), keys: [], open: false });
          node = node.kids.get(part);
        }
        node.keys.push(...keys);
      }
      /* A chain of only children is one row; recursion is as deep as a key has segments, so it is a loop. */
      const order = [root];
      for (let number = 0; number < order.length; number++) {
        const node = order[number];
        for (let kid of node.kids.values()) order.push(kid);
      }
      for (const node of order.slice(1).reverse()) {
        if (node.kids.size === 1 && !node.keys.length) {
          const [kid] = node.kids.values();
          node.label += "." + kid.label; node.kids = kid.kids; node.keys = kid.keys; node.all = kid.all;
        } else { node.all = node.keys.slice(); for (const kid of node.kids.values()) for (const key of kid.all) node.all.push(key); }
      }
      let shown = root.kids.size;
      for (const node of order.slice(1)) if (node.kids.size && shown + node.kids.size <= 300) { node.open = true; shown += node.kids.size; }
      return root;
    }
    lay(hits) {
      const rows = [];
      if (hits) for (const key of hits) rows.push({ depth: 0, keys: [key], label: this.keys[key], leaf: true });
      else {
        const stack = [...this.root.kids.values()].reverse().map(node => [node, 0]);
        while (stack.length) {
          const [node, depth] = stack.pop(), single = !node.kids.size && node.keys.length === 1;
          rows.push({ depth, node, keys: node.open && node.kids.size ? [] : node.all, all: node.all, label: node.label, leaf: single });
          if (!node.open) continue;
          if (!single) for (const key of node.keys) rows.push({ depth: depth + 1, keys: [key], label: this.keys[key], leaf: true });
          if (node.kids.size) for (const kid of [...node.kids.values()].reverse()) stack.push([kid, depth + 1]);
        }
      }
      this.rows = rows; this.at.fill(-1);
      rows.forEach((row, number) => { for (const key of row.keys) this.at[key] = number; });
      this.size.style.height = rows.length * HEIGHT + "px";
      this.cursor = Math.max(0, Math.min(this.cursor, rows.length - 1));
    }
    draw() {
      const first = Math.max(0, Math.floor(this.pane.scrollTop / HEIGHT) - SPARE);
      const last = Math.min(this.rows.length, Math.ceil((this.pane.scrollTop + this.pane.clientHeight) / HEIGHT) + SPARE);
      const made = document.createDocumentFragment();
      for (let number = first; number < last; number++) made.append(this.render(number));
      this.size.replaceChildren(made);
      const active = this.size.querySelector(".active");
      if (active) this.pane.setAttribute("aria-activedescendant", active.id); else this.pane.removeAttribute("aria-activedescendant");
    }
    render(number) {
      const row = this.rows[number], made = make("div", "row"), all = row.all || row.keys;
      made.id = `${this.name}-${number}`; made.dataset.row = number; made.style.top = number * HEIGHT + "px";
      made.style.paddingLeft = 6 + row.depth * 14 + "px"; made.setAttribute("role", "treeitem");
      made.setAttribute("aria-level", row.depth + 1); made.setAttribute("aria-setsize", this.rows.length); made.setAttribute("aria-posinset", number + 1);
      if (!row.leaf) made.setAttribute("aria-expanded", row.node.open);
      const active = state.active && state.active.tree === this && number === this.cursor;
      if (active) made.classList.add("active");
      made.setAttribute("aria-selected", Boolean(active));
      if (!active && state.mates && state.mates[this.name].some(key => this.at[key] === number)) made.classList.add("mate");
      made.append(make("span", "twist", row.leaf ? "" : row.node.open ? "▾" : "▸"), this.label(row));
      if (!row.leaf) made.append(make("span", "count", "×" + all.length));
      made.append(make("span", "fill"));
      for (const [name, count] of this.count(all)) {
        const [symbol, cls, text] = STATES[name], mark = make("span", "mark " + cls, symbol + " ");
        mark.title = text; mark.append(make("span", "", (all.length > 1 ? count + " " : "") + (name === "interchangeable" || name === "values" ? "" : text)));
        if (name === "interchangeable") mark.setAttribute("aria-label", text);
        made.append(mark);
      }
      if (row.leaf) made.append(make("span", "shape", this.side.dtypes[row.keys[0]] + " " + this.side.shapes[row.keys[0]]));
      if (this.name === "target" && row.leaf) for (const pair of this.pairs[row.keys[0]]) {
        const ruled = make("span", "ruled"), dot = make("i", "dot");
        dot.style.background = color(pair[2]); ruled.append(dot, data.rules[pair[2]]); made.append(ruled);
      }
      made.title = row.leaf ? this.keys[row.keys[0]] : row.label;
      return made;
    }
    label(row) {
      const made = make("span", "key"), query = state.query, place = query ? row.label.toLowerCase().indexOf(query) : -1;
      if (place < 0) made.textContent = row.label;
      else made.append(row.label.slice(0, place), make("mark", "", row.label.slice(place, place + query.length)), row.label.slice(place + query.length));
      return made;
    }
    count(keys) {
      const found = new Map(), add = name => found.set(name, (found.get(name) || 0) + 1);
      for (const key of keys) {
        if (STATES[this.side.states[key]]) add(this.side.states[key]);
        for (const mark in this.marks) if (this.marks[mark].has(key)) add(mark);
      }
      return found;
    }
    has(key, status) { return this.side.states[key] === status || Boolean(this.marks[status] && this.marks[status].has(key)); }
    toggle(row, open) {
      if (!row || row.leaf) return;
      row.node.open = open === undefined ? !row.node.open : open; refresh();
    }
    choose() {
      const row = this.rows[this.cursor];
      if (!row) return;
      const mine = row.all || row.keys, other = this === source ? target : source, mates = new Set();
      for (const key of mine) for (const pair of this.pairs[key]) for (const mate of this === source ? [pair[1]] : pair[0]) mates.add(mate);
      state.active = { tree: this }; state.mates = { [this.name]: [], [other.name]: [...mates].slice(0, 2000) };
      state.hot = new Set(mine);
      describe(this, row); schedule();
    }
    show(number) {
      const top = number * HEIGHT, pane = this.pane;
      if (top < pane.scrollTop) pane.scrollTop = top;
      else if (top + HEIGHT > pane.scrollTop + pane.clientHeight) pane.scrollTop = top + HEIGHT - pane.clientHeight;
    }
    press(event) {
      const row = this.rows[this.cursor], page = Math.max(1, Math.floor(this.pane.clientHeight / HEIGHT) - 1);
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
      if (event.key in steps) {
        const to = state.active && state.active.tree === this ? this.cursor + steps[event.key] : this.cursor;
        this.cursor = Math.max(0, Math.min(this.rows.length - 1, to)); this.show(this.cursor); this.choose();
      } else if (event.key === "ArrowRight" && row && !row.leaf) this.toggle(row, true);
      else if (event.key === "ArrowLeft" && row && !row.leaf) this.toggle(row, false);
      else if (event.key === "Enter") {
        this.choose();
        const other = this === source ? target : source, mate = state.mates && state.mates[other.name][0];
        if (mate !== undefined && other.at[mate] >= 0) { other.pane.scrollTop = other.at[mate] * HEIGHT - (this.cursor * HEIGHT - this.pane.scrollTop); }
      } else return;
      event.preventDefault(); schedule();
    }
  }

  const source = new Tree("source"), target = new Tree("target");
  for (const pair of data.pairs) { for (const key of pair[0]) source.pairs[key].push(pair); target.pairs[pair[1]].push(pair); }

  function select() {
    if (!state.query && !state.status && state.rule === null) { find("hits").textContent = ""; return [null, null]; }
    const fits = (tree, key) => (!state.query || tree.lower[key].includes(state.query)) && (!state.status || tree.has(key, state.status))
      && (state.rule === null || tree.pairs[key].some(pair => pair[2] === state.rule));
    const own = tree => tree.keys.map((_, key) => key).filter(key => fits(tree, key));
    const left = own(source), right = own(target), all = [new Set(left), new Set(right)];
    for (const key of left) for (const pair of source.pairs[key]) all[1].add(pair[1]);
    for (const key of right) for (const pair of target.pairs[key]) for (const mate of pair[0]) all[0].add(mate);
    find("hits").textContent = `${left.length + right.length} hits: ${left.length} source, ${right.length} target`;
    return all;
  }
  function refresh() {
    const [left, right] = select();
    source.lay(left); target.lay(right); link(); schedule();
  }
  let edges = [], bySource = [], byTarget = [];
  function link() {
    const found = new Map();
    for (const pair of data.pairs) {
      const to = target.at[pair[1]];
      if (to < 0) continue;
      for (const key of pair[0]) {
        const from = source.at[key];
        if (from < 0) continue;
        const name = from + " " + to + " " + pair[2] + " " + pair[3], edge = found.get(name);
        if (edge) edge.count++; else found.set(name, { from, to, rule: pair[2], op: pair[3], count: 1, pair });
      }
    }
    edges = [...found.values()]; bySource = []; byTarget = [];
    for (const edge of edges) { (bySource[edge.from] ||= []).push(edge); (byTarget[edge.to] ||= []).push(edge); }
  }
  function drawEdges() {
    const svg = find("edges"), box = svg.getBoundingClientRect();
    svg.replaceChildren();
    if (!box.width) return;
    const shown = new Set(), y = (tree, row) => tree.pane.getBoundingClientRect().top - box.top + row * HEIGHT + HEIGHT / 2 - tree.pane.scrollTop;
    for (const [tree, index] of [[source, bySource], [target, byTarget]]) {
      const first = Math.floor(tree.pane.scrollTop / HEIGHT), last = Math.ceil((tree.pane.scrollTop + tree.pane.clientHeight) / HEIGHT);
      for (let row = first; row < last; row++) for (const edge of index[row] || []) if (shown.size < MAX_EDGES) shown.add(edge);
    }
    const NS = "http://www.w3.org/2000/svg", w = box.width, labels = [];
    for (const edge of shown) {
      const a = y(source, edge.from), b = y(target, edge.to), path = document.createElementNS(NS, "path");
      path.setAttribute("d", `M0 ${a}C${w / 2} ${a} ${w / 2} ${b} ${w} ${b}`);
      path.style.stroke = color(edge.rule); path.style.strokeDasharray = dash(edge.rule);
      const active = state.active && edge[state.active.tree === source ? "from" : "to"] === state.active.tree.cursor;
      if (active) path.classList.add("hot");
      const [glyph, text] = data.operations[edge.op], title = document.createElementNS(NS, "title");
      title.textContent = data.rules[edge.rule] + (text ? ": " + text : ""); path.append(title); svg.append(path);
      if (glyph || active) labels.push([(a + b) / 2, (glyph + " " + (glyph ? text.split(" ")[0] : data.rules[edge.rule])).trim()]);
    }
    for (const [top, words] of labels) {
      const text = document.createElementNS(NS, "text");
      text.setAttribute("x", w / 2); text.setAttribute("y", top + 4); text.textContent = words.length > 22 ? words.slice(0, 21) + "…" : words; svg.append(text);
    }
  }
  let waiting = false;
  function schedule() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; source.draw(); target.draw(); drawEdges(); });
  }
  function describe(tree, row) {
    const box = find("detail"), all = row.all || row.keys;
    box.replaceChildren(make("b", "key", row.leaf ? tree.keys[row.keys[0]] : row.label));
    if (!row.leaf) box.append(` · ${all.length} keys`);
    const states = [...tree.count(all)].map(([name, count]) => `${STATES[name][0]} ${all.length > 1 ? count + " " : ""}${STATES[name][2]}`);
    if (states.length) box.append(" · " + states.join(", "));
    const pairs = new Set(all.flatMap(key => tree.pairs[key]));
    for (const pair of [...pairs].slice(0, 6)) {
      const line = make("div", "key"), dot = make("i", "dot"), text = data.operations[pair[3]][1];
      dot.style.background = color(pair[2]);
      line.append(dot, `${data.rules[pair[2]]}: ${pair[0].map(key => source.keys[key]).slice(0, 4).join(" + ") || "(no source)"} → ${target.keys[pair[1]]}${text ? "  [" + text + "]" : ""}`);
      box.append(line);
    }
    if (pairs.size > 6) box.append(`and ${pairs.size - 6} more pairs`);
  }
  function press(button, group) {
    for (const each of document.querySelectorAll("#filters button, #rules button")) if (each !== button && (!group || each.parentNode.id === group)) each.setAttribute("aria-pressed", "false");
  }
  function addFilters() {
    for (const [name, [symbol, cls, text]] of Object.entries(STATES)) {
      if (!data.counts[name]) continue;
      const made = make("button", cls, `${symbol} ${data.counts[name]} ${text}`);
      made.type = "button"; made.dataset.state = name; made.setAttribute("aria-pressed", "false");
      made.addEventListener("click", () => {
        state.status = state.status === name ? null : name; press(made, "filters");
        made.setAttribute("aria-pressed", state.status === name); refresh();
      });
      find("filters").append(made);
    }
    const counts = new Array(data.rules.length).fill(0);
    for (const pair of data.pairs) counts[pair[2]]++;
    data.rules.forEach((rule, number) => {
      const made = make("button"), dot = make("i", "dot");
      made.type = "button"; dot.style.background = color(number); made.append(dot, `${rule} · ${counts[number]}`); made.setAttribute("aria-pressed", "false");
      made.addEventListener("click", () => {
        state.rule = state.rule === number ? null : number; press(made, "rules");
        made.setAttribute("aria-pressed", state.rule === number); refresh();
      });
      find("rules").append(made);
    });
  }
  function addProblems() {
    const box = find("problems"), cards = box.querySelector(".cards");
    for (const each of data.witnesses) {
      const card = make("div", "card"); card.dataset.fault = each.fault;
      card.append(make("b", "bad", "witness "), `${each.fault} · ${each.rules.join(", ")} · `, make("code", "", each.keys.join("  and  ") + (each.targets.length ? "  →  " + [...new Set(each.targets)].join(", ") : "")));
      cards.append(card);
    }
    for (const each of data.problems) {
      const card = make("div", "card"), cls = { error: "bad", warning: "warn", note: "note" }[each.severity];
      card.dataset.code = each.code; card.append(make("b", cls, `${each.severity} ${each.code} `), each.title);
      if (each.place) card.append(make("p", "", "at " + each.place));
      for (const note of each.notes) card.append(make("p", "", note));
      for (const help of each.help) card.append(make("p", "", "help: " + help));
      cards.append(card);
    }
    if (!cards.childElementCount) return;
    const errors = data.problems.filter(each => each.severity === "error").length;
    box.hidden = false; box.open = errors > 0;
    box.querySelector("summary").textContent = errors ? `✕ ${errors} problem${errors > 1 ? "s" : ""}, and ${data.problems.length - errors} more messages` : `${data.problems.length} message${data.problems.length > 1 ? "s" : ""}`;
  }
  function setTheme(name) { document.documentElement.dataset.theme = name; }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  find("theme").addEventListener("click", () => { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); schedule(); });
  find("search").addEventListener("input", event => { state.query = event.target.value.trim().toLowerCase(); source.pane.scrollTop = target.pane.scrollTop = 0; refresh(); });
  find("search").addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== "ArrowDown") return;
    event.preventDefault();
    const tree = source.rows.length ? source : target;
    tree.cursor = 0; tree.pane.focus(); tree.choose();
  });
  document.addEventListener("keydown", event => {
    if (event.key === "/" && document.activeElement !== find("search")) { event.preventDefault(); find("search").focus(); }
    else if (event.key === "Escape") {
      Object.assign(state, { query: "", status: null, rule: null, active: null, mates: null });
      find("search").value = ""; press(null); find("detail").textContent = hint; refresh();
    }
  });
  addEventListener("resize", schedule);
  find("problems").addEventListener("toggle", schedule);
  const hint = "Click a row, or press Tab and the arrow keys. / searches, Enter shows the partner, Escape resets.";
  find("detail").textContent = hint; find("name").textContent = data.name; find("pairs").textContent = `${data.counts.pairs} pairs`;
  const chip = (text, good) => find("verdicts").append(make("span", "chip " + (good ? "good" : "bad"), (good ? "✓ " : "✕ ") + text));
  chip(data.verdict, data.proven);
  if (data.checked !== "no") chip(data.ok ? (data.checked === "layout" ? "names fit" : "fits the target") : "fails", data.ok);
  addFilters(); addProblems(); refresh();
  document.documentElement.dataset.ready = "true";
})();
