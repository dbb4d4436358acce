/* -*- c++ -*- ----------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#ifndef EQCALC_OPENING_H
#define EQCALC_OPENING_H

#include "engine.h"
#include "processes.h"

#include <memory>
#include <string>
#include <vector>

namespace LAMMPS_NS {

// Finds potentials and opens them with the engine that the keywords of pair_style ask for, the same
// on all processes. All calls are collective, and end with a sentence where something is wrong.

class Opening : protected Pointers {
 public:
  struct Keywords {
    std::string precision, device = "cpu", engine;
    int threads = 0;
    double memory_limit = 0.0;     // GB; 0: none
  };

  Opening(LAMMPS *, Processes &, const Keywords &, bool with_exchange);

  // The files behind a word of pair_coeff: a path, the folder of a committee, or the name of a
  // bundled or published model, of which these elements are needed.
  std::vector<std::string> find(std::string word, const std::vector<std::string> &elements);

  // the generated kernels, or torch where they cannot be had or are not wanted
  std::unique_ptr<eqcalc::Engine> open(const std::string &path);

 private:
  Processes &processes;
  Keywords keywords;
  eqcalc::EngineOptions options;

  int rank_on_machine() const;
  std::string choose_device() const;
  std::string open_fused(const std::string &radial, std::unique_ptr<eqcalc::Engine> &);
};

}     // namespace LAMMPS_NS

#endif
