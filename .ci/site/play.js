"use strict";
// Eq. 2 as gcutmix.blocks has it: maps are flat lists of whole numbers, row by row.
function blockScores(map, width, [bh, bw]) {
  const columns = width / bw, scores = new Array(map.length / (bh * bw)).fill(0);
  map.forEach((value, i) => {
    const row = Math.floor(i / width), column = i % width;
    scores[Math.floor(row / bh) * columns + Math.floor(column / bw)] += value;
  });
  return scores;
}

// 0 in the k blocks of the highest sums, 1 elsewhere; of equal sums the lower index first
function blockMask(map, width, k, [bh, bw]) {
  const scores = blockScores(map, width, [bh, bw]), columns = width / bw;
  const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
  const cut = new Set(order.slice(0, k));
  return map.map((_, i) => {
    const row = Math.floor(i / width), column = i % width;
    return cut.has(Math.floor(row / bh) * columns + Math.floor(column / bw)) ? 0 : 1;
  });
}

const data = JSON.parse(document.getElementById("play-data").textContent);
const branches = Object.keys(data.maps), cell = 8;
const $ = id => document.getElementById(id);
const state = { person: 0, k: data.k, block: data.block, partner: data.partners[0] };
const loaded = data.people.map(source => Object.assign(new Image(), { src: source }));

function make(tag, attributes, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// a canvas of the person's shape, with a title; `draw` gets its context
const panels = {};
function panel(name, title, branch) {
  const canvas = make("canvas", { width: data.width * cell, height: data.height * cell });
  canvas.setAttribute("role", "img");
  const caption = make("figcaption", {}, title);
  if (branch) caption.style.borderColor = data.colours[branch];
  $("panels").append(make("figure", { id: name }, canvas, caption));
  panels[name] = { canvas, title, context: canvas.getContext("2d") };
}

function say(name, words) { panels[name].canvas.setAttribute("aria-label", words); }

function drawPerson(context, person) {
  context.drawImage(loaded[person], 0, 0, data.width * cell, data.height * cell);
}

function eachCell(draw) {
  for (let i = 0; i < data.height * data.width; i++)
    draw(i, (i % data.width) * cell, Math.floor(i / data.width) * cell);
}

function drawHeat(context, map) {
  context.globalAlpha = .55;
  const highest = Math.max(...map, 1), shades = data.heat.length - 1;
  eachCell((i, x, y) => {
    context.fillStyle = data.heat[Math.round(map[i] / highest * shades)];
    context.fillRect(x, y, cell, cell);
  });
  context.globalAlpha = 1;
}

// the border of what is cut, with a white rim
function drawOutline(context, mask, colour) {
  const path = new Path2D();
  eachCell((i, x, y) => {
    if (x && mask[i] !== mask[i - 1]) { path.moveTo(x, y); path.lineTo(x, y + cell); }
    if (y && mask[i] !== mask[i - data.width]) { path.moveTo(x, y); path.lineTo(x + cell, y); }
    if (mask[i]) return;
    const right = (data.width - 1) * cell, bottom = (data.height - 1) * cell;
    if (!x) { path.moveTo(1, y); path.lineTo(1, y + cell); }
    if (!y) { path.moveTo(x, 1); path.lineTo(x + cell, 1); }
    if (x === right) { path.moveTo(x + cell - 1, y); path.lineTo(x + cell - 1, y + cell); }
    if (y === bottom) { path.moveTo(x, y + cell - 1); path.lineTo(x + cell, y + cell - 1); }
  });
  context.lineCap = "square";
  for (const [style, line] of [["white", 4], [colour, 2]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.stroke(path);
  }
}

// white is kept, dark is cut; the numbers are each block's share of the heat, in per cent
function drawMask(context, map, mask) {
  eachCell((i, x, y) => {
    context.fillStyle = mask[i] ? "#ffffff" : "#333333";
    context.fillRect(x, y, cell, cell);
  });
  const [bh, bw] = state.block, columns = data.width / bw;
  const scores = blockScores(map, data.width, state.block);
  const all = scores.reduce((a, b) => a + b, 0) || 1;
  context.strokeStyle = "#888888";
  context.lineWidth = .5;
  context.font = "10px sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  scores.forEach((score, i) => {
    const x = (i % columns) * bw * cell, y = Math.floor(i / columns) * bh * cell;
    context.strokeRect(x, y, bw * cell, bh * cell);
    if (bw < 2 || bh < 2) return; // too small for a number
    context.fillStyle = mask[y / cell * data.width + x / cell] ? "#333333" : "#ffffff";
    context.fillText(Math.round(100 * score / all), x + bw * cell / 2, y + bh * cell / 2);
  });
}

function drawSwap(context, mask) {
  drawPerson(context, state.person);
  eachCell((i, x, y) => {
    if (mask[i]) return;
    const image = loaded[state.partner];
    const sx = image.naturalWidth / data.width, sy = image.naturalHeight / data.height;
    context.drawImage(image, x / cell * sx, y / cell * sy, sx, sy, x, y, cell, cell);
  });
}

const name = person => `person ${person + 1}`;

function show() {
  const blocks = data.height * data.width / (state.block[0] * state.block[1]);
  const size = state.block.join("x"), masks = {};
  $("k").max = blocks;
  $("k").value = state.k;
  $("k-says").textContent = `${state.k} of ${blocks} blocks`;
  $("k").setAttribute("aria-valuetext", `${state.k} of ${blocks} blocks`);
  $("block-says").textContent = `${size} cells`;
  $("block").setAttribute("aria-valuetext", `${size} cells`);
  $("partner-says").textContent = name(state.partner);
  $("partner").setAttribute("aria-valuetext", name(state.partner));
  for (const branch of branches)
    masks[branch] = blockMask(data.maps[branch][state.person], data.width, state.k, state.block);

  drawPerson(panels.person.context, state.person);
  say("person", `The picture of ${name(state.person)}`);
  drawPerson(panels.lender.context, state.partner);
  drawOutline(panels.lender.context, masks[branches[0]], data.colours[branches[0]]);
  say("lender", `${name(state.partner)}, who lends the outlined blocks`);
  drawMask(panels.mask.context, data.maps[branches[0]][state.person], masks[branches[0]]);
  say("mask", `The mask: ${state.k} of ${blocks} blocks of ${size} cells are cut`);
  branches.forEach((branch, b) => {
    const { context } = panels[branch], map = data.maps[branch][state.person];
    drawPerson(context, state.person);
    drawHeat(context, map);
    drawOutline(context, masks[branch], data.colours[branch]);
    say(branch, `The heat map of ${branch} over ${name(state.person)}, its blocks outlined`);
    if (b + 1 === branches.length) return;
    const swap = `for-${branches[b + 1]}`;
    drawSwap(panels[swap].context, masks[branch]);
    drawOutline(panels[swap].context, masks[branch], data.colours[branch]);
    say(swap, `${name(state.person)} with those blocks of ${name(state.partner)}`);
  });
  showWords(masks);
  showLists();
}

function showWords(masks) {
  const map = data.maps[branches[0]][state.person], mask = masks[branches[0]];
  const sum = list => list.reduce((a, b) => a + b, 0);
  const share = part => `${Math.round(100 * part)}\u00a0%`;
  const inside = sum(map.filter((_, i) => !mask[i])) / (sum(map) || 1);
  const area = mask.filter(kept => !kept).length / mask.length;
  const size = state.block[0] * state.block[1];
  const common = (a, b) =>
    masks[a].filter((kept, i) => !kept && !masks[b][i]).length / size;
  const pairs = branches.slice(1).map((branch, i) =>
    `${branches[i]} and ${branch} share ${common(branches[i], branch)} of ${state.k} blocks`);
  $("says").textContent =
    `The cut blocks are ${share(area)} of the map and hold ${share(inside)} of G's heat. ` +
    `${pairs.join(", ")}.`;
}

function showLists() {
  $("lists").replaceChildren(...Object.entries(data.lists).map(([network, { index, right }]) => {
    const places = index[state.person].map((i, place) => {
      const ok = right[state.person][place], words = ok ? "same" : "other";
      const alt = `place ${place + 1}: ${words} person`;
      const image = make("img", { src: data.gallery[i], alt });
      const frame = ok ? `solid ${data.colours.right}` : `dashed ${data.colours.wrong}`;
      image.style.outline = `3px ${frame}`;
      return make("li", {}, image, make("span", {}, `${place + 1}: ${words}`));
    });
    return make("div", {}, make("h3", {}, network), make("ol", {}, ...places));
  }));
}

function setBlock(block) { // about the same share of the map
  const share = state.k * state.block[0] * state.block[1];
  state.block = block;
  state.k = Math.round(share / (block[0] * block[1]));
}

function setPerson(person) {
  state.person = person;
  setPartner(data.partners[person]);
}

function setPartner(partner) {
  state.partner = partner;
  $("partner").value = (partner - state.person + data.people.length) % data.people.length;
}

data.people.forEach((source, i) => {
  const radio = make("input", { type: "radio", name: "person", value: i, checked: !i });
  radio.addEventListener("change", () => { setPerson(i); show(); });
  $("people").append(make("label", {}, radio, make("img", { src: source, alt: name(i) })));
});
$("block").max = data.blocks.length - 1;
$("block").value = data.blocks.findIndex(block => `${block}` === `${data.block}`);
$("k").addEventListener("input", event => { state.k = +event.target.value; show(); });
$("block").addEventListener("input", event => {
  setBlock(data.blocks[event.target.value]);
  show();
});
$("partner").addEventListener("input", event => {
  state.partner = (state.person + +event.target.value) % data.people.length;
  show();
});
panel("person", "a person");
panel("G", "G looks here", "G");
panel("mask", "G's share of heat, %, and the mask");
panel("lender", "who lends the blocks");
panel("for-AC1", "swapped for AC1", "G");
panel("AC1", "AC1 looks here", "AC1");
panel("for-AC2", "swapped for AC2", "AC1");
panel("AC2", "AC2 looks here", "AC2");
Promise.all(loaded.map(image => image.decode())).then(() => {
  setPerson(0);
  show();
  $("play").dataset.ready = "yes";
});
