// What ends at the cutoff (eqcalc.nn.radial): the polynomial envelope, or XPLOR's from an onset on.

#pragma once
#include "description.h"

namespace {

class Envelope {
 public:
  COLD void read(const Record &basis, double cutoff)
  {
    cutoff_ = cutoff;
    power_ = basis.number("envelope_power");
    onset_ = basis.number("envelope_onset");
  }

  // u and its slope; both stay zero from the cutoff on
  void operator()(double r, double &u, double &du) const
  {
    u = du = 0.0;
    if (!(r < cutoff_)) return;
    if (onset_ > 0.0) {
      const double rr = r * r, on = onset_ * onset_, cut = cutoff_ * cutoff_;
      const double norm = 1.0 / ((cut - on) * (cut - on) * (cut - on));
      u = r < onset_ ? 1.0 : (cut - rr) * (cut - rr) * (cut + 2.0 * rr - 3.0 * on) * norm;
      du = r < onset_ ? 0.0 : 12.0 * r * (cut - rr) * (on - rr) * norm;
      return;
    }
    const double x = r / cutoff_, n = power_, q = power(x, n - 1.0);
    const double a = (n + 1.0) * (n + 2.0) / 2.0, b = n * (n + 2.0), c = n * (n + 1.0) / 2.0;
    u = 1.0 + q * x * (-a + x * (b - c * x));
    du = q * (-a * n + x * (b * (n + 1.0) - c * (n + 2.0) * x)) / cutoff_;
  }

 private:
  double cutoff_ = 0.0, power_ = 0.0, onset_ = 0.0;     // no onset: polynomial
};

}     // namespace
