// What keeps generated libraries small, and quick to compile.

#pragma once

// Never compiled into its callers: what is large, and called once in a while.
#define APART [[gnu::noinline]]
// Compiled for size, too: what happens once per file.
#define COLD [[gnu::cold, gnu::noinline]]
// Always compiled into its callers, before compilers weigh what that costs: functions and lambdas that
// would be a call in a loop.
#define INLINED __attribute__((always_inline))

namespace {

// Somebody's function, by reference: those that take one are compiled once, not once for each.
template <class... Arguments> class Callee {
 public:
  template <class Callable>
  Callee(const Callable &callable) :     // NOLINT: lambdas are given as they are
      callable_(&callable), call_([](const void *to, Arguments... with) {
        (*static_cast<const Callable *>(to))(with...);
      })
  {
  }
  void operator()(Arguments... with) const { call_(callable_, with...); }

 private:
  const void *callable_;
  void (*call_)(const void *, Arguments...);
};

// Elementary functions, which compilers have built in: <cmath>, with all its special functions, takes
// a thirtieth of the time of a compilation.

inline double root(double x)
{
  return __builtin_sqrt(x);
}
inline float root(float x)
{
  return __builtin_sqrtf(x);
}
inline double exponential(double x)
{
  return __builtin_exp(x);
}
inline float exponential(float x)
{
  return __builtin_expf(x);
}
inline double power(double x, double p)
{
  return __builtin_pow(x, p);
}
inline double sine(double x)
{
  return __builtin_sin(x);
}
inline double cosine(double x)
{
  return __builtin_cos(x);
}

}     // namespace
