"use strict";
// Examples are put on the screen as text and attributes, never as HTML: models wrote them.

const PAGE = 100; // rows of the list on the screen at a time
const COLOURS = 8; // classes c0 to c7 of the style sheet
const ASKED = "q"; // before the numbers of the question's objects, which are not the answers' ones
const SMALL = 64; // pixels; pictures up to this are enlarged by whole pixels

const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("list");
const form = document.getElementById("choice");
const dialog = document.getElementById("example");
const tiles = document.getElementById("tiles");
const featured = data.gallery.map(({ card }) => data.views[0].cards[card]);

let view; // what is looked through
let shown = []; // its cards that were chosen, in order
let at = 0; // which of those is the current one
let opened = { cards: [], at: 0 }; // what the dialog goes through, and where it is
let answerAt = 0; // which answer's boxes are drawn
let withTokens = false;

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "text", "image"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function plain(pieces) {
  const words = pieces.map(piece => (typeof piece === "string" ? piece : piece[1])).join(" ");
  return words.replace(/\s+/g, " ").replace(/ (?=[.,;:?!])/g, "");
}

function current() {
  return opened.cards[opened.at];
}

// The gallery -------------------------------------------------------------------------------------

function drawGallery() {
  const { cards, spread } = data.views[0];
  tiles.replaceChildren(...data.gallery.map((chosen, i) => make("li", {}, tile(chosen, i))));
  const answers = data.gallery.map(({ drawn }, i) => featured[i].answers[drawn]);
  const names = new Set(answers.map(answer => answer?.name));
  const whose = names.size === 1 && cards[0].answers.length > 1 ? ` of ${[...names]}` : "";
  const covered = spread.map(facet => facet.toLowerCase()).join(" and ");
  const legend = [make("span", { class: "truth" }, "true box")];
  if (answers.some(answer => answer?.box)) {
    legend.push(make("span", { class: "answer" }, `answer${whose}`));
  }
  if (answers.some(answer => answer?.places?.length)) {
    legend.push(make("span", { class: "thought" }, "objects of its text"));
  }
  document.getElementById("chosen").append(
    ...legend,
    make("i", {}, `${featured.length} of ${cards.length} examples, picked across ${covered}, not in proportion`),
  );
  document.getElementById("gallery").hidden = false;
}

function tile({ subject, badge, drawn }, place) {
  const card = featured[place];
  const answer = card.answers[drawn];
  const sign = { good: "✓ ", bad: "✗ " }[answer && result(answer)] ?? "";
  const pictures = make("span", { class: "pictures", "aria-hidden": "true" });
  const columns = card.images.length > 3 ? Math.ceil(card.images.length / 2) : card.images.length;
  pictures.style.setProperty("--columns", columns);
  pictures.append(...card.images.map((picture, i) => thumbnail(picture, i + 1, card.truth, answer)));
  const button = make(
    "button",
    { type: "button", class: "tile", title: card.title },
    pictures,
    make("span", { class: "subject" }, subject),
    make("span", { class: `badge ${answer ? result(answer) : ""}` }, sign + badge),
    make("span", { class: "question" }, plain(card.question).slice(0, 300)),
  );
  button.onclick = () => show(place, featured);
  return button;
}

function thumbnail(picture, number, truth, answer) {
  const { width, height, problem } = data.pictures[picture];
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, class: problem ? "unread" : "" });
  svg.append(make("rect", { class: "frame", width: "100%", height: "100%" }), ...pixels(picture));
  const draw = ([image, ...box], kind) => {
    if (image === number) svg.append(make("rect", { class: kind, ...sides(box) }));
  };
  for (const [object, ...box] of answer?.places ?? []) {
    if (`${box}` !== `${answer.box}`) draw(box, `thought c${object % COLOURS}`);
  }
  if (answer?.box) draw(answer.box, "answer");
  for (const box of truth) draw(box, "truth");
  return svg;
}

// Choosing ----------------------------------------------------------------------------------------

function select(name, label, options) {
  const choices = options.map(([value, text]) => make("option", { value }, text));
  return make("label", {}, `${label} `, make("select", { name }, ...choices));
}

function choose(chosen) {
  view = chosen;
  for (const button of document.getElementById("views").children) {
    button.setAttribute("aria-pressed", button.textContent === view.name);
  }
  const search = make("input", { type: "search", name: "search", autocomplete: "off" });
  form.replaceChildren(make("label", {}, "Search ", search));
  view.facets.forEach(([name, values], i) => {
    const present = new Set(view.cards.flatMap(card => card.facets[i]));
    if (present.size < 2) return;
    const options = values.map((text, j) => [j, text]).filter(([j]) => present.has(j));
    form.append(select(`facet-${i}`, name, [["", "all"], ...options]));
  });
  if (view.orders.length) {
    const orders = view.orders.map((name, i) => [i, name]);
    form.append(select("order", "Sort by", orders));
    if (view.differences) form.append(select("minus", "minus", [["", "–"], ...orders.slice(1)]));
    const box = make("input", { type: "checkbox", name: "descending" });
    form.append(make("label", {}, box, " largest first"));
  }
  apply();
}

function searched(card) {
  card.searched ??= [card.title, plain(card.question)]
    .concat(card.answers.map(answer => `${answer.said} ${plain(answer.pieces ?? [])}`))
    .join(" ")
    .toLowerCase();
  return card.searched;
}

function apply() {
  const chosen = Object.fromEntries(new FormData(form));
  const words = chosen.search.toLowerCase();
  const wanted = Object.entries(chosen)
    .filter(([name, value]) => name.startsWith("facet-") && value)
    .map(([name, value]) => [Number(name.slice(6)), Number(value)]);
  shown = view.cards.filter(
    card =>
      wanted.every(([facet, value]) => card.facets[facet].includes(value)) &&
      (!words || searched(card).includes(words)),
  );
  if (chosen.order) {
    const value = card => {
      const parts = [card.numbers[chosen.order]];
      if (chosen.minus) parts.push(card.numbers[chosen.minus]);
      return parts.includes(null) ? null : parts[0] - (parts[1] ?? 0);
    };
    const sign = chosen.descending ? -1 : 1;
    shown = shown
      .map(card => [value(card), card])
      .sort(([a], [b]) => (a === null) - (b === null) || sign * (a - b)) // unknown ones last
      .map(([, card]) => card);
  }
  at = 0;
  drawList();
}

// The list ----------------------------------------------------------------------------------------

function drawList() {
  const first = at - (at % PAGE);
  const cards = shown.slice(first, first + PAGE);
  const names = cards.map(card => JSON.stringify(card.answers.map(answer => answer.name)));
  const rows = cards.map((card, i) => make("li", {}, row(card, first + i)));
  if (cards.length && new Set(names).size === 1 && cards[0].answers.length < COLOURS) {
    const titles = cards[0].answers.map(a => make("span", { class: "mark" }, a.name));
    const head = make("span", { class: "row head", "aria-hidden": "true" }, make("span"));
    head.append(make("span", { class: "marks" }, ...titles));
    rows.unshift(make("li", { role: "presentation" }, head));
  }
  const answers = cards.flatMap(card => card.answers);
  const width = texts => Math.max(1, ...texts.map(text => text.length));
  const title = width(cards.map(card => card.title));
  const mark = width(answers.map(answer => answer.mark));
  const named = rows.length > cards.length ? width(answers.map(answer => answer.name)) : 0;
  list.style.setProperty("--title", `${Math.min(title + 1, 36)}ch`);
  list.style.setProperty("--mark", `${Math.max(mark, Math.min(named, 12)) + 1}ch`);
  list.classList.toggle("many", cards.some(card => card.answers.length > 3));
  list.replaceChildren(...rows);
  const range = shown.length ? `${first + 1}–${first + cards.length} of ${shown.length}` : "none";
  document.getElementById("count").textContent = `${range}, of ${view.cards.length} in all`;
  document.getElementById("back").disabled = first === 0;
  document.getElementById("forth").disabled = first + PAGE >= shown.length;
}

function row(card, place) {
  const marks = card.answers.map(answer => {
    const label = `${answer.name}: ${answer.said}`;
    return make("span", { class: `mark ${result(answer)}`, title: label }, answer.mark);
  });
  const button = make("button", { type: "button", class: "row", "data-at": place });
  button.append(
    make("span", { class: "where" }, card.title),
    make("span", { class: "marks" }, ...marks),
    make("span", { class: "question" }, plain(card.question).slice(0, 300)),
  );
  button.onclick = () => show(place);
  button.onfocus = () => (at = place);
  return button;
}

function result(answer) {
  return answer.good === null ? "" : answer.good ? "good" : "bad";
}

function turn(pages) {
  at = Math.min(Math.max(at - (at % PAGE) + pages * PAGE, 0), Math.max(shown.length - 1, 0));
  drawList();
}

function focusRow() {
  list.querySelector(`[data-at="${at}"]`)?.focus();
}

function move(step) {
  if (dialog.open) {
    if (opened.cards[opened.at + step]) show(opened.at + step, opened.cards);
    return;
  }
  const tile = document.activeElement.closest("#tiles li");
  if (tile) {
    tiles.children[[...tiles.children].indexOf(tile) + step]?.firstChild.focus();
    return;
  }
  const next = Math.min(Math.max(at + step, 0), shown.length - 1);
  if (next < 0) return;
  if (list.contains(document.activeElement)) {
    const turned = Math.floor(next / PAGE) !== Math.floor(at / PAGE);
    at = next;
    if (turned) drawList();
  }
  focusRow();
}

// An example --------------------------------------------------------------------------------------

function show(place, cards = shown) {
  opened = { cards, at: place };
  if (cards === shown) at = place;
  answerAt = cards === featured ? data.gallery[place].drawn : 0;
  const card = current();
  const button = (label, text, action) => {
    const made = make("button", { type: "button", "aria-label": label, title: label }, text);
    made.onclick = action;
    return made;
  };
  const raw = make("input", { type: "checkbox" });
  raw.checked = withTokens;
  raw.onchange = () => {
    withTokens = raw.checked;
    dialog.classList.toggle("raw", withTokens);
  };
  dialog.classList.toggle("raw", withTokens);
  const title = make("h2", { id: "title", tabindex: "-1" }, card.title);
  dialog.replaceChildren(
    make(
      "header",
      {},
      title,
      make("span", { class: "place" }, `${place + 1} of ${cards.length}`),
      button("Example before (k)", "‹", () => move(-1)),
      button("Next example (j)", "›", () => move(1)),
      button("Close (Escape)", "✕", () => dialog.close()),
    ),
    make("p", { class: "question" }, ...coloured(card.question, ASKED)),
    make("div", { class: "strip" }, ...card.images.map(figure)),
    make(
      "p",
      { class: "legend" },
      ...(card.asked.length ? [make("span", { class: "asked" }, "of the question")] : []),
      make("span", { class: "truth" }, "truth"),
      make("span", { class: "answer" }, "answer"),
      make("span", { class: "thought" }, "objects of the text, each in its colour"),
      make("label", {}, raw, " show tokens"),
    ),
    ...card.answers.map(said),
  );
  drawBoxes();
  if (!dialog.open) {
    document.activeElement.blur(); // else closing would go back to that row, not to the last shown
    dialog.showModal();
  }
  dialog.scrollTop = 0;
  title.focus();
}

function figure(picture, i) {
  const { path, width, height, problem } = data.pictures[picture];
  const svg = make("svg", { role: "group", "aria-label": `Image-${i + 1} with boxes` });
  svg.style.setProperty("--ratio", width / height);
  svg.append(...pixels(picture));
  const caption = make("figcaption", { title: path }, make("b", {}, `Image-${i + 1}`), ` ${path}`);
  const reason = problem ? [make("p", { class: "problem" }, problem)] : [];
  return make("figure", {}, svg, caption, ...reason);
}

function pixels(picture) {
  const { width, height } = data.pictures[picture];
  const held = document.getElementById(`picture-${picture}`); // most come later than this script
  if (!held) return [];
  const href = `data:image/webp;base64,${held.textContent}`;
  const fit = { width: "100%", height: "100%", preserveAspectRatio: "none" };
  return [make("image", { href, class: Math.max(width, height) <= SMALL ? "small" : "", ...fit })];
}

function share(value) {
  return `${100 * value}%`;
}

function sides([x, y, width, height]) {
  return { x: share(x), y: share(y), width: share(width), height: share(height) };
}

function said(answer, i) {
  const head = make("button", { type: "button", class: "said" }, make("b", {}, answer.name));
  head.append(` ${answer.said}`);
  head.onclick = () => drawBoxes(i);
  const text = answer.pieces ? coloured(answer.pieces) : [make("i", {}, "no response")];
  const made = make("article", { class: result(answer) }, head, make("div", { class: "text" }, ...text));
  made.dataset.answer = i;
  made.addEventListener("focusin", () => drawBoxes(i));
  return made;
}

function coloured(pieces, prefix = "") {
  let before = null;
  return pieces.map(piece => {
    if (typeof piece === "string") {
      before = null;
      return piece;
    }
    const [kind, content, object] = piece;
    const [start, end] = data.tokens[kind];
    const token = text => make("span", { class: "token" }, text);
    const made = make("span", { class: `part ${kind}` }, token(start), content, token(end));
    if (object >= 0) {
      made.classList.add(prefix ? "asked" : `c${object % COLOURS}`);
      made.dataset.object = prefix + object;
      if (object !== before) made.tabIndex = 0; // once for a mention's id, name and box
    }
    before = object;
    return made;
  });
}

function drawBoxes(chosen = answerAt) {
  answerAt = chosen;
  const card = current();
  const pictures = [...dialog.querySelectorAll("svg")];
  for (const svg of pictures) svg.querySelectorAll("rect, text").forEach(old => old.remove());
  const draw = ([image, x, y, width, height], kind, label, object) => {
    const svg = pictures[image - 1];
    if (!svg) return;
    const place = sides([x, y, width, height]);
    const rect = make("rect", { class: kind, role: "img", "aria-label": label, ...place });
    if (object !== undefined) {
      rect.dataset.object = object;
      rect.setAttribute("tabindex", "0");
    }
    svg.append(rect);
    if (kind === "truth" || kind === "other") return;
    // Names run towards the middle of the picture: those of objects inside their boxes at the
    // top, that of the answer below its box, where there is room.
    const right = x + width / 2 > 0.5;
    const corner = {
      x: share(right ? x + width : x),
      y: share(object !== undefined ? y : y + height),
      dx: right ? -4 : 4,
      dy: object === undefined && y + height > 0.92 ? -6 : 14,
      "text-anchor": right ? "end" : "start",
    };
    svg.append(make("text", { class: kind, ...corner }, label));
  };
  for (const [object, ...box] of card.asked) draw(box, "asked", "asked", ASKED + object);
  for (const box of card.truth) draw(box, "truth", "truth");
  card.answers.forEach((answer, i) => {
    if (answer.box && i !== answerAt) draw(answer.box, "other", answer.name);
  });
  const answer = card.answers[answerAt];
  const objects = answer?.places ?? [];
  if (answer?.box) draw(answer.box, "answer", card.answers.length > 1 ? answer.name : "answer");
  for (const [object, ...box] of objects) {
    const name = answer.names[object] || `object ${object + 1}`;
    draw(box, `thought c${object % COLOURS}`, name, object);
  }
  for (const article of dialog.querySelectorAll("article")) {
    const current = Number(article.dataset.answer) === answerAt;
    article.classList.toggle("current", current);
    article.querySelector("button").setAttribute("aria-pressed", current);
  }
}

// An object lights up in the text and in the pictures alike.
function light(event) {
  const object = event.target.closest?.("[data-object]");
  const article = object?.closest("article");
  for (const lit of dialog.querySelectorAll(".lit")) lit.classList.remove("lit");
  if (!object || (article && Number(article.dataset.answer) !== answerAt)) return;
  const twins = `[data-object="${object.dataset.object}"]`;
  for (const twin of dialog.querySelectorAll(`svg ${twins}, .question ${twins}, article.current ${twins}`)) {
    twin.classList.add("lit");
  }
}

// Events ------------------------------------------------------------------------------------------

dialog.addEventListener("mouseover", light);
dialog.addEventListener("focusin", light);
dialog.addEventListener("close", () => {
  if (opened.cards === featured) {
    tiles.children[opened.at].firstChild.focus();
    return;
  }
  drawList();
  focusRow();
});
form.addEventListener("input", apply);
form.addEventListener("submit", event => event.preventDefault());
document.getElementById("back").onclick = () => turn(-1);
document.getElementById("forth").onclick = () => turn(1);

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("select, input:not([type=checkbox])")) {
    if (event.key !== "Enter") return;
    focusRow();
    event.preventDefault(); // else the key would open that row
    return;
  }
  const { key } = event;
  const inList = list.contains(event.target);
  const inGallery = tiles.contains(event.target);
  const across = dialog.open || inGallery; // from left to right; the list from top to bottom
  if (key === "j" || (across ? key === "ArrowRight" : inList && key === "ArrowDown")) move(1);
  else if (key === "k" || (across ? key === "ArrowLeft" : inList && key === "ArrowUp")) move(-1);
  else if (key === "o" && inGallery) event.target.click();
  else if (key === "o" && !dialog.open && shown.length) show(at);
  else if (key === "/" && !dialog.open) form.querySelector("input").focus();
  else if (dialog.open && current().answers[Number(key) - 1]) drawBoxes(Number(key) - 1);
  else return;
  event.preventDefault();
});

// A large file's pictures may still be on their way when an example is opened.
document.addEventListener("DOMContentLoaded", () => {
  if (!dialog.open) return;
  dialog.querySelector(".strip").replaceChildren(...current().images.map(figure));
  drawBoxes();
});

if (featured.length) drawGallery();
if (data.views.length) {
  const views = data.views.map(each => {
    const button = make("button", { type: "button" }, each.name);
    button.onclick = () => choose(each);
    return button;
  });
  if (views.length > 1) document.getElementById("views").append(...views);
  document.getElementById("browser").hidden = false;
  choose(data.views[0]);
}
