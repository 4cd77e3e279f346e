// Tiles of 64 channels in shared memory and 1x1 convolutions of a warp's own pixels: what the kernels of conv_mix and
// bsconv have in common, beside depthwise.cuh.
#pragma once

#include "depthwise.cuh"
#include "gelu.cuh"
#include "tf32.cuh"

namespace fastsr::cuda {

constexpr int kMixThreads = 256, kMixWarps = kMixThreads / 32, kMixChannels = 64;

// R rows of 16 pixels. A warp owns the 2 R pixels from 2 R * warp on, which lie in one row, and 2 columns.
template <class Number, int R>
struct MixTile {
  using T = Number;
  static constexpr int kRows = R, kPixels = R * kTileColumns, kOwn = kPixels / kMixWarps;
  static constexpr int kHaloColumns = kTileColumns + 2, kHaloPixels = (R + 2) * kHaloColumns;
  static constexpr int kPitch = kMixChannels + 16 / static_cast<int>(sizeof(T));  // of a pixel
  static constexpr int kSize = kPixels * kPitch, kHaloSize = kHaloPixels * kPitch;

  __device__ __forceinline__ static int own() { return threadIdx.x / 32 * kOwn; }
  __device__ __forceinline__ static int own_row() { return own() / kTileColumns; }
  __device__ __forceinline__ static int own_column() { return own() % kTileColumns; }
};

// float32's tiles are as high as the shared memory of every architecture allows.
template <class T>
using ForwardMix = MixTile<T, sizeof(T) == 2 ? 8 : 4>;

// ---- 1x1 convolutions. Weights: fragments [16 inputs, 8 in TF32][16 outputs][lane][4], or [input][output] in float32.

template <class T>
constexpr int mix_pitch = kMixChannels + 2;  // of an input in float32

template <class T>
constexpr int kMatrixWords =
    kTensorCores<T> ? kMixChannels * kMixChannels * static_cast<int>(sizeof(T)) / 4 : kMixChannels * mix_pitch<T>;

// Which outputs a lane ends up with. Weights may be either operand of a product: as B an output is a column, and lane t
// has two adjacent ones of every eight; as A a row, and lane g has rows g and g + 8.
enum class Order {
  kAsItIs,
  kEightOfColumns,  // 8 t to 8 t + 7 of every 32
  kTwoOfRows,       // 2 g and 2 g + 1 of every 16
  kFourOfRows       // 4 g to 4 g + 3 of every 32
};

template <Order O>
constexpr bool are_rows = O == Order::kTwoOfRows || O == Order::kFourOfRows;

// The output that is column (or row) `i` of packed weights.
template <Order O>
__device__ __forceinline__ int output_at(int i) {
  if constexpr (O == Order::kEightOfColumns) return i / 32 * 32 + i % 8 / 2 * 8 + i / 8 % 4 * 2 + i % 2;
  if constexpr (O == Order::kTwoOfRows) return i / 16 * 16 + i % 8 * 2 + i / 8 % 2;
  if constexpr (O == Order::kFourOfRows) return i / 32 * 32 + i % 8 * 4 + i / 8 % 4;
  return i;
}

// [outputs][inputs] or, transposed, [inputs][outputs]; zeros up to 64 x 64. float32 knows no order.
template <class T, Order O = Order::kAsItIs>
__device__ __forceinline__ void pack_matrix(const Parameter& p, int outputs, int inputs, bool transposed,
                                            uint32_t* to) {
  const int output_step = transposed ? 1 : inputs, input_step = transposed ? outputs : 1;
  p.typed([&](const auto* weights) {
    const auto at = [&](int output, int input) {
      return output < outputs && input < inputs ? to_float(weights[output * output_step + input * input_step]) : 0.f;
    };
    if constexpr (kTensorCores<T>) {
      constexpr int kOfWord = 4 / static_cast<int>(sizeof(T)), kOfRow = kMixChannels / kOfWord;
#pragma unroll 2
      for (int i = threadIdx.x; i < kMatrixWords<T>; i += kMixThreads) {
        const int of_row = i % kOfRow, input = kOfWord * of_row, column = i / kOfRow, output = output_at<O>(column);
        const int lane = column % 8 * 4 + of_row % 4, second = column / 8 % 2, behind = of_row / 4 % 2;
        const int word = are_rows<O> ? 2 * behind + second : 2 * second + behind;  // a0 to a3, or two times b0 and b1
        uint32_t& word_of = to[(of_row / 8 * 4 + column / 16) * 128 + 4 * lane + word];
        if constexpr (kOfWord == 2)
          word_of = pack2<T>(at(output, input), at(output, input + 1));
        else
          word_of = to_tf32(at(output, input));
      }
    } else {
#pragma unroll 2
      for (int i = threadIdx.x; i < kMixChannels * kMixChannels; i += kMixThreads) {
        const int input = i % kMixChannels, output = i / kMixChannels;
        to[input * mix_pitch<T> + output] = __float_as_uint(at(output, input));
      }
    }
  });
}

__device__ __forceinline__ void pack_bias(const Parameter& p, int count, float* to) {
  if (threadIdx.x < kMixChannels) to[threadIdx.x] = static_cast<int>(threadIdx.x) < count ? p[threadIdx.x] : 0.f;
}

// A lane's weights as A of a product in TF32, from what `pack_matrix` has packed: 16 outputs, 8 inputs.
struct PackedRows {
  const uint32_t* words;

  __device__ __forceinline__ uint4 operator()(int block, int step) const {
    return reinterpret_cast<const uint4*>(words)[(4 * step + block) * 32 + threadIdx.x % 32];
  }
};

// In TF32: adds products of a warp's eight pixels `from`, the columns, with blocks of 16 outputs, whose weights are
// rows(block, step). sum[block]: rows g and g + 8 of pixels 2 t and 2 t + 1, as g, g, g + 8, g + 8.
template <class M, int Blocks, class Rows, class T = typename M::T>
__device__ __forceinline__ void multiply_columns(const T* from, Rows rows, int inputs, float (&sum)[Blocks][4]) {
  const int lane = threadIdx.x % 32;
  from += lane % 8 * M::kPitch + lane / 8 * 4;
#pragma unroll 1
  for (int c = 0; c < inputs; c += 16) {
    uint32_t b[4];  // 16 channels
    load_matrices(b, from + c);
    for_product<T>(b);
#pragma unroll
    for (int n = 0; n < Blocks; ++n)
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint4 a = rows(n, c / 8 + step);
        mma_tf32(sum[n], a.x, a.y, a.z, a.w, b[2 * step], b[2 * step + 1]);
      }
  }
}

// 64 channels of a warp's own pixels in registers, as pairs of adjacent channels. In products of 16 bits the pixels are
// A, 16 of them; in TF32 they are B, eight, which is as many as float32's tiles give a warp.
template <class M>
struct OwnPixels {
  using T = typename M::T;
  static constexpr bool kAreColumns = __is_same(T, Tf32);
  static constexpr Order kOrder = kAreColumns ? Order::kTwoOfRows : Order::kAsItIs;  // of the weights
  static_assert(!kTensorCores<T> || M::kOwn == (kAreColumns ? 8 : 16));
  static constexpr int kPairs = M::kOwn;  // of a lane
  float value[2 * kPairs];

  __device__ __forceinline__ static int pixel(int pair) {
    const int lane = threadIdx.x % 32;
    return kAreColumns ? lane % 4 * 2 + pair % 2 : kTensorCores<T> ? lane / 4 + pair % 2 * 8 : pair;
  }
  __device__ __forceinline__ static int channel(int pair) {
    const int lane = threadIdx.x % 32;
    return kAreColumns ? pair / 2 * 16 + lane / 4 * 2 : kTensorCores<T> ? pair / 2 * 8 + lane % 4 * 2 : lane * 2;
  }
  __device__ __forceinline__ static int at(int pair) { return pixel(pair) * M::kPitch + channel(pair); }

  // The product of the warp's pixels `from` with packed weights; channels from `inputs` on need not be there, but for
  // zeros up to a multiple of 16.
  __device__ __forceinline__ void multiply(const T* from, const uint32_t* weights, int inputs = kMixChannels) {
    clear();
    add_product(from, weights, inputs);
  }
  // The same, added to what is there.
  __device__ __forceinline__ void add_product(const T* from, const uint32_t* weights, int inputs = kMixChannels) {
    const int lane = threadIdx.x % 32;
    if constexpr (kAreColumns) {
      add_product_by(from, PackedRows{weights}, inputs);
    } else if constexpr (kTensorCores<T>) {
      float sum[8][4];
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        sum[i / 2][i % 2 * 2] = value[2 * i], sum[i / 2][i % 2 * 2 + 1] = value[2 * i + 1];
      const uint4* w = reinterpret_cast<const uint4*>(weights) + lane;
      from += lane % 16 * M::kPitch + lane / 16 * 8;
#pragma unroll 1
      for (int step = 0; step < (inputs + 15) / 16; ++step) {
        uint32_t a[4];
        load_matrices(a, from + 16 * step);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint4 b = w[(4 * step + n) * 32];
          mma_k16<T>(sum[2 * n], a[0], a[1], a[2], a[3], b.x, b.y);
          mma_k16<T>(sum[2 * n + 1], a[0], a[1], a[2], a[3], b.z, b.w);
        }
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        value[2 * i] = sum[i / 2][i % 2 * 2], value[2 * i + 1] = sum[i / 2][i % 2 * 2 + 1];
    } else {
      const float* w = reinterpret_cast<const float*>(weights) + 2 * lane;
#pragma unroll 2
      for (int c = 0; c < inputs; c += 4) {
        float2 b[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] = *reinterpret_cast<const float2*>(w + (c + i) * mix_pitch<T>);
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
          const float4 a = *reinterpret_cast<const float4*>(from + p * M::kPitch + c);
          const float x[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            value[2 * p] = fmaf(x[i], b[i].x, value[2 * p]);
            value[2 * p + 1] = fmaf(x[i], b[i].y, value[2 * p + 1]);
          }
        }
      }
    }
  }
  // In TF32, with weights as `multiply_columns` takes them.
  template <class Rows>
  __device__ __forceinline__ void multiply_by(const T* from, Rows rows, int inputs = kMixChannels) {
    clear();
    add_product_by(from, rows, inputs);
  }
  template <class Rows>
  __device__ __forceinline__ void add_product_by(const T* from, Rows rows, int inputs) {
    float sum[4][4];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) sum[i / 2][i % 2] = value[2 * i], sum[i / 2][i % 2 + 2] = value[2 * i + 1];
    multiply_columns<M>(from, rows, inputs, sum);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) value[2 * i] = sum[i / 2][i % 2], value[2 * i + 1] = sum[i / 2][i % 2 + 2];
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) value[i] = 0.f;
  }
  // The inverse of `put`.
  __device__ __forceinline__ void take(const T* from) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 both = load_pair(from + at(i));
      value[2 * i] = both.x, value[2 * i + 1] = both.y;
    }
  }
  __device__ __forceinline__ void add(const float* bias) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) value[2 * i] += bias[channel(i)], value[2 * i + 1] += bias[channel(i) + 1];
  }
  // Into the warp's pixels of a tile; a __syncwarp before and after is the caller's.
  __device__ __forceinline__ void put(T* to) const {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) store_pair(to + at(i), value[2 * i], value[2 * i + 1]);
  }
};

// A warp's own pixels, from shared memory to a map.
template <class M, class T = typename M::T>
__device__ __forceinline__ void store_own(const PixelMap<T>& m, const Tiles& s, int64_t n, int y0, int x0,
                                          const T* tile) {
  // What follows from the lane is not to fill registers that float32's kernels have not got.
  const int lane = (kTensorCores<T> ? threadIdx.x : computed_here(threadIdx.x)) % 32;
  const int y = y0 + M::own_row(), x_begin = x0 + M::own_column();
  if (y >= s.h) return;
  tile += M::own() * M::kPitch;
  with_vector<T>(m.vector, [&](auto vector) {
    constexpr int V = decltype(vector)::value, kLanes = kMixChannels / V < 32 ? kMixChannels / V : 32;
    const bool across = V > 1 || m.c_stride == 1;
    const int first = across ? lane / kLanes : lane % M::kOwn, step = across ? 32 / kLanes : M::kOwn;
#pragma unroll 1
    for (int c = across ? lane % kLanes * V : lane / M::kOwn; c < m.channels; c += across ? kLanes * V : 32 / M::kOwn) {
      T* to = m.data + m.at(n, y, x_begin + first) + c * m.c_stride;
#pragma unroll 4
      for (int p = first; p < M::kOwn; p += step, to += step * m.w_stride) {
        if (x_begin + p >= s.w) break;
        const T* from = tile + p * M::kPitch + c;
        if constexpr (V * sizeof(T) == 16)
          store_128(to, reinterpret_cast<const uint32_t*>(from));
        else if constexpr (V * sizeof(T) == 8)
          *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
        else if constexpr (V * sizeof(T) == 4)
          *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
        else
          *to = *from;
      }
    }
  });
}

}  // namespace fastsr::cuda
