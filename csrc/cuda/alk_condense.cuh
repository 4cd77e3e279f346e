// The end of an ALKDB's distillation, for inference: its fourth convolution, the 1x1 over all four maps, and the 1x1
// with which the ESA behind it begins.
//
//   r = GELU(alk_conv(x));  y = W5 (d1, d2, d3, r) + b5;  reduced = W1 y + b1
//
// r is never stored: it leaves the tile of alk_forward.cuh with eight adjacent channels of a pixel on a lane, which is
// how the next product wants it, as does the third one y.
#pragma once

#include "alk_condense.h"
#include "alk_forward.cuh"
#include "alk_pack.cuh"
#include "pixel_lanes.cuh"

namespace fastsr::cuda {

constexpr int kCondenseBlocks = 2;  // blocks of channels of y
static_assert(kMostCondensedFrom <= kBlock && kMostCondensed <= kCondenseBlocks * kBlock);

template <class T>
using CondensePlane = Plane<T, 24, 4>;  // 32 channels

// Where the weights begin, in words, behind those of the convolution.
struct CondensePacked {
  int64_t w5, w1, b5, b1, end;
};

template <class T>
struct CondensePack {
  AlkPack<T> alk;
  Parameter w5, b5, w1, b1;
  CondensePacked at;
  int d, outputs, inner;  // channels of a distilled map, of y and of reduced
};

template <class T>
__device__ __forceinline__ uint32_t condense_word(int64_t i, const CondensePack<T>& a) {
  const CondensePacked& at = a.at;
  if (i < at.w5) return alk_word(i, a.alk);
  if (i < at.w1) {
    const int inputs = kDistilled * a.d + a.alk.k;
    const int64_t of_map = product_block_bytes<T>(a.d) / 4;
    const int64_t of_block = kDistilled * of_map + product_block_bytes<T>(a.alk.k) / 4;
    const int64_t block = (i - at.w5) / of_block, in_block = (i - at.w5) % of_block;
    const int map = static_cast<int>(in_block / of_map < kDistilled ? in_block / of_map : kDistilled);
    const int channels = map < kDistilled ? a.d : a.alk.k;
    return product_word<T>(in_block - map * of_map, channels, [&](int o, int j) {
      o += static_cast<int>(block) * kBlock;
      return o < a.outputs && j < channels ? a.w5[static_cast<int64_t>(o) * inputs + map * a.d + j] : 0.f;
    });
  }
  if (i < at.b5)
    return product_word<T>(i - at.w1, a.outputs, [&](int o, int j) {
      return o < a.inner && j < a.outputs ? a.w1[static_cast<int64_t>(o) * a.outputs + j] : 0.f;
    });
  if (i < at.b1) return __float_as_uint(i - at.b5 < a.outputs ? a.b5[i - at.b5] : 0.f);
  return __float_as_uint(i - at.b1 < a.inner ? a.b1[i - at.b1] : 0.f);
}

template <class T>
__global__ void __launch_bounds__(kThreads) alk_condense_pack_kernel(const CondensePack<T> a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < a.at.end) a.alk.to[i] = condense_word(i, a);
}

template <class T>
struct AlkCondense {
  AlkForward<T> alk;  // y and distilled are not used
  Map<T> maps[kDistilled], y, reduced;
  const unsigned char *w5, *w1;
  const float *b5, *b1;
  int64_t block_bytes;  // of w5
};

// v of a tile, the last pass of it in `planes` and the others in y, and what normalises it in `norm` [group][pixel]:
// 1 / sigma, -mean / sigma. The steps are those of alk_forward_kernel, which has its own: sharing them cost it 24 bytes
// of stack on sm_120.
template <class P, Gelu Form, class T = typename P::T>
__device__ __forceinline__ void make_tile(const AlkForward<T>& a, int64_t n, int y0, int x0, T* planes, float2* norm) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int passes = (a.shape.k + P::kChannels - 1) / P::kChannels, padded_k = blocks_of(a.shape.k) * kBlock;
  PixelSums<T> sums;
  sums.start();
  for (int pass = 0; pass < passes; ++pass) {
    fill_planes<P>(planes, a.x, a.shape, n, y0, x0, pass, a.rows);
    __syncthreads();
    for (int i = 0; i < P::kPerWarp; ++i) {
      const int in_pass = warp + kWarps * i, channel = pass * P::kChannels + in_pass;
      if (channel >= a.shape.k) break;
      T* plane = planes + P::of_warp(warp, i);
      Filters<P> f;
      f.load(a.filters, channel);
      const float b0 = a.vectors[channel], b1 = a.vectors[padded_k + channel], b2 = a.vectors[2 * padded_k + channel];
      float v[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float down[4] = {b0, b0, b0, b0}, across[4] = {b1, b1, b1, b1}, small[4] = {b2, b2, b2, b2};
        convolve_down<P>(plane, f, half, down);
        convolve_across<P>(plane, f, half, across);
        convolve_small<P>(plane, f, half, small);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          v[half][j] = gelu<Form>(down[j]) + gelu<Form>(across[j]) + gelu<Form>(small[j]);
          sums.add(4 * half + j, v[half][j]);
        }
      }
      ++sums.count;
      __syncwarp();  // all lanes have read the plane
      put_results<P>(plane, 0, v[0]);
      put_results<P>(plane, 1, v[1]);
    }
    __syncthreads();
    if (a.raw || pass + 1 < passes) {
      for_each_result<P>(a.shape, y0, x0, pass, [&](int block, int group, int c, int y, int x, bool inside) {
        const Eight<T> v = read_pixels<P>(planes, P::kSize, block, group);
        // Without pairs, which cost 8 bytes of stack on sm_90a.
        if (inside) a.y.template store<false>(a.y.at(n, y, x), c, v);
      });
      __syncthreads();
    }
  }
  if (a.raw) return;

  // The warps' means and deviations meet behind the results in each warp's own planes.
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float2* to = reinterpret_cast<float2*>(planes + P::of_warp(warp, i % P::kPerWarp) + kPixels);
    to[i / P::kPerWarp * 32 + lane] = sums.result(i);
  }
  __syncthreads();
  {
    const int i = warp;  // thread (i, lane) sums pixel i of that lane
    float mean = 0.f, squares = 0.f;
    float2 part[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const T* from = planes + P::of_warp(w, i % P::kPerWarp) + kPixels;
      part[w] = reinterpret_cast<const float2*>(from)[i / P::kPerWarp * 32 + lane];
      mean = fmaf(part[w].x, static_cast<float>((a.shape.k - w + kWarps - 1) / kWarps), mean);
    }
    mean /= a.shape.k;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float off = part[w].x - mean;
      squares += fmaf(off * off, static_cast<float>((a.shape.k - w + kWarps - 1) / kWarps), part[w].y);
    }
    const float r = rsqrtf(fmaxf(squares, 0.f) / a.shape.k + a.eps);
    const int t = lane % 4, row = P::row(lane / 4) + i % 4 / 2 * 8, group = i / 4 * 16 + row;
    norm[8 * group + 2 * t + i % 2] = make_float2(r, -mean * r);
  }
  __syncthreads();
}

template <class T, Gelu Form>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 1 : 2) alk_condense_kernel(const AlkCondense<T> a) {
  using P = CondensePlane<T>;
  FASTSR_SHARED_MEMORY(memory);
  T* planes = reinterpret_cast<T*>(memory);
  float2* norm = reinterpret_cast<float2*>(memory + P::kBytes);
  const AlkShape& s = a.alk.shape;
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 8;
  int64_t n;
  int y0, x0;
  s.tile_at(blockIdx.x, &n, &y0, &x0);
  make_tile<P, Form>(a.alk, n, y0, x0, planes, norm);

  const float *gamma = a.alk.vectors + 3 * kBlock, *beta = gamma + kBlock;
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < kTile && y0 + row < s.h; row += kWarps) {
    bool inside[2];
    Eight<T> r[2];
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      inside[p] = x0 + 8 * p + g < s.w;
      const float2 scale = norm[8 * (row + 16 * p) + g];
      float z[8];
      // Where a lane reads is not to be kept from row to row: 8 bytes of stack on sm_100 and sm_120.
      const int here = computed_here(threadIdx.x) % 32;
      to_floats(read_pixels<P>(planes, P::kSize, 0, row + 16 * p, here), z);
#pragma unroll
      for (int i = 0; i < 8; ++i) {  // planes without a channel hold anything
        const float value = gelu<Form>(fmaf(fmaf(z[i], scale.x, scale.y), gamma[c + i], beta[c + i]));
        z[i] = c + i < s.k ? value : 0.f;
      }
      r[p] = to_eight<T>(z);
    }
    float sum[kCondenseBlocks][2][8];
#pragma unroll
    for (int i = 0; i < kCondenseBlocks * 16; ++i) sum[i / 16][i / 8 % 2][i % 8] = a.b5[i / 16 * kBlock + c + i % 8];
    const unsigned char* w = a.w5;
#pragma unroll 1
    for (int map = 0; map < kDistilled; ++map) {
      const Map<T> from = a.maps[map];
      int64_t offset[2];
#pragma unroll
      for (int p = 0; p < 2; ++p) offset[p] = inside[p] ? from.at(n, y0 + row, x0 + 8 * p + g) : -1;
      pixel_products<T, true, kCondenseBlocks>(from, offset, w, a.block_bytes, sum);
      w += product_block_bytes<T>(from.channels);
    }
    float reduced[2][8];
#pragma unroll
    for (int i = 0; i < 16; ++i) reduced[i / 8][i % 8] = a.b1[c + i % 8];
#pragma unroll
    for (int block = 0; block < kCondenseBlocks; ++block) {
      lane_product<T>(r, w + block * a.block_bytes, s.k, 0, sum[block]);
      Eight<T> e[2];
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        e[p] = to_eight<T>(sum[block][p]);
        if (inside[p] && block * kBlock + c < a.y.channels)
          a.y.template store<false>(a.y.at(n, y0 + row, x0 + 8 * p + g), block * kBlock + c, e[p]);
      }
      if (block < blocks_of(a.y.channels)) lane_product<T>(e, a.w1, a.y.channels, block, reduced);
    }
#pragma unroll
    for (int p = 0; p < 2; ++p)
      if (inside[p] && c < a.reduced.channels)
        a.reduced.template store<false>(a.reduced.at(n, y0 + row, x0 + 8 * p + g), c, to_eight<T>(reduced[p]));
  }
}

}  // namespace fastsr::cuda
