"use strict";
// How a stage looks: everything on a canvas. The rules are in explorer_rules.js.

/* ---- draw ------------------------------------------------------------------------------------------------------- */

const LINES = { solid: [], dashed: [9, 5], dotted: [2, 4], mixed: [9, 4, 2, 4] };
const COLOURS = DATA.colours;
const MOST_DRAWN = 60, MOST_NAMED = 12;  // ignored or negative anchors that are drawn, anchors that get a caption
const DIFFERENCE = { hit: "#009E73", false: "#D55E00", missed: "#0072B2" };
const SIGNS = { right: "✓", missed: "missed", "nothing there": "nothing", "wrong class": "class", "badly placed": "placed", duplicate: "twice", "bad mask": "mask" };

const classColour = (label) => DATA.class_colours[(label - 1) % DATA.class_colours.length];
const className = (label) => DATA.classes[label - 1];
const rgb = (colour) => [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
/** Whether white reads better on a colour than black, by the luminance that contrast is reckoned from. */
const isDark = (colour) => rgb(colour).reduce((sum, part, k) => sum + [0.2126, 0.7152, 0.0722][k] * (part / 255) ** 2.2, 0) < 0.18;

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
  const shown = anchorsShown(image).map((anchors) => [...anchors]), { best } = overlaps(image);
  for (const list of [shown[0], shown[1]]) list.sort((a, b) => best[a] - best[b]);
  const some = [shown[0], shown[1].slice(-MOST_DRAWN), spread(shown[2], MOST_DRAWN), spread(shown[3], MOST_DRAWN)];
  outline(panel, ANCHORS.boxes, some[3], "#ffffff", { line: "mixed", width: 1.1, alpha: 0.85 });
  outline(panel, ANCHORS.boxes, some[2], COLOURS.negative, { line: "mixed", width: 1.1, alpha: 0.85 });
  outline(panel, ANCHORS.boxes, some[1], COLOURS.ignored, { line: "dotted", width: 1.1, alpha: 0.85 });
  outline(panel, ANCHORS.boxes, some[0], COLOURS.positive, { width: 1.8 });
  drawTruth(panel, image);
  const name = (n) => `${DATA.anchors.levels[ANCHORS.level[n]]} ${best[n].toFixed(2)}`;
  for (const n of some[0].slice(-MOST_NAMED).reverse()) caption(panel, ANCHORS.boxes, n, name(n), COLOURS.positive);
  for (const n of some[1].slice(-MOST_NAMED / 2).reverse()) caption(panel, ANCHORS.boxes, n, name(n), COLOURS.ignored);
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
