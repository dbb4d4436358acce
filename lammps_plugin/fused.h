// SPDX-License-Identifier: GPL-2.0-only
//
// Energies and gradients from eqcalc's generated kernels: no torch in the process. Python prepares
// a potential file (eqcalc.engine.prepare); this side loads what it has made.

#ifndef EQCALC_FUSED_H
#define EQCALC_FUSED_H

#include "engine.h"

namespace eqcalc {

// Runs Python; one process per machine does so. The answer is "ready FOLDER", "unavailable ...",
// "error ..." or, for a bug of ours, "fault ...". radial: "table", "network" or "gpu".
std::string prepare_fused(const std::string &path, const std::string &precision,
                          const std::string &radial);

// The file behind the name of a potential, of which these elements are needed. Runs Python; the answer
// is "ready PATH" or "error ...".
std::string find_model(const std::string &name, const std::vector<std::string> &elements);

// Opens a prepared folder and evaluates the reference structure in it; throws EngineError.
std::unique_ptr<Engine> open_fused(const std::string &folder, const EngineOptions &,
                                   const std::string &radial);

}     // namespace eqcalc

#endif
