// limpid: a report of explanations as one HTML file that needs no network: heat maps over an image or coloured tokens of
// a text, and where every token looks, by layer and head, under the mouse; and their numbers as CSV.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limpid/io/image.hpp>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace report {

using limpid::Index, limpid::Mat;

inline std::string base64(const std::vector<std::uint8_t>& bytes) {
  constexpr char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t left = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t word = 0;
    for (std::size_t k = 0; k < 3; ++k) word = word << 8 | (k < left ? bytes[i + k] : 0u);
    for (std::size_t k = 0; k < 4; ++k) out += k <= left ? letters[word >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

/// What one method says: a number for every patch or token.
struct Heat {
  std::string name, about, remark;
  std::vector<float> values;
  double milliseconds = 0, mib = -1;  ///< less than 0: not known
};

/// Of every layer, head and token the keys that get most, at most `each` of them: that many tokens are shown.
class Looks {
 public:
  Looks(Index layers, Index heads, Index tokens)
      : layers_(layers), heads_(heads), tokens_(tokens), each_(std::min<Index>(tokens, tokens <= 64 ? 64 : 16)) {}
  Index each() const { return each_; }
  /// The rows of one head, layers and heads in order: keys and weights n x each.
  void add(const Mat<Index>& keys, const Mat<float>& weights) {
    for (Index i = 0; i < tokens_; ++i) {
      const float most = std::max(weights.row(i).maxCoeff(), 1e-30f);
      put(most * 65535);
      for (Index r = 0; r < each_; ++r) {
        put(static_cast<float>(keys(i, r)));
        bytes_.push_back(static_cast<std::uint8_t>(std::lround(255 * std::clamp(weights(i, r) / most, 0.0f, 1.0f))));
      }
    }
  }
  nlohmann::json json() const {
    return {{"layers", layers_}, {"heads", heads_}, {"tokens", tokens_}, {"each", each_}, {"bytes", base64(bytes_)}};
  }

 private:
  void put(float value) {
    const auto word = static_cast<std::uint32_t>(std::lround(std::clamp(value, 0.0f, 65535.0f)));
    bytes_.push_back(static_cast<std::uint8_t>(word & 255)), bytes_.push_back(static_cast<std::uint8_t>(word >> 8));
  }
  Index layers_, heads_, tokens_, each_;
  std::vector<std::uint8_t> bytes_;
};

/// A token of a text as it is shown; note: a small number behind it; joined: no space before it.
struct Token {
  std::string text, note{};
  bool joined = false;
};
/// Tokens one after another, of a part of the text with looks of its own; a part may have several lines.
struct Line {
  std::string name;
  std::size_t part = 0;
  std::vector<Token> tokens{};
};

/// Of an image, which image and the three numbers behind it describe, or of a text, which lines and framed do.
struct Report {
  std::string title, answer;
  std::string more, less;  ///< what orange and blue stand for
  limpid::io::Image image;
  Index rows = 0, cols = 0, before = 1;  ///< of patches; tokens before them
  std::vector<Line> lines;
  std::vector<Index> framed;            ///< tokens that are asked about
  std::string hint;                     ///< what a layer or head is known for
  Index layer = 0, head = 0, unit = 0;  ///< what is looked at first
  std::vector<Heat> heats;
  std::vector<nlohmann::json> looks;              ///< of every part
  std::vector<std::array<std::string, 2>> facts;  ///< name and value

  /// Of a patch or token, counted through all lines.
  std::string name_of(Index unit_number) const {
    if (lines.empty()) return "patch " + std::to_string(unit_number / cols) + ", " + std::to_string(unit_number % cols);
    auto at = static_cast<std::size_t>(unit_number), number = at;
    for (std::size_t l = 0; l < lines.size(); ++l) {
      if (l > 0 && lines[l].part != lines[l - 1].part) number = at;
      if (at < lines[l].tokens.size())
        return (lines.back().part > 0 ? lines[l].name + ", " : "") + "token " + std::to_string(number) + " '" +
               lines[l].tokens[at].text + "'";
      at -= lines[l].tokens.size();
    }
    return "";
  }
};

/// The page; %DATA% is replaced. Colours: orange and blue, which people who cannot tell red from green tell apart; the
/// more opaque, the more.
inline constexpr const char* page = R"html(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>limpid: an explanation</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 24px; color: #222; background: #fff; max-width: 1232px; }
h1 { font-size: 20px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 26px 0 4px; }
p { margin: 4px 0 10px; color: #555; } #answer { white-space: pre-line; overflow-wrap: anywhere; } small { font-size: 12px; color: #666; }
.legend { display: flex; align-items: center; gap: 10px; margin: 4px 0 12px; font-size: 13px; }
.bar { width: 160px; height: 14px; background: linear-gradient(to right, rgba(33,102,172,.85), #fff, rgba(230,97,1,.85)); border: 1px solid #ccc; }
.pictures { display: flex; flex-wrap: wrap; gap: 14px; }
figure { margin: 0; width: 196px; } figcaption { font-size: 13px; } figcaption small { display: block; }
canvas { image-rendering: pixelated; width: 196px; display: block; background: #eee; cursor: crosshair; }
canvas#look { width: 392px; } .row { display: flex; gap: 26px; align-items: flex-start; }
.method { display: grid; grid-template-columns: 360px 1fr; gap: 20px; padding: 7px 0 4px; border-top: 1px solid #e4e4e4; }
.method small { line-height: 1.3; } .method div > small { display: block; } .method b small { font-weight: normal; margin-left: 6px; }
.line { display: flex; gap: 12px; margin: 0 0 4px; } .line > small { flex: 0 0 66px; white-space: nowrap; text-align: right; padding-top: 5px; }
.flow { line-height: 26px; }
.token { display: inline-block; line-height: 21px; padding: 0 2px; margin: 0 0 0 4px; border: 1px solid transparent; border-radius: 3px; cursor: default; }
.token.joined { margin-left: 0; } .token.joined, .token.mark { font-size: 14px; } .token.mark { color: #555; font-size: 11px; }
.token.framed { border-color: #222; border-style: dashed; } .token.kept { border: 2px solid #000; padding: 0 1px; line-height: 19px; }
.token sub { font-size: 9px; margin-left: 1px; vertical-align: -4px; line-height: 0; }
div#look { flex: 1 1 auto; max-width: 750px; } div#look .token { cursor: pointer; } #controls { flex: 0 0 440px; } td:first-child { white-space: nowrap; }
label { display: block; margin: 6px 0; } input[type=range] { width: 240px; vertical-align: middle; }
table { border-collapse: collapse; font-size: 13px; } td { padding: 1px 12px 1px 0; vertical-align: top; }
#says { font-variant-numeric: tabular-nums; min-height: 3em; }
</style></head><body>
<h1 id="title"></h1><p id="answer"></p>
<h2>What each method says</h2>
<div class="legend"><span id="less"></span><div class="bar"></div><span id="more"></span></div>
<p id="scale"></p>
<div id="maps"></div>
<h2>Where a token looks</h2>
<p id="how"></p>
<div class="row"><div id="place"></div><div id="controls">
<label>layer <input type="range" id="layer" min="0" value="0"> <span id="layername"></span></label>
<label>head <input type="range" id="head" min="0" value="0"> <span id="headname"></span></label>
<label id="class"><input type="checkbox" id="first"> the class token, in place of a patch</label>
<p id="says"></p><table id="facts"></table></div></div>
<script>
const data = %DATA%;
const $ = id => document.getElementById(id);
const make = (tag, parent, text, kind) => {
  const e = parent.appendChild(document.createElement(tag));
  if (text) e.textContent = text;
  if (kind) e.className = kind;
  return e;
};
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const looks = data.looks.map(l => ({ ...l, bytes: bytes(l.bytes) })), { layers, heads } = looks[0];
const { image, rows, cols } = data, pixels = image && bytes(image.bytes);
$('title').textContent = data.title; $('answer').textContent = data.answer;
$('less').textContent = data.less; $('more').textContent = data.more;

// What is shown: patches of an image or tokens of a text, and which token of which part each is.
const units = [], unitOf = looks.map(() => []);
if (image) {
  for (let p = 0; p < rows * cols; ++p)
    units.push({ part: 0, token: data.before + p, name: `(${Math.floor(p / cols)}, ${p % cols})`, called: `Patch ${Math.floor(p / cols)}, ${p % cols}` });
} else {
  data.lines.forEach((line, l) => line.tokens.forEach(t => {
    const token = units.filter(u => u.part === line.part).length, name = `“${t.text}”` + (t.note ? ` (atom ${t.note})` : '');
    units.push({ part: line.part, line: l, token, name, called: `Token ${token}, ${name},`, ...t });
  }));
}
units.forEach((u, i) => { unitOf[u.part][u.token] = i; });

const opacity = (v, most) => 0.85 * Math.abs(v) / most;
const colour = (v, most) => (v >= 0 ? 'rgba(230,97,1,' : 'rgba(33,102,172,') + opacity(v, most) + ')';
const largest = values => Math.max(...values.map(Math.abs), 1e-30);

const size = image && Math.max(1, Math.round(392 / image.cols));
function paintImage(canvas, values, marked) { // over the image in grey
  canvas.width = image.cols * size; canvas.height = image.rows * size;
  const c = canvas.getContext('2d'), n = image.cols, w = canvas.width / cols, h = canvas.height / rows, most = largest(values);
  for (let i = 0; i < image.rows * n; ++i) {
    const g = image.faint * 255 + (1 - image.faint) * (0.3 * pixels[3 * i] + 0.59 * pixels[3 * i + 1] + 0.11 * pixels[3 * i + 2]);
    c.fillStyle = `rgb(${g},${g},${g})`;
    c.fillRect(i % n * size, Math.floor(i / n) * size, size, size);
  }
  values.forEach((v, i) => { c.fillStyle = colour(v, most); c.fillRect(i % cols * w, Math.floor(i / cols) * h, w, h); });
  if (marked >= 0) {
    c.strokeStyle = '#000'; c.lineWidth = Math.max(1, size / 2);
    c.strokeRect(marked % cols * w, Math.floor(marked / cols) * h, w, h);
  }
}
function original(canvas) {
  canvas.width = image.cols; canvas.height = image.rows;
  const c = canvas.getContext('2d'), all = c.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < canvas.width * canvas.height; ++i) {
    for (let k = 0; k < 3; ++k) all.data[4 * i + k] = pixels[3 * i + k];
    all.data[4 * i + 3] = 255;
  }
  c.putImageData(all, 0, 0);
}
function tokensIn(element) { // every token as a span that knows its unit
  data.lines.forEach((line, l) => {
    const row = make('div', element, '', 'line');
    if (line.name) make('small', row, line.name);
    const flow = make('div', row, '', 'flow');
    units.forEach((u, i) => {
      if (u.line !== l) return;
      const s = make('span', flow, u.text, 'token' + (u.joined ? ' joined' : '') + (/^\[(CLS|SEP|UNK)\]$/.test(u.text) ? ' mark' : '') + (data.framed.includes(i) ? ' framed' : ''));
      if (u.note) make('sub', s, u.note);
      s.dataset.unit = i;
    });
  });
}
function paintTokens(element, values, marked) {
  if (!element.firstChild) tokensIn(element);
  const most = looks.map((_, part) => largest(values.filter((v, i) => units[i].part === part)));
  for (const s of element.querySelectorAll('.token')) {
    const i = +s.dataset.unit, v = values[i], own = most[units[i].part];
    s.style.background = colour(v, own); s.style.color = v < 0 && opacity(v, own) > 0.5 ? '#fff' : '';
    s.classList.toggle('kept', i === marked); s.title = v.toPrecision(3);
  }
}
const paint = image ? paintImage : paintTokens;
function unitAt(element, e) { // under the mouse; undefined between tokens
  if (!image) { const s = e.target.closest('.token'); return s ? +s.dataset.unit : undefined; }
  const r = element.getBoundingClientRect();
  const x = Math.min(cols - 1, Math.max(0, Math.floor((e.clientX - r.left) / r.width * cols)));
  const y = Math.min(rows - 1, Math.max(0, Math.floor((e.clientY - r.top) / r.height * rows)));
  return y * cols + x;
}

const maps = $('maps'), took = m => m.milliseconds.toFixed(m.milliseconds < 1 ? 2 : 1) + ' ms' + (m.mib < 0 ? '' : ', ' + m.mib.toFixed(1) + ' MiB');
if (image) {
  maps.className = 'pictures';
  const figure = (name, about) => {
    const f = make('figure', maps), canvas = make('canvas', f), caption = make('figcaption', f, name);
    for (const line of about) if (line) make('small', caption, line);
    return canvas;
  };
  original(figure('the image', [image.about]));
  for (const m of data.heats) {
    const canvas = figure(m.name, [m.about, m.remark, took(m)]);
    paint(canvas, m.values, -1);
    canvas.addEventListener('mousemove', e => { const p = unitAt(canvas, e); canvas.title = units[p].called + ': ' + m.values[p].toPrecision(3); });
  }
} else {
  for (const m of data.heats) {
    const row = make('div', maps, '', 'method'), left = make('div', row);
    make('small', make('b', left, m.name), took(m));
    for (const line of [m.about, m.remark]) if (line) make('small', left, line);
    paint(make('div', row), m.values, -1);
  }
}
$('scale').textContent = `Every method ${looks.length > 1 ? 'and sentence ' : ''}has its own scale: its largest number has the full colour. Methods without signs have orange alone. Point at a ${image ? 'patch' : 'token'} for its number.`;

function rowOf(part, layer, head, token) { // its keys and weights
  const { each, tokens, bytes: all } = looks[part], size = 2 + 3 * each, at = ((layer * heads + head) * tokens + token) * size;
  const most = (all[at] + 256 * all[at + 1]) / 65535, out = [];
  for (let r = 0; r < each; ++r) {
    const k = at + 2 + 3 * r;
    out.push([all[k] + 256 * all[k + 1], all[k + 2] / 255 * most]);
  }
  return out;
}
const look = make(image ? 'canvas' : 'div', $('place'));
look.id = 'look'; if (!image) $('place').replaceWith(look);
let unit = data.first.unit, kept = false;
function show() {
  const layer = +$('layer').value, head = +$('head').value, first = image && $('first').checked, part = units[unit].part;
  $('layername').textContent = layer + 1 + ' of ' + layers; $('headname').textContent = head + 1 + ' of ' + heads;
  const values = new Array(units.length).fill(0), said = rowOf(part, layer, head, first ? 0 : units[unit].token);
  let others = 0;
  const best = [];
  for (const [key, weight] of said) {
    const to = unitOf[part][key];
    if (to === undefined) { others += weight; continue; }
    values[to] = weight;
    if (weight > 0 && best.length < 4) best.push(`${units[to].name} ${(100 * weight).toFixed(1)} %`);
  }
  paint(look, values, first ? -1 : unit);
  $('says').textContent = (first ? 'The class token' : units[unit].called) + ` takes most of ${best.join(', ')}` +
    (others > 0.0005 ? `; ${(100 * others).toFixed(1)} % of tokens that are no patches` : '') + '.';
}
$('how').textContent = `Point at a ${image ? 'patch' : 'token'}, or click to keep it: what it takes in that layer, by that head. ` + data.hint;
if (!image) $('class').remove();
$('layer').max = layers - 1; $('head').max = heads - 1; $('layer').value = data.first.layer; $('head').value = data.first.head;
for (const id of ['layer', 'head', 'first']) if ($(id)) $(id).addEventListener('input', show);
look.addEventListener(image ? 'mousemove' : 'mouseover', e => {
  const u = unitAt(look, e);
  if (!kept && u !== undefined) { unit = u; show(); }
});
look.addEventListener('click', e => {
  const u = unitAt(look, e);
  if (u !== undefined) { kept = !(kept && u === unit); unit = u; show(); }
});
for (const [name, value] of data.facts) {
  const r = $('facts').insertRow(); r.insertCell().textContent = name; r.insertCell().textContent = value;
}
show();
</script></body></html>
)html";

/// Writes what put(file) puts, beside and renamed. Throws std::runtime_error where that fails.
template <class F>
void write_file(const std::string& path, F&& put) {
  const std::string beside = path + ".part";
  std::ofstream file(beside, std::ios::binary);
  put(file);
  file.close();
  if (file && std::rename(beside.c_str(), path.c_str()) == 0) return;
  std::remove(beside.c_str());
  throw std::runtime_error(path + ": cannot be written");
}

/// Writes the page; how many bytes it has. Throws std::runtime_error where that fails.
inline std::size_t write(const std::string& path, const Report& r) {
  using nlohmann::json;
  json data{
      {"title", r.title}, {"answer", r.answer}, {"more", r.more},
      {"less", r.less},   {"hint", r.hint},     {"first", {{"layer", r.layer}, {"head", r.head}, {"unit", r.unit}}},
      {"looks", r.looks}, {"facts", r.facts},   {"heats", json::array()}};
  for (const Heat& h : r.heats)
    data["heats"].push_back({{"name", h.name},
                             {"about", h.about},
                             {"remark", h.remark},
                             {"milliseconds", h.milliseconds},
                             {"mib", h.mib},
                             {"values", h.values}});
  if (r.lines.empty()) {
    std::vector<std::uint8_t> bytes;
    const Index channels = r.image.channels();
    for (Index i = 0; i < r.image.pixels.rows(); ++i)
      for (Index c = 0; c < 3; ++c)
        bytes.push_back(static_cast<std::uint8_t>(
            std::lround(255 * std::clamp(r.image.pixels(i, channels == 3 ? c : 0), 0.0f, 1.0f))));
    data["rows"] = r.rows, data["cols"] = r.cols, data["before"] = r.before;
    data["image"] = {{"rows", r.image.rows},
                     {"cols", r.image.cols},
                     {"faint", 0.35},
                     {"about", std::to_string(r.image.rows) + " x " + std::to_string(r.image.cols) + " pixels"},
                     {"bytes", base64(bytes)}};
  } else {
    data["framed"] = r.framed, data["lines"] = json::array();
    for (const Line& line : r.lines) {
      json tokens = json::array();
      for (const Token& t : line.tokens) tokens.push_back({{"text", t.text}, {"note", t.note}, {"joined", t.joined}});
      data["lines"].push_back({{"name", line.name}, {"part", line.part}, {"tokens", tokens}});
    }
  }
  std::string text = page, mark = "%DATA%";
  std::string dump = data.dump(-1, ' ', false, json::error_handler_t::replace);
  for (std::size_t at = 0; (at = dump.find('<', at)) != std::string::npos; ++at) dump.replace(at, 1, "\\u003c");
  text.replace(text.find(mark), mark.size(), dump);
  write_file(path, [&](std::ofstream& file) { file << text; });
  return text.size();
}

/// A number a line, with its method and its patch or token. Throws std::runtime_error where it cannot be written.
inline void write_csv(const std::string& path, const Report& r) {
  const auto quoted = [](const std::string& field) {  // RFC 4180
    std::string out = "\"";
    for (const char c : field) out += c == '"' ? std::string("\"\"") : std::string(1, c);
    return out + '"';
  };
  write_file(path, [&](std::ofstream& file) {
    file << (r.lines.empty() ? "method,row,col,value\n" : "method,line,token,text,value\n");
    for (const Heat& h : r.heats) {
      const std::string name = quoted(h.name);
      for (std::size_t i = 0; r.lines.empty() && i < h.values.size(); ++i)
        file << name << ',' << Index(i) / r.cols << ',' << Index(i) % r.cols << ',' << h.values[i] << '\n';
      std::size_t at = 0;
      for (std::size_t l = 0; l < r.lines.size(); ++l)
        for (std::size_t t = 0; t < r.lines[l].tokens.size(); ++t)
          file << name << ',' << l << ',' << t << ',' << quoted(r.lines[l].tokens[t].text) << ',' << h.values[at++]
               << '\n';
    }
  });
}

}  // namespace report
