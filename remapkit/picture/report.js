/* The behaviour of a report: two virtual trees, the edges between them, search, filters, keyboard. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = id => document.getElementById(id);
  const HEIGHT = 26, SPARE = 6, MAX_EDGES = 400, MAX_DEPTH = 24, COLORS = 8;
  const DASHES = ["", "7 4", "2 4", "10 3 2 3"];
  const STATES = {
    missing: ["✕", "bad", "missing"], unexpected: ["!", "bad", "unexpected"], mismatch: ["≠", "bad", "other shape"],
    undetermined: ["?", "bad", "undetermined"], dropped: ["⌫", "warn", "dropped"], tied: ["∞", "note", "tied"],
    absent: ["–", "soft", "not in this size"], interchangeable: ["⇄", "note", "interchangeable"], values: ["◇", "note", "only values can show it"],
  };
  const FAULTS = {
    ambiguous: "two rules take one key", cut: "one key can be read in two ways", within: "two keys of one rule become one target",
    across: "keys of two rules become one target", open: "a key that passes through meets a target",
  };
  const QUIET = new Set(["interchangeable", "values"]);
  const color = rule => `var(--r${rule % COLORS})`;
  const dash = rule => DASHES[Math.floor(rule / COLORS) % DASHES.length];
  /* Characters that would be invisible, or turn the rest of a name around, are shown as escapes. */
  const show = text => text.replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, found => "\\u" + found.charCodeAt(0).toString(16).padStart(4, "0"));
  const number = count => count.toLocaleString("en");
  const noun = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
  const make = (tag, cls, text) => {
    const made = document.createElement(tag);
    if (cls) made.className = cls;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const state = { query: "", status: null, rule: null, op: null, active: null };
  const ops = data.operations.map(([drawings]) => drawings.map(each => each[0])), first = new Map();
  for (const [drawings] of data.operations) for (const each of drawings) if (!first.has(each[0])) first.set(each[0], each);

  class Tree {
    constructor(name) {
      this.name = name; this.side = data[name]; this.pane = find(name); this.size = this.pane.firstElementChild;
      this.keys = this.side.keys; this.lower = this.keys.map(key => key.toLowerCase());
      this.pairs = this.keys.map(() => []); this.drops = new Map(); this.marks = {}; this.rows = []; this.mates = new Set(); this.at = new Int32Array(this.keys.length);
      for (const [mark, list] of Object.entries(this.side.marks)) this.marks[mark] = new Set(list);
      const title = find(name + "-name"), layout = this.side.layout;
      title.append(make("b", "", name === "source" ? "Source" : "Target"), ...[this.side.name, noun(this.keys.length, "key"), layout && `layout ${layout}`].filter(Boolean).map(part => " · " + show(part)));
      title.title = title.textContent;
      this.root = this.grow(); this.cursor = 0;
      this.pane.addEventListener("scroll", () => schedule());
      this.pane.addEventListener("keydown", event => this.press(event));
      this.size.addEventListener("click", event => {
        const row = event.target.closest(".row");
        if (!row) return;
        this.cursor = Number(row.dataset.row); this.toggle(this.rows[this.cursor]); this.choose(); if (narrow.matches) this.meet();
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
      if (hits) for (const key of hits) rows.push({ depth: 0, keys: [key], label: this.keys[key], leaf: true, at: rows.length + 1, of: hits.size });
      else {
        const below = (node, depth) => [...node.kids.values()].map((kid, at) => [kid, depth, node.keys.length + at + 1, node.keys.length + node.kids.size]).reverse();
        const stack = below(this.root, 0);
        while (stack.length) {
          const [node, depth, at, of] = stack.pop(), single = !node.kids.size && node.keys.length === 1;
          rows.push({ depth, node, keys: node.open && node.kids.size ? [] : node.all, all: node.all, label: node.label, leaf: single, at, of });
          if (!node.open) continue;
          if (!single) node.keys.forEach((key, place) => rows.push({ depth: depth + 1, keys: [key], label: this.keys[key], leaf: true, at: place + 1, of: node.keys.length + node.kids.size }));
          for (const kid of below(node, depth + 1)) stack.push(kid);
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
      const row = this.rows[number], made = make("div", "row"), all = row.all || row.keys, info = this.sum(row);
      made.id = `${this.name}-${number}`; made.dataset.row = number; made.style.top = number * HEIGHT + "px";
      made.style.paddingLeft = 6 + Math.min(row.depth, MAX_DEPTH) * 14 + "px"; made.setAttribute("role", "treeitem");
      made.setAttribute("aria-level", row.depth + 1); made.setAttribute("aria-setsize", row.of); made.setAttribute("aria-posinset", row.at);
      if (!row.leaf) made.setAttribute("aria-expanded", row.node.open);
      const active = state.active && state.active.tree === this && number === this.cursor;
      if (active) made.classList.add("active");
      made.setAttribute("aria-selected", Boolean(active));
      if (!active && this.mates.has(number)) made.classList.add("mate");
      made.append(make("span", "twist", row.leaf ? "" : row.node.open ? "▾" : "▸"), this.label(row));
      if (!row.leaf) made.append(make("span", "count", "×" + all.length));
      made.append(make("span", "fill"));
      const closed = row.leaf || !row.node.open || !row.node.kids.size;
      for (const [name, count] of info.marks) {
        const [symbol, cls, text] = STATES[name], quiet = QUIET.has(name), mark = make("span", `mark ${cls}${quiet ? " quiet" : ""}`, symbol);
        mark.title = text; mark.setAttribute("role", "img"); mark.setAttribute("aria-label", all.length > 1 ? `${count} ${text}` : text);
        const words = [all.length > 1 ? String(count) : "", quiet ? "" : text].filter(Boolean).join(" ");
        if (words) mark.append(make("span", "", " " + words));
        made.append(mark);
      }
      if (closed) for (const name of info.drawn.slice(0, 2)) made.append(drawOperation(first.get(name)));
      if (row.leaf) made.append(make("span", "shape", this.side.dtypes[row.keys[0]] + " " + this.side.shapes[row.keys[0]]));
      if (closed && info.rules.length || this.name === "target") {
        const ruled = make("span", "ruled"), rules = closed ? info.rules : [];
        for (const rule of rules.slice(0, 4)) { const dot = make("i", "dot"); dot.style.background = color(rule); ruled.append(dot); }
        if (rules.length > 4) ruled.append("…");
        if (this.name === "target" && rules.length === 1) ruled.append(make("span", "", show(data.rules[rules[0]])));
        ruled.title = rules.slice(0, 20).map(rule => show(data.rules[rule])).join(", "); made.append(ruled);
      }
      made.title = show(row.leaf ? this.keys[row.keys[0]] : row.label);
      return made;
    }
    label(row) {
      const made = make("span", "key"), query = state.query, place = query ? row.label.toLowerCase().indexOf(query) : -1;
      if (place < 0) made.textContent = show(row.label);
      else made.append(show(row.label.slice(0, place)), make("mark", "", show(row.label.slice(place, place + query.length))), show(row.label.slice(place + query.length)));
      return made;
    }
    /* What a row says of its keys; kept, because a row near the top has all of them. */
    sum(row) {
      const holder = row.node && row.keys.length !== 1 ? row.node : row;
      if (holder.info) return holder.info;
      const keys = row.all || row.keys, rules = new Set(), used = new Set();
      for (const key of keys) {
        if (this.drops.has(key)) rules.add(this.drops.get(key));
        for (const pair of this.pairs[key]) { rules.add(pair[2]); if (pair[3]) used.add(pair[3]); }
      }
      const drawn = new Set([...used].flatMap(op => ops[op]));
      return holder.info = { marks: this.count(keys), rules: [...rules], drawn: [...drawn] };
    }
    count(keys) {
      const found = new Map(), add = name => found.set(name, (found.get(name) || 0) + 1);
      for (const key of keys) {
        if (STATES[this.side.states[key]]) add(this.side.states[key]);
        for (const mark in this.marks) if (this.marks[mark].has(key)) add(mark);
      }
      return found;
    }
    follows(key, rule) { return this.drops.get(key) === rule || this.pairs[key].some(pair => pair[2] === rule); }
    has(key, status) { return this.side.states[key] === status || Boolean(this.marks[status] && this.marks[status].has(key)); }
    toggle(row, open) {
      if (!row || row.leaf) return;
      row.node.open = open === undefined ? !row.node.open : open; refresh();
    }
    choose() {
      const row = this.rows[this.cursor];
      if (!row) return;
      state.active = { tree: this, keys: row.all || row.keys }; pair();
      describe(this, row); schedule();
    }
    /* Brings the first partner of the selected row into view, at the same height as far as possible. */
    meet() {
      const other = this === source ? target : source, mate = Math.min(...other.mates);
      if (!Number.isFinite(mate)) return;
      const height = narrow.matches ? HEIGHT : this.cursor * HEIGHT - this.pane.scrollTop;
      other.pane.scrollTop = mate * HEIGHT - height;
    }
    go(number) { this.cursor = Math.max(0, Math.min(this.rows.length - 1, number)); this.show(this.cursor); this.choose(); }
    show(number) {
      const top = number * HEIGHT, pane = this.pane;
      if (top < pane.scrollTop) pane.scrollTop = top;
      else if (top + HEIGHT > pane.scrollTop + pane.clientHeight) pane.scrollTop = top + HEIGHT - pane.clientHeight;
    }
    press(event) {
      const row = this.rows[this.cursor], page = Math.max(1, Math.floor(this.pane.clientHeight / HEIGHT) - 1);
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
      if (event.key in steps) {
        this.go(state.active && state.active.tree === this ? this.cursor + steps[event.key] : this.cursor);
      } else if (event.key === "ArrowRight" && row && !row.leaf) {
        if (row.node.open) this.go(this.cursor + 1); else { this.toggle(row, true); this.choose(); }
      } else if (event.key === "ArrowLeft" && row && !row.leaf && row.node.open) { this.toggle(row, false); this.choose(); }
      else if (event.key === "ArrowLeft" && row) {
        let above = this.cursor;
        while (above > 0 && this.rows[above].depth >= row.depth) above--;
        this.go(above);
      } else if (event.key === "Enter" || event.key === " ") {
        if (event.key === " ") this.toggle(row);
        this.choose(); this.meet();
      } else return;
      event.preventDefault(); schedule();
    }
  }

  const narrow = matchMedia("(max-width: 760px)");
  const source = new Tree("source"), target = new Tree("target");
  for (const pair of data.pairs) { for (const key of pair[0]) source.pairs[key].push(pair); target.pairs[pair[1]].push(pair); }
  for (const [key, rule] of data.drops) source.drops.set(key, rule);

  /* Marks the rows that hold partners of the selected keys. */
  function pair() {
    source.mates = new Set(); target.mates = new Set();
    if (!state.active) return;
    state.active.rows = new Set(state.active.keys.map(key => state.active.tree.at[key]).filter(row => row >= 0));
    const { tree, keys } = state.active, other = tree === source ? target : source;
    for (const key of keys) for (const each of tree.pairs[key]) for (const mate of tree === source ? [each[1]] : each[0]) if (other.at[mate] >= 0) other.mates.add(other.at[mate]);
  }

  function select() {
    if (!state.query && !state.status && !state.op && state.rule === null) { find("hits").textContent = ""; return [null, null]; }
    const fits = (tree, key) => (!state.query || tree.lower[key].includes(state.query)) && (!state.status || tree.has(key, state.status))
      && (state.rule === null || tree.follows(key, state.rule)) && (!state.op || tree.pairs[key].some(pair => ops[pair[3]].includes(state.op)));
    const own = tree => tree.keys.map((_, key) => key).filter(key => fits(tree, key));
    const left = own(source), right = own(target), all = [new Set(left), new Set(right)];
    const hits = `${noun(left.length + right.length, "hit")}: ${number(left.length)} source, ${number(right.length)} target`;
    for (const key of left) for (const pair of source.pairs[key]) all[1].add(pair[1]);
    for (const key of right) for (const pair of target.pairs[key]) for (const mate of pair[0]) all[0].add(mate);
    find("hits").textContent = hits;
    return all;
  }
  function refresh() {
    const [left, right] = select();
    source.lay(left); target.lay(right); pair(); link(); schedule();
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
        const name = from + " " + to + " " + pair[2];
        if (!found.has(name)) found.set(name, { from, to, rule: pair[2], ops: new Set() });
        found.get(name).ops.add(pair[3]);
      }
    }
    edges = [...found.values()]; bySource = []; byTarget = [];
    for (const edge of edges) { (bySource[edge.from] ||= []).push(edge); (byTarget[edge.to] ||= []).push(edge); }
  }
  const NS = "http://www.w3.org/2000/svg";
  const add = (parent, tag, attributes) => {
    const made = document.createElementNS(NS, tag);
    for (const name in attributes) made.setAttribute(name, attributes[name]);
    parent.append(made);
    return made;
  };
  function drawEdges() {
    const svg = find("edges"), box = svg.getBoundingClientRect();
    svg.replaceChildren();
    if (!box.width) return;
    const w = box.width, tops = [source, target].map(tree => tree.pane.getBoundingClientRect().top - box.top + HEIGHT / 2 - tree.pane.scrollTop);
    const [left, right] = [source, target].map(tree => [Math.floor(tree.pane.scrollTop / HEIGHT), Math.ceil((tree.pane.scrollTop + tree.pane.clientHeight) / HEIGHT)]);
    const within = (row, [first, last]) => row >= first && row < last;
    /* If there are too many: those of the selected row first, then those with both ends in sight. The first are drawn last, on top. */
    const active = state.active && state.active.tree, end = active === source ? "from" : "to", hot = edge => active && state.active.rows.has(edge[end]);
    const ranks = [[], [], [], []], drawings = new Map();
    let count = 0;
    const take = (edge, far) => {
      const rank = ranks[(hot(edge) ? 0 : 2) + (far ? 1 : 0)];
      count++;
      if (rank.length < MAX_EDGES) rank.push(edge);
    };
    for (let row = left[0]; row < left[1]; row++) for (const edge of bySource[row] || []) take(edge, !within(edge.to, right));
    for (let row = right[0]; row < right[1]; row++) for (const edge of byTarget[row] || []) if (!within(edge.from, left)) take(edge, true);
    const shown = ranks.flat().slice(0, MAX_EDGES).reverse();
    find("undrawn").textContent = count > shown.length ? `${number(shown.length)} of ${number(count)} lines drawn` : "";
    for (const edge of shown) {
      const a = tops[0] + edge.from * HEIGHT, b = tops[1] + edge.to * HEIGHT;
      const path = add(svg, "path", { class: hot(edge) ? "edge hot" : active ? "edge cool" : "edge", d: `M0 ${a}C${w / 2} ${a} ${w / 2} ${b} ${w} ${b}` });
      path.style.stroke = color(edge.rule); path.style.strokeDasharray = dash(edge.rule);
      add(path, "title", {}).textContent = show(data.rules[edge.rule]);
      if (!drawings.has(edge.to)) drawings.set(edge.to, new Map());
      for (const op of edge.ops) for (const drawing of data.operations[op][0]) {
        const known = drawings.get(edge.to).get(String(drawing));
        drawings.get(edge.to).set(String(drawing), [drawing, edge.rule, known ? known[2] : data.operations[op][1]]);
      }
    }
    /* Operations stand at the target's end: there no two edges of a split or a stack meet. */
    for (const [row, found] of drawings) {
      const all = [...found.values()], most = Math.max(1, Math.floor((w - 44) / 42)), y = tops[1] + row * HEIGHT;
      all.slice(0, most).reverse().forEach(([drawing, rule, text], place) => {
        const group = add(svg, "g", { class: "operation", "data-op": drawing[0] }), x = w - 46 - place * 42;
        add(group, "title", {}).textContent = show(text);
        add(group, "rect", { x, y: y - 12, width: 38, height: 24, rx: 6 }).style.stroke = color(rule);
        group.append(drawOperation(drawing, x + 3.5, y - 9));
      });
      if (all.length > most) add(svg, "text", { x: w - 8 - most * 42, y: y + 4 }).textContent = `+${all.length - most}`;
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
    box.replaceChildren(make("b", "key", show(row.leaf ? tree.keys[row.keys[0]] : row.label)));
    box.append(row.leaf ? ` · ${tree.side.dtypes[row.keys[0]]} ${tree.side.shapes[row.keys[0]]}` : ` · ${noun(all.length, "key")}`);
    const states = [...tree.count(all)].map(([name, count]) => `${STATES[name][0]} ${all.length > 1 ? number(count) + " " : ""}${STATES[name][2]}`);
    if (states.length) box.append(" · " + states.join(", "));
    const pairs = new Set(all.flatMap(key => tree.pairs[key]));
    const line = (rule, words, drawings = []) => {
      const made = make("div", "line"), dot = make("i", "dot");
      dot.style.background = color(rule); made.append(dot, ...drawings.map(each => drawOperation(each)), make("span", "", show(words))); box.append(made);
    };
    for (const pair of [...pairs].slice(0, 6)) {
      const [drawings, text] = data.operations[pair[3]], names = pair[0].map(key => source.keys[key]), more = names.length > 4 ? ` + ${names.length - 4} more` : "";
      line(pair[2], `${data.rules[pair[2]]}: ${names.slice(0, 4).join(" + ") || "(no source)"}${more} → ${target.keys[pair[1]]}${text ? "  (" + text + ")" : ""}`, drawings);
    }
    if (pairs.size > 6) box.append(`and ${noun(pairs.size - 6, "more pair")}`);
    const rules = new Set(all.filter(key => tree.drops.has(key)).map(key => tree.drops.get(key)));
    for (const rule of rules) line(rule, `${data.rules[rule]}: left out`);
    box.scrollTop = 0;
  }
  function press(button, group) {
    for (const each of document.querySelectorAll("#filters button, #rules button")) if (each !== button && (!group || each.parentNode.id === group)) each.setAttribute("aria-pressed", "false");
  }
  function addButton(group, field, value, parts, label) {
    const made = make("button");
    made.type = "button"; made.setAttribute("aria-pressed", "false"); made.append(...parts); made.title = label;
    made.addEventListener("click", () => {
      const on = state[field] !== value;
      if (group === "filters") state.status = state.op = null;
      state[field] = on ? value : null; press(made, group);
      made.setAttribute("aria-pressed", on); source.pane.scrollTop = target.pane.scrollTop = 0; refresh();
    });
    find(group).append(made);
    return made;
  }
  function addFilters() {
    for (const [name, [symbol, cls, text]] of Object.entries(STATES)) {
      if (!data.counts[name]) continue;
      const made = addButton("filters", "status", name, [make("span", "", `${symbol} ${number(data.counts[name])} ${text}`)], `show only: ${text}`);
      made.classList.add(cls); made.dataset.state = name;
    }
    const uses = new Map();
    for (const pair of data.pairs) for (const name of new Set(ops[pair[3]])) uses.set(name, (uses.get(name) || 0) + 1);
    for (const [name, count] of uses) {
      const words = name === "other" ? "other operation" : name.replace(/_/g, " ");
      addButton("filters", "op", name, [drawOperation(first.get(name)), make("span", "", words), make("span", "lined", number(count))], `show only: ${words}`).dataset.op = name;
    }
    const counts = new Array(data.rules.length).fill(0);
    for (const pair of data.pairs) counts[pair[2]]++;
    for (const [, rule] of data.drops) counts[rule]++;
    data.rules.forEach((rule, at) => {
      const dot = make("i", "dot");
      dot.style.background = color(at);
      addButton("rules", "rule", at, [dot, make("span", "", show(rule)), make("span", "lined", number(counts[at]))], show(rule)).dataset.rule = at;
    });
  }
  function addProblems() {
    const box = find("problems"), cards = box.querySelector(".cards");
    if (data.witness_count > data.witnesses.length) cards.append(make("div", "card", `${number(data.witnesses.length)} of ${number(data.witness_count)} witnesses of the proof shown`));
    for (const each of data.witnesses) {
      const card = make("div", "card"); card.dataset.fault = each.fault;
      card.append(make("b", "bad", "witness "), show(`${FAULTS[each.fault] || each.fault} · ${each.rules.join(", ")} · `), make("code", "", show(each.keys.join("  and  ") + (each.targets.length ? "  →  " + [...new Set(each.targets)].join(", ") : ""))));
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
    const others = data.problems.length - errors;
    box.querySelector("summary").textContent = errors ? `✕ ${noun(errors, "problem")}${others ? `, and ${noun(others, "more message")}` : ""}` : noun(others, "message");
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
      Object.assign(state, { query: "", status: null, rule: null, op: null, active: null });
      find("search").value = ""; press(null); find("detail").textContent = hint; refresh();
    }
  });
  addEventListener("resize", schedule);
  find("problems").addEventListener("toggle", schedule);
  const hint = "Click a row, or press Tab and the arrow keys: Enter brings its partners into view, / searches, Escape resets.";
  find("detail").textContent = hint; find("name").textContent = show(data.name); find("tool").textContent = data.tool; find("pairs").textContent = noun(data.counts.pairs, "pair");
  const chip = (text, good) => find("verdicts").append(make("span", "chip " + (good === null ? "soft" : good ? "good" : "bad"), (good === null ? "– " : good ? "✓ " : "✕ ") + text));
  chip(data.verdict, data.proven);
  if (!data.ok) chip(data.checked === "no" ? "has problems" : "does not fit the target", false);
  else if (data.checked === "no") chip("not checked against a target", null);
  else chip(data.checked === "layout" ? "the names fit the target, in another size" : "fits the target", true);
  document.body.classList.toggle("empty", !data.source.keys.length && !data.target.keys.length);
  addFilters(); addProblems(); refresh();
  document.documentElement.dataset.ready = "true";
})();
