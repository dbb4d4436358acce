// SPDX-License-Identifier: GPL-2.0-only
//
// Structures as text that ASE reads, and files that hold whole pieces of text only.

#ifndef EQCALC_EXTENDED_XYZ_H
#define EQCALC_EXTENDED_XYZ_H

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace eqcalc {

// Lengths in Å, forces in eV/Å, time in fs.
struct Frame {
  struct Atom {
    int64_t id;
    const char *symbol;
    std::array<double, 3> position, force;
    double value;
  };
  std::array<double, 9> cell;     // rows a, b, c
  std::array<bool, 3> periodic;
  int64_t step = 0;
  double time = 0.0;
  std::string column;          // what `value` is
  std::vector<Atom> atoms;     // in any order; written by id
};

std::string extended_xyz(Frame);

// Adds text to the end of a file, which is made where there is none. Where that fails the file is as
// it was. Returns what is wrong, or nothing.
std::string append_whole(const std::string &path, const std::string &text);

}     // namespace eqcalc

#endif
