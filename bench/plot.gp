# limpid: GFLOP/s over n, one panel a direction and mask. gnuplot -e "data='DIR'; png='FILE'" plot.gp
# SPDX-License-Identifier: MIT
set terminal pngcairo size 1500,1050 font ",11" background rgb "white"
set output png
set multiplot layout 2,2 title "Exact attention, one head, float, d = 64, one thread: GFLOP/s over n" font ",14"
set logscale x 2
set xrange [170:9500]
set xtics (197, 512, 1024, 2048, 4096, 8192)
set yrange [0:*]
set xlabel "n"
set ylabel "GFLOP/s"
set grid ytics lc rgb "#dddddd"
set border 3
set xtics nomirror
set ytics nomirror
set key outside right center spacing 1.3 samplen 2

set style line 1 lc rgb "#c1272d" lw 3.5 pt 7 ps 1.2   # ours
set style line 2 lc rgb "#0b6fa4" lw 1.8 pt 5 ps 0.9
set style line 3 lc rgb "#74a9cf" lw 1.8 pt 4 ps 0.9
set style line 4 lc rgb "#238b45" lw 1.8 pt 9 ps 1.0
set style line 5 lc rgb "#e6850e" lw 1.8 pt 13 ps 1.1
set style line 6 lc rgb "#8064a2" lw 1.8 pt 11 ps 1.0
set style line 9 lc rgb "#444444" lw 1.5 dt 2          # peak

# Colours belong to a line, not to a place in the file: a peer that is missing leaves the others as they are.
style_of(title) = strstrt(title, "limpid") ? 1 : strstrt(title, "Eigen (S kept)") ? 2 : strstrt(title, "Eigen (P stored)") ? 2 : \
  strstrt(title, "Eigen (S fresh)") ? 3 : strstrt(title, "OpenBLAS") ? 4 : strstrt(title, "oneDNN") ? 5 : strstrt(title, "torch") ? 6 : 9

titles = "forward|backward|forward, causal (half the flop)|backward, causal (half the flop)"
files = "forward backward forward-causal backward-causal"
do for [f = 1:4] {
  file = data . "/" . word(files, f) . ".dat"
  # Titles by hand: words() has no separator of its own in every gnuplot.
  t = f == 1 ? "forward" : f == 2 ? "backward (10 n^2 d)" : f == 3 ? "forward, causal (half the flop)" : "backward, causal (half the flop)"
  set title t noenhanced
  blocks = int(system(sprintf("grep -c '^\"' '%s' 2>/dev/null || true", file)))
  if (blocks > 0) {
    plot for [i = 0:blocks-1] file index i using 1:2 with linespoints \
      linestyle style_of(system(sprintf("grep '^\"' '%s' | sed -n %dp", file, i + 1))) title columnheader(1)
  } else {
    set multiplot next
  }
}
unset multiplot
