"use strict";
// The rules: data, boxes, anchors, nms, masks, verdicts. What draws them is in explorer_draw.js, the rest of the page,
// numbers and controls with their `state`, in explorer_page.js; all three are one program.
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

/** Of boxes in the order of their scores, those that no better survivor overlaps by more than `most`. */
function nms(boxes, order, most, limit) {
  const survivors = [];
  for (const n of order) {
    if (survivors.some((better) => iou(boxes, better, boxes, n) > most)) continue;
    if (survivors.push(n) === limit) break;
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
    const survivors = nms(apart(image, order), order, state.nms, DATA.boxhead.post_nms);
    return survivors.filter((d) => image.scores[d] >= f32(state.score));
  });
}

/** Boxes of different classes moved apart, so that none overlap, as torchvision's batched_nms does; in float32, too. */
function apart(image, order) {
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
  for (let n = 0; n < CELLS * CELLS; n++) mask[CELLS + n] = (image.masks[d * CELLS * CELLS + n] + 0.5) / DATA.steps;
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
      const wrong = taken ? "duplicate" : most >= DATA.right ? "wrong class" : most >= DATA.near ? "badly placed" : "nothing there";
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
