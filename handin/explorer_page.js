"use strict";
// What surrounds the canvas: numbers, controls, links, keys, and the `state` that they change.

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

const MOST_ROWS = 20;  // of a table
const digits = (value, count = 3) => (value === null || Number.isNaN(value) ? "–" : value.toFixed(count));
const many = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);

/** A number of the page: its name, what it is in words, its value, and the value in print. */
const share = (name, words, value) => ({ name, words, value, text: digits(value) });
const count = (name, words, value) => ({ name, words, value, text: value.toLocaleString("en") });

function anchorNumbers(image) {
  const counts = anchorCounts(image), shown = anchorsShown(image), kinds = KINDS.filter((kind) => kind !== "outside" || DATA.removes);
  const { best } = overlaps(image), total = kinds.map((_, k) => counts.reduce((sum, row) => sum + row[k], 0));
  const rows = counts.map((row, n) => ({ cells: [DATA.anchors.levels[n], ...kinds.map((_, k) => row[k])] }));
  rows.push({ cells: ["all", ...total] });
  const cut = KINDS.map((kind, k) => [kind, shown[k].length]).filter(([, length], k) => k && length > MOST_DRAWN);
  const note = cut.map(([kind, length]) => `${MOST_DRAWN} of ${many(length, `${kind} anchor`)}, ${kind === "ignored" ? "those with the highest IoU" : "evenly spaced"}`).join("; ");
  const highest = shown.flat().reduce((most, n) => Math.max(most, best[n]), 0);
  return {
    summary: `${many(shown[0].length, "positive anchor")} shown${state.object < 0 ? "" : ` of object ${state.object + 1}`}.`,
    facts: [...KINDS.map((kind, k) => count(`shown_${kind}`, `${kind}, shown`, shown[k].length)).filter((_, k) => state.kinds[k]),
      share("highest", "highest IoU of those shown", highest)],
    table: { head: ["level", ...kinds], rows, title: "Anchors of the whole picture" },
    note: note ? `Drawn: ${note}.` : "",
  };
}

function proposalNumbers(image) {
  const bests = coverage(image).map(({ best }) => best), { half, mean: average } = recalls(bests);
  const lost = bests.filter((best) => best < 0.5).length, entered = Math.min(state.K, image.rpn_scores.length);
  return {
    summary: `${many(proposals(image).length, "proposal")} of ${entered.toLocaleString("en")} kept; ${image.objects - lost} of ${many(image.objects, "object")} covered.`,
    facts: [count("kept", "proposals kept", proposals(image).length), share("recall", "recall at IoU 0.5", half), share("average_recall", "average recall, IoU 0.50 to 0.95", average)],
    all: (sums) => [share("all_recall", "recall at IoU 0.5", recalls(sums.covered).half), share("all_average_recall", "average recall", recalls(sums.covered).mean)],
    table: { head: ["object", "best IoU"], title: "Each object and the proposal that covers it best",
      rows: bests.map((best, g) => ({ object: g, cells: [className(image.truth_labels[g]), digits(best)], wrong: best < 0.5 })) },
    note: "",
  };
}

function detectionNumbers(image, masks = false) {
  const { judged, missed } = verdicts(image), one = evaluation(image);
  const ratio = (a, b) => (b ? a / b : null), wrong = mistakes(image).length;
  const rows = judged.map(({ d, kind, boxIou, mask }) => ({ detection: d, wrong: kind !== "right",
    cells: [className(image.labels[d]), digits(image.scores[d], 2), digits(boxIou, 2), mask ? digits(mask.iou, 2) : "–", kind] }));
  const lost = missed.map((g) => ({ object: g, wrong: true, cells: [className(image.truth_labels[g]), "–", "–", "–", "missed"] }));
  const pixels = ["hit", "false", "missed"].map((name) => judged.reduce((sum, { mask }) => sum + (mask ? mask[name] : 0), 0));
  const boxes = [share("precision", "precision", ratio(one.right, one.said)), share("recall", "recall", ratio(one.right, one.objects))];
  const pixelFacts = ["hit", "false", "missed"].map((name, k) => count(`pixels_${name}`, `${name} pixels`, pixels[k]));
  return {
    summary: `${many(judged.length, "detection")}, ${many(image.objects, "object")}: ${wrong ? many(wrong, "mistake") : "all right"}.`,
    facts: [count("detections", "detections", judged.length), count("right", "of these right in class and box", one.right), ...boxes,
      ...(masks ? [share("mask_iou", "mask IoU of the right ones, mean", mean(one.maskIous)), ...pixelFacts] : [])],
    all: (sums) => [share("all_precision", "precision", ratio(sums.right, sums.said)), share("all_recall", "recall", ratio(sums.right, sums.objects)),
      ...(masks ? [share("all_mask_iou", "mask IoU, mean", mean(sums.maskIous))] : [])],
    table: { head: ["class", "score", "box IoU", "mask IoU", "verdict"], rows: [...lost, ...rows].slice(0, MOST_ROWS), title: "Missed objects; detections, best first" },
    note: [rows.length + lost.length > MOST_ROWS ? `The table has ${MOST_ROWS} of ${rows.length + lost.length} rows.` : "",
      image.scores.length === DATA.most ? `Of this image the best ${DATA.most} candidates are held.` : ""].join(" "),
  };
}

function allNumbers(image) {
  const positive = labels(image).reduce((sum, kind) => sum + (kind === 0), 0), found = detectionNumbers(image, true);
  const bests = recalls(coverage(image).map(({ best }) => best));
  return { ...found, facts: [count("positive", "positive anchors", positive), count("kept", "proposals kept", proposals(image).length),
    share("proposal_recall", "recall of the proposals", bests.half), ...found.facts.filter(({ name }) => !name.startsWith("pixels"))] };
}

/** The same numbers over all images, image by image, so that no slider waits for them. */
const nothing = () => ({ covered: [], said: 0, right: 0, objects: 0, maskIous: [] });
const tally = { key: "", sums: nothing(), job: 0 };

const tallyKey = () => `${foundKey()} ${state.threshold}`;

function tallyAll() {
  const sums = nothing(), job = ++tally.job;
  const step = (n) => {
    if (job !== tally.job) return;
    const one = evaluation(IMAGES[n]);
    if (IMAGES[n] !== current()) IMAGES[n].pasted = undefined;
    for (const name of ["covered", "maskIous"]) sums[name].push(...one[name]);
    for (const name of ["said", "right", "objects"]) sums[name] += one[name];
    if (n + 1 < IMAGES.length) return void setTimeout(step, 0, n + 1);
    Object.assign(tally, { key: tallyKey(), sums });
    showNumbers();
  };
  if (tally.key !== tallyKey()) step(0);
}

function element(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

function showFacts(facts, all) {
  const rows = ({ name, words, value, text }) => {
    const number = element("dd", { textContent: text });
    Object.assign(number.dataset, { name, value: value ?? "" });
    return [element("dt", { textContent: words }), number];
  };
  const over = all.length ? [element("dt", { className: "all", textContent: `over the ${IMAGES.length} images:` }), element("dd")] : [];
  document.getElementById("facts").replaceChildren(...facts.flatMap(rows), ...over, ...all.flatMap(rows));
}

function showTable({ head, rows, title }) {
  const picked = (row) => ("object" in row && row.object === state.object) || ("detection" in row && row.detection === state.detection);
  const body = rows.map((row) => {
    const choice = "object" in row || "detection" in row, line = element("tr", { className: picked(row) ? "pick picked" : choice ? "pick" : "" });
    row.cells.forEach((cell, n) => {
      const text = typeof cell === "number" ? cell.toLocaleString("en") : cell;
      const last = n === row.cells.length - 1 && "wrong" in row, side = head[n] === "verdict" ? "text " : "";
      const inside = choice && n === 0 ? element("button", { type: "button", textContent: text, ariaPressed: String(picked(row)) }) : text;
      line.append(n ? element("td", { className: side + (last ? (row.wrong ? "wrong" : "right") : "") }, inside) : element("th", { scope: "row" }, inside));
    });
    if (choice) line.onclick = () => pick(picked(row) ? {} : row);
    return line;
  });
  const columns = head.map((text) => element("th", { scope: "col", textContent: text, className: text === "verdict" ? "text" : "" }));
  const table = element("table", { ariaLabel: title }, element("thead", {}, element("tr", {}, ...columns)), element("tbody", {}, ...body));
  const focused = document.activeElement?.closest("#table tr")?.rowIndex;
  document.getElementById("table").replaceChildren(table);
  if (focused > 0) table.rows[focused]?.querySelector("button")?.focus();
}

function showNumbers() {
  const { summary, facts, all, table, note } = STAGES[state.stage].numbers(current());
  document.getElementById("summary").textContent = summary;
  const told = tally.key === tallyKey() ? {} : { text: "…", value: null };
  showFacts(facts, (all?.(tally.sums) ?? []).map((one) => ({ ...one, ...told })));
  showTable(table);
  document.getElementById("note").textContent = note;
  for (const { canvas, stage } of panels) canvas.ariaLabel = `Image ${current().number}, ${STAGES[stage].title}: ${summary}`;
}

/* ---- controls --------------------------------------------------------------------------------------------------- */

const HELD = IMAGES.reduce((most, image) => Math.max(most, image.arrays.rpn_scores[2]), 1);
const least = DATA.boxhead.score_threshold;
const SLIDERS = [
  { name: "positive", stage: "anchors", words: "positive above an IoU of", min: 0, max: 1, step: 0.01, value: DATA.positive },
  { name: "negative", stage: "anchors", words: "negative below an IoU of", min: 0, max: 1, step: 0.01, value: DATA.negative },
  { name: "K", stage: "rpn", words: "K: best boxes that enter NMS", min: 1, max: HELD, step: 1, value: Math.min(HELD, DATA.rpn.pre_nms) },
  { name: "rpn_nms", stage: "rpn", words: "NMS: two that overlap more are one", min: 0.05, max: 1, step: 0.01, value: DATA.rpn.nms_iou },
  { name: "N", stage: "rpn", words: "N: proposals kept after NMS", min: 1, max: HELD, step: 1, value: Math.min(HELD, DATA.rpn.post_nms) },
  { name: "score", stage: "boxhead", words: "score of at least", min: Math.ceil(100 * least) / 100, max: 0.99, step: 0.01, value: DATA.score },
  { name: "nms", stage: "boxhead", words: "NMS within a class: overlap allowed", min: 0.05, max: 1, step: 0.01, value: DATA.boxhead.nms_iou },
  { name: "threshold", stage: "maskhead", words: "pixel belongs from a probability of", min: 0.05, max: 0.95, step: 0.01, value: DATA.threshold },
  { name: "opacity", stage: "maskhead", words: "opacity", min: 0.1, max: 0.9, step: 0.05, value: 0.5 },
];
const ratioName = (ratio) => (ratio === 1 ? "square" : ratio < 1 ? `${+(1 / ratio).toFixed(2)} × as high` : `${+ratio.toFixed(2)} × as wide`);
const SETS = [
  { name: "levels", stage: "anchors", words: "levels", options: DATA.anchors.levels, value: DATA.anchors.levels.map(() => true) },
  { name: "ratios", stage: "anchors", words: "shapes", options: DATA.anchors.ratios.map(ratioName), value: DATA.anchors.ratios.map(() => true) },
  { name: "kinds", stage: "anchors", words: "kinds", options: KINDS.slice(0, DATA.removes ? 4 : 3), value: [true, false, false, false] },
];
const TICKS = [
  { name: "suppressed", stage: "rpn", words: "boxes that NMS removed (dotted)", value: false },
  { name: "before", stage: "boxhead", words: "before: the proposal (dotted)", value: true },
  { name: "after", stage: "boxhead", words: "after: the refined box (solid)", value: true },
];
const VIEWS = { prediction: "prediction, with the objects' outlines", truth: "objects alone", difference: "difference: hit, false, missed" };
const DEFAULTS = Object.fromEntries([...SLIDERS, ...SETS, ...TICKS].map(({ name, value }) => [name, value]));
Object.assign(DEFAULTS, { image: IMAGES[0].number, stage: "all", view: "prediction", object: -1, detection: -1, theme: "" });
const state = structuredClone(DEFAULTS);
const current = () => IMAGES.find(({ number }) => number === state.image);

const anchorWords = `${ANCHORS.count.toLocaleString("en")} anchors of ${DATA.anchors.ratios.length} shapes lie on every picture, in grids from P2 (fine) to P6 (coarse). `
  + "For training an anchor is positive, an object, if it overlaps one by more than the upper threshold, or if no other anchor overlaps that object more; "
  + "negative, background, if it overlaps every object by less than the lower threshold; the others are ignored."
  + (DATA.removes ? " Anchors across the picture's border (outside) are left out." : "");
const objectLine = [COLOURS.truth, "dashed", "object"];
const STAGES = {
  all: { title: "All stages", numbers: allNumbers, legend: () => [objectLine, [COLOURS.positive, "solid", "positive anchor"], [COLOURS.predicted, "solid", "proposal"], ...classLines()],
    words: "One picture on its way through the network: anchors, proposals, refined boxes, masks. Choose a stage to change its thresholds." },
  anchors: { title: "Anchors", numbers: anchorNumbers, draw: drawAnchors, words: anchorWords,
    legend: () => [objectLine, [COLOURS.positive, "solid", "positive, with level and IoU"], [COLOURS.ignored, "dotted", "ignored"], [COLOURS.negative, "mixed", "negative"], ...(DATA.removes ? [["#ffffff", "mixed", "outside"]] : [])] },
  rpn: { title: "Proposals", numbers: proposalNumbers, draw: drawProposals,
    words: "The region proposal network scores every anchor and moves it. The K best go through non-maximum suppression: where two overlap by more than the threshold, only the better one stays. The N best that are left are the proposals. An object is covered where one of them overlaps it by at least half.",
    legend: () => [objectLine, [COLOURS.predicted, "solid", "proposal (thick: an object's best)"], [COLOURS.ignored, "dotted", "removed by NMS, or beyond N"]] },
  boxhead: { title: "Boxes", numbers: detectionNumbers, draw: drawDetections,
    words: `The box head gives each proposal ${least ? `every class that scores above ${least}` : "its most probable class, or background"}, and moves its sides once more. NMS compares boxes of one class only. Best score first, a detection is right if it overlaps a free object of its class by at least half. The proposals are those that the sliders of that stage keep.`,
    legend: () => [objectLine, ["#ffffff", "dotted", "before"], ["#ffffff", "solid", "after"], ...classLines()] },
  maskhead: { title: "Masks", numbers: (image) => detectionNumbers(image, true), draw: drawMasks,
    words: "For each detection the mask head gives 28 × 28 probabilities. They are stretched over the box, and every pixel that reaches the threshold belongs to the object.",
    legend: () => (state.view === "difference" ? [[DIFFERENCE.hit, "fill", "hit: in both"], [DIFFERENCE.false, "hatch", "false: in the prediction alone"], [DIFFERENCE.missed, "bars", "missed: in the object alone"]] : [objectLine, ...classLines()]) },
};
const PARTS = ["anchors", "rpn", "boxhead", "maskhead"];
const panels = [];

function classLines() {
  const seen = [...new Set([...current().truth_labels, ...detections(current()).map((d) => current().labels[d])])].sort((a, b) => a - b);
  return seen.map((label) => [classColour(label), "solid", className(label)]);
}

/** A sample of a line or of a filling, on grey as in a picture. */
function sample([colour, line]) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), fills = { fill: "", hatch: "M0 14L14 0M14 14L28 0M28 14L42 0", bars: "M0 3H34M0 9H34" };
  for (const [name, value] of Object.entries({ width: 34, height: 14, "aria-hidden": "true" })) svg.setAttribute(name, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path"), isFill = line in fills;
  if (isFill) svg.style.background = `color-mix(in srgb, ${colour} 55%, #fff)`;
  const look = { d: isFill ? fills[line] : "M0 7H34", stroke: colour, fill: "none", "stroke-width": 3, "stroke-dasharray": isFill ? "" : LINES[line].join(" ") };
  for (const [name, value] of Object.entries(look)) path.setAttribute(name, value);
  svg.append(path);
  return svg;
}

function makeControls() {
  const form = document.getElementById("controls");
  form.onsubmit = (event) => event.preventDefault();
  const groups = Object.fromEntries(PARTS.map((stage) => {
    const group = element("fieldset", { id: `of-${stage}` });
    form.append(group);
    return [stage, group];
  }));
  for (const { name, stage, words, min, max, step, value } of SLIDERS) {
    const input = element("input", { type: "range", id: name, min, max, step, value, oninput: () => set({ [name]: input.valueAsNumber }) });
    const label = element("label", { htmlFor: name, textContent: words });
    groups[stage].append(element("div", { className: "slider" }, label, element("output", { htmlFor: name, id: `${name}-value` }), input));
  }
  for (const { name, stage, words, options } of SETS) {
    const ticks = options.map((option, n) => {
      const input = element("input", { type: "checkbox", id: `${name}-${n}`, onchange: () => set({ [name]: state[name].map((on, k) => (k === n ? input.checked : on)) }) });
      return element("label", {}, input, option);
    });
    groups[stage].append(element("fieldset", { className: "choices" }, element("legend", { textContent: `${words}:` }), ...ticks));
  }
  for (const { name, stage, words } of TICKS) {
    const input = element("input", { type: "checkbox", id: name, onchange: () => set({ [name]: input.checked }) });
    groups[stage].append(element("div", { className: "choices" }, element("label", {}, input, words)));
  }
  const view = element("select", { id: "view", onchange: () => set({ view: view.value }) }, ...Object.entries(VIEWS).map(([value, text]) => element("option", { value, textContent: text })));
  groups.maskhead.prepend(element("label", { htmlFor: "view", textContent: "show " }), view);
}

function makePage() {
  document.getElementById("about").textContent = `${DATA.stage === "joint" ? "Trained stage by stage, then jointly" : "Trained stage by stage"} on the data set ${DATA.data} (profile ${DATA.profile}, backbone ${DATA.backbone}). ${many(IMAGES.length, "test image")}: of those where all is right, and of those with each kind of error, the first in turn.`;
  document.getElementById("rules").textContent = `Frames: boxes are computed at ${WIDE} × ${TALL} pixels, which is what the network sees; masks at the picture's own ${WIDTH} × ${HEIGHT}. Kinds: a detection that gets no free object of its class is a duplicate if it lies on a taken one (IoU ${DATA.right} or more), of a wrong class if it lies on another, badly placed from IoU ${DATA.near} on; else nothing is there. A bad mask is right in class and box, with a mask IoU below ${DATA.right}. Mask probabilities are held in ${DATA.steps} steps.`;
  document.getElementById("panels").style.setProperty("--shape", WIDTH / HEIGHT);
  Object.entries(STAGES).forEach(([stage, { title }], n) => {
    const button = element("button", { type: "button", textContent: title, title: `key: ${n + 1}`, onclick: () => set({ stage }) });
    button.dataset.stage = stage;
    document.getElementById("stages").append(button);
  });
  for (const image of IMAGES) {
    const fine = image.kinds.every((kind) => kind === "right"), words = image.kinds.join(", ") || "nothing to find";
    const picture = element("img", { src: image.picture.src, alt: "" });
    const marks = image.kinds.filter((kind) => fine || kind !== "right").map((kind) => element("b", { textContent: SIGNS[kind] }));
    const button = element("button", { type: "button", title: `Image ${image.number}: ${words}`, ariaLabel: `Image ${image.number}: ${words}`, onclick: () => show(image.number) },
      picture, element("span", { className: fine ? "fine" : "" }, ...marks));
    button.dataset.image = image.number;
    document.getElementById("strip").append(button);
  }
  makeControls();
}

function makePanels() {
  const wanted = state.stage === "all" ? PARTS : [state.stage], place = document.getElementById("panels");
  if (panels.map(({ stage }) => stage).join() === wanted.join()) return;
  place.className = wanted.length > 1 ? "four" : "one";
  panels.splice(0, panels.length, ...wanted.map((stage) => {
    const canvas = element("canvas", { role: "img" }), panel = { canvas, stage, ctx: canvas.getContext("2d") };
    canvas.dataset.stage = stage;
    canvas.style.aspectRatio = `${WIDTH} / ${HEIGHT}`;
    touched(panel);
    return panel;
  }));
  place.replaceChildren(...panels.map(({ canvas, stage }) => {
    const title = element("figcaption", {}, element("button", { type: "button", textContent: `${STAGES[stage].title} ›`, onclick: () => set({ stage }) }));
    return element("figure", {}, ...(wanted.length > 1 ? [title] : []), canvas);
  }));
}

/** A tap chooses the smallest object under it; a swipe changes the image. */
function touched(panel) {
  let start = null;
  panel.canvas.onpointerdown = (event) => (start = event);
  panel.canvas.onpointerup = (event) => {
    if (!start) return;
    const moved = event.clientX - start.clientX;
    start = null;
    if (Math.abs(moved) > 60) return step(moved < 0 ? 1 : -1);
    const frame = panel.canvas.getBoundingClientRect(), image = current(), boxes = image.truth_boxes;
    const x = ((event.clientX - frame.left) * panel.ratio - panel.shift[0]) / panel.scale[0], y = ((event.clientY - frame.top) * panel.ratio - panel.shift[1]) / panel.scale[1];
    const under = [...Array(image.objects).keys()].filter((g) => x >= boxes[4 * g] && y >= boxes[4 * g + 1] && x <= boxes[4 * g + 2] && y <= boxes[4 * g + 3]);
    const object = under.sort((a, b) => area(boxes, a) - area(boxes, b))[0] ?? -1;
    pick(object === state.object ? {} : { object });
  };
}

const pick = ({ object = -1, detection = -1 }) => set({ object, detection });
const show = (image) => set({ image, object: -1, detection: -1 });
const step = (by) => show(IMAGES[(IMAGES.indexOf(current()) + by + IMAGES.length) % IMAGES.length].number);

/** The mistake after the one that is chosen, in this image or in one of those after it. */
function nextMistake() {
  const from = IMAGES.indexOf(current()), here = mistakes(current());
  const at = here.findIndex(({ object, detection }) => object === state.object && detection === state.detection);
  for (let n = 0; n <= IMAGES.length; n++) {
    const image = IMAGES[(from + n) % IMAGES.length], next = mistakes(image)[n ? 0 : at + 1];
    if (next) return set({ image: image.number, object: next.object, detection: next.detection, stage: next.kind === "bad mask" && state.stage !== "all" ? "maskhead" : state.stage });
  }
}

/** The state as a link's end, without what is as it was at first. */
function link() {
  const words = new URLSearchParams({ image: state.image, stage: state.stage });
  for (const { name } of SLIDERS) if (state[name] !== DEFAULTS[name]) words.set(name, state[name]);
  for (const { name } of SETS) if (state[name].join() !== DEFAULTS[name].join()) words.set(name, state[name].map((on, n) => (on ? n + 1 : "")).filter(String).join("."));
  for (const { name } of TICKS) if (state[name] !== DEFAULTS[name]) words.set(name, +state[name]);
  for (const name of ["object", "detection"]) if (state[name] >= 0) words.set(name, state[name] + 1);
  for (const name of ["view", "theme"]) if (state[name] !== DEFAULTS[name]) words.set(name, state[name]);
  return `#${words}`;
}

/** The state that a link's end asks for; what it does not know, or what cannot be, is as it was at first. */
function fromLink(text) {
  const words = new URLSearchParams(text.replace(/^#/, "")), asked = structuredClone(DEFAULTS);
  const has = (name, fits = () => true) => words.has(name) && fits(words.get(name));
  for (const { name, min, max, step } of SLIDERS) {
    const value = parseFloat(words.get(name));
    if (!Number.isNaN(value)) asked[name] = Math.min(max, Math.max(min, +(Math.round(value / step) * step).toFixed(4)));
  }
  for (const { name, options } of SETS) if (words.has(name)) asked[name] = DEFAULTS[name].map((_, n) => n < options.length && words.get(name).split(".").includes(String(n + 1)));
  for (const { name } of TICKS) if (words.has(name)) asked[name] = words.get(name) === "1";
  if (has("image", (value) => IMAGES.some(({ number }) => String(number) === value))) asked.image = +words.get("image");
  if (has("stage", (value) => Object.hasOwn(STAGES, value))) asked.stage = words.get("stage");
  if (has("view", (value) => Object.hasOwn(VIEWS, value))) asked.view = words.get("view");
  if (has("theme", (value) => ["dark", "light"].includes(value))) asked.theme = words.get("theme");
  const image = IMAGES.find(({ number }) => number === asked.image);
  if (has("object", (value) => value >= 1 && value <= image.objects)) asked.object = Math.floor(words.get("object")) - 1;
  else if (has("detection", (value) => value >= 1 && value <= image.scores.length)) asked.detection = Math.floor(words.get("detection")) - 1;
  return asked;
}

/** The controls as the state has them. */
function showControls() {
  const image = current(), place = IMAGES.indexOf(image) + 1;
  for (const { name, step } of SLIDERS) {
    const input = document.getElementById(name), told = document.getElementById(`${name}-value`), first = DEFAULTS[name];
    if (input.valueAsNumber !== state[name]) input.value = state[name];
    const text = (value) => (step < 1 ? value.toFixed(2) : value.toLocaleString("en"));
    told.replaceChildren(text(state[name]), ...(state[name] === first ? [] : [element("small", { textContent: `(run: ${text(first)})` })]));
  }
  for (const { name, options } of SETS) options.forEach((_, n) => (document.getElementById(`${name}-${n}`).checked = state[name][n]));
  for (const { name } of TICKS) document.getElementById(name).checked = state[name];
  document.getElementById("view").value = state.view;
  for (const stage of PARTS) document.getElementById(`of-${stage}`).hidden = stage !== state.stage;
  for (const button of document.querySelectorAll("#stages button")) button.toggleAttribute("aria-current", button.dataset.stage === state.stage);
  for (const button of document.querySelectorAll("#strip button")) button.toggleAttribute("aria-current", +button.dataset.image === state.image);
  const kinds = element("small", { textContent: image.kinds.join(", ") || "nothing to find" });
  document.getElementById("which").replaceChildren(`Image ${image.number} (${place} of ${IMAGES.length})`, kinds);
  document.getElementById("words").textContent = STAGES[state.stage].words;
  const legend = document.getElementById("legend"), entries = STAGES[state.stage].legend();
  if (legend.dataset.shows !== JSON.stringify(entries)) legend.replaceChildren(...entries.map((entry) => element("li", {}, sample(entry), entry[2])));
  legend.dataset.shows = JSON.stringify(entries);
  const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = dark ? "Light" : "Dark";
}

const times = {};  // milliseconds of each stage's redraws

function redraw() {
  const start = performance.now(), image = current();
  makePanels();
  showControls();
  for (const panel of panels) {
    prepare(panel, image);
    STAGES[panel.stage].draw(panel, image);
  }
  showNumbers();
  (times[state.stage] ??= []).push(performance.now() - start);
  const own = [...times[state.stage]].sort((a, b) => a - b), middle = own[own.length >> 1];
  document.getElementById("time").textContent = `${times[state.stage].at(-1).toFixed(1)} ms; median ${middle.toFixed(1)}, most ${own.at(-1).toFixed(1)} of ${own.length}`;
}

const due = { frame: 0, rest: 0 };

/** Change the state; the page follows with the next frame, its address and the numbers of all images after a pause. */
function set(changes) {
  const before = current();
  Object.assign(state, changes);
  if (current() !== before) before.pasted = undefined;  // pasted masks take memory
  tally.job++;
  cancelAnimationFrame(due.frame);
  due.frame = requestAnimationFrame(redraw);
  clearTimeout(due.rest);
  due.rest = setTimeout(() => {
    showLink();
    tallyAll();
  }, 150);
}

function showLink() {
  document.getElementById("link").href = link();
  try {
    history.replaceState(null, "", link());
  } catch { /* a page inside another, as in Colab, has no address of its own */ }
}

const KEYS = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), m: nextMistake, Escape: () => pick({}),
  o: () => pick({ object: state.object + 1 < current().objects ? state.object + 1 : -1 }),
  r: () => set(Object.fromEntries(SLIDERS.map(({ name }) => [name, DEFAULTS[name]]))),
  d: () => set({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" }),
  t: () => document.getElementById("time").toggleAttribute("hidden"),
  ...Object.fromEntries(Object.keys(STAGES).map((stage, n) => [String(n + 1), () => set({ stage })])),
};

function onKey(event) {
  const inControl = event.target.matches?.("input, select") && event.key.startsWith("Arrow");
  if (inControl || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, event.key)) return;
  KEYS[event.key]();
  event.preventDefault();
}

unpack().then(() => {
  makePage();
  document.onkeydown = onKey;
  for (const [id, act] of [["previous", () => step(-1)], ["next", () => step(1)], ["mistake", nextMistake], ["theme", KEYS.d]]) document.getElementById(id).onclick = act;
  window.onhashchange = ({ newURL }) => set(fromLink(new URL(newURL).hash));  // showLink may have come in between
  window.onresize = () => set({});
  matchMedia("(prefers-color-scheme: dark)").onchange = () => set({});
  set(fromLink(location.hash));
}).catch((error) => {
  document.getElementById("about").textContent = `This page cannot be shown here (${error}): a browser of 2023 or later is needed.`;
});
