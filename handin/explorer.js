"use strict";
// Sections: data, boxes, anchors, nms, masks, verdicts, draw, numbers, controls.
// Boxes are flat Float32Arrays, four numbers each: x1 y1 x2 y2 in the network's frame. What lib computes in float32 is
// rounded to float32 here as well, operation by operation, so that the same boxes survive the same threshold.

/* ---- data ------------------------------------------------------------------------------------------------------- */

const DATA = JSON.parse(document.getElementById("data").textContent);
const IMAGES = DATA.images;
const f32 = Math.fround;
const [HEIGHT, WIDTH] = DATA.size;  // of a picture
const [TALL, WIDE] = DATA.content;  // of a picture in the network's frame
const CELLS = 28;  // along a side of a mask
const KINDS = ["positive", "ignored", "negative", "outside"];

/** Give each image its arrays and its picture. */
async function unpack() {
  const packed = Uint8Array.from(atob(DATA.packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(stream).arrayBuffer();
  const types = { Float32Array, Uint16Array, Uint8Array };
  await Promise.all(IMAGES.map(async (image) => {
    for (const [name, [type, start, count]] of Object.entries(image.arrays)) image[name] = new types[type](bytes, start, count);
    image.objects = image.truth_labels.length;
    image.picture = new Image();
    image.picture.src = `data:image/jpeg;base64,${image.jpeg}`;
    await image.picture.decode();
  }));
}

/** What `make` gives, kept with the image until the key is another. */
function kept(image, name, key, make) {
  image.kept ??= {};
  if (image.kept[name]?.key !== key) image.kept[name] = { key, value: make() };
  return image.kept[name].value;
}

/* ---- boxes: lib.boxes ------------------------------------------------------------------------------------------- */

function area(boxes, n) {
  const k = 4 * n;
  return f32(f32(boxes[k + 2] - boxes[k]) * f32(boxes[k + 3] - boxes[k + 1]));
}

/** Intersection over union of box i of a and box j of b. */
function iou(a, i, b, j) {
  const p = 4 * i, q = 4 * j;
  const width = f32(Math.min(a[p + 2], b[q + 2]) - Math.max(a[p], b[q]));
  const height = f32(Math.min(a[p + 3], b[q + 3]) - Math.max(a[p + 1], b[q + 1]));
  if (width <= 0 || height <= 0) return 0;
  const both = f32(width * height);
  return f32(both / f32(f32(area(a, i) + area(b, j)) - both));
}

function isInside(boxes, n) {
  const k = 4 * n;
  return boxes[k] >= 0 && boxes[k + 1] >= 0 && boxes[k + 2] <= WIDE && boxes[k + 3] <= TALL;
}

/** The object that box n overlaps most, and by how much. */
function nearest(boxes, n, image) {
  let object = -1, most = 0;
  for (let g = 0; g < image.objects; g++) {
    const overlap = iou(boxes, n, image.truth_boxes, g);
    if (overlap > most) [object, most] = [g, overlap];
  }
  return [object, most];
}

/* ---- anchors: lib.anchors, lib.matching ------------------------------------------------------------------------- */

/** The pyramid's anchors in lib's order: level, row, column, ratio. */
function makeAnchors() {
  const { grids, strides, scales, ratios } = DATA.anchors;
  const count = grids.reduce((sum, [rows, columns]) => sum + rows * columns * ratios.length, 0);
  const anchors = { count, boxes: new Float32Array(4 * count), level: new Uint8Array(count), ratio: new Uint8Array(count) };
  const roots = ratios.map((ratio) => f32(Math.sqrt(f32(ratio))));
  let n = 0;
  grids.forEach(([rows, columns], level) => {
    const halves = roots.map((root) => [root, f32(1 / root)].map((side) => f32(f32(f32(scales[level]) * side) / 2)));
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const x = f32((column + 0.5) * strides[level]), y = f32((row + 0.5) * strides[level]);
        halves.forEach(([half, tall], ratio) => {
          anchors.boxes.set([x - half, y - tall, x + half, y + tall], 4 * n);
          anchors.level[n] = level;
          anchors.ratio[n++] = ratio;
        });
      }
    }
  });
  return anchors;
}

const ANCHORS = makeAnchors();

/** Each anchor's best IoU and its object, and whether it is an object's best: no slider changes these. */
function overlaps(image) {
  return kept(image, "overlaps", "", () => {
    const best = new Float32Array(ANCHORS.count), object = new Uint8Array(ANCHORS.count), isBest = new Uint8Array(ANCHORS.count);
    const outside = new Uint8Array(ANCHORS.count);
    if (DATA.removes) for (let n = 0; n < ANCHORS.count; n++) outside[n] = !isInside(ANCHORS.boxes, n);
    for (let g = 0; g < image.objects; g++) {
      const of = new Float32Array(ANCHORS.count);
      let highest = 0;
      for (let n = 0; n < ANCHORS.count; n++) {
        if (outside[n]) continue;
        of[n] = iou(image.truth_boxes, g, ANCHORS.boxes, n);
        if (of[n] > best[n]) [best[n], object[n]] = [of[n], g];
        highest = Math.max(highest, of[n]);
      }
      for (let n = 0; highest > 0 && n < ANCHORS.count; n++) isBest[n] |= of[n] === highest;
    }
    return { best, object, isBest, outside };
  });
}

/** Each anchor's kind, an index into KINDS. */
function labels(image) {
  return kept(image, "labels", `${state.positive} ${state.negative}`, () => {
    const { best, isBest, outside } = overlaps(image), kinds = new Uint8Array(ANCHORS.count);
    const above = f32(state.positive), below = f32(state.negative);
    for (let n = 0; n < ANCHORS.count; n++) kinds[n] = outside[n] ? 3 : best[n] > above || isBest[n] ? 0 : best[n] < below ? 2 : 1;
    return kinds;
  });
}

/** How many anchors each level has of each kind, among the ratios that are switched on. */
function anchorCounts(image) {
  const counts = DATA.anchors.levels.map(() => [0, 0, 0, 0]), kinds = labels(image);
  for (let n = 0; n < ANCHORS.count; n++) if (state.ratios[ANCHORS.ratio[n]]) counts[ANCHORS.level[n]][kinds[n]]++;
  return counts;
}

/** The anchors that the filters leave, by kind. */
function anchorsShown(image) {
  const kinds = labels(image), { best, object } = overlaps(image), shown = KINDS.map(() => []);
  for (let n = 0; n < ANCHORS.count; n++) {
    const wanted = state.levels[ANCHORS.level[n]] && state.ratios[ANCHORS.ratio[n]] && state.kinds[kinds[n]];
    if (wanted && (state.object < 0 || (object[n] === state.object && best[n] > 0))) shown[kinds[n]].push(n);
  }
  return shown;
}

/* ---- nms: lib.rpn.propose, lib.boxhead.refine ------------------------------------------------------------------- */

/** Of boxes in the order of their scores, those that no better one of the same class overlaps by more than `most`. */
function nms(boxes, order, most, limit, classOf = () => 0) {
  const survivors = [];
  for (const n of order) {
    let free = true;
    for (let k = 0; free && k < survivors.length; k++) {
      free = classOf(survivors[k]) !== classOf(n) || !(iou(boxes, survivors[k], boxes, n) > most);
    }
    if (free && survivors.push(n) === limit) break;
  }
  return survivors;
}

const rpnKey = () => `${state.K} ${state.N} ${state.rpn_nms}`;

/** The proposals that are kept: of the top K those that survive NMS, N at most. Best first. */
function proposals(image) {
  return kept(image, "proposals", rpnKey(), () => {
    const boxes = image.rpn_boxes, order = [], least = f32(DATA.rpn.min_size);
    for (let n = 0; n < Math.min(state.K, image.rpn_scores.length); n++) {
      const k = 4 * n;
      if (f32(boxes[k + 2] - boxes[k]) >= least && f32(boxes[k + 3] - boxes[k + 1]) >= least) order.push(n);
    }
    return nms(boxes, order, state.rpn_nms, state.N);
  });
}

/** Each object's highest IoU with a kept proposal, and which one that is. */
function coverage(image) {
  return kept(image, "coverage", rpnKey(), () => Array.from({ length: image.objects }, (_, g) => {
    let best = 0, which = -1;
    for (const n of proposals(image)) {
      const overlap = iou(image.truth_boxes, g, image.rpn_boxes, n);
      if (overlap > best) [best, which] = [overlap, n];
    }
    return { best, which };
  }));
}

const foundKey = () => `${rpnKey()} ${state.nms} ${state.score}`;

/** The detections: of the kept proposals' candidates the top K', NMS for each class, N' at most, by score. */
function detections(image) {
  return kept(image, "detections", foundKey(), () => {
    const from = new Set(proposals(image)), order = [];
    for (let d = 0; d < image.scores.length && order.length < DATA.boxhead.pre_nms; d++) {
      if (from.has(image.origins[d])) order.push(d);
    }
    const survivors = nms(shiftedByClass(image, order), order, state.nms, DATA.boxhead.post_nms, (d) => image.labels[d]);
    return survivors.filter((d) => image.scores[d] >= f32(state.score));
  });
}

/** Boxes moved apart by class as torchvision's batched_nms moves them: it rounds, and an IoU may hang on that. */
function shiftedByClass(image, order) {
  let far = 0;
  for (const d of order) for (let k = 0; k < 4; k++) far = Math.max(far, image.boxes[4 * d + k]);
  const moved = new Float32Array(image.boxes.length);
  for (const d of order) {
    const shift = f32(image.labels[d] * f32(far + 1));
    for (let k = 0; k < 4; k++) moved[4 * d + k] = image.boxes[4 * d + k] + shift;
  }
  return moved;
}

/* ---- masks: lib.maskhead.paste_masks ---------------------------------------------------------------------------- */

/** For the pixels between start and end: the first of the two mask cells that each lies between, and their weights. */
function weights(start, end, length) {
  const extent = Math.max(f32(end - start), 1e-6), margin = extent / (2 * CELLS) + 1;
  const first = Math.max(0, Math.floor(start - margin)), last = Math.min(length, Math.ceil(end + margin));
  const cells = new Int16Array(Math.max(0, last - first)), shares = new Float32Array(2 * cells.length);
  cells.forEach((_, n) => {
    const position = f32(f32(f32(f32(first + n + 0.5 - start) / extent) * CELLS) - 0.5);
    const cell = cells[n] = Math.min(CELLS - 1, Math.max(-1, Math.floor(position)));
    shares[2 * n] = Math.max(0, 1 - Math.abs(f32(position - cell)));
    shares[2 * n + 1] = Math.max(0, 1 - Math.abs(f32(position - cell - 1)));
  });
  return { first, cells, shares };
}

/** The probabilities of candidate d at the pixels of the picture around its box. */
function pasted(image, d) {
  image.pasted ??= new Map();
  if (image.pasted.has(d)) return image.pasted.get(d);
  const scale = [f32(WIDTH / WIDE), f32(HEIGHT / TALL)], limit = [WIDTH, HEIGHT];
  const box = [0, 1, 2, 3].map((k) => Math.min(limit[k % 2], Math.max(0, f32(image.boxes[4 * d + k] * scale[k % 2]))));
  const columns = weights(box[0], box[2], WIDTH), rows = weights(box[1], box[3], HEIGHT);
  const part = { x: columns.first, y: rows.first, width: columns.cells.length, height: rows.cells.length };
  part.values = new Float32Array(part.width * part.height);
  const mask = new Float32Array((CELLS + 2) * CELLS);  // a row of zeros above and below
  for (let n = 0; n < CELLS * CELLS; n++) mask[CELLS + n] = (image.masks[d * CELLS * CELLS + n] + 0.5) / 256;
  const line = new Float32Array(CELLS + 2);  // a zero before and after
  for (let y = 0, at = 0; y < part.height; y++) {
    const row = CELLS * (rows.cells[y] + 1), upper = rows.shares[2 * y], lower = rows.shares[2 * y + 1];
    for (let k = 0; k < CELLS; k++) line[k + 1] = f32(upper * mask[row + k]) + f32(lower * mask[row + CELLS + k]);
    for (let x = 0; x < part.width; x++, at++) {
      const k = columns.cells[x] + 1;
      part.values[at] = f32(columns.shares[2 * x] * line[k]) + f32(columns.shares[2 * x + 1] * line[k + 1]);
    }
  }
  image.pasted.set(d, part);
  return part;
}

/** An object's mask, a byte a pixel, and how many of them are set. */
function truthMask(image, g) {
  image.unpacked ??= [];
  if (!image.unpacked[g]) {
    const bits = image.truth_masks.subarray(g * Math.ceil(HEIGHT * WIDTH / 8), (g + 1) * Math.ceil(HEIGHT * WIDTH / 8));
    const pixels = new Uint8Array(HEIGHT * WIDTH);
    let area = 0;
    for (let n = 0; n < pixels.length; n++) area += pixels[n] = (bits[n >> 3] >> (7 - (n & 7))) & 1;
    image.unpacked[g] = { pixels, area };
  }
  return image.unpacked[g];
}

/** Pixels that candidate d and object g share (hit), that d alone has (false) and that g alone has (missed). */
function maskCounts(image, d, g) {
  const { x, y, width, height, values } = pasted(image, d), truth = truthMask(image, g), least = f32(state.threshold);
  let hit = 0, said = 0;
  for (let row = 0, at = 0; row < height; row++) {
    for (let n = (y + row) * WIDTH + x, end = n + width; n < end; n++, at++) {
      if (values[at] >= least) {
        said++;
        hit += truth.pixels[n];
      }
    }
  }
  return { hit, false: said - hit, missed: truth.area - hit, iou: hit / Math.max(1, said + truth.area - hit) };
}

/* ---- verdicts: which detection is right, and what is wrong with the others -------------------------------------- */

/** Each detection with its kind, its object (-1: none) and IoUs; and the objects that no detection took. */
function verdicts(image) {
  return kept(image, "verdicts", `${foundKey()} ${state.threshold}`, () => {
    const free = new Set(Array(image.objects).keys()), judged = [];
    for (const d of detections(image)) {
      let object = -1, best = DATA.right, taken = false, most = 0;
      for (let g = 0; g < image.objects; g++) {
        const overlap = iou(image.boxes, d, image.truth_boxes, g), same = image.truth_labels[g] === image.labels[d];
        most = Math.max(most, overlap);
        taken ||= same && overlap >= DATA.right;
        if (same && free.has(g) && overlap >= best) [object, best] = [g, overlap];
      }
      free.delete(object);
      const near = nearest(image.boxes, d, image)[0], mask = object < 0 ? null : maskCounts(image, d, object);
      const wrong = taken ? "duplicate" : most >= DATA.right ? "wrong class" : most >= DATA.near ? "badly placed" : "false";
      const kind = mask ? (mask.iou >= DATA.right ? "right" : "bad mask") : wrong;
      judged.push({ d, object, near, kind, boxIou: object < 0 ? most : best, mask });
    }
    return { judged, missed: [...free] };
  });
}

/** All that is wrong in an image: detections and missed objects. */
function mistakes(image) {
  const { judged, missed } = verdicts(image);
  const said = judged.filter(({ kind }) => kind !== "right").map(({ d, kind }) => ({ detection: d, object: -1, kind }));
  return [...missed.map((object) => ({ detection: -1, object, kind: "missed" })), ...said];
}

/** Share of objects covered by IoU 0.5, and its mean over 0.50, 0.55, ... 0.95. */
function recalls(bests) {
  const steps = Array.from({ length: 10 }, (_, n) => f32(0.5 + 0.05 * n));
  const above = (least) => bests.filter((best) => best >= least).length / bests.length;
  return bests.length ? { half: above(0.5), mean: steps.reduce((sum, step) => sum + above(step), 0) / 10 } : { half: null, mean: null };
}

/** What one image adds to the numbers of all. */
function evaluation(image) {
  const { judged, missed } = verdicts(image), right = judged.filter(({ mask }) => mask);
  return {
    covered: coverage(image).map(({ best }) => best), said: judged.length, right: right.length,
    objects: right.length + missed.length, maskIous: right.map(({ mask }) => mask.iou),
  };
}

/* ---- draw ------------------------------------------------------------------------------------------------------- */

const LINES = { solid: [], dashed: [9, 5], dotted: [2, 4], mixed: [9, 4, 2, 4] };
const COLOURS = DATA.colours;
const MOST_DRAWN = 60;  // ignored or negative anchors
const DIFFERENCE = { hit: "#009E73", false: "#D55E00", missed: "#0072B2" };
const SIGNS = { right: "✓", missed: "missed", false: "false", "wrong class": "class", "badly placed": "placed", duplicate: "twice", "bad mask": "mask" };

const classColour = (label) => DATA.class_colours[(label - 1) % DATA.class_colours.length];
const className = (label) => DATA.classes[label - 1];
const rgb = (colour) => [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
const isDark = (colour) => rgb(colour).reduce((sum, part, k) => sum + part * [0.3, 0.59, 0.11][k], 0) < 128;

/** Make a panel's canvas as sharp as the screen and its frame that of the network, with a margin around the picture. */
function prepare(panel, image) {
  const { canvas, ctx, stage } = panel, ratio = Math.min(2, window.devicePixelRatio || 1);
  const margin = stage === "anchors" ? 0.12 : 0, width = Math.round(canvas.clientWidth * ratio);
  const height = Math.round(width * HEIGHT / WIDTH);
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  panel.ratio = ratio;
  panel.scale = [width / (WIDE * (1 + 2 * margin)), height / (TALL * (1 + 2 * margin))];
  panel.shift = [margin * WIDE * panel.scale[0], margin * TALL * panel.scale[1]];
  panel.captions = [];
  ctx.imageSmoothingQuality = "high";
  ctx.clearRect(0, 0, width, height);
  ctx.drawImage(image.picture, ...panel.shift, WIDE * panel.scale[0], TALL * panel.scale[1]);
}

function place({ scale, shift }, boxes, n) {
  const at = (k) => boxes[4 * n + k] * scale[k % 2] + shift[k % 2];
  return [at(0), at(1), at(2) - at(0), at(3) - at(1)];
}

/** Outlines of some boxes, all in one path, with a halo that keeps them apart from the picture. */
function outline(panel, boxes, which, colour, { line = "solid", width = 2, alpha = 1, halo = width > 1.5 } = {}) {
  const { ctx, ratio } = panel, path = new Path2D();
  for (const n of which) path.rect(...place(panel, boxes, n));
  ctx.globalAlpha = alpha;
  ctx.setLineDash(LINES[line].map((length) => length * ratio));
  const styles = [[isDark(colour) ? "#ffffffaa" : "#000000aa", 1.6], [colour, 0]];
  for (const [style, extra] of styles.slice(halo ? 0 : 1)) {
    ctx.strokeStyle = style;
    ctx.lineWidth = (width + extra) * ratio;
    ctx.stroke(path);
  }
  ctx.setLineDash([]);
  ctx.globalAlpha = 1;
}

/** A caption at a box, where no other one is: above it, inside its top, below it, inside its bottom. */
function caption(panel, boxes, n, text, colour) {
  const { ctx, ratio, canvas, captions } = panel, [left, top, , height] = place(panel, boxes, n);
  const size = Math.min(12.5, Math.max(9, canvas.clientWidth / 32)) * ratio;  // smaller in a small panel
  ctx.font = `600 ${size}px system-ui, sans-serif`;
  const tall = 1.45 * size, wide = ctx.measureText(text).width + 8 * ratio;
  const x = Math.max(0, Math.min(left, canvas.width - wide));
  const free = (y) => y >= 0 && y + tall <= canvas.height && !captions.some((c) => x < c.x + c.wide && c.x < x + wide && y < c.y + tall && c.y < y + tall);
  const y = [top - tall, top, top + height, top + height - tall].find(free);
  if (y === undefined) return;
  captions.push({ x, y, wide });
  ctx.fillStyle = colour;
  ctx.fillRect(x, y, wide, tall);
  ctx.fillStyle = isDark(colour) ? "#fff" : "#000";
  ctx.textBaseline = "middle";
  ctx.fillText(text, x + 4 * ratio, y + tall / 2 + ratio);
}

/** The objects' boxes, dashed; where one is chosen it is thicker. */
function drawTruth(panel, image, captions = true) {
  const objects = [...Array(image.objects).keys()];
  outline(panel, image.truth_boxes, objects, COLOURS.truth, { line: "dashed", width: 2.4 });
  if (state.object >= 0) outline(panel, image.truth_boxes, [state.object], COLOURS.truth, { line: "dashed", width: 4.5 });
  if (captions) for (const g of objects) caption(panel, image.truth_boxes, g, className(image.truth_labels[g]), COLOURS.truth);
}

const spread = (list, count) => (list.length <= count ? list : Array.from({ length: count }, (_, n) => list[Math.floor(n * list.length / count)]));

function drawAnchors(panel, image) {
  const shown = anchorsShown(image), { best } = overlaps(image);
  const lines = { ignored: "dotted", negative: "mixed", outside: "mixed" };
  for (const kind of ["outside", "negative", "ignored"]) {
    const some = spread(shown[KINDS.indexOf(kind)], MOST_DRAWN);
    outline(panel, ANCHORS.boxes, some, COLOURS[kind] ?? "#ffffff", { line: lines[kind], width: 1.1, alpha: 0.85 });
  }
  const positive = shown[0].sort((a, b) => best[a] - best[b]);
  outline(panel, ANCHORS.boxes, positive, COLOURS.positive, { width: 1.8 });
  drawTruth(panel, image);
  for (const n of positive.slice(-12).reverse()) {
    caption(panel, ANCHORS.boxes, n, `${DATA.anchors.levels[ANCHORS.level[n]]} ${best[n].toFixed(2)}`, COLOURS.positive);
  }
}

function drawProposals(panel, image) {
  const mine = (n) => state.object < 0 || nearest(image.rpn_boxes, n, image)[0] === state.object;
  const shown = proposals(image).filter(mine);
  if (state.suppressed) {
    const taken = new Set(proposals(image)), count = Math.min(state.K, image.rpn_scores.length);
    const gone = [...Array(count).keys()].filter((n) => !taken.has(n) && mine(n));
    outline(panel, image.rpn_boxes, gone, COLOURS.ignored, { line: "dotted", width: 1, alpha: 0.45 });
  }
  outline(panel, image.rpn_boxes, shown, COLOURS.predicted, { width: 1.2, alpha: 0.7 });
  drawTruth(panel, image, false);
  coverage(image).forEach(({ best, which }, g) => {
    if (state.object >= 0 && state.object !== g) return;
    if (which >= 0) outline(panel, image.rpn_boxes, [which], COLOURS.predicted, { width: 3.2 });
    const name = className(image.truth_labels[g]);
    if (which >= 0) caption(panel, image.rpn_boxes, which, `${name} IoU ${best.toFixed(2)}`, COLOURS.predicted);
    else caption(panel, image.truth_boxes, g, `${name} lost`, COLOURS.truth);
  });
}

/** The verdicts that a chosen object or detection leaves. */
function verdictsShown(image) {
  const { judged, missed } = verdicts(image);
  if (state.detection >= 0) return { judged: judged.filter(({ d }) => d === state.detection), missed: [] };
  if (state.object < 0) return { judged, missed };
  return { judged: judged.filter(({ near }) => near === state.object), missed: missed.filter((g) => g === state.object) };
}

function captionsOf(panel, image, { judged, missed }, text) {
  for (const one of judged) {
    const words = [className(image.labels[one.d]), text(one), one.kind === "right" ? "" : `· ${one.kind}`].filter(String);
    caption(panel, image.boxes, one.d, words.join(" "), classColour(image.labels[one.d]));
  }
  for (const g of missed) caption(panel, image.truth_boxes, g, `${className(image.truth_labels[g])} · missed`, COLOURS.truth);
}

function drawDetections(panel, image) {
  const shown = verdictsShown(image);
  drawTruth(panel, image, false);
  for (const { d } of [...shown.judged].reverse()) {
    const colour = classColour(image.labels[d]);
    if (state.before) outline(panel, image.rpn_boxes, [image.origins[d]], colour, { line: "dotted", width: 2.2 });
    if (state.after) outline(panel, image.boxes, [d], colour, { width: 2.6 });
  }
  captionsOf(panel, image, shown, ({ d }) => image.scores[d].toFixed(2));
}

const WHOLE = { x: 0, y: 0, width: WIDTH, height: HEIGHT };
const PAINT = new ImageData(WIDTH, HEIGHT);
const PIXELS = new Uint32Array(PAINT.data.buffer);
const SHEET = Object.assign(document.createElement("canvas"), { width: WIDTH, height: HEIGHT });

/** A colour as a pixel of PIXELS. */
function pixel(colour, alpha) {
  const [red, green, blue] = rgb(colour);
  return ((Math.round(255 * alpha) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/** Pixels of a part of the picture, tinted; those at its edge whole, but for the gaps of a dash. */
function tint({ x, y, width, height }, bits, colour, dashed = false) {
  const [plain, edge] = [pixel(colour, state.opacity), pixel(colour, 1)];
  for (let row = 0, at = 0; row < height; row++) {
    for (let column = 0; column < width; column++, at++) {
      if (!bits[at]) continue;
      const isBorder = !row || !column || row === height - 1 || column === width - 1;
      const rim = isBorder || !(bits[at - 1] && bits[at + 1] && bits[at - width] && bits[at + width]);
      if (rim ? !dashed || (x + column + 2 * (y + row)) % 12 < 7 : !dashed) PIXELS[(y + row) * WIDTH + x + column] = rim ? edge : plain;
    }
  }
}

/** The pixels around a detection that reach the threshold. */
function maskBits(image, d) {
  const { values } = pasted(image, d), bits = new Uint8Array(values.length), least = f32(state.threshold);
  for (let n = 0; n < bits.length; n++) bits[n] = values[n] >= least;
  return bits;
}

/** Hit, false and missed pixels of a detection and its object, each in its colour and in its own hatching. */
function tintDifference(image, d, g) {
  const part = d < 0 ? null : pasted(image, d), truth = g < 0 ? null : truthMask(image, g).pixels, least = f32(state.threshold);
  const shades = Object.fromEntries(Object.entries(DIFFERENCE).map(([kind, c]) => [kind, [pixel(c, state.opacity), pixel(c, Math.min(1, state.opacity + 0.45))]]));
  for (let y = 0, n = 0; y < HEIGHT; y++) {
    for (let x = 0; x < WIDTH; x++, n++) {
      const u = part ? x - part.x : -1, v = part ? y - part.y : -1;
      const said = u >= 0 && v >= 0 && u < part.width && v < part.height && part.values[v * part.width + u] >= least;
      const there = truth && truth[n];
      if (said && there) PIXELS[n] = shades.hit[0];
      else if (said) PIXELS[n] = shades.false[+((x + y) % 5 < 2)];
      else if (there) PIXELS[n] = shades.missed[+(y % 4 < 2)];
    }
  }
}

function drawMasks(panel, image) {
  const shown = verdictsShown(image);
  PIXELS.fill(0);
  if (state.view === "difference") {
    for (const g of shown.missed) tintDifference(image, -1, g);
    for (const { d, object } of [...shown.judged].reverse()) tintDifference(image, d, object);
  } else {
    if (state.view !== "truth") for (const { d } of [...shown.judged].reverse()) tint(pasted(image, d), maskBits(image, d), classColour(image.labels[d]));
    for (let g = 0; g < image.objects; g++) if (state.object < 0 || g === state.object) tint(WHOLE, truthMask(image, g).pixels, COLOURS.truth, true);
  }
  SHEET.getContext("2d").putImageData(PAINT, 0, 0);
  panel.ctx.imageSmoothingEnabled = false;
  panel.ctx.drawImage(SHEET, ...panel.shift, WIDE * panel.scale[0], TALL * panel.scale[1]);
  panel.ctx.imageSmoothingEnabled = true;
  if (state.view === "truth") {
    for (let g = 0; g < image.objects; g++) caption(panel, image.truth_boxes, g, className(image.truth_labels[g]), COLOURS.truth);
  } else {
    captionsOf(panel, image, shown, ({ mask }) => (mask ? `IoU ${mask.iou.toFixed(2)}` : ""));
  }
}

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
  const some = ["ignored", "negative"].filter((kind) => shown[KINDS.indexOf(kind)].length > MOST_DRAWN);
  const note = some.map((kind) => `${MOST_DRAWN} of ${many(shown[KINDS.indexOf(kind)].length, `${kind} anchor`)}`).join(", ");
  const highest = shown.flat().reduce((most, n) => Math.max(most, best[n]), 0);
  return {
    summary: `${many(shown[0].length, "positive anchor")} shown${state.object < 0 ? "" : ` of object ${state.object + 1}`}.`,
    facts: [...KINDS.map((kind, k) => count(`shown_${kind}`, `${kind}, shown`, shown[k].length)).filter((_, k) => state.kinds[k]),
      share("highest", "highest IoU of those shown", highest)],
    table: { head: ["level", ...kinds], rows, title: "Anchors of the whole picture" },
    note: note ? `Drawn: ${note}, evenly spaced; of the others all.` : "",
  };
}

function proposalNumbers(image) {
  const bests = coverage(image).map(({ best }) => best), { half, mean: average } = recalls(bests);
  const lost = bests.filter((best) => best < 0.5).length, entered = Math.min(state.K, image.rpn_scores.length);
  return {
    summary: `${many(proposals(image).length, "proposal")} of ${entered} kept; ${image.objects - lost} of ${many(image.objects, "object")} covered.`,
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
    facts: [count("detections", "detections", judged.length), count("right", "of these right", one.right), ...boxes,
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
    legend: () => [objectLine, [COLOURS.positive, "solid", "positive, with level and IoU"], [COLOURS.ignored, "dotted", "ignored"], [COLOURS.negative, "mixed", "negative"]] },
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
  document.getElementById("rules").textContent = `Frames: boxes are computed at ${WIDE} × ${TALL} pixels, which is what the network sees; masks at the picture's own ${WIDTH} × ${HEIGHT}. Kinds: a detection that gets no free object of its class is a duplicate if it lies on a taken one (IoU ${DATA.right} or more), of a wrong class if it lies on another, badly placed from IoU ${DATA.near} on, else false. A bad mask is right in class and box, with a mask IoU below ${DATA.right}. Mask probabilities are held in 256 steps.`;
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
  window.onhashchange = () => set(fromLink(location.hash));
  window.onresize = () => set({});
  matchMedia("(prefers-color-scheme: dark)").onchange = () => set({});
  set(fromLink(location.hash));
}).catch((error) => {
  document.getElementById("about").textContent = `This page cannot be shown here (${error}): a browser of 2023 or later is needed.`;
});
