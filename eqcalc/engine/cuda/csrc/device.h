// One GPU: its context, a stream on which everything is queued in order, kernels and memory. What is
// copied from or to the host must stay where it is until wait().

#pragma once
#include "driver.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace {

class Device {
 public:
  // number: of the GPU; with `in_turn` that of a process, and GPUs are given in turn. image: a file of
  // compiled kernels, its content
  Device(const std::string &driver, int number, bool in_turn, const std::string &image) :
      driver_(driver.c_str())
  {
    int count = 0;
    driver_.check(driver_.cuDeviceGetCount(&count), "be counted");
    if (in_turn && count) number %= count;
    if (count == 0) driver_.check(NO_DEVICE, "be found");
    if (number >= count)
      throw std::runtime_error("GPU " + std::to_string(number) + " was asked for, but there " +
                               (count == 1 ? "is only GPU 0" : "are " + std::to_string(count)));
    driver_.check(driver_.cuDeviceGet(&device_, number), "be opened");
    driver_.check(driver_.cuDevicePrimaryCtxRetain(&context_, device_), "be opened");
    const Use use(*this);
    driver_.check(driver_.cuModuleLoadData(&module_, image.data()), "load its kernels");
    driver_.check(driver_.cuStreamCreate(&stream_, STREAM_NON_BLOCKING), "make a stream");
    driver_.check(driver_.cuEventCreate(&mark_, EVENT_DISABLE_TIMING), "make an event");
  }
  Device(const Device &) = delete;
  Device &operator=(const Device &) = delete;

  ~Device()
  {
    {
      const Use use(*this, std::nothrow);
      if (use.holds()) {
        driver_.cuEventDestroy_v2(mark_);
        driver_.cuStreamDestroy_v2(stream_);
        driver_.cuModuleUnload(module_);
      }
    }
    driver_.cuDevicePrimaryCtxRelease_v2(device_);
  }

  // the context is this thread's as long as it lives
  class Use {
   public:
    explicit Use(const Device &device) : Use(device, std::nothrow)
    {
      device.driver_.check(failed_, "be used");
    }
    // in destructors: at the end of a process the driver may be gone
    Use(const Device &device, std::nothrow_t) :
        device_(device), failed_(device.driver_.cuCtxPushCurrent_v2(device.context_))
    {
    }
    ~Use()
    {
      CUcontext before;
      if (holds()) device_.driver_.cuCtxPopCurrent_v2(&before);
    }
    Use(const Use &) = delete;
    Use &operator=(const Use &) = delete;
    bool holds() const { return failed_ == 0; }

   private:
    const Device &device_;
    CUresult failed_;
  };

  const Driver &driver() const { return driver_; }

  CUfunction kernel(const std::string &name) const
  {
    CUfunction function;
    driver_.check(driver_.cuModuleGetFunction(&function, module_, name.c_str()), "find a kernel");
    return function;
  }

  // a launch of this kernel may ask for so many bytes of shared memory, beyond 48 kB
  void allow_shared(CUfunction kernel, int bytes) const
  {
    driver_.check(driver_.cuFuncSetAttribute(kernel, MOST_DYNAMIC_SHARED, bytes),
                  "give a kernel its shared memory");
  }

  // multiprocessors
  std::int64_t processors() const
  {
    int count = 0;
    driver_.check(driver_.cuDeviceGetAttribute(&count, MULTIPROCESSORS, device_),
                  "say how many multiprocessors it has");
    return count;
  }

  // shared: bytes that the kernel has beside what it declares
  template <class Argument>
  void launch(CUfunction kernel, std::int64_t blocks, int threads, Argument &argument,
              int shared = 0) const
  {
    if (blocks == 0) return;
    if (blocks > MOST_BLOCKS)
      throw std::runtime_error("there are too many atoms for one GPU: use more processes");
    void *arguments[] = {&argument};
    driver_.check(driver_.cuLaunchKernel(kernel, static_cast<unsigned>(blocks), 1, 1, threads, 1, 1,
                                         static_cast<unsigned>(shared), stream_, arguments, nullptr),
                  "start a kernel");
  }

  void up(void *to, const void *from, std::size_t bytes) const
  {
    if (bytes)
      driver_.check(driver_.cuMemcpyHtoDAsync_v2(number(to), from, bytes, stream_),
                    "be written to");
  }
  void down(void *to, const void *from, std::size_t bytes) const
  {
    if (bytes)
      driver_.check(driver_.cuMemcpyDtoHAsync_v2(to, number(from), bytes, stream_), "be read");
  }
  void clear(void *to, std::size_t bytes) const
  {
    if (bytes) driver_.check(driver_.cuMemsetD8Async(number(to), 0, bytes, stream_), "be cleared");
  }
  void wait() const { driver_.check(driver_.cuStreamSynchronize(stream_), "finish its work"); }

  // what was queued before mark() is done when wait_for_mark() returns; there is one mark, the latest
  void mark() const { driver_.check(driver_.cuEventRecord(mark_, stream_), "mark its work"); }
  void wait_for_mark() const
  {
    driver_.check(driver_.cuEventSynchronize(mark_), "finish its work");
  }

  // whether memory that grows has some to spare
  bool spares() const { return spares_; }
  void spare(bool some) { spares_ = some; }

  // grows with every piece of memory that is taken or given back
  std::int64_t generation() const { return generation_; }
  void count_memory() const { generation_++; }

  // what `queue` queues, to be done whenever it is started; nothing is done now. No memory is taken,
  // and nobody waits, meanwhile
  template <class Queue> CUgraphExec record(const Queue &queue) const
  {
    CUgraph graph = nullptr;
    CUgraphExec recorded = nullptr;
    driver_.check(driver_.cuStreamBeginCapture_v2(stream_, CAPTURE_THREAD_LOCAL),
                  "record its work");
    try {
      queue();
    } catch (...) {
      if (driver_.cuStreamEndCapture(stream_, &graph) == 0 && graph) driver_.cuGraphDestroy(graph);
      throw;
    }
    driver_.check(driver_.cuStreamEndCapture(stream_, &graph), "record its work");
    const CUresult failed = driver_.cuGraphInstantiateWithFlags(&recorded, graph, 0);
    driver_.cuGraphDestroy(graph);
    driver_.check(failed, "keep its work");
    return recorded;
  }
  void start(CUgraphExec recorded) const
  {
    driver_.check(driver_.cuGraphLaunch(recorded, stream_), "start its work");
  }
  void forget(CUgraphExec recorded) const
  {
    if (recorded) driver_.cuGraphExecDestroy(recorded);
  }

  std::size_t free_bytes() const
  {
    std::size_t free = 0, all = 0;
    driver_.check(driver_.cuMemGetInfo_v2(&free, &all), "say how much memory it has");
    return free;
  }

 private:
  Driver driver_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUmodule module_ = nullptr;
  CUstream stream_ = nullptr;
  CUevent mark_ = nullptr;
  mutable std::int64_t generation_ = 0;
  bool spares_ = true;

  static CUdeviceptr number(const void *p) { return reinterpret_cast<CUdeviceptr>(p); }
};

// before what was declared earlier goes away, the device has read it, whatever happens
class Waits {
 public:
  explicit Waits(const Device &device) : device_(device) {}
  ~Waits()
  {
    try {
      device_.wait();
    } catch (const std::exception &) {     // somebody else hears of it
    }
  }
  Waits(const Waits &) = delete;
  Waits &operator=(const Waits &) = delete;

 private:
  const Device &device_;
};

// memory that grows, and is then new; with some to spare after the first time, unless it is limited
template <class U, class Kind> class Memory {
 public:
  explicit Memory(const Device &device) : device_(device) {}
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;
  ~Memory() { release(); }

  U *get(std::int64_t count)
  {
    if (count > count_) {
      const std::int64_t more = count_ && device_.spares() ? count + count / 4 : count;
      if (data_) device_.wait();     // it may still be in use
      release();
      device_.count_memory();
      try {
        take(more);
      } catch (const std::bad_alloc &) {
        if (more == count) throw;
        take(count);
      }
    }
    return data_;
  }
  // whether there is so much now
  bool have(std::int64_t count)
  {
    try {
      get(count);
      return true;
    } catch (const std::bad_alloc &) {
      return false;
    }
  }
  // bytes that get() would take, beside those that there are
  std::int64_t more(std::int64_t count) const
  {
    return std::max<std::int64_t>(count * static_cast<std::int64_t>(sizeof(U)) - bytes(), 0);
  }
  // once the device no longer uses it
  void give_back()
  {
    device_.wait();
    device_.count_memory();
    release();
  }
  U *data() const { return data_; }
  // to the device
  void give(const std::vector<U> &from)
  {
    device_.up(get(static_cast<std::int64_t>(from.size())), from.data(), from.size() * sizeof(U));
  }
  void wait() const { device_.wait(); }
  std::int64_t bytes() const { return count_ * static_cast<std::int64_t>(sizeof(U)); }

 private:
  const Device &device_;
  U *data_ = nullptr;
  std::int64_t count_ = 0;

  void take(std::int64_t count)
  {
    data_ = static_cast<U *>(Kind::take(device_.driver(), count * sizeof(U)));
    count_ = count;
  }

  void release()
  {
    const Device::Use use(device_, std::nothrow);
    if (data_ && use.holds()) Kind::give_back(device_.driver(), data_);
    data_ = nullptr;
    count_ = 0;
  }
};

struct OfDevice {
  static void *take(const Driver &driver, std::size_t bytes)
  {
    CUdeviceptr p;
    driver.check(driver.cuMemAlloc_v2(&p, bytes), "give memory");
    return reinterpret_cast<void *>(p);
  }
  static void give_back(const Driver &driver, void *p)
  {
    driver.cuMemFree_v2(reinterpret_cast<CUdeviceptr>(p));
  }
};

// of the host, which the device reads and writes without a detour
struct OfHost {
  static void *take(const Driver &driver, std::size_t bytes)
  {
    void *p;
    const CUresult failed = driver.cuMemHostAlloc(&p, bytes, 0);
    if (failed == CUDA_OUT_OF_MEMORY)
      throw std::runtime_error("the machine has too little memory that it can pin for the GPU (" +
                               std::to_string(bytes / 1000000 + 1) + " MB)");
    driver.check(failed, "pin memory");
    return p;
  }
  static void give_back(const Driver &driver, void *p) { driver.cuMemFreeHost(p); }
};

template <class U> using OnDevice = Memory<U, OfDevice>;
template <class U> using Pinned = Memory<U, OfHost>;

}     // namespace
