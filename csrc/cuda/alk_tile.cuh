// What a 16 x 16 tile of an ALKConv has in common, forward and backward: u = W x with its halo in shared memory, one
// plane per channel, and results in its place.
//
// A plane is S x S pixels of u, for S = 24, 32, 40 or 48, with a margin of S / 2 - 8 on every side: filters of up to
// S - 15 taps, centred in a window of that many.
#pragma once

#include "product.cuh"

namespace fastsr::cuda {

constexpr int kTile = 16, kThreads = 256, kWarps = kThreads / 32, kPixels = kTile * kTile;

struct AlkShape {
  int64_t tiles;  // of all images
  int h, w, c, k, d, taps;
  int tiles_x, tiles_y;

  __device__ __forceinline__ void tile_at(int64_t i, int64_t* n, int* y, int* x) const {
    const int in_image = static_cast<int>(i % (static_cast<int64_t>(tiles_x) * tiles_y));
    *n = i / (static_cast<int64_t>(tiles_x) * tiles_y);
    *y = in_image / tiles_x * kTile;
    *x = in_image % tiles_x * kTile;
  }
};

// In TF32 a channel's filters are the diagonals of its Toeplitz matrices, taps between zeros: 1xk, kx1, each row of
// 3x3. A lane's numbers begin 7 to 15 diagonals in (alk_convolve.cuh).
constexpr int kSmallDiagonals = 24, kBeforeDiagonals = 7;
__host__ __device__ constexpr int diagonals_of(int side) { return 2 * side + 3 * kSmallDiagonals; }

// `PerWarp`: channels of a pass divided by warps.
template <class Number, int Side, int PerWarp>
struct Plane {
  using T = Number;
  static constexpr int S = Side;
  static constexpr int kMargin = S / 2 - 8, kWindow = 2 * kMargin + 1;
  // An odd multiple of 16 bytes: eight rows of a matrix fall into eight different groups of banks.
  static constexpr int kRow = S == 48 ? 56 : S == 24 ? 24 : 40;
  // Puts the tile's first column on 16 bytes, which the transposed matrix loads need.
  static constexpr int kStart = sizeof(T) == 2 && kMargin % 8 == 4 ? 4 : 0;
  static constexpr int kSize = S * kRow + (kTensorCores<T> ? 8 : 2);    // elements; the rest keeps planes off one bank
  static constexpr int kResults = kPixels + (kTensorCores<T> ? 8 : 2);  // the same for results alone
  // Per plane, in steps of eight planes: adjacent channels of four pixels (TF32), or pairs of channels of eight, fall
  // on different banks.
  static constexpr int kSkew = sizeof(T) == 2 ? 2 : __is_same(T, Tf32) ? 1 : 0;
  static constexpr int kPerWarp = PerWarp;
  static constexpr int kChannels = kWarps * kPerWarp;  // of one pass
  static constexpr int kBytes = kChannels * (kSize + kSkew) * static_cast<int>(sizeof(T));
  // Groups of eight columns that eight results of the 1xk need, of eight rows for sixteen of the kx1, and registers of
  // a channel's Toeplitz matrices: 1xk, 3 x (1x3), kx1 (alk_pack.cuh).
  static constexpr int kAcross = (S - 8) / 8, kDown = S / 8;
  static constexpr int kOfAcross = kAcross * sizeof(T) / 2, kOfSmall = 3 * sizeof(T);
  static constexpr int kRegisters = kOfAcross + kOfSmall + (sizeof(T) == 2 ? kDown : kOfAcross);
  static constexpr int kFilterBytes = sizeof(T) == 2       ? (kRegisters + 3) / 4 * 32 * 16
                                      : __is_same(T, Tf32) ? 4 * diagonals_of(S)
                                                           : (2 * kWindow + 9 + 3) / 4 * 16;
  static constexpr int kSmallStart = (kMargin - 1) / 4 * 4;  // first column of the 16 that the 3x3 looks at

  // Where a channel's plane begins, and that of a warp's i-th channel.
  __device__ __forceinline__ static int first(int channel, int size = kSize) {
    return channel * size + channel / 8 * 8 * kSkew;
  }
  __device__ __forceinline__ static int of_warp(int warp, int i, int size = kSize) {
    return warp * size + i * kWarps * (size + kSkew);
  }
  // Once a channel is done, its plane holds 256 results instead, [2 halves of a row][16 rows][8 pixels].
  __device__ __forceinline__ static int group(int index) { return index * 8; }
  // The row of the tile that the lanes (g, 0..3) of a product have as their g-th; g + 8 is eight further down. Where a
  // lane reads 8 bytes of 16-bit numbers, half a warp reads every other row, for adjacent ones overlap in their banks.
  __device__ __forceinline__ static int row(int g) { return sizeof(T) == 2 ? g % 4 * 2 + g / 4 : g; }
  __device__ __forceinline__ static int lane_of_row(int row) { return sizeof(T) == 2 ? row % 2 * 4 + row / 2 : row; }
};

template <class T>
__device__ __forceinline__ float2 pair_at(const T* from) {  // two adjacent numbers
  if constexpr (sizeof(T) == 4)
    return *reinterpret_cast<const float2*>(from);
  else
    return unpack2<T>(*reinterpret_cast<const uint32_t*>(from));
}
template <class T>
__device__ __forceinline__ void put_pair(T* to, float low, float high) {
  if constexpr (sizeof(T) == 4)
    *reinterpret_cast<float2*>(to) = make_float2(low, high);
  else
    *reinterpret_cast<uint32_t*>(to) = pack2<T>(low, high);
}

// u of the channels [pass * kChannels, ...) at the tile and its margin, as products take it; outside the image it is 0.
template <class P, class T = typename P::T>
__device__ __forceinline__ void fill_planes(T* planes, const Map<T>& in, const AlkShape& s, int64_t n, int y0, int x0,
                                            int pass, const unsigned char* packed) {
  constexpr int S = P::S;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  if constexpr (kTensorCores<T>) {
    // Of the 16 channels of a product, a pass with eight keeps the half that is its own.
    constexpr bool kHalf = P::kChannels < 16;
    constexpr int kRows = kHalf ? 1 : P::kChannels / 16, kColumns = S / 8, kChunk = 32 * kSteps<T>;
    const int chunks = blocks_of(s.c);
#pragma unroll 1
    for (int r = warp; r < S; r += kWarps) {
      const int y = y0 - P::kMargin + r;
      const bool inside = y >= 0 && y < s.h;
      float sum[kRows][kColumns][4] = {};
      const uint4* w = reinterpret_cast<const uint4*>(packed) + lane;
      w += static_cast<int64_t>(kHalf ? pass / 2 : pass) * kRows * chunks * kChunk;
      int64_t offset[kColumns];  // of the lane's pixels, negative outside the image
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int x = x0 - P::kMargin + 8 * j + g;
        offset[j] = computed_here(x >= 0 && x < s.w ? in.at(n, y, x) : -1);
      }
#pragma unroll 1
      for (int c = 0; inside && c < s.c; c += kBlock, w += kChunk) {
        Eight<T> b[kColumns];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          b[j] = Eight<T>::zeros();
          if (offset[j] >= 0) b[j] = in.load(offset[j], c + 8 * t);
          for_product<T>(b[j].word);
        }
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          uint4 a[kSteps<T>];
#pragma unroll
          for (int step = 0; step < kSteps<T>; ++step) a[step] = w[m * chunks * kChunk + 32 * step];
#pragma unroll
          for (int j = 0; j < kColumns; ++j)
#pragma unroll
            for (int step = 0; step < kSteps<T>; ++step)
              mma<T>(sum[m][j], a[step].x, a[step].y, a[step].z, a[step].w, b[j].word[2 * step],
                     b[j].word[2 * step + 1]);
        }
      }
#pragma unroll
      for (int m = 0; m < kRows; ++m)
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const float (&u)[4] = sum[m][j];
          T* to = planes + P::first(16 * m + g) + P::kStart + r * P::kRow + 8 * j + 2 * t;
          if (!kHalf || pass % 2 == 0) put_pair(to, rounded<T>(u[0]), rounded<T>(u[1]));
          if (!kHalf || pass % 2 == 1) put_pair(to + (kHalf ? 0 : P::first(8)), rounded<T>(u[2]), rounded<T>(u[3]));
        }
    }
  } else {
    // A warp takes 64 pixels and eight channels; the weights are the same for all lanes.
    constexpr int kGroups = P::kChannels / 8, kItems = S * S / 64 * kGroups;
    const int padded = blocks_of(s.c) * kBlock;
    for (int item = warp; item < kItems; item += kWarps) {
      const int group = item % kGroups;
      int64_t offset[2];
      bool inside[2];
      int at[2];
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const int i = item / kGroups * 64 + 32 * p + lane, r = i / S, q = i % S;
        const int y = y0 - P::kMargin + r, x = x0 - P::kMargin + q;
        inside[p] = y >= 0 && y < s.h && x >= 0 && x < s.w;
        offset[p] = in.at(n, y, x);
        at[p] = r * P::kRow + q;
      }
      float sum[2][8] = {};
      const float* w =
          reinterpret_cast<const float*>(packed) + (static_cast<int64_t>(pass) * kGroups + group) * padded * 8;
      for (int c = 0; c < s.c; c += 8, w += 64) {
        Eight<T> b[2];
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          b[p] = Eight<T>::zeros();
          if (inside[p]) b[p] = in.load(offset[p], c);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float4 low = reinterpret_cast<const float4*>(w)[2 * i];
          const float4 high = reinterpret_cast<const float4*>(w)[2 * i + 1];
          const float row[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
          for (int p = 0; p < 2; ++p)
#pragma unroll
            for (int m = 0; m < 8; ++m) sum[p][m] = fmaf(__uint_as_float(b[p].word[i]), row[m], sum[p][m]);
        }
      }
#pragma unroll
      for (int p = 0; p < 2; ++p)
#pragma unroll
        for (int m = 0; m < 8; ++m) planes[(group * 8 + m) * P::kSize + at[p]] = sum[p][m];
    }
  }
}

// Writes a lane's four results of `convolve` into the channel's plane.
template <class P, class T = typename P::T>
__device__ __forceinline__ void put_results(T* plane, int half, const float (&v)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int hi = 0; hi < 2; ++hi)
    put_pair(plane + P::group(16 * half + P::row(g) + 8 * hi) + 2 * t, v[2 * hi], v[2 * hi + 1]);
}

// Reads them back by pixels, from planes of `size`: lane (g, t) gets pixel g of `group` and its channels [32 block + 8
// t, ... + 8).
template <class P, class T = typename P::T>
__device__ __forceinline__ Eight<T> read_pixels(const T* planes, int size, int block, int group,
                                                int lane = threadIdx.x % 32) {
  const int g = lane / 4, t = lane % 4;
  Eight<T> e;
  if constexpr (sizeof(T) == 2) {
    // Matrix m has as its rows the channels that become the lanes' m-th pairs.
    const int m = lane / 8, row = lane % 8;
    const int last = P::kChannels / 8 - 1,
              eight = P::kChannels % kBlock == 0 ? kBlock / 8 * block + row / 2 : min(row / 2, last);
    const T* from = planes + eight * 8 * (size + P::kSkew) + (2 * m + row % 2) * size;
    load_matrices_transposed(e.word, from + P::group(group));
  } else {
    const int channel = min(kBlock * block + 8 * t, P::kChannels - 8);
    const T* from = planes + P::first(channel, size) + P::group(group) + g;
#pragma unroll
    for (int i = 0; i < 8; ++i) e.word[i] = __float_as_uint(to_float(from[i * size]));
  }
  return e;
}

// The opposite of `read_pixels` for eight adjacent pixels of one row: writes them to planes of `size`, from element
// `at` of each on.
template <class P, class T = typename P::T>
__device__ __forceinline__ void write_pixels(T* planes, int size, int block, const Eight<T>& e, int at) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int channel = kBlock * block + g / 2 * 8 + 2 * m + g % 2;
      const uint32_t pair = transpose_matrix(e.word[m]);
      if (channel < P::kChannels) *reinterpret_cast<uint32_t*>(planes + P::first(channel, size) + at + 2 * t) = pair;
    }
  } else {
    const int channel = kBlock * block + 8 * t;
    if (channel >= P::kChannels) return;
    T* to = planes + P::first(channel, size) + at + g;
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i * size] = from_float<T>(__uint_as_float(e.word[i]));
  }
}

// Visits the pass's results eight pixels and 32 channels at a time: visit(block, group, the lane's first channel, y, x,
// whether that is inside the image). A lane sees the same pixels and channels every time.
template <class P, class Visit>
__device__ __forceinline__ void for_each_result(const AlkShape& s, int y0, int x0, int pass, Visit visit) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int left = min(s.k - pass * P::kChannels, P::kChannels), blocks = blocks_of(left);
  for (int block = 0; block < blocks; ++block)
#pragma unroll 1
    for (int group = threadIdx.x / 32; group < 32; group += kWarps) {
      const int y = y0 + group % 16, x = x0 + group / 16 * 8 + g, c = kBlock * block + 8 * t;
      visit(block, group, pass * P::kChannels + c, y, x, y < s.h && x < s.w && c < left);
    }
}

}  // namespace fastsr::cuda
