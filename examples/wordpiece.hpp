// limpid: the WordPiece tokenizer of lower-cased BERT models.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace wordpiece {

/// A code point and the bytes of the text it came from.
struct Letter {
  char32_t code;
  std::size_t begin, end;
};

/// The code points of a text. Throws std::invalid_argument for bytes that are not UTF-8.
inline std::vector<Letter> letters_of(const std::string& text) {
  std::vector<Letter> out;
  for (std::size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i]);
    const std::size_t length = first < 0x80   ? 1
                               : first < 0xc2 ? 0
                               : first < 0xe0 ? 2
                               : first < 0xf0 ? 3
                               : first < 0xf5 ? 4
                                              : 0;
    bool right = length != 0 && text.size() - i >= length;
    char32_t code = length < 2 ? first : first & (0x7fu >> length);
    for (std::size_t j = 1; right && j < length; ++j) {
      const auto next = static_cast<unsigned char>(text[i + j]);
      right = (next & 0xc0) == 0x80;
      code = code << 6 | (next & 0x3fu);
    }
    constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    right = right && code >= least[length] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
    if (!right) throw std::invalid_argument("found bytes that are not UTF-8 from byte " + std::to_string(i) + " on");
    out.push_back({code, i, i + length});
    i += length;
  }
  return out;
}

inline void append(std::string& to, char32_t code) {
  const auto put = [&](char32_t byte) { to += static_cast<char>(byte); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xc0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xe0 | code >> 12);
    } else {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3f));
    }
    put(0x80 | (code >> 6 & 0x3f));
  }
  put(0x80 | (code & 0x3f));
}

using Ranges = std::initializer_list<std::pair<char32_t, char32_t>>;
inline bool within(char32_t code, Ranges ranges) {
  return std::any_of(ranges.begin(), ranges.end(), [&](const auto& r) { return code >= r.first && code <= r.second; });
}

inline bool is_space(char32_t c) {
  return within(c, {{' ', ' '},
                    {'\t', '\n'},
                    {'\r', '\r'},
                    {0xa0, 0xa0},
                    {0x1680, 0x1680},
                    {0x2000, 0x200a},
                    {0x2028, 0x2029},
                    {0x202f, 0x202f},
                    {0x205f, 0x205f},
                    {0x3000, 0x3000}});
}
/// Control and format characters, private ones and the mark of what could not be read: left out.
inline bool is_control(char32_t c) {
  return within(c, {{0, 0x1f},
                    {0x7f, 0x9f},
                    {0xad, 0xad},
                    {0x200b, 0x200f},
                    {0x202a, 0x202e},
                    {0x2060, 0x206f},
                    {0xe000, 0xf8ff},
                    {0xfeff, 0xfeff},
                    {0xfffd, 0xfffd}});
}
/// Accents that stand behind their letter: left out, as those of letters that have one are.
inline bool is_accent(char32_t c) {
  return within(c, {{0x300, 0x36f},
                    {0x483, 0x487},
                    {0x591, 0x5bd},
                    {0x5bf, 0x5bf},
                    {0x5c1, 0x5c2},
                    {0x5c4, 0x5c5},
                    {0x610, 0x61a},
                    {0x64b, 0x65f},
                    {0x670, 0x670},
                    {0x6d6, 0x6dc},
                    {0x1ab0, 0x1abd},
                    {0x1dc0, 0x1df5},
                    {0x20d0, 0x20dc},
                    {0x302a, 0x302d},
                    {0x3099, 0x309a},
                    {0xfe00, 0xfe0f},
                    {0xfe20, 0xfe2f}});
}
/// Chinese characters, each a word of its own.
inline bool is_ideograph(char32_t c) {
  return within(c, {{0x3400, 0x4dbf},
                    {0x4e00, 0x9fff},
                    {0xf900, 0xfaff},
                    {0x20000, 0x2a6df},
                    {0x2a700, 0x2ceaf},
                    {0x2f800, 0x2fa1f}});
}
/// Of ASCII all that is neither letter nor figure; Unicode's punctuation in what is common.
inline bool is_punctuation(char32_t c) {
  return within(
      c, {{'!', '/'},       {':', '@'},       {'[', '`'},       {'{', '~'},       {0xa1, 0xa1},     {0xa7, 0xa7},
          {0xab, 0xab},     {0xb6, 0xb7},     {0xbb, 0xbb},     {0xbf, 0xbf},     {0x37e, 0x37e},   {0x387, 0x387},
          {0x55a, 0x55f},   {0x589, 0x58a},   {0x5be, 0x5be},   {0x5c0, 0x5c0},   {0x5c3, 0x5c3},   {0x5f3, 0x5f4},
          {0x60c, 0x60d},   {0x61b, 0x61b},   {0x61e, 0x61f},   {0x66a, 0x66d},   {0x6d4, 0x6d4},   {0x964, 0x965},
          {0x2010, 0x2027}, {0x2030, 0x2043}, {0x2045, 0x2051}, {0x2053, 0x205e}, {0x207d, 0x207e}, {0x208d, 0x208e},
          {0x2308, 0x230b}, {0x2329, 0x232a}, {0x2768, 0x2775}, {0x27e6, 0x27ef}, {0x2e00, 0x2e2e}, {0x3001, 0x3003},
          {0x3008, 0x3011}, {0x3014, 0x301f}, {0x3030, 0x3030}, {0x30fb, 0x30fb}, {0xfe30, 0xfe52}, {0xff01, 0xff03},
          {0xff05, 0xff0a}, {0xff0c, 0xff0f}, {0xff1a, 0xff1b}, {0xff1f, 0xff20}, {0xff3b, 0xff3d}, {0xff3f, 0xff3f},
          {0xff5b, 0xff5b}, {0xff5d, 0xff5d}, {0xff5f, 0xff65}});
}

/// A letter without its accents, in lower case: ASCII, Latin, Greek, Russian and Vietnamese letters and kana; others
/// stay as they are.
inline char32_t plain(char32_t c) {
  struct Block {
    char32_t first;
    std::u32string_view letters;
  };
  // how wide these are it cannot tell
  // clang-format off
  static constexpr Block blocks[] = {
      {0xc0,
       U"aaaaaaæceeeeiiiiðnooooo×øuuuuyþßaaaaaaæceeeeiiiiðnooooo÷øuuuuyþyaaaaaaccccccccddđđeeeeeeeeeegggg"
       U"gggghhħħiiiiiiiiiıĳĳjjkkĸllllllŀŀłłnnnnnnŉŋŋooooooœœrrrrrrssssssssttttŧŧuuuuuuuuuuuuwwyyyzzzzzzſ"
       U"ƀɓƃƃƅƅɔƈƈɖɗƌƌƍǝəɛƒƒɠɣƕɩɨƙƙƚƛɯɲƞɵooƣƣƥƥʀƨƨʃƪƫƭƭʈuuʊʋƴƴƶƶʒƹƹƺƻƽƽƾƿǀǁǂǃǆǆǆǉǉǉǌǌǌaaiioouuuuuuuuuuǝaa"
       U"aaææǥǥggkkooooʒʒjǳǳǳggƕƿnnaaææøøaaaaeeeeiiiioooorrrruuuussttȝȝhhƞȡȣȣȥȥaaeeooooooooyy"},
      {0x386,
       U"α·εηι΋ο΍υωιαβγδεζηθικλμνξοπρ΢στυφχψωιυαεηιυαβγδεζηθικλμνξοπρςστυφχψωιυουω"},
      {0x400,
       U"ееђгєѕііјљњћкиуџабвгдежзииклмнопрстуфхцчшщъыьэюяабвгдежзииклмнопрстуфхцчшщъыьэюяееђгєѕііјљњћкиуџ"},
      {0x1e00,
       U"aabbbbbbccddddddddddeeeeeeeeeeffgghhhhhhhhhhiiiikkkkkkllllllllmmmmmmnnnnnnnnoooooooopppprrrrrrrr"
       U"ssssssssssttttttttuuuuuuuuuuvvvvwwwwwwwwwwxxxxyyzzzzzzhtwyẚſẜẝßẟaaaaaaaaaaaaaaaaaaaaaaaaeeeeeeee"
       U"eeeeeeeeiiiioooooooooooooooooooooooouuuuuuuuuuuuuuyyyyyyyy"},
      {0x304b,
       U"かかききくくけけここささししすすせせそそたたちちっつつててととなにぬねのはははひひひふふふへへへほほほまみむめもゃやゅゆょよらりるれろゎわゐゑをんうゕゖ゗゘゙゚゛゜ゝゝゟ゠ァアィイゥウェエォオ"
       U"カカキキククケケココササシシススセセソソタタチチッツツテテトトナニヌネノハハハヒヒヒフフフヘヘヘホホホマミムメモャヤュユョヨラリルレロヮワヰヱヲンウヵヶワヰヱヲ・ーヽヽ"},
  };
  // clang-format on
  if (c >= 'A' && c <= 'Z') return c + ('a' - 'A');
  for (const Block& block : blocks)
    if (c >= block.first && c - block.first < block.letters.size()) return block.letters[c - block.first];
  return c;
}

/// A text as a model reads it. Its words are what lies between spaces, punctuation and Chinese characters each a word
/// of its own; a token belongs to one of them, [CLS] in front and [SEP] in the end to none: -1.
struct Text {
  std::vector<std::ptrdiff_t> ids, word;
  std::vector<std::string> words;   ///< as they stand in the text
  std::vector<std::string> pieces;  ///< the tokens, as the vocabulary has them
};

/// The tokenizer of BERT (Devlin et al. 2018, arXiv 1810.04805) for models in lower case: control characters left out,
/// accents taken off, words cut into the longest pieces of the vocabulary from the left, those that go on marked ##; a
/// word that cannot be cut, or has more than 100 letters, is [UNK]. Letters beyond those of plain() keep their accents;
/// names of tokens in a text, as [MASK], are text.
class Tokenizer {
 public:
  /// A vocabulary: a token a line. Throws std::runtime_error for one that cannot be read or lacks [CLS], [SEP], [UNK].
  explicit Tokenizer(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error("cannot read " + path);
    for (std::string token; std::getline(file, token);) ids_.emplace(token, static_cast<std::ptrdiff_t>(ids_.size()));
    for (const char* token : {"[CLS]", "[SEP]", "[UNK]"})
      if (ids_.count(token) == 0) throw std::runtime_error(path + " lacks " + token);
  }

  /// The number of a token. Throws std::runtime_error for one that the vocabulary lacks.
  std::ptrdiff_t id(const std::string& token) const {
    const auto found = ids_.find(token);
    if (found == ids_.end()) throw std::runtime_error("the vocabulary lacks " + token);
    return found->second;
  }

  /// Throws std::invalid_argument for bytes that are not UTF-8.
  Text operator()(const std::string& text) const {
    Text out{{ids_.at("[CLS]")}, {-1}, {}, {"[CLS]"}};
    std::u32string word;
    std::size_t begin = 0, end = 0;
    const auto finish = [&] {
      if (!word.empty()) add(word, text.substr(begin, end - begin), out);
      word.clear();
    };
    for (const Letter& letter : letters_of(text)) {
      if (is_space(letter.code)) finish();
      if (is_space(letter.code) || is_control(letter.code)) continue;
      if (is_accent(letter.code)) {
        if (!word.empty()) end = letter.end;
        continue;
      }
      const bool alone = is_ideograph(letter.code) || is_punctuation(letter.code);
      if (alone) finish();
      if (word.empty()) begin = letter.begin;
      end = letter.end;
      constexpr char32_t hangul = 0xac00, syllables = 11172, tails = 28, of_a_lead = 21 * tails;
      if (const char32_t s = letter.code - hangul; letter.code >= hangul && s < syllables) {  // in its parts
        word += 0x1100 + s / of_a_lead, word += 0x1161 + s % of_a_lead / tails;
        if (s % tails != 0) word += 0x11a7 + s % tails;
      } else {
        word += plain(letter.code);
      }
      if (alone) finish();
    }
    finish();
    out.ids.push_back(ids_.at("[SEP]")), out.word.push_back(-1), out.pieces.push_back("[SEP]");
    return out;
  }

 private:
  void add(const std::u32string& word, const std::string& as_written, Text& to) const {
    std::vector<std::pair<std::string, std::ptrdiff_t>> pieces;
    for (std::size_t start = 0, end; start < word.size() && word.size() <= 100; start = end) {
      auto found = ids_.end();
      for (end = word.size(); end > start; --end) {
        std::string piece = start == 0 ? "" : "##";
        for (std::size_t i = start; i < end; ++i) append(piece, word[i]);
        found = ids_.find(piece);
        if (found != ids_.end()) break;
      }
      if (found == ids_.end()) {
        pieces.clear();
        break;
      }
      pieces.push_back(*found);
    }
    if (pieces.empty()) pieces.push_back(*ids_.find("[UNK]"));
    for (const auto& [piece, id] : pieces) {
      to.pieces.push_back(piece), to.ids.push_back(id);
      to.word.push_back(static_cast<std::ptrdiff_t>(to.words.size()));
    }
    to.words.push_back(as_written);
  }

  std::unordered_map<std::string, std::ptrdiff_t> ids_;
};

}  // namespace wordpiece
