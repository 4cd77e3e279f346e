#include "alk_condense_launch.cuh"
#include "alk_together.cuh"

namespace fastsr::cuda {
namespace {

template <class T>
CondensePack<T> pack_of(const AlkPart& part) {
  if (part.outputs > 0) return condense_pack_of<T>(part);
  CondensePack<T> a{};
  a.alk = alk_pack_of<T>(part.alk, false);
  a.at.w5 = a.at.end = a.alk.at.end;
  return a;
}

template <class T>
int64_t words_of(const AlkOrders<T>& orders) {
  int64_t words = orders.plain.at.end;
  if constexpr (__is_same(T, float)) words += orders.tf32.at.end;
  return words;
}

template <class T>
AlkOrders<T> orders_of(const AlkPart& part) {
  AlkOrders<T> orders{pack_of<T>(part)};
  orders.plain.alk.to = static_cast<uint32_t*>(part.workspace);
  if constexpr (__is_same(T, float)) {
    orders.tf32 = pack_of<Tf32>(part);
    orders.tf32.alk.to = orders.plain.alk.to + orders.plain.at.end;
  }
  return orders;
}

// At most kMostTogether.
template <class T>
cudaError_t pack(const AlkPart* parts, int64_t count, cudaStream_t stream) {
  AlkTogether<T> all{};
  for (int64_t i = 0; i < count; ++i) {
    all.parts[i] = orders_of<T>(parts[i]);
    const auto blocks = static_cast<unsigned>((words_of(all.parts[i]) + kThreads - 1) / kThreads);
    if (all.blocks < blocks) all.blocks = blocks;
  }
  return launch(alk_pack_together_kernel<T>, count * all.blocks, kThreads, 0, stream, all);
}

}  // namespace

int64_t alk_part_bytes(const AlkPart& part) {
  int64_t words = 0;
  with_dtype(part.alk.dtype, [&](auto type) {
    words = words_of(orders_of<decltype(type)>(part));
    return cudaSuccess;
  });
  return 4 * words;
}

cudaError_t alk_pack_together(const AlkPart* parts, int64_t count, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (int64_t i = 0; i < count && error == cudaSuccess; i += kMostTogether)
    error = with_dtype(parts[i].alk.dtype, [&](auto type) {
      return pack<decltype(type)>(parts + i, count - i < kMostTogether ? count - i : kMostTogether, stream);
    });
  return error;
}

}  // namespace fastsr::cuda
