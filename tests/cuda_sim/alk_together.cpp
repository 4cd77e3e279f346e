// alk_pack_together in the simulator.
#include "alk_together.cu"

using namespace fastsr::cuda;

struct AlkParts {
  const AlkPart* parts;
  int64_t count;
};

extern "C" int64_t sim_alk_part_bytes(const AlkPart* part) { return alk_part_bytes(*part); }

extern "C" const char* sim_alk_pack_together(const AlkParts* all, unsigned seed) {
  sim::state.seed = seed;
  return alk_pack_together(all->parts, all->count, nullptr);
}
