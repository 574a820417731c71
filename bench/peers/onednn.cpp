// limpid: attention out of oneDNN primitives (matmul, softmax, matmul)
// SPDX-License-Identifier: MIT
#include "peers.hpp"

#if LIMPID_BENCH_ONEDNN

#include <dlfcn.h>

#include <oneapi/dnnl/dnnl.hpp>

namespace bench {
namespace {

// The primitives of one problem. Forward only, float only, without a mask: oneDNN's softmax has none, and adding an
// n x n mask would time something nobody would do.
class Primitives {
 public:
  explicit Primitives(const Problem<float>& p)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_), out_(p.q.rows(), p.d), scores_(p.heads * p.n, p.n) {
    using dnnl::memory;
    const memory::dims wide{p.heads, p.n, p.d}, square{p.heads, p.n, p.n}, turned{p.heads, p.d, p.n};
    const auto type = memory::data_type::f32;
    const memory::desc rows(wide, type, memory::format_tag::abc), score(square, type, memory::format_tag::abc);
    // K^T is K read in another order, not a copy.
    const memory::desc keys(turned, type, memory::format_tag::acb);

    dnnl::post_ops scale;
    dnnl::primitive_attr attr, plain;
#if DNNL_VERSION_MAJOR >= 3
    scale.append_eltwise(dnnl::algorithm::eltwise_linear, p.scale, 0.f);
    attr.set_post_ops(scale);
    qk_ = dnnl::matmul({engine_, rows, keys, score, attr});
    softmax_ = dnnl::softmax_forward(
        {engine_, dnnl::prop_kind::forward_inference, dnnl::algorithm::softmax_accurate, score, score, 2});
    pv_ = dnnl::matmul({engine_, score, rows, rows, plain});
#else
    scale.append_eltwise(1.f, dnnl::algorithm::eltwise_linear, p.scale, 0.f);
    attr.set_post_ops(scale);
    qk_ = dnnl::matmul({{rows, keys, score}, attr, engine_});
    softmax_ = dnnl::softmax_forward({{dnnl::prop_kind::forward_inference, score, 2}, engine_});
    pv_ = dnnl::matmul({{score, rows, rows}, plain, engine_});
#endif
    auto wrap = [this](const memory::desc& desc, const float* data) {
      return memory(desc, engine_, const_cast<float*>(data));
    };
    const memory s = wrap(score, scores_.data());
    qk_args_ = {{DNNL_ARG_SRC, wrap(rows, p.q.data())}, {DNNL_ARG_WEIGHTS, wrap(keys, p.k.data())}, {DNNL_ARG_DST, s}};
    softmax_args_ = {{DNNL_ARG_SRC, s}, {DNNL_ARG_DST, s}};
    pv_args_ = {{DNNL_ARG_SRC, s}, {DNNL_ARG_WEIGHTS, wrap(rows, p.v.data())}, {DNNL_ARG_DST, wrap(rows, out_.data())}};
  }

  void run() {
    qk_.execute(stream_, qk_args_);
    softmax_.execute(stream_, softmax_args_);
    pv_.execute(stream_, pv_args_);
    stream_.wait();
  }
  const Matrix<float>& out() const { return out_; }

 private:
  using Args = std::unordered_map<int, dnnl::memory>;
  dnnl::engine engine_;
  dnnl::stream stream_;
  Matrix<float> out_, scores_;
  dnnl::matmul qk_, pv_;
  dnnl::softmax_forward softmax_;
  Args qk_args_, softmax_args_, pv_args_;
};

// oneDNN brings its own OpenMP; the program does not link it, so the call is looked up. Without OpenMP nothing happens.
void set_openmp_threads(int n) {
  if (void* f = dlsym(RTLD_DEFAULT, "omp_set_num_threads")) reinterpret_cast<void (*)(int)>(f)(n);
}

}  // namespace

template <class S>
std::vector<Peer<S>> onednn_peers(const Problem<S>& problem, Direction direction, Crew& crew) {
  if constexpr (std::is_same_v<S, float>) {
    if (direction == Direction::backward || problem.causal || !onednn_status().used) return {};
    const int threads = crew.size();
    set_openmp_threads(threads);
    auto primitives = std::make_shared<Primitives>(problem);
    return {{candidate("onednn",
                       [primitives, threads] {
                         set_openmp_threads(threads);
                         primitives->run();
                       }),
             [primitives] { return primitives->out(); }}};
  } else {
    return {};
  }
}

const PeerStatus& onednn_status() {
  static const PeerStatus status = [] {
    set_openmp_threads(1);
    const dnnl_version_t* v = dnnl_version();
    const auto number = [](auto x) { return std::to_string(x); };
    const std::string runtime = v->cpu_runtime == DNNL_RUNTIME_OMP   ? "OpenMP"
                                : v->cpu_runtime == DNNL_RUNTIME_TBB ? "TBB"
                                : v->cpu_runtime == DNNL_RUNTIME_SEQ ? "no threads"
                                                                     : "threads of its own";
    return judged("oneDNN " + number(v->major) + "." + number(v->minor) + "." + number(v->patch) + "; with " + runtime,
                  product_seconds([](const auto& a, const auto& b, auto& c) {
                    constexpr Index n = product_size;
                    dnnl_sgemm('N', 'N', n, n, n, 1.0f, a.data(), n, b.data(), n, 0.0f, c.data(), n);
                  }));
  }();
  return status;
}

}  // namespace bench

#else

namespace bench {
template <class S>
std::vector<Peer<S>> onednn_peers(const Problem<S>&, Direction, Crew&) {
  return {};
}
const PeerStatus& onednn_status() {
  static const PeerStatus status{"oneDNN not found when the bench was configured: skipped"};
  return status;
}
}  // namespace bench

#endif

namespace bench {
template std::vector<Peer<float>> onednn_peers(const Problem<float>&, Direction, Crew&);
template std::vector<Peer<double>> onednn_peers(const Problem<double>&, Direction, Crew&);
}  // namespace bench
