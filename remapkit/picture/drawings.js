/* The drawings of operations: what becomes of a tensor, from left to right, in boxes of 34 by 20. */
"use strict";
const drawOperation = (() => {
  const NS = "http://www.w3.org/2000/svg", MOST = 4;
  const arrow = "M14 10h5m-2-2 2 2-2 2";
  /* A box, cut into a number of parts along a dimension; `full` is the part that is filled, -1 for none. */
  const box = (x, y, w, h, parts = 1, dim = 0, full = -1) => {
    let lines = `M${x} ${y}h${w}v${h}h${-w}z`, fill = "";
    for (let part = 1; part < parts; part++) lines += dim === 0 ? `M${x} ${y + h * part / parts}h${w}` : `M${x + w * part / parts} ${y}v${h}`;
    if (full >= 0) fill = dim === 0 ? `M${x} ${y + h * full / parts}h${w}v${h / parts}h${-w}z` : `M${x + w * full / parts} ${y}h${w / parts}v${h}h${-w / parts}z`;
    return { lines, fill };
  };
  const join = (...parts) => ({ lines: parts.map(part => typeof part === "string" ? part : part.lines).join(""), fill: parts.map(part => part.fill || "").join("") });
  const pieces = (x, count, dim) => dim === 0
    ? join(...Array.from({ length: count }, (_, part) => box(x, 1 + part * (18 / count), 10, 18 / count - 2)))
    : join(...Array.from({ length: count }, (_, part) => box(x - 1 + part * (14 / count), 3, 14 / count - 2, 14)));
  const sheets = x => join(box(x, 7, 8, 11), `M${x + 2.5} 7v-2.5h8v11h-2.5M${x + 5} 4.5v-2.5h8v11h-2.5`);
  const bars = (x, heights, fill) => ({
    lines: "", fill: heights.map((tall, place) => tall === fill ? `M${x + place * 3} 3h2v14h-2z` : `M${x + place * 3} 3h2v1h-2zM${x + place * 3} 16h2v1h-2zM${x + place * 3} 4h.7v12h-.7zM${x + place * 3 + 1.3} 4h.7v12h-.7z`).join(""),
  });
  const crossing = "M2 4h5C13 4 20 10 27 10h5M2 10h5C13 10 20 16 27 16h5M2 16h5C13 16 20 4 27 4h5";
  const DRAWINGS = {
    concat: (dim, _, count) => join(pieces(2, Math.min(Math.max(count, 2), 3), dim), arrow, box(22, 1, 10, 18, Math.min(Math.max(count, 2), 3), dim)),
    split: (dim, index, count) => {
      const shown = Math.min(Math.max(count, 2), MOST), at = Math.min(shown - 1, count > MOST ? Math.floor(index * shown / count) : index);
      return join(box(2, 1, 10, 18, shown, dim, at), arrow, dim === 0 ? box(22, 7, 10, 6, 1, 0, 0) : box(24, 3, 6, 14, 1, 0, 0));
    },
    stack: () => join(box(2, 1, 9, 7), box(2, 12, 9, 7), arrow, sheets(20)),
    unstack: () => join(sheets(1), "M17 10h5m-2-2 2 2-2 2", box(25, 5, 7, 10, 1, 0, 0)),
    merge: () => join(box(2, 1, 9, 7), box(2, 12, 9, 7), "M15 8.5h5M15 11.5h5", box(23, 6, 9, 8, 1, 0, 0)),
    combine: () => join(box(2, 1, 9, 7), box(2, 12, 9, 7), "M14 7l6 6M20 7l-6 6", box(23, 6, 9, 8)),
    transpose: () => join(box(3, 1, 6, 18, 3, 0, 0), arrow, box(21, 7, 12, 6, 3, 1, 0)),
    permute: () => join(crossing), index: () => join(crossing),
    rearrange: () => join(box(2, 3, 10, 14, 2, 0), "M7 3v14", arrow, box(22, 1, 10, 18, 4, 0)),
    reshape: () => join(box(2, 2, 8, 16, 4, 0), arrow, box(21, 6, 12, 8, 2, 1), "M21 10h12"),
    squeeze: () => join("M2 10h7m-2.5-2.5 2.5 2.5-2.5 2.5", box(13, 2, 8, 16), "M32 10h-7m2.5-2.5-2.5 2.5 2.5 2.5"),
    unsqueeze: () => join("M9 10h-7m2.5-2.5-2.5 2.5 2.5 2.5", box(13, 2, 8, 16), "M25 10h7m-2.5-2.5 2.5 2.5-2.5 2.5"),
    slice: dim => join(box(2, 1, 10, 18, 3, dim, 1), arrow, dim === 0 ? box(22, 7, 10, 6, 1, 0, 0) : box(24, 3, 6, 14, 1, 0, 0)),
    pad: () => join(box(2, 6, 8, 8, 1, 0, 0), arrow, box(21, 2, 12, 16), box(23, 6, 8, 8, 1, 0, 0)),
    cast: () => join("M2 10c2-9 5-9 6.5 0s4 9 5.5 0", "M18 10h2.5v-5h3.5v5h3v5h3.5v-5h1.5"),
    scale: () => join(box(2, 5, 9, 10), "M15 7l6 6M21 7l-6 6", "M26 8.5c0-3.5 5-3.5 5 0c0 2-5 3-5 6h5"),
    add: () => join(box(2, 5, 9, 10), "M18 6v8M14 10h8", "M26 7l2-1v8M26 14h4"),
    fill: () => join("M2 4v-2h2M8 2h2v2M10 16v2h-2M4 18h-2v-2", arrow, box(22, 2, 10, 16, 1, 0, 0)),
    flip: () => join(box(2, 1, 10, 18, 3, 0, 0), arrow, box(22, 1, 10, 18, 3, 0, 2)),
    flip_halves: () => join(box(2, 1, 10, 18, 2, 0, 0), arrow, box(22, 1, 10, 18, 2, 0, 1)),
    roll: () => join("M23 5a8 8 0 1 0 2 5", "M24 1v5h-5"),
    rope: () => join(bars(1, [1, 0, 1, 0], 1), "M15 10h4m-2-2 2 2-2 2", bars(22, [1, 1, 0, 0], 1)),
    group_qkv: () => join(bars(1, [1, 1, 0, 0], 1), "M15 10h4m-2-2 2 2-2 2", bars(22, [1, 0, 1, 0], 1)),
    ungroup_qkv: () => join(bars(1, [1, 0, 0, 1], 1), "M15 10h4m-2-2 2 2-2 2", bars(22, [1, 1, 0, 0], 1)),
    other: () => join("M20 4c-3-2-4 0-4.5 3l-1.5 8c-.5 3-2 3-4 2M11 9h8"),
  };
  DRAWINGS.zeros = DRAWINGS.fill;
  return ([name, dim, index, count], x, y) => {
    const made = document.createElementNS(NS, "svg"), { lines, fill } = (DRAWINGS[name] || DRAWINGS.other)(dim, index, count);
    for (const [key, value] of Object.entries({ class: "drawing", width: 34, height: 20, viewBox: "0 0 34 20", "aria-hidden": "true" })) made.setAttribute(key, value);
    if (x !== undefined) { made.setAttribute("x", x); made.setAttribute("y", y); }
    for (const [path, cls] of [[fill, "full"], [lines, "lines"]]) if (path) {
      const drawn = document.createElementNS(NS, "path");
      drawn.setAttribute("class", cls); drawn.setAttribute("d", path); made.append(drawn);
    }
    return made;
  };
})();
