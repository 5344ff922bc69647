"use strict";

// The server decides what is true of the source; this page draws, counts what it has drawn, and says when its picture is not live.

const SILENT_S = 2; // no answer from the program for this long: not live (ours)
const WINDOW_MS = 5000; // what the numbers are taken over
const OUTLINE = 128;

const at = (id) => document.getElementById(id);
const canvas = at("picture");
const context = canvas.getContext("2d", { alpha: false });
const layer = document.createElement("canvas"); // the classes alone
const layerContext = layer.getContext("2d");
let layerImage = null; // its pixels, used again for every frame

let setup = null; // session, title, classes, and limits, beyond which a picture is not live
let answer = { state: "waiting", message: "", note: "", quiet_s: 0, same_s: 0 }; // the server's last
let answeredAt = performance.now();
let drawnAt = answeredAt;
let picture = null; // what is on the canvas: header, bitmap, lengths, codes
let newest = null; // header of the last frame received
let after = 0; // serial of the newest frame received
let frozen = false;
let visible = true;
let missed = 0;
let samples = []; // of the last seconds: when, and latency in ms
const hidden = new Set();

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function follow() {
  let drawn = "nan";
  for (;;) {
    try {
      const buffer = await ask(`/next?after=${after}&drawn=${drawn}`);
      const [header, start] = readHeader(buffer);
      if (setup === null || header.session !== setup.session) {
        if (setup !== null) return location.reload(); // the program was started again
        setUp(JSON.parse(new TextDecoder().decode(await ask("/setup"))));
      }
      answer = header;
      answeredAt = performance.now();
      if (header.drawn_ms !== null) samples.push([answeredAt, header.drawn_ms]);
      drawn = "nan";
      if (header.serial !== undefined) {
        if (after > 0) missed += header.serial - after - 1;
        after = header.serial;
        newest = header;
        if (!frozen) {
          const received = await readPicture(header, buffer, start);
          if (!frozen) {
            show(received);
            drawn = header.captured_s;
          }
        }
      } else if (header.state === "ended" || header.state === "lost") {
        await sleep(1000);
      }
    } catch {
      drawn = "nan";
      await sleep(500);
    }
  }
}

async function ask(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!response.ok) throw new Error(await response.text());
  return response.arrayBuffer();
}

function readHeader(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  return [JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))), 4 + length];
}

async function readPicture(header, buffer, start) {
  const lengths = new Uint32Array(buffer, start, header.runs);
  const codes = new Uint8Array(buffer, start + 4 * header.runs, header.runs);
  const bitmap = await createImageBitmap(new Blob([new Uint8Array(buffer, start + 5 * header.runs)], { type: "image/jpeg" }));
  return { header, bitmap, lengths, codes };
}

function show(received) {
  if (picture !== null) picture.bitmap.close();
  picture = received;
  if (canvas.width !== picture.bitmap.width || canvas.height !== picture.bitmap.height) {
    for (const one of [canvas, layer]) [one.width, one.height] = [picture.bitmap.width, picture.bitmap.height];
    layerImage = layerContext.createImageData(layer.width, layer.height);
    at("stage").style.setProperty("--shape", `${canvas.width} / ${canvas.height}`);
  }
  draw();
  drawnAt = performance.now();
}

function draw() {
  if (picture === null) return;
  context.drawImage(picture.bitmap, 0, 0);
  if (!visible) return;
  const colors = palette();
  const pixels = new Uint32Array(layerImage.data.buffer);
  let place = 0;
  picture.lengths.forEach((length, run) => {
    pixels.fill(colors[picture.codes[run]], place, place + length);
    place += length;
  });
  layerContext.putImageData(layerImage, 0, 0);
  context.drawImage(layer, 0, 0);
}

function palette() {
  const colors = new Uint32Array(256); // red in the lowest byte, opacity in the highest
  for (const { id, color } of setup.classes) {
    if (hidden.has(id)) continue;
    const [red, green, blue] = color;
    const tint = red | (green << 8) | (blue << 16);
    colors[id] = tint | (Math.round(2.55 * at("opacity").value) << 24);
    colors[id + OUTLINE] = tint | (255 << 24);
  }
  return colors;
}

// Words and numbers

function setUp(content) {
  setup = content;
  at("title").textContent = document.title = setup.title;
  setup.classes.forEach((one, place) => {
    const row = document.createElement("label");
    row.className = "class absent";
    row.id = `class-${one.id}`;
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(one.id);
      else hidden.add(one.id);
      sayUndrawn();
    });
    row.append(box, ...["swatch", "name", "area"].map((kind) => Object.assign(document.createElement("span"), { className: kind })));
    row.querySelector(".swatch").style.backgroundColor = `rgb(${one.color.join(" ")})`;
    row.querySelector(".name").textContent = one.name;
    if (place < 9) {
      const key = Object.assign(document.createElement("kbd"), { textContent: String(place + 1) });
      row.querySelector(".name").after(key);
    }
    at("classes").append(row);
  });
}

function warning(now) {
  // What is wrong, most serious first: the words, a detail that changes all the time, and whether it is an alarm.
  const silent = (now - answeredAt) / 1000;
  const quiet = answer.quiet_s + silent;
  const undrawn = frozen ? 0 : (now - drawnAt) / 1000;
  if (answer.state === "lost") return ["Source lost.", answer.message, "alarm"];
  if (answer.state === "ended") return ["The end.", `${answer.message}; the last picture stays.`, "notice"];
  if (silent > SILENT_S) return ["Not live.", `No answer from the program for ${silent.toFixed(1)} s`, "alarm"];
  if (answer.state === "waiting") return ["Waiting for the first frame.", `${quiet.toFixed(0)} s`, "notice"];
  if (Math.max(quiet, undrawn) > setup.limits.quiet_s) return ["Not live.", `No new frame for ${Math.max(quiet, undrawn).toFixed(1)} s`, "alarm"];
  if (answer.same_s > setup.limits.same_s) return ["Not live?", `The source repeats the same picture for ${answer.same_s.toFixed(1)} s`, "alarm"];
  const last = samples.length ? samples[samples.length - 1][1] : 0;
  if (!frozen && last > setup.limits.behind_ms) return ["Late.", `The picture is ${(last / 1000).toFixed(1)} s behind`, "alarm"];
  return null;
}

function setText(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text; // an alarm is read out once, not ten times a second
}

function watch() {
  const problem = warning(performance.now());
  at("banner").hidden = problem === null;
  document.body.classList.toggle("stale", problem !== null && picture !== null && problem[0] !== "Late.");
  if (problem !== null) {
    setText("warning", problem[0]);
    setText("detail", problem[1]);
    at("banner").dataset.kind = problem[2];
  }
  const ended = answer.state === "ended" || answer.state === "waiting" ? answer.state : null;
  const state = ended ?? (problem !== null ? "not live" : frozen ? "frozen" : "live");
  at("lamp").dataset.state = state;
  setText("lamp", state.toUpperCase());
}

function count() {
  const now = performance.now();
  samples = samples.filter(([when]) => now - when < WINDOW_MS);
  const sorted = samples.map(([, latency]) => latency).sort((a, b) => a - b);
  for (const [id, share] of [["p50", 0.5], ["p95", 0.95]]) {
    const value = sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
    setText(id, value === undefined ? "–" : `${value.toFixed(0)} ms`);
    at(id).classList.toggle("late", setup !== null && value > setup.limits.behind_ms / 2);
  }
  setText("rate", samples.length > 1 ? ((1000 * (samples.length - 1)) / (now - samples[0][0])).toFixed(1) : "–");
  setText("note", answer.note);
  if (newest === null) return;
  setText("dropped", String(newest.dropped));
  setText("delay", newest.delay_ms > 0 ? `By smoothing the mask lags ${newest.delay_ms.toFixed(0)} ms more.` : "");
  at("alert").hidden = newest.alert === ""; // of the source, even where the picture is frozen
  setText("alert-detail", newest.alert);
  setText("missed", missed > 0 ? `${missed} more not drawn here: this browser was slower than the source.` : "");
  if (picture === null) return;
  const { presence, areas } = picture.header; // of what is on show, frozen or not
  setText("presence", presence === null ? "" : `tissue present ${(100 * presence).toFixed(0)} %`);
  for (const one of setup.classes) {
    const row = at(`class-${one.id}`);
    const area = areas[one.name];
    row.classList.toggle("absent", area === 0);
    row.querySelector(".area").textContent = area === 0 ? "absent" : area < 0.001 ? "< 0.1 %" : `${(100 * area).toFixed(1)} %`;
  }
}

// Controls

function setFrozen(value) {
  frozen = value;
  if (!frozen) after = 0; // the newest once more: while frozen it was not drawn
  drawnAt = performance.now();
  at("stage").classList.toggle("frozen", frozen);
  at("freeze").setAttribute("aria-pressed", String(frozen));
  at("freeze").firstChild.textContent = frozen ? "Back to live " : "Freeze ";
  at("frozen").hidden = !frozen;
  setText("frozen-at", `since ${new Date().toLocaleTimeString()}`);
  watch();
}

function setVisible(value) {
  visible = value;
  at("overlay").setAttribute("aria-pressed", String(!visible));
  at("overlay").firstChild.textContent = visible ? "Hide overlay " : "Show overlay ";
  sayUndrawn();
}

function sayUndrawn() {
  const names = setup.classes.filter(({ id }) => hidden.has(id)).map(({ name }) => name);
  at("undrawn").hidden = visible && names.length === 0;
  setText("undrawn", `Not drawn: ${visible ? names.join(", ") : "the overlay"}`);
  draw();
}

function saveSnapshot() {
  if (picture === null) return;
  const name = `spinevision-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.png`;
  canvas.toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

function setOpacity(value) {
  at("opacity").value = value;
  setText("opacity-value", `${at("opacity").value} %`);
  draw();
}

async function toggleFull() {
  if (document.fullscreenElement) await document.exitFullscreen();
  else await at("stage").requestFullscreen();
}

const keys = {
  " ": () => setFrozen(!frozen),
  s: saveSnapshot,
  f: () => at("full").click(),
  o: () => setVisible(!visible),
  "+": () => setOpacity(Number(at("opacity").value) + 10),
  "-": () => setOpacity(Number(at("opacity").value) - 10),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || setup === null) return;
  const act = keys[event.key.toLowerCase()];
  const box = /^[1-9]$/.test(event.key) ? at("classes").querySelectorAll("input")[Number(event.key) - 1] : undefined;
  if (act === undefined && box === undefined) return;
  if (event.key === " " && ["BUTTON", "INPUT"].includes(event.target.tagName) && event.target.type !== "range") return; // its own key
  event.preventDefault();
  if (box !== undefined) box.click();
  else act();
});
at("freeze").addEventListener("click", () => setFrozen(!frozen));
at("overlay").addEventListener("click", () => setVisible(!visible));
at("snapshot").addEventListener("click", saveSnapshot);
at("full").addEventListener("click", toggleFull);
at("full").hidden = !document.fullscreenEnabled; // some telephones
at("opacity").addEventListener("input", (event) => setOpacity(event.target.value));

setInterval(watch, 100);
setInterval(count, 250);
follow();
