// What follows a dense convolution: one vector of output channels of one pixel at a time.
//
//   forward    pre,  y = act(pre) + shortcut
//   gradient   g = dy * act'(pre)
#pragma once

#include "conv_tools.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

// The results of `count` neighbouring pixels of row (n, h) from w on, channels from c on; `pre` has no bias yet.
template <Activation activation, class T>
FASTSR_INLINE void finish_pixels(const Conv3x3Args<T>& args, int64_t n, int64_t h, int64_t w, int64_t c, int64_t count,
                                 vf* pre) {
  const vf bias = load(args.bias + c);
  const int64_t valid = args.k - c;
  for (int64_t i = 0; i < count; ++i) pre[i] += bias;
  if (args.dy.data) {
    const T* dy = args.dy.at(n, h, w) + c;
    float* g = args.g.at(n, h, w) + c;
    for (int64_t i = 0; i < count; ++i, dy += args.dy.stride_w, g += args.g.stride_w)
      store_first(g, load_first(dy, valid) * activate_grad<activation>(pre[i]), valid);
    return;
  }
  if (args.pre.data) {
    float* to = args.pre.at(n, h, w) + c;
    for (int64_t i = 0; i < count; ++i, to += args.pre.stride_w) store_first(to, pre[i], valid);
    if (!args.y.data) return;
  }
  T* y = args.y.at(n, h, w) + c;
  if (!args.shortcut.data) {
    for (int64_t i = 0; i < count; ++i, y += args.y.stride_w) store_first(y, activate<activation>(pre[i]), valid);
    return;
  }
  const T* s = args.shortcut.at(n, h, w) + c;
  for (int64_t i = 0; i < count; ++i, y += args.y.stride_w, s += args.shortcut.stride_w)
    store_first(y, activate<activation>(pre[i]) + load_first(s, valid), valid);
}

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
