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

constexpr Index most_dots = Index(1) << 20;

inline void check_between(const char* what, Index found, Index least, Index most) {
  if (found < least || found > most)
    limpid::detail::raise(std::string(what) + " is " + std::to_string(found) + ", wanted from " +
                          std::to_string(least) + " to " + std::to_string(most));
}

inline void draw_glyph(Image& image, Index row, Index col, char letter, Index size, float ink) {
  if (letter >= 'a' && letter <= 'z') letter = static_cast<char>(letter - 'a' + 'A');
  const auto* found =
      std::find_if(std::begin(glyphs), std::end(glyphs), [&](const Glyph& g) { return g.letter == letter; });
  if (found == std::end(glyphs)) return;  // a space, or a sign the font lacks
  const std::string_view dots(found->dots);
  const Index height = glyph_height * size, width = 5 * size;
  if (row <= -height || row >= image.rows || col <= -width || col >= image.cols) return;
  // What lies outside is not walked through, however large the letters are.
  for (Index i = std::max(-row, Index(0)); i < std::min(height, image.rows - row); ++i)
    for (Index j = std::max(-col, Index(0)); j < std::min(width, image.cols - col); ++j) {
      if (dots[static_cast<std::size_t>(i / size * 5 + j / size)] != '#') continue;
      for (Index c = 0; c < image.channels(); ++c) image(row + i, col + j, c) = ink;
    }
}

}  // namespace detail

/// Width of a text in pixels. Throws ShapeError for a size below 1 or above 2^20.
inline Index text_width(std::string_view text, Index size = 1) {
  detail::check_between("text_width: size", size, 1, detail::most_dots);
  return static_cast<Index>(text.size()) * detail::glyph_width * size;
}

/// Writes a line of text (capitals, figures, some signs) with its top left corner at
/// (row, col), clipped at the borders, wherever that is. size: pixels a dot, from 1 to 2^20
/// (ShapeError otherwise); a line is 7 dots high. ink: grey value, finite (ShapeError
/// otherwise), of all channels. Throws FormatError for an image whose parts do not agree.
inline void draw_text(Image& image, Index row, Index col, std::string_view text, Index size = 1, float ink = 0) {
  detail::check_between("draw_text: size", size, 1, detail::most_dots);
  if (!std::isfinite(ink)) limpid::detail::raise("draw_text: ink is not finite, wanted a grey value");
  detail::check_image("draw_text", image);
  for (char letter : text) {
    if (col >= image.cols) break;
    detail::draw_glyph(image, row, col, letter, size, ink);
    col += detail::glyph_width * size;
  }
}

/// Copies a picture into the sheet with its top left corner at (row, col), in the sheet's channels, as to_grey and
/// to_rgb have it: grey is repeated in colour, colour becomes the mean of the three in grey. Throws FormatError where
/// it does not fit.
inline void paste(Image& sheet, const Image& picture, Index row, Index col) {
  detail::check_image("paste", sheet);
  detail::check_image("paste", picture);
  if (row < 0 || col < 0 || row > sheet.rows - picture.rows || col > sheet.cols - picture.cols)
    detail::fail("paste", "a picture of " + limpid::detail::shape_text(picture.rows, picture.cols) + " at row " +
                              std::to_string(row) + " and column " + std::to_string(col) +
                              " does not fit, wanted it within " + limpid::detail::shape_text(sheet.rows, sheet.cols));
  if (sheet.channels() == 1 && picture.channels() == 3) return paste(sheet, to_grey(picture), row, col);
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
/// Throws ShapeError where across, enlargement or text_size is below 1 or above 2^20, or the sheet too large,
/// and FormatError for a picture as to_grey does.
inline Image contact_sheet(const std::vector<Tile>& tiles, Index across, Index enlargement = 4, Index text_size = 1) {
  detail::check_between("contact_sheet: across", across, 1, Index(1) << 20);
  detail::check_between("contact_sheet: enlargement", enlargement, 1, Index(1) << 20);
  detail::check_between("contact_sheet: text_size", text_size, 1, detail::most_dots);
  for (const Tile& tile : tiles) {
    detail::check_image("contact_sheet", tile.picture);
    detail::image_size("contact_sheet", tile.picture.rows, enlargement, 1);
    detail::image_size("contact_sheet", tile.picture.cols, enlargement, 1);
  }
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
