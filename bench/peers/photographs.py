# limpid: non-local means of scikit-image and OpenCV on photographs, called by examples/denoise and by the bench where Python has
# them.
# SPDX-License-Identifier: MIT
# photographs.py --names prints the filters there are, one a line; photographs.py FOLDER reads clean.npy and noisy.npy (range
# 1) and about.npy (sigma, side of the patches, of the window), and prints a line a filter: name|PSNR SSIM seconds;
# photographs.py --seconds NAME PICTURE SIGMA SIDE WINDOW CALLS adds noise to a grey picture and prints the seconds that so many
# calls of one filter take, after one that is not timed where there are several. One thread.
import os
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

filters, missing = {}, []
try:
    import numpy as np
    import skimage.io
    from skimage.metrics import structural_similarity
    from skimage.restoration import denoise_nl_means

    for mode in ("fast", "slow"):
        filters[f"scikit-image {mode}"] = lambda noisy, sigma, side, window, mode=mode: denoise_nl_means(
            noisy, patch_size=side, patch_distance=window // 2, h=0.6 * sigma, sigma=sigma, fast_mode=mode == "fast")
except ImportError:
    missing.append("scikit-image")
try:
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    if filters:  # which has the SSIM
        filters["OpenCV"] = lambda noisy, sigma, side, window: cv2.fastNlMeansDenoising(
            np.clip(noisy * 255 + 0.5, 0, 255).astype(np.uint8), None, float(255 * sigma), side, window) / 255.0
except ImportError:
    missing.append("OpenCV")

if sys.argv[1] == "--names":
    print("\n".join(filters))
    if missing:
        print(", ".join(missing) + ": not installed, left out", file=sys.stderr)
    sys.exit(0 if filters else 1)

if sys.argv[1] == "--seconds":
    name, picture, sigma, side, window, calls = sys.argv[2:]
    clean = cv2.imread(picture, cv2.IMREAD_GRAYSCALE) if "cv2" in globals() else skimage.io.imread(picture, as_gray=True)
    clean = clean / 255.0 if clean.dtype == np.uint8 else clean
    noisy = clean + float(sigma) * np.random.default_rng(1).standard_normal(clean.shape)
    arguments = noisy, float(sigma), int(side), int(window)
    if int(calls) > 1:
        filters[name](*arguments)
    start = time.perf_counter()
    for _ in range(int(calls)):
        filters[name](*arguments)
    print(time.perf_counter() - start)
    sys.exit(0)

folder = sys.argv[1]
clean, noisy = (np.load(f"{folder}/{name}.npy").astype(np.float64) for name in ("clean", "noisy"))
sigma, side, window = np.load(f"{folder}/about.npy")
for name, run in filters.items():
    start = time.perf_counter()
    out = run(noisy, float(sigma), int(side), int(window))
    seconds = time.perf_counter() - start
    out = np.clip(out, 0, 1)
    psnr = -10 * np.log10(np.mean((out - clean) ** 2))
    ssim = float("nan")
    if min(clean.shape) >= 11:
        ssim = structural_similarity(clean, out, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    print(f"{name}|{psnr:.4f} {ssim:.4f} {seconds:.4f}")
