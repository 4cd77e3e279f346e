// From an AlkCondenseCall to what packs its weights.
#pragma once

#include "alk_condense.cuh"
#include "alk_launch.cuh"

namespace fastsr::cuda {

template <class T>
CondensePack<T> condense_pack_of(const AlkCondenseCall& call) {
  CondensePack<T> a{};
  a.alk = alk_pack_of<T>(call.alk, false);
  Parameter* const parameters[4] = {&a.w5, &a.b5, &a.w1, &a.b1};
  for (int i = 0; i < 4; ++i)
    *parameters[i] = Parameter{call.parameters[i], static_cast<int>(call.alk.parameter_dtype)};
  a.d = static_cast<int>(call.d), a.outputs = static_cast<int>(call.outputs), a.inner = static_cast<int>(call.inner);
  CondensePacked& at = a.at;
  at.w5 = a.alk.at.end;
  at.w1 = at.w5 + kCondenseBlocks * (kDistilled * product_block_bytes<T>(a.d) + product_block_bytes<T>(a.alk.k)) / 4;
  at.b5 = at.w1 + product_block_bytes<T>(a.outputs) / 4;
  at.b1 = at.b5 + kCondenseBlocks * kBlock;
  at.end = at.b1 + kBlock;
  return a;
}

}  // namespace fastsr::cuda
