// Kernels whose wavefronts of shared memory are known, for the test that they are counted (sim_wavefronts.h).
#include "map_launch.cuh"
#include "pixels.cuh"

using namespace fastsr::cuda;

struct Apart {
  void* values;  // one a lane
  int bytes;     // from a lane's value to the next's, in shared memory
};

// A store and a load of a value by each lane.
template <class Value>
__global__ void apart_kernel(const Apart a) {
  FASTSR_SHARED_MEMORY(memory);
  Value* const mine = reinterpret_cast<Value*>(memory + threadIdx.x * a.bytes);
  Value* const of_lane = static_cast<Value*>(a.values) + threadIdx.x;
  *mine = *of_lane;
  __syncwarp();
  *of_lane = *mine;
}

// A load of a matrix's row by each lane.
__global__ void rows_kernel(const Apart a) {
  FASTSR_SHARED_MEMORY(memory);
  uint32_t r[4];
  load_matrices(r, memory + threadIdx.x * a.bytes);
}

enum How : int { kOneAfterTheOther, kByLane, kWithOtherLanesBetween, kInBackground };

struct Four {
  const float* zeros;
  How how;
};

// Four neighbours stored by each lane, in one of two orders if by lane.
__global__ void four_kernel(const Four a) {
  FASTSR_SHARED_MEMORY(memory);
  float* const mine = reinterpret_cast<float*>(memory) + 4 * threadIdx.x;
  const int turn = a.how == kByLane ? threadIdx.x / 8 % 2 : 0;
  for (int i = 0; i < 4; ++i) {
    if (a.how == kInBackground)
      copy_async<4>(mine + i, a.zeros, true);
    else
      mine[i ^ turn] = 0.f;
    if (a.how == kWithOtherLanesBetween) __syncwarp();
  }
  wait_for_copies();
}

// Odd lanes store twice before all meet, and then again, to banks where the even lanes were.
__global__ void uneven_kernel(const Four) {
  FASTSR_SHARED_MEMORY(memory);
  for (int round = 0; round < 2; ++round) {
    for (unsigned i = 0; i <= threadIdx.x % 2; ++i)
      reinterpret_cast<float*>(memory)[32 * round + (threadIdx.x + round) % 32] = 0.f;
    __syncwarp();
  }
}

struct Tile {
  PixelMap<Half> x;
  Tiles tiles;
};

// A row of 16 pixels of 64 channels, copied and taken as matrices, with `Pitch` numbers from a pixel to the next.
template <int Pitch>
__global__ void tile_kernel(const Tile a) {
  FASTSR_SHARED_MEMORY(memory);
  Half* const tile = reinterpret_cast<Half*>(memory);
  fetch_pixels<1, kTileColumns, Pitch, 32>(a.x, a.tiles, 0, 0, 0, 0, 6, tile);
  wait_for_copies();
  __syncthreads();
  uint32_t r[4];
  for (int c = 0; c < 64; c += 16) load_matrices(r, tile + threadIdx.x % 16 * Pitch + threadIdx.x / 16 * 8 + c);
}

constexpr int kBytes = 32 * 144;

extern "C" const char* probe_apart(int width, void* values, int bytes) {
  const auto start = [&](auto kernel) { return launch(kernel, 1, 32, kBytes, nullptr, Apart{values, bytes}); };
  return width == 2   ? start(apart_kernel<uint16_t>)
         : width == 4 ? start(apart_kernel<float>)
         : width == 8 ? start(apart_kernel<float2>)
                      : start(apart_kernel<float4>);
}
extern "C" const char* probe_rows(int bytes) {
  return launch(rows_kernel, 1, 32, kBytes, nullptr, Apart{nullptr, bytes});
}
extern "C" const char* probe_four(const float* zeros, int how) {
  return launch(four_kernel, 1, 32, kBytes, nullptr, Four{zeros, static_cast<How>(how)});
}
extern "C" const char* probe_uneven() { return launch(uneven_kernel, 1, 32, kBytes, nullptr, Four{}); }
extern "C" const char* probe_tile(const TensorView* x, int pitch) {
  const Tile tile{{map_of<Half>(*x), kWideVector<Half>}, {1, 1, kTileColumns, 1, 1, 1}};
  return launch(pitch == 64 ? tile_kernel<64> : tile_kernel<72>, 1, 32, kBytes, nullptr, tile);
}
