// The part of CUDA's driver interface that the engine needs, declared by hand: no toolkit, no
// headers. The library is opened at run time. Names and types: CUDA Driver API, 13.0.

#pragma once

#include <dlfcn.h>
#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st *;
using CUmodule = struct CUmod_st *;
using CUfunction = struct CUfunc_st *;
using CUstream = struct CUstream_st *;
using CUevent = struct CUevent_st *;
using CUgraph = struct CUgraph_st *;
using CUgraphExec = struct CUgraphExec_st *;

constexpr CUresult CUDA_OUT_OF_MEMORY = 2, NO_DEVICE = 100;
constexpr std::int64_t MOST_BLOCKS = 0x7fffffff;     // of a launch
constexpr unsigned STREAM_NON_BLOCKING = 1, EVENT_DISABLE_TIMING = 2;
constexpr int CAPTURE_THREAD_LOCAL = 1;
constexpr int MULTIPROCESSORS = 16;     // of a device's attributes
constexpr int MOST_DYNAMIC_SHARED = 8;     // of a kernel's

struct Driver {
  CUresult (*cuInit)(unsigned);
  CUresult (*cuDeviceGetCount)(int *);
  CUresult (*cuDeviceGet)(CUdevice *, int);
  CUresult (*cuDeviceGetAttribute)(int *, int, CUdevice);
  CUresult (*cuDevicePrimaryCtxRetain)(CUcontext *, CUdevice);
  CUresult (*cuDevicePrimaryCtxRelease_v2)(CUdevice);
  CUresult (*cuCtxPushCurrent_v2)(CUcontext);
  CUresult (*cuCtxPopCurrent_v2)(CUcontext *);
  CUresult (*cuModuleLoadData)(CUmodule *, const void *);
  CUresult (*cuModuleUnload)(CUmodule);
  CUresult (*cuModuleGetFunction)(CUfunction *, CUmodule, const char *);
  CUresult (*cuFuncSetAttribute)(CUfunction, int, int);
  CUresult (*cuMemGetInfo_v2)(std::size_t *, std::size_t *);
  CUresult (*cuMemAlloc_v2)(CUdeviceptr *, std::size_t);
  CUresult (*cuMemFree_v2)(CUdeviceptr);
  CUresult (*cuMemHostAlloc)(void **, std::size_t, unsigned);
  CUresult (*cuMemFreeHost)(void *);
  CUresult (*cuMemcpyHtoDAsync_v2)(CUdeviceptr, const void *, std::size_t, CUstream);
  CUresult (*cuMemcpyDtoHAsync_v2)(void *, CUdeviceptr, std::size_t, CUstream);
  CUresult (*cuMemsetD8Async)(CUdeviceptr, unsigned char, std::size_t, CUstream);
  CUresult (*cuLaunchKernel)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             unsigned, CUstream, void **, void **);
  CUresult (*cuStreamCreate)(CUstream *, unsigned);
  CUresult (*cuStreamDestroy_v2)(CUstream);
  CUresult (*cuStreamSynchronize)(CUstream);
  CUresult (*cuEventCreate)(CUevent *, unsigned);
  CUresult (*cuEventDestroy_v2)(CUevent);
  CUresult (*cuEventRecord)(CUevent, CUstream);
  CUresult (*cuEventSynchronize)(CUevent);
  CUresult (*cuStreamBeginCapture_v2)(CUstream, int);
  CUresult (*cuStreamEndCapture)(CUstream, CUgraph *);
  CUresult (*cuGraphInstantiateWithFlags)(CUgraphExec *, CUgraph, unsigned long long);
  CUresult (*cuGraphLaunch)(CUgraphExec, CUstream);
  CUresult (*cuGraphDestroy)(CUgraph);
  CUresult (*cuGraphExecDestroy)(CUgraphExec);
  CUresult (*cuGetErrorName)(CUresult, const char **);

  // the library is never closed: the driver does not survive that
  explicit Driver(const char *path)
  {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
      throw std::runtime_error("there is no NVIDIA driver here (" + std::string(path) +
                               " cannot be opened)");
    const auto get = [&](auto &function, const char *name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (!function)
        throw std::runtime_error("the NVIDIA driver is too old: it has no " + std::string(name));
    };
#define GET(name) get(name, #name)
    GET(cuInit);
    GET(cuDeviceGetCount);
    GET(cuDeviceGet);
    GET(cuDeviceGetAttribute);
    GET(cuDevicePrimaryCtxRetain);
    GET(cuDevicePrimaryCtxRelease_v2);
    GET(cuCtxPushCurrent_v2);
    GET(cuCtxPopCurrent_v2);
    GET(cuModuleLoadData);
    GET(cuModuleUnload);
    GET(cuModuleGetFunction);
    GET(cuFuncSetAttribute);
    GET(cuMemGetInfo_v2);
    GET(cuMemAlloc_v2);
    GET(cuMemFree_v2);
    GET(cuMemHostAlloc);
    GET(cuMemFreeHost);
    GET(cuMemcpyHtoDAsync_v2);
    GET(cuMemcpyDtoHAsync_v2);
    GET(cuMemsetD8Async);
    GET(cuLaunchKernel);
    GET(cuStreamCreate);
    GET(cuStreamDestroy_v2);
    GET(cuStreamSynchronize);
    GET(cuEventCreate);
    GET(cuEventDestroy_v2);
    GET(cuEventRecord);
    GET(cuEventSynchronize);
    GET(cuStreamBeginCapture_v2);
    GET(cuStreamEndCapture);
    GET(cuGraphInstantiateWithFlags);
    GET(cuGraphLaunch);
    GET(cuGraphDestroy);
    GET(cuGraphExecDestroy);
    GET(cuGetErrorName);
#undef GET
    check(cuInit(0), "start");
  }

  // throws std::bad_alloc where memory is short, std::runtime_error for all else
  void check(CUresult result, const char *what) const
  {
    if (result == 0) return;
    if (result == CUDA_OUT_OF_MEMORY) throw std::bad_alloc();
    const char *name = nullptr;
    if (cuGetErrorName(result, &name) || !name) name = "unknown error";
    throw std::runtime_error("the GPU could not " + std::string(what) + " (" + name + ")" +
                             advice(result));
  }

 private:
  // what users can do about it
  static const char *advice(CUresult result)
  {
    switch (result) {
      case 3:     // NOT_INITIALIZED
        return ": a process that was forked after the GPU was in use cannot use it";
      case 46:     // DEVICE_UNAVAILABLE
        return ": another process has it to itself (nvidia-smi -q -d COMPUTE); start NVIDIA's MPS, "
               "or take as many processes as GPUs";
      case 100:     // NO_DEVICE
        return ": look with nvidia-smi and CUDA_VISIBLE_DEVICES why there is none";
      case 200:     // INVALID_IMAGE
      case 209:     // NO_BINARY_FOR_GPU
      case 222:     // UNSUPPORTED_PTX_VERSION
        return ": the driver is older than NVIDIA's run-time compiler, or this GPU is of another "
               "kind than the machine's first";
      case 214:     // ECC_UNCORRECTABLE
        return ": its memory is faulty";
      case 803:     // SYSTEM_DRIVER_MISMATCH
        return ": the driver was updated; restart the machine";
      default:
        return "";
    }
  }
};

}     // namespace
