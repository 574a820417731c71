// limpid: a report of explanations as one HTML file that needs no network: heat maps over an image, and where every token
// looks, by layer and head, under the mouse.
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

/// What one method says: a number for every patch.
struct Heat {
  std::string name, about;
  Mat<float> values;  ///< rows x cols of patches
  double milliseconds = 0;
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

struct Report {
  std::string title, answer;
  limpid::io::Image image;
  Index rows = 0, cols = 0, before = 1;  ///< of patches; tokens before them
  std::vector<Heat> heats;
  nlohmann::json looks;
  std::vector<std::array<std::string, 2>> facts;  ///< name and value
};

/// The page; %DATA% is replaced. Colours: orange and blue, which people who cannot tell red from green tell apart; the
/// more opaque, the more.
inline constexpr const char* page = R"html(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>limpid: an explanation</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 24px; color: #222; background: #fff; max-width: 1240px; }
h1 { font-size: 20px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 26px 0 4px; }
p { margin: 4px 0 10px; color: #555; }
.maps { display: flex; flex-wrap: wrap; gap: 14px; }
figure { margin: 0; width: 196px; } figcaption { font-size: 13px; } figcaption small { color: #777; display: block; }
canvas { image-rendering: pixelated; width: 196px; display: block; background: #eee; cursor: crosshair; }
#look { width: 392px; } .row { display: flex; gap: 26px; align-items: flex-start; }
label { display: block; margin: 6px 0; } input[type=range] { width: 240px; vertical-align: middle; }
table { border-collapse: collapse; font-size: 13px; } td { padding: 1px 12px 1px 0; }
#says { font-variant-numeric: tabular-nums; min-height: 3em; }
</style></head><body>
<h1 id="title"></h1><p id="answer"></p>
<h2>What each method says</h2>
<p>Orange: more, and of methods with signs for the answer; blue: against it. Every map has its own scale.</p>
<div class="maps" id="maps"></div>
<h2>Where a token looks</h2>
<p>Point at a patch, or click to keep it: what it takes in that layer, by that head.</p>
<div class="row"><canvas id="look"></canvas><div>
<label>layer <input type="range" id="layer" min="0" value="0"> <span id="layername"></span></label>
<label>head <input type="range" id="head" min="0" value="0"> <span id="headname"></span></label>
<label><input type="checkbox" id="first"> the class token, in place of a patch</label>
<p id="says"></p><table id="facts"></table></div></div>
<script>
const data = %DATA%;
const $ = id => document.getElementById(id);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const pixels = bytes(data.image.bytes), looks = bytes(data.looks.bytes);
const { rows, cols, before } = data, { layers, heads, tokens, each } = data.looks;
$('title').textContent = data.title; $('answer').textContent = data.answer;

const scale = Math.max(1, Math.round(392 / data.image.cols));
function base(canvas) { // the image in grey, and how large a patch is
  canvas.width = data.image.cols * scale; canvas.height = data.image.rows * scale;
  const c = canvas.getContext('2d'), n = data.image.cols;
  for (let i = 0; i < data.image.rows * n; ++i) {
    const g = data.image.faint * 255 + (1 - data.image.faint) * (0.3 * pixels[3 * i] + 0.59 * pixels[3 * i + 1] + 0.11 * pixels[3 * i + 2]);
    c.fillStyle = `rgb(${g},${g},${g})`;
    c.fillRect(i % n * scale, Math.floor(i / n) * scale, scale, scale);
  }
  return [c, canvas.width / cols, canvas.height / rows];
}
function paint(canvas, values, marked) {
  const [c, w, h] = base(canvas);
  const most = Math.max(...values.map(Math.abs), 1e-30);
  values.forEach((v, i) => {
    const a = 0.85 * Math.abs(v) / most;
    c.fillStyle = v >= 0 ? `rgba(230,97,1,${a})` : `rgba(33,102,172,${a})`;
    c.fillRect(i % cols * w, Math.floor(i / cols) * h, w, h);
  });
  if (marked >= 0) {
    c.strokeStyle = '#000'; c.lineWidth = Math.max(1, scale / 2);
    c.strokeRect(marked % cols * w, Math.floor(marked / cols) * h, w, h);
  }
}
function original(canvas) {
  canvas.width = data.image.cols; canvas.height = data.image.rows;
  const c = canvas.getContext('2d'), image = c.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < canvas.width * canvas.height; ++i) {
    for (let k = 0; k < 3; ++k) image.data[4 * i + k] = pixels[3 * i + k];
    image.data[4 * i + 3] = 255;
  }
  c.putImageData(image, 0, 0);
}
function figure(name, about, draw) {
  const f = document.createElement('figure'), canvas = document.createElement('canvas'), t = document.createElement('figcaption');
  const small = document.createElement('small');
  t.textContent = name; small.textContent = about; t.append(small); f.append(canvas, t); $('maps').append(f); draw(canvas);
  return canvas;
}
figure('the image', data.image.about, original);
for (const m of data.heats) {
  const canvas = figure(m.name, m.about + ', ' + m.milliseconds.toFixed(1) + ' ms', c => paint(c, m.values, -1));
  canvas.addEventListener('mousemove', e => { const p = patchAt(canvas, e); canvas.title = 'patch ' + Math.floor(p / cols) + ', ' + p % cols + ': ' + m.values[p].toPrecision(3); });
}
function patchAt(canvas, e) {
  const r = canvas.getBoundingClientRect();
  const x = Math.min(cols - 1, Math.max(0, Math.floor((e.clientX - r.left) / r.width * cols)));
  const y = Math.min(rows - 1, Math.max(0, Math.floor((e.clientY - r.top) / r.height * rows)));
  return y * cols + x;
}
function rowOf(layer, head, token) { // its keys and weights
  const size = 2 + 3 * each, at = ((layer * heads + head) * tokens + token) * size;
  const most = (looks[at] + 256 * looks[at + 1]) / 65535, out = [];
  for (let r = 0; r < each; ++r) {
    const k = at + 2 + 3 * r;
    out.push([looks[k] + 256 * looks[k + 1], looks[k + 2] / 255 * most]);
  }
  return out;
}
let patch = Math.floor(rows / 2) * cols + Math.floor(cols / 2), kept = false;
function show() {
  const layer = +$('layer').value, head = +$('head').value, first = $('first').checked;
  $('layername').textContent = layer + 1 + ' of ' + layers; $('headname').textContent = head + 1 + ' of ' + heads;
  const values = new Array(rows * cols).fill(0), said = rowOf(layer, head, first ? 0 : before + patch);
  let others = 0;
  for (const [key, weight] of said) if (key >= before) values[key - before] = weight; else others += weight;
  paint($('look'), values, first ? -1 : patch);
  const best = said.filter(([key, weight]) => key >= before && weight > 0).slice(0, 4)
    .map(([key, weight]) => `(${Math.floor((key - before) / cols)}, ${(key - before) % cols}) ${(100 * weight).toFixed(1)} %`);
  $('says').textContent = (first ? 'The class token' : `Patch ${Math.floor(patch / cols)}, ${patch % cols}`) +
    ` takes most of ${best.join(', ')}` + (others > 0.0005 ? `; ${(100 * others).toFixed(1)} % of tokens that are no patches` : '') + '.';
}
$('layer').max = layers - 1; $('head').max = heads - 1; $('layer').value = layers - 1;
for (const id of ['layer', 'head', 'first']) $(id).addEventListener('input', show);
$('look').addEventListener('mousemove', e => { if (!kept) { patch = patchAt($('look'), e); show(); } });
$('look').addEventListener('click', e => { const p = patchAt($('look'), e); kept = !(kept && p === patch); patch = p; show(); });
for (const [name, value] of data.facts) {
  const r = $('facts').insertRow(); r.insertCell().textContent = name; r.insertCell().textContent = value;
}
show();
</script></body></html>
)html";

/// Writes it, beside and renamed. Throws std::runtime_error where that fails.
inline std::size_t write(const std::string& path, const Report& r) {
  using nlohmann::json;
  std::vector<std::uint8_t> bytes;
  const Index channels = r.image.channels();
  for (Index i = 0; i < r.image.pixels.rows(); ++i)
    for (Index c = 0; c < 3; ++c)
      bytes.push_back(static_cast<std::uint8_t>(
          std::lround(255 * std::clamp(r.image.pixels(i, channels == 3 ? c : 0), 0.0f, 1.0f))));
  json data{{"title", r.title},
            {"answer", r.answer},
            {"rows", r.rows},
            {"cols", r.cols},
            {"before", r.before},
            {"looks", r.looks},
            {"facts", r.facts},
            {"heats", json::array()},
            {"image",
             {{"rows", r.image.rows},
              {"cols", r.image.cols},
              {"faint", 0.35},
              {"about", std::to_string(r.image.rows) + " x " + std::to_string(r.image.cols) + " pixels"},
              {"bytes", base64(bytes)}}}};
  for (const Heat& h : r.heats)
    data["heats"].push_back({{"name", h.name},
                             {"about", h.about},
                             {"milliseconds", h.milliseconds},
                             {"values", std::vector<float>(h.values.data(), h.values.data() + h.values.size())}});
  std::string text = page, mark = "%DATA%";
  std::string dump = data.dump();
  for (std::size_t at = 0; (at = dump.find("</", at)) != std::string::npos; at += 3) dump.replace(at, 2, "<\\/");
  text.replace(text.find(mark), mark.size(), dump);
  const std::string beside = path + ".part";
  {
    std::ofstream file(beside, std::ios::binary);
    if (!(file << text) || !file.flush()) throw std::runtime_error(beside + ": cannot be written");
  }
  if (std::rename(beside.c_str(), path.c_str()) != 0) throw std::runtime_error(path + ": cannot be written");
  return text.size();
}

}  // namespace report
