// limpid: a reference to something that can be called, without its type: what takes it need not be a template.
// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>

#include "inline.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

template <class Signature>
class FunctionRef;

/// Valid as long as what it was made from. A default one must not be called.
template <class R, class... A>
class FunctionRef<R(A...)> {
 public:
  FunctionRef() = default;
  template <class F>
  LIMPID_INLINE FunctionRef(F&& f)  // NOLINT: implicit on purpose
      requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_(&call<std::remove_reference_t<F>>) {}

  R operator()(A... a) const { return call_(object_, static_cast<A>(a)...); }

 private:
  template <class F>  // no lambda, which is three functions for each F where nothing is inlined
  static R call(void* object, A... a) {
    return (*static_cast<F*>(object))(static_cast<A>(a)...);
  }

  void* object_ = nullptr;
  R (*call_)(void*, A...) = nullptr;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
