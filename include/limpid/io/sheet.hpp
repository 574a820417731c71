// limpid: contact sheets. Pictures in a grid with labels, and the small bitmap font the labels are set in.
// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>

#include "color.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

namespace detail {

/// One glyph: seven rows of five dots, top row first, '#' is ink. Drawn for limpid; capitals, figures and some signs.
struct Glyph {
  char letter;
  char dots[36];
};

inline constexpr Glyph glyphs[] = {
    {'A', " ### #   ##   #######   ##   ##   #"}, {'B', "#### #   ##   ##### #   ##   ##### "},
    {'C', " ### #   ##    #    #    #   # ### "}, {'D', "#### #   ##   ##   ##   ##   ##### "},
    {'E', "######    #    #### #    #    #####"}, {'F', "######    #    #### #    #    #    "},
    {'G', " #####    #    # ####   ##   # ####"}, {'H', "#   ##   ##   #######   ##   ##   #"},
    {'I', " ###   #    #    #    #    #   ### "}, {'J', "  ###   #    #    #    # #  #  ##  "},
    {'K', "#   ##  # # #  ##   # #  #  # #   #"}, {'L', "#    #    #    #    #    #    #####"},
    {'M', "#   ### ### # ## # ##   ##   ##   #"}, {'N', "#   ###  ## # ##  ###   ##   ##   #"},
    {'O', " ### #   ##   ##   ##   ##   # ### "}, {'P', "#### #   ##   ##### #    #    #    "},
    {'Q', " ### #   ##   ##   ## # ##  #  ## #"}, {'R', "#### #   ##   ##### # #  #  # #   #"},
    {'S', " #####    #     ###     #    ##### "}, {'T', "#####  #    #    #    #    #    #  "},
    {'U', "#   ##   ##   ##   ##   ##   # ### "}, {'V', "#   ##   ##   ##   ##   # # #   #  "},
    {'W', "#   ##   ##   ## # ## # ### ###   #"}, {'X', "#   ##   # # #   #   # # #   ##   #"},
    {'Y', "#   ##   # # #   #    #    #    #  "}, {'Z', "#####    #   #   #   #   #    #####"},
    {'0', " ### #   ##  ### # ###  ##   # ### "}, {'1', "  #   ##    #    #    #    #   ### "},
    {'2', " ### #   #    #  ##  #   #    #####"}, {'3', "#####   #   #   ###     ##   # ### "},
    {'4', "   #   ##  # # #  # #####   #    # "}, {'5', "######    ####     #    ##   # ### "},
    {'6', "  ##  #   #    #### #   ##   # ### "}, {'7', "#####    #   #   #   #    #    #   "},
    {'8', " ### #   ##   # ### #   ##   # ### "}, {'9', " ### #   ##   # ####    #   # ##   "},
    {'.', "                               #   "}, {',', "                      #    #   #   "},
    {':', "       #                   #       "}, {'-', "               #####               "},
    {'+', "       #    #  #####  #    #       "}, {'=', "          #####     #####          "},
    {'/', "    #    #   #   #   #   #    #    "}, {'%', "##  ###  #   #   #   #   #  ###  ##"},
    {'(', "   #   #   #    #    #     #     # "}, {')', " #     #     #    #    #   #   #   "},
    {'_', "                              #####"}, {'\'', "  #    #    #                      "},
    {'|', "  #    #    #    #    #    #    #  "},
};

constexpr Index glyph_width = 6, glyph_height = 7;  // one column of air to the right

inline void draw_glyph(Image& image, Index row, Index col, char letter, Index size, float ink) {
  if (letter >= 'a' && letter <= 'z') letter = static_cast<char>(letter - 'a' + 'A');
  const auto* found =
      std::find_if(std::begin(glyphs), std::end(glyphs), [&](const Glyph& g) { return g.letter == letter; });
  if (found == std::end(glyphs)) return;  // a space, or a sign the font lacks
  const std::string_view dots(found->dots);
  for (Index i = 0; i < glyph_height * size; ++i)
    for (Index j = 0; j < 5 * size; ++j) {
      if (dots[static_cast<std::size_t>(i / size * 5 + j / size)] != '#') continue;
      if (row + i < 0 || row + i >= image.rows || col + j < 0 || col + j >= image.cols) continue;
      for (Index c = 0; c < image.channels(); ++c) image(row + i, col + j, c) = ink;
    }
}

}  // namespace detail

/// Width of a text in pixels.
inline Index text_width(std::string_view text, Index size = 1) {
  return static_cast<Index>(text.size()) * detail::glyph_width * size;
}

/// Writes a line of text (capitals, figures, some signs) with its top left corner at (row, col), clipped at the
/// borders. size: pixels a dot; a line is 7 dots high. ink: grey value.
inline void draw_text(Image& image, Index row, Index col, std::string_view text, Index size = 1, float ink = 0) {
  for (char letter : text) {
    detail::draw_glyph(image, row, col, letter, size, ink);
    col += detail::glyph_width * size;
  }
}

/// Copies a picture into the sheet with its top left corner at (row, col); it must fit.
inline void paste(Image& sheet, const Image& picture, Index row, Index col) {
  for (Index i = 0; i < picture.rows; ++i)
    for (Index j = 0; j < picture.cols; ++j)
      for (Index c = 0; c < sheet.channels(); ++c)
        sheet(row + i, col + j, c) = picture(i, j, std::min(c, picture.channels() - 1));
}

/// One picture of a contact sheet and the lines under it.
struct Tile {
  Image picture;
  std::string label, second_label;
};

/// Pictures in rows of `across` on white, each enlarged and labelled below; cells are as large as the largest needs.
inline Image contact_sheet(const std::vector<Tile>& tiles, Index across, Index enlargement = 4, Index text_size = 1) {
  const Index gap = 4 * text_size, line = (detail::glyph_height + 3) * text_size;
  Index cell_rows = 0, cell_cols = 0, lines = 0;
  for (const Tile& tile : tiles) {
    cell_rows = std::max(cell_rows, tile.picture.rows * enlargement);
    cell_cols = std::max({cell_cols, tile.picture.cols * enlargement, text_width(tile.label, text_size),
                          text_width(tile.second_label, text_size)});
    lines = std::max(lines, Index(tile.second_label.empty() ? (tile.label.empty() ? 0 : 1) : 2));
  }
  const Index pitch_rows = cell_rows + lines * line + 2 * gap, pitch_cols = cell_cols + 2 * gap;
  const Index down = (static_cast<Index>(tiles.size()) + across - 1) / across;
  Image sheet(std::max(down * pitch_rows, Index(1)), across * pitch_cols, 3, 1.0f);
  for (std::size_t t = 0; t < tiles.size(); ++t) {
    const Index row = static_cast<Index>(t) / across * pitch_rows + gap;
    const Index col = static_cast<Index>(t) % across * pitch_cols + gap;
    paste(sheet, enlarge(tiles[t].picture, enlargement), row, col);
    const Index below = row + tiles[t].picture.rows * enlargement + 3 * text_size;
    draw_text(sheet, below, col, tiles[t].label, text_size);
    draw_text(sheet, below + line, col, tiles[t].second_label, text_size, 0.35f);
  }
  return sheet;
}

}  // namespace io
}  // namespace LIMPID_ABI
}  // namespace limpid
