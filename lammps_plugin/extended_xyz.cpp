// SPDX-License-Identifier: GPL-2.0-only

#include "extended_xyz.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

namespace eqcalc {

std::string extended_xyz(Frame frame)
{
  std::sort(frame.atoms.begin(), frame.atoms.end(),
            [](const Frame::Atom &a, const Frame::Atom &b) { return a.id < b.id; });
  std::string text;
  char part[256];
  const auto print = [&](const char *format, auto... values) {
    std::snprintf(part, sizeof(part), format, values...);
    text += part;
  };
  print("%zu\nLattice=\"", frame.atoms.size());
  for (int k = 0; k < 9; k++) print(k ? " %.12g" : "%.12g", frame.cell[k]);
  print("\" Properties=species:S:1:pos:R:3:forces:R:3:%s:R:1:id:I:1", frame.column.c_str());
  print(" step=%lld time=%.12g", static_cast<long long>(frame.step), frame.time);
  print(" pbc=\"%c %c %c\"\n", frame.periodic[0] ? 'T' : 'F', frame.periodic[1] ? 'T' : 'F',
        frame.periodic[2] ? 'T' : 'F');
  for (const Frame::Atom &atom : frame.atoms) {
    const auto &[x, y, z] = atom.position;
    const auto &[fx, fy, fz] = atom.force;
    print("%s %.12g %.12g %.12g %.10g %.10g %.10g %.8g %lld\n", atom.symbol, x, y, z, fx, fy, fz,
          atom.value, static_cast<long long>(atom.id));
  }
  return text;
}

std::string append_whole(const std::string &path, const std::string &text)
{
  const auto wrong = [&path] { return path + " cannot be written: " + std::strerror(errno); };
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (file < 0) return wrong();
  std::string problem;
  const off_t before = ::lseek(file, 0, SEEK_END);
  for (std::size_t done = 0; done < text.size() && problem.empty();) {
    const ssize_t count = ::write(file, text.data() + done, text.size() - done);
    if (count >= 0)
      done += static_cast<std::size_t>(count);
    else if (errno != EINTR)
      problem = wrong();
  }
  if (!problem.empty() && (before < 0 || ::ftruncate(file, before) != 0))
    problem += ", and its end is incomplete";
  if (::close(file) != 0 && problem.empty()) problem = wrong();
  return problem;
}

}     // namespace eqcalc
