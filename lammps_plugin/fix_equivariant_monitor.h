/* -*- c++ -*- ----------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#ifndef LMP_FIX_EQUIVARIANT_MONITOR_H
#define LMP_FIX_EQUIVARIANT_MONITOR_H

#include "pair_equivariant.h"

#include "fix.h"

#include <limits>
#include <string>

namespace LAMMPS_NS {

// fix ID group equivariant/monitor N file
//         [quantity grade|force_deviation|energy_deviation] [warn X] [stop Y]
//         [save frames.xyz] [interval T] [append yes|no]
//
// A fix, not keywords of the pair style: it acts after forces are complete, tells steps from trial
// positions of minimisers and Monte Carlo moves, has a group, and ends with unfix.

class FixEquivariantMonitor : public Fix {
 public:
  FixEquivariantMonitor(class LAMMPS *, int, char **);

  int setmask() override;
  void init() override;
  void setup_pre_force(int) override;
  void pre_force(int) override;
  void min_pre_force(int) override;
  void setup(int) override;
  void min_setup(int) override;
  void post_force(int) override;
  void min_post_force(int) override;
  void post_run() override;
  double compute_vector(int) override;

 private:
  // of one step, the same on all processes
  struct Sample {
    bigint step = -1;
    double time = 0.0;     // units of the run
    double largest = 0.0, mean = 0.0;
    bigint atom = 0;       // id of the atom with the largest value
    std::string frame;     // the structure, on the first process, where it may be wanted
  };

  static constexpr double NEVER = std::numeric_limits<double>::infinity();

  PairEquivariant *pair;
  std::string path, save_path, wanted;
  PairEquivariant::Quantity quantity;
  double warn_above, stop_above, interval;
  bool append;

  Sample last;
  bool pending;     // last waits for the minimiser to accept its positions
  bool warned;      // in this run
  bool saved;       // any frame yet
  bigint saved_step;
  double saved_time;

  double limit_of(const char *, const char *) const;
  bool due() const;
  double now() const;     // in units of the run
  Sample look() const;
  std::string gather() const;
  void act();
  void write(const std::string &, const std::string &) const;
  std::string sentence(double) const;
};

}     // namespace LAMMPS_NS

#endif
