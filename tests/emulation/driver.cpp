// libcuda on the CPU, for tests. Modules are libraries that g++ has made of the kernels' source
// (simt.h). Work on a stream is queued, and done when somebody waits for it: without that, numbers
// are what they were before. Memory of a device begins as NaN, ends at a page that nobody may
// touch, and is limited.
//
// It refuses what NVIDIA's driver refuses, and what would do no harm here: objects of another
// context, copies beyond an allocation, launches beyond a kernel's bounds, calls that may not be
// made while work is recorded; and everything once it is gone, or somebody else has the device.

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  DEINITIALIZED = 4,
  DEVICE_UNAVAILABLE = 46,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  OUT_OF_RESOURCES = 701,
  CONTEXT_DESTROYED = 709,
  LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900
};

constexpr std::size_t PAGE = 4096;
constexpr std::size_t HUGE = std::size_t(1) << 30;     // bytes: so much begins as zeros, not as NaN
constexpr unsigned MOST_BLOCKS = 0x7fffffff;     // of a launch, along x
constexpr std::size_t MOST_ARGUMENTS = 4096;     // bytes
constexpr int DEVICES = 2;

int number_of(const char *variable, int otherwise)
{
  const char *number = std::getenv(variable);
  return number ? std::atoi(number) : otherwise;
}

// on a stream or in a graph: what is done, kernels, bytes up and down
struct Work {
  std::function<int()> run;
  long long kernels, up, down;
};
struct Graph {
  struct Device *of;
  std::vector<Work> work;
};

struct Device {
  int number, retained = 0;     // how often its primary context is held
  std::size_t limit = std::size_t(number_of("EQCALC_EMULATION_MEGABYTES", 4096)) << 20, used = 0;
  std::vector<Work> queued;
  Graph *captured = nullptr;     // what is queued goes there, while it is not null
  long long kernels = 0, done = 0;     // ever; and pieces of work
};
Device devices[DEVICES] = {Device{0}, Device{1}};
bool initialized = false, gone = false;
thread_local std::vector<Device *> contexts;     // primary ones that are current, the last of them

struct Module {
  Device *of;
  void *library;
  int (*start)(void *, const void *, unsigned, unsigned, unsigned long);
  int (*most_threads)(const char *);
  std::size_t argument_bytes;
};

struct Function {
  const Module *module;
  void *body;
  unsigned threads;     // of a block, at most, as the kernel was compiled for
  unsigned shared;      // bytes that a launch may ask for
};

struct Stream {
  Device *of;
};

struct Event {
  Device *of;
  long long after = 0;     // what had been queued, of all work ever
};

// bytes of shared memory of a block: without being asked, and with
constexpr int SHARED = 48 * 1024;
int most_shared()
{
  return number_of("EQCALC_EMULATION_SHARED", SHARED);
}

struct Allocation {
  Device *of;
  void *base;
  std::size_t size, bytes;     // of the mapping; of the memory
};

std::recursive_mutex one_at_a_time;     // of the threads of a process
using Lock = std::lock_guard<std::recursive_mutex>;
std::map<std::uintptr_t, Allocation> allocations, pinned;
int until_none = 0;     // allocations of device memory until one fails; 0: none does

// kernels; bytes up, bytes down; waits; kernels and graphs started, each at once; kernels that were
// left for later by waits for an event; kernels with shared memory that the launch asked for; and
// graphs that were made
constexpr int COUNTS = 8;
long long counts[COUNTS];

// these, of all of a process, into a file of its own whose name ends with its rank or number; the
// last two are kernels of the devices
struct AtTheEnd {
  ~AtTheEnd()
  {
    const char *path = std::getenv("EQCALC_EMULATION_COUNTS");
    if (!path || !counts[0]) return;
    const std::string process = std::to_string(number_of("PMI_RANK", getpid()));
    std::FILE *file = std::fopen((path + ("." + process)).c_str(), "w");
    if (!file) return;
    for (const long long count : counts) std::fprintf(file, "%lld ", count);
    for (const Device &device : devices) std::fprintf(file, "%lld ", device.kernels);
    std::fclose(file);
  }
} at_the_end;

Device *current()
{
  return contexts.empty() ? nullptr : contexts.back();
}

// that a call on this stream is made in its context; 0 is the context's own
int wrong_stream(const void *stream)
{
  if (!current()) return INVALID_CONTEXT;
  return stream && static_cast<const Stream *>(stream)->of != current() ? INVALID_HANDLE : SUCCESS;
}

bool inside(const std::map<std::uintptr_t, Allocation> &known, std::uintptr_t begin,
            std::size_t bytes)
{
  auto found = known.upper_bound(begin);
  if (found == known.begin()) return false;
  found--;
  return found->second.of == current() && begin + bytes <= found->first + found->second.bytes;
}

int later(Work work)
{
  const Lock lock(one_at_a_time);
  Device &device = *current();
  if (device.captured) {
    device.captured->work.push_back(std::move(work));
    return SUCCESS;
  }
  counts[0] += work.kernels;
  counts[1] += work.up;
  counts[2] += work.down;
  device.kernels += work.kernels;
  device.queued.push_back(std::move(work));
  return SUCCESS;
}

// the first pieces of work that are queued
int finish(Device &device, std::size_t pieces)
{
  const auto end = device.queued.begin() + pieces;
  const std::vector<Work> work(device.queued.begin(), end);
  device.queued.erase(device.queued.begin(), end);
  device.done += static_cast<long long>(pieces);
  for (const auto &item : work)
    if (const int failed = item.run()) return failed;
  return SUCCESS;
}

std::size_t whole_pages(std::size_t bytes)
{
  return (bytes + PAGE - 1) / PAGE * PAGE;
}

// a copy between a device's memory and the host's; what is recorded is done again and again, so the
// host's must be pinned
int wrong_copy(std::uintptr_t device, const void *host, std::size_t bytes, const void *stream)
{
  const Lock lock(one_at_a_time);
  if (const int wrong = wrong_stream(stream)) return wrong;
  if (!inside(allocations, device, bytes)) return INVALID_VALUE;
  const bool fixed = inside(pinned, reinterpret_cast<std::uintptr_t>(host), bytes);
  return current()->captured && !fixed ? CAPTURE_UNSUPPORTED : SUCCESS;
}

}     // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned)
{
  initialized = true;
  return SUCCESS;
}
API cuDriverGetVersion(int *version)
{
  *version = 13000;
  return SUCCESS;
}
API cuDeviceGetCount(int *count)
{
  *count = number_of("EQCALC_EMULATION_DEVICES", DEVICES);
  return initialized ? SUCCESS : NOT_INITIALIZED;
}
API cuDeviceGet(int *device, int number)
{
  if (!initialized) return NOT_INITIALIZED;
  *device = number;
  return number < 0 || number >= DEVICES ? INVALID_DEVICE : SUCCESS;
}
// multiprocessors; bytes of shared memory that a block may ask for
API cuDeviceGetAttribute(int *value, int attribute, int)
{
  if (attribute != 16 && attribute != 97) return INVALID_VALUE;
  *value = attribute == 16 ? number_of("EQCALC_EMULATION_PROCESSORS", 3) : most_shared();
  return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void **context, int device)
{
  const Lock lock(one_at_a_time);
  if (device < 0 || device >= DEVICES) return INVALID_DEVICE;
  if (number_of("EQCALC_EMULATION_TAKEN", 0)) return DEVICE_UNAVAILABLE;
  devices[device].retained++;
  *context = &devices[device];
  return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int device)
{
  const Lock lock(one_at_a_time);
  if (gone) return DEINITIALIZED;
  if (device < 0 || device >= DEVICES || !devices[device].retained) return INVALID_CONTEXT;
  devices[device].retained--;
  return SUCCESS;
}
API cuCtxPushCurrent_v2(void *context)
{
  if (gone) return DEINITIALIZED;
  auto *of = static_cast<Device *>(context);
  if (!of) return INVALID_CONTEXT;
  if (!of->retained) return CONTEXT_DESTROYED;
  contexts.push_back(of);
  return SUCCESS;
}
API cuCtxPopCurrent_v2(void **context)
{
  if (contexts.empty()) return INVALID_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return SUCCESS;
}

API cuModuleLoadData(void **module, const void *image)
{
  const Lock lock(one_at_a_time);
  if (!current()) return INVALID_CONTEXT;
  // an ELF file ends with the table of its sections
  const auto *elf = static_cast<const Elf64_Ehdr *>(image);
  if (std::memcmp(elf->e_ident, ELFMAG, SELFMAG) != 0) return INVALID_IMAGE;
  const std::size_t bytes = elf->e_shoff + std::size_t(elf->e_shnum) * elf->e_shentsize;
  const int file = memfd_create("kernels", 0);
  if (file < 0 || write(file, image, bytes) != static_cast<ssize_t>(bytes)) return INVALID_IMAGE;
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  // the file stays open: dlopen takes a name that it has seen for the library that it was
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "emulated GPU: %s\n", dlerror());
    return INVALID_IMAGE;
  }
  auto *made = new Module{current(), library, nullptr, nullptr, 0};
  made->start = reinterpret_cast<decltype(made->start)>(dlsym(library, "simt_start"));
  made->most_threads =
      reinterpret_cast<decltype(made->most_threads)>(dlsym(library, "simt_most_threads"));
  made->argument_bytes =
      reinterpret_cast<unsigned long (*)()>(dlsym(library, "simt_argument_bytes"))();
  *module = made;
  return SUCCESS;
}
API cuModuleUnload(void *module)
{
  auto *from = static_cast<Module *>(module);
  if (from->of != current()) return INVALID_CONTEXT;
  delete from;     // functions of it may still be known: the library is not closed
  return SUCCESS;
}
API cuModuleGetFunction(void **function, void *module, const char *name)
{
  const auto *from = static_cast<const Module *>(module);
  if (from->of != current()) return INVALID_CONTEXT;
  void *body = dlsym(from->library, name);
  if (!body) return NOT_FOUND;
  *function = new Function{from, body, static_cast<unsigned>(from->most_threads(name)), SHARED};
  return SUCCESS;
}

API cuFuncSetAttribute(void *function, int attribute, int value)
{
  auto *of = static_cast<Function *>(function);
  if (of->module->of != current()) return INVALID_CONTEXT;
  if (attribute != 8 || value < 0 || value > most_shared()) return INVALID_VALUE;
  of->shared = value;
  return SUCCESS;
}

API cuMemGetInfo_v2(std::size_t *free, std::size_t *all)
{
  const Device *of = current();
  if (!of) return INVALID_CONTEXT;
  *free = of->limit > of->used ? of->limit - of->used : 0;
  *all = of->limit;
  return SUCCESS;
}
API cuMemAlloc_v2(unsigned long long *address, std::size_t bytes)
{
  const Lock lock(one_at_a_time);
  Device *of = current();
  if (!of) return INVALID_CONTEXT;
  if (!bytes) return INVALID_VALUE;
  if (current()->captured) return CAPTURE_UNSUPPORTED;
  if (until_none && !--until_none) return OUT_OF_MEMORY;
  if (of->used + bytes > of->limit) return OUT_OF_MEMORY;
  const std::size_t size = whole_pages(bytes) + 2 * PAGE;
  constexpr int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, kind, -1, 0);
  if (mapped == MAP_FAILED) return OUT_OF_MEMORY;
  char *base = static_cast<char *>(mapped);
  if (bytes < HUGE) std::memset(base, 0xff, size);     // NaN, and -1 of integers
  char *start = base + size - PAGE - (bytes + 15) / 16 * 16;
  mprotect(base, PAGE, PROT_NONE);
  mprotect(base + size - PAGE, PAGE, PROT_NONE);
  *address = reinterpret_cast<std::uintptr_t>(start);
  allocations[*address] = {of, base, size, bytes};
  of->used += bytes;
  return SUCCESS;
}
API cuMemFree_v2(unsigned long long address)
{
  const Lock lock(one_at_a_time);
  if (!current()) return INVALID_CONTEXT;
  if (current()->captured) return CAPTURE_UNSUPPORTED;
  const auto found = allocations.find(address);
  if (found == allocations.end() || found->second.of != current()) return INVALID_VALUE;
  current()->used -= found->second.bytes;
  munmap(found->second.base, found->second.size);
  allocations.erase(found);
  return SUCCESS;
}
API cuMemHostAlloc(void **address, std::size_t bytes, unsigned flags)
{
  const Lock lock(one_at_a_time);
  if (!current()) return INVALID_CONTEXT;
  if (!bytes || flags > 7) return INVALID_VALUE;
  if (current()->captured) return CAPTURE_UNSUPPORTED;
  if (bytes > static_cast<std::size_t>(number_of("EQCALC_EMULATION_PINNED", 1 << 30)))
    return OUT_OF_MEMORY;
  *address = std::malloc(bytes);
  if (!*address) return OUT_OF_MEMORY;
  std::memset(*address, 0xff, bytes);
  pinned[reinterpret_cast<std::uintptr_t>(*address)] = {current(), *address, bytes, bytes};
  return SUCCESS;
}
API cuMemFreeHost(void *address)
{
  const Lock lock(one_at_a_time);
  if (!current()) return INVALID_CONTEXT;
  if (current()->captured) return CAPTURE_UNSUPPORTED;
  if (!pinned.erase(reinterpret_cast<std::uintptr_t>(address))) return INVALID_VALUE;
  std::free(address);
  return SUCCESS;
}

API cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, std::size_t bytes, void *stream)
{
  if (const int wrong = wrong_copy(to, from, bytes, stream)) return wrong;
  const auto copy = [=] { return std::memcpy(reinterpret_cast<void *>(to), from, bytes), SUCCESS; };
  return later({copy, 0, static_cast<long long>(bytes), 0});
}
API cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, std::size_t bytes, void *stream)
{
  if (const int wrong = wrong_copy(from, to, bytes, stream)) return wrong;
  const auto copy = [=] { return std::memcpy(to, reinterpret_cast<void *>(from), bytes), SUCCESS; };
  return later({copy, 0, 0, static_cast<long long>(bytes)});
}
API cuMemsetD8Async(unsigned long long to, unsigned char value, std::size_t bytes, void *stream)
{
  if (const int wrong = wrong_stream(stream)) return wrong;
  const Lock lock(one_at_a_time);
  if (!inside(allocations, to, bytes)) return INVALID_VALUE;
  const auto set = [=] {
    char *begin = reinterpret_cast<char *>(to), *end = begin + bytes;
    if (bytes >= HUGE && value == 0) {     // whole pages are given back, and come again as zeros
      char *first = reinterpret_cast<char *>(whole_pages(to));
      const std::size_t pages = (end - first) / PAGE * PAGE;
      madvise(first, pages, MADV_DONTNEED);
      std::memset(begin, 0, first - begin);
      begin = first + pages;
    }
    std::memset(begin, value, end - begin);
    return SUCCESS;
  };
  return later({set, 0, 0, 0});
}

API cuLaunchKernel(void *function, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty,
                   unsigned tz, unsigned shared, void *stream, void **arguments, void **)
{
  const auto *f = static_cast<const Function *>(function);
  if (const int wrong = wrong_stream(stream)) return wrong;
  if (f->module->of != current()) return INVALID_HANDLE;
  if (!bx || bx > MOST_BLOCKS || by != 1 || bz != 1 || !tx || tx > 1024 || ty != 1 || tz != 1 ||
      shared > f->shared || f->module->argument_bytes > MOST_ARGUMENTS)
    return INVALID_VALUE;
  if (tx > f->threads) return OUT_OF_RESOURCES;
  if (shared) counts[6]++;
  if (!current()->captured) counts[4]++;
  const auto *first = static_cast<const char *>(arguments[0]);
  std::vector<char> copy(first, first + f->module->argument_bytes);
  const auto start = f->module->start;
  void *body = f->body;
  return later(
      {[=] { return start(body, copy.data(), bx, tx, shared) ? LAUNCH_FAILED : SUCCESS; }, 1, 0, 0});
}

API cuStreamCreate(void **stream, unsigned)
{
  if (!current()) return INVALID_CONTEXT;
  *stream = new Stream{current()};
  return SUCCESS;
}
API cuStreamDestroy_v2(void *stream)
{
  if (const int wrong = wrong_stream(stream)) return wrong;
  delete static_cast<Stream *>(stream);
  return SUCCESS;
}
API cuStreamSynchronize(void *stream)
{
  if (const int wrong = wrong_stream(stream)) return wrong;
  if (current()->captured) return CAPTURE_UNSUPPORTED;
  const Lock lock(one_at_a_time);
  counts[3]++;
  return finish(*current(), current()->queued.size());
}

API cuEventCreate(void **event, unsigned)
{
  if (!current()) return INVALID_CONTEXT;
  *event = new Event{current()};
  return SUCCESS;
}
API cuEventDestroy_v2(void *event)
{
  delete static_cast<Event *>(event);
  return SUCCESS;
}
API cuEventRecord(void *event, void *stream)
{
  if (const int wrong = wrong_stream(stream)) return wrong;
  auto *of = static_cast<Event *>(event);
  if (of->of != current()) return INVALID_HANDLE;
  if (current()->captured) return CAPTURE_UNSUPPORTED;
  of->after = current()->done + static_cast<long long>(current()->queued.size());
  return SUCCESS;
}
API cuEventSynchronize(void *event)
{
  const Lock lock(one_at_a_time);
  const auto *of = static_cast<const Event *>(event);
  const int failed = finish(*of->of, std::max(0LL, of->after - of->of->done));
  for (const Work &work : of->of->queued) counts[5] += work.kernels;
  return failed;
}

API cuStreamBeginCapture_v2(void *stream, int)
{
  if (const int wrong = wrong_stream(stream)) return wrong;
  if (current()->captured || !stream) return CAPTURE_UNSUPPORTED;     // nor a context's own stream
  current()->captured = new Graph{current(), {}};
  return SUCCESS;
}
API cuStreamEndCapture(void *stream, void **graph)
{
  if (const int wrong = wrong_stream(stream)) return wrong;
  if (!current()->captured) return INVALID_VALUE;
  *graph = std::exchange(current()->captured, nullptr);
  return SUCCESS;
}
API cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long)
{
  counts[7]++;
  *exec = new Graph(*static_cast<const Graph *>(graph));
  return SUCCESS;
}
API cuGraphLaunch(void *exec, void *stream)
{
  if (const int wrong = wrong_stream(stream)) return wrong;
  const auto *graph = static_cast<const Graph *>(exec);
  if (graph->of != current()) return INVALID_HANDLE;
  counts[4]++;
  if (current()->captured) return CAPTURE_UNSUPPORTED;
  for (const Work &work : graph->work)
    if (const int failed = later(work)) return failed;
  return SUCCESS;
}
API cuGraphDestroy(void *graph)
{
  delete static_cast<Graph *>(graph);
  return SUCCESS;
}
API cuGraphExecDestroy(void *exec)
{
  delete static_cast<Graph *>(exec);
  return SUCCESS;
}
API cuGetErrorName(int error, const char **name)
{
  static const std::map<int, const char *> names = {
      {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
      {DEINITIALIZED, "CUDA_ERROR_DEINITIALIZED"},
      {DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE"},
      {100, "CUDA_ERROR_NO_DEVICE"},
      {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
      {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
      {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
      {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
      {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
      {OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
      {CONTEXT_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
      {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
      {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
  };
  const auto found = names.find(error);
  if (found == names.end()) return INVALID_VALUE;
  *name = found->second;
  return SUCCESS;
}

// for tests: how many bytes each device has, and has given; which of the next allocations fails;
// what was done since the last call; that the driver is gone, as at the end of a process, or back
extern "C" __attribute__((visibility("default"))) void emulated_memory(std::size_t bytes)
{
  for (Device &device : devices) device.limit = bytes;
}
extern "C" __attribute__((visibility("default"))) int emulated_failing(int allocation)
{
  return std::exchange(until_none, allocation);
}
extern "C" __attribute__((visibility("default"))) std::size_t emulated_used()
{
  return devices[0].used + devices[1].used;
}
extern "C" __attribute__((visibility("default"))) void emulated_counts(long long *to)
{
  std::memcpy(to, counts, sizeof(counts));
  std::memset(counts, 0, sizeof(counts));
}
extern "C" __attribute__((visibility("default"))) void emulated_end(int ended)
{
  gone = ended;
}
