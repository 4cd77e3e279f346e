// The attentions at the end of a distillation block, esa and cca_norm behind it, in two passes over the map.
#pragma once

#include "cca.h"
#include "esa_path.h"

namespace fastsr::cpu {

// y = norm(cca(esa(y))) + shortcut over y. `path` has been gone along to its end; y is not empty.
void attend(const MapWriter& y, const esa::Path& path, const esa::Weights& w, const cca::Shape& s,
            const cca::Parameters& p, const MapReader& shortcut);

}  // namespace fastsr::cpu
