/* -*- c++ -*- ----------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#ifndef EQCALC_PROCESSES_H
#define EQCALC_PROCESSES_H

#include "pointers.h"

#include <functional>
#include <string>

namespace LAMMPS_NS {

// What one process finds out, and all have to know. All calls are collective.

class Processes : protected Pointers {
 public:
  explicit Processes(LAMMPS *lmp) : Pointers(lmp) {}

  std::string problem;     // found by this process, in one sentence

  // Ends all processes with the sentence of the first that has a problem. Where each ended on its
  // own, the first might end the others before they have printed theirs.
  void stop_together();

  // the text of the first process that has one, on all; empty if none has
  std::string first(const std::string &text);

  // a text of one process, on all
  std::string broadcast(const std::string &text, int process);

  // the answer of one process of each machine, on all of that machine
  std::string once_per_machine(const std::function<std::string()> &ask);

  // whether it holds on every process
  bool everywhere(bool here);
};

}     // namespace LAMMPS_NS

#endif
