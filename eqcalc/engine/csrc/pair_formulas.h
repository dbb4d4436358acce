// Energies of pairs of atoms and what crowds an atom, as functions of distance (Å), in double:
// eqcalc.nn.reference, eqcalc.nn.crowding. The same text on CPUs and on GPUs.

#pragma once
#include "callee.h"

#ifndef ON_BOTH
#define ON_BOTH inline
#endif

namespace {

// 1 at r = 0; value, slope and curvature zero at the cutoff: eqcalc.nn.radial
ON_BOTH void envelope(double r, double cutoff, int power, double &u, double &slope)
{
  const double y = r / cutoff, p = power;
  const double a = (p + 1.0) * (p + 2.0) / 2.0, b = p * (p + 2.0), c = p * (p + 1.0) / 2.0;
  double q = 1.0;
  for (int n = 1; n < power; n++) q *= y;
  u = 1.0 + q * y * (-a + y * (b - c * y));
  slope = q * (-a * p + y * (b * (p + 1.0) - c * (p + 2.0) * y)) / cutoff;
}

// Ziegler, Biersack and Littmark (1985), half to each atom of a pair: adds energy (eV) and slope
ON_BOTH void core_repulsion(double r, double charge, double screening, double cutoff, int power,
                            int terms, const double *amplitudes, const double *decays,
                            double &energy, double &slope)
{
  if (r >= cutoff) return;
  const double x = r / screening;
  double phi = 0.0, phi_slope = 0.0;
  for (int n = 0; n < terms; n++) {
    const double term = amplitudes[n] * exponential(-decays[n] * x);
    phi += term;
    phi_slope -= decays[n] * term / screening;
  }
  double u, u_slope;
  envelope(r, cutoff, power, u, u_slope);
  const double q = 0.5 * charge / r;
  energy += q * phi * u;
  slope += q * (phi_slope * u + phi * u_slope - phi * u / r);
}

// sum of exponentials, fitted to the labels; half to each atom of a pair
ON_BOTH void pair_energy(double r, const double *coefficients, int terms, double rate,
                         double cutoff, double &energy, double &slope)
{
  if (r >= cutoff) return;
  const double decay = exponential(-rate * r);
  double sum = 0.0, sum_slope = 0.0, power = 1.0;
  for (int k = 0; k < terms; k++) {
    power *= decay;
    sum += coefficients[k] * power;
    sum_slope -= rate * (k + 1) * coefficients[k] * power;
  }
  double u, u_slope;
  envelope(r, cutoff, 6, u, u_slope);
  energy += 0.5 * sum * u;
  slope += 0.5 * (sum_slope * u + sum * u_slope);
}

// 1 up to x = begin, 0 from x = end on, with two continuous derivatives
ON_BOTH double fall(double begin, double end, double x, double &slope)
{
  const double t = (x - begin) / (end - begin);
  slope = 0.0;
  if (t <= 0.0) return 1.0;
  if (t >= 1.0) return 0.0;
  slope = -30.0 * t * t * (1.0 - t) * (1.0 - t) / (end - begin);
  return 1.0 - t * t * t * (10.0 + t * (6.0 * t - 15.0));
}

// number and closeness of one neighbour, and their derivatives by r
struct Crowd {
  double number, close, number_slope, close_slope;
};

// d, near (Å): distance from which on it counts less, and closest distance; counted, close: [2]
ON_BOTH Crowd counted_neighbour(double r, double d, double near, const double *counted,
                                const double *close)
{
  Crowd one;
  one.number = fall(counted[0], counted[1], r / d, one.number_slope);
  one.close = fall(close[0], close[1], r / near, one.close_slope);
  one.number_slope /= d;
  one.close_slope /= near;
  return one;
}

// as older files measure it, within the cutoff: (d/r)^8 u, and no close pairs
ON_BOTH Crowd weighed_neighbour(double r, double d, double cutoff)
{
  const double q = d / r, q2 = q * q, q4 = q2 * q2, q8 = q4 * q4;
  double u, u_slope;
  envelope(r, cutoff, 6, u, u_slope);
  return {q8 * u, 0.0, q8 * (u_slope - 8.0 * u / r), 0.0};
}

}     // namespace
