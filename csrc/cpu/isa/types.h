// Storage types and the types they are computed in.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

struct Half {  // storage only
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that a stored type is computed in.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

}  // namespace fastsr::cpu
