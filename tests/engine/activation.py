# limpid: the polynomials of engine/activation.hpp: (a + k) e^(a^2 / 2) Phi(-a) over t = (a - k) / (a + k), minimax in the
# relative error by Remez' exchange algorithm in 50 digits. python3 activation.py K LARGEST DEGREE; float 4 13.5 9, double
# 4 38.7 22. Needs mpmath.
# SPDX-License-Identifier: MIT
import sys
from mpmath import mp, mpf, erfc, exp, sqrt, cos, pi, matrix, lu_solve, nstr

mp.dps = 50


def minimax(k, largest, degree):
    def wanted(t):
        a = k * (1 + t) / (1 - t)
        return (a + k) * exp(a * a / 2) * erfc(a / sqrt(mpf(2))) / 2

    low, high, count = mpf(-1), (largest - k) / (largest + k), degree + 2

    def nodes(n):
        return [(low + high) / 2 - (high - low) / 2 * cos(pi * i / mpf(n)) for i in range(n + 1)]

    grid = nodes(40 * count)
    values = [wanted(t) for t in grid]
    points = nodes(count - 1)
    for _ in range(20):
        # the polynomial whose relative error is e, -e, e ... at the points
        a, b = matrix(count, count), matrix(count, 1)
        for i, t in enumerate(points):
            b[i] = wanted(t)
            for j in range(degree + 1):
                a[i, j] = t**j
            a[i, degree + 1] = (-1) ** i * b[i]
        c = lu_solve(a, b)
        error = []
        for t, y in zip(grid, values):
            p = mpf(0)
            for j in range(degree, -1, -1):
                p = p * t + c[j]
            error.append(p / y - 1)
        # its extrema are the next points
        runs = [[0]]
        for i in range(1, len(grid)):
            if (error[i] > 0) == (error[runs[-1][-1]] > 0):
                runs[-1].append(i)
            else:
                runs.append([i])
        peaks = [max(run, key=lambda i: abs(error[i])) for run in runs]
        worst = max(abs(e) for e in error)
        if len(peaks) < count or worst < abs(c[degree + 1]) * mpf("1.01"):
            break
        while len(peaks) > count:
            peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
        points = [grid[i] for i in peaks]
    return worst, [c[j] for j in range(degree + 1)]


worst, poly = minimax(mpf(sys.argv[1]), mpf(sys.argv[2]), int(sys.argv[3]))
print("relative error", nstr(worst, 3))
for c in poly:
    print(nstr(c, 22))
